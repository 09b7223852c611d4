"""Sharded weights: results of one process, and plain files."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from easytorch import FullySharded, Model
from easytorch._utils import torch_private
from easytorch.callbacks import EMA, BackupAndRestore, EarlyStopping, LambdaCallback
from tests.distributed.test_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import furthest, run_ranks

X, Y = blobs(50)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        # Seven rows make shards of unequal size.
        self.inner = nn.Linear(8, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = self.inner(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class SubmoduleSteps(Model):
    """A step that calls submodules, but not the forward of the module."""

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        y_pred = self.module.head(self.module.blocks[0](self.module.inner(x)))
        self.metrics.update(y_pred, y)
        return {"loss": nn.functional.cross_entropy(y_pred, y)}


def compiled_model(strategy, model_class=Model, dtype=torch.float64, **options):
    torch.manual_seed(0)
    if strategy == "fsdp":
        strategy = FullySharded("cpu", options.pop("precision", "fp32"), unit=40)
    model = model_class(Blocks().to(dtype), device="cpu")
    return model.compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.01, strategy=strategy, **options)


def weights_of(model):
    return model.strategy.checkpoints.gather(model.module.state_dict())


def train(strategy, count=50, size=6, dtype=torch.float64, folder=None, **options):
    model = compiled_model(strategy, dtype=dtype, **options)
    x, y = X[:count].to(dtype), Y[:count]
    model.fit(x, y, epochs=2, batch_size=size, validation_data=(x[:31], y[:31]), verbose=0)
    if folder is not None:
        model.save(folder / "model.pt")
    outputs = torch.tensor(model.predict(x, batch_size=4, verbose=0))
    return weights_of(model), dict(model.history.history), outputs, sum(p.numel() for p in local_shards(model))


def local_shards(model):
    return [p.to_local() if hasattr(p, "to_local") else p for p in model.module.parameters()]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_grad_norm": 0.05},
        {"gradient_accumulation_steps": 2},
        {"model_class": SubmoduleSteps},
        {"count": 49, "size": 8},
        {"count": 2},
    ],
    ids=[
        "plain",
        "clipping",
        "accumulation",
        "step calls submodules",
        "last batch of one sample",
        "fewer samples than processes",
    ],
)
@pytest.mark.filterwarnings("ignore:Some parameters are not trained")  # a step that calls submodules uses some of them
def test_results_equal_one_process(processes, options):
    size = options.get("size", 6)
    reference, history, outputs, numbers = train("one", **(options | {"size": size * processes}))
    rank_results = run_ranks(functools.partial(train, "fsdp", **options), processes=processes)
    for weights, logs, rank_outputs, _ in rank_results:
        assert furthest(weights, reference) < 1e-10
        assert all(logs[name] == pytest.approx(history[name], rel=1e-10) for name in history)
        assert torch.allclose(rank_outputs, outputs, rtol=1e-10)
    # The shards do not overlap.
    assert sum(shard for *_, shard in rank_results) == numbers


@pytest.mark.skipif(not torch_private.cpu_has_bf16(), reason="this processor has no bfloat16 instructions")
def test_bf16_results_are_close_and_weights_stay_float32():
    options = {"dtype": torch.float32, "precision": "bf16"}
    (reference, *_), rank_results = (
        train("one", size=12, **options),
        run_ranks(functools.partial(train, "fsdp", **options)),
    )
    for weights, *_ in rank_results:
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert furthest(weights, reference) < 0.02


def test_a_saved_model_is_one_plain_file(tmp_path):
    three = run_ranks(functools.partial(train, "fsdp", folder=tmp_path), processes=3)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pt"]
    file = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(file["module"]) == list(Blocks().state_dict())
    reference = compiled_model("one").load(tmp_path / "model.pt")
    assert furthest(weights_of(reference), three[0][0]) == 0
    reference.fit(X.double(), Y, epochs=1, batch_size=18, shuffle=False, verbose=0)
    for weights in run_ranks(load_and_train, tmp_path):
        assert furthest(weights, weights_of(reference)) < 1e-10


def load_and_train(folder):
    model = compiled_model("fsdp").load(folder / "model.pt")
    model.fit(X.double(), Y, epochs=1, batch_size=9, shuffle=False, verbose=0)
    return weights_of(model)


def train_with_backup(folder, crash):
    model = compiled_model("fsdp")
    callbacks = [
        BackupAndRestore(folder, save_freq=1, delete_checkpoint=False),
        EarlyStopping("loss", restore_best_weights=True),
    ]
    try:
        model.fit(
            X.double(),
            Y,
            epochs=3,
            batch_size=6,
            callbacks=[*callbacks, *([CrashAfter(crash)] if crash else [])],
            verbose=0,
        )
    except SimulatedCrash:
        return None
    return weights_of(model), model.history["loss"]


@pytest.mark.distributed
def test_a_run_resumes_bit_for_bit(tmp_path):
    (expected, losses), _ = run_ranks(train_with_backup, tmp_path / "uninterrupted", None)
    run_ranks(train_with_backup, tmp_path / "stopped", 7)
    weights, resumed_losses = run_ranks(train_with_backup, tmp_path / "stopped", None)[0]
    assert furthest(weights, expected) == 0
    assert resumed_losses == losses


def compile_twice():
    model = compiled_model("fsdp")
    model.fit(X.double(), Y, verbose=0)
    before = weights_of(model)
    model.compile("sgd", "cross_entropy", strategy=FullySharded("cpu", unit=40), lr=0.1)
    same = furthest(before, weights_of(model)) == 0
    model.fit(
        X.double(),
        Y,
        callbacks=[LambdaCallback(on_epoch_end=lambda epoch, logs: model.evaluate(X.double(), Y, verbose=0))],
        verbose=0,
    )
    return same, furthest(before, weights_of(model)) > 0


def test_a_sharded_module_can_be_compiled_again():
    assert run_ranks(compile_twice) == [(True, True)] * 2


def fit_with_average():
    model = compiled_model("fsdp")
    try:
        model.fit(X.double(), Y, callbacks=[EMA()], verbose=0)
    except ValueError as error:
        return str(error)


def test_an_average_of_sharded_weights_is_refused():
    assert all("Use strategy='ddp'" in message for message in run_ranks(fit_with_average))


class ScaledBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.scale = Blocks(), nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.blocks(x) * self.scale


def compile_with_fsdp(make, channels_last):
    net = make()
    try:
        Model(net, device="cpu").compile("sgd", "cross_entropy", strategy="fsdp", channels_last=channels_last)
    except ValueError as error:
        return str(error), {type(parameter) for parameter in net.parameters()} == {nn.Parameter}


@pytest.mark.parametrize(
    ("make", "channels_last", "reason"),
    [
        (ScaledBlocks, False, "'scale', a scalar"),
        (lambda: nn.Conv2d(3, 4, 3), True, "'weight', which is not contiguous"),
        (lambda: nn.Sequential(nn.EmbeddingBag(20, 8, sparse=True)), False, "the sparse gradients of the layer '0'"),
    ],
)
def test_a_parameter_that_cannot_be_sharded_is_refused_first(make, channels_last, reason):
    for message, unchanged in run_ranks(compile_with_fsdp, make, channels_last):
        assert reason in message
        assert "use strategy='ddp'" in message
        assert unchanged


def test_a_torch_that_is_too_old_is_reported(monkeypatch):
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, *, mesh=None, mp_policy=None: module)
    with pytest.raises(RuntimeError, match=r"needs PyTorch 2\.7 or later, and this is .*strategy='ddp'"):
        FullySharded("cpu")
