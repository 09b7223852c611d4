"""Where and in which precision steps run, in which mode, one at a time or many, and how all of it is changed."""

from __future__ import annotations

import copy
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from easytorch import Model, Strategy
from easytorch.callbacks import LambdaCallback
from easytorch.strategies import device
from easytorch.strategies.device import pick_device
from tests.loops import blob_loader, blobs, furthest, mlp, same_weights, twins

X, Y = blobs()
BINARY = (Y == 0).float().unsqueeze(1)


def compiled(net=None, loss="cross_entropy", optimizer="sgd", **options):
    return Model(mlp() if net is None else net, device="cpu").compile(optimizer, loss, **options)


def normed():
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


# Devices


def test_auto_is_the_accelerator_or_else_the_cpu():
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert Model(mlp()).device == pick_device("auto") == expected


@pytest.mark.parametrize("device", ["cpu", "CPU", torch.device("cpu")], ids=str)
def test_the_cpu_is_chosen_by_name_or_object(device):
    model = Model(mlp(), device=device)
    assert model.device == torch.device("cpu")
    assert {p.device.type for p in model.module.parameters()} == {"cpu"}


def test_floats_become_the_modules_dtype_and_labels_stay_whole():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(x.dtype)
            return super().forward(x)

    model = compiled(Watched(8, 3, dtype=torch.float64))
    model.fit(X, Y, verbose=0)
    assert set(seen) == {torch.float64}


# Precision


def test_fp16_on_a_cpu_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'fp16' is 10 to 14 times slower .* on a CPU.*Use 'bf16' or 'fp32'"):
        compiled(precision="fp16")


def test_bf16_on_a_processor_without_it_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match=r"'bf16' needs .* which this processor does not have.*Use 'fp32'"):
        compiled(precision="bf16")


def test_an_x86_processor_without_the_instructions_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    with pytest.raises(ValueError, match="which this processor does not have"):
        compiled(precision="bf16")


needs_bf16 = pytest.mark.skipif(
    not device._cpu_has_bf16(), reason="this processor has no bfloat16 instructions (AVX512-BF16 or AMX)"
)


@needs_bf16
def test_bf16_computes_in_bfloat16_and_keeps_the_weights_in_float32():
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x):
            y_pred = super().forward(x)
            seen.append(y_pred.dtype)
            return y_pred

    model = compiled(Watched(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), precision="bf16")
    model.fit(X, Y, verbose=0)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


@needs_bf16
def test_bf16_trains():
    model = compiled(optimizer="adam", lr=0.03, metrics=["accuracy"], precision="bf16")
    history = model.fit(X, Y, epochs=8, batch_size=8, verbose=0)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert model.evaluate(X, Y, verbose=0).accuracy > 0.9


@needs_bf16
@pytest.mark.parametrize("verb", ["predict", "predict_proba"])
def test_bf16_predicts_float32_arrays(verb):
    model = compiled(precision="bf16")
    assert getattr(model, verb)(X, verbose=0).dtype == np.float32


def test_fp32_is_the_default_and_leaves_the_forward_alone():
    model = compiled()
    assert model.strategy.precision == "fp32"
    assert np.array_equal(model.predict(X, batch_size=50, verbose=0), model.module(X).detach().numpy())


def test_a_precision_is_known_by_its_name_however_it_is_typed():
    assert Strategy("cpu", "FP32").precision == "fp32"


@needs_bf16
def test_a_saved_model_is_measured_in_its_own_precision(tmp_path):
    model = compiled(optimizer="adam", precision="bf16")
    model.fit(X, Y, verbose=0)
    again = Model(copy.deepcopy(model.module)).load(model.save(tmp_path / "model.pt"))
    assert again.strategy.precision == "bf16"
    assert again.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)


@needs_bf16
def test_a_saved_model_whose_precision_is_not_to_be_had_computes_in_fp32_and_says_so(tmp_path, monkeypatch):
    model = compiled(optimizer="adam", precision="bf16")
    model.save(tmp_path / "model.pt")
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match=r"computed in bf16; this one does it in fp32\. .*does not have"):
        again = Model(copy.deepcopy(model.module)).load(tmp_path / "model.pt")
    assert again.strategy.precision == "fp32"


# Compiling


@pytest.fixture
def no_compiler(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", fail)


def test_without_a_compiler_there_is_one_warning_before_the_first_step(no_compiler):
    with pytest.warns(UserWarning, match=r"No working C\+\+ compiler found") as warned:
        model = compiled(jit_compile=True)
    assert len(warned) == 1
    assert "and more lines" not in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, Y, epochs=2, verbose=0)


def test_the_warning_points_at_the_users_line(no_compiler):
    with pytest.warns(UserWarning, match="compiler") as warned:
        compiled(jit_compile=True)
    assert warned[0].filename == __file__


def test_without_a_compiler_the_results_are_those_of_the_uncompiled_model(no_compiler):
    eager, fallen_back = twins(mlp())
    compiled(eager).fit(blob_loader(), 2, verbose=0)
    with pytest.warns(UserWarning, match="compiler"):
        model = compiled(fallen_back, jit_compile=True)
    model.fit(blob_loader(), 2, verbose=0)
    assert same_weights(eager, fallen_back)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++) here")


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch's own, while it compiles
def test_a_compiled_model_is_close_to_the_uncompiled_one_and_saves_bare_names(tmp_path):
    eager, by_compiler = twins(mlp())
    compiled(eager).fit(blob_loader(48), 2, verbose=0)
    model = compiled(by_compiler, jit_compile=True)
    model.fit(blob_loader(48), 2, verbose=0)
    assert model.strategy.forward is not model.module
    assert furthest(eager, by_compiler) < 1e-5
    assert list(torch.load(model.save(tmp_path / "model.pt"), weights_only=True)["module"]) == list(eager.state_dict())


# Memory and matrices


def test_channels_last_changes_the_layout_and_neither_results_nor_files(tmp_path):
    plain, last = twins(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    x, y = torch.randn(20, 3, 4, 4), torch.randint(3, (20,))
    compiled(plain).fit(x, y, verbose=0, shuffle=False)
    model = compiled(last, channels_last=True)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    model.fit(x, y, verbose=0, shuffle=False)
    assert furthest(plain, last) < 1e-6
    again = compiled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    assert same_weights(again.load(model.save(tmp_path / "model.pt")).module, last)


def test_the_precision_of_matrices_is_set_for_the_program_and_checked_before():
    before = torch.get_float32_matmul_precision()
    try:
        compiled(float32_matmul_precision="High")
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(ValueError, match=r"Unknown float32_matmul_precision 'hihg'\. Did you mean 'high'"):
            compiled(float32_matmul_precision="hihg")
    finally:
        torch.set_float32_matmul_precision(before)


# Train and eval mode


def modes_of(net):
    return [part.training for part in net.modules()]


@pytest.mark.parametrize("freeze", [False, True], ids=["all training", "frozen BatchNorm"])
@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_every_verb_leaves_the_modes_as_it_found_them(verb, freeze):
    net = normed()
    net[1].train(not freeze)
    model, before = compiled(net), modes_of(net)
    getattr(model, verb)(*([X] if verb == "predict" else [X, Y]), verbose=0)
    assert modes_of(net) == before


def test_fit_leaves_a_module_in_eval_mode_as_it_found_it():
    net = normed().eval()
    compiled(net).fit(X, Y, validation_data=(X, Y), verbose=0)
    assert not any(modes_of(net))


def test_a_module_in_eval_mode_is_trained_in_train_mode():
    net, modes = normed().eval(), []
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: modes.append(modes_of(net)))
    compiled(net).fit(X, Y, verbose=0, callbacks=[watch])
    assert all(all(each) for each in modes)
    assert net[1].num_batches_tracked == len(modes) == 2


def test_a_frozen_batchnorm_stays_frozen_in_fit_and_its_validation():
    net, modes = normed(), []
    net[1].eval()
    means = net[1].running_mean.clone()
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: modes.append((net.training, net[1].training)))
    compiled(net).fit(X, Y, epochs=3, validation_data=(X, Y), verbose=0, callbacks=[watch])
    assert set(modes) == {(True, False)}
    assert torch.equal(net[1].running_mean, means)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "test_on_batch", "predict_on_batch"])
def test_measuring_runs_in_eval_mode_and_without_gradients(verb):
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = compiled(Watched(8, 3))
    getattr(model, verb)(*([X] if "predict" in verb else [X, Y]), **({} if "batch" in verb else {"verbose": 0}))
    assert set(seen) == {(False, False)}


def test_validation_runs_in_eval_mode_and_training_goes_on_in_train_mode():
    net, modes = normed(), []
    watch = LambdaCallback(
        on_test_batch_end=lambda batch, logs: modes.append(("test", net[3].training)),
        on_train_batch_end=lambda batch, logs: modes.append(("train", net[3].training)),
    )
    compiled(net).fit(X, Y, epochs=2, batch_size=50, validation_data=(X, Y), verbose=0, callbacks=[watch])
    assert [mode for i, mode in enumerate(modes) if i == 0 or mode != modes[i - 1]] == [
        ("train", True),
        ("test", False),
    ] * 2


def test_an_error_in_training_leaves_the_modes_as_they_were():
    net = normed()
    net[1].eval()
    before = modes_of(net)
    with pytest.raises(ValueError):
        compiled(net).fit(X[:, :5], Y, verbose=0)
    assert modes_of(net) == before


# One batch at a time


def test_train_on_batch_is_one_update_by_hand():
    by_model, by_hand = twins(mlp())
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    model = compiled(by_model, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    for _ in range(3):
        scores = model.train_on_batch(X, Y)
        loss = functional.cross_entropy(by_hand(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert scores.loss == loss.item()
    assert same_weights(by_model, by_hand)
    assert model.state.step == 3


def test_train_on_batch_takes_arrays_and_weights():
    by_array, by_tensor = twins(mlp())
    weight = torch.linspace(0, 2, 50)
    compiled(by_array).train_on_batch(X.numpy(), Y.numpy(), weight.numpy())
    compiled(by_tensor).train_on_batch((X, Y, weight))
    assert same_weights(by_array, by_tensor)


def test_train_on_batch_leaves_the_history_alone():
    model = compiled()
    model.fit(X, Y, verbose=0)
    before = model.history.history
    model.train_on_batch(X, Y)
    assert model.history.history == before


def test_test_on_batch_equals_evaluate_of_that_batch():
    model = compiled(metrics=["accuracy"])
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    assert model.test_on_batch(X, Y) == model.evaluate(X, Y, batch_size=50, verbose=0)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_predict_on_batch_equals_predict_of_that_batch():
    model = compiled()
    assert np.array_equal(model.predict_on_batch(X.numpy()), model.predict(X, batch_size=50, verbose=0))


# Predictions


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.left, self.right = kind, nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        return {"left": left, "right": right} if self.kind is dict else self.kind((left, right))


def test_predict_returns_numpy_in_the_order_of_the_samples():
    model = compiled()
    y_pred = model.predict(X, batch_size=8, verbose=0)
    assert type(y_pred) is np.ndarray
    with torch.no_grad():
        np.testing.assert_allclose(y_pred, model.module(X).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [dict, tuple, list])
def test_predict_keeps_the_structure_of_the_outputs(kind):
    y_pred = Model(Several(kind), device="cpu").predict(X, batch_size=8, verbose=0)
    assert type(y_pred) is kind
    left, right = y_pred.values() if kind is dict else y_pred
    assert (left.shape, right.shape) == ((50, 2), (50, 3))


@pytest.mark.parametrize(
    "data",
    [X, X.numpy(), (X, Y), TensorDataset(X, Y), blob_loader(), [(X[:25], Y[:25]), (X[25:], Y[25:])]],
    ids=["tensor", "array", "tuple", "dataset", "loader", "list"],
)
def test_predict_takes_all_data_that_fit_takes(data):
    model = compiled()
    np.testing.assert_allclose(model.predict(data, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


def test_predict_needs_no_compile_and_no_targets():
    assert Model(mlp(), device="cpu").predict(X, verbose=0).shape == (50, 3)


def test_predict_changes_no_weight_and_no_buffer():
    net = normed()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compiled(net).predict(X, verbose=0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_predict_from_a_shuffling_loader_warns_that_the_order_is_another():
    with pytest.warns(UserWarning, match=r"shuffles.*another order"):
        compiled().predict(blob_loader(shuffle=True), verbose=0)


def test_predict_stops_after_the_steps():
    assert len(compiled().predict(X, batch_size=8, steps=2, verbose=0)) == 16


@pytest.mark.parametrize(
    ("net", "loss", "probabilities"),
    [
        (mlp, "cross_entropy", lambda out: out.softmax(1)),
        (mlp, functional.cross_entropy, lambda out: out.softmax(1)),
        (lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), "nll", lambda out: out.exp()),
        (lambda: mlp(8, 1), "bce_with_logits", lambda out: out.sigmoid()),
        (lambda: nn.Sequential(mlp(8, 1), nn.Sigmoid()), "bce", lambda out: out),
    ],
    ids=["cross_entropy", "the function", "nll", "bce_with_logits", "bce"],
)
def test_probabilities_and_classes_follow_from_the_loss(net, loss, probabilities):
    model = compiled(net(), loss)
    with torch.no_grad():
        expected = probabilities(model.module(X))
    classes = expected.argmax(1) if expected.shape[1] > 1 else (expected > 0.5).long()
    np.testing.assert_allclose(model.predict_proba(X, verbose=0), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(model.predict_classes(X, verbose=0), classes.numpy())


@pytest.mark.parametrize("verb", ["predict_proba", "predict_classes"])
def test_a_regression_has_no_probabilities(verb):
    with pytest.raises(ValueError, match=r"MSELoss.*Call predict\(\)"):
        getattr(compiled(mlp(8, 1), "mse"), verb)(X, verbose=0)


def test_probabilities_of_several_outputs_keep_their_structure():
    model = compiled(Several(dict), {"left": "cross_entropy", "right": "bce_with_logits"})
    y_pred = model.predict_proba(X, verbose=0)
    np.testing.assert_allclose(y_pred["left"].sum(1), np.ones(50), rtol=1e-5)
    assert y_pred["right"].shape == (50, 3)


# Steps of one's own


def test_a_train_step_of_ones_own_is_optimized_and_logged():
    class Smoothed(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            y_pred = self(x)
            loss = functional.cross_entropy(y_pred, y, label_smoothing=0.1)
            return {"loss": loss, "confidence": y_pred.softmax(1).amax(1).mean()}

    by_model, by_hand = twins(mlp())
    model = Smoothed(by_model, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1))
    history = model.fit(blob_loader(), 2, validation_data=blob_loader(), verbose=0)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in blob_loader():
            optimizer.zero_grad()
            functional.cross_entropy(by_hand(x), y, label_smoothing=0.1).backward()
            optimizer.step()
    assert same_weights(by_model, by_hand)
    assert list(history) == ["loss", "confidence", "val_loss", "val_confidence", "lr"]


def test_an_update_with_two_optimizers_trains_a_gan():
    class Gan(Model):
        def compile(self, lr):
            super().compile(lambda _: torch.optim.SGD(self.module["generator"].parameters(), lr=lr))
            self.critic_optimizer = torch.optim.SGD(self.module["critic"].parameters(), lr=lr)
            return self

        def update(self, window):
            (batch,) = window
            for optimizer, step in ((self.critic_optimizer, self.critic_step), (self.optimizer, self.generator_step)):
                outputs = self.strategy.run(step, batch)
                optimizer.zero_grad()
                self.strategy.backward(next(iter(outputs.values())))
                self.strategy.step(optimizer)
                self.metrics.record(outputs, self.batch_size(batch))

        def critic_step(self, batch):
            x = self.unpack(batch).x
            real, fake = self.module["critic"](x), self.module["critic"](self.fakes(x).detach())
            return {"critic_loss": functional.softplus(-real).mean() + functional.softplus(fake).mean()}

        def generator_step(self, batch):
            x = self.unpack(batch).x
            return {"generator_loss": functional.softplus(-self.module["critic"](self.fakes(x))).mean()}

        def fakes(self, x):
            return self.module["generator"](x[:, :2])

    def parts():
        torch.manual_seed(5)
        return nn.ModuleDict({"generator": nn.Linear(2, 8), "critic": nn.Linear(8, 1)})

    by_model, by_hand = parts(), parts()
    history = Gan(by_model, device="cpu").compile(lr=0.1).fit([X[:25], X[25:]], 3, verbose=0)
    generator, critic = by_hand["generator"], by_hand["critic"]
    first, second = torch.optim.SGD(critic.parameters(), lr=0.1), torch.optim.SGD(generator.parameters(), lr=0.1)
    for _ in range(3):
        for x in (X[:25], X[25:]):
            loss = (
                functional.softplus(-critic(x)).mean()
                + functional.softplus(critic(generator(x[:, :2]).detach())).mean()
            )
            first.zero_grad()
            loss.backward()
            first.step()
            loss = functional.softplus(-critic(generator(x[:, :2]))).mean()
            second.zero_grad()
            loss.backward()
            second.step()
    assert same_weights(by_model, by_hand)
    assert list(history) == ["critic_loss", "generator_loss", "lr"]
    assert len(history["critic_loss"]) == 3


def test_a_predict_step_of_ones_own_decides_what_is_predicted():
    class Hidden(Model):
        def predict_step(self, batch):
            return self.module[:2](self.unpack(batch).x)

    assert Hidden(mlp(), device="cpu").predict(X, verbose=0).shape == (50, 16)


def test_a_test_step_of_ones_own_decides_what_is_measured():
    class Counted(Model):
        def test_step(self, batch):
            return super().test_step(batch) | {"largest": self.unpack(batch).y.max()}

    scores = Counted(mlp(), device="cpu").compile("sgd", "cross_entropy").evaluate(X, Y, batch_size=50, verbose=0)
    assert scores.keys() == ["loss", "largest"]
    assert scores.largest == 2


# A strategy of one's own


class RecordingStrategy(Strategy):
    """Does what every strategy does, and notes it."""

    def __init__(self, device):
        super().__init__(device)
        self.events = []

    def run(self, step, batch):
        self.events.append(step.__name__)
        return super().run(step, batch)

    def backward(self, loss, share=1.0):
        self.events.append(f"backward {share:g}")
        super().backward(loss, share)

    def accumulating(self, sync):
        self.events.append("sync" if sync else "hold")
        return super().accumulating(sync)

    def unscale(self, optimizer):
        self.events.append("unscale")
        super().unscale(optimizer)

    def clip(self, module, norm, value):
        self.events.append(f"clip {norm}")
        super().clip(module, norm, value)

    def step(self, optimizer):
        self.events.append("step")
        super().step(optimizer)


def recorded(net=None, **options):
    model = compiled(net, **options)
    model.strategy = RecordingStrategy(model.device)
    model.strategy.prepare(model.module)
    return model


def test_a_strategy_of_ones_own_is_asked_for_everything_in_order():
    model = recorded(clip_grad_norm=1.0)
    model.fit([(X[:25], Y[:25]), (X[25:], Y[25:])], verbose=0)
    assert model.strategy.events == ["sync", "train_step", "backward 1", "unscale", "clip 1.0", "step"] * 2


def test_a_window_is_synchronized_once_and_shares_by_samples():
    model = recorded(gradient_accumulation_steps=2)
    model.fit([(X[:30], Y[:30]), (X[30:40], Y[30:40]), (X[40:], Y[40:])], verbose=0)
    assert model.strategy.events == [
        *("hold", "train_step", "backward 0.75", "sync", "train_step", "backward 0.25", "unscale", "clip None", "step"),
        *("sync", "train_step", "backward 1", "unscale", "clip None", "step"),
    ]


def test_evaluating_and_predicting_only_run_steps():
    model = recorded()
    model.evaluate([(X, Y)], verbose=0)
    model.predict([(X, Y)], verbose=0)
    assert model.strategy.events == ["test_step", "predict_step"]


def test_a_strategy_that_only_records_changes_no_result():
    plain, watched = twins(mlp())
    compiled(plain).fit(blob_loader(), 2, verbose=0)
    recorded(watched).fit(blob_loader(), 2, verbose=0)
    assert same_weights(plain, watched)
