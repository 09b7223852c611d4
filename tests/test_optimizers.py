"""Optimizers by name: fast implementations with the results of torch's defaults."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.optimizers import TABLE
from tests.loops import blobs, mlp, same_weights, twins

X, Y = blobs(64)
# SparseAdam needs sparse gradients, Muon matrices.
SPECIAL = {"sparseadam", "muon"}


@pytest.mark.parametrize("name", sorted(set(TABLE) - SPECIAL))
def test_an_optimizer_by_name_equals_torchs_default(name):
    named, default = twins(mlp())
    Model(named, device="cpu").compile(name, "cross_entropy").fit(
        X, Y, epochs=5, batch_size=16, shuffle=False, verbose=0
    )
    optimizer = TABLE[name](default.parameters())
    for _ in range(5):
        for x, y in zip(X.split(16), Y.split(16), strict=True):
            nn.functional.cross_entropy(default(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for actual, expected in zip(named.parameters(), default.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


FUSED = sorted(name for name in TABLE if "fused" in inspect.signature(TABLE[name]).parameters and name != "sgd")


@pytest.mark.parametrize("name", FUSED)
def test_fused_implementations_are_used(name):
    assert Model(mlp(), device="cpu").compile(name, "cross_entropy").optimizer.defaults["fused"] is True


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # from Adagrad
def test_modules_with_sparse_gradients_are_trained(name):
    named, default = twins(nn.EmbeddingBag(100, 2, sparse=True))
    words, y = torch.randint(100, (64, 5)), Y % 2
    Model(named, device="cpu").compile(name, "cross_entropy").fit(words, y, batch_size=64, verbose=0)
    optimizer = TABLE[name](default.parameters())
    nn.functional.cross_entropy(default(words), y).backward()
    optimizer.step()
    torch.testing.assert_close(named.weight, default.weight)


def test_plain_sgd_equals_the_hand_written_loop_bit_for_bit():
    optimizer = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.1).optimizer
    assert not optimizer.defaults["fused"]
    assert not optimizer.defaults["foreach"]


class CustomOptimizer(torch.optim.Optimizer):
    """Has state of unusual shapes and types."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.05})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["seen"] = [*state.get("seen", []), 1.0]
            state["speed"] = 0.9 * state.get("speed", torch.zeros(1)) + parameter.grad.abs().mean()
            parameter.data.sub_(0.05 * state["speed"] * parameter.grad.sign())


def test_a_custom_optimizer_is_resumed_and_loaded(tmp_path):
    def run(epochs, **options):
        torch.manual_seed(0)
        model = Model(mlp(), device="cpu").compile(CustomOptimizer, "cross_entropy")
        model.fit(X, Y, epochs=epochs, verbose=0, **options)
        return model

    uninterrupted = run(3)
    run(1, resume=tmp_path)
    resumed = run(3, resume=tmp_path)
    assert same_weights(resumed.module, uninterrupted.module)
    loaded = Model(mlp(), device="cpu").compile(CustomOptimizer, "cross_entropy").load(tmp_path)
    assert loaded.optimizer.state_dict() == resumed.optimizer.state_dict()


def test_the_state_of_lbfgs_is_loaded(tmp_path):
    def closure():
        loss = model.module(X).square().mean()
        model.optimizer.zero_grad()
        loss.backward()
        return loss

    def compiled_model():
        return Model(mlp(), device="cpu").compile(torch.optim.LBFGS, "cross_entropy")

    model = compiled_model()
    model.optimizer.step(closure)
    other = compiled_model().load(model.save(tmp_path / "model.pt"))
    assert other.optimizer.state_dict()["state"][0].keys() == model.optimizer.state_dict()["state"][0].keys()
