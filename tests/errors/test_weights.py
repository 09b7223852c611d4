"""Errors in weights, splits and steps name what is expected, what was received, and the fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from tests.errors.common import BINARY, ByHand, X, Y, compiled, fit, refused
from tests.loops import mlp


def several_labels():
    return functional.one_hot(Y).float() + functional.one_hot((Y + 1) % 3).float()


@pytest.mark.parametrize("weights", [{0: 1.0, 1: 2.0}, "balanced"], ids=str)
@pytest.mark.parametrize("data", [lambda y: (X, y), lambda y: (ByHand(X, y),)], ids=["arrays", "custom Dataset"])
@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "parts"),
    [
        ("mse", 1, X[:, :1], ("numbers such as",)),
        ("bce_with_logits", 3, several_labels(), ("several labels",)),
    ],
    ids=["regression", "several labels"],
)
def test_class_weights_without_classes_are_reported(loss, outputs, targets, parts, data, weights):
    model = compiled(mlp(8, outputs), loss)
    refused(
        lambda: fit(model, *data(targets), class_weight=weights),
        "class_weight",
        "sample_weight",
        *parts,
        kind=ValueError,
    )
    assert model.state.step == 0


@pytest.mark.parametrize(
    ("net", "loss", "targets"),
    [
        (lambda: mlp(8, 1), "bce_with_logits", BINARY[:, None]),
        (lambda: nn.Sequential(mlp(8, 1), nn.Flatten(0)), "bce_with_logits", BINARY),
        (mlp, "cross_entropy", functional.one_hot(Y).float()),
    ],
    ids=["a column of 0 and 1", "0 and 1", "one-hot rows"],
)
@pytest.mark.parametrize("weights", [{0: 1.0, 1: 2.0}, "balanced"], ids=str)
def test_class_weights_accept_classes_as_floats(net, loss, targets, weights):
    assert fit(compiled(net(), loss), X, targets, class_weight=weights)["loss"][0] > 0


def test_balanced_weights_of_negative_classes_are_reported():
    refused(lambda: fit(compiled(mlp(8, 1), "mse"), X, Y - 1, class_weight="balanced"), "start at -1", kind=ValueError)


@pytest.mark.parametrize(
    "run",
    [
        lambda: fit(compiled(), X, Y, class_weight={0: -1.0}),
        lambda: fit(compiled(), X, Y, class_weight=[1.0, float("nan"), 1.0]),
        lambda: fit(compiled(), X, Y, sample_weight=-torch.ones(len(X))),
        lambda: fit(compiled(), (X, Y, -torch.ones(len(X)))),
        lambda: fit(compiled(), {"input": X, "label": Y, "sample_weight": -torch.ones(len(X))}),
        lambda: fit(compiled(), ByHand(X, Y), sample_weight=-np.ones(len(X))),
        lambda: compiled().evaluate(X, Y, sample_weight=-torch.ones(len(X)), verbose=0),
        lambda: compiled().train_on_batch(X, Y, -torch.ones(len(X))),
    ],
    ids=["class", "class without a number", "arrays", "tuple", "dict", "custom Dataset", "evaluate", "train_on_batch"],
)
def test_negative_weights_are_reported(run):
    refused(run, "_weight must be 0 or more", kind=ValueError)


def test_single_number_as_class_weight_is_reported():
    refused(lambda: fit(compiled(), X, Y, class_weight=2.0), "one weight for each class", kind=ValueError)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_shuffle_of_an_iterable_dataset_is_reported():
    refused(lambda: fit(compiled(), Endless(), shuffle=True), "Endless", "Shuffle inside it", kind=ValueError)


def test_iterable_dataset_accepts_shuffle_false():
    model = compiled()
    fit(model, Endless(), shuffle=False)
    assert model.state.step == 2


@pytest.mark.parametrize("shuffle", ["batch", 1], ids=str)
def test_shuffle_must_be_a_bool(shuffle):
    refused(lambda: fit(compiled(), X, Y, shuffle=shuffle), "True or False", repr(shuffle), kind=ValueError)


def test_number_as_validation_data_is_reported():
    refused(lambda: fit(compiled(), X, Y, validation_data=0.2), r"Did you mean validation_split=0\.2", kind=ValueError)


def test_different_lengths_name_validation_data():
    refused(
        lambda: fit(compiled(), X, Y, validation_data=(X, Y[:9])), "In validation_data: ", "9 and 50", kind=ValueError
    )


@pytest.mark.parametrize(
    ("fraction", "fix"), [(20, r"20% is 0\.2"), (-0.2, r"20% of the training data is 0\.2"), (True, "20%")], ids=str
)
def test_invalid_validation_split_is_reported(fraction, fix):
    refused(lambda: fit(compiled(), X, Y, validation_split=fraction), "validation_split", fix, kind=ValueError)


@pytest.mark.parametrize("data", [Endless(), DataLoader(Endless(), 8)], ids=["dataset", "loader"])
def test_split_of_an_iterable_dataset_is_reported(data):
    message = refused(lambda: fit(compiled(), data, validation_split=0.2), "Pass validation_data", kind=ValueError)
    assert "data.split" not in message


def test_integral_floats_are_accepted_as_steps():
    model = compiled()
    options = {"steps_per_epoch": 6 / 2, "validation_data": (X, Y), "validation_steps": 4 / 2}
    fit(model, X, Y, batch_size=8, epochs=2, **options)
    assert model.state.step == 6
    assert model.evaluate(X, Y, steps=2.0, verbose=0)["loss"] > 0


def test_counts_may_be_numpy_integers():
    model = compiled()
    fit(model, X, Y, batch_size=np.int64(10), epochs=np.int64(2), validation_data=(X, Y), validation_freq=np.int64(2))
    assert (model.state.step, len(model.history["val_loss"])) == (10, 1)


@pytest.mark.parametrize("value", [50 / 32, "3", True, float("nan"), float("inf"), 0], ids=str)
@pytest.mark.parametrize("name", ["steps_per_epoch", "validation_steps"])
def test_invalid_steps_are_reported_with_their_name(name, value):
    options = {"validation_data": (X, Y), name: value}
    refused(lambda: fit(compiled(), X, Y, **options), f"{name} must be a positive integer", kind=ValueError)
