"""Data and models of the data tests."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from easytorch import Model
from tests.loops import blobs

X, Y = blobs(50)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)]


class Rows(Dataset):
    """A dataset whose targets are unknown until its samples are loaded."""

    def __init__(self, *columns):
        self.columns = columns or (X, Y)

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


def compiled(net):
    return Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy")


ARRAYS = {"batch_size": 8, "shuffle": False}
