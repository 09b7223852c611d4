"""Time of each phase of an epoch, and advice about slow data."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from easytorch import Model
from easytorch._utils.timer import PARTS, Timer, compute_fractions
from easytorch.data.epoch_iterator import EpochIterator
from tests.loops import blobs, mlp

X, Y = blobs(48)
CPU = torch.device("cpu")


class Slow(Dataset):
    """A dataset that takes 30 ms per sample."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(0.03)
        return X[index], Y[index]


class SlowModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        time.sleep(0.03)
        return self.net(x)


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(0.03)
        return super().step(closure)


def fit_history(net, data, optimizer="sgd", epochs=1, **options):
    model = Model(net, device="cpu").compile(optimizer, "cross_entropy")
    return model.fit(data, epochs, **{"verbose": 0} | options)


def test_a_timer_assigns_every_second_to_one_phase():
    timer = Timer()
    time.sleep(0.02)
    timer.mark("data")
    time.sleep(0.01)
    seconds = timer.read()
    assert set(seconds) == set(PARTS)
    assert seconds["data"] >= 0.02
    assert seconds["rest"] >= 0.01
    assert sum(compute_fractions(seconds).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("phase", "net", "data", "optimizer"),
    [
        ("data", mlp(), DataLoader(Slow(), 4), "sgd"),
        ("model", SlowModule(), DataLoader(TensorDataset(X, Y), 8), "sgd"),
        ("optimizer", mlp(), DataLoader(TensorDataset(X, Y), 8), lambda p: SlowSGD(p, lr=0.1)),
    ],
)
def test_the_slow_phase_has_the_largest_share(phase, net, data, optimizer):
    (fractions,) = fit_history(net, data, optimizer).time_fractions
    assert max(fractions, key=fractions.get) == phase
    assert sum(fractions.values()) == pytest.approx(1)


def test_validation_is_a_phase_if_it_runs():
    assert "validation" not in fit_history(mlp(), (X, Y)).time_fractions[0]
    (fractions,) = fit_history(mlp(), (X, Y), validation_data=DataLoader(Slow(), 4)).time_fractions
    assert max(fractions, key=fractions.get) == "validation"


def test_a_resumed_run_has_the_seconds_of_every_epoch(tmp_path):
    first = fit_history(mlp(), (X, Y), epochs=2, resume=tmp_path)
    assert len(first.seconds) == 2
    resumed = fit_history(mlp(), (X, Y), epochs=3, resume=tmp_path)
    assert len(resumed.seconds) == len(resumed.epoch) == 3
    assert resumed.seconds[:2] == first.seconds[:2]


def test_a_custom_update_is_measured():
    class CustomUpdate(Model):
        def update(self, window):
            outputs = self.strategy.run(self.train_step, window[0])
            self.strategy.backward(outputs["loss"])
            self.strategy.step(self.optimizer)
            self.optimizer.zero_grad()
            self.metrics.record(outputs, 8)

    model = CustomUpdate(SlowModule(), device="cpu").compile("sgd", "cross_entropy")
    (fractions,) = model.fit(DataLoader(TensorDataset(X, Y), 8), verbose=0).time_fractions
    assert max(fractions, key=fractions.get) == "model"


def test_slow_data_gives_advice_once(capsys, monkeypatch):
    monkeypatch.setattr(Slow, "__len__", lambda self: 40)
    monkeypatch.setattr("easytorch.callbacks.advice.AdviseOnSlowData.MIN_SECONDS", 0.2)
    fit_history(mlp(), DataLoader(Slow(), 4), epochs=2, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # with the line at the end of the fit
    assert lines[1].startswith("Waiting for data took 9")
    assert "easytorch.data.in_memory(dataset)" in lines[1]
    assert "num_workers=2" in lines[1]


def test_fast_data_gives_no_advice(capsys):
    fit_history(mlp(), DataLoader(Slow(), 4), verbose=2)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_advice_fits_the_data():
    # A TensorDataset is sliced already.
    assert EpochIterator(DataLoader(TensorDataset(X, Y), 8)).data_loading_advice(CPU) is None
    assert "num_workers=4" in EpochIterator(DataLoader(Slow(), 4, num_workers=2)).data_loading_advice(CPU)
    assert "DataLoader" in EpochIterator([(X, Y)]).data_loading_advice(CPU)
    assert "pin_memory" in EpochIterator(DataLoader(Slow(), 4)).data_loading_advice(torch.device("meta"))
    assert "pin_memory" not in EpochIterator(DataLoader(Slow(), 4)).data_loading_advice(CPU)
