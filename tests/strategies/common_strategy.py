"""Models and data of the tests of strategies."""

from __future__ import annotations

from torch import nn

from easytorch import Model
from tests.loops import blobs, mlp

X, Y = blobs()


def compiled_model(net=None, loss="cross_entropy", optimizer="sgd", **options):
    return Model(mlp() if net is None else net, device="cpu").compile(optimizer, loss, **options)


def batchnorm_net():
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
