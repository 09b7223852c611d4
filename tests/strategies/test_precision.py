"""Devices, precisions, compilation and memory formats."""

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
from easytorch._utils.torch_private import cpu_has_bf16
from easytorch.strategies.device import pick_device
from tests.loops import blob_loader, furthest, mlp, same_weights, twins
from tests.strategies import common_strategy
from tests.strategies.common_strategy import X, Y, compiled_model

BINARY = (Y == 0).float().unsqueeze(1)


# Devices


def test_auto_is_the_accelerator_or_the_cpu():
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert Model(mlp()).device == pick_device("auto") == expected


@pytest.mark.parametrize("device", ["cpu", "CPU", torch.device("cpu")], ids=str)
def test_the_cpu_is_selected_by_name_or_object(device):
    model = Model(mlp(), device=device)
    assert model.device == torch.device("cpu")
    assert {p.device.type for p in model.module.parameters()} == {"cpu"}


def test_floats_get_the_dtype_of_the_module_and_labels_do_not():
    dtypes = []

    class RecordingModule(nn.Linear):
        def forward(self, x):
            dtypes.append(x.dtype)
            return super().forward(x)

    model = compiled_model(RecordingModule(8, 3, dtype=torch.float64))
    model.fit(X, Y, verbose=0)
    assert set(dtypes) == {torch.float64}


# Precision


def test_fp16_on_a_cpu_is_refused_with_a_reason():
    with pytest.raises(ValueError, match=r"'fp16' is 10 to 14 times slower .* on a CPU.*Use 'bf16' or 'fp32'"):
        compiled_model(precision="fp16")


def test_bf16_without_hardware_support_is_refused(monkeypatch):
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match=r"'bf16' needs .* which this processor does not have.*Use 'fp32'"):
        compiled_model(precision="bf16")


def test_an_x86_processor_without_instructions_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch_private, "cpu_has_bf16", cpu_has_bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    with pytest.raises(ValueError, match="which this processor does not have"):
        compiled_model(precision="bf16")


needs_bf16 = pytest.mark.skipif(
    not torch_private.cpu_has_bf16(), reason="this processor has no bfloat16 instructions (AVX512-BF16 or AMX)"
)


@needs_bf16
def test_bf16_computes_in_bfloat16_with_float32_weights():
    dtypes = []

    class RecordingModule(nn.Sequential):
        def forward(self, x):
            y_pred = super().forward(x)
            dtypes.append(y_pred.dtype)
            return y_pred

    model = compiled_model(RecordingModule(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), precision="bf16")
    model.fit(X, Y, verbose=0)
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


@needs_bf16
def test_bf16_trains():
    model = compiled_model(optimizer="adam", lr=0.03, metrics=["accuracy"], precision="bf16")
    history = model.fit(X, Y, epochs=8, batch_size=8, verbose=0)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert model.evaluate(X, Y, verbose=0).accuracy > 0.9


@needs_bf16
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_bf16_predicts_float32_arrays(method):
    model = compiled_model(precision="bf16")
    assert getattr(model, method)(X, verbose=0).dtype == np.float32


def test_fp32_is_the_default_and_does_not_change_the_forward():
    model = compiled_model()
    assert model.strategy.precision == "fp32"
    assert np.array_equal(model.predict(X, batch_size=50, verbose=0), model.module(X).detach().numpy())


def test_the_name_of_a_precision_ignores_case():
    assert Strategy("cpu", "FP32").precision == "fp32"


@needs_bf16
def test_a_loaded_model_is_evaluated_in_its_saved_precision(tmp_path):
    model = compiled_model(optimizer="adam", precision="bf16")
    model.fit(X, Y, verbose=0)
    loaded = Model(copy.deepcopy(model.module)).load(model.save(tmp_path / "model.pt"))
    assert loaded.strategy.precision == "bf16"
    assert loaded.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)


@needs_bf16
def test_a_loaded_model_falls_back_to_fp32_with_a_warning(tmp_path, monkeypatch):
    model = compiled_model(optimizer="adam", precision="bf16")
    model.save(tmp_path / "model.pt")
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match=r"used precision='bf16'; this one uses 'fp32'\. .*does not have"):
        loaded = Model(copy.deepcopy(model.module)).load(tmp_path / "model.pt")
    assert loaded.strategy.precision == "fp32"


# Compiling


@pytest.fixture
def no_compiler(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", fail)


def test_a_missing_compiler_is_one_warning_before_the_first_step(no_compiler):
    with pytest.warns(UserWarning, match=r"No working C\+\+ compiler found") as caught_warnings:
        model = compiled_model(jit_compile=True)
    assert len(caught_warnings) == 1
    assert "and more lines" not in str(caught_warnings[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, Y, epochs=2, verbose=0)


def test_the_compiler_warning_points_to_the_line_of_the_user(no_compiler):
    with pytest.warns(UserWarning, match="compiler") as caught_warnings:
        compiled_model(jit_compile=True)
    assert caught_warnings[0].filename == common_strategy.__file__


def test_without_a_compiler_results_equal_the_uncompiled_model(no_compiler):
    eager, fallback = twins(mlp())
    compiled_model(eager).fit(blob_loader(), 2, verbose=0)
    with pytest.warns(UserWarning, match="compiler"):
        model = compiled_model(fallback, jit_compile=True)
    model.fit(blob_loader(), 2, verbose=0)
    assert same_weights(eager, fallback)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")


@pytest.mark.slow
@needs_compiler
# torch itself warns while it compiles.
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_compiled_model_is_close_and_saves_plain_names(tmp_path):
    eager, by_compiler = twins(mlp())
    compiled_model(eager).fit(blob_loader(48), 2, verbose=0)
    model = compiled_model(by_compiler, jit_compile=True)
    model.fit(blob_loader(48), 2, verbose=0)
    assert model.strategy.forward is not model.module
    assert furthest(eager, by_compiler) < 1e-5
    assert list(torch.load(model.save(tmp_path / "model.pt"), weights_only=True)["module"]) == list(eager.state_dict())


# Memory formats


def test_channels_last_changes_only_the_memory_layout(tmp_path):
    plain, last = twins(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    x, y = torch.randn(20, 3, 4, 4), torch.randint(3, (20,))
    compiled_model(plain).fit(x, y, verbose=0, shuffle=False)
    model = compiled_model(last, channels_last=True)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    model.fit(x, y, verbose=0, shuffle=False)
    assert furthest(plain, last) < 1e-6
    loaded = compiled_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    assert same_weights(loaded.load(model.save(tmp_path / "model.pt")).module, last)
