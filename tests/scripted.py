"""A tiny model and scripted callbacks for the tests of callbacks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from easytorch import Model
from easytorch.callbacks import Callback, LambdaCallback
from tests.loops import blobs

X, Y = blobs(48)
VALIDATION = (X[:16], Y[:16])
# Updates of an epoch: 48 samples in batches of 16.
UPDATES = 3
NAN = float("nan")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def new_model(make=lambda: nn.Linear(8, 3), optimizer=sgd, **options):
    torch.manual_seed(0)
    return Model(make(), device="cpu").compile(optimizer, "cross_entropy", **options)


def train(model, epochs, *callbacks, **options):
    options = {"validation_data": VALIDATION, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, batch_size=16, callbacks=callbacks, **options)


def loss_of(net, x=VALIDATION[0], y=VALIDATION[1]):
    with torch.no_grad():
        return F.cross_entropy(net.eval()(x), y).item()


class Scripted(Callback):
    """Logs one of the given values in each epoch. None removes the value."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        for name, values in self.values.items():
            logs[name] = values[epoch]
            if values[epoch] is None:
                del logs[name]


class Weights(Callback):
    """Copies the weights at the end of every epoch or update."""

    def __init__(self, every="epoch"):
        self.every, self.copies = every, []

    def on_train_batch_end(self, batch, logs=None):
        if self.every == "update":
            self.copy()

    def on_epoch_end(self, epoch, logs=None):
        if self.every == "epoch":
            self.copy()

    def copy(self):
        self.copies.append({name: value.clone() for name, value in self.model.module.state_dict().items()})


class Rates(Callback):
    """Records the learning rate of every update."""

    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self):
        self.used.append(self.model.optimizer.param_groups[0]["lr"])


class Fragile(nn.Linear):
    """A layer that can raise an error in training or in evaluation."""

    breaks_in = ""

    def __init__(self):
        super().__init__(8, 3)

    def forward(self, x):
        if self.breaks_in == ("training" if self.training else "evaluation"):
            raise RuntimeError("the module broke")
        return super().forward(x)


def breaking(epoch, where):
    """Break a ``Fragile`` module at the start of ``epoch``."""

    def break_it(number, logs):
        if number == epoch:
            callback.model.module.breaks_in = where

    callback = LambdaCallback(on_epoch_begin=break_it)
    return callback


def raising(hook, at=None, error=None):
    """Raise in ``hook``, at the epoch or batch ``at`` if it is given."""

    def fail(*arguments):
        if at is None or arguments[0] == at:
            raise error or RuntimeError(f"{hook} failed")

    return LambdaCallback(**{hook: fail})


def equal(first, second):
    """Return whether two state dicts are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first, second):
    """Raise unless two state dicts are equal up to rounding."""
    torch.testing.assert_close(dict(first), dict(second), rtol=1e-5, atol=1e-6)


def mean_of(copies):
    """Return the mean of state dicts."""
    return {name: torch.stack([copy[name] for copy in copies]).mean(0) for name in copies[0]}
