"""MapBatches gives the same batches as the loader, with less overhead."""

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
)

from easytorch import Model
from easytorch.data.eval_iterator import EvalIterator
from easytorch.data.fast_loaders import MapBatches, as_map_batches, as_tensor_batches


class Drawing(Dataset):
    """A dataset that draws from each global generator for each sample."""

    def __len__(self):
        return 21

    def __getitem__(self, index):
        return torch.rand(3) + index, int(np.random.randint(9)), {"name": str(index), "half": random.random()}


class FetchedTogether(Drawing):
    """A dataset that loads the samples of a batch with one call."""

    def __getitems__(self, indices):
        noise = torch.rand(3)
        return [(noise + index, 1) for index in indices]


class Eager:
    """A sampler that draws in __iter__, not at the first index."""

    def __len__(self):
        return 21

    def __iter__(self):
        return iter(torch.randperm(21).tolist())


LOADERS = {
    "shuffled": lambda: DataLoader(Drawing(), 4, shuffle=True),
    "in order": lambda: DataLoader(Drawing(), 4),
    "the last batch dropped": lambda: DataLoader(Drawing(), 4, shuffle=True, drop_last=True),
    "a custom generator": lambda: DataLoader(Drawing(), 4, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "a custom sampler": lambda: DataLoader(Drawing(), 4, sampler=Eager()),
    "a batch sampler": lambda: DataLoader(
        Drawing(), batch_sampler=BatchSampler(RandomSampler(range(21)), 5, drop_last=False)
    ),
    "batches loaded with one call": lambda: DataLoader(FetchedTogether(), 4, shuffle=True),
    "a custom collate_fn": lambda: DataLoader(Drawing(), 4, collate_fn=lambda samples: [s[0] for s in samples]),
    "a subset": lambda: DataLoader(Subset(Drawing(), range(3, 17)), 4, shuffle=True),
    "a sum": lambda: DataLoader(ConcatDataset([Drawing(), Drawing()]), 4, shuffle=True),
}


def run_passes(make, iterate):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    loader = make()
    batches = [repr(batch) for _ in range(2) for batch in iterate(loader)]
    return batches, (torch.rand(1).item(), np.random.rand(), random.random())


@pytest.mark.parametrize("kind", LOADERS)
def test_map_batches_match_the_loader_and_its_random_numbers(kind):
    assert isinstance(as_map_batches(LOADERS[kind]()), MapBatches)
    assert run_passes(LOADERS[kind], lambda loader: iter(EvalIterator(loader))) == run_passes(LOADERS[kind], iter)


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


class CustomLoader(DataLoader):
    """A custom loader, which may do anything."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Drawing(), 4, num_workers=1),
        lambda: DataLoader(Drawing(), batch_size=None),
        lambda: DataLoader(Stream(), 4),
        lambda: CustomLoader(Drawing(), 4),
        lambda: [1, 2],
        lambda: as_tensor_batches(DataLoader(TensorDataset(torch.rand(9, 3)), 4)),
    ],
    ids=["workers", "no batches", "a stream", "custom loader", "no loader", "slices"],
)
def test_other_loaders_do_not_become_map_batches(make):
    loader = make()
    assert as_map_batches(loader) is loader


def test_error_of_a_dataset_is_raised_unchanged():
    class Broken(Drawing):
        def __getitem__(self, index):
            raise LookupError("row 7 is gone")

    model = Model(nn.Linear(3, 2)).compile("sgd", "cross_entropy")
    with pytest.raises(LookupError, match="row 7 is gone"):
        model.fit(DataLoader(Broken(), 4), 1, verbose=0)
