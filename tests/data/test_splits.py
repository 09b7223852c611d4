"""Splits are stratified, reproducible, and work for each kind of data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset

import easytorch
from easytorch import Model
from easytorch.data import split, targets_of
from easytorch.data.fast_loaders import TensorBatches, as_tensor_batches
from tests.data.common_inputs import Rows, X, Y, compiled
from tests.loops import blobs, mlp, same_weights, twins


@pytest.mark.parametrize(
    "data",
    [(X, Y), (TensorDataset(X, Y),), (DataLoader(TensorDataset(X, Y), 8, shuffle=True),), (DataLoader(Rows(), 8),)],
    ids=["arrays", "dataset", "shuffled loader", "loader in order"],
)
def test_validation_split_works_for(data):
    seen = []
    model = compiled(mlp())
    callback = easytorch.callbacks.LambdaCallback(on_test_begin=lambda logs: seen.append(dict(model.callbacks.params)))
    history = model.fit(*data, epochs=1, validation_split=0.2, callbacks=[callback], verbose=0)
    assert "val_loss" in history
    assert seen[0]["test_steps"] * model.state.step > 0


def test_split_is_stratified_and_reproducible():
    y = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    torch.manual_seed(1)
    train, test = split(torch.randn(100, 2), y, fraction=0.2)
    torch.manual_seed(2)
    _, again = split(torch.randn(100, 2), y, fraction=0.2)
    assert torch.bincount(targets_of(test)).tolist() == [16, 3, 1]
    assert len(train) == 80
    assert test.indices == again.indices
    assert not set(train.indices) & set(test.indices)


@pytest.mark.parametrize(
    "arrays", [tuple, lambda pair: tuple(part.numpy() for part in pair)], ids=["tensors", "arrays"]
)
def test_split_of_arrays_returns_two_datasets(arrays, start):
    pair = blobs(40)
    train, test = split(*arrays(pair), fraction=0.25)
    net = copy.deepcopy(start)
    model = compiled(net)
    model.fit(train, batch_size=8, shuffle=False, verbose=0)
    again = copy.deepcopy(start)
    plain = torch.utils.data.TensorDataset(*pair)
    compiled(again).fit(Subset(plain, train.indices), batch_size=8, shuffle=False, verbose=0)
    assert same_weights(net, again)
    assert [list(part.shape) for part in next(iter(DataLoader(test, 4)))] == [[4, *pair[0].shape[1:]], [4]]
    assert model.predict(test, verbose=0).shape[0] == 10
    assert len(easytorch.data.in_memory(test, verbose=False)[0]) == 2


def test_array_dataset_gives_the_batches_of_torch():
    x, y = blobs(12)
    for tree in ((x, y), {"x": x, "y": (y, x)}, x):
        loader = DataLoader(easytorch.data.ArrayDataset(tree), 5)
        assert isinstance(as_tensor_batches(loader), TensorBatches)
        for batch, expected in zip(as_tensor_batches(loader), loader, strict=True):
            assert str(batch) == str(expected)


@pytest.mark.parametrize("y", [X.clone(), Y], ids=["targets shaped as the inputs", "labels"])
def test_parts_of_split_arrays_work_in_a_plain_loader(y):
    train, test = split(X, y, 0.2)
    for part in (train, test):
        batch = next(iter(DataLoader(part, len(part))))
        assert not isinstance(batch, torch.Tensor)
        inputs, targets = batch
        assert torch.equal(inputs, X[part.indices])
        assert torch.equal(targets, y[part.indices])


def test_parts_of_split_arrays_work_for_training():
    train, test = split(X, Y, 0.2)
    assert "val_loss" in compiled(mlp()).fit(train, validation_data=test, verbose=0)


def test_column_of_labels_is_stratified():
    y = torch.tensor([0] * 98 + [1] * 2)[:, None]
    _, expected = split(TensorDataset(torch.randn(100, 2), y[:, 0]), 0.5)
    _, test = split(TensorDataset(torch.randn(100, 2), y), 0.5)
    assert test.indices == expected.indices
    assert int(y[test.indices].sum()) == 1


def test_fraction_may_be_a_numpy_number():
    assert [len(part) for part in split(X, Y.numpy(), np.float32(0.2))] == [40, 10]


def test_loader_that_draws_some_samples_cannot_be_split():
    rows = TensorDataset(X, Y)
    loader = DataLoader(rows, 8, sampler=RandomSampler(rows, num_samples=10))
    with pytest.raises(ValueError, match=r"Cannot split this DataLoader.*custom sampler.*easytorch\.data\.split"):
        compiled(mlp()).fit(loader, validation_split=0.2, verbose=0)


def test_wrong_targets_of_a_split_are_described():
    with pytest.raises(ValueError, match=r"not integers \(for example \d\.5\)"):
        compiled(mlp()).fit(X.numpy(), Y.numpy() + 0.5, validation_split=0.2, verbose=0)


def test_split_leaves_the_global_random_state_unchanged():
    before = torch.get_rng_state()
    split(X, Y, fraction=0.3)
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_with_a_custom_sampler_cannot_be_split():
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 50, 50)
    with pytest.raises(ValueError, match=r"sampler.*easytorch\.data\.split"):
        compiled(mlp()).fit(DataLoader(Rows(), 8, sampler=sampler), validation_split=0.2, verbose=0)


def pairs():
    return [(x, int(y)) for x, y in zip(X, Y, strict=True)]


SAMPLES = {
    "pairs": pairs,
    "pairs of tensors": lambda: list(zip(X, Y, strict=True)),
    "dicts": lambda: [{"input": x, "label": y} for x, y in pairs()],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_loader_of_a_list_of_samples_works_like_a_dataset(kind, start):
    expected, net = twins(start)
    options = {"epochs": 2, "validation_split": 0.2, "class_weight": "balanced", "verbose": 0}
    history = compiled(expected).fit(DataLoader(TensorDataset(X, Y), 8), **options)
    other = compiled(net).fit(DataLoader(SAMPLES[kind](), 8), **options)
    assert history["val_loss"] == other["val_loss"]
    assert same_weights(net, expected)


def test_split_of_a_list_of_samples_is_stratified():
    _, expected = split(TensorDataset(X, Y), 0.3)
    train, test = split(pairs(), 0.3)
    assert test.indices == expected.indices
    assert torch.equal(targets_of(train), torch.tensor([y for _, y in train]))


def test_list_of_rows_without_targets_is_split():
    train, test = split(list(X), 0.2)
    assert (len(train), len(test)) == (40, 10)


@pytest.mark.parametrize("fraction", [20, 1.5])
def test_invalid_fraction_as_second_argument_is_reported(fraction):
    with pytest.raises(ValueError, match=f"between 0 and 1, received {fraction}"):
        split(pairs(), fraction)


def test_text_and_ragged_labels_are_not_targets():
    assert targets_of([(X[0], "cat"), (X[1], "dog")]) is None
    assert targets_of([(X[0], torch.zeros(2)), (X[1], torch.zeros(3))]) is None
    assert targets_of([(1, 2, 3, 4)]) is None
    assert targets_of(list(X)) is None


# Several outputs


class TwoHeads(nn.Module):
    def __init__(self, named):
        super().__init__()
        self.kind, self.size, self.named = nn.Linear(8, 3), nn.Linear(8, 1), named

    def forward(self, x):
        kind, size = self.kind(x), self.size(x)
        return {"kind": kind, "size": size} if self.named else (kind, size)


class Crossed(nn.Module):
    """A module with two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.kind, self.size = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, left, right):
        return self.kind(left), self.size(right)


@pytest.mark.parametrize("kind", [list, tuple])
def test_two_inputs_and_two_targets_are_not_two_samples(kind):
    model = Model(Crossed(), device="cpu").compile("sgd", ["cross_entropy", "mse"])
    model.fit([X, X], kind([Y, X[:, :1]]), verbose=0)
    model.fit([X[:2], X[:2]], kind([Y[:2], X[:2, :1]]), verbose=0)
    assert model.state.step == 3


@pytest.mark.parametrize("named", [True, False])
def test_each_output_has_its_loss_weight_and_metrics(named):
    size = X[:, :1] * 2
    names = ("kind", "size") if named else ("output_1", "output_2")

    def pack(kind, size):
        return {"kind": kind, "size": size} if named else [kind, size]

    model = Model(TwoHeads(named), device="cpu").compile(
        "sgd", pack("cross_entropy", "mse"), metrics=pack(["accuracy"], ["mae"]), loss_weights=pack(1.0, 0.5)
    )
    targets = pack(Y, size) if named else (Y, size)
    model.fit(X, targets, epochs=1, verbose=0)
    scores = model.evaluate(X, targets, verbose=0)
    assert scores.keys() == ["loss", f"{names[0]}_loss", f"{names[1]}_loss", f"{names[0]}_accuracy", f"{names[1]}_mae"]
    assert scores["loss"] == pytest.approx(scores[f"{names[0]}_loss"] + 0.5 * scores[f"{names[1]}_loss"], rel=1e-5)
    assert len(model.predict(X, verbose=0)) == 2
