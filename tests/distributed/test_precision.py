"""Half the bytes and compiled steps, in many processes and in one: the numbers stay close, and all skip the same updates."""

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
from tests.many import furthest, together
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
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++) here")


def trained(strategy, size, folder=None, kind=Model, callbacks=(), **options):
    """Train for two epochs on the CPU, where fp16 is slow, but runs."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "check_precision", lambda device, dtype: None)
        place = STRATEGIES[strategy](**options)
    if place.scales_loss:  # the usual scale overflows in the first update of two processes, and in none of one
        place.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = kind(Blocks(), device="cpu").compile("adam", "cross_entropy", lr=0.01, strategy=place)
    model.fit(X, Y, epochs=2, batch_size=size, validation_data=(X[:31], Y[:31]), callbacks=callbacks, verbose=0)
    if folder is not None:
        model.save(folder / "model.pt")
    return weights_of(model), model.history["val_loss"], compiled_parts()


def compiled_parts():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning", "ignore:The .grad attribute"
)  # torch's own, while it compiles
@pytest.mark.parametrize(("strategy", "least"), [("ddp", 1), ("fsdp", 3)])  # the blocks of FSDP are compiled one by one
def test_compiled_distributed_training_equals_uncompiled(strategy, least, tmp_path):
    alone, losses, _ = trained("one", 12)
    compiled = functools.partial(trained, strategy, 6, tmp_path, jit_compile=True)
    for weights, logs, graphs in together(compiled, timeout=300):
        assert graphs >= least
        assert furthest(weights, alone) < 1e-5
        assert logs == pytest.approx(losses, rel=1e-5)
    assert list(torch.load(tmp_path / "model.pt", weights_only=True)["module"]) == list(Blocks().state_dict())


@needs_bf16
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_in_bf16_the_weights_stay_float32_and_the_numbers_close(strategy):
    alone, losses, _ = trained("one", 12)
    (first, logs, _), (second, also, _) = together(functools.partial(trained, strategy, 6, precision="bf16"))
    assert {value.dtype for value in first.values()} == {torch.float32}
    assert furthest(first, second) == 0
    assert 0 < furthest(first, alone) < 0.03
    assert logs == also == pytest.approx(losses, rel=0.02)


class Overflows(Model):
    """One number of the gradient is too large for float32 when the loss is scaled, in one process and one update."""

    def train_step(self, batch):
        outputs = super().train_step(batch)
        if self.state.step == 3 and self.strategy.group.rank == 1:
            outputs["loss"] = outputs["loss"] + self.module.head.bias[2].float() * 1e37
        return outputs


class Notebook(Callback):
    priority = 20

    def __init__(self):
        self.pages = []

    def on_train_batch_end(self, batch, logs=None):
        scale = self.model.strategy.state_dict()["scaler"]["scale"]
        self.pages.append((scale, {name: value.clone() for name, value in weights_of(self.model).items()}))


def overflowing(strategy):
    book = Notebook()
    trained(strategy, 6, kind=Overflows, callbacks=[book], precision="fp16")
    return book.pages


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_the_update_if_one_gradient_overflows(strategy):
    first, second = together(overflowing, strategy)
    assert all(one[0] == other[0] and furthest(one[1], other[1]) == 0 for one, other in zip(first, second, strict=True))
    scales, weights = zip(*first, strict=True)
    skipped = [i for i in range(1, len(first)) if furthest(weights[i - 1], weights[i]) == 0]
    assert skipped == [3]
    assert [scales[2], scales[3], scales[-1]] == [1024.0, 512.0, 512.0]
    assert all(value.isfinite().all() for value in weights[-1].values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_in_fp16_the_weights_stay_float32_and_the_numbers_close(strategy):
    alone, losses, _ = trained("one", 12, precision="fp16")
    (first, logs, _), (second, _, _) = together(functools.partial(trained, strategy, 6, precision="fp16"))
    assert {value.dtype for value in first.values()} == {torch.float32}
    assert furthest(first, second) == 0
    assert 0 < furthest(first, alone) < 0.03
    assert logs == pytest.approx(losses, rel=0.02)


def refused(strategy):
    try:
        Model(Blocks(), device="cpu").compile("adam", "cross_entropy", strategy=strategy, precision="fp16")
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fp16_on_processors_is_refused_before_anything_starts(strategy):
    assert all("Use 'bf16' or 'fp32'" in told for told in together(refused, strategy))


# One process: every precision, compiled and where there is no compiler, with every kind of optimizer

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


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("compiler", [pytest.param(True, marks=needs_compiler), False], ids=["compiled", "no compiler"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16), "fp16"])
def test_every_precision_trains_or_is_refused_compiled_or_not(precision, compiler, optimizer, monkeypatch):
    torch.manual_seed(0)
    net = mlp()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    wanted = fit(net, optimizer, "fp32", False)
    net.load_state_dict(state)
    if not compiler:
        monkeypatch.setattr(torch, "compile", no_compiler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=UserWarning)
        if precision == "fp16":
            with pytest.raises(ValueError, match="Use 'bf16' or 'fp32'"):
                fit(net, optimizer, precision, True)
            assert furthest(net.state_dict(), state) == 0
        else:
            assert fit(net, optimizer, precision, True) == pytest.approx(
                wanted, rel={"fp32": 1e-5, "bf16": 0.02}[precision]
            )
    told = [str(one.message) for one in caught]
    assert len(told) == (0 if compiler or precision == "fp16" else 1)
    assert all("No working C++ compiler" in one and "runs uncompiled" in one for one in told)


def no_compiler(*_, **__):
    raise RuntimeError("No working C++ compiler found")
