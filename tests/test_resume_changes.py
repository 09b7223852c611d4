"""Messages of a resumed run about a program that has changed."""

from __future__ import annotations

import csv
import warnings

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import CSVLogger, EarlyStopping, LambdaCallback, ReduceLROnPlateau
from tests.loops import blobs, mlp, same_weights
from tests.test_interrupts import SendSignal

X, Y = blobs(48)


def adam(lr=0.01, **options):
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


def fit(folder, *callbacks, stop=None, epochs=3, optimizer=None, verbose=0, metrics=(), **options):
    """Train in a folder; after ``stop`` updates the run is interrupted."""
    torch.manual_seed(0)
    model = Model(mlp(), device="cpu").compile(optimizer or adam(), "cross_entropy", metrics, **options)

    def interrupt(batch, logs):
        if model.state.step == stop:
            raise KeyboardInterrupt

    data = {"batch_size": 16, "validation_data": (X, Y), "resume": folder, "on_interrupt": "return", "verbose": verbose}
    try:
        model.fit(X, Y, epochs=epochs, callbacks=[*callbacks, LambdaCallback(on_train_batch_end=interrupt)], **data)
    except KeyboardInterrupt:
        assert stop is not None
    return model


class TestEarlyStopping:
    def test_a_run_that_was_stopped_early_says_how_to_continue(self, tmp_path, capsys):
        def stopping(patience):
            return EarlyStopping("val_loss", min_delta=10.0, patience=patience)

        fit(tmp_path, stopping(1), epochs=20)
        model = fit(tmp_path, stopping(50), epochs=40, verbose=2)
        text = capsys.readouterr().out
        assert "was stopped early after epoch 2, so nothing is trained" in text
        assert "pass epochs greater" not in text
        path = text.split("load('")[1].split("')")[0]
        again = Model(mlp(), device="cpu").compile(adam(), "cross_entropy").load(path)
        assert same_weights(again.module, model.module)
        assert len(again.fit(X, Y, batch_size=16, verbose=0)["loss"]) == 3

    def test_a_complete_run_says_that_larger_epochs_continue(self, tmp_path, capsys):
        fit(tmp_path, epochs=2)
        fit(tmp_path, epochs=2, verbose=2)
        assert "pass epochs greater than 2" in capsys.readouterr().out
        assert fit(tmp_path, epochs=3).state.epoch == 3

    @pytest.mark.parametrize("make", [EarlyStopping, ReduceLROnPlateau])
    def test_another_monitor_resets_the_old_best_value(self, tmp_path, make):
        fit(tmp_path, make("val_accuracy", patience=5), stop=4, metrics=["accuracy"])
        second = make("val_loss", patience=5)
        with pytest.warns(UserWarning, match=r"monitored 'val_accuracy' \(max\) before, and now 'val_loss' \(min\)"):
            model = fit(tmp_path, second, metrics=["accuracy"])
        assert second.best == min(model.history["val_loss"][1:])

    def test_the_same_monitor_keeps_its_best_value(self, tmp_path):
        fit(tmp_path, EarlyStopping("val_loss", patience=5), stop=4)
        second = EarlyStopping("val_loss", patience=5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = fit(tmp_path, second)
        assert second.best == min(model.history["val_loss"])


class TestLoggers:
    def rows(self, path):
        return list(csv.DictReader(path.read_text().splitlines()))

    def test_a_logger_may_be_added(self, tmp_path):
        fit(tmp_path / "run", stop=4)
        model = fit(tmp_path / "run", CSVLogger(tmp_path / "log.csv"))
        assert [row["epoch"] for row in self.rows(tmp_path / "log.csv")] == ["1", "2"]
        assert model.state.step == 9

    def test_a_logger_may_be_left_out(self, tmp_path):
        fit(tmp_path / "run", CSVLogger(tmp_path / "log.csv"), EarlyStopping(patience=9), stop=4)
        assert fit(tmp_path / "run", EarlyStopping(patience=9)).state.step == 9

    def test_a_logger_that_stays_keeps_its_lines(self, tmp_path):
        fit(tmp_path / "run", CSVLogger(tmp_path / "a.csv"), CSVLogger(tmp_path / "b.csv"), stop=4)
        fit(tmp_path / "run", CSVLogger(tmp_path / "a.csv"))
        assert [row["epoch"] for row in self.rows(tmp_path / "a.csv")] == ["0", "1", "2"]


class TestOptimizer:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0.5}, r"lr changed from 0\.01 to 0\.5 in the optimizer; the resumed run keeps the old value"),
            ({"weight_decay": 0.7}, r"weight_decay changed from 0\.01 to 0\.7"),
            ({"betas": (0.5, 0.9)}, r"betas changed from \[0\.9, 0\.999\] to \[0\.5, 0\.9\]"),
        ],
    )
    def test_settings_of_a_changed_optimizer_function_are_told(self, tmp_path, options, message):
        fit(tmp_path, stop=4)
        with pytest.warns(UserWarning, match=message):
            model = fit(tmp_path, optimizer=adam(**options))
        assert model.optimizer.param_groups[0]["lr"] == 0.01

    def test_rates_that_a_callback_changed_are_not_told(self, tmp_path):
        def plateau():
            return ReduceLROnPlateau("loss", min_delta=10.0, patience=1)

        fit(tmp_path, plateau(), stop=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = fit(tmp_path, plateau(), epochs=3)
        assert model.optimizer.param_groups[0]["lr"] < 0.01

    def test_a_schedule_per_epoch_resumes_without_a_false_warning(self, tmp_path):
        def schedule(optimizer):
            return torch.optim.lr_scheduler.StepLR(optimizer, 1)

        # The next step of the schedule comes before the next update.
        fit(tmp_path, SendSignal(3), scheduler=schedule)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = fit(tmp_path, scheduler=schedule)
        assert model.history["lr"] == pytest.approx([0.01, 0.001, 0.0001])
