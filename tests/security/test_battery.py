"""A small part of ``python -m tests.security.battery``: runs that are stopped at chosen places, and some exceptions."""

from __future__ import annotations

import sys

import pytest

from tests.security.battery import configurations, hidden_state, kills, lines, signals, writers
from tests.security.battery.starts import Kill, differing, run

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="forks processes"),
    # A run records its warnings; those of torch are no part of the promise.
    pytest.mark.filterwarnings("ignore"),
]

# A start for each: what stops it, and how often checkpoints are written.
STOPS = [
    (Kill("on_train_batch_begin", 5, "crash"), 3),
    (Kill("on_before_optimizer_step", 9, "exception", 35), 2),
    (Kill("on_test_batch_end", 1, "SIGINT", 35), "epoch"),
    (Kill("on_epoch_begin", 1, "exception", 11), "epoch"),
]
# Each of these was once resumed with other weights, or another history, without a message.
CASES = [
    "attribute, mean teacher",
    "attribute of the class",
    "module, old spectral norm",
    "loss that is no module",
    "loss that counts",
    "loss that counts in a closure",
    "loss that counts in a partial",
    "validation by a function",
    "data that a callback changes once",
    "dataset that caches",
    "dataset that counts",
    "dataset with the previous sample",
    "loader with the last batch",
    "collate_fn that counts",
    "callback that changes settings",
    "callback that counts at the start of an epoch",
    "callback that draws at the start of an epoch",
    "callback that changes weights at the start of an epoch",
    "callback that raises weight decay at the start of an epoch",
    "callback that changes settings at the start of an epoch",
    "callback that counts before each batch",
]


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_hidden_state_resumes_exactly(case, tmp_path):
    expected = run(hidden_state.make_program(case, "epoch"), tmp_path / "undisturbed")
    for kill, save_freq in STOPS:
        outcome = run(hidden_state.make_program(case, save_freq), tmp_path / "run", [kill.make_callback()])
        assert outcome.status == "stopped", kill
    outcome = run(hidden_state.make_program(case, 1), tmp_path / "run")
    assert outcome.status == "ended", outcome.result
    assert differing(expected.result, outcome.result) == []


@pytest.mark.parametrize("name", ["all", "SWA that stays"])
def test_killed_processes_leave_the_files_of_an_undisturbed_run(name):
    case = f"callback {name}"
    results, _ = kills.attack({case: lambda save_freq: configurations.make_program(case, save_freq)}, runs=1, seed=5)
    assert [(result.verdict, result.damaged) for result in results] == [("exact", 0)], results


def assert_held(trials):
    assert [trial for trial in trials if trial.broken] == []


def test_an_exception_at_any_line_of_fit_breaks_nothing():
    assert_held(lines.attack_fit(6, seed=0))


def test_an_exception_at_any_line_of_other_calls_breaks_nothing():
    assert_held(lines.attack_calls(36, seed=0))


def test_an_exception_in_any_hook_breaks_nothing():
    assert_held(lines.attack_hooks(seed=0, runs=8))


def test_an_exception_is_raised_at_the_chosen_line():
    tracer = lines.RaiseAt("easytorch", OSError, 3)
    with pytest.raises(OSError, match="a fault"), tracer:
        lines.new_model()
    assert "easytorch" in tracer.place


def test_two_signals_in_succession_lose_nothing():
    runs, sent, broken = signals.attack(1, seed=0)
    assert (runs, broken) == (1, [])
    assert sent > 0


def test_a_reader_beside_killed_writers_reads_whole_files():
    assert writers.attack(4, 60, seed=0) == (4, 60, [])
