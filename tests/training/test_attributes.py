"""What a user adds to a model is part of its files and of a resumed run."""

from __future__ import annotations

import copy
import random
import signal
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from easytorch import Model, ResumeError
from easytorch.callbacks import Callback, LambdaCallback, LRScheduler, ReduceLROnPlateau
from tests.loops import blobs, same_weights

X, Y = blobs(32)
EPOCHS = 3  # of four updates


def interrupt(model, step):
    """Return a callback that presses Ctrl-C in update ``step``, counted from 1; None does not."""

    def press(*_):
        if model.state.step + 1 == step:
            signal.raise_signal(signal.SIGINT)

    return LambdaCallback(on_train_batch_begin=press)


def network():
    torch.manual_seed(1)
    random.seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def run(model, folder, stop=None, callbacks=(), epochs=EPOCHS):
    model.fit(
        X, Y, batch_size=8, epochs=epochs, callbacks=[*callbacks, interrupt(model, stop)], resume=folder, verbose=0,
        on_interrupt="return",
    )  # fmt: skip
    return model


def assert_resumes(program, tmp_path, stops=(1, 4, 6, 9)):
    """Assert that a run of ``program(folder, stop)`` ends with the weights of an undisturbed run after each stop."""
    expected = program(tmp_path / "undisturbed", None)
    for stop in stops:
        program(tmp_path / str(stop), stop)
        resumed = program(tmp_path / str(stop), None)
        assert same_weights(resumed.module, expected.module), stop
    return expected, resumed


# One kind of attribute each: made in __init__, used and changed in a step, where it changes the loss.


class Kinds:
    """Each method returns the initial value of ``self.held``; ``use_...`` changes it and returns a number."""

    @staticmethod
    def tensor():
        return torch.zeros(3)

    @staticmethod
    def use_tensor(held, step):
        held.mul_(0.9).add_(step)
        return held.sum()

    number = staticmethod(lambda: 1.0)
    array = staticmethod(lambda: np.zeros(3))
    generator = staticmethod(lambda: torch.Generator().manual_seed(3))
    python_generator = staticmethod(lambda: random.Random(3))
    deque_of_tensors = staticmethod(lambda: deque(maxlen=5))
    nested = staticmethod(lambda: {"a": [1.0], "b": (2.0, {"c": 3.0})})
    module = staticmethod(lambda: nn.Linear(1, 1))
    hidden = staticmethod(lambda: None)

    @staticmethod
    def use_array(held, step):
        held += step
        return float(held.sum())

    @staticmethod
    def use_generator(held, step):
        return torch.rand((), generator=held)

    @staticmethod
    def use_python_generator(held, step):
        return held.random()

    @staticmethod
    def use_deque_of_tensors(held, step):
        held.append(torch.full((2,), float(step)))
        return sum(value.sum() for value in held)

    @staticmethod
    def use_nested(held, step):
        held["a"].append(float(step))
        held["b"] = (held["b"][0] * 0.9, {"c": held["b"][1]["c"] + 1})
        return sum(held["a"]) + held["b"][0] + held["b"][1]["c"]

    @staticmethod
    def use_module(held, step):
        with torch.no_grad():
            held.weight.mul_(0.9).add_(0.1)
        return held.weight.sum().item()


KINDS = [name for name in vars(Kinds) if not name.startswith(("_", "use_"))]


class Keeper(Model):
    def __init__(self, kind, place):
        super().__init__(network(), device="cpu")
        self.kind, self.place = kind, place
        owner = self.owner()
        owner.held = getattr(Kinds, kind)()

    def owner(self):
        if self.place == "object" and "box" not in vars(self):
            self.box = Box()
        return {"model": self, "module": self.module[0], "object": vars(self).get("box")}[self.place]

    def train_step(self, batch):
        owner, step = self.owner(), self.state.step
        if self.kind == "number":
            owner.held *= 0.9
            value = owner.held
        elif self.kind == "hidden":
            owner.held = (torch.ones(2) if owner.held is None else 0.5 * owner.held[0] + step, step)
            value = owner.held[0].sum()
        else:
            value = getattr(Kinds, f"use_{self.kind}")(owner.held, step)
        result = super().train_step(batch)
        return {"loss": result["loss"] * (1 + 0.1 * value)}


class Box:
    """An object of the user."""


@pytest.mark.parametrize("place", ["model", "module", "object"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_is_resumed(kind, place, tmp_path):
    if (kind, place) == ("module", "module"):
        pytest.skip("a module in a module is part of its state dict")

    def program(folder, stop):
        return run(Keeper(kind, place).compile("sgd", nn.CrossEntropyLoss(), lr=0.05), folder, stop)

    assert_resumes(program, tmp_path, stops=(1, 4, 6))


class Second(Model):
    """Trains a second network with its own optimizer and schedule."""

    def __init__(self):
        super().__init__(network(), device="cpu")
        self.critics = {"one": nn.Linear(8, 4)}
        self.optimizers = [torch.optim.Adam(self.critics["one"].parameters(), lr=0.05)]
        self.schedulers = (lr_scheduler.StepLR(self.optimizers[0], 2, gamma=0.5),)
        self.scale = 1.0

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        loss = self.loss(self.critics["one"](x), y)
        gradients = torch.autograd.grad(loss, list(self.critics["one"].parameters()))
        for parameter, gradient in zip(self.critics["one"].parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizers[0].step()
        self.schedulers[0].step()
        self.scale *= 0.9
        return {
            "loss": self.loss(self(x), y) + self.scale * (self(x) - self.critics["one"](x).detach()).square().mean()
        }


def second(folder, stop):
    return run(Second().compile("sgd", nn.CrossEntropyLoss(), lr=0.1), folder, stop)


def test_a_second_network_with_optimizer_and_schedule_is_resumed(tmp_path):
    assert_resumes(second, tmp_path)


def test_save_and_load_keep_what_the_user_added(tmp_path):
    model = second(tmp_path / "run", None)
    model.save(tmp_path / "model.pt")
    loaded = Second().load(tmp_path / "model.pt")
    assert same_weights(loaded.critics["one"], model.critics["one"])
    assert loaded.scale == model.scale
    assert loaded.optimizers[0].state_dict()["param_groups"] == model.optimizers[0].state_dict()["param_groups"]
    assert loaded.schedulers[0].last_epoch == model.schedulers[0].last_epoch
    Model(network(), device="cpu").load(tmp_path / "model.pt")  # without these attributes


def test_a_checkpoint_of_a_run_is_loaded_with_what_the_user_added(tmp_path):
    model = second(tmp_path / "run", None)
    loaded = Second().load(tmp_path / "run")
    assert same_weights(loaded.critics["one"], model.critics["one"])
    assert loaded.scale == model.scale


def test_a_setting_that_no_fit_changes_is_that_of_the_program(tmp_path):
    class Weighted(Model):
        factor, names = 2.0, None

    first = Weighted(network(), device="cpu").compile("sgd", "cross_entropy")
    first.factor, first.names = 2.0, ["a"]
    run(first, tmp_path, stop=6)
    again = Weighted(network(), device="cpu").compile("sgd", "cross_entropy")
    again.factor, again.names = 3.0, ["b"]
    run(again, tmp_path)
    assert (again.factor, again.names) == (3.0, ["b"])


class CountingCallback(Callback):
    """Has a state, but no state_dict."""

    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        with torch.no_grad():
            self.model.module[0].weight.add_(1e-3 * self.count)


def test_a_callback_without_state_dict_is_resumed(tmp_path):
    def program(folder, stop):
        return run(Model(network(), device="cpu").compile("sgd", "cross_entropy"), folder, stop, [CountingCallback()])

    assert_resumes(program, tmp_path)


class Rows(Model):
    """Reads something else than its data."""

    def __init__(self):
        super().__init__(network(), device="cpu")
        self.rows = iter(range(100))


def test_what_cannot_be_stored_is_named_before_training(tmp_path):
    model = Rows().compile("sgd", "cross_entropy")
    with pytest.warns(UserWarning, match=r"A checkpoint cannot hold rows \(range_iterator\)"):
        run(model, tmp_path, epochs=1)


class Late(Model):
    """Creates its second optimizer in the first step."""

    critic = None

    def train_step(self, batch):
        if self.critic is None:
            self.critic = nn.Linear(8, 4)
        return super().train_step(batch)


def test_a_module_that_is_made_while_training_is_an_error(tmp_path):
    run(Late(network(), device="cpu").compile("sgd", "cross_entropy"), tmp_path, stop=2)
    with pytest.raises(ResumeError, match=r"critic cannot be restored: .*create it in __init__"):
        run(Late(network(), device="cpu").compile("sgd", "cross_entropy"), tmp_path)


def test_settings_of_layers_that_a_callback_changes_are_resumed(tmp_path):
    def program(folder, stop):
        net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        net.load_state_dict(network().state_dict())
        model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)

        def lower(epoch, logs):
            net[1].p /= 2

        return run(model, folder, stop, [LambdaCallback(on_epoch_end=lower)])

    assert_resumes(program, tmp_path)


# Parameter groups


class Unfreeze(Callback):
    """Adds the first layer to the optimizer in epoch 1."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            layer = self.model.module[0].requires_grad_(True)
            self.model.optimizer.add_param_group({"params": layer.parameters(), "lr": 0.01})


def test_a_parameter_group_that_a_callback_adds_is_resumed(tmp_path):
    def program(folder, stop):
        net = network()
        net[0].requires_grad_(False)
        model = Model(net, device="cpu").compile(torch.optim.Adam(net[2].parameters(), lr=0.05), "cross_entropy")
        return run(model, folder, stop, [Unfreeze()])

    expected, resumed = assert_resumes(program, tmp_path, stops=(2, 4, 5, 6, 9, 11))
    assert len(resumed.optimizer.param_groups) == 2
    assert resumed.history["lr_1"] == expected.history["lr_1"]


# Optimizers and schedulers of other libraries


class Lookahead(torch.optim.Optimizer):
    """Averages the weights of another optimizer every two updates; its state dict has a custom form."""

    def __init__(self, base):
        self.base, self.count = base, 0
        self.slow = [p.detach().clone() for group in base.param_groups for p in group["params"]]
        super().__init__(base.param_groups, {})
        self.param_groups = base.param_groups

    def step(self, closure=None):
        self.base.step()
        self.count += 1
        if self.count % 2 == 0:
            parameters = (p for group in self.base.param_groups for p in group["params"])
            for slow, p in zip(self.slow, parameters, strict=True):
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)

    def state_dict(self):
        return {"base": self.base.state_dict(), "slow": self.slow, "count": self.count}

    def load_state_dict(self, state):
        self.base.load_state_dict(state["base"])
        self.param_groups, self.count = self.base.param_groups, state["count"]
        for slow, value in zip(self.slow, state["slow"], strict=True):
            slow.copy_(value)


def test_an_optimizer_with_a_state_dict_of_its_own_is_resumed(tmp_path):
    def program(folder, stop):
        def make(parameters):
            return Lookahead(torch.optim.Adam(parameters, lr=0.05))

        return run(Model(network(), device="cpu").compile(make, "cross_entropy"), folder, stop)

    _, resumed = assert_resumes(program, tmp_path)
    resumed.save(tmp_path / "model.pt")
    loaded = Model(network(), device="cpu").compile(lambda p: Lookahead(torch.optim.Adam(p, lr=0.05)), "cross_entropy")
    assert loaded.load(tmp_path / "model.pt").optimizer.count == 12


class Noam:
    """The schedule of "Attention is all you need", of no torch class."""

    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0
        self.step()

    def step(self):
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * min(self.count**-0.5, self.count * 4**-1.5)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_scheduler_of_no_torch_class_is_resumed(tmp_path):
    def program(folder, stop):
        model = Model(network(), device="cpu")
        model.compile("sgd", "cross_entropy", lr=0.1, scheduler=LRScheduler(Noam, "update"))
        return run(model, folder, stop)

    expected, resumed = assert_resumes(program, tmp_path)
    assert resumed.history["lr"] == expected.history["lr"]


class Stateless:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        """Do nothing."""


class ByEpoch(Noam):
    def step(self, epoch=None, *, metric):
        """Take arguments, as the schedulers of timm do."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [(Stateless, r"Stateless has no state_dict\(\)"), (ByEpoch, r"ByEpoch.step\(.*needs arguments")],
)
def test_a_scheduler_that_cannot_be_kept_is_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        Model(network(), device="cpu").compile("sgd", "cross_entropy", scheduler=LRScheduler(scheduler, "update"))


def test_a_scheduler_of_no_torch_class_undoes_a_plateau():
    model = Model(network(), device="cpu").compile("sgd", "cross_entropy", scheduler=LRScheduler(Noam, "update"))
    with pytest.raises(ValueError, match="both control the learning rate"):
        model.fit(X, Y, callbacks=[ReduceLROnPlateau("loss")], verbose=0)


def test_a_copy_of_a_model_has_attributes_of_its_own():
    model = Keeper("number", "model").compile("sgd", nn.CrossEntropyLoss())
    twin = copy.deepcopy(model)
    twin.fit(X, Y, verbose=0)
    assert twin.held != model.held == 1.0
    assert twin.attribute_state.model is twin
