"""Precisions and compilation in distributed and single training."""

from __future__ import annotations

import functools
import shutil
import warnings

import pytest
import torch

from easytorch import DataParallel, FullySharded, Model, Strategy
from easytorch._utils import torch_private
from easytorch.callbacks import Callback
from easytorch.strategies import base
from tests.loops import blobs, mlp
from tests.many import furthest, run_ranks
from tests.strategies.test_fsdp import Blocks, weights_of

X, Y = blobs(50)
STRATEGIES = {
    "one": functools.partial(Strategy, "cpu"),
    "ddp": functools.partial(DataParallel, "cpu"),
    "fsdp": functools.partial(FullySharded, "cpu", unit=40),
}
needs_bf16 = pytest.mark.skipif(
    not torch_private.cpu_has_bf16(), reason="this processor has no bfloat16 instructions (AVX512-BF16 or AMX)"
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")


def train(strategy, size, folder=None, model_class=Model, callbacks=(), **options):
    """Train for two epochs on the CPU, where fp16 is slow, but runs."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "check_precision", lambda device, dtype: None)
        strategy_object = STRATEGIES[strategy](**options)
    # The default scale overflows in the first update of two ranks, but not of one process.
    if strategy_object.scales_loss:
        strategy_object.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = model_class(Blocks(), device="cpu").compile("adam", "cross_entropy", lr=0.01, strategy=strategy_object)
    model.fit(X, Y, epochs=2, batch_size=size, validation_data=(X[:31], Y[:31]), callbacks=callbacks, verbose=0)
    if folder is not None:
        model.save(folder / "model.pt")
    return weights_of(model), model.history["val_loss"], count_graphs()


def count_graphs():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@needs_compiler
# torch itself warns while it compiles.
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:The .grad attribute")
# The blocks of FSDP are compiled separately.
@pytest.mark.parametrize(("strategy", "min_graphs"), [("ddp", 1), ("fsdp", 3)])
def test_compiled_distributed_training_equals_uncompiled(strategy, min_graphs, tmp_path):
    reference, losses, _ = train("one", 12)
    train_compiled = functools.partial(train, strategy, 6, tmp_path, jit_compile=True)
    for weights, logs, graphs in run_ranks(train_compiled, timeout=300):
        assert graphs >= min_graphs
        assert furthest(weights, reference) < 1e-5
        assert logs == pytest.approx(losses, rel=1e-5)
    assert list(torch.load(tmp_path / "model.pt", weights_only=True)["module"]) == list(Blocks().state_dict())


@needs_bf16
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bf16_results_are_close_and_weights_stay_float32(strategy):
    reference, losses, _ = train("one", 12)
    (first, logs, _), (second, other_logs, _) = run_ranks(functools.partial(train, strategy, 6, precision="bf16"))
    assert {value.dtype for value in first.values()} == {torch.float32}
    assert furthest(first, second) == 0
    assert 0 < furthest(first, reference) < 0.03
    assert logs == other_logs == pytest.approx(losses, rel=0.02)


class OverflowingModel(Model):
    """A scaled gradient overflows in one update of one rank."""

    def train_step(self, batch):
        outputs = super().train_step(batch)
        if self.state.step == 3 and self.strategy.group.rank == 1:
            outputs["loss"] = outputs["loss"] + self.module.head.bias[2].float() * 1e37
        return outputs


class RecordScales(Callback):
    priority = 20

    def __init__(self):
        self.records = []

    def on_train_batch_end(self, batch, logs=None):
        scale = self.model.strategy.state_dict()["scaler"]["scale"]
        self.records.append((scale, {name: value.clone() for name, value in weights_of(self.model).items()}))


def train_with_overflow(strategy):
    recorder = RecordScales()
    train(strategy, 6, model_class=OverflowingModel, callbacks=[recorder], precision="fp16")
    return recorder.records


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_the_update_if_one_gradient_overflows(strategy):
    first, second = run_ranks(train_with_overflow, strategy)
    assert all(
        scale == other_scale and furthest(weights, other_weights) == 0
        for (scale, weights), (other_scale, other_weights) in zip(first, second, strict=True)
    )
    scales, weights = zip(*first, strict=True)
    skipped = [i for i in range(1, len(first)) if furthest(weights[i - 1], weights[i]) == 0]
    assert skipped == [3]
    assert [scales[2], scales[3], scales[-1]] == [1024.0, 512.0, 512.0]
    assert all(value.isfinite().all() for value in weights[-1].values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fp16_results_are_close_and_weights_stay_float32(strategy):
    reference, losses, _ = train("one", 12, precision="fp16")
    (first, logs, _), (second, _, _) = run_ranks(functools.partial(train, strategy, 6, precision="fp16"))
    assert {value.dtype for value in first.values()} == {torch.float32}
    assert furthest(first, second) == 0
    assert 0 < furthest(first, reference) < 0.03
    assert logs == pytest.approx(losses, rel=0.02)


def error_of_compile(strategy):
    try:
        Model(Blocks(), device="cpu").compile("adam", "cross_entropy", strategy=strategy, precision="fp16")
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fp16_on_cpus_is_refused_before_training(strategy):
    assert all("Use 'bf16' or 'fp32'" in message for message in run_ranks(error_of_compile, strategy))


# One process: every precision and optimizer, with and without a compiler

OPTIMIZERS = {
    "adam": "adam",
    "fused adam": lambda parameters: torch.optim.Adam(parameters, fused=True),
    "sgd": "sgd",
    "fused sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, fused=True),
}


def fit(net, optimizer, precision, jit_compile):
    torch.manual_seed(0)
    model = Model(net, device="cpu")
    model.compile(OPTIMIZERS[optimizer], "cross_entropy", precision=precision, jit_compile=jit_compile)
    return model.fit(X, Y, epochs=3, batch_size=10, verbose=0)["loss"][-1]


# torch itself warns while it compiles.
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("compiler", [False, pytest.param(True, marks=needs_compiler)], ids=["no compiler", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16), "fp16"])
def test_every_precision_trains_or_is_refused(precision, compiler, optimizer, monkeypatch):
    torch.manual_seed(0)
    net = mlp()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    expected = fit(net, optimizer, "fp32", False)
    net.load_state_dict(state)
    if not compiler:
        monkeypatch.setattr(torch, "compile", no_compiler)
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.filterwarnings("always", category=UserWarning)
        if precision == "fp16":
            with pytest.raises(ValueError, match="Use 'bf16' or 'fp32'"):
                fit(net, optimizer, precision, True)
            assert furthest(net.state_dict(), state) == 0
        else:
            assert fit(net, optimizer, precision, True) == pytest.approx(
                expected, rel={"fp32": 1e-5, "bf16": 0.02}[precision]
            )
    messages = [str(warning.message) for warning in caught_warnings]
    assert len(messages) == (0 if compiler or precision == "fp16" else 1)
    assert all("No working C++ compiler" in message and "runs uncompiled" in message for message in messages)


def no_compiler(*_, **__):
    raise RuntimeError("No working C++ compiler found")
