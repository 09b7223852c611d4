"""Runs of two processes that stop and continue: what callbacks and modules have changed comes back."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from easytorch.callbacks import BackupAndRestore, Callback, EarlyStopping, LRScheduler
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.distributed.test_fault_programs import SIZE, Noam, X, Y, mlp, new_model, results_of
from tests.many import furthest, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STOPS = (3, 4, 6, 8, 9)  # of 12 updates: in each epoch, and at the end of two


class Unfreeze(Callback):
    """Trains the first layer from epoch 1 on."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.module[0].requires_grad_(True)


class FreezeStatistics(Callback):
    """Puts BatchNorm into eval mode in epoch 1."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.module[1].eval()


class AddGroup(Callback):
    """Adds the first layer to the optimizer in epoch 1."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            parameters = list(self.model.module[0].parameters())
            self.model.optimizer.add_param_group({"params": parameters, "lr": 0.02})


def frozen_net():
    net = mlp()
    net[0].requires_grad_(False)
    return net


def normalized_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double()


class CompiledPart(nn.Module):
    def __init__(self, compiled):
        super().__init__()
        torch.manual_seed(1)
        body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.body, self.head = torch.compile(body, backend="eager") if compiled else body, nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.head(self.body(x))


class Tied(nn.Module):
    """Two large blocks with one weight, as the embedding and the head of a language model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.blocks[2].weight, self.head = self.blocks[0].weight, nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.head(self.blocks(x))


def head_only(net):
    return torch.optim.SGD(list(net[2].parameters()), lr=0.1, momentum=0.9)


def unfreeze(strategy, resumed):
    return new_model(strategy, frozen_net()), [Unfreeze()]


def freeze_statistics(strategy, resumed):
    return new_model(strategy, normalized_net()), [FreezeStatistics()]


def add_group(strategy, resumed):
    net = mlp()
    return new_model(strategy, net, optimizer=head_only(net)), [AddGroup()]


def custom_schedule(strategy, resumed):
    return new_model(strategy, scheduler=LRScheduler(Noam, "update")), []


def compile_part_after_the_stop(strategy, resumed):
    best = EarlyStopping("loss", patience=9, restore_best_weights=True)
    return new_model(strategy, CompiledPart(compiled=resumed)), [best]


PROGRAMS = (unfreeze, freeze_statistics, add_group, custom_schedule, compile_part_after_the_stop)


def run(make, strategy, folder, stop=None, resumed=False):
    torch.manual_seed(0)
    model, callbacks = make(strategy, resumed)
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    crash = [CrashAfter(stop)] if stop else []
    try:
        model.fit(X, Y, epochs=3, batch_size=SIZE, callbacks=[*callbacks, backup, *crash], verbose=0)
    except SimulatedCrash:
        return None
    return results_of(model)


def stop_everywhere(strategy, folder):
    """Return the largest difference to the undisturbed run for each program and each update at which it stops."""
    differences = {}
    for make in PROGRAMS:
        expected = run(make, strategy, folder / make.__name__)
        for stop in STOPS:
            path = folder / f"{make.__name__}-{stop}"
            run(make, strategy, path, stop)
            resumed = run(make, strategy, path, resumed=True)
            resumed = {name.replace("_orig_mod.", ""): value for name, value in resumed.items()}
            differences[make.__name__, stop] = furthest(resumed, expected)
    return differences


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_changes_of_callbacks_come_back_after_a_stop(strategy, tmp_path):
    for differences in run_ranks(stop_everywhere, strategy, tmp_path, timeout=280):
        assert len(differences) == len(PROGRAMS) * len(STOPS)
        assert {name: value for name, value in differences.items() if value} == {}


def train_tied(strategy, folder, stop=None):
    model = new_model(strategy, Tied())
    crash = [CrashAfter(stop)] if stop else []
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*differ in the last bits.*")
        try:
            model.fit(X, Y, epochs=3, batch_size=SIZE, shuffle=False, callbacks=[backup, *crash], verbose=0)
        except SimulatedCrash:
            return None
    assert model.module.blocks[0].weight is model.module.blocks[2].weight
    model.save(folder / "model.pt")
    return results_of(model)


def train_tied_in_parts(folder):
    """Return the results of undisturbed FSDP, of FSDP after a stop, and of DDP that continues what FSDP began."""
    expected = train_tied("fsdp", folder / "whole")
    for name in ("fsdp", "ddp"):
        train_tied("fsdp", folder / name, 6)
    return expected, train_tied("fsdp", folder / "fsdp"), train_tied("ddp", folder / "ddp")


def test_tied_weights_continue_under_every_strategy(tmp_path):
    one = new_model("one", Tied(), gradient_accumulation_steps=2)
    one.fit(X, Y, epochs=3, batch_size=SIZE, shuffle=False, verbose=0)
    for expected, resumed, by_ddp in run_ranks(train_tied_in_parts, tmp_path):
        assert furthest(resumed, expected) == 0
        assert furthest(by_ddp, expected) < 1e-12
        assert furthest(results_of(one), expected) < 1e-12
    loaded = new_model("one", Tied()).load(tmp_path / "fsdp" / "model.pt")
    assert furthest(results_of(loaded), expected) == 0
    assert loaded.module.blocks[0].weight is loaded.module.blocks[2].weight
