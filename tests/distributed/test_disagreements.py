"""Ranks that make different calls, have different data, fail or end: one error that names both sides."""

from __future__ import annotations

import functools
import re
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from easytorch import DataParallel, Model, RankError
from easytorch.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
from tests.distributed.common_ranks import SECONDS, X, Y, attempt, attempt_all, both_fail, fit, new_model, rank
from tests.many import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Calls


def evaluate_on_rank_0():
    model = new_model()
    if rank() == 0:
        model.evaluate(X, Y, verbose=0)
    fit(model=model)


def compile_on_rank_1():
    model = new_model()
    if rank() == 1:
        model.compile("sgd", "cross_entropy")
    fit(model=model)


def save_on_rank_1():
    model = new_model()
    if rank() == 1:
        model.save("never-written.pt")
    model.evaluate(X, Y, verbose=0)


def refuse_data_on_rank_1():
    model = new_model()
    if rank() == 1:
        with pytest.raises(TypeError):
            model.fit(None)
        model.predict(X, verbose=0)
    else:
        fit(model=model)


def validate(count, **options):
    fit(validation_data=(X[:count], Y[:count]), **options)


CALLS = {
    "samples": (
        lambda: fit(96 - 16 * rank()),
        r"Rank 0 called fit\(\) with samples=96.* rank 1 with samples=80.*split_data=False",
    ),
    "batch size": (lambda: fit(batch_size=8 + 8 * rank()), r"batch_size=8, and rank 1 with .*batch_size=16"),
    "shuffle": (
        lambda: fit(shuffle=rank() == 0),
        r"sampler='RandomSampler', and rank 1 with sampler='SequentialSampler'",
    ),
    "epochs": (lambda: fit(epochs=1 + rank()), r"epochs=1, and rank 1 with epochs=2\. Pass the same on all ranks"),
    "initial epoch": (
        lambda: fit(epochs=3, initial_epoch=rank()),
        r"initial_epoch=0, and rank 1 with .*initial_epoch=1",
    ),
    "steps": (lambda: fit(steps_per_epoch=2 + rank()), r"steps_per_epoch=2, and rank 1 with steps_per_epoch=3"),
    "window": (
        lambda: fit(model=new_model(gradient_accumulation_steps=1 + rank())),
        r"gradient_accumulation_steps=1, and rank 1 with gradient_accumulation_steps=2",
    ),
    "validation": (
        lambda: fit(validation_data=(X, Y) if rank() else None),
        r"with validation=False, and rank 1 with validation=True",
    ),
    "validation samples": (
        lambda: validate(39 + rank()),
        r"validation_samples=39, and rank 1 with validation_samples=40",
    ),
    "validation steps": (
        lambda: validate(96, validation_steps=1 + rank()),
        r"validation_steps=1, and rank 1 with validation_steps=2",
    ),
    "validation frequency": (
        lambda: validate(96, validation_freq=1 + rank()),
        r"validation_freq='1', and rank 1 with validation_freq='2'",
    ),
    "metrics": (
        lambda: fit(model=new_model(metrics=["accuracy"] * rank())),
        r"metrics=\[\], and rank 1 with metrics=\['accuracy'\]",
    ),
    "callbacks": (
        lambda: fit(callbacks=[EarlyStopping("loss")] * rank()),
        r"callbacks=\[\], and rank 1 with callbacks=\['EarlyStopping'\].*all_ranks = False",
    ),
    "resume": (lambda: fit(resume="never" if rank() else None), r"resume=False.* and rank 1 with resume=True"),
    "learning rate": (lambda: fit(model=new_model(lr=0.1 + rank())), r"lr=0\.1, and rank 1 with lr=1\.1"),
    "optimizer": (
        lambda: fit(model=new_model(["sgd", "adam"][rank()])),
        r"optimizer='SGD'.* and rank 1 with optimizer='Adam'",
    ),
    "evaluated samples": (
        lambda: new_model().evaluate(X[: 95 + rank()], Y[: 95 + rank()], verbose=0),
        r"Rank 0 called evaluate\(\) with samples=95, and rank 1 with samples=96",
    ),
    "predicted samples": (
        lambda: new_model().predict(X[: 96 - 46 * rank()], verbose=0),
        r"Rank 0 called predict\(\) with samples=96.* and rank 1 with samples=50",
    ),
    "evaluation of one": (
        evaluate_on_rank_0,
        r"Rank 0 called evaluate\(\), but rank 1 called fit\(\).*without 'if rank == 0'",
    ),
    "compilation of one": (compile_on_rank_1, r"Rank 0 called fit\(\), but rank 1 called compile\(\)"),
    "file of rank 1": (save_on_rank_1, r"Rank 1 saved 'never-written\.pt', but rank 0, which writes files, did not"),
    "an error before the call": (refuse_data_on_rank_1, r"Rank 0 called fit\(\), but rank 1 called predict\(\)"),
    "one batch": (
        lambda: getattr(new_model(), ["train_on_batch", "test_on_batch"][rank()])(X, Y),
        r"Rank 0 called train_on_batch\(\), but rank 1 called test_on_batch\(\)",
    ),
    "module": (
        lambda: new_model(net=nn.Linear(8, 3 + rank())),
        r"compile\(\) with parameters=27.* and rank 1 with parameters=36",
    ),
}


@pytest.fixture(scope="module")
def results_of_calls():
    return run_ranks(attempt_all, {name: function for name, (function, _) in CALLS.items()})


@pytest.mark.parametrize("name", CALLS)
def test_different_calls_are_an_error_on_all_ranks(name, results_of_calls):
    both_fail([results[name] for results in results_of_calls], CALLS[name][1])


def train_after_errors():
    errors = [attempt(CALLS[name][0])[0][0] for name in ("samples", "evaluation of one")]
    return errors, fit().history["loss"]


def test_the_ranks_continue_after_an_error_of_all():
    (errors, loss), (other_errors, other_loss) = run_ranks(train_after_errors)
    assert errors == other_errors == ["RankError", "RankError"]
    assert loss == other_loss


def load_other_weights(folder):
    torch.manual_seed(rank())
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    torch.save(net.state_dict(), folder / f"{rank()}.pt")
    new_model().load_weights(folder / f"{rank()}.pt")


def load_missing_weights(folder):
    model = new_model()
    model.save_weights(folder / "0.pt")
    model.load_weights(folder / f"{2 * rank()}.pt")


def test_loading_different_files_is_an_error(tmp_path):
    results = run_ranks(attempt, functools.partial(load_other_weights, tmp_path))
    both_fail(results, r"weights of rank 0 and rank 1 differ after loading")
    results = run_ranks(attempt, functools.partial(load_missing_weights, tmp_path))
    both_fail(results, r"There is no file", ("RankError", "FileNotFoundError"))
    assert "Rank 1 failed in load_weights() with FileNotFoundError" in results[0][0][1]


def fsdp_model():
    return new_model(strategy="fsdp")


def evaluate_or_save_by_fsdp():
    model = fit(model=fsdp_model())
    if rank() == 0:
        model.evaluate(X, Y, verbose=0)
    model.save("never-written.pt")


def test_fsdp_ranks_with_different_calls_fail_alike(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "model.pt", "loss")
    functions = {
        "callbacks": lambda: fit(model=fsdp_model(), callbacks=[checkpoint] * rank()),
        "samples": lambda: fit(96 - 16 * rank(), model=fsdp_model()),
        "call": evaluate_or_save_by_fsdp,
    }
    texts = {
        "callbacks": r"callbacks=\[\], and rank 1 with callbacks=\['ModelCheckpoint'\]",
        "samples": r"samples=96.*samples=80",
        "call": r"Rank 0 called evaluate\(\), but rank 1 called save\(\)",
    }
    results = run_ranks(attempt_all, functions)
    for name, text in texts.items():
        both_fail([result[name] for result in results], text)


# Calls that differ legitimately


def train_separate_data():
    count = 96 - 32 * rank()
    model = new_model(strategy=DataParallel("cpu", split_data=False))
    return fit(count, model=model, validation_data=(X[:count], Y[:count])).history["loss"]


class Note(Callback):
    all_ranks = False

    def on_epoch_end(self, epoch, logs=None):
        logs["note"] = 1.0


def save_and_log_on_rank_0(folder):
    model = fit(callbacks=[Note()] if rank() == 0 else [], epochs=2)
    if rank() == 0:
        model.save(folder / "model.pt")
    model.load(folder / "model.pt")
    return model.history["note"]


def wait_before_the_call():
    model = new_model()
    time.sleep(4 * rank())
    return fit(model=model).history["loss"]


def test_separate_data_and_work_of_rank_0_are_no_errors(tmp_path):
    functions = {
        "separate data": train_separate_data,
        "work of rank 0": functools.partial(save_and_log_on_rank_0, tmp_path),
        "slow": wait_before_the_call,
    }
    first, second = run_ranks(attempt_all, functions)
    for name in functions:
        assert first[name][0] == second[name][0]
        assert all(isinstance(value, float) for value in first[name][0])


# Failures and ends


def fail_on_rank_1(hook, at, **options):
    """Fail in call number ``at`` of a hook on rank 1, which catches the error."""
    calls = []

    def fail(*_):
        calls.append(0)
        if rank() == 1 and len(calls) == at:
            raise ValueError("wanted")

    try:
        fit(epochs=2, callbacks=[LambdaCallback(**{hook: fail})], **options)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("hook", "at"),
    [
        ("on_train_begin", 1),
        ("on_train_batch_end", 3),
        ("on_test_batch_end", 1),
        ("on_epoch_end", 1),
        ("on_train_end", 1),
    ],
)
def test_an_error_that_one_rank_catches_ends_the_others(hook, at):
    options = {"validation_data": (X, Y)} if hook == "on_test_batch_end" else {}
    (error, seconds), (caught, _) = run_ranks(attempt, functools.partial(catch_and_call, hook, at, options))
    assert caught[0] == "RankError"
    assert error[0] == "RankError"
    assert re.search(r"[Rr]ank 1 failed in fit\(\) with ValueError: wanted\. See the error of that rank\.", error[1])
    assert seconds < SECONDS


def catch_and_call(hook, at, options):
    """Let the error of rank 1 be caught, and make another call alone."""
    fail_on_rank_1(hook, at, **options)
    new_model().evaluate(X, Y, verbose=0)


def fail_and_live_on(freed):
    """Let rank 1 live until rank 0 has its error, and return whether it had to wait less than a minute."""
    try:
        fail_on_rank_1("on_train_batch_end", 3)
    finally:
        if rank() == 0:
            freed.touch()
    deadline = time.monotonic() + 60
    while not freed.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return freed.exists()


def test_a_rank_that_lives_on_after_its_error_frees_others(tmp_path):
    (error, _), (was_freed, _) = run_ranks(
        attempt, functools.partial(fail_and_live_on, tmp_path / "freed"), timeout=120
    )
    assert error[0] == "RankError"
    assert "rank 1 failed in fit() with ValueError: wanted. See the error of that rank" in error[1]
    assert was_freed is True


def catch_on_all_ranks():
    def fail(batch, _):
        if batch == 2:
            raise ValueError("wanted")

    with pytest.raises(ValueError, match="wanted"):
        fit(callbacks=[LambdaCallback(on_train_batch_end=fail)])
    return fit().history["loss"]


def test_an_error_of_all_ranks_can_be_caught():
    first, second = run_ranks(catch_on_all_ranks)
    assert first == second


def evaluate_in_a_callback_of_rank_0(hook):
    model = new_model()

    def evaluate(*_):
        if rank() == 0:
            model.evaluate(X, Y, verbose=0)

    fit(model=model, epochs=2, callbacks=[LambdaCallback(**{hook: evaluate})])


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_epoch_end"])
def test_an_evaluation_by_a_callback_of_one_rank_is_an_error(hook):
    results = run_ranks(attempt, functools.partial(evaluate_in_a_callback_of_rank_0, hook))
    both_fail(results, r"Rank 0 called evaluate\(\) inside fit\(\), but rank 1 continued with fit\(\)")


def evaluate_in_callbacks_of_all():
    model, losses = new_model(), []
    evaluate = LambdaCallback(on_epoch_end=lambda *_: losses.append(model.evaluate(X, Y, verbose=0).loss))
    fit(model=model, epochs=2, callbacks=[evaluate])
    return losses


def test_an_evaluation_by_the_callbacks_of_all_ranks_works():
    first, second = run_ranks(evaluate_in_callbacks_of_all)
    assert first == second
    assert len(first) == 2


def evaluate_at_the_end():
    model = fit()
    if rank() == 0:
        model.evaluate(X, Y, verbose=0)


def test_a_call_after_the_end_of_another_rank_is_an_error():
    (error, seconds), (result, _) = run_ranks(attempt, evaluate_at_the_end)
    assert result is None  # rank 1 has no error
    assert error[0] == "RankError"
    assert re.search(r"Rank 0 called evaluate\(\), but rank 1 has ended\. All ranks must make the same calls", error[1])
    assert seconds < SECONDS


def call_late_on_rank_1():
    model = new_model(strategy=DataParallel("cpu", timeout=2))
    if rank() == 1:
        time.sleep(5)
    else:
        model.evaluate(X, Y, verbose=0)


def test_a_rank_without_a_call_is_named_after_the_timeout():
    (error, _), _ = run_ranks(attempt, call_late_on_rank_1)
    assert re.search(r"called evaluate\(\), but rank 1 made no call within 2 seconds.*timeout=3600", error[1])


# Data that differs in the middle of a run


def batches(count):
    for i in range(0, count, 8):
        yield X[i : i + 8], Y[i : i + 8]


class Ordered(Sampler):
    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return 96


class EndsEarly(Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, index):
        if index == 40:  # in a batch of rank 1
            raise StopIteration
        return X[index], Y[index]


def fit_stream(**options):
    count = 64 + 32 * rank()
    new_model().fit(lambda: batches(count), epochs=2, verbose=0, **options)


def fit_sampler(order, **options):
    new_model().fit(DataLoader(TensorDataset(X, Y), 8, sampler=Ordered(order), **options), verbose=0)


STREAM = r"streams of rank 0 and rank 1 differ: after 4 updates of this pass, rank 0 read 0 samples .* rank 1 read 16"
ORDER = r"the same number of samples in another order.*split_data=False"
DATA = {
    "stream": (fit_stream, STREAM),
    "stream in steps": (lambda: fit_stream(steps_per_epoch=3), STREAM),
    "samples drawn": (
        lambda: fit_sampler(range(96 - 16 * rank())),
        r"drew 96 samples in 12 batches and 80 samples in 10 batches",
    ),
    "order": (lambda: fit_sampler(range(96)[:: 1 - 2 * rank()]), ORDER),
    "order with a worker": (lambda: fit_sampler(range(96)[:: 1 - 2 * rank()], num_workers=1), ORDER),
}


def test_data_that_differs_in_mid_run_is_an_error():
    results = run_ranks(attempt_all, {name: function for name, (function, _) in DATA.items()})
    for name, (_, text) in DATA.items():
        both_fail([result[name] for result in results], text)


def test_data_of_one_rank_that_ends_early_is_an_error():
    results = run_ranks(attempt, lambda: new_model().fit(DataLoader(EndsEarly(), 8), verbose=0))
    both_fail(results, r"data of rank 1 ended after 2 of 6 batches", ("RankError", "ValueError"))


# One process


def test_one_process_compares_nothing():
    group = Model(nn.Linear(8, 3), device="cpu").strategy.group
    error = ValueError()
    with group.call("fit", samples=96):
        assert group.report(error) is error
    group.saved("model.pt")
    assert group.gather_numbers(1.0, 2.0) == [(1.0, 2.0)]
    assert issubclass(RankError, RuntimeError)
