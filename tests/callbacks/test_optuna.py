"""Pruning of Optuna trials."""

from __future__ import annotations

import math
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import Callback, EarlyStopping, LambdaCallback, OptunaPruning, TerminateOnNaN
from tests.loops import mlp
from tests.scripted import NAN, VALIDATION, Scripted, X, Y, new_model, train

pytestmark = pytest.mark.filterwarnings("ignore:The validation loss of epoch")  # scripted values

optuna = pytest.importorskip("optuna")


class AtEpoch(optuna.pruners.BasePruner):
    """Prunes every trial after one epoch, counted from 0."""

    def __init__(self, epoch):
        self.epoch = epoch

    def prune(self, study, trial):
        return trial.last_step >= self.epoch


def study_of(direction="minimize", pruner=None):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction=direction, pruner=pruner or optuna.pruners.NopPruner())


def reports(study, number=0):
    return study.trials[number].intermediate_values


def test_every_epoch_is_reported():
    study = study_of()
    trial = study.ask()
    history = train(new_model(), 3, OptunaPruning(trial))
    assert reports(study) == dict(enumerate(history["val_loss"]))


def test_a_trial_is_pruned_after_the_epoch_the_study_chooses():
    study = study_of(pruner=AtEpoch(1))
    models = []

    def objective(trial):
        models.append(new_model())
        return train(models[-1], 5, OptunaPruning(trial))["val_loss"][-1]

    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]
    assert [model.state.epoch for model in models] == [2, 2]
    assert study.trials[0].value == models[0].history["val_loss"][-1]


def test_worse_trials_are_pruned_in_the_study_direction():
    study = study_of("maximize", optuna.pruners.MedianPruner(n_startup_trials=1))

    def objective(trial):
        values = [[0.5, 0.6], [0.4, 0.9], [0.7, 0.8]][trial.number]
        script = Scripted(val_accuracy=values)
        return train(new_model(metrics=["accuracy"]), 2, script, OptunaPruning(trial, "val_accuracy"))["val_accuracy"][
            -1
        ]

    study.optimize(objective, n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.best_trial.number == 2


def test_the_message_has_the_epoch_and_the_value():
    script = Scripted(val_loss=[1.0, 0.25, 0.5])
    with pytest.raises(optuna.TrialPruned, match=r"Pruned after epoch 2 with val_loss = 0\.25"):
        train(new_model(), 3, script, OptunaPruning(study_of(pruner=AtEpoch(1)).ask()))


def test_other_callbacks_finish_before_the_trial_is_pruned(capsys):
    calls = []
    later = LambdaCallback(
        on_epoch_end=lambda epoch, logs: calls.append(epoch),
        on_train_end=lambda logs: calls.append("end"),
        on_exception=calls.append,
    )
    with pytest.raises(optuna.TrialPruned):
        train(new_model(), 3, OptunaPruning(study_of(pruner=AtEpoch(0)).ask()), later, verbose=2)
    assert calls == [0, "end"]
    assert "Epoch 1/3" in capsys.readouterr().out


def test_best_weights_are_restored_in_a_pruned_model():
    stopping = EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    model, script = new_model(), Scripted(val_loss=[1.0, 2.0])
    recorder = LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(model.module.weight.detach().clone()))
    weights = []
    with pytest.raises(optuna.TrialPruned):
        train(model, 2, script, stopping, OptunaPruning(study_of(pruner=AtEpoch(1)).ask()), recorder)
    assert torch.equal(model.module.weight, weights[0])


def test_pruning_does_not_change_a_run_that_continues():
    plain, watched = new_model(), new_model()
    train(plain, 3)
    train(watched, 3, OptunaPruning(study_of(pruner=optuna.pruners.MedianPruner()).ask()))
    assert torch.equal(plain.module.weight, watched.module.weight)
    assert plain.history.history == watched.history.history


# What is no number, what is not measured


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_nan_is_pruned_and_is_never_the_best(direction):
    study = study_of(direction)
    callback = OptunaPruning(study.ask(), "val_accuracy" if direction == "maximize" else "val_loss")
    with pytest.raises(optuna.TrialPruned, match=r"after epoch 2 with .* = nan"):
        train(new_model(metrics=["accuracy"]), 4, Scripted(**{callback.monitor: [0.5, NAN]}), callback)
    assert math.isnan(reports(study)[1])
    assert callback.best == 0.5


def test_a_study_continues_after_a_nan_trial():
    study = study_of()

    def objective(trial):
        script = Scripted(val_loss=[NAN if trial.number == 0 else 1.0])
        return train(new_model(), 1, script, OptunaPruning(trial))["val_loss"][-1]

    study.optimize(objective, n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert study.best_value == 1.0


def test_a_run_stopped_by_terminate_on_nan_is_pruned():
    x = X.clone()
    x[40] = NAN
    model = new_model()
    with pytest.warns(UserWarning, match="The loss is not finite"), pytest.raises(optuna.TrialPruned, match="nan"):
        model.fit(
            DataLoader(TensorDataset(x, Y), 32),
            validation_data=VALIDATION,
            callbacks=[TerminateOnNaN(), OptunaPruning(study_of().ask())],
            verbose=0,
        )


def test_an_epoch_without_the_value_is_not_reported():
    study = study_of()
    train(new_model(), 4, OptunaPruning(study.ask()), validation_freq=2)
    assert list(reports(study)) == [1, 3]


# What is refused before the first step


def refused(callback, error=ValueError, **options):
    model = new_model(**options)
    with pytest.raises(error) as caught:
        train(model, 1, callback)
    assert model.state.step == 0
    return str(caught.value)


def test_a_misspelled_monitor_is_refused():
    message = refused(OptunaPruning(study_of().ask(), "val_lss"))
    assert "OptunaPruning monitors 'val_lss', which the logs will not contain. Did you mean 'val_loss'?" in message


@pytest.mark.parametrize(
    ("direction", "monitor", "calls"),
    [
        ("minimize", "val_accuracy", "for which higher is better, but the study minimizes. .*direction='maximize'"),
        ("maximize", "val_loss", "for which lower is better, but the study maximizes. .*direction='minimize'"),
    ],
)
def test_a_study_of_the_other_direction_is_refused(direction, monitor, calls):
    model = new_model(metrics=["accuracy"])
    with pytest.raises(ValueError, match=calls):
        train(model, 1, OptunaPruning(study_of(direction).ask(), monitor))
    assert model.state.step == 0


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_an_unknown_direction_comes_from_the_study(direction):
    def spread(y_pred, y):
        return y_pred.std()

    study = study_of(direction)
    callback = OptunaPruning(study.ask(), "val_spread")
    history = train(new_model(metrics=[spread]), 3, callback)
    assert callback.best == (min if direction == "minimize" else max)(history["val_spread"])


def test_a_study_of_several_objectives_is_refused():
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="has 2 objectives"):
        OptunaPruning(study.ask())


def test_a_study_instead_of_a_trial_is_refused():
    with pytest.raises(TypeError, match="trial must be the trial that the study passes"):
        OptunaPruning(study_of())


def test_a_missing_optuna_is_an_error_with_the_pip_command(monkeypatch):
    trial = study_of().ask()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="pip install optuna"):
        OptunaPruning(trial)


# Trials that only hold parameters


def test_the_objective_runs_again_with_fixed_parameters():
    study = study_of(pruner=AtEpoch(0))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    for trial in (optuna.trial.FixedTrial({}), study.best_trial):
        assert len(train(new_model(), 3, OptunaPruning(trial))["loss"]) == 3


# Epochs and resuming


def test_the_step_of_a_report_is_the_epoch():
    study = study_of()
    trial, model = study.ask(), new_model()
    train(model, 2)
    train(model, 2, OptunaPruning(trial))
    assert list(reports(study)) == [2, 3]


class PullPlug(Callback):
    priority = 40  # after the checkpoint

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise ConnectionError("the plug is pulled")


def fit_trial(folder, trial, *callbacks, epochs=4):
    """Fit a trial and save its run to a folder."""
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    return train(model, epochs, OptunaPruning(trial), *callbacks, resume=folder)


def test_a_resumed_trial_reports_every_epoch_once(tmp_path):
    study = study_of()
    trial = study.ask()
    with pytest.raises(ConnectionError):
        fit_trial(tmp_path, trial, PullPlug())
    assert list(reports(study)) == [0, 1]
    history = fit_trial(tmp_path, trial)
    assert reports(study) == dict(enumerate(history["val_loss"]))


def test_a_new_trial_gets_the_epochs_of_the_resumed_run(tmp_path):
    study = study_of()
    with pytest.raises(ConnectionError):
        fit_trial(tmp_path, study.ask(), PullPlug())
    history = fit_trial(tmp_path, study.ask())
    assert reports(study, 1) == dict(enumerate(history["val_loss"]))
    assert len(reports(study, 1)) == 4


def test_a_pruned_run_stays_pruned(tmp_path):
    with pytest.raises(optuna.TrialPruned, match="after epoch 2"):
        fit_trial(tmp_path, study_of(pruner=AtEpoch(1)).ask())
    study = study_of()  # which would not prune it
    with pytest.raises(optuna.TrialPruned, match="after epoch 2"):
        fit_trial(tmp_path, study.ask())
    assert list(reports(study)) == [0, 1]


# Other endings come first


def test_ctrl_c_in_a_pruned_trial_ends_the_study():
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs=None):
            signal.raise_signal(signal.SIGINT)

    study = study_of(pruner=AtEpoch(0))

    def objective(trial):
        return train(new_model(), 2, Stop(), OptunaPruning(trial), on_interrupt="raise")["val_loss"][-1]

    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective, n_trials=3)
    assert len(study.trials) == 1


def test_an_error_of_another_callback_is_raised():
    def fail(epoch, logs):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train(new_model(), 2, OptunaPruning(study_of(pruner=AtEpoch(0)).ask()), LambdaCallback(on_epoch_end=fail))
