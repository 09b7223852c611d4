"""Metrics that are measured in evaluations only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import EarlyStopping, EpochMetric, Model
from tests.loops import blobs, same_weights
from tests.many import run_ranks

X, Y = blobs(50)


class CountCalls:
    """A metric that counts the batches of training and of evaluations."""

    __name__ = "hits"

    def __init__(self):
        self.modes = []

    def __call__(self, y_pred, y):
        self.modes.append(torch.is_grad_enabled())
        return (y_pred.argmax(1) == y).float()


def new_model(metrics=("accuracy",), loss="cross_entropy", **options):
    torch.manual_seed(0)
    return Model(nn.Linear(8, 3), device="cpu").compile("sgd", loss, list(metrics), lr=0.1, **options)


def fit(model, **options):
    model.fit(X, Y, **{"epochs": 2, "batch_size": 10, "validation_data": (X[:20], Y[:20]), "verbose": 0, **options})
    return model.history


def test_the_metric_is_not_measured_in_training():
    hits = CountCalls()
    history = fit(new_model(["accuracy", hits], validation_only=["hits"]))
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy", "val_hits", "lr"]
    # Before training one batch is tried, and each validation has two.
    assert hits.modes == [False] * 5
    assert history["val_hits"] == pytest.approx(history["val_accuracy"])


def test_training_is_that_without_the_metric():
    with_metric = new_model(["accuracy", "f1_macro"], validation_only=["f1_macro"])
    fit(with_metric)
    plain = new_model()
    fit(plain)
    assert same_weights(with_metric.module, plain.module)
    assert with_metric.history["accuracy"] == plain.history["accuracy"]


def test_evaluate_measures_all_metrics():
    model = new_model(["f1_macro", "accuracy"], validation_only=["f1_macro"])
    fit(model)
    scores = model.evaluate(X, Y, verbose=0)
    assert scores.keys() == ["loss", "f1_macro", "accuracy"]
    assert model.test_on_batch(X, Y).keys() == ["loss", "f1_macro", "accuracy"]
    assert model.train_on_batch(X, Y).keys() == ["loss", "accuracy"]


def test_weighted_metrics_may_be_left_out_of_training():
    model = new_model(weighted_metrics=["accuracy"], validation_only=["weighted_accuracy"])
    weights = torch.rand(50)
    history = fit(model, sample_weight=weights, validation_data=(X, Y, weights))
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy", "val_weighted_accuracy", "lr"]
    hits = (model.module(X).argmax(1) == Y).float()
    assert history["val_weighted_accuracy"][-1] == pytest.approx(float((hits * weights).sum() / weights.sum()))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return {"a": self.a(x), "b": self.b(x)}


def test_the_metric_of_one_output_is_named_as_in_the_logs():
    losses = {"a": "cross_entropy", "b": "cross_entropy"}
    metrics = {"a": ["accuracy"], "b": ["accuracy"]}
    model = Model(TwoHeads(), device="cpu").compile("sgd", losses, metrics, validation_only=["b_accuracy"])
    targets = {"a": Y, "b": Y}
    history = model.fit(X, targets, validation_data=(X, targets), verbose=0)
    assert {"a_accuracy", "val_a_accuracy", "val_b_accuracy"} < set(history)
    assert "b_accuracy" not in history


def test_the_metric_can_be_monitored():
    stopping = EarlyStopping("val_f1_macro", patience=9)
    model = new_model(["f1_macro"], validation_only=["f1_macro"])
    history = fit(model, callbacks=[stopping])
    assert stopping.direction == "max"
    assert history.best("val_f1_macro")["val_f1_macro"] == stopping.best
    with pytest.raises(ValueError, match="monitors 'f1_macro', which the logs will not contain"):
        fit(model, callbacks=[EarlyStopping("f1_macro")])


def test_files_keep_the_argument(tmp_path):
    model = new_model(["accuracy", "f1_macro"], validation_only=["f1_macro"])
    fit(model)
    loaded = Model(nn.Linear(8, 3), device="cpu").load(model.save(tmp_path / "model.pt"))
    assert loaded.metrics.names == ["accuracy"]
    assert dict(loaded.evaluate(X, Y, verbose=0).items()) == dict(model.evaluate(X, Y, verbose=0).items())


def test_a_metric_of_all_predictions_needs_no_memory_in_training():
    sizes = []
    metric = EpochMetric(lambda y_pred, y: sizes.append(len(y)) or 0.5, name="size", mode="max")
    fit(new_model([metric], validation_only=["size"]))
    assert sizes == [20, 20]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["f1"], ValueError, "validation_only has 'f1', which is no metric"),
        (["acuracy"], ValueError, "Did you mean 'accuracy'"),
        ("accuracy", TypeError, "validation_only must be a list of names"),
        ([len], TypeError, "validation_only must be a list of names"),
    ],
)
def test_a_wrong_name_is_an_error_in_compile(names, error, message):
    with pytest.raises(error, match=message):
        new_model(validation_only=names)


def rank_scores():
    model = new_model(["accuracy", "f1_macro"], validation_only=["f1_macro"], strategy="ddp")
    return fit(model, batch_size=5, shuffle=False).rows


def test_two_processes_measure_the_values_of_one():
    expected = fit(new_model(["accuracy", "f1_macro"], validation_only=["f1_macro"]), shuffle=False).rows
    for rows in run_ranks(rank_scores):
        for row, expected_row in zip(rows, expected, strict=True):
            assert row == pytest.approx(expected_row, rel=1e-5)
