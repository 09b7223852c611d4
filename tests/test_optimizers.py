"""Optimizers by name are the fast ones, and do what torch's default ones do."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.optimizers import TABLE
from tests.loops import blobs, mlp, twins

X, Y = blobs(64)
SPECIAL = {"sparseadam", "muon"}  # for sparse gradients; for matrices only


@pytest.mark.parametrize("name", sorted(set(TABLE) - SPECIAL))
def test_an_optimizer_by_name_is_torchs_default_within_float_tolerance(name):
    ours, theirs = twins(mlp())
    Model(ours, device="cpu").compile(name, "cross_entropy").fit(
        X, Y, epochs=5, batch_size=16, shuffle=False, verbose=0
    )
    optimizer = TABLE[name](theirs.parameters())
    for _ in range(5):
        for x, y in zip(X.split(16), Y.split(16), strict=True):
            nn.functional.cross_entropy(theirs(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


FUSED = sorted(name for name in TABLE if "fused" in inspect.signature(TABLE[name]).parameters and name != "sgd")


@pytest.mark.parametrize("name", FUSED)
def test_an_optimizer_that_torch_has_fused_is_fused(name):
    assert Model(mlp(), device="cpu").compile(name, "cross_entropy").optimizer.defaults["fused"] is True


def test_plain_sgd_by_name_is_that_of_the_hand_written_loop_to_the_last_bit():
    optimizer = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.1).optimizer
    assert not optimizer.defaults["fused"]  # without momentum the plain one is faster on a CPU
    assert not optimizer.defaults["foreach"]


class Counting(torch.optim.SGD):
    """Does something of its own when it forgets the gradients."""

    forgotten = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.forgotten += 1
        super().zero_grad(set_to_none)


def test_gradients_are_forgotten_by_the_optimizers_own_way_where_it_has_one():
    x, y = blobs(20)
    module = mlp()
    optimizer = Counting(module.parameters(), lr=0.1)
    Model(module).compile(optimizer, "cross_entropy").fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert optimizer.forgotten >= 10
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_replaced_zero_grad_is_called():
    x, y = blobs(20)
    module, calls = mlp(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.zero_grad = lambda: calls.append(1) or torch.optim.SGD.zero_grad(optimizer)
    Model(module).compile(optimizer, "cross_entropy").fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert len(calls) >= 10
