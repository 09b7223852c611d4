"""Gradient accumulation: a window of batches equals one large batch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from tests.loops import blobs, furthest, mlp, twins


def fit_model(net, batch_size, steps, loss="cross_entropy", **options):
    x, y = blobs(10)
    loader = DataLoader(TensorDataset(x, y), batch_size)
    model = Model(net, device="cpu").compile(
        lambda p: torch.optim.SGD(p, lr=1.0), loss, gradient_accumulation_steps=steps, metrics=["accuracy"], **options
    )
    return model.fit(loader, 2, verbose=0)


@pytest.mark.parametrize(
    "options", [{}, {"clip_grad_norm": 0.1}, {"clip_grad_value": 0.01}], ids=["plain", "norm", "value"]
)
def test_short_last_batch_is_weighted_by_its_samples(options):
    single, accumulated = twins(mlp())
    # 4 + 4 + 2 samples equal one batch of 10.
    first, second = fit_model(single, 10, 1, **options), fit_model(accumulated, 4, 3, **options)
    assert furthest(single, accumulated) < 1e-6
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
    assert first["accuracy"] == second["accuracy"]


def test_short_last_window_is_a_separate_update():
    single, accumulated = twins(mlp())
    x, y = blobs(10)
    optimizer = torch.optim.SGD(single.parameters(), lr=1.0)
    # Windows of two batches: 4 + 4 samples, then 2.
    for rows in (slice(0, 8), slice(8, 10)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(single(x[rows]), y[rows]).backward()
        optimizer.step()
    model = Model(accumulated, device="cpu").compile(
        lambda p: torch.optim.SGD(p, lr=1.0), "cross_entropy", gradient_accumulation_steps=2
    )
    model.fit(DataLoader(TensorDataset(x, y), 4), verbose=0)
    assert furthest(single, accumulated) < 1e-6
    assert model.state.step == 2


def test_sum_loss_is_not_divided_by_the_window():
    single, accumulated = twins(mlp())
    fit_model(single, 10, 1, nn.CrossEntropyLoss(reduction="sum"), clip_grad_norm=0.1)
    fit_model(accumulated, 4, 3, nn.CrossEntropyLoss(reduction="sum"), clip_grad_norm=0.1)
    assert furthest(single, accumulated) < 1e-6


@pytest.mark.parametrize(
    "loss",
    [
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 5.0])),
        lambda: nn.CrossEntropyLoss(ignore_index=0),
        lambda: nn.CrossEntropyLoss(ignore_index=1, weight=torch.tensor([0.2, 1.0, 5.0])),
        lambda: functools.partial(nn.functional.cross_entropy, weight=torch.tensor([0.2, 1.0, 5.0])),
        lambda: functools.partial(nn.functional.cross_entropy, ignore_index=0),
        lambda: functools.partial(nn.functional.cross_entropy, reduction="sum"),
    ],
    ids=["weight", "ignore_index", "weight and ignore_index", "partial weight", "partial ignore_index", "partial sum"],
)
def test_weighted_losses_match_one_large_batch(loss):
    single, accumulated = twins(mlp())
    fit_model(single, 10, 1, loss())
    fit_model(accumulated, 4, 3, loss())
    # Sums of the loss give larger weights than means, and rounding is relative.
    largest = max(float(parameter.detach().abs().max()) for parameter in single.parameters())
    assert furthest(single, accumulated) < 1e-6 * max(1.0, largest)


@pytest.mark.parametrize("kind", ["arrays", "labels of -100"])
def test_accumulation_handles_arrays_and_ignored_labels(kind):
    single, accumulated = twins(mlp())
    x, y = blobs(10)
    loss = "cross_entropy" if kind == "labels of -100" else nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 5.0]))
    if kind == "labels of -100":
        y[:3] = -100
    else:
        x, y = x.numpy(), y.numpy()
    for net, batches in ((single, [(x, y)]), (accumulated, [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])])):
        model = Model(net, device="cpu").compile("sgd", loss, lr=1.0, gradient_accumulation_steps=len(batches))
        model.fit(batches, epochs=2, verbose=0)
    assert furthest(single, accumulated) < 1e-6


def test_accumulation_applies_sample_weights():
    single, accumulated = twins(mlp())
    x, y = blobs(10)
    weights = torch.linspace(0.1, 2.0, 10)
    for net, batch_size, steps in ((single, 10, 1), (accumulated, 4, 3)):
        model = Model(net, device="cpu").compile(
            lambda p: torch.optim.SGD(p, lr=1.0), "cross_entropy", gradient_accumulation_steps=steps
        )
        model.fit(x, y, sample_weight=weights, batch_size=batch_size, shuffle=False, epochs=2, verbose=0)
    assert furthest(single, accumulated) < 1e-6


@pytest.mark.parametrize("weights", ["sample_weight", "class_weight"])
def test_accumulation_combines_sample_and_loss_weights(weights):
    single, accumulated = twins(mlp())
    x, y = blobs(10)
    weight_options = (
        {"sample_weight": torch.linspace(0.1, 2.0, 10)} if weights == "sample_weight" else {"class_weight": {1: 3.0}}
    )
    for net, batch_size, steps in ((single, 10, 1), (accumulated, 4, 3)):
        loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 5.0]))
        model = Model(net, device="cpu").compile("sgd", loss, gradient_accumulation_steps=steps)
        model.fit(x, y, batch_size=batch_size, shuffle=False, epochs=20, verbose=0, **weight_options)
    assert furthest(single, accumulated) < 1e-6


def test_several_sum_losses_are_not_divided_by_the_window():
    class TwoOutputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x), self.inner(x)

    single, accumulated = twins(TwoOutputs())
    x, y = blobs(10)
    for net, batch_size, steps in ((single, 10, 1), (accumulated, 4, 3)):
        losses = [nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")]
        model = Model(net, device="cpu").compile("sgd", losses, gradient_accumulation_steps=steps)
        model.fit(x, (y, y), batch_size=batch_size, shuffle=False, epochs=2, verbose=0)
    assert furthest(single, accumulated) < 1e-6


@pytest.mark.filterwarnings("ignore:loss is NaN, because nothing counts")
@pytest.mark.parametrize("ignored", [0, -100])
def test_window_of_ignored_targets_does_not_change_weights(ignored):
    x, _ = blobs(10)
    net, before = twins(mlp())
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    model = Model(net, device="cpu").compile("sgd", loss, gradient_accumulation_steps=3)
    model.fit(x, torch.full((10,), ignored), batch_size=4, verbose=0)
    assert model.state.step == 1
    assert furthest(net, before) == 0


def test_batch_callbacks_run_once_per_update():
    from easytorch.callbacks import LambdaCallback

    x, y = blobs(10)
    batches = []
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", gradient_accumulation_steps=2)
    model.fit(
        DataLoader(TensorDataset(x, y), 4),
        verbose=0,
        callbacks=[LambdaCallback(on_train_batch_end=lambda batch, logs: batches.append(batch))],
    )
    assert batches == [0, 1]


def test_custom_step_may_use_any_batch_structure():
    class Custom(Model):
        def train_step(self, batch):
            x, y, _, _ = batch
            return {"loss": self.loss(self(x), y)}

    x, y = blobs(10)
    model = Custom(mlp(), device="cpu").compile("sgd", "cross_entropy", gradient_accumulation_steps=2)
    model.fit([(x[:5], y[:5], "a", "b"), (x[5:], y[5:], "c", "d")], 1, verbose=0)
    assert model.state.step == 1
