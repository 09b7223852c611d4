"""Promise 1 and 3 of many processes, case by case: each group of processes is started once and runs a hundred small cases."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, FullySharded, Model
from easytorch.callbacks import BackupAndRestore, Callback, TerminateOnNaN
from tests.checkpoint.test_dcp import Watch
from tests.distributed.test_resume import PulledPlug, PullPlug
from tests.loops import blobs, mlp
from tests.many import furthest, together
from tests.strategies.test_fsdp import Blocks

X, Y = blobs(60)
X = X.double()


def rank():
    return int(os.environ.get("RANK", "0"))


# Evaluation: every number of samples, in every size of batch, is measured once

SIZES = [(count, batch_size) for count in range(1, 25) for batch_size in (1, 4, 7)]


def scores():
    """Return the number of right answers and the sum of losses for every number of samples and size of batch."""
    torch.manual_seed(0)
    model = Model(mlp().double(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy", "top_2_accuracy"])
    found = {}
    for count, size in SIZES:
        some = model.evaluate(X[:count], Y[:count], batch_size=size, verbose=0)
        found[count, size] = some["accuracy"] * count, some["top_2_accuracy"] * count, some["loss"] * count
    return found


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_number_of_samples_is_measured_as_in_one_process(processes):
    alone = scores()
    assert len(alone) == 72
    for found in together(scores, processes=processes):
        for case, (right, top, loss) in found.items():
            assert (right, top) == alone[case][:2], case
            assert math.isclose(loss, alone[case][2], rel_tol=1e-12), case


# Gradients: those of an update of all processes are those of one with a batch as large as all of theirs

WINDOWS = {  # samples, samples in a batch of each of so many processes, batches in an update
    "even": lambda processes: (24, 24 // processes // 2, 1),
    "uneven": lambda processes: (23, 5, 1),
    "accumulated": lambda processes: (8 * processes, 2, 2),
    "a part of a window last": lambda processes: (10 * processes, 2, 4),
    "a process without a batch": lambda processes: (4 * processes + 2, 4, 1),
}


class Gradients(Callback):
    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self):
        whole = self.model.strategy.checkpoints.gather(
            {name: p.grad for name, p in self.model.module.named_parameters()}
        )
        self.found.append({name: gradient.clone() for name, gradient in whole.items()})


def gradients(strategy, processes, alone=False):
    """Return the gradients of each update of an epoch, for each kind of window."""
    found = {}
    for name, make in WINDOWS.items():
        count, size, window = make(processes)
        torch.manual_seed(0)
        model = Model(Blocks().double(), device="cpu")
        model.compile("sgd", "cross_entropy", strategy=strategy(), gradient_accumulation_steps=1 if alone else window)
        noted = Gradients()
        size = size * processes * window if alone else size
        model.fit(X[:count], Y[:count], batch_size=size, shuffle=False, callbacks=[noted], verbose=0)
        found[name] = noted.found
    return found


def replicas():
    return DataParallel("cpu")


def shards():
    return FullySharded("cpu", unit=40)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("strategy", [replicas, shards])
def test_gradients_equal_those_of_one_process_with_all_samples(strategy, processes):
    alone = gradients(lambda: "one", processes, alone=True)
    for several in together(gradients, strategy, processes, processes=processes):
        for name, updates in several.items():
            assert len(updates) == len(alone[name]), name
            assert all(furthest(*pair) < 1e-12 for pair in zip(updates, alone[name], strict=True)), name


# Other numbers of processes, one after the other


def stage(strategy, folder, steps):
    """Go on with the run in ``folder``, for some updates or to its end; return where it began and what it came to."""
    torch.manual_seed(0)
    model = Model(Blocks().double(), device="cpu").compile("adam", "cross_entropy", lr=0.01, strategy=strategy())
    begun = []
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    plug = [PullPlug(steps)] if steps else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*differ in the last bits.*")
        with contextlib.suppress(PulledPlug):
            model.fit(X, Y, epochs=2, batch_size=4, callbacks=[backup, Watch(begun), *plug], verbose=0)
    Watch(begun).look(model)
    return begun


@pytest.mark.parametrize("strategy", [replicas, shards])
def test_run_continues_with_one_two_three_and_fewer_processes(strategy, tmp_path):
    before = None
    for processes, steps in ((1, 4), (2, 6), (3, 8), (1, None)):
        for (step, numbers), (last, left) in together(stage, strategy, tmp_path / "run", steps, processes=processes):
            if before is not None:
                assert step == before[0]
                assert furthest(numbers, before[1]) == 0
            end = last, left
        before = end
    assert before[0] == 8 + 1 + 15  # what three processes left of the first epoch is one batch less than the second's


# Stopping: whatever one process meets, all stop after the same update

ROWS = DataLoader(TensorDataset(X[:50], Y[:50]), 4)


class Signalled(Callback):
    def __init__(self, who):
        self.who = who

    def on_train_batch_end(self, batch, logs=None):
        if rank() == self.who and self.model.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)


class Stops(Signalled):
    def on_train_batch_end(self, batch, logs=None):
        if rank() == self.who and self.model.state.step == 3:
            self.model.stop_training = True


def stopped(what, who, processes):
    x = X[:50].clone()
    callback = {"a signal": Signalled(who), "a wish": Stops(who), "a loss that is no number": TerminateOnNaN()}[what]
    if what == "a loss that is no number":
        x[(2 * processes + who) * 4 + 1] = float("nan")  # in the third update
    torch.manual_seed(0)
    model = Model(mlp().double(), device="cpu").compile("sgd", "cross_entropy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(DataLoader(TensorDataset(x, Y[:50]), 4), 5, callbacks=[callback], verbose=0)
    return model.state.step, model.history.interrupted, model.module.state_dict()


@pytest.mark.parametrize(("who", "processes"), [(0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("what", ["a signal", "a wish", "a loss that is no number"])
def test_what_one_process_meets_ends_all_after_the_same_update(what, who, processes):
    (step, interrupted, weights), *others = together(stopped, what, who, processes, processes=processes, timeout=40)
    assert step == (3 if what == "a loss that is no number" else 4)
    assert interrupted == (what == "a signal")
    for other in others:
        assert other[:2] == (step, interrupted)
        assert furthest(other[2], weights) == 0
    assert all(value.isfinite().all() for value in weights.values())
