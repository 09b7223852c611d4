"""trial: training inside leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import Callback, LambdaCallback
from easytorch.training.trial import trial
from tests.loops import blobs
from tests.test_dry_run import DATA, Counts, Hidden, assert_equal

X, Y = blobs(60)


class Teacher(Model):
    """Has a second network with its optimizer, a counter and a generator."""

    def __init__(self, net):
        super().__init__(net, device="cpu")
        self.teacher, self.calls, self.seen = nn.Linear(8, 3), 0, []
        self.second = torch.optim.Adam(self.teacher.parameters(), lr=0.01)
        self.generator = torch.Generator().manual_seed(4)

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        self.calls += 1
        self.seen.append(len(x))
        self.second.zero_grad()
        nn.functional.cross_entropy(self.teacher(x + torch.rand((), generator=self.generator)), y).backward()
        self.second.step()
        y_pred = self(x)
        self.metrics.update(y_pred, y)
        return {"loss": self.loss(y_pred, y)}

    def test_step(self, batch):
        x, y, _ = self.unpack(batch)
        y_pred = self(x)
        self.metrics.update(y_pred, y)
        return {"loss": self.loss(y_pred, y)}


def change_everything(model, data):
    """Train, and change all settings that a user may change."""
    model.fit(data, epochs=2, verbose=0)
    model.train_on_batch(X[:8], Y[:8])
    model.evaluate(X, Y, verbose=0)
    model.optimizer.lr = 17.0
    model.module.eval()
    for parameter in model.module.layers[0].parameters():
        parameter.requires_grad_(False)
    model.note = "new"
    random.random(), np.random.rand(), torch.rand(1)
    model.compile("sgd", "cross_entropy", lr=5.0, channels_last=True, scheduler="cosine")
    model.fit(X, Y, verbose=0, class_weight="balanced")


def program(has_trial, data, kind, options):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = Counts()
    model = (Teacher if kind == "custom" else lambda net: Model(net, device="cpu"))(net)
    model.compile(options.pop("optimizer", "adam"), "cross_entropy", ["accuracy"], **options)
    data = DATA[data]()
    model.fit(data, verbose=0)
    if has_trial:
        before = set(vars(model))
        with trial(model, data):
            change_everything(model, data)
        assert set(vars(model)) == before
    model.fit(data, epochs=2, verbose=0)
    extra = (
        [model.calls, model.seen, model.teacher.state_dict(), model.generator.get_state()] if kind == "custom" else []
    )
    return {
        "weights": dict(net.state_dict()), "memory": net.memory, "counts": (net.calls, net.sizes), "extra": extra,
        "optimizer": model.optimizer.state_dict(), "logs": dict(model.history.history), "state": vars(model.state),
        "random": [random.random(), np.random.rand(), torch.rand(1)], "scores": list(model.evaluate(verbose=0)),
        "requires_grad": [p.requires_grad for p in net.parameters()], "modes": [m.training for m in net.modules()],
    }  # fmt: skip


PARTS = {"layers.0": ("sgd", {"lr": 0.1, "momentum": 0.9}), "*": "adam"}


@pytest.mark.parametrize("data", DATA)
def test_training_after_a_trial_is_equal_bit_for_bit(data):
    assert_equal(*[program(has_trial, data, "plain", {}) for has_trial in (False, True)])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {"optimizer": PARTS, "gradient_accumulation_steps": 2}),
        ("plain", {"scheduler": "one_cycle", "clip_grad_norm": 0.1}),
        ("custom", {"scheduler": "warmup_cosine"}),
        ("plain", {"optimizer": "lbfgs"}),
    ],
    ids=["groups", "scheduler", "custom", "lbfgs"],
)
def test_settings_after_a_trial_are_those_before(kind, options):
    assert_equal(*[program(has_trial, "tensors", kind, dict(options)) for has_trial in (False, True)])


def test_an_error_in_a_trial_leaves_no_trace():
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    def fail(epoch, logs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), trial(model, X, Y):
        model.fit(X, Y, verbose=0, callbacks=LambdaCallback(on_epoch_end=fail))
    assert_equal(before, dict(model.module.state_dict()))
    assert not model.optimizer.state
    assert not model.last_fit
    assert model.class_names is None
    assert repr(model.history) == repr(Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy").history)


def test_a_trial_with_text_labels_learns_no_names():
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    with trial(model, X):
        model.fit(X, np.array(["a", "b", "c"])[Y], verbose=0)
        assert list(model.class_names) == ["a", "b", "c"]
    assert model.class_names is None


def test_a_trial_restores_the_memory_format():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.rand(1, 3, 8, 8))
    model = Model(net, device="cpu").compile("sgd", "mse")
    strides, pointers = net[0].weight.stride(), net[0].weight
    with trial(model):
        model.compile("sgd", "mse", channels_last=True)
        assert net[0].weight.stride() != strides
    assert net[0].weight.stride() == strides
    assert net[0].weight is pointers


def test_a_trial_inside_a_fit_is_refused():
    class Tries(Callback):
        def on_epoch_end(self, epoch, logs=None):
            with trial(self.model):
                pass

    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(RuntimeError, match=r"The trial would change the weights that fit\(\) trains"):
        model.fit(X, Y, callbacks=Tries(), verbose=0)


def test_data_that_can_be_read_once_is_refused():
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    batches = ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 60, 8))
    with pytest.raises(ValueError, match="would use up the first batches of data"), trial(model, batches):
        pass
    with pytest.raises(ValueError, match=r"cannot restore Hidden\.rows"), trial(model, DataLoader(Hidden(), 8)):
        pass
    assert len(list(batches)) == 8


def test_the_data_of_the_last_fit_is_restored_if_it_is_passed():
    torch.manual_seed(0)
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, generator=torch.Generator().manual_seed(2))
    model.fit(loader, verbose=0)
    state = loader.generator.get_state()
    with trial(model, loader):
        model.fit(loader, verbose=0)
        assert not torch.equal(loader.generator.get_state(), state)
    assert torch.equal(loader.generator.get_state(), state)
    assert model.last_fit["training"] is loader
