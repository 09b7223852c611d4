"""Frequencies and integer arguments of callbacks, checked when the callback is created."""

from __future__ import annotations

import numpy as np
import pytest

from easytorch.callbacks import (
    SWA,
    BackupAndRestore,
    EarlyStopping,
    Every,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
)
from tests.scripted import new_model, train

POSITIVE = {
    "BackupAndRestore.keep": lambda value: BackupAndRestore("run", keep=value),
    "ModelCheckpoint.keep": lambda value: ModelCheckpoint("x.pt", keep=value),
    "ModelCheckpoint.keep_best": lambda value: ModelCheckpoint("x.pt", keep_best=value),
    "Every.epochs": lambda value: Every(epochs=value),
    "Every.updates": lambda value: Every(updates=value),
}
NON_NEGATIVE = {
    "EarlyStopping.patience": lambda value: EarlyStopping(patience=value),
    "EarlyStopping.start_from_epoch": lambda value: EarlyStopping(start_from_epoch=value),
    "ReduceLROnPlateau.patience": lambda value: ReduceLROnPlateau(patience=value),
    "ReduceLROnPlateau.cooldown": lambda value: ReduceLROnPlateau(cooldown=value),
    "SWA.start_epoch": lambda value: SWA(start_epoch=value),
    "TensorBoard.histogram_freq": lambda value: TensorBoard(histogram_freq=value),
}
FREQUENCIES = {
    "BackupAndRestore.save_freq": lambda value: BackupAndRestore("run", save_freq=value),
    "ModelCheckpoint.save_freq": lambda value: ModelCheckpoint("x.pt", save_freq=value),
    "TensorBoard.update_freq": lambda value: TensorBoard(update_freq=value),
}


def create(kind, name, value):
    if "TensorBoard" in name:
        pytest.importorskip("tensorboard")
    return kind[name](value)


# Integers


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", float("nan"), float("inf"), [2]], ids=repr)
@pytest.mark.parametrize("name", POSITIVE)
def test_positive_integers_are_checked_at_construction(name, value):
    with pytest.raises(ValueError, match=rf"{name.split('.')[1]} must be a positive integer, received "):
        create(POSITIVE, name, value)


@pytest.mark.parametrize("value", [-1, 1.5, True, "2", None, float("nan")], ids=repr)
@pytest.mark.parametrize("name", NON_NEGATIVE)
def test_non_negative_integers_are_checked_at_construction(name, value):
    with pytest.raises(ValueError, match=rf"{name.split('.')[1]} must be a non-negative integer, received "):
        create(NON_NEGATIVE, name, value)


@pytest.mark.parametrize("value", [np.int64(2), np.int32(2), 2.0], ids=["int64", "int32", "2.0"])
@pytest.mark.parametrize("name", [*POSITIVE, *NON_NEGATIVE])
def test_numpy_integers_and_integral_floats_are_accepted(name, value):
    kind = POSITIVE if name in POSITIVE else NON_NEGATIVE
    attribute = getattr(create(kind, name, value), name.split(".")[1])
    assert attribute in (2, Every(epochs=2))
    assert type(attribute) in (int, Every)


@pytest.mark.parametrize("name", FREQUENCIES)
def test_numpy_integers_count_updates(name):
    assert getattr(create(FREQUENCIES, name, np.int64(5)), name.split(".")[1]) == Every(updates=5)


# Every


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({}, "no argument"),
        ({"epochs": 1, "updates": 2}, "epochs=1, updates=2"),
        ({"epochs": None, "minutes": None}, "no argument"),
    ],
)
def test_every_takes_exactly_one_argument(arguments, received):
    with pytest.raises(ValueError, match=f"takes exactly one of epochs, updates and minutes, received {received}"):
        Every(**arguments)


def test_every_explains_an_unknown_unit():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'epoch'\. Did you mean 'epochs'\?"):
        Every(epoch=2)


@pytest.mark.parametrize("minutes", [0, 0.0, -1, True, "10", float("nan"), float("inf")])
def test_minutes_must_be_positive(minutes):
    with pytest.raises(ValueError, match=r"minutes must be a (positive|non-negative) number, received"):
        Every(minutes=minutes)


def test_every_is_a_value():
    assert Every(epochs=2) == Every(epochs=2.0) != Every(updates=2)
    assert Every(minutes=0.5).unit == "minutes"
    assert len({Every(updates=3), Every(updates=3)}) == 1


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("10 minutes", "Every(minutes=10)"),
        ("2.5 minutes", "Every(minutes=2.5)"),
        ("2 epochs", "Every(epochs=2)"),
        ("1 epoch", "Every(epochs=1)"),
        ("500 updates", "Every(updates=500)"),
        ("500 steps", "Every(updates=500)"),
        ("weekly", "Every(epochs=2)"),
        ("0 epochs", "Every(epochs=2)"),
        (0, "Every(epochs=2)"),
    ],
)
@pytest.mark.parametrize("name", ["BackupAndRestore.save_freq", "ModelCheckpoint.save_freq"])
def test_an_invalid_frequency_gets_a_fix_with_every(name, value, fix):
    with pytest.raises(ValueError, match=r"save_freq must be 'epoch', a positive integer \(updates\)") as caught:
        create(FREQUENCIES, name, value)
    assert str(caught.value).endswith(f"Pass save_freq={fix}.")


def test_a_frequency_in_the_wrong_unit_is_refused():
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match=r"histogram_freq does not accept updates\. Pass .*Every\(epochs=\.\.\.\)"):
        TensorBoard(histogram_freq=Every(updates=5))
    with pytest.raises(ValueError, match=r"update_freq does not accept epochs"):
        TensorBoard(update_freq=Every(epochs=5))


@pytest.mark.parametrize(
    ("save_freq", "steps"),
    [
        (Every(epochs=2), [6, 12]),
        (Every(updates=5), [5, 10]),
        (Every(minutes=1e-9), list(range(1, 13))),
        (Every(minutes=1000), []),
    ],
    ids=["epochs", "updates", "every update", "never"],
)
def test_a_backup_follows_every(save_freq, steps, tmp_path):
    backup = BackupAndRestore(tmp_path, save_freq=save_freq, keep=99, delete_checkpoint=False)
    train(new_model(), 4, backup)
    assert [int(path.stem.removeprefix("step-")) for path in sorted(tmp_path.iterdir())] == steps


def test_tensorboard_writes_batch_values_by_minutes(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(new_model(), 1, TensorBoard(tmp_path, update_freq=Every(minutes=1e-9)))
    scalars = EventAccumulator(str(tmp_path / "train")).Reload().Scalars("batch_loss")
    assert [event.step for event in scalars] == [1, 2, 3]
