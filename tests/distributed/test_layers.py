"""Layers and weights that DDP and FSDP treat in a special way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import Callback
from tests.many import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

X, Y = torch.randn(48, 8, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
TOKENS = torch.randint(20, (48, 5), generator=torch.Generator().manual_seed(1))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(20, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.out(self.bag(tokens))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 3, dtype=torch.cfloat))

    def forward(self, x):
        return (x.to(torch.cfloat) @ self.w).abs()


class Thaw(Callback):
    def __init__(self, epoch, requires_grad):
        self.epoch, self.requires_grad = epoch, requires_grad

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.module[0].requires_grad_(self.requires_grad)


def train(kind, size, count=48):
    """Return the sums of the weights after training."""
    torch.manual_seed(1)
    callbacks, epochs, x = [], 2, X
    if kind == "sparse":
        net, x = Bag(), TOKENS
    elif kind == "complex":
        net = Complex()
    else:
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        net[0].requires_grad_(kind == "freeze")
        callbacks, epochs = [Thaw(1, kind == "unfreeze")], 3
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.5)
    model.fit(x[:count], Y[:count], epochs=epochs, batch_size=size, shuffle=False, callbacks=callbacks, verbose=0)
    return [parameter.detach().abs().double().sum().item() for parameter in net.parameters()]


@pytest.mark.parametrize("kind", ["sparse", "complex", "unfreeze", "freeze"])
@pytest.mark.parametrize("count", [48, 42], ids=["even", "a rank without a batch"])
def test_two_processes_equal_one(kind, count):
    expected = train(kind, 12, count)
    for sums in run_ranks(train, kind, 6, count):
        assert sums == pytest.approx(expected, rel=1e-5)


def train_tied(strategy, size):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32), nn.Linear(32, 64, bias=False))
    net[2].weight = net[0].weight
    if strategy == "fsdp":
        from easytorch import FullySharded

        strategy = FullySharded(unit=100)
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", strategy=strategy, lr=0.1)
    tokens = TOKENS[:12, 0] * 3
    model.fit(tokens, tokens, epochs=2, batch_size=size, shuffle=False, verbose=0)
    return {name: value.clone() for name, value in model.state_dict()["module"].items()}


def test_weights_tied_between_two_blocks_are_sharded_together():
    expected = train_tied("one", 6)
    for weights in run_ranks(train_tied, "fsdp", 3):
        for name, value in expected.items():
            assert torch.allclose(weights[name], value, atol=1e-6)
