"""Configurations of ``compile`` and ``fit`` whose runs are killed: optimizers, schedules, callbacks and options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

from easytorch import Every, Model
from easytorch.callbacks import (
    EMA,
    SWA,
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    LRScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    Schedule,
    TerminateOnNaN,
)
from easytorch.checkpoint import files
from easytorch.optimizers import TABLE
from tests.common_resume import ROWS, X, Y
from tests.security.battery.starts import End, Program

EPOCHS = 3  # of seven updates


class Net(nn.Module):
    """Uses random numbers and running statistics; ``norm`` is left out for optimizers that take only matrices."""

    def __init__(self, is_plain: bool = False) -> None:
        super().__init__()
        norm = nn.Identity() if is_plain else nn.BatchNorm1d(16)
        self.layers = nn.Sequential(
            nn.Linear(8, 16, not is_plain), norm, nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3, not is_plain)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def program(
    folder: Path,
    callbacks: list[Callback],
    *,
    compiled: dict[str, Any] | None = None,
    fitted: dict[str, Any] | None = None,
    make_callbacks: Callable[[Path], list[Callback]] = lambda folder: [],
    is_plain: bool = False,
    save_freq: Any = 1,
) -> End:
    """Train with the options of a configuration."""
    compile_options = {"optimizer": momentum, "loss": "cross_entropy", "metrics": ["accuracy"]} | (compiled or {})
    own = make_callbacks(folder)
    # bf16 is slow on some processors, but it works.
    with mock.patch("easytorch.strategies.base.check_precision"):
        model = Model(Net(is_plain), device="cpu").compile(**compile_options)
    fit_options = {"epochs": EPOCHS, "validation_data": (X[:20], Y[:20]), "verbose": 0} | (fitted or {})
    data = fit_options.pop("data", None) or (DataLoader(ROWS, 8, shuffle=True),)
    backup = BackupAndRestore(folder / "run", save_freq, delete_checkpoint=False)
    model.fit(*data, callbacks=[*own, backup, *callbacks], **fit_options)
    return End(model, own, read_files(folder))


def read_files(folder: Path) -> dict[str, Any]:
    """Return the content of the files that callbacks have written, without the durations of epochs."""
    contents: dict[str, Any] = {path.name: path.read_text() for path in folder.glob("*.csv")}
    for path in folder.glob("*.pt"):
        content = contents[path.name] = files.read(path)
        if "history" in content:
            content["history"] = {name: content["history"][name] for name in ("epoch", "columns")}
    return contents


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def step_every(unit: str, make: Callable[[torch.optim.Optimizer], Any]) -> Callable[[Path], list[Callback]]:
    return lambda folder: [LRScheduler(make, step_every=unit)]


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: schedulers.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=3, power=2),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=4, mode="exp_range", gamma=0.99),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=30),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=2), schedulers.ExponentialLR(o, 0.7)], [2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ExponentialLR(o, 0.9), schedulers.StepLR(o, 2)]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.3, patience=0, threshold=0.9),
}

PER_UPDATE = ("CyclicLR", "OneCycleLR")
PER_EPOCH = ("StepLR", "MultiStepLR", "ReduceLROnPlateau")
# Their class and their length do not decide what they count.
NEITHER = (
    "ConstantLR",
    "CosineAnnealingWarmRestarts",
    "LambdaLR",
    "MultiplicativeLR",
    "SequentialLR",
    "ChainedScheduler",
)

CALLBACKS: dict[str, Callable[[Path], list[Callback]]] = {
    "EarlyStopping": lambda folder: [EarlyStopping(patience=1, min_delta=0.05)],
    "EarlyStopping, best weights": lambda folder: [
        EarlyStopping("val_accuracy", patience=1, restore_best_weights=True)
    ],
    "plateau": lambda folder: [ReduceLROnPlateau("loss", patience=1, factor=0.3, min_delta=1.0)],
    "plateau with cooldown": lambda folder: [ReduceLROnPlateau(patience=1, cooldown=1, min_delta=1.0)],
    "rates by a function": lambda folder: [LearningRateScheduler(lambda epoch, lr: 0.5 * lr)],
    "TerminateOnNaN": lambda folder: [TerminateOnNaN()],
    "EMA": lambda folder: [EMA(0.9)],
    "EMA that stays": lambda folder: [EMA(0.9, keep_average=True)],
    "SWA": lambda folder: [SWA(start_epoch=1)],
    "SWA that stays": lambda folder: [SWA(start_epoch=0, keep_average=True)],
    "CSVLogger": lambda folder: [CSVLogger(folder / "log.csv")],
    "CSVLogger of every update": lambda folder: [CSVLogger(folder / "log.csv", append=True)],
    "ModelCheckpoint": lambda folder: [ModelCheckpoint(folder / "{epoch}-{val_loss:.3f}.pt")],
    "ModelCheckpoint, best": lambda folder: [ModelCheckpoint(folder / "best.pt", save_best_only=True)],
    "ModelCheckpoint, two": lambda folder: [
        ModelCheckpoint(folder / "a{epoch}.pt", keep=1),
        ModelCheckpoint(folder / "b{epoch}.pt", "val_accuracy", keep_best=1, save_weights_only=True),
    ],
    "EMA and EarlyStopping": lambda folder: [EMA(0.8), EarlyStopping(patience=9, restore_best_weights=True)],
    "all": lambda folder: [
        CSVLogger(folder / "log.csv"),
        EMA(0.9),
        EarlyStopping(patience=9),
        ModelCheckpoint(folder / "best.pt", save_best_only=True),
        ModelCheckpoint(folder / "{epoch}.pt", keep=2),
    ],
}

OPTIONS: dict[str, dict[str, Any]] = {
    "accumulation": {"compiled": {"gradient_accumulation_steps": 3}},
    "accumulation and clipping": {"compiled": {"gradient_accumulation_steps": 2, "clip_grad_norm": 0.5}},
    "clip_grad_value": {"compiled": {"clip_grad_value": 0.01}},
    "bf16": {"compiled": {"precision": "bf16"}},
    "steps_per_epoch": {"fitted": {"steps_per_epoch": 5}},
    "steps_per_epoch beyond a pass": {"fitted": {"steps_per_epoch": 10}},
    "steps_per_epoch and accumulation": {
        "compiled": {"gradient_accumulation_steps": 2}, "fitted": {"steps_per_epoch": 3},
    },
    "validation_freq": {"fitted": {"validation_freq": 2}},
    "validations between updates": {"fitted": {"validation_freq": Every(updates=2)}},
    "several validation sets": {"fitted": {"validation_data": {"all": (X, Y), "few": (X[:9], Y[:9])}}},
    "validation_freq as a list": {"fitted": {"validation_freq": [1, 3]}},
    "validation_steps": {"fitted": {"validation_data": (X, Y), "validation_steps": 1}},
    "validation_split": {"fitted": {"data": (X, Y), "validation_data": None, "validation_split": 0.2}},
    "initial_epoch": {"fitted": {"initial_epoch": 2, "epochs": 4}},
    "arrays": {"fitted": {"data": (X.numpy(), Y.numpy()), "batch_size": 8}},
    "class_weight": {"fitted": {"data": (X, Y), "batch_size": 8, "class_weight": "balanced"}},
    "sample_weight": {"fitted": {"data": (X, Y), "batch_size": 8, "sample_weight": torch.linspace(0, 2, 50)}},
    "no validation": {"fitted": {"validation_data": None}},
    "label smoothing": {"compiled": {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}},
    "loss as a function": {"compiled": {"loss": lambda p, y: F.cross_entropy(p, y, reduction="none"), "metrics": []}},
    "metrics of all predictions": {"compiled": {"metrics": ["f1", "auroc", "top_2_accuracy"]}},
    "rates by group": {
        "compiled": {
            "optimizer": lambda p: torch.optim.Adam([{"params": p[:2], "lr": 0.1}, {"params": p[2:], "lr": 0.01}]),
            "scheduler": "cosine",
        },
    },
}  # fmt: skip


def _collect() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for name in sorted(TABLE):
        if name != "sparseadam":  # see hidden_state.py
            options = {"compiled": {"optimizer": name, "lr": 0.01}, "is_plain": name == "muon"}
            cases[f"optimizer {name}"] = options
    for name in Schedule.NAMES:
        cases[f"schedule {name}"] = {"compiled": {"scheduler": name}}
    cases["schedule with a warm-up"] = {"compiled": {"scheduler": Schedule("warmup_cosine", warmup=0.4)}}
    for name, make in SCHEDULES.items():
        if name not in NEITHER:
            cases[f"schedule {name}"] = {"compiled": {"scheduler": make}}
        if name not in PER_EPOCH:
            cases[f"schedule {name} in every update"] = {"make_callbacks": step_every("update", make)}
        if name not in PER_UPDATE:
            cases[f"schedule {name} in every epoch"] = {"make_callbacks": step_every("epoch", make)}
    for name, make_callbacks in CALLBACKS.items():
        cases[f"callback {name}"] = {"make_callbacks": make_callbacks}
    return cases | OPTIONS


CASES = _collect()


def make_program(name: str, save_freq: Any) -> Program:
    return functools.partial(program, save_freq=save_freq, **CASES[name])
