"""Loaders and modules that use the memory of a batch for the next one: results are those of separate batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from easytorch import EpochMetric, Model
from tests.loops import blobs, mlp, same_weights

X, Y = blobs(50)
SIZE = 10


class Reusing(IterableDataset):
    """Batches in ``buffers`` buffers, which are filled in turn."""

    def __init__(self, buffers=1, as_numpy=False):
        self.buffers, self.as_numpy = buffers, as_numpy

    def __iter__(self):
        inputs = [torch.empty(SIZE, X.shape[1]) for _ in range(self.buffers)]
        labels = [torch.empty(SIZE, dtype=torch.int64) for _ in range(self.buffers)]
        for number, start in enumerate(range(0, len(X), SIZE)):
            x, y = inputs[number % self.buffers], labels[number % self.buffers]
            x.copy_(X[start : start + SIZE])
            y.copy_(Y[start : start + SIZE])
            yield (x.numpy(), y.numpy()) if self.as_numpy else (x, y)


class OneBufferCollate:
    def __init__(self):
        self.x, self.y = torch.empty(SIZE, X.shape[1]), torch.empty(SIZE, dtype=torch.int64)

    def __call__(self, samples):
        for row, (x, y) in enumerate(samples):
            self.x[row], self.y[row] = x, y
        return self.x, self.y


def batches():
    return [(X[start : start + SIZE].clone(), Y[start : start + SIZE].clone()) for start in range(0, len(X), SIZE)]


def trained(data, **options):
    torch.manual_seed(0)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.1, metrics=["accuracy"], **options)
    model.fit(data, epochs=2, verbose=0)
    return model


LOADERS = {
    "one buffer": lambda: lambda: iter(Reusing()),
    "two buffers": lambda: lambda: iter(Reusing(buffers=2)),
    "arrays": lambda: lambda: iter(Reusing(as_numpy=True)),
    "loader without batches": lambda: DataLoader(Reusing(), batch_size=None),
    "collate_fn": lambda: DataLoader(TensorDataset(X, Y), SIZE, collate_fn=OneBufferCollate()),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_accumulation_equals_that_of_separate_batches(kind, accumulate):
    model = trained(LOADERS[kind](), gradient_accumulation_steps=accumulate)
    expected = trained(batches(), gradient_accumulation_steps=accumulate)
    assert same_weights(model.module, expected.module)
    assert model.history["loss"] == expected.history["loss"]


def test_separate_batches_are_not_copied():
    received = []

    class Watching(Model):
        def train_step(self, batch):
            received.append(batch[0].data_ptr())
            return super().train_step(batch)

    data = batches()
    model = Watching(mlp(), device="cpu").compile("sgd", "cross_entropy", gradient_accumulation_steps=2)
    model.fit(lambda: iter(data), epochs=2, verbose=0)
    assert received == [x.data_ptr() for x, _ in data] * 2


def macro_recall(y_pred, y):
    return float(np.mean([(y_pred.argmax(1) == k)[y == k].mean() for k in np.unique(y)]))


@pytest.mark.parametrize("kind", ["one buffer", "collate_fn"])
def test_metrics_of_all_samples_get_the_targets_of_each(kind):
    pytest.importorskip("torchmetrics")
    metrics = [EpochMetric(macro_recall), "auroc"]
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=metrics)
    expected = model.evaluate(batches(), verbose=0, return_dict=True)
    assert model.evaluate(LOADERS[kind](), verbose=0, return_dict=True) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["loader without batches", "collate_fn"])
def test_predict_returns_the_targets_of_each_sample(kind):
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    outputs, targets = model.predict(LOADERS[kind](), targets=True, verbose=0)
    assert np.array_equal(targets, Y)
    assert np.array_equal(outputs, model.predict(batches(), verbose=0))


class OneOutput(nn.Module):
    """A module that returns rows of one buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.output = mlp(), torch.empty(SIZE, 3)

    def forward(self, x):
        self.output[: len(x)] = self.layer(x)
        return self.output[: len(x)]


def test_outputs_in_one_buffer_are_those_of_each_batch():
    model = Model(OneOutput(), device="cpu").compile(None, "cross_entropy", metrics=[EpochMetric(macro_recall)])
    expected = Model(model.module.layer, device="cpu").compile(
        None, "cross_entropy", metrics=[EpochMetric(macro_recall)]
    )
    assert np.array_equal(model.predict(X, batch_size=SIZE, verbose=0), expected.predict(X, batch_size=SIZE, verbose=0))
    scores = [m.evaluate(X, Y, batch_size=SIZE, verbose=0, return_dict=True) for m in (model, expected)]
    assert scores[0] == pytest.approx(scores[1])


def test_predictions_do_not_share_the_memory_of_the_data():
    data = X.clone()
    outputs = Model(nn.Identity(), device="cpu").predict(data, batch_size=len(data), verbose=0)
    data.zero_()
    assert np.array_equal(outputs, X)
