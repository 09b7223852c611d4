"""Scripts of random combinations of arguments."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from easytorch._utils import torch_private
from easytorch.callbacks import EarlyStopping, ReduceLROnPlateau
from tests.scripts.common_scripts import fit_and_script
from tests.scripts.test_matrix import LOSSES, OPTIMIZERS, PROBLEMS, SCHEDULES, Run, as_inputs

CLASSES = ("classes", "pixels", "pixels with holes", "sequences")
KINDS = ("arrays", "loader", "dataset", "batches", "function", "numpy", "validation loader")


def draw_compile(draw: random.Random, name: str) -> dict[str, Any]:
    """Return random arguments of compile for a problem."""
    problem = PROBLEMS[name]
    loss = problem.loss
    if name == "classes" and draw.random() < 0.5:
        loss = draw.choice([loss for key, loss in LOSSES.items() if key != "custom"])
    compiled: dict[str, Any] = {
        "loss": loss,
        "metrics": problem.metrics[: draw.randint(0, 2)],
        "optimizer": "adam",
        "lr": 0.01,
    }
    if draw.random() < 0.7:
        compiled.pop("lr")
        compiled |= draw.choice([options for key, options in OPTIMIZERS.items() if key != "groups"])
    if draw.random() < 0.5:
        compiled["gradient_accumulation_steps"] = draw.randint(2, 5)
    if draw.random() < 0.4:
        compiled["clip_grad_norm"] = draw.choice([0.05, 1.0])
    if draw.random() < 0.3:
        compiled["clip_grad_value"] = draw.choice([0.01, 0.5])
    if draw.random() < 0.2 and name not in ("doubles", "sequences"):
        compiled["precision"] = "bf16"
    return compiled


def draw_fit(draw: random.Random, name: str, data: str, compiled: dict[str, Any]) -> dict[str, Any]:
    """Return random arguments of fit for a problem, and add a schedule to ``compiled``."""
    problem = PROBLEMS[name]
    fit: dict[str, Any] = {"epochs": draw.randint(1, 5)}
    is_array = data in ("arrays", "numpy")
    if is_array:
        fit |= {"batch_size": draw.choice([5, 9, 16, 64]), "shuffle": draw.choice([None, False])}
        if draw.random() < 0.6:
            fit["validation_split"] = draw.choice([0.2, 0.35])
        if draw.random() < 0.3 and name in ("classes", "pixels"):
            fit["class_weight"] = draw.choice(["balanced", {0: 0.5, 1: 2.0, 2: 1.5}, [1.0, 0.0, 3.0]])
        if draw.random() < 0.3 and (name != "pixels" or "class_weight" not in fit):
            fit["sample_weight"] = torch.rand(
                len(problem.x), generator=torch.Generator().manual_seed(draw.randint(0, 9))
            )
    if draw.random() < 0.3:
        fit["steps_per_epoch"] = draw.randint(1, 6)
    is_validated = "validation_split" in fit or data == "validation loader"
    if is_validated and draw.random() < 0.4:
        fit["validation_freq"] = draw.choice([2, [1, 3], 1])
    callbacks: list[Any] = []
    schedules = ["cosine", "warmup_cosine", "one_cycle", "StepLR", "ReduceLROnPlateau", "ExponentialLR"]
    if draw.random() < 0.5 and data != "function":
        compiled["scheduler"] = SCHEDULES[draw.choice(schedules)]
    monitor = draw.choice(["loss", "val_loss"] if is_validated else ["loss"])
    if draw.random() < 0.5:
        options = {
            "patience": draw.randint(0, 2),
            "min_delta": draw.choice([0.0, 0.02]),
            "start_from_epoch": draw.randint(0, 1),
        }
        callbacks.append(EarlyStopping(monitor, restore_best_weights=draw.random() < 0.7, **options))
    if draw.random() < 0.3 and "scheduler" not in compiled:
        callbacks.append(
            ReduceLROnPlateau(monitor, factor=0.5, patience=draw.randint(0, 1), cooldown=draw.randint(0, 2))
        )
    return fit | ({"callbacks": callbacks} if callbacks else {})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_arguments_have_an_exact_script(seed, monkeypatch):
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: True)
    draw = random.Random(seed)
    name = draw.choice(list(PROBLEMS))
    run = Run(name, data=draw.choice(KINDS))
    problem = PROBLEMS[name]
    compiled = draw_compile(draw, name)
    data, options, names = as_inputs(run, problem.x, problem.y)
    fit = {**options, **draw_fit(draw, name, run.data, compiled)}
    if "sample_weight" in fit:
        names["sample_weight"] = fit["sample_weight"]
    if len(problem.x) % fit.get("batch_size", 8) == 1 or "validation_split" in fit:
        problem = problem._replace(new_module=lambda: without_batchnorm(PROBLEMS[name].new_module()))
    torch.manual_seed(1)
    fit_and_script(problem.new_module(), compiled, data, fit, names)


def without_batchnorm(module: nn.Module) -> nn.Module:
    """Return ``module`` for batches of one sample."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm1d):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.LayerNorm(part.num_features).to(part.weight.dtype))
    return module
