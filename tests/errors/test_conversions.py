"""Promise 4: errors name the conversion of the data, and the dimension that an input of predict may lack."""

from __future__ import annotations

import copy

import pandas
import pytest
import torch
from torch import nn

from tests.errors.common import IMAGES, X, Y, compiled, fit, refused
from tests.loops import mlp

# Targets without one meaning

ARRAY_TYPES = {"NumPy": lambda y: y, "pandas": pandas.Series, "list": lambda y: y.tolist()}


@pytest.mark.parametrize("array_type", ARRAY_TYPES)
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
def test_fractions_are_no_class_indices(run, array_type):
    labels = ARRAY_TYPES[array_type](Y.numpy().astype("float32") + 0.5)
    refused(lambda: run(X.numpy(), labels), r"not integers \(for example \d\.5\)", "loss='mse'", kind=ValueError)


def test_conversions_of_inputs_are_named_for_tensors_and_arrays():
    embedding = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(32, 3))
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    images = IMAGES.expand(-1, 3, -1, -1).movedim(1, -1)
    refused(lambda: fit(compiled(), X.long(), Y), r"x\.float\(\), or x\.astype\('float32'\)", kind=TypeError)
    refused(lambda: fit(compiled(embedding), X, Y), r"x\.long\(\), or x\.astype\('int64'\)", kind=TypeError)
    refused(lambda: fit(compiled(convolution), images, Y[:10]), r"x\.movedim\(-1, 1\), or np\.moveaxis\(x, -1, 1\)")


def test_complex_inputs_are_not_cut_to_their_real_part():
    message = refused(
        lambda: fit(compiled(), X.to(torch.complex64), Y),
        r"dtype=torch\.complex64",
        r"torch\.view_as_real\(x\)",
        kind=TypeError,
    )
    assert "x.float()" not in message


@pytest.mark.parametrize("call", [lambda: fit(compiled(), range(10), Y[:10]), lambda: fit(compiled(), X[:3], range(3))])
def test_a_range_is_no_data(call):
    refused(call, r"range\(0, \d+\)", r"numpy\.array\([xy]\)", kind=TypeError)


# The batch dimension of an input of predict


def image_network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("net", "x", "fix"),
    [
        (mlp, X[0], r"x\[None\]"),
        (mlp, X[0].numpy(), r"x\[None\]"),
        (mlp, X[0].tolist(), r"torch\.tensor\(x\)\[None\]"),
        (mlp, pandas.Series(X[0].numpy()), r"x\.to_numpy\(\)\[None\]"),
        (image_network, IMAGES[0], r"x\[None\]"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGES[0, 0], r"x\[None\]"),
    ],
    ids=["tensor", "NumPy", "list", "series", "image with its channel", "image"],
)
@pytest.mark.parametrize("method", ["predict", "predict_classes", "predict_proba"])
def test_one_sample_gets_the_missing_batch_dimension(method, net, x, fix):
    model = compiled(net())
    run = lambda: getattr(model, method)(x, verbose=0)  # noqa: E731  # shorter than a nested function
    refused(run, f"If the input is one sample, pass {fix}", kind=ValueError)


def test_one_sample_is_found_if_classes_equal_features():
    model = compiled(mlp(3, 3))
    refused(lambda: model.predict_classes(X[0, :3], verbose=0), r"one sample, pass x\[None\]", kind=ValueError)


def test_predict_on_batch_explains_a_missing_batch_dimension():
    refused(lambda: compiled().predict_on_batch(X[0]), r"one sample, pass x\[None\]", kind=ValueError)


def test_single_numbers_get_the_missing_column():
    message = r"one number per sample, pass x\[:, None\]"
    refused(lambda: compiled(mlp(1)).predict(X[:, 0], verbose=0), message, kind=ValueError)


def test_a_batch_of_images_gets_no_advice_for_one_sample():
    message = refused(lambda: compiled(mlp(64)).predict(IMAGES, verbose=0), "64 features")
    assert "one sample" not in message


def test_explaining_one_sample_does_not_run_the_module_again():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append("module"))
    net[0].register_forward_hook(lambda *_: calls.append("layer"))
    model, before = compiled(net), copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    refused(lambda: model.predict(X[0], verbose=0), "one sample")
    assert calls == ["module", "layer"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(layer.training for layer in net.modules())


def test_an_error_about_no_dimension_gets_no_advice():
    message = refused(lambda: compiled(loss="mse").predict_proba(X, verbose=0), "probabilities")
    assert "one sample" not in message
