"""Replicas that decide alike, and errors when they drift apart or do not use all parameters."""

from __future__ import annotations

import functools
import random
import warnings

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import (
    Callback,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from tests.distributed.common_ranks import attempt, attempt_all, both_fail, fit, new_model, rank
from tests.many import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Decisions of callbacks


class Score(Callback):
    """Adds a value that each rank draws for itself."""

    def __init__(self):
        self.random = random.Random(rank())

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.random.random()


class LateScore(Score):
    priority = 4


class DrawnRate:
    def __init__(self):
        self.random = random.Random(rank())

    def __call__(self, epoch, lr):
        return self.random.random()


def decide(make, late=False):
    torch.manual_seed(0)
    callback, model = make(), new_model(lr=0.1)
    # The monitor stands before the callback whose value it reads.
    fit(model=model, epochs=6, callbacks=[callback, LateScore() if late else Score()])
    weights = [parameter.sum().item() for parameter in model.module.parameters()]
    return weights, model.history["lr"], model.history["score"], getattr(callback, "best_path", None)


DECISIONS = {
    "plateau": lambda: ReduceLROnPlateau("score", mode="min", patience=1),
    "early stopping": lambda: EarlyStopping("score", mode="min", patience=2, restore_best_weights=True),
    "random rate": lambda: LearningRateScheduler(DrawnRate()),
}


def test_callbacks_decide_by_the_logs_of_rank_0(tmp_path):
    functions = {name: functools.partial(decide, make) for name, make in DECISIONS.items()}
    for late in (False, True):
        name = str(tmp_path / f"{{epoch}}-{late}.pt")
        make = functools.partial(ModelCheckpoint, name, "score", mode="max", save_best_only=True)
        functions[f"best file {late}"] = functools.partial(decide, make, late)
    first, second = run_ranks(attempt_all, functions)
    draw = random.Random(0)
    scores = [draw.random() for _ in range(6)]
    for name in functions:
        assert first[name][0] == second[name][0]
        assert first[name][0][2] == scores[: len(first[name][0][2])]
    best = scores.index(max(scores)) + 1
    assert first["best file False"][0][3].endswith(f"{best}-False.pt")


# Replicas that drift apart


def change_on_rank_1(hook, change):
    model = new_model()

    def apply(*_):
        if rank() == 1:
            change(model)

    fit(model=model, epochs=2, callbacks=[LambdaCallback(**{hook: apply})])


def set_rate(model):
    model.optimizer.param_groups[0]["lr"] = 0.5


def set_decay(model):
    model.optimizer.param_groups[0]["weight_decay"] = 0.1


def add_to_weights(model):
    with torch.no_grad():
        model.module[2].weight.add_(0.5)


def freeze(model):
    model.module[0].requires_grad_(False)


DRIFTS = {
    "rate": (
        "on_train_batch_end",
        set_rate,
        r"train differently after epoch 1: lr=0\.001 on rank 0, and lr=0\.5 on rank 1",
    ),
    "rate of an epoch": ("on_epoch_begin", set_rate, r"before epoch 1: lr=0\.001 on rank 0, and lr=0\.5 on rank 1"),
    "weight decay": ("on_epoch_end", set_decay, r"weight_decay=0.* on rank 0, and weight_decay=0\.1 on rank 1"),
    "weights": (
        "on_epoch_end",
        add_to_weights,
        r"weights of rank 0 and rank 1 differ after epoch 1: '2\.weight', by up to 0\.5",
    ),
    "frozen": ("on_epoch_begin", freeze, r"parameter '0\.bias' is trained on rank 0, and frozen on rank 1"),
}


def test_replicas_that_drift_apart_are_an_error():
    functions = {name: functools.partial(change_on_rank_1, hook, change) for name, (hook, change, _) in DRIFTS.items()}
    results = run_ranks(attempt_all, functions)
    for name, (_, _, text) in DRIFTS.items():
        both_fail([result[name] for result in results], text)


def round_on_rank_1():
    model = new_model()

    def change(*_):
        if rank() == 1:
            with torch.no_grad():
                model.module[2].weight.mul_(1 + 3e-7)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model=model, epochs=1, callbacks=[LambdaCallback(on_train_batch_end=change)])
    return [str(warning.message) for warning in caught], model.module.state_dict()


def test_weights_that_were_rounded_differently_are_those_of_rank_0():
    (messages, weights), (other_messages, other_weights) = run_ranks(round_on_rank_1)
    assert len(messages) == 1
    assert "differ in the last bits" in messages[0]
    assert other_messages == []
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


# Unused parameters


class Branches(nn.Module):
    """Uses its second layer on all ranks but one, from a certain call on."""

    def __init__(self, unused_on, after=0):
        super().__init__()
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 3)
        self.unused_on, self.after, self.calls = unused_on, after, 0

    def forward(self, x):
        self.calls += 1
        is_unused = self.unused_on in ("all", rank()) and self.calls > self.after
        return self.first(x) if is_unused else self.first(x) + self.second(x)


UNUSED = r"'second\.weight', 'second\.bias' had no gradient.*DataParallel\(find_unused_parameters=True\)"


def test_unused_parameters_of_all_ranks_name_the_option():
    functions = {
        "several updates": lambda: fit(model=new_model(net=Branches("all"))),
        "one update": lambda: fit(8, model=new_model(net=Branches("all"))),
        "last update": lambda: fit(model=new_model(net=Branches("all", after=5))),
    }
    results = run_ranks(attempt_all, functions)
    for name in functions:
        both_fail([result[name] for result in results], UNUSED, ("RuntimeError", "RuntimeError"))


@pytest.mark.parametrize("unused_on", [0, 1])
def test_unused_parameters_of_one_rank_name_the_option(unused_on):
    results = run_ranks(attempt, lambda: fit(model=new_model(net=Branches(unused_on, after=3))))
    kinds = ["RankError", "RankError"]
    kinds[unused_on] = "RuntimeError"
    both_fail(results, UNUSED, kinds)


class TwoSteps(Model):
    """A custom update, which does not look for unused parameters."""

    def update(self, window):
        for batch in window:
            self.strategy.backward(self.strategy.run(self.train_step, batch)["loss"])
        self.strategy.step(self.optimizer)
        self.strategy.zero_grad(self.optimizer)


def train_by_own_update():
    model = TwoSteps(Branches("all"), device="cpu").compile("sgd", "cross_entropy")
    try:
        fit(model=model)
    except RuntimeError as error:
        return str(error), str(error.__context__)


def test_the_error_of_torch_is_the_context():
    for message, context in run_ranks(train_by_own_update):
        assert "find_unused_parameters=True" in message
        assert "Expected to have finished reduction in the prior iteration" in context
