"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import copy

import pandas
import pytest
import torch
from torch import nn

from tests.errors.common import IMAGES, X, Y, compiled, fit, refused
from tests.loops import mlp

# Cures for what the user passed


GIVEN = {
    "NumPy": (lambda y: y, r'y\.astype\("{}"\)', r"y\[:, None\]"),
    "pandas": (pandas.Series, r'y\.astype\("{}"\)', r"y\.to_numpy\(\)\[:, None\]"),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize(
    "run",
    [
        lambda x, y: fit(compiled(), x, y),
        lambda x, y: fit(compiled(), (x, y)),
        lambda x, y: fit(compiled(), X, Y, validation_data=(x, y)),
        lambda x, y: compiled().evaluate(x, y, verbose=0),
        lambda x, y: compiled().train_on_batch(x, y),
    ],
    ids=["fit", "tuple", "validation data", "evaluate", "train_on_batch"],
)
def test_labels_of_another_kind_are_told_with_the_conversion_of_that_kind(run, kind):
    made, cast, _ = GIVEN[kind]
    labels = made(Y.numpy().astype("float32"))
    message = refused(lambda: run(X.numpy(), labels), cast.format("int64"), kind=TypeError)
    assert "long" not in message


@pytest.mark.parametrize("kind", GIVEN)
def test_values_of_another_kind_are_told_with_the_conversion_of_that_kind(kind):
    made, cast, column = GIVEN[kind]
    model = compiled(mlp(8, 1), "mse")
    refused(lambda: fit(model, X, made(Y.numpy())), cast.format("float32"), kind=TypeError)
    refused(lambda: fit(model, X, made(X[:, 0].numpy())), column, kind=ValueError)


def test_a_list_is_told_to_become_a_tensor():
    refused(lambda: fit(compiled(), X, Y.float().tolist()), r"torch\.tensor\(y\)\.long\(\)", kind=TypeError)
    refused(lambda: fit(compiled(mlp(1)), X[:, 0].tolist(), Y), r"torch\.tensor\(x\)\[:, None\]", kind=ValueError)


def test_labels_of_numpy_batches_are_told_with_the_conversion_of_numpy():
    batches = [(X.numpy(), Y.numpy().astype("float64"))]
    refused(lambda: fit(compiled(), batches), r'y\.astype\("int64"\)', kind=TypeError)


# One sample in the place of a batch


def network_on_images():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("net", "x", "cure"),
    [
        (mlp, X[0], r"x\[None\]"),
        (mlp, X[0].numpy(), r"x\[None\]"),
        (mlp, X[0].tolist(), r"\[x\]"),
        (mlp, pandas.Series(X[0].numpy()), r"x\.to_numpy\(\)\[None\]"),
        (network_on_images, IMAGES[0], r"x\[None\]"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGES[0, 0], r"x\[None\]"),
    ],
    ids=["tensor", "NumPy", "list", "series", "image with its channel", "image"],
)
@pytest.mark.parametrize("verb", ["predict", "predict_classes", "predict_proba"])
def test_one_sample_is_told_from_a_batch(verb, net, x, cure):
    model = compiled(net())
    refused(
        lambda: getattr(model, verb)(x, verbose=0), "looks like one sample", f"{cure} makes a batch", kind=ValueError
    )


def test_as_many_classes_as_features_do_not_hide_that_it_is_one_sample():
    refused(lambda: compiled(mlp(3, 3)).predict_classes(X[0, :3], verbose=0), "looks like one sample", kind=ValueError)


def test_one_sample_is_told_from_one_batch():
    refused(lambda: compiled().predict_on_batch(X[0]), r"looks like one sample: x\[None\]", kind=ValueError)


def test_single_numbers_are_told_to_become_a_column():
    refused(lambda: compiled(mlp(1)).predict(X[:, 0], verbose=0), r"pass x\[:, None\]", kind=ValueError)


def test_telling_one_sample_leaves_the_model_and_the_random_numbers_as_they_are():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model, before = compiled(net), copy.deepcopy(net.state_dict())
    numbers = torch.get_rng_state()
    refused(lambda: model.predict(X[0], verbose=0), "looks like one sample")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(part.training for part in net.modules())


def test_an_error_that_has_nothing_to_do_with_dimensions_stays_what_it_is():
    refused(lambda: compiled(loss="mse").predict_proba(X, verbose=0), "outputs to probabilities")
