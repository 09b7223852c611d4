"""Limits of a fit: updates, time, a target, and a minimal number of epochs."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from easytorch import Every, Model
from easytorch.callbacks import EMA, BackupAndRestore, Callback, EarlyStopping, LambdaCallback, StopAfter
from easytorch.checkpoint import rotation
from tests.common_resume import DropoutNet
from tests.loops import blobs, same_weights
from tests.many import run_ranks

X, Y = blobs(50)


def new_model(**options):
    torch.manual_seed(0)
    return Model(DropoutNet(), device="cpu").compile("sgd", "cross_entropy", ["accuracy"], lr=0.1, **options)


def fit(*callbacks, epochs=2, data=None, **options):
    """Train for epochs of seven updates."""
    model = new_model()
    data = DataLoader(TensorDataset(X, Y), 8, shuffle=True) if data is None else data
    options = {"validation_data": (X[:20], Y[:20]), "verbose": 0, **options}
    model.fit(data, epochs, callbacks=[EMA(0.9), *callbacks], **options)
    return model


def same_run(first, second):
    rows = (first.history.rows, first.history.validations)
    return same_weights(first.module, second.module) and rows == (second.history.rows, second.history.validations)


@pytest.mark.parametrize("updates", range(1, 14))
@pytest.mark.parametrize("frequency", [1, Every(updates=2)], ids=["epochs", "updates"])
def test_the_next_start_continues_exactly(updates, frequency, tmp_path):
    expected = fit(validation_freq=frequency, resume=tmp_path / "expected")
    stopped = fit(StopAfter(updates=updates), validation_freq=frequency, resume=tmp_path / "run")
    assert stopped.state.step == updates
    assert len(stopped.history.rows) == (updates >= 7)
    assert stopped.history.interrupted
    assert stopped.history.stop_reason == f"the limit of {updates} update{'s' * (updates > 1)} was reached"
    resumed = fit(validation_freq=frequency, resume=tmp_path / "run")
    assert same_run(resumed, expected)
    assert resumed.history.stop_reason == ""


def test_a_limit_at_a_validation_includes_it():
    model = fit(StopAfter(updates=4), validation_freq=Every(updates=2))
    assert [row["update"] for row in model.history.validations] == [2, 4]


def test_updates_are_those_of_the_whole_run(tmp_path):
    for _ in range(2):
        model = fit(StopAfter(updates=5), resume=tmp_path)
        assert model.state.step == 5
    assert fit(StopAfter(updates=9), resume=tmp_path).state.step == 9
    assert fit(StopAfter(updates=14), resume=tmp_path).history.stop_reason == ""


def test_updates_of_an_earlier_fit_do_not_count():
    model = fit()
    model.fit(X, Y, epochs=2, batch_size=10, callbacks=[StopAfter(updates=3)], verbose=0)
    assert model.state.step == 14 + 3


def test_a_limit_that_is_the_length_of_the_fit_changes_nothing():
    assert same_run(fit(StopAfter(updates=14)), fit())
    assert not fit(StopAfter(updates=14)).history.interrupted


class Stream(IterableDataset):
    """Samples in an order that the global generator draws."""

    def __iter__(self):
        yield from ((X[i], Y[i]) for i in torch.randperm(len(X)))


def replayed():
    yield from DataLoader(TensorDataset(X, Y), 8)


STREAMS = {"generator": replayed, "stream": DataLoader(Stream(), 8)}


@pytest.mark.filterwarnings("ignore:.* has no sampler that can skip")
@pytest.mark.parametrize("data", [*STREAMS])
@pytest.mark.parametrize("updates", [6, 7, 8, 13, 14])
def test_a_limit_at_the_end_of_data_without_a_length(updates, data, tmp_path):
    options = {"data": STREAMS[data], "epochs": 2}
    expected = fit(resume=tmp_path / "expected", **options)
    stopped = fit(StopAfter(updates=updates), resume=tmp_path / "run", **options)
    assert stopped.history.interrupted == (updates < 14)
    assert len(stopped.history.rows) == updates // 7
    assert same_run(fit(resume=tmp_path / "run", **options), expected)


def test_a_generator_is_not_read_beyond_the_limit():
    batches = replayed()
    fit(StopAfter(updates=3), data=batches, epochs=1)
    assert len(list(batches)) == 4


@pytest.mark.filterwarnings("ignore:ReplayedGenerator has no sampler that can skip")
def test_data_without_a_length_stops_and_continues(tmp_path):
    def batches():
        yield from DataLoader(TensorDataset(X, Y), 8)

    expected = fit(data=batches, resume=tmp_path / "expected")
    for updates in (3, 7, 12):
        assert fit(StopAfter(updates=updates), data=batches, resume=tmp_path / "run").state.step == updates
    assert same_run(fit(data=batches, resume=tmp_path / "run"), expected)


@pytest.mark.parametrize(
    ("limits", "name"), [({"minutes": 3}, "3 minutes"), ({"hours": 1, "minutes": 0.5}, "1 hour and 0.5 minutes")]
)
def test_time_counts_from_the_start_of_the_fit(limits, name, tmp_path, monkeypatch):
    minutes = 60 * limits.get("hours", 0) + limits.get("minutes", 0)
    steps = []
    for _ in range(2):
        model = new_model()
        monkeypatch.setattr(
            model.strategy.control, "now", lambda model=model: 20 * 60.0 * model.state.step, raising=False
        )
        data = DataLoader(TensorDataset(X, Y), 8, shuffle=True)
        model.fit(data, 9, callbacks=[StopAfter(**limits)], resume=tmp_path, verbose=0)
        steps.append(model.state.step)
        assert model.history.stop_reason == f"the limit of {name} was reached"
    # An update takes 20 minutes.
    assert steps[0] == -(-minutes // 20)
    assert steps[1] > steps[0]


def test_best_weights_are_restored_and_the_checkpoint_is_kept(tmp_path):
    weights = []
    copy = LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(model.module.net[0].weight.clone()))
    model = new_model()
    backup = BackupAndRestore(tmp_path)  # which deletes the checkpoints of a complete run
    stopping = EarlyStopping("loss", patience=9, restore_best_weights=True)
    callbacks = [Scripted(1.0, 2.0), copy, stopping, StopAfter(updates=13), backup]
    model.fit(X, Y, epochs=9, batch_size=10, callbacks=callbacks, verbose=0)
    assert torch.equal(model.module.net[0].weight, weights[0])
    assert rotation.list_checkpoints(tmp_path)[0].name == "step-0000000013.pt"


def test_a_message_names_the_limit_and_the_folder(tmp_path, capsys):
    fit(StopAfter(updates=9), resume=tmp_path / "run", verbose=2)
    error = capsys.readouterr().err
    assert "The limit of 9 updates was reached after update 9, in epoch 2 of 2." in error
    place = f"The run is saved in {str(tmp_path / 'run')!r}"
    assert f"{place}; the same command with a greater limit resumes it." in error
    fit(StopAfter(minutes=1e-9), resume=tmp_path / "run", verbose=2)
    assert f"{place}; the same command resumes it." in capsys.readouterr().err
    fit(StopAfter(updates=9))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "StopAfter.. needs a limit"),
        ({"updates": 0}, "updates must be a positive integer"),
        ({"minutes": -1}, "minutes must be a number above 0"),
        ({"hours": "3h"}, "hours must be a number above 0"),
    ],
)
def test_a_wrong_limit_is_an_error(limits, message):
    with pytest.raises(ValueError, match=message):
        StopAfter(**limits)


# Early stopping


class Scripted(Callback):
    """Replaces the loss by given values."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["loss"] = self.values[epoch]


def epochs_with(stopping, *values):
    model = fit(Scripted(*values), stopping, epochs=len(values))
    return len(model.history.rows), model.history.stop_reason


def test_a_target_stops_training_without_patience():
    assert epochs_with(EarlyStopping("loss", target=0.5), 2.0, 3.0, 1.0, 0.5, 0.1) == (4, "loss reached 0.5")
    assert epochs_with(EarlyStopping("loss", target=0.5), 2.0, 3.0, 1.0) == (3, "")
    assert epochs_with(EarlyStopping("loss", target=2.5, mode="max"), 2.0, 3.0, 1.0) == (2, "loss reached 2.5")


def test_a_target_and_patience_both_stop_training():
    stopping = EarlyStopping("loss", target=0.5, patience=2)
    assert epochs_with(stopping, 2.0, 3.0, 3.0, 0.1) == (3, "loss did not improve for 2 epochs")


@pytest.mark.filterwarnings("ignore:The loss of epoch 1 is nan")
def test_nan_reaches_no_target():
    assert epochs_with(EarlyStopping("loss", target=2.0), float("nan"), 3.0) == (2, "")


def test_training_does_not_stop_before_min_epochs():
    assert epochs_with(EarlyStopping("loss", patience=1, min_epochs=4), *range(9)) == (
        4,
        "loss did not improve for 3 epochs",
    )
    assert epochs_with(EarlyStopping("loss", target=5.0, min_epochs=3), *range(9)) == (3, "loss reached 5")
    stopping = EarlyStopping("loss", patience=2, min_epochs=3, restore_best_weights=True)
    epochs_with(stopping, 0.0, 1.0, 1.0)
    assert stopping.best_epoch == 0


def test_a_target_that_was_reached_early_stops_at_min_epochs(tmp_path):
    def run(*others):
        stopping = EarlyStopping("loss", target=1.0, min_epochs=3)
        return fit(Scripted(1.0, 5.0, 5.0, 5.0), stopping, *others, epochs=4, resume=tmp_path).history

    run(StopAfter(updates=9))
    assert len(run().rows) == 3
    assert run().stop_reason == "loss reached 1"


@pytest.mark.parametrize("target", ["0.9", True, float("nan"), float("inf")])
def test_a_wrong_target_is_an_error(target):
    with pytest.raises(ValueError, match="target must be a number"):
        EarlyStopping(target=target)


# Several processes


def limited_ranks(folder, strategy):
    def start(name, *callbacks):
        torch.manual_seed(0)
        model = Model(torch.nn.Linear(8, 3).double(), device="cpu").compile("sgd", "cross_entropy", strategy=strategy)
        backup = BackupAndRestore(folder / name, delete_checkpoint=False)
        data = DataLoader(TensorDataset(X.double(), Y), 6, shuffle=True)
        model.fit(data, 2, callbacks=[backup, *callbacks], verbose=0)
        return model.strategy.checkpoints.gather(model.module.state_dict()), model.state.step, model.history.stop_reason

    slow = LambdaCallback(on_train_batch_end=lambda batch, logs: slow_down(slow.model))
    expected = start("expected")
    timed = start("run", slow, StopAfter(minutes=0.3 / 60))
    counted = start("run", StopAfter(updates=timed[1] + 2))
    return expected, timed[1:], counted[1:], start("run")


def slow_down(model):
    if model.strategy.group.is_main and model.state.step == 3:
        time.sleep(0.5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_stop_after_the_same_update(strategy, tmp_path):
    results = run_ranks(limited_ranks, tmp_path, strategy)
    assert results[0][1] == results[1][1]
    for expected, timed, counted, resumed in results:
        assert 1 <= timed[0] <= 5
        assert timed[1] == "the limit of 0.005 minutes was reached"
        assert counted == (timed[0] + 2, f"the limit of {timed[0] + 2} updates was reached")
        assert resumed[1:] == expected[1:]
        assert all(torch.equal(resumed[0][name], value) for name, value in expected[0].items())
