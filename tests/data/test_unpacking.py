"""Public functions for the parts of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import easytorch
from easytorch import Model
from easytorch.data import Batch, batch_size, unpack
from tests.loops import blobs, furthest, mlp, twins

X, Y = blobs(50)
WEIGHTS = torch.linspace(0, 1, 50)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, Batch(X)),
        ((X,), Batch(X)),
        ([X, Y], Batch(X, Y)),
        ((X, Y, WEIGHTS), Batch(X, Y, WEIGHTS)),
        ({"x": X, "label": Y, "sample_weight": WEIGHTS}, Batch({"x": X}, Y, WEIGHTS)),
    ],
)
def test_unpack_returns_inputs_targets_and_weights(batch, expected):
    parts = unpack(batch)
    assert type(parts) is easytorch.Batch
    assert (list(parts.x) if isinstance(parts.x, dict) else parts.x is X) in (True, ["x"])
    assert parts.y is expected.y
    assert parts.sample_weight is expected.sample_weight


def test_unpack_with_a_module_selects_its_arguments():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    batch = {"a": X, "b": X, "kind": Y}
    x, y, sample_weight = unpack(batch, Two())
    assert list(x) == ["a", "b"]
    assert y is Y
    assert sample_weight is None
    assert unpack({"image": X, "label": Y}, mlp()).x is X


def test_unpack_refuses_more_than_three_parts():
    with pytest.raises(ValueError, match="received 4 parts"):
        unpack((X, Y, Y, Y))


@pytest.mark.parametrize("batch", [X, (X, Y), (X, Y, WEIGHTS), {"x": X, "y": Y}, {"x": X.numpy(), "y": Y.numpy()}])
def test_batch_size_counts_samples(batch):
    assert batch_size(batch) == 50


class Weighted(Model):
    def train_step(self, batch):
        x, y, sample_weight = self.unpack(batch)
        y_pred = self(x)
        self.metrics.update(y_pred, y, sample_weight)
        losses = F.cross_entropy(y_pred, y, reduction="none")
        if sample_weight is not None:
            losses = losses * sample_weight
        return {"loss": losses.sum() / self.batch_size(batch)}


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("as_dict", [False, True])
def test_a_step_with_the_parts_of_a_batch_equals_the_loop(weights, as_dict):
    nets = twins(mlp())
    parts = {"input": X, "y": Y, "sample_weight": weights}
    parts = {name: part for name, part in parts.items() if part is not None}
    data = parts if as_dict else tuple(parts.values())
    for kind, net in zip((Weighted, Model), nets, strict=True):
        model = kind(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        model.fit(data, epochs=2, batch_size=16, shuffle=False, verbose=0)
    assert furthest(*nets) < 1e-6


def test_metadata_of_webdataset_is_no_input():
    batch = {"__key__": ["a", "b"], "__url__": ["u", "u"], "image": X[:2], "label": Y[:2]}
    x, y, _ = unpack(batch, nn.Linear(8, 3))
    assert x is batch["image"]
    assert y is batch["label"]
