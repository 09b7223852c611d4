"""Functions of tests in which ranks disagree."""

from __future__ import annotations

import os
import re
import time

import torch
from torch import nn

from easytorch import Model

X, Y = torch.randn(96, 8, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 3
# The time of an error: a rank that fails waits three seconds for the others, and the machine may be busy. Without the
# comparison of calls it would be ten minutes.
SECONDS = 60


def rank():
    return int(os.environ["RANK"])


def new_model(optimizer="sgd", net=None, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)) if net is None else net
    return Model(net, device="cpu").compile(optimizer, "cross_entropy", **options)


def fit(rows=96, model=None, **options):
    model = new_model() if model is None else model
    model.fit(X[:rows], Y[:rows], **{"batch_size": 8, "verbose": 0, **options})
    return model


def attempt(function):
    """Return the result, or class and message of the error; and the seconds."""
    start = time.monotonic()
    try:
        result = function()
    except Exception as error:
        result = type(error).__name__, str(error)
    return result, time.monotonic() - start


def attempt_all(functions):
    return {name: attempt(function) for name, function in functions.items()}


def both_fail(results, text, kinds=("RankError", "RankError")):
    for (error, seconds), kind in zip(results, kinds, strict=True):
        assert error is not None
        assert error[0] == kind, error
        assert re.search(text, error[1]), error[1]
        assert seconds < SECONDS
