"""Estimates of speed and remaining time, with a clock that the tests move."""

from __future__ import annotations

import pytest

from easytorch import Model
from easytorch.callbacks import progress
from easytorch.callbacks.progress import LiveDisplay
from easytorch.callbacks.time_left import WINDOW, RecentMean
from easytorch.data.loader import ValidationSchedule
from easytorch.training.state import TrainState
from tests.loops import mlp


class Time:
    now = 1000.0

    def perf_counter(self):
        return self.now


class Display(LiveDisplay):
    """A display that draws nothing."""

    def start_pass(self, title, total):
        pass

    def draw(self, step, logs):
        pass

    def end_pass(self):
        pass

    def print_line(self, line, note=""):
        pass


class Fit:
    """Runs the hooks of a fit, with epochs of known durations."""

    def __init__(self, monkeypatch, steps, epochs=10, test_steps=None, validation_freq=1, initial_epoch=0):
        self.time = Time()
        monkeypatch.setattr(progress, "time", self.time)
        self.display, self.steps, self.test_steps = Display(), steps, test_steps
        plan = ValidationSchedule(None if test_steps is None else [1], validation_freq).plan
        self.display.params = {
            "epochs": epochs,
            "steps": steps,
            "test_steps": test_steps,
            "count_validations": plan.count,
        }
        self.display.model = Model(mlp())
        self.display.model.state = TrainState(epoch=initial_epoch, last=epochs)
        self.plan = plan
        self.display.on_train_begin()

    def start(self, epoch, step=0):
        self.display.model.state.epoch_step = step
        self.display.on_epoch_begin(epoch)

    def train(self, count, seconds):
        for batch in range(self.display.step, self.display.step + count):
            self.time.now += seconds
            self.display.on_train_batch_end(batch, {})

    def validate(self, seconds, steps=None):
        self.display.on_test_begin()
        for batch in range(self.test_steps if steps is None else steps):
            self.time.now += seconds
            self.display.on_test_batch_end(batch, {})

    def end(self, epoch, seconds=0.0):
        self.display.model.history.append(epoch, {}, self.display.model.strategy.timer)
        self.display.on_epoch_end(epoch, {})
        self.time.now += seconds

    def run_epoch(self, epoch, seconds=0.01, *, first=None, validation=None, after=0.0):
        self.start(epoch)
        if first is not None:
            self.train(1, first)
        self.train(self.steps - self.display.step, seconds)
        if self.plan.count(epoch, epoch + 1):
            self.validate(validation)
            self.display.on_test_end({})
        self.end(epoch, after)


def test_nothing_is_known_before_the_first_step(monkeypatch):
    fit = Fit(monkeypatch, steps=100)
    fit.start(0)
    assert (fit.display.rate, fit.display.epoch_left, fit.display.fit_left) == (None, None, None)


def test_the_first_step_counts_only_until_there_are_others(monkeypatch):
    fit = Fit(monkeypatch, steps=1000)
    fit.start(0)
    fit.train(1, 3.0)
    assert fit.display.rate == pytest.approx(1 / 3)
    fit.train(20, 0.01)
    assert fit.display.rate == pytest.approx(100)
    assert fit.display.epoch_left == pytest.approx(9.79, rel=0.02)


def test_the_rate_is_that_of_the_last_seconds(monkeypatch):
    fit = Fit(monkeypatch, steps=100_000)
    fit.start(0)
    fit.train(1000, 0.1)
    fit.train(round(WINDOW / 0.01) + 50, 0.01)
    assert fit.display.rate == pytest.approx(100, rel=0.01)


def test_steps_longer_than_the_window_have_a_rate(monkeypatch):
    fit = Fit(monkeypatch, steps=100)
    fit.start(0)
    fit.train(5, 4 * WINDOW)
    assert fit.display.rate == pytest.approx(1 / (4 * WINDOW))
    assert fit.display.epoch_left == pytest.approx(95 * 4 * WINDOW)


def test_the_fit_needs_all_later_epochs_and_validations(monkeypatch):
    fit = Fit(monkeypatch, steps=100, test_steps=10)
    fit.start(0)
    fit.train(50, 1.0)
    assert fit.display.epoch_left == pytest.approx(50)
    assert fit.display.fit_left is None  # no validation has been measured
    fit.train(50, 1.0)
    fit.validate(2.0)
    fit.display.on_test_end({})
    fit.end(0)
    fit.start(1)
    fit.train(50, 1.0)
    assert fit.display.fit_left == pytest.approx(50 + 8 * 100 + 9 * 20)


def test_a_fit_without_validation_is_estimated_in_the_first_epoch(monkeypatch):
    fit = Fit(monkeypatch, steps=100)
    fit.start(0)
    fit.train(50, 1.0)
    assert fit.display.fit_left == pytest.approx(950)


def test_only_planned_validations_count(monkeypatch):
    fit = Fit(monkeypatch, steps=100, test_steps=10, validation_freq=[1, 6], epochs=10)
    fit.run_epoch(0, 1.0, validation=3.0)
    fit.start(1)
    fit.train(100, 1.0)
    assert fit.display.fit_left == pytest.approx(8 * 100 + 30)


def test_a_validation_has_its_own_rate(monkeypatch):
    fit = Fit(monkeypatch, steps=100, test_steps=10, epochs=3)
    fit.run_epoch(0, 1.0, validation=3.0)
    fit.start(1)
    fit.train(100, 1.0)
    fit.validate(3.0, steps=4)
    assert fit.display.rate == pytest.approx(1 / 3)
    assert fit.display.epoch_left == pytest.approx(18)
    assert fit.display.fit_left == pytest.approx(18 + 100 + 30)


def test_a_compilation_in_the_first_step_is_not_repeated(monkeypatch):
    fit = Fit(monkeypatch, steps=100)
    fit.run_epoch(0, 0.1, first=60.0)
    fit.start(1)
    fit.train(1, 0.1)
    assert fit.display.fit_left == pytest.approx(9 * 10, rel=0.02)


def test_the_start_and_end_of_each_epoch_count(monkeypatch):
    fit = Fit(monkeypatch, steps=100)
    for epoch in range(2):
        fit.run_epoch(epoch, 0.1, first=3.0, after=5.0)  # workers start, a checkpoint is written
    fit.start(2)
    fit.train(1, 3.0)
    assert fit.display.fit_left == pytest.approx(9.9 + 5 + 7 * (3 + 9.9 + 5))


def test_epochs_of_one_step_are_estimated(monkeypatch):
    fit = Fit(monkeypatch, steps=1, epochs=1000)
    for epoch in range(10):
        fit.run_epoch(epoch, 2.0)
    fit.start(10)
    fit.train(1, 2.0)
    assert fit.display.fit_left == pytest.approx(989 * 2)


def test_many_short_epochs_are_averaged(monkeypatch):
    fit = Fit(monkeypatch, steps=5, epochs=1000)
    for epoch in range(100):
        fit.run_epoch(epoch, 0.01 if epoch % 2 else 0.03)
    fit.start(100)
    fit.train(1, 0.02)
    assert fit.display.fit_left == pytest.approx(900 * 5 * 0.02, rel=0.1)


def test_epochs_of_unknown_length_are_as_long_as_the_last(monkeypatch):
    fit = Fit(monkeypatch, steps=None)
    fit.start(0)
    fit.train(50, 1.0)
    assert (fit.display.epoch_left, fit.display.fit_left) == (None, None)
    assert fit.display.rate == pytest.approx(1)
    fit.end(0)
    fit.start(1)
    fit.train(10, 1.0)
    assert fit.display.epoch_left == pytest.approx(40)
    assert fit.display.fit_left == pytest.approx(40 + 8 * 50)
    fit.train(50, 1.0)  # longer than the last one
    assert (fit.display.epoch_left, fit.display.fit_left) == (None, None)


def test_a_resumed_epoch_is_estimated_from_its_new_steps(monkeypatch):
    fit = Fit(monkeypatch, steps=1000, epochs=5, initial_epoch=3)
    fit.start(3, step=900)
    fit.train(10, 1.0)
    assert fit.display.rate == pytest.approx(1)
    assert fit.display.epoch_left == pytest.approx(90)
    assert fit.display.fit_left == pytest.approx(90 + 1000)


def test_a_run_resumed_in_a_validation_knows_its_steps(monkeypatch):
    fit = Fit(monkeypatch, steps=100, epochs=2, test_steps=10)
    fit.start(0, step=100)
    fit.validate(1.0)
    assert fit.display.step == 100
    assert fit.display.fit_left is None  # neither an update nor a whole validation has been measured


def test_an_evaluation_has_a_rate_and_no_fit(monkeypatch):
    fit = Fit(monkeypatch, steps=100, test_steps=10)
    fit.display.on_train_end()
    fit.validate(2.0, steps=4)
    assert fit.display.rate == pytest.approx(0.5)
    assert fit.display.epoch_left == pytest.approx(12)
    assert fit.display.fit_left is None


def test_a_mean_forgets_what_is_older_than_the_window():
    mean = RecentMean()
    mean.add(100.0)
    mean.add(WINDOW / 2)
    mean.add(WINDOW / 2)
    assert mean.value == pytest.approx(WINDOW / 2)


@pytest.mark.parametrize(
    ("frequency", "first", "last", "count"),
    [(1, 0, 10, 10), (3, 0, 10, 3), (3, 3, 10, 2), (3, 9, 10, 0), ([2, 2, 7], 1, 10, 2), (range(1, 4), 2, 9, 1)],
)
def test_planned_validations_are_counted(frequency, first, last, count):
    schedule = ValidationSchedule([1], frequency)
    assert schedule.plan.count(first, last) == sum(map(schedule, range(first, last))) == count
