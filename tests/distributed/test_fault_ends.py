"""A rank that raises, dies or sleeps at any place, and work of one rank alone: the others end within seconds."""

from __future__ import annotations

import functools
import time

import pytest
import torch

from easytorch import DataParallel, FullySharded, Model
from easytorch.callbacks import LambdaCallback, OptunaPruning
from tests.distributed.common_ranks import SECONDS, attempt, attempt_all, both_fail, rank
from tests.distributed.test_exits import start_ranks
from tests.distributed.test_fault_programs import SIZE, X, Y, new_model
from tests.many import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

HOOKS = (
    "on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_before_optimizer_step", "on_train_batch_end",
    "on_test_begin", "on_test_batch_end", "on_test_end", "on_epoch_end", "on_train_end",
)  # fmt: skip


def fit(strategy, model_class=Model, **options):
    model = new_model(strategy, model_class=model_class)
    options = {"epochs": 2, "batch_size": SIZE, "validation_data": (X[:14], Y[:14]), "verbose": 0} | options
    model.fit(X, Y, **options)
    return model


def fail_in(strategy, hook, failing):
    def fail(*_):
        if rank() == failing:
            raise ValueError("wanted")

    fit(strategy, callbacks=[LambdaCallback(**{hook: fail})])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_in_a_hook_of_one_rank_ends_the_others(hook, strategy):
    failing = HOOKS.index(hook) % 2
    results = run_ranks(attempt, functools.partial(fail_in, strategy, hook, failing))
    (error, _), (other, seconds) = results[failing], results[1 - failing]
    assert error == ("ValueError", "wanted")
    assert seconds < SECONDS
    if hook == "on_train_end":  # the fit of the other rank has ended, and its next call would fail
        assert other is None
        return
    assert other[0] == "RankError"
    assert f"ank {failing} failed in fit() with ValueError: wanted. See the error of that rank." in other[1]


# A rank that dies without an error, or sleeps

DEATH = """
import easytorch.callbacks
def end():
    if os.environ["RANK"] == "1" and model.state.step == 6:
        os.kill(os.getpid(), 9)
callback = easytorch.callbacks.LambdaCallback(on_before_optimizer_step=end)
model.fit(x, y, batch_size=4, epochs=9, callbacks=[callback], verbose=0)
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_dies_in_an_update_ends_the_others(strategy):
    ranks = start_ranks(strategy, DEATH)
    start = time.monotonic()
    outputs = [process.communicate(timeout=SECONDS)[0] for process in ranks]
    assert time.monotonic() - start < SECONDS
    assert [process.returncode for process in ranks] == [1, -9], outputs
    assert "RankError: Rank 0 stopped in fit(), because the connection to another rank was lost." in outputs[0]


def sleep_in(strategy):
    def sleep(*_):
        if rank() == 1:
            time.sleep(6)

    strategy = FullySharded("cpu", timeout=2) if strategy == "fsdp" else DataParallel("cpu", timeout=2)
    model = new_model(strategy)
    model.fit(X, Y, batch_size=SIZE, callbacks=[LambdaCallback(on_before_optimizer_step=sleep)], verbose=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_sleeps_longer_than_the_timeout_is_an_error(strategy):
    (error, seconds), (other, _) = run_ranks(attempt, functools.partial(sleep_in, strategy))
    assert error[0] == other[0] == "RankError"
    text = (
        "waited 2 seconds in a step"
        if strategy == "fsdp"
        else "stopped in fit(), because another rank has not answered"
    )
    assert f"Rank 0 {text}" in error[1]
    assert seconds < SECONDS


# Two starts in one folder

RUN = """
import time
model = easytorch.Model(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", strategy="STRATEGY")
callback = easytorch.callbacks.LambdaCallback(on_epoch_begin=lambda *_: print("epoch", flush=True) or time.sleep(0.2))
model.fit(x, y, epochs=1000, callbacks=[callback], resume="FOLDER", verbose=0)
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_second_start_in_the_folder_of_a_run_is_refused(strategy, tmp_path):
    program = RUN.replace("FOLDER", str(tmp_path / "run")).replace("STRATEGY", strategy)
    first = start_ranks(strategy, program)
    try:
        assert any(line == "epoch\n" for line in first[0].stdout)
        second = start_ranks(strategy, program)
        outputs = [process.communicate(timeout=SECONDS)[0] for process in second]
        assert [process.returncode for process in second] == [1, 1], outputs
        assert "Another run uses the folder" in outputs[0], outputs
        assert "Another run uses the folder" in outputs[1] or "RankError" in outputs[1], outputs
        assert [process.poll() for process in first] == [None, None]
    finally:
        for process in first:
            process.kill()
            process.communicate()


# Work of one rank alone


class LogsOnRank0(Model):
    def train_step(self, batch):
        outputs = super().train_step(batch)
        return outputs | ({"extra": torch.tensor(2.0)} if rank() == 0 else {})


class Pruner:
    """Prunes every trial after two epochs."""

    def prune(self, study, trial):
        return trial.last_step >= 1


def prune(strategy, ranks):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    callbacks = []
    if rank() in ranks:
        pruning = OptunaPruning(optuna.create_study(pruner=Pruner()).ask(), "loss")
        pruning.all_ranks = len(ranks) == 2
        callbacks.append(pruning)
    model = new_model(strategy)
    try:
        model.fit(X, Y, batch_size=SIZE, epochs=5, callbacks=callbacks, verbose=0)
    except optuna.TrialPruned:
        return "pruned", model.state.epoch
    return "trained", model.state.epoch


def fit_lazy(strategy):
    return new_model(strategy, torch.nn.Sequential(torch.nn.LazyLinear(3))).module


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_work_of_one_rank_alone_ends_all_ranks_alike(strategy):
    functions = {
        "logs": lambda: dict(fit(strategy, LogsOnRank0).history),
        "both": lambda: prune(strategy, (0, 1)),
        "lazy": lambda: fit_lazy(strategy),
        "one": lambda: prune(strategy, (0,)),  # the last, since an error of one rank disconnects the ranks
    }
    first, second = run_ranks(attempt_all, functions)
    assert first["logs"][0] == second["logs"][0]
    assert first["logs"][0]["extra"] == [2.0, 2.0]
    assert first["both"][0] == second["both"][0] == ("pruned", 2)
    assert (first["one"][0], second["one"][0]) == (("pruned", 2), ("trained", 2))
    both_fail([first["lazy"], second["lazy"]], "has lazy layers.*before compile", ("ValueError", "ValueError"))


def compile_on_rank_0():
    from easytorch.distributed import process_group

    process_group.CONNECT_SECONDS = 0.5
    if rank() == 0:
        return attempt(lambda: new_model(DataParallel("cpu", timeout=3)))
    time.sleep(5)
    return None


def test_compile_on_one_rank_alone_names_the_missing_rank(capfd):
    ((error, seconds), _) = run_ranks(compile_on_rank_0)
    assert error[0] == "RankError"
    assert "Rank 0 has waited 3 s for rank 1 in compile(). All ranks must make this call" in error[1]
    assert seconds < SECONDS
    assert "Rank 0 waits for rank 1 in compile()." in capfd.readouterr().err


def compile_late():
    from easytorch.distributed import process_group

    process_group.CONNECT_SECONDS = 0.2
    time.sleep(1.0 * rank())
    return new_model(DataParallel("cpu", timeout=30)).fit(X, Y, verbose=0)["loss"]


def test_a_rank_that_compiles_late_is_waited_for():
    first, second = run_ranks(compile_late)
    assert first == second
