"""Predictions in memory: order, structure, probabilities and classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from easytorch import Model
from tests.loops import blob_loader, mlp
from tests.strategies.common_strategy import X, Y, batchnorm_net, compiled_model


class TwoHeads(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.left, self.right = kind, nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        return {"left": left, "right": right} if self.kind is dict else self.kind((left, right))


def test_predict_returns_numpy_in_the_order_of_the_samples():
    model = compiled_model()
    y_pred = model.predict(X, batch_size=8, verbose=0)
    assert type(y_pred) is np.ndarray
    with torch.no_grad():
        np.testing.assert_allclose(y_pred, model.module(X).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [dict, tuple, list])
def test_predict_preserves_the_structure_of_the_outputs(kind):
    y_pred = Model(TwoHeads(kind), device="cpu").predict(X, batch_size=8, verbose=0)
    assert type(y_pred) is kind
    left, right = y_pred.values() if kind is dict else y_pred
    assert (left.shape, right.shape) == ((50, 2), (50, 3))


@pytest.mark.parametrize(
    "data",
    [X, X.numpy(), (X, Y), TensorDataset(X, Y), blob_loader(), [(X[:25], Y[:25]), (X[25:], Y[25:])]],
    ids=["tensor", "array", "tuple", "dataset", "loader", "list"],
)
def test_predict_accepts_all_data_types_of_fit(data):
    model = compiled_model()
    np.testing.assert_allclose(model.predict(data, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


def test_predict_needs_no_compile_and_no_targets():
    assert Model(mlp(), device="cpu").predict(X, verbose=0).shape == (50, 3)


def test_predict_leaves_weights_and_buffers_unchanged():
    net = batchnorm_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compiled_model(net).predict(X, verbose=0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_predict_warns_of_a_shuffling_loader():
    with pytest.warns(UserWarning, match=r"another order.*RandomSampler"):
        compiled_model().predict(blob_loader(shuffle=True), verbose=0)


def test_predict_stops_after_steps():
    assert len(compiled_model().predict(X, batch_size=8, steps=2, verbose=0)) == 16


@pytest.mark.parametrize(
    ("net", "loss", "probabilities"),
    [
        (mlp, "cross_entropy", lambda out: out.softmax(1)),
        (mlp, functional.cross_entropy, lambda out: out.softmax(1)),
        (lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), "nll", lambda out: out.exp()),
        (lambda: mlp(8, 1), "bce_with_logits", lambda out: out.sigmoid()),
        (lambda: nn.Sequential(mlp(8, 1), nn.Sigmoid()), "bce", lambda out: out),
    ],
    ids=["cross_entropy", "function", "nll", "bce_with_logits", "bce"],
)
def test_probabilities_and_classes_follow_from_the_loss(net, loss, probabilities):
    model = compiled_model(net(), loss)
    with torch.no_grad():
        expected = probabilities(model.module(X))
    classes = expected.argmax(1) if expected.shape[1] > 1 else (expected > 0.5).long()
    np.testing.assert_allclose(model.predict_proba(X, verbose=0), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(model.predict_classes(X, verbose=0), classes.numpy())


@pytest.mark.parametrize(
    ("net", "loss"),
    [
        (lambda: mlp(), "cross_entropy"),
        (lambda: mlp(8, 1), "bce_with_logits"),
        (lambda: TwoHeads(dict), {"left": "cross_entropy", "right": "bce_with_logits"}),
    ],
    ids=["classes", "two classes", "several outputs"],
)
def test_classes_of_nan_get_one_warning(net, loss):
    model, x = compiled_model(net(), loss), X.clone()
    x[[2, 17, 40], 0] = float("nan")
    with pytest.warns(
        UserWarning, match=r"classes of 3 of \d+ samples have no meaning.*indices: 2, 17, 40\."
    ) as caught:
        model.predict_classes(x, batch_size=8, verbose=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    model.predict_classes(X, verbose=0)


@pytest.mark.parametrize("method", ["predict_proba", "predict_classes"])
def test_a_regression_has_no_probabilities(method):
    with pytest.raises(ValueError, match=r"MSELoss.*Call predict\(\)"):
        getattr(compiled_model(mlp(8, 1), "mse"), method)(X, verbose=0)


def test_predict_proba_preserves_the_structure_of_outputs():
    model = compiled_model(TwoHeads(dict), {"left": "cross_entropy", "right": "bce_with_logits"})
    y_pred = model.predict_proba(X, verbose=0)
    np.testing.assert_allclose(y_pred["left"].sum(1), np.ones(50), rtol=1e-5)
    assert y_pred["right"].shape == (50, 3)
