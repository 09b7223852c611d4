"""Messages of a resumed run about a program that has changed."""

from __future__ import annotations

import csv
import warnings

import pytest
import torch

from easytorch import Model, ResumeError
from easytorch.callbacks import CSVLogger, EarlyStopping, Freeze, LambdaCallback, ReduceLROnPlateau
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


class TestFitArguments:
    """What a program passes to ``fit``, and what it freezes before."""

    def run(self, folder, *callbacks, frozen=(), **options):
        torch.manual_seed(0)
        model = Model(mlp(), device="cpu")
        for name in frozen:
            model.module.get_parameter(name).requires_grad_(False)
        model.compile(adam(), "cross_entropy")
        data = {"batch_size": 16, "resume": folder, "verbose": 0}
        model.fit(X, Y, callbacks=callbacks, **data, **options)
        return model

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"class_weight": {1: 2.0}},
                r"class_weight changed from None to '\{1: 2.0\}'; continuing with the new value",
            ),
            ({"shuffle": False}, "shuffle changed from True to False; continuing with the new value"),
            ({"sample_weight": torch.ones(48)}, "sample_weight changed from False to True; continuing"),
        ],
    )
    def test_a_changed_argument_is_a_warning(self, tmp_path, options, message):
        self.run(tmp_path)
        with pytest.warns(UserWarning, match=message):
            self.run(tmp_path, epochs=2, **options)

    def test_equal_weights_in_another_order_are_no_change(self, tmp_path):
        self.run(tmp_path, class_weight={0: 1.0, 1: 2.0})
        self.run(tmp_path, class_weight={1: 2.0, 0: 1.0}, epochs=2)

    @pytest.mark.parametrize("frozen", [("0.weight",), ()])
    def test_a_parameter_frozen_or_unfrozen_since_is_a_warning(self, tmp_path, frozen):
        self.run(tmp_path, frozen={"0.weight"} - {*frozen})
        with pytest.warns(
            UserWarning, match="requires_grad changed for '0.weight'; the resumed run keeps the old value"
        ):
            model = self.run(tmp_path, frozen=frozen, epochs=2)
        assert model.module.get_parameter("0.weight").requires_grad == bool(frozen)

    def test_a_callback_that_freezes_resumes_without_a_warning(self, tmp_path):
        def freeze(epoch, logs):
            model.module.get_parameter("0.weight").requires_grad_(False)

        model = Model(mlp(), device="cpu").compile(adam(), "cross_entropy")
        for epochs in 1, 2:
            model.fit(
                X,
                Y,
                epochs=epochs,
                batch_size=16,
                callbacks=LambdaCallback(on_epoch_end=freeze),
                resume=tmp_path,
                verbose=0,
            )
        model = self.run(tmp_path, LambdaCallback(on_epoch_end=freeze), epochs=3)
        assert not model.module.get_parameter("0.weight").requires_grad

    @pytest.mark.parametrize(
        ("before", "now"),
        [([], [Freeze("0")]), ([Freeze("0")], []), ([Freeze("0", until=1)], [Freeze("0", until=2)])],
    )
    def test_other_frozen_layers_are_an_error(self, tmp_path, before, now):
        self.run(tmp_path, *before)
        with pytest.raises(ResumeError, match=r"the run had the frozen layers .*Pass the same"):
            self.run(tmp_path, *now, epochs=3)
