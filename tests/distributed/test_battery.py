"""Evaluation, gradients, restarts and stops of several ranks in many small cases."""

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
from tests.distributed.test_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs, mlp
from tests.many import furthest, run_ranks
from tests.strategies.test_fsdp import Blocks

X, Y = blobs(60)
X = X.double()


def rank():
    return int(os.environ.get("RANK", "0"))


# Evaluation of every number of samples in every batch size

SIZES = [(count, batch_size) for count in range(1, 25) for batch_size in (1, 4, 7)]


def evaluate_sizes():
    """Return the correct predictions and the sum of losses for every number of samples and batch size."""
    torch.manual_seed(0)
    model = Model(mlp().double(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy", "top_2_accuracy"])
    results = {}
    for count, size in SIZES:
        result = model.evaluate(X[:count], Y[:count], batch_size=size, verbose=0)
        results[count, size] = result["accuracy"] * count, result["top_2_accuracy"] * count, result["loss"] * count
    return results


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_scores_equal_one_process_for_every_sample_count(processes):
    expected = evaluate_sizes()
    assert len(expected) == 72
    for results in run_ranks(evaluate_sizes, processes=processes):
        for case, (right, top, loss) in results.items():
            assert (right, top) == expected[case][:2], case
            assert math.isclose(loss, expected[case][2], rel_tol=1e-12), case


# Gradients of one process with the samples of all ranks

# Number of samples, batch size of each rank, and batches per update.
WINDOWS = {
    "even": lambda processes: (24, 24 // processes // 2, 1),
    "uneven": lambda processes: (23, 5, 1),
    "accumulated": lambda processes: (8 * processes, 2, 2),
    "incomplete last window": lambda processes: (10 * processes, 2, 4),
    "rank without a batch": lambda processes: (4 * processes + 2, 4, 1),
}


class RecordGradients(Callback):
    def __init__(self):
        self.results = []

    def on_before_optimizer_step(self):
        full_gradients = self.model.strategy.checkpoints.gather(
            {name: p.grad for name, p in self.model.module.named_parameters()}
        )
        self.results.append({name: gradient.clone() for name, gradient in full_gradients.items()})


def record_gradients(strategy, processes, expected=False):
    """Return the gradients of each update of an epoch, for each kind of window."""
    results = {}
    for name, make in WINDOWS.items():
        count, size, window = make(processes)
        torch.manual_seed(0)
        model = Model(Blocks().double(), device="cpu")
        model.compile(
            "sgd", "cross_entropy", strategy=strategy(), gradient_accumulation_steps=1 if expected else window
        )
        recorder = RecordGradients()
        size = size * processes * window if expected else size
        model.fit(X[:count], Y[:count], batch_size=size, shuffle=False, callbacks=[recorder], verbose=0)
        results[name] = recorder.results
    return results


def data_parallel():
    return DataParallel("cpu")


def fully_sharded():
    return FullySharded("cpu", unit=40)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("strategy", [data_parallel, fully_sharded])
def test_gradients_equal_one_process_with_all_samples(strategy, processes):
    expected = record_gradients(lambda: "one", processes, expected=True)
    for rank_gradients in run_ranks(record_gradients, strategy, processes, processes=processes):
        for name, updates in rank_gradients.items():
            assert len(updates) == len(expected[name]), name
            assert all(furthest(*pair) < 1e-12 for pair in zip(updates, expected[name], strict=True)), name


# Changes of the number of processes


def resume_run(strategy, folder, steps):
    """Resume the run in ``folder`` for ``steps`` updates or to the end, and return its first and last state."""
    torch.manual_seed(0)
    model = Model(Blocks().double(), device="cpu").compile("adam", "cross_entropy", lr=0.01, strategy=strategy())
    states = []
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    crash = [CrashAfter(steps)] if steps else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*differ in the last bits.*")
        with contextlib.suppress(SimulatedCrash):
            model.fit(X, Y, epochs=2, batch_size=4, callbacks=[backup, Watch(states), *crash], verbose=0)
    Watch(states).look(model)
    return states


@pytest.mark.parametrize("strategy", [data_parallel, fully_sharded])
def test_a_run_resumes_with_a_different_number_of_ranks(strategy, tmp_path):
    before = None
    for processes, steps in ((1, 4), (2, 6), (3, 8), (1, None)):
        for (step, numbers), (final_step, final_weights) in run_ranks(
            resume_run, strategy, tmp_path / "run", steps, processes=processes
        ):
            if before is not None:
                assert step == before[0]
                assert furthest(numbers, before[1]) == 0
            final_state = final_step, final_weights
        before = final_state
    # Three processes leave one update of the first epoch. The second epoch has 15.
    assert before[0] == 8 + 1 + 15


# A stop of one rank stops all ranks after the same update

ROWS = DataLoader(TensorDataset(X[:50], Y[:50]), 4)


class SendSignal(Callback):
    def __init__(self, stopping_rank):
        self.who = stopping_rank

    def on_train_batch_end(self, batch, logs=None):
        if rank() == self.who and self.model.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)


class StopTraining(SendSignal):
    def on_train_batch_end(self, batch, logs=None):
        if rank() == self.who and self.model.state.step == 3:
            self.model.stop_training = True


def train_until_stop(cause, stopping_rank, processes):
    x = X[:50].clone()
    callback = {
        "signal": SendSignal(stopping_rank),
        "stop_training": StopTraining(stopping_rank),
        "NaN loss": TerminateOnNaN(),
    }[cause]
    if cause == "NaN loss":
        # A sample of the third update.
        x[(2 * processes + stopping_rank) * 4 + 1] = float("nan")
    torch.manual_seed(0)
    model = Model(mlp().double(), device="cpu").compile("sgd", "cross_entropy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(DataLoader(TensorDataset(x, Y[:50]), 4), 5, callbacks=[callback], on_interrupt="return", verbose=0)
    return model.state.step, model.history.interrupted, model.module.state_dict()


@pytest.mark.parametrize(("stopping_rank", "processes"), [(0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("cause", ["signal", "stop_training", "NaN loss"])
def test_a_stop_of_one_rank_ends_all_after_the_same_update(cause, stopping_rank, processes):
    (step, interrupted, weights), *others = run_ranks(
        train_until_stop, cause, stopping_rank, processes, processes=processes, timeout=40
    )
    assert step == (3 if cause == "NaN loss" else 4)
    assert interrupted == (cause == "signal")
    for other in others:
        assert other[:2] == (step, interrupted)
        assert furthest(other[2], weights) == 0
    assert all(value.isfinite().all() for value in weights.values())
