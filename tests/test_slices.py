"""Promise 2: what is in memory is sliced, to the very batches that the loader would have given."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from easytorch import Model
from easytorch.slices import Slices, sliced
from tests.loops import blobs

X, Y = blobs(50)
ROWS = TensorDataset(X, Y)


def seeded(seed=9):
    return torch.Generator().manual_seed(seed)


LOADERS = {
    "shuffled": lambda: DataLoader(ROWS, 8, shuffle=True),
    "in order": lambda: DataLoader(ROWS, 8),
    "dropping the last": lambda: DataLoader(ROWS, 8, shuffle=True, drop_last=True),
    "own generator": lambda: DataLoader(ROWS, 8, shuffle=True, generator=seeded()),
    "generator of the sampler": lambda: DataLoader(ROWS, 8, sampler=RandomSampler(ROWS, generator=seeded())),
    "drawn with replacement": lambda: DataLoader(
        ROWS, 8, sampler=RandomSampler(ROWS, replacement=True, num_samples=70)
    ),
    "weighted": lambda: DataLoader(ROWS, 8, sampler=WeightedRandomSampler(torch.linspace(0.1, 1, 50), 50)),
    "some of the rows": lambda: DataLoader(ROWS, 8, sampler=SubsetRandomSampler(range(5, 40))),
    "a subset": lambda: DataLoader(Subset(ROWS, range(5, 40)), 8, shuffle=True),
    "a subset in order": lambda: DataLoader(Subset(ROWS, range(39, 4, -1)), 8),
    "a subset of a subset": lambda: DataLoader(Subset(Subset(ROWS, range(5, 40)), range(0, 30, 2)), 8, shuffle=True),
}


def passes(make, slice_it):
    """Return the batches of two passes, and the state of the global generator after them."""
    torch.manual_seed(3)
    loader = make()
    batches = [batch for _ in range(2) for batch in (sliced(loader) if slice_it else loader)]
    return batches, torch.get_rng_state()


@pytest.mark.parametrize("kind", LOADERS)
def test_slices_are_the_batches_of_the_loader_and_draw_its_numbers(kind):
    assert isinstance(sliced(LOADERS[kind]()), Slices)
    (mine, my_state), (torchs, torchs_state) = passes(LOADERS[kind], True), passes(LOADERS[kind], False)
    assert len(mine) == len(torchs)
    for one, other in zip(mine, torchs, strict=True):
        assert type(one) is type(other)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(my_state, torchs_state)


class Rows(TensorDataset):
    """Somebody's own dataset may do anything."""


class OwnOrder(torch.utils.data.Sampler):
    def __len__(self):
        return 50

    def __iter__(self):
        return iter(range(50))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Rows(X, Y), 8),
        lambda: DataLoader(ROWS, 8, sampler=OwnOrder()),
        lambda: DataLoader(ROWS, 8, collate_fn=lambda rows: rows),
        lambda: DataLoader(ROWS, 8, num_workers=1),
        lambda: DataLoader(ROWS, batch_size=None),
        lambda: [1, 2],
    ],
    ids=["own dataset", "own sampler", "own collate", "workers", "no batches", "no loader"],
)
def test_what_may_do_something_else_is_left_alone(make):
    loader = make()
    assert sliced(loader) is loader


def test_a_module_that_changes_its_input_does_not_change_the_data():
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
