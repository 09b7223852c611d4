"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics
from torch import nn

from easytorch import Model
from easytorch.callbacks import EarlyStopping, LambdaCallback
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
    ids=["torchmetrics", "function", "a dict", "regression metric"],
)
def test_failing_metric_error_shows_name_and_arguments(metric, name):
    refused(
        lambda: fit(compiled(metrics=[metric]), X, Y),
        f"metric '{name}'",
        r"float32 \[32, 3\]",
        r"int64 \[32\]",
        "metrics=",
    )


def test_error_in_a_custom_metric_names_the_metric():
    class Failing(Count):
        def update(self, outputs, y, sample_weight=None):
            raise RuntimeError("the metric's own error")

    message = refused(
        lambda: fit(compiled(metrics=[Failing()]), X, Y), "metric 'count' failed", "the metric's own error"
    )
    assert "train_step" not in message


def test_metric_that_fails_in_compute_is_named():
    class Broken(Count):
        name = "broken"

        def compute(self):
            raise AttributeError("no such attribute")

    refused(lambda: fit(compiled(metrics=[Broken()]), X, Y), "metric 'broken'", "no such attribute")


@pytest.mark.parametrize("error", [ValueError, RuntimeError, ZeroDivisionError])
def test_metric_that_cannot_be_computed_is_nan_and_ends_nothing(error):
    class NeedsMore(Count):
        name = "needs_more"

        def compute(self):
            raise error("at least 1,000 samples")

    model = compiled(metrics=[NeedsMore()])
    read = []
    look = LambdaCallback(on_train_batch_end=lambda batch, logs: read.append(logs["loss"]))
    with pytest.warns(UserWarning, match=r"'needs_more' is NaN, because it cannot be computed: .* 1,000 samples"):
        history = fit(model, X, Y, validation_data=(X, Y), callbacks=[look], epochs=2)
    assert all(math.isnan(value) for value in (*history["needs_more"], *history["val_needs_more"]))
    assert all(map(math.isfinite, read))
    assert model.state.epoch == 2


def test_metric_that_returns_no_scalar_is_named():
    class Confused(Count):
        name = "confused"

        def compute(self):
            return torch.zeros(30, 30)

    refused(lambda: fit(compiled(metrics=[Confused()]), X, Y), "metric 'confused'", "number")


def test_accuracy_that_the_loss_does_not_define_raises():
    refused(lambda: compiled(loss="mse", metrics=["accuracy"]), "'accuracy'", "MSELoss", "no accuracy. Use 'mae'")
    refused(lambda: compiled(loss=lambda y_pred, y: (y_pred - y).mean(), metrics=["accuracy"]), "'binary_accuracy'")


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
def test_class_instead_of_object_raises(run, name):
    refused(run, "class", name, r"\(\)|called", kind=TypeError)


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        (lambda: Model(mlp()).compile(5, "mse"), ("optimizer", "5", "'adam'")),
        (lambda: compiled(loss=5), ("loss", "5", "'cross_entropy'")),
        (lambda: compiled(metrics=[5]), ("metric", "5", "'accuracy'")),
        (lambda: fit(compiled(), X, Y, callbacks=[5]), ("callback", "5", "LambdaCallback")),
        (lambda: fit(compiled(), X, Y, callbacks=5), ("callbacks", "list", "int")),
    ],
    ids=["optimizer", "loss", "metric", "callback", "callbacks without a list"],
)
def test_argument_of_wrong_type_error_shows_what_to_pass(run, parts):
    refused(run, *parts, kind=TypeError)


def test_optimizer_of_another_module_raises():
    other = torch.optim.SGD(mlp().parameters())
    refused(lambda: Model(mlp()).compile(other, "mse"), "4 of the optimizer's parameters", "do not belong", "Model")


def test_failed_compile_changes_nothing():
    model = compiled(metrics=["accuracy"])
    before = dict(vars(model))
    refused(lambda: model.compile("adam", "mse", metrics=["acuracy"]), "acuracy")
    refused(lambda: model.compile("adam", "mse", precision="fp61"), "fp61")
    refused(lambda: model.compile("adamm", "mse"), "adamm")
    assert vars(model) == before
