"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from easytorch import Metric, Model
from tests.loops import blobs, mlp

X, Y = blobs()
LATE = Y.clone()
# 3 is not a class of mlp(), and not in the first batch.
LATE[-1] = 3
BINARY = (Y == 0).float()


class ByHand(Dataset):
    """A dataset whose targets are known only sample by sample."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, left, right):
        return self.head(left + right)


class Count(Metric):
    name = "count"

    def reset(self):
        self.n = 0

    def update(self, y_pred, y, sample_weight=None):
        self.n += len(y)

    def compute(self):
        return float(self.n)


def compiled(net=None, loss="cross_entropy", **options):
    return Model(mlp() if net is None else net, device="cpu").compile("sgd", loss, **options)


def fit(model, *data, **options):
    return model.fit(*data, **({"verbose": 0} | options))


def refused(run, *patterns, kind=(ValueError, TypeError)):
    """Check that ``run`` raises an error whose message matches every pattern, and return the message."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in: {message}"
    return message


def no_batches():
    yield from ()


IMAGES = torch.randn(10, 1, 8, 8)


def everything(model):
    """Return a copy of everything that a fit may change."""
    return copy.deepcopy(
        {
            "weights": model.module.state_dict(),
            "buffers": dict(model.module.named_buffers()),
            "optimizer": model.optimizer.state_dict(),
            "gradients": {name: p.grad for name, p in model.module.named_parameters()},
            "modes": {name: layer.training for name, layer in model.module.named_modules()},
            "history": model.history.history,
            "epochs": model.history.epoch,
            "state": model.state.state_dict(),
        }
    )


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
