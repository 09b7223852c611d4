"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import pytest
import torch
import torchmetrics
from torch import nn

from easytorch import Model
from easytorch.callbacks import EarlyStopping
from tests.errors.common import Count, X, Y, compiled, fit, refused
from tests.loops import mlp

# Metrics and callbacks


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (torchmetrics.classification.MulticlassAccuracy(num_classes=2), "multiclass_accuracy"),
        (lambda y_pred, y: y_pred[:, 7].mean(), "<lambda>"),
        (lambda y_pred, y: {"a": 1}, "<lambda>"),
        ("r2", "r2"),
    ],
    ids=["torchmetrics", "function", "a dict", "a regression metric of classes"],
)
def test_a_metric_that_fails_is_named_with_what_it_was_given(metric, name):
    refused(
        lambda: fit(compiled(metrics=[metric]), X, Y),
        f"metric '{name}'",
        r"float32 \[32, 3\]",
        r"int64 \[32\]",
        "metrics=",
    )


def test_an_error_of_ones_own_metric_is_told_of_the_metric():
    class Own(Count):
        def update(self, outputs, y, sample_weight=None):
            raise RuntimeError("the metric's own error")

    told = refused(lambda: fit(compiled(metrics=[Own()]), X, Y), "metric 'count' failed", "the metric's own error")
    assert "train_step" not in told


def test_a_metric_that_fails_at_the_end_of_an_epoch_is_named():
    class Broken(Count):
        name = "broken"

        def compute(self):
            raise RuntimeError("a tensor of the wrong size")

    refused(lambda: fit(compiled(metrics=[Broken()]), X, Y), "metric 'broken'", "a tensor of the wrong size")


def test_a_metric_that_is_no_number_is_named():
    class Confused(Count):
        name = "confused"

        def compute(self):
            return torch.zeros(2, 2)

    refused(lambda: fit(compiled(metrics=[Confused()]), X, Y), "metric 'confused'", "number")


def test_accuracy_of_a_loss_that_does_not_tell_asks_for_the_kind():
    refused(lambda: compiled(loss="mse", metrics=["accuracy"]), "'accuracy'", "MSELoss", "'binary_accuracy'")


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda: Model(nn.Linear), "Linear"),
        (lambda: compiled(loss=nn.CrossEntropyLoss), "CrossEntropyLoss"),
        (lambda: compiled(metrics=[Count]), "Count"),
        (lambda: compiled(metrics=[torchmetrics.classification.MulticlassAccuracy]), "MulticlassAccuracy"),
        (lambda: fit(compiled(), X, Y, callbacks=[EarlyStopping]), "EarlyStopping"),
    ],
    ids=["module", "loss", "metric", "torchmetrics", "callback"],
)
def test_a_class_in_the_place_of_an_object_is_told_to_be_called(run, name):
    refused(run, "class", name, r"\(\)|called", kind=TypeError)


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        (lambda: Model(mlp()).compile(5, "mse"), ("optimizer", "5", "'adam'")),
        (lambda: compiled(loss=5), ("loss", "5", "'cross_entropy'")),
        (lambda: compiled(metrics=[5]), ("metric", "5", "'accuracy'")),
        (lambda: fit(compiled(), X, Y, callbacks=[5]), ("callback", "5", "LambdaCallback")),
        (lambda: fit(compiled(), X, Y, callbacks=EarlyStopping("loss")), ("callbacks", "list", "EarlyStopping")),
    ],
    ids=["optimizer", "loss", "metric", "callback", "callbacks without a list"],
)
def test_a_thing_of_another_kind_is_told_what_may_be_passed(run, parts):
    refused(run, *parts, kind=TypeError)


def test_an_optimizer_of_another_module_is_refused():
    other = torch.optim.SGD(mlp().parameters())
    refused(lambda: Model(mlp()).compile(other, "mse"), "4 of the optimizer's parameters", "do not belong", "Model")


def test_a_compile_that_fails_changes_nothing():
    model = compiled(metrics=["accuracy"])
    before = dict(vars(model))
    refused(lambda: model.compile("adam", "mse", metrics=["acuracy"]), "acuracy")
    refused(lambda: model.compile("adam", "mse", precision="fp61"), "fp61")
    refused(lambda: model.compile("adamm", "mse"), "adamm")
    assert vars(model) == before
