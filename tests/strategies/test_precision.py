"""Where and in which precision steps run, in which mode, one at a time or many, and how all of it is changed."""

from __future__ import annotations

import copy
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import Model, Strategy
from easytorch._utils import torch_private
from easytorch.strategies.device import pick_device
from tests.loops import blob_loader, furthest, mlp, same_weights, twins
from tests.strategies import common_strategy
from tests.strategies.common_strategy import X, Y, compiled

BINARY = (Y == 0).float().unsqueeze(1)


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
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match=r"'bf16' needs .* which this processor does not have.*Use 'fp32'"):
        compiled(precision="bf16")


def test_an_x86_processor_without_the_instructions_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    with pytest.raises(ValueError, match="which this processor does not have"):
        compiled(precision="bf16")


needs_bf16 = pytest.mark.skipif(
    not torch_private.cpu_has_bf16(), reason="this processor has no bfloat16 instructions (AVX512-BF16 or AMX)"
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
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match=r"used precision='bf16'; this one uses 'fp32'\. .*does not have"):
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
    assert warned[0].filename == common_strategy.__file__


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
