"""Promise 2: samples of a dataset are fetched with little beside it, in the very batches that the loader would have given."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from easytorch import Model
from easytorch._utils.pytree import leaves
from easytorch.data.epoch_iterator import EvalIterator
from easytorch.data.fast_loaders import MapBatches, as_map_batches, as_tensor_batches


class Drawing(Dataset):
    """Draws from every global generator for every sample."""

    def __len__(self):
        return 21

    def __getitem__(self, index):
        return torch.rand(3) + index, int(np.random.randint(9)), {"name": str(index), "half": random.random()}


class Together(Drawing):
    """Fetches the samples of a batch in one go."""

    def __getitems__(self, indices):
        noise = torch.rand(3)
        return [(noise + index, 1) for index in indices]


class Eager:
    """A sampler that draws when it is asked for its iterator, not at the first number."""

    def __len__(self):
        return 21

    def __iter__(self):
        return iter(torch.randperm(21).tolist())


LOADERS = {
    "shuffled": lambda: DataLoader(Drawing(), 4, shuffle=True),
    "in order": lambda: DataLoader(Drawing(), 4),
    "the last batch dropped": lambda: DataLoader(Drawing(), 4, shuffle=True, drop_last=True),
    "a generator of its own": lambda: DataLoader(
        Drawing(), 4, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "a sampler of one's own": lambda: DataLoader(Drawing(), 4, sampler=Eager()),
    "a batch sampler": lambda: DataLoader(
        Drawing(), batch_sampler=BatchSampler(RandomSampler(range(21)), 5, drop_last=False)
    ),
    "batches fetched in one go": lambda: DataLoader(Together(), 4, shuffle=True),
    "a collation of one's own": lambda: DataLoader(Drawing(), 4, collate_fn=lambda samples: [s[0] for s in samples]),
    "a subset": lambda: DataLoader(Subset(Drawing(), range(3, 17)), 4, shuffle=True),
    "a sum": lambda: DataLoader(ConcatDataset([Drawing(), Drawing()]), 4, shuffle=True),
}


def passes(make, way):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    loader = make()
    found = [repr(batch) for _ in range(2) for batch in way(loader)]
    return found, (torch.rand(1).item(), np.random.rand(), random.random())


@pytest.mark.parametrize("kind", LOADERS)
def test_fetched_batches_are_those_of_the_loader_and_draw_its_numbers(kind):
    assert isinstance(as_map_batches(LOADERS[kind]()), MapBatches)
    assert passes(LOADERS[kind], lambda loader: iter(EvalIterator(loader))) == passes(LOADERS[kind], iter)


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


class OwnLoader(DataLoader):
    """Somebody's own loader may do anything."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Drawing(), 4, num_workers=1),
        lambda: DataLoader(Drawing(), batch_size=None),
        lambda: DataLoader(Stream(), 4),
        lambda: OwnLoader(Drawing(), 4),
        lambda: [1, 2],
        lambda: as_tensor_batches(DataLoader(TensorDataset(torch.rand(9, 3)), 4)),
    ],
    ids=["workers", "no batches", "a stream", "own loader", "no loader", "slices"],
)
def test_what_does_something_else_is_left_alone(make):
    loader = make()
    assert as_map_batches(loader) is loader


def test_an_error_of_the_dataset_is_raised_as_it_is():
    class Broken(Drawing):
        def __getitem__(self, index):
            raise LookupError("row 7 is gone")

    model = Model(nn.Linear(3, 2)).compile("sgd", "cross_entropy")
    with pytest.raises(LookupError, match="row 7 is gone"):
        model.fit(DataLoader(Broken(), 4), 1, verbose=0)
