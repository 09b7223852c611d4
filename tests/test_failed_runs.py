"""A run that fails leaves a checkpoint of its last finished update, from which it continues exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset

from easytorch import Model
from easytorch.callbacks import EMA, Callback, EarlyStopping
from easytorch.checkpoint import rotation
from tests.loops import blobs, same_weights

X, Y = blobs(50)


class Noisy(Dataset):
    """Samples with noise of the global generators and of a private one; one of them cannot be read at first."""

    def __init__(self, broken=None):
        self.broken, self.generator = broken, torch.Generator().manual_seed(3)

    def __len__(self):
        return 50

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError("the disk is gone")
        noise = torch.randn(8) + torch.randn(8, generator=self.generator) + float(np.random.rand())
        return X[index] + 0.1 * noise, Y[index]


class Failing(Model):
    """Fails in update ``self.fails_in``, after the forward pass and the metrics."""

    fails_in = None

    def train_step(self, batch):
        result = super().train_step(batch)
        if self.state.step + 1 == self.fails_in:
            raise RuntimeError("out of memory")
        return result


def program(folder, fails_in=None, broken=None, callbacks=(), **options):
    torch.manual_seed(1)
    np.random.seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 4))
    metrics = ["accuracy", torchmetrics.F1Score(task="multiclass", num_classes=4)]
    model = Failing(net, device="cpu").compile("adam", "cross_entropy", metrics, **options)
    model.fails_in = fails_in
    loader = DataLoader(Noisy(broken), batch_size=8, shuffle=True)
    model.fit(loader, epochs=2, validation_data=(X, Y), callbacks=[EMA(0.9), *callbacks], resume=folder, verbose=0)
    return model


def saved_step(folder):
    return int(max(rotation.list_checkpoints(folder)).stem.removeprefix("step-"))


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulation"])
def test_a_failed_update_loses_nothing(options, tmp_path):
    expected = program(tmp_path / "undisturbed", **options)
    for step in (2, 4, expected.state.step // 2 + 2, expected.state.step):
        folder = tmp_path / str(step)
        with pytest.raises(RuntimeError, match="out of memory"):
            program(folder, fails_in=step, **options)
        assert saved_step(folder) == step - 1
        resumed = program(folder, **options)
        assert same_weights(resumed.module, expected.module), step
        assert resumed.history.history == expected.history.history


def test_data_that_cannot_be_read_loses_nothing(tmp_path):
    expected = program(tmp_path / "undisturbed")
    with pytest.raises(OSError, match="the disk is gone"):
        program(tmp_path / "run", broken=13)
    assert same_weights(program(tmp_path / "run").module, expected.module)


class FailOnce(Callback):
    def __init__(self, hook, step):
        self.step = step
        setattr(self, hook, self.fail)

    def fail(self, *_):
        if self.model.state.step == self.step:
            raise ValueError("a mistake in a hook")


@pytest.mark.parametrize(
    ("hook", "step"), [("on_test_begin", 7), ("on_test_batch_end", 14), ("on_train_batch_begin", 10)]
)
def test_a_failed_hook_loses_no_finished_update(hook, step, tmp_path):
    def best():
        return EarlyStopping("val_loss", patience=9, restore_best_weights=True)

    expected = program(tmp_path / "undisturbed", callbacks=[best()])
    with pytest.raises(ValueError, match="a mistake"):
        program(tmp_path / "run", callbacks=[best(), FailOnce(hook, step)])
    assert saved_step(tmp_path / "run") == step
    resumed = program(tmp_path / "run", callbacks=[best()])
    assert same_weights(resumed.module, expected.module)
    assert resumed.history.history == expected.history.history


class FailInStep(torch.optim.SGD):
    count = 0

    def step(self, closure=None):
        self.count += 1
        if self.count == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            raise RuntimeError("in the middle of the step")
        return super().step(closure)


def test_weights_that_an_optimizer_left_half_updated_are_not_saved(tmp_path):
    model = Model(nn.Linear(8, 4), device="cpu")
    model.compile(lambda parameters: FailInStep(parameters, lr=0.1), "cross_entropy")
    with pytest.raises(RuntimeError, match="in the middle"):
        model.fit(X, Y, batch_size=10, resume=tmp_path, verbose=0)
    assert rotation.list_checkpoints(tmp_path) == []
