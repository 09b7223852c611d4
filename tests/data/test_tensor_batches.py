"""TensorBatches gives the same batches as the loader, without overhead per sample."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from easytorch import Model, Strategy
from easytorch.callbacks import Callback, LambdaCallback
from easytorch.data import fast_loaders
from easytorch.data.fast_loaders import TensorBatches, as_tensor_batches
from tests.loops import blobs, hand_loop, mlp, same_weights, twins

X, Y = blobs(50)
ROWS = TensorDataset(X, Y)


def seeded(seed=9):
    return torch.Generator().manual_seed(seed)


LOADERS = {
    "shuffled": lambda: DataLoader(ROWS, 8, shuffle=True),
    "in order": lambda: DataLoader(ROWS, 8),
    "dropping the last": lambda: DataLoader(ROWS, 8, shuffle=True, drop_last=True),
    "custom generator": lambda: DataLoader(ROWS, 8, shuffle=True, generator=seeded()),
    "generator of the sampler": lambda: DataLoader(ROWS, 8, sampler=RandomSampler(ROWS, generator=seeded())),
    "drawn with replacement": lambda: DataLoader(
        ROWS, 8, sampler=RandomSampler(ROWS, replacement=True, num_samples=70)
    ),
    "weighted": lambda: DataLoader(ROWS, 8, sampler=WeightedRandomSampler(torch.linspace(0.1, 1, 50), 50)),
    "a subset sampler": lambda: DataLoader(ROWS, 8, sampler=SubsetRandomSampler(range(5, 40))),
    "a subset": lambda: DataLoader(Subset(ROWS, range(5, 40)), 8, shuffle=True),
    "a subset in order": lambda: DataLoader(Subset(ROWS, range(39, 4, -1)), 8),
    "a subset of a subset": lambda: DataLoader(Subset(Subset(ROWS, range(5, 40)), range(0, 30, 2)), 8, shuffle=True),
    "rows counted from the end": lambda: DataLoader(Subset(ROWS, range(-40, 0)), 8, shuffle=True),
    "rows counted from the end of a subset": lambda: DataLoader(Subset(Subset(ROWS, range(-20, 0)), [-1, 3, -7]), 2),
}


def run_passes(make, as_slices):
    """Return the batches of two passes, and the state of the global generator after them."""
    torch.manual_seed(3)
    loader = make()
    batches = [batch for _ in range(2) for batch in (as_tensor_batches(loader) if as_slices else loader)]
    return batches, torch.get_rng_state()


@pytest.mark.parametrize("kind", LOADERS)
def test_slices_match_the_loader_and_its_random_numbers(kind):
    assert isinstance(as_tensor_batches(LOADERS[kind]()), TensorBatches)
    batches, state = run_passes(LOADERS[kind], as_slices=True)
    expected, expected_state = run_passes(LOADERS[kind], as_slices=False)
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert type(batch) is type(other)
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    assert torch.equal(state, expected_state)


class CustomRows(TensorDataset):
    """A custom dataset, which may do anything."""


class CustomSampler(torch.utils.data.Sampler):
    def __len__(self):
        return 50

    def __iter__(self):
        return iter(range(50))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(CustomRows(X, Y), 8),
        lambda: DataLoader(ROWS, 8, sampler=CustomSampler()),
        lambda: DataLoader(ROWS, 8, collate_fn=lambda rows: rows),
        lambda: DataLoader(ROWS, 8, num_workers=1),
        lambda: DataLoader(ROWS, batch_size=None),
        lambda: [1, 2],
    ],
    ids=["custom dataset", "custom sampler", "custom collate", "workers", "no batches", "no loader"],
)
def test_other_loaders_do_not_become_tensor_batches(make):
    loader = make()
    assert as_tensor_batches(loader) is loader


def test_in_place_change_of_the_input_preserves_the_data():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x.mul_(2))

    before = X.clone()
    for shuffle in (True, False):
        model = Model(Doubling(), device="cpu").compile("sgd", "cross_entropy")
        model.fit(DataLoader(ROWS, 8, shuffle=shuffle), verbose=0)
        model.evaluate(DataLoader(ROWS, 8), verbose=0)
        model.predict(DataLoader(ROWS, 8), verbose=0)
    assert torch.equal(X, before)


class Recording(nn.Module):
    """Records the memory of its inputs, and may change them in place."""

    def __init__(self, change=lambda x: None):
        super().__init__()
        self.layer, self.change, self.addresses = nn.Linear(16, 3), change, []

    def forward(self, x):
        self.addresses.append(x.data_ptr())
        self.change(x)
        return self.layer(x)


def evaluate_rows(module, rows, **options):
    """Return the addresses of the inputs in an evaluation in batches of 8, relative to the data."""
    model = Model(module, device="cpu").compile(loss="cross_entropy")
    model.evaluate(rows, torch.zeros(len(rows), dtype=torch.long), batch_size=8, verbose=0, **options)
    return [address - rows.data_ptr() for address in module.addresses]


def test_evaluation_in_order_copies_only_the_first_batch():
    rows = torch.randn(40, 16)
    assert evaluate_rows(Recording(), rows)[1:] == [8 * 16 * 4 * i for i in range(1, 5)]
    expected = Recording()
    with torch.inference_mode():
        assert not set(evaluate_rows(expected, rows)) & set(range(40 * 16 * 4))


@pytest.mark.parametrize(
    "change",
    [lambda x: x.mul_(2), lambda x: x.data.mul_(2), lambda x: x.masked_fill_(x.isnan(), 0)],
    ids=["in place", "past autograd", "a change that keeps the values"],
)
def test_batches_that_a_module_changes_are_copies(change):
    rows = torch.randn(40, 16)
    before = rows.clone()
    assert not set(evaluate_rows(Recording(change), rows)) & set(range(40 * 16 * 4))
    assert torch.equal(rows, before)


@pytest.fixture
def pinned(monkeypatch):
    """Let the CPU take the place of an accelerator, and return the tensors that would be in pinned memory."""
    tensors = []

    def new_pinned(count, like):
        tensors.append(torch.empty((count, *like.shape[1:]), dtype=like.dtype))
        return tensors[-1]

    monkeypatch.setattr(fast_loaders, "new_pinned", new_pinned)
    monkeypatch.setattr(Strategy, "pins_batches", True)
    return tensors


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_for_an_accelerator_are_in_pinned_memory(pinned, shuffle):
    received = []

    class Watching(Model):
        def train_step(self, batch):
            received.extend(batch if self.module.training else ())  # a validation batch is tried before
            return super().train_step(batch)

    model = Watching(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(DataLoader(ROWS, 8, shuffle=shuffle), validation_data=(X, Y), verbose=0)
    assert received
    assert {id(tensor) for tensor in received} <= {id(tensor) for tensor in pinned}


def test_pinned_batches_have_the_same_rows(pinned):
    for make in LOADERS.values():
        torch.manual_seed(3)
        batches = list(as_tensor_batches(make(), pins=True))
        torch.manual_seed(3)
        for batch, other in zip(batches, make(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_loader_with_pin_memory_is_sliced():
    batches = as_tensor_batches(DataLoader(ROWS, 8, pin_memory=True))
    assert isinstance(batches, TensorBatches)
    assert batches.pins == torch.accelerator.is_available()


def test_rows_at_unaligned_addresses_are_copied():
    rows = torch.randn(1 + 40 * 16)[1:].view(40, 16)
    assert not set(evaluate_rows(Recording(), rows)) & set(range(40 * 16 * 4))


class StopAtThird(Callback):
    def on_test_batch_end(self, batch, logs):
        self.model.stop_evaluating = batch == 2

    def on_predict_batch_end(self, batch, logs):
        self.model.stop_predicting = batch == 2


ENDS = {
    "all": {},
    "steps": {"steps": 3},
    "a callback": {"callbacks": [StopAtThird()]},
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_late_change_of_the_input_is_an_error(method, end):
    rows = torch.zeros(24 if end == "all" else 40, 16)
    rows[20] = 9
    model = Model(Recording(lambda x: x.div_(9) if x.max() > 1 else x), device="cpu").compile(loss="cross_entropy")
    data = (rows, torch.zeros(len(rows), dtype=torch.long)) if method == "evaluate" else (rows,)
    with pytest.raises(RuntimeError, match=r"in place for the samples 16 to 23.*These 8 rows of the data"):
        getattr(model, method)(*data, batch_size=8, verbose=0, **ENDS[end])


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch", "predict_on_batch", "__call__"])
def test_methods_for_one_batch_do_not_change_an_array(method):
    rows = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    before = rows.copy()
    model = Model(Recording(lambda x: x.mul_(2)), device="cpu").compile("sgd", "cross_entropy")
    targets = [np.zeros(8, np.int64)] if method in ("train_on_batch", "test_on_batch") else []
    getattr(model, method)(rows, *targets)
    assert np.array_equal(rows, before)


def test_summary_does_not_change_the_data(capsys):
    rows = torch.ones(8, 16)
    Model(Recording(lambda x: x.mul_(2)), device="cpu").summary(rows)
    assert torch.equal(rows, torch.ones(8, 16))


@pytest.mark.filterwarnings("ignore:The outputs have another order")
def test_batch_sampler_decides_which_samples_are_drawn():
    def loader():
        sampler = WeightedRandomSampler([0.0] * 49 + [1.0], 50)
        return DataLoader(TensorDataset(X), batch_sampler=BatchSampler(sampler, 8, drop_last=True))

    assert np.array_equal(Model(nn.Identity(), device="cpu").predict(loader(), verbose=0), X[[49] * 48].numpy())


def test_predict_warns_of_a_shuffling_batch_sampler():
    loader = DataLoader(TensorDataset(X), batch_sampler=BatchSampler(RandomSampler(ROWS), 8, drop_last=False))
    with pytest.warns(UserWarning, match="sampler of this DataLoader, RandomSampler"):
        Model(nn.Identity(), device="cpu").predict(loader, verbose=0)


class Flat(nn.Module):
    """A module that calls view on its input, which needs contiguous memory."""

    def forward(self, x):
        return x.view(len(x), -1)


def test_sequential_batch_has_the_memory_format_of_the_loader():
    images = torch.arange(96.0).reshape(2, 4, 4, 3).permute(0, 3, 1, 2)
    expected = images.reshape(2, -1).numpy()
    model = Model(Flat(), device="cpu")
    assert np.array_equal(model.predict(DataLoader(TensorDataset(images), 2), verbose=0), expected)
    assert np.array_equal(model.predict(images, verbose=0), expected)


@pytest.mark.parametrize("kind", [TensorDataset, CustomRows])
def test_replaced_tensors_are_used_from_the_next_epoch(kind):
    rows = kind(X, Y)

    def relabel(epoch, logs):
        rows.tensors = (X, torch.zeros_like(Y))

    expected, net = twins(mlp())
    hand_loop(expected, DataLoader(ROWS, 8), torch.optim.SGD(expected.parameters(), 0.1), nn.CrossEntropyLoss(), 1)
    zeros = DataLoader(TensorDataset(X, torch.zeros_like(Y)), 8)
    hand_loop(expected, zeros, torch.optim.SGD(expected.parameters(), 0.1), nn.CrossEntropyLoss(), 1)
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    model.fit(DataLoader(rows, 8), 2, callbacks=[LambdaCallback(on_epoch_end=relabel)], verbose=0)
    assert same_weights(net, expected)


def test_shuffling_shares_the_global_generator_with_dropout():
    def loader():
        torch.manual_seed(1)
        return DataLoader(ROWS, 8, shuffle=True, generator=torch.default_generator)

    expected = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    net = copy.deepcopy(expected)
    optimizer = torch.optim.SGD(expected.parameters(), 0.1)
    hand_loop(expected, loader(), optimizer, nn.CrossEntropyLoss(), 2)
    Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1).fit(loader(), 2, verbose=0)
    assert same_weights(net, expected)
