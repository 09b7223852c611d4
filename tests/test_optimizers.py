"""Optimizers by name are the fast ones, and do what torch's default ones do."""

from __future__ import annotations

import functools
import importlib
import inspect

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.optimizers import TABLE, step, zero_grad
from tests.loops import blobs, mlp, same_weights, twins

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


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch tells it of its own Adagrad
def test_a_module_with_sparse_gradients_is_trained_by_name(name):
    ours, theirs = twins(nn.EmbeddingBag(100, 2, sparse=True))
    words, y = torch.randint(100, (64, 5)), Y % 2
    Model(ours, device="cpu").compile(name, "cross_entropy").fit(words, y, batch_size=64, verbose=0)
    optimizer = TABLE[name](theirs.parameters())
    nn.functional.cross_entropy(theirs(words), y).backward()
    optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


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


def steps_of(prepare):
    """Return how often something that ``prepare(optimizer, calls)`` has put into an optimizer was called in ten updates."""
    x, y = blobs(20)
    module, calls = mlp(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    undo = prepare(optimizer, calls)
    try:
        Model(module).compile(optimizer, "cross_entropy").fit(x, y, batch_size=4, epochs=2, verbose=0)
    finally:
        if hasattr(undo, "remove"):
            undo.remove()
    return len(calls)


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_of_an_optimizer_are_called(register):
    assert steps_of(lambda optimizer, calls: getattr(optimizer, register)(lambda *_: calls.append(1))) == 10


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_of_all_optimizers_are_called(register):
    engine = importlib.import_module("torch.optim.optimizer")  # which torch.optim hides
    assert steps_of(lambda optimizer, calls: getattr(engine, register)(lambda *_: calls.append(1))) == 10


def test_a_replaced_step_is_called():
    def replace(optimizer, calls):
        optimizer.step = lambda: calls.append(1)

    assert steps_of(replace) == 10


def test_a_step_that_somebody_wrapped_for_the_whole_class_is_called(monkeypatch):
    def wrap(optimizer, calls):
        original = torch.optim.SGD.step

        @functools.wraps(original)  # which makes it look like torch's own
        def step(self, closure=None):
            calls.append(1)
            return original(self, closure)

        monkeypatch.setattr(torch.optim.SGD, "step", step)

    assert steps_of(wrap) == 10


def test_a_profiler_sees_every_update():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert steps_of(lambda optimizer, calls: None) == 0
    notes = {event.key: event.count for event in profile.key_averages()}
    assert notes["Optimizer.step#SGD.step"] == 10


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"sparseadam"}))  # which is for sparse gradients
def test_a_step_is_that_of_the_optimizer(name):
    def weights(step):
        torch.manual_seed(0)
        module = torch.nn.Linear(6, 4, bias=name != "muon")
        optimizer = TABLE[name](module.parameters())
        for _ in range(3):
            module(torch.ones(2, 6)).square().sum().backward()
            step(optimizer)
            zero_grad(optimizer)
        return module.weight

    assert torch.equal(weights(step), weights(lambda optimizer: optimizer.step()))


class OfSomebodyElse(torch.optim.Optimizer):
    """Keeps states in shapes and kinds of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.05})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["seen"] = [*state.get("seen", []), 1.0]
            state["speed"] = 0.9 * state.get("speed", torch.zeros(1)) + parameter.grad.abs().mean()
            parameter.data.sub_(0.05 * state["speed"] * parameter.grad.sign())


def test_a_run_with_an_optimizer_of_somebody_else_is_resumed_and_loaded(tmp_path):
    def run(epochs, **options):
        torch.manual_seed(0)
        model = Model(mlp(), device="cpu").compile(OfSomebodyElse, "cross_entropy")
        model.fit(X, Y, epochs=epochs, verbose=0, **options)
        return model

    undisturbed = run(3)
    run(1, resume=tmp_path)
    resumed = run(3, resume=tmp_path)
    assert same_weights(resumed.module, undisturbed.module)
    loaded = Model(mlp(), device="cpu").compile(OfSomebodyElse, "cross_entropy").load(tmp_path)
    assert loaded.optimizer.state_dict() == resumed.optimizer.state_dict()


def test_the_state_of_lbfgs_is_loaded(tmp_path):
    def closure():
        loss = model.module(X).square().mean()
        model.optimizer.zero_grad()
        loss.backward()
        return loss

    def compiled():
        return Model(mlp(), device="cpu").compile(torch.optim.LBFGS, "cross_entropy")

    model = compiled()
    model.optimizer.step(closure)
    other = compiled().load(model.save(tmp_path / "model.pt"))
    assert other.optimizer.state_dict()["state"][0].keys() == model.optimizer.state_dict()["state"][0].keys()
