"""The script of a run ends with the weights of fit, bit for bit, and prints the same losses and metrics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Every
from easytorch._utils import torch_private
from easytorch.callbacks import EarlyStopping, LRScheduler, ModelCheckpoint, ReduceLROnPlateau
from tests.loops import Recurrent, blobs
from tests.scripts.common_scripts import fit_and_script


@pytest.fixture(autouse=True)
def _allow_bf16(monkeypatch, tmp_path):
    """Compute in bf16 on any processor, and write files to a folder of the test."""
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: True)
    monkeypatch.chdir(tmp_path)


def network(outputs=3):
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs))


class Pixels(nn.Module):
    """A class of each pixel, ``[N, 3, 4, 4]``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        return self.layers(x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(8, 3)

    def forward(self, a, b):
        return self.second(torch.cat([self.first(a), b[:, :2]], 1))


class Problem(NamedTuple):
    """What is learned: a module, inputs and targets, and the loss and metrics of most runs."""

    new_module: Callable[[], nn.Module]
    x: Any
    y: Any
    loss: Any
    metrics: list[Any]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


X, LABELS = blobs(53)
MASK = torch.randint(3, (22, 4, 4), generator=torch.Generator().manual_seed(1))
MASK_WITH_HOLES = torch.where(draw(22, 4, 4) > 0.5, -100, MASK)
PROBLEMS = {
    "classes": Problem(network, X, LABELS, "cross_entropy", ["accuracy", "top_2_accuracy"]),
    "numbers": Problem(lambda: network(1), X, X[:, 0] * 2 + 1, "mse", ["mae", "rmse"]),
    "rows of numbers": Problem(lambda: network(2), X, X[:, :2], "huber", ["mae", "mse"]),
    "two classes": Problem(lambda: network(1), X, (LABELS > 0).long(), "bce_with_logits", ["accuracy"]),
    "several labels": Problem(lambda: network(4), X, (X[:, :4] > 0).float(), "bce_with_logits", ["accuracy"]),
    "probabilities": Problem(
        lambda: nn.Sequential(network(1), nn.Sigmoid()), X, (LABELS > 0).float()[:, None], "bce", ["accuracy"]
    ),
    "log probabilities": Problem(
        lambda: nn.Sequential(network(3), nn.LogSoftmax(1)), X, LABELS[:, None], "nll", ["accuracy"]
    ),
    "soft labels": Problem(network, X, F.one_hot(LABELS, 3), "cross_entropy", ["accuracy"]),
    "pixels": Problem(Pixels, draw(22, 1, 4, 4), MASK, "cross_entropy", ["accuracy"]),
    "pixels with holes": Problem(
        Pixels, draw(22, 1, 4, 4), MASK_WITH_HOLES, "cross_entropy", ["accuracy", "top_2_accuracy"]
    ),
    "sequences": Problem(Recurrent, draw(30, 5, 4), LABELS[:30], "cross_entropy", ["accuracy"]),
    "doubles": Problem(lambda: network(1).double(), X, X[:, 0], "mae", ["mse"]),
}


@dataclasses.dataclass
class Run:
    """One run: a problem, and the arguments of compile and fit that differ from the usual ones."""

    problem: str = "classes"
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: str = "arrays"
    names: dict[str, Any] = dataclasses.field(default_factory=dict)


def weighted(y_pred, y):
    return (y_pred - y).abs().mean() * 2


def per_sample(y_pred, y):
    return F.cross_entropy(y_pred, y, reduction="none")


def share_of_zeros(y_pred, y):
    return (y_pred.argmax(1) == 0).float()


def margin(y_pred, y):
    return y_pred.softmax(1).max()


def recall_of_one(y_pred, y):
    hits = (y_pred.argmax(1) == 1) & (y == 1)
    return hits.sum(), (y == 1).sum()


def halve(epoch):
    return 0.5**epoch


SPLIT = {"validation_split": 0.25}
SCHEDULES: dict[str, Any] = {
    "cosine": "cosine",
    "warmup_cosine": "warmup_cosine",
    "one_cycle": "one_cycle",
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3]),
    "ExponentialLR": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=28),
    "CosineAnnealingLR per epoch": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=4),
    "CosineAnnealingLR per update": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=28),
    "LambdaLR": LRScheduler(lambda optimizer: lr_scheduler.LambdaLR(optimizer, halve), step_every="epoch"),
    "SequentialLR": LRScheduler(
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)],
            [5],
        ),
        step_every="update",
    ),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "sgd with momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "lr": 3e-3, "betas": (0.8, 0.95)},
    "rmsprop": {"optimizer": "rmsprop"},
    "adagrad": {"optimizer": "adagrad", "lr": 0.05},
    "nadam": {"optimizer": "nadam"},
    "adam of torch": {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True)},
    "groups": {
        "optimizer": lambda parameters: torch.optim.AdamW(
            [{"params": list(parameters)[:2], "lr": 1e-3}, {"params": list(parameters)[2:], "weight_decay": 0.0}],
            lr=0.01,
        )
    },
}
LOSSES: dict[str, Any] = {
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "ignored class": nn.CrossEntropyLoss(ignore_index=1),
    "weights and ignored class": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), ignore_index=0),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "function of torch": F.cross_entropy,
    "partial": functools.partial(F.cross_entropy, label_smoothing=0.2),
    "custom": per_sample,
}


def runs():
    """Yield every run by name."""
    for name in PROBLEMS:
        yield f"problem: {name}", Run(name)
        yield f"problem with accumulation and validation: {name}", Run(name, {"gradient_accumulation_steps": 3}, SPLIT)
    for name, options in OPTIMIZERS.items():
        yield f"optimizer: {name}", Run(compiled=options)
    for name, loss in LOSSES.items():
        names: dict[str, Any] = {"per_sample": per_sample} if name == "custom" else {}
        yield f"loss: {name}", Run(compiled={"loss": loss, "metrics": ["multiclass_accuracy"]}, names=names)
        yield (
            f"loss with accumulation: {name}",
            Run(compiled={"loss": loss, "gradient_accumulation_steps": 2, "metrics": []}, fit=SPLIT, names=names),
        )
    for name, schedule in SCHEDULES.items():
        names = {"halve": halve} if name == "LambdaLR" else {}
        compiled = {
            "scheduler": schedule,
            **({"optimizer": "sgd", "lr": 0.05, "momentum": 0.9} if "Cycle" in name else {}),
        }
        yield f"schedule: {name}", Run(compiled=compiled, names=names)
    yield from more_runs()


def more_runs():
    accumulation = {"gradient_accumulation_steps": 4}
    yield "clip norm", Run(compiled={"clip_grad_norm": 0.1})
    yield "clip value", Run(compiled={"clip_grad_value": 0.01})
    yield "clip both", Run(compiled={"clip_grad_norm": 0.1, "clip_grad_value": 0.05, **accumulation})
    yield "cosine with accumulation", Run(compiled={"scheduler": "cosine", **accumulation})
    yield "bf16", Run(compiled={"precision": "bf16"}, fit=SPLIT)
    yield "bf16 of numbers", Run("numbers", {"precision": "bf16", **accumulation}, SPLIT)
    yield (
        "bf16 with a custom metric",
        Run(compiled={"precision": "bf16", "metrics": [share_of_zeros]}, names={"share_of_zeros": share_of_zeros}),
    )
    yield "class weight of pixels", Run("pixels", fit={"class_weight": [1.0, 2.0, 0.5], **SPLIT}, compiled=accumulation)
    yield "channels last", Run("pixels", {"channels_last": True})
    yield "class weight", Run(fit={"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, **SPLIT})
    yield "balanced", Run(fit={"class_weight": "balanced"}, compiled=accumulation)
    yield "sample weight", Run(fit={"sample_weight": X[:, 1].abs()})
    yield "sample weight of numbers", Run("numbers", accumulation, {"sample_weight": X[:, 1].abs()})
    yield "weights of samples and classes", Run(fit={"sample_weight": X[:, 1].abs(), "class_weight": [1.0, 2.0, 3.0]})
    yield (
        "weights and a loss with class weights",
        Run(compiled={"loss": LOSSES["class weights"]}, fit={"sample_weight": X[:, 1].abs()}),
    )
    yield "steps per epoch", Run(fit={"steps_per_epoch": 3})
    yield "steps per epoch with accumulation", Run(compiled=accumulation, fit={"steps_per_epoch": 3, **SPLIT})
    yield "one cycle with steps per epoch", Run(compiled={"scheduler": "one_cycle"}, fit={"steps_per_epoch": 5})
    yield "in order", Run(fit={"shuffle": False, **SPLIT})
    yield "one batch", Run(fit={"batch_size": 64})
    yield "a last batch of one sample", Run("numbers", fit={"batch_size": 17, "validation_data": (X[:18], X[:18, 0])})
    yield (
        "validation every other epoch",
        Run(fit={"validation_freq": 2, **SPLIT, "callbacks": [EarlyStopping(patience=1, restore_best_weights=True)]}),
    )
    yield "validation after chosen epochs", Run(fit={"validation_freq": [1, 4], **SPLIT})
    yield "validation steps", Run(fit={"validation_steps": 2, **SPLIT, "validation_freq": Every(epochs=2)})
    yield (
        "plateau of torch with rare validation",
        Run(compiled={"scheduler": SCHEDULES["ReduceLROnPlateau"]}, fit={**SPLIT, "validation_freq": 2}),
    )
    yield from stopping_runs()
    yield from metric_runs()
    for data in ("loader", "dataset", "batches", "function", "numpy", "lists", "validation loader"):
        yield f"data: {data}", Run(data=data, compiled=accumulation)
        yield f"data of numbers: {data}", Run("numbers", data=data)


def stopping_runs():
    hard = {"optimizer": "sgd", "lr": 3.0}
    for name, options in {
        "early stopping": {"patience": 1},
        "early stopping of accuracy": {"monitor": "val_accuracy", "patience": 1, "min_delta": 0.05},
        "early stopping with a target": {"monitor": "accuracy", "target": 0.5},
        "early stopping with a baseline": {"patience": 2, "baseline": 0.2},
        "early stopping after some epochs": {"patience": 0, "min_epochs": 4, "start_from_epoch": 1},
    }.items():
        callback = EarlyStopping(**options, restore_best_weights="accuracy" not in name)
        yield name, Run(compiled=hard, fit={"epochs": 8, **SPLIT, "callbacks": callback})
    plateau = ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    yield "plateau", Run(compiled=hard, fit={"epochs": 6, **SPLIT, "callbacks": plateau})
    plateau = ReduceLROnPlateau("loss", factor=0.3, patience=1, cooldown=2, min_lr=0.1)
    yield "plateau with cooldown", Run(compiled=hard, fit={"epochs": 9, "callbacks": plateau})
    files = [ModelCheckpoint("best.pt", save_best_only=True), ModelCheckpoint("runs/{epoch:02d}-{val_loss:.2f}.pt")]
    yield "files", Run(fit={**SPLIT, "callbacks": [*files, EarlyStopping(patience=3)]})


def metric_runs():
    functions = [share_of_zeros, margin, recall_of_one]
    yield (
        "custom metrics",
        Run(
            compiled={"metrics": ["accuracy", *functions], "validation_only": ["margin"]},
            fit=SPLIT,
            names={function.__name__: function for function in functions},
        ),
    )
    yield (
        "custom loss of numbers",
        Run(
            "rows of numbers", {"loss": weighted, "gradient_accumulation_steps": 2}, SPLIT, names={"weighted": weighted}
        ),
    )


def as_inputs(run: Run, x: Any, y: Any) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Return the arguments of fit by position and by name, and the variables of the script."""

    def new_loader(shuffle=True):
        return DataLoader(TensorDataset(x, y), 8, shuffle=shuffle)

    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, len(x), 8)]
    size = {"batch_size": 8}
    kinds: dict[str, Any] = {
        "arrays": lambda: ((x, y), size, {"x": x, "y": y}),
        "numpy": lambda: (
            (x.numpy().astype("float64"), y.numpy()), size, {"x": x.numpy().astype("float64"), "y": y.numpy()}
        ),
        "lists": lambda: ((x.tolist(), y.tolist()), size, {"x": x.tolist(), "y": y.tolist()}),
        "dataset": lambda: ((TensorDataset(x, y),), size, {"train_data": TensorDataset(x, y)}),
        "loader": lambda: ((new_loader(),), {}, {"train_loader": new_loader()}),
        "batches": lambda: ((batches,), {}, {"train_loader": batches}),
        "function": lambda: ((lambda: iter(batches),), {}, {"train_loader": lambda: iter(batches)}),
        "validation loader": lambda: (
            (x, y), {**size, "validation_data": new_loader(False)}, {"x": x, "y": y, "val_loader": new_loader(False)}
        ),
    }  # fmt: skip
    return kinds[run.data]()


RUNS = dict(runs())
FAST = (
    "problem with accumulation and validation: classes", "problem: two classes", "loss: class weights", "schedule: StepLR",
    "early stopping", "data: loader", "class weight", "files",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in RUNS])
def test_a_script_ends_with_the_weights_of_fit(name):
    run = RUNS[name]
    problem = PROBLEMS[run.problem]
    data, options, names = as_inputs(run, problem.x, problem.y)
    compiled = {"optimizer": "adam", "loss": problem.loss, "metrics": problem.metrics, **run.compiled}
    fit = {"epochs": 4, **options, **run.fit}
    if "sample_weight" in fit:
        names["sample_weight"] = fit["sample_weight"]
    if isinstance(fit.get("validation_data"), tuple):
        names["x_val"], names["y_val"] = fit["validation_data"]
    torch.manual_seed(1)
    is_stateful = any(key in run.compiled for key in ("scheduler",)) or "callbacks" in fit
    fit_and_script(
        problem.new_module(), compiled, data, fit, {**names, **run.names}, after=is_stateful or len(name) % 2 == 0
    )


def test_the_matrix_has_many_runs():
    assert len(RUNS) >= 60
