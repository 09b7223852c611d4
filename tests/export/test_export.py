"""Programs of ``Model.export`` return what ``predict`` returns."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.export.formats import Onnx


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))


def images(count=8):
    return torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(1))


def fitted_model():
    model = Model(small_net(), device="cpu").compile("adam", "cross_entropy")
    model.fit(images(), ["cat", "dog"] * 4, verbose=0)
    return model


def run_pt2(path, *args, **kwargs):
    with torch.no_grad():
        return torch.export.load(path).module()(*args, **kwargs)


def run_onnx(path, **inputs):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return session, dict(zip(names, session.run(None, {k: v.numpy() for k, v in inputs.items()}), strict=True))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, left, right=None, *, scale=2.0):
        return {"sum": self.linear(left) + right[:, :2], "scaled": right * scale}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 1)

    def forward(self, tokens):
        return self.linear(self.embed(tokens).mean(1))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_program_returns_predict_for_every_batch_size(tmp_path, rows):
    model = fitted_model()
    path = model.export(tmp_path / "net.pt2")
    x = images(rows)
    np.testing.assert_allclose(run_pt2(path, x), model.predict(x, verbose=0), atol=1e-6)


def test_a_program_with_probabilities_returns_predict_proba(tmp_path):
    model = fitted_model()
    path = model.export(tmp_path / "net.pt2", images(), probabilities=True)
    np.testing.assert_allclose(run_pt2(path, images()), model.predict_proba(images(), verbose=0), atol=1e-6)


def test_the_file_has_the_class_names(tmp_path):
    path = fitted_model().export(tmp_path / "net.pt2")
    files = {"class_names.json": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["class_names.json"]) == ["cat", "dog"]


def test_export_changes_nothing_in_the_model(tmp_path):
    model = fitted_model()
    model.module.train()
    model.module[4].eval()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    random_state = torch.get_rng_state()
    model.export(tmp_path / "net.pt2")
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [each.training for each in model.module] == [True, True, True, True, False, True]
    model.fit(images(), ["cat", "dog"] * 4, verbose=0)


def test_one_sample_is_enough_as_an_example(tmp_path):
    model = fitted_model()
    path = model.export(tmp_path / "net.pt2", images(1))
    assert run_pt2(path, images(5)).shape == (5, 2)


@pytest.mark.parametrize("probabilities", [False, True])
def test_arguments_by_name_keep_their_names(tmp_path, probabilities):
    model = Model(Pair(), device="cpu").compile("adam", {"sum": "cross_entropy", "scaled": "bce_with_logits"})
    x = {"left": torch.randn(4, 3), "right": torch.randn(4, 3)}
    path = model.export(tmp_path / "pair.pt2", x, probabilities=probabilities)
    expected = (model.predict_proba if probabilities else model.predict)(x, verbose=0)
    received = run_pt2(path, **x)
    for name, value in expected.items():
        np.testing.assert_allclose(received[name], value, atol=1e-6)


def test_positional_inputs_stay_positional(tmp_path):
    class Sum(nn.Module):
        def forward(self, *parts):
            return sum(parts)

    path = Model(Sum(), device="cpu").export(tmp_path / "sum.pt2", (torch.ones(4, 3), torch.ones(4, 3)))
    assert torch.equal(run_pt2(path, torch.ones(1, 3), torch.ones(1, 3)), torch.full((1, 3), 2.0))


def test_the_length_may_vary_if_dynamic_says_so(tmp_path):
    model = Model(Words(), device="cpu").compile("adam", "bce_with_logits")
    path = model.export(tmp_path / "words.pt2", torch.randint(10, (4, 6)), dynamic=(0, 1))
    tokens = torch.randint(10, (3, 9))
    np.testing.assert_allclose(run_pt2(path, tokens), model.predict(tokens, verbose=0), atol=1e-6)


def test_frames_are_converted_as_in_predict(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=(8, 3)), columns=list("abc"))
    model = Model(nn.Linear(3, 2), device="cpu").compile("adam", "cross_entropy")
    model.fit(frame, [0, 1] * 4, verbose=0)
    path = model.export(tmp_path / "net.pt2")
    received = run_pt2(path, torch.tensor(frame.to_numpy(), dtype=torch.float32))
    np.testing.assert_allclose(received, model.predict(frame[["c", "a", "b"]], verbose=0), atol=1e-6)


# What cannot be exported


class Random(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        self.count += 1
        return x * self.count


class FixedSize(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)[: len(x)] * 1


class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Random(), r"differs from predict\(\).*random"),
        (Counter(), r"differs from predict\(\)"),
        (ByValue(), r"cannot trace ByValue.*values of tensors"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_program_that_is_not_predict_is_not_written(tmp_path, module, message):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match=message):
        Model(module, device="cpu").export(path, torch.randn(4, 6))
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["net.pt2"]


def test_a_fixed_batch_size_is_refused_with_the_fix(tmp_path):
    with pytest.raises(RuntimeError, match=r"variable size.*x\.shape\[0\]"):
        Model(FixedSize(), device="cpu").export(tmp_path / "net.pt2", torch.randn(2, 6))


def test_a_variable_length_of_an_lstm_is_refused(tmp_path):
    model = Model(Recurrent(), device="cpu")
    with pytest.raises(RuntimeError, match=r"nn\.LSTM for each position.*pad"):
        model.export(tmp_path / "net.pt2", torch.randn(4, 5, 3), dynamic=(0, 1))
    path = model.export(tmp_path / "net.pt2", torch.randn(4, 5, 3))
    assert run_pt2(path, torch.randn(1, 5, 3)).shape == (1, 2)


def test_a_difference_may_be_allowed(tmp_path):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.01 * torch.randn_like(x)

    model = Model(Noisy(), device="cpu")
    with pytest.raises(RuntimeError, match="differs"):
        model.export(tmp_path / "net.pt2", torch.ones(4, 2))
    assert model.export(tmp_path / "net.pt2", torch.ones(4, 2), tolerance=1.0).exists()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.export("net.pt", images()), ValueError, r"'\.onnx', '\.pt2'.*save\(\)"),
        (lambda m: m.export("net.pt2"), ValueError, r"example of the inputs.*x\[:2\]"),
        (lambda m: m.export("net.pt2", images(), dynamic=1), ValueError, r"dynamic.*\(0, 1\)"),
        (lambda m: m.export("net.pt2", images(), dynamic=(1,)), ValueError, "0 for the batch"),
        (lambda m: m.export("net.pt2", images(), tolerance=-1), ValueError, "tolerance"),
        (lambda m: m.export("missing/net.pt2", images()), FileNotFoundError, "os.makedirs"),
        (lambda m: m.export("net.pt2", images(), probabilities=True), ValueError, r"Call compile\(\) with a loss"),
        (lambda m: m.export("net.pt2", torch.randn(4, 5)), ValueError, "12"),
        (lambda m: m.export("net.pt2", images()[:0]), ValueError, "sample"),
    ],
)
def test_mistakes_name_the_fix(tmp_path, monkeypatch, call, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call(Model(small_net(), device="cpu"))
    assert not os.listdir(tmp_path)


def test_an_overridden_predict_step_is_refused(tmp_path):
    class Doubled(Model):
        def predict_step(self, batch):
            return 2 * super().predict_step(batch)

    with pytest.raises(RuntimeError, match=r"Doubled overrides predict_step"):
        Doubled(small_net(), device="cpu").export(tmp_path / "net.pt2", images())


def test_a_missing_package_is_named_with_the_install_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r'"onnx".*pip install "easytorch-fit\[onnx\]"|pip install "easytorch-fit\[onnx\]"'
    ):
        Onnx()


# ONNX


@pytest.mark.slow
def test_onnx_returns_predict_proba_and_names(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = fitted_model()
    path = model.export(tmp_path / "net.onnx", probabilities=True)
    session, outputs = run_onnx(path, input=images(3))
    np.testing.assert_allclose(outputs["output"], model.predict_proba(images(3), verbose=0), atol=1e-6)
    assert session.get_inputs()[0].shape == ["batch", 3, 4]
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["cat", "dog"]


@pytest.mark.slow
def test_onnx_has_the_names_of_several_inputs_and_outputs(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = Model(Pair(), device="cpu")
    x = {"left": torch.randn(4, 3), "right": torch.randn(4, 3)}
    path = model.export(tmp_path / "pair.onnx", x)
    _, outputs = run_onnx(path, **x)
    for name, value in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-6)


@pytest.mark.slow
def test_onnx_takes_every_length_if_dynamic_says_so(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = Model(Words(), device="cpu")
    path = model.export(tmp_path / "words.onnx", torch.randint(10, (4, 6)), dynamic=(0, 1))
    tokens = torch.randint(10, (2, 9))
    session, outputs = run_onnx(path, tokens=tokens)
    np.testing.assert_allclose(outputs["output"], model.predict(tokens, verbose=0), atol=1e-6)
    assert session.get_inputs()[0].shape == ["batch", "tokens_size_1"]


@pytest.mark.slow
def test_what_onnx_cannot_hold_is_refused(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = Model(nn.Linear(3, 2).bfloat16(), device="cpu")
    with pytest.raises(RuntimeError, match="does not run"):
        model.export(tmp_path / "net.onnx", torch.randn(4, 3).bfloat16())
    assert not os.listdir(tmp_path)


class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, output):
        return self.layer(output)


def test_equal_names_of_input_and_output_are_refused(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = Model(Same(), device="cpu")
    with pytest.raises(ValueError, match="An input and an output are both called 'output'"):
        model.export(tmp_path / "net.onnx", torch.randn(2, 3))
    model.export(tmp_path / "net.pt2", torch.randn(2, 3))
