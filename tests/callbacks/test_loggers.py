"""Loggers and displays, which never stop training."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import signal
import sys
import warnings

import pytest
import torch
from rich.console import Console

from easytorch import Every
from easytorch._utils.paths import check_folder
from easytorch.callbacks import (
    BackupAndRestore,
    CSVLogger,
    LambdaCallback,
    LivePlot,
    ModelCheckpoint,
    TensorBoard,
    TerminateOnNaN,
)
from easytorch.callbacks.progress import ProgressBar
from tests.loops import same_weights
from tests.scripted import UPDATES, X, Y, new_model, raising, train


def rows(path, separator=","):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


# CSVLogger


def test_csv_has_the_epoch_and_every_value_of_the_logs(tmp_path):
    path = tmp_path / "new" / "log.csv"
    history = train(new_model(metrics=["accuracy"]), 3, CSVLogger(path))
    written = rows(path)
    assert [row["epoch"] for row in written] == ["0", "1", "2"]
    assert path.read_text().startswith("epoch,")
    assert set(written[0]) == {"epoch", *history}
    for name in history:
        assert [float(row[name]) for row in written] == history[name]  # not one digit is lost


def test_csv_is_up_to_date_after_every_epoch(tmp_path):
    lengths = []
    look = LambdaCallback(on_epoch_end=lambda *_: lengths.append(len(rows(tmp_path / "log.csv"))))
    train(new_model(), 3, CSVLogger(tmp_path / "log.csv"), look)
    assert lengths == [1, 2, 3]


def test_csv_uses_the_separator(tmp_path):
    train(new_model(), 1, CSVLogger(tmp_path / "log.csv", separator=";"))
    assert (tmp_path / "log.csv").read_text().startswith("epoch;")
    assert float(rows(tmp_path / "log.csv", ";")[0]["loss"]) > 0


def test_csv_replaces_an_existing_file(tmp_path):
    for epochs in (3, 2):
        train(new_model(), epochs, CSVLogger(tmp_path / "log.csv"))
    assert len(rows(tmp_path / "log.csv")) == 2


def test_csv_appends_to_an_existing_file_if_wanted(tmp_path):
    path, model = tmp_path / "log.csv", new_model()
    train(model, 2, CSVLogger(path))
    train(model, 2, CSVLogger(path, append=True))
    assert [row["epoch"] for row in rows(path)] == ["0", "1", "2", "3"]
    assert [float(row["loss"]) for row in rows(path)] == model.history["loss"]


def test_a_missing_value_is_na(tmp_path):
    train(new_model(), 4, CSVLogger(tmp_path / "log.csv"), validation_freq=2)
    assert [row["val_loss"] == "NA" for row in rows(tmp_path / "log.csv")] == [True, False, True, False]


def test_existing_lines_survive_a_failed_rewrite(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    train(new_model(), 2, CSVLogger(tmp_path / "log.csv"))
    before = (tmp_path / "log.csv").read_text()
    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.warns(UserWarning, match="CSVLogger failed and is disabled"):
        train(new_model(), 3, late(), CSVLogger(tmp_path / "log.csv", append=True))
    assert (tmp_path / "log.csv").read_text().startswith(before)


def test_a_value_that_appears_later_gets_a_column(tmp_path):
    train(new_model(), 3, late(), CSVLogger(tmp_path / "log.csv"))
    assert [row["late"] for row in rows(tmp_path / "log.csv")] == ["NA", "NA", "7.0"]


def late():
    return LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update({"late": 7.0} if epoch == 2 else {}))


def test_a_later_value_of_an_appended_file_is_left_out_with_a_warning(tmp_path):
    path = tmp_path / "log.csv"
    train(new_model(), 1, CSVLogger(path))
    before = path.read_text()
    with pytest.warns(UserWarning, match="no columns for late, and append=True does not change existing lines"):
        train(new_model(), 3, late(), CSVLogger(path, append=True))
    assert path.read_text().startswith(before)
    assert len(rows(path)) == 4


EXISTING = {
    "separator": "epoch;loss\n0;1,5\n",
    "comment": "# my notes\n0,1.0\n",
    "other columns": "name,score\na,1\n",
}


@pytest.mark.parametrize("name", EXISTING)
def test_append_refuses_a_file_of_another_format_before_training(name, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(EXISTING[name])
    model = new_model()
    with pytest.raises(ValueError, match=r"CSVLogger cannot append to .* has no column 'epoch' with separator=','"):
        train(model, 1, CSVLogger(path, append=True))
    assert path.read_text() == EXISTING[name]
    assert model.state.step == 0


@pytest.mark.parametrize(
    "existing",
    ["\ufeffepoch,loss\n0,1.0\n", "epoch,loss,lr\n0,1.0,0.1,more,cells\n1,2\n", 'epoch,"loss",lr\n0,"1.0",0.1\n'],
    ids=["byte order mark", "ragged", "quotes"],
)
@pytest.mark.filterwarnings("ignore:.*has no columns for")
def test_append_never_changes_existing_lines(existing, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(existing, encoding="utf-8")
    train(new_model(), 2, CSVLogger(path, append=True))
    text = path.read_text(encoding="utf-8")
    assert text.startswith(existing)
    assert len(text.splitlines()) == len(existing.splitlines()) + 2


def test_an_appended_run_that_resumes_repeats_no_line(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss,note\n7,1.0,mine\n")

    def program(*more):
        model = new_model()
        train(model, 4, CSVLogger(path, append=True), *more, resume=tmp_path / "run", on_interrupt="return")

    with pytest.warns(UserWarning, match="has no columns for"):
        program(LambdaCallback(on_epoch_end=lambda epoch, logs: epoch == 2 and signal.raise_signal(signal.SIGINT)))
    with pytest.warns(UserWarning, match="has no columns for"):
        program()
    lines = path.read_text().splitlines()
    assert lines[:2] == ["epoch,loss,note", "7,1.0,mine"]
    assert [line.split(",")[0] for line in lines[2:]] == ["0", "1", "2", "3"]


def test_lists_none_and_text_in_the_logs_disable_nothing(tmp_path, capsys):
    pytest.importorskip("tensorboard")

    def add(epoch, logs):
        logs.update({"classes": [0.5, 0.25], "nothing": None, "text": "good", "tensor": torch.tensor(2.0)})

    path, model = tmp_path / "log.csv", new_model()
    callbacks = [LambdaCallback(on_epoch_end=add), CSVLogger(path), TensorBoard(tmp_path / "logs")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, Y, epochs=2, callbacks=callbacks, verbose=2)
    assert [row["classes"] for row in rows(path)] == ["[0.5, 0.25]"] * 2
    assert {row["nothing"] for row in rows(path)} == {"null"}
    assert {row["tensor"] for row in rows(path)} == {"2.0"}
    assert "good" in capsys.readouterr().out
    model.save(tmp_path / "model.pt")
    restored = new_model().load(tmp_path / "model.pt").history
    assert restored["classes"] == [[0.5, 0.25]] * 2
    assert restored["nothing"] == [None, None]
    assert restored["text"] == ["good", "good"]


def test_append_to_a_file_without_a_final_newline(tmp_path):
    path, model = tmp_path / "log.csv", new_model()
    train(model, 2, CSVLogger(path))
    path.write_text(path.read_text().rstrip("\n"))  # as editors and killed processes leave it
    train(model, 2, CSVLogger(path, append=True))
    assert [float(row["loss"]) for row in rows(path)] == model.history["loss"]


def test_a_resumed_run_does_not_repeat_lines(tmp_path):
    def program(*more):
        train(new_model(), 3, CSVLogger(tmp_path / "log.csv"), *more, resume=tmp_path / "run")

    with pytest.raises(RuntimeError, match=r"on_epoch_end failed"):
        program(raising("on_epoch_end", at=2))
    program()
    assert [row["epoch"] for row in rows(tmp_path / "log.csv")] == ["0", "1", "2"]


def test_a_failed_csv_logger_is_disabled_with_one_warning(tmp_path):
    plain, logged, path = new_model(), new_model(), tmp_path / "log.csv"
    train(plain, 3)
    with pytest.warns(UserWarning, match=r"CSVLogger failed and is disabled; training continues") as warned:
        train(logged, 3, folder_in_place_of(path), CSVLogger(path))
    assert len(warned) == 1
    assert same_weights(plain.module, logged.module)


def test_a_disabled_logger_is_enabled_in_the_next_fit(tmp_path):
    path, model = tmp_path / "log.csv", new_model()
    logger = CSVLogger(path)
    with pytest.warns(UserWarning, match=r"CSVLogger failed and is disabled"):
        train(model, 1, folder_in_place_of(path), logger)
    path.rmdir()
    train(model, 1, logger)
    assert [row["epoch"] for row in rows(path)] == ["1"]


def folder_in_place_of(path):
    return LambdaCallback(on_epoch_begin=lambda epoch, logs: path.mkdir(exist_ok=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda place: CSVLogger(place / "log.csv"),
        lambda place: TerminateOnNaN(path=place / "nan.pt"),
        lambda place: ModelCheckpoint(place / "{epoch}" / "model.pt"),
        lambda place: BackupAndRestore(place / "run"),
        lambda place: LivePlot(path=place / "curves.png"),
        lambda place: TensorBoard(place / "logs"),
        lambda place: TensorBoard(place),
    ],
)
def test_a_folder_that_cannot_be_created_ends_no_run_later(make, tmp_path):
    (tmp_path / "file").touch()
    model = new_model()
    with pytest.raises((OSError, ValueError), match="Use another folder"):
        train(model, 1, make(tmp_path / "file"))
    assert model.state.step == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_check_of_a_folder_leaves_nothing(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


# TensorBoard


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(folder, name):
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def test_tensorboard_uses_the_same_names_for_validation(tmp_path):
    pytest.importorskip("tensorboard")
    history = train(new_model(metrics=["accuracy"]), 2, TensorBoard(tmp_path))
    for where, prefix in (("train", ""), ("validation", "val_")):
        for name in ("loss", "accuracy"):
            expected = list(enumerate(history[prefix + name]))
            assert scalars(tmp_path / where, f"epoch_{name}") == [pytest.approx(point) for point in expected]
    assert scalars(tmp_path / "train", "epoch_lr") == [pytest.approx(point) for point in ((0, 0.1), (1, 0.1))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "validation"]


def test_tensorboard_has_a_folder_for_each_data_set(tmp_path):
    pytest.importorskip("tensorboard")
    model = new_model(metrics=["accuracy"])
    data_sets = {"clean": (X, Y), "noisy": (X + 0.5, Y)}
    history = train(model, 2, TensorBoard(tmp_path), validation_data=data_sets, validation_freq=Every(updates=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "validation_clean", "validation_noisy"]
    expected = list(enumerate(history["val_noisy_accuracy"]))
    assert scalars(tmp_path / "validation_noisy", "epoch_accuracy") == [pytest.approx(point) for point in expected]
    expected = [(row["update"], row["val_clean_loss"]) for row in history.validations]
    assert scalars(tmp_path / "validation_clean", "batch_loss") == [pytest.approx(point) for point in expected]


def test_tensorboard_writes_batch_values_by_update_freq(tmp_path):
    pytest.importorskip("tensorboard")
    train(new_model(), 2, TensorBoard(tmp_path, update_freq=2))
    assert [step for step, _ in scalars(tmp_path / "train", "batch_loss")] == [2, 4, 6]


@pytest.mark.parametrize("update_freq", ["batch", 0, 2.5])
def test_invalid_update_freq_is_refused(update_freq, tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="update_freq must be 'epoch', a positive integer"):
        TensorBoard(tmp_path, update_freq=update_freq)


def test_tensorboard_writes_histograms_of_the_parameters(tmp_path):
    pytest.importorskip("tensorboard")
    train(new_model(), 4, TensorBoard(tmp_path, histogram_freq=2))
    found = events(tmp_path / "train")
    assert set(found.Tags()["histograms"]) == {"weight", "bias"}
    assert [event.step for event in found.Histograms("weight")] == [1, 3]


def test_tensorboard_can_be_used_in_a_second_fit(tmp_path):
    pytest.importorskip("tensorboard")
    model, board = new_model(), TensorBoard(tmp_path)
    train(model, 1, board)
    train(model, 1, board)
    assert sorted(step for step, _ in scalars(tmp_path / "train", "epoch_loss")) == [0, 1]


def test_a_missing_tensorboard_is_an_error_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install \"easytorch-fit\[tensorboard\]\""):
        TensorBoard()


def test_a_failed_tensorboard_warns_and_training_continues(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "train").write_text("")  # in place of a folder
    with pytest.warns(UserWarning, match="TensorBoard") as warned:
        history = train(new_model(), 2, TensorBoard(tmp_path))
    assert len(warned) == 2
    assert "TensorBoard failed; training continues" in str(warned[0].message)
    assert "could not write 2 points" in str(warned[1].message)
    assert len(history["loss"]) == 2


# Displays


class Gone(io.StringIO):
    """A terminal that is closed after some writes."""

    def __init__(self, error, writes=0):
        super().__init__()
        self.error, self.writes = error, writes

    def write(self, text):
        self.writes -= 1
        if self.writes < 0:
            raise self.error
        return super().write(text)


ERRORS = [
    OSError(errno.EIO, "the terminal is gone"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    UnicodeEncodeError("ascii", "━", 0, 1, "not here"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failed_line_display_is_disabled_with_one_warning(error):
    model = new_model()
    with (
        pytest.warns(UserWarning, match=r"LineDisplay failed and is disabled; training continues") as warned,
        contextlib.redirect_stdout(Gone(error)),
    ):
        train(model, 3, verbose=2)
    assert len(warned) == 1
    assert model.state.step == 3 * UPDATES


def bar_on(file):
    bar = ProgressBar()
    bar.console, bar.INTERVAL = Console(file=file, force_terminal=True, width=100), 0.0
    return bar


@pytest.mark.parametrize("writes", [0, 5])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failed_bar_is_disabled_with_one_warning(error, writes):
    model = new_model()
    with pytest.warns(UserWarning, match=r"ProgressBar failed and is disabled; training continues") as warned:
        train(model, 5, bar_on(Gone(error, writes)))
    assert len(warned) == 1
    assert model.state.step == 5 * UPDATES


@pytest.mark.filterwarnings("ignore")
def test_a_disabled_bar_restores_stdout(monkeypatch):
    stdout = sys.stdout
    monkeypatch.setattr(sys, "stdout", stdout)  # put back after the test
    lost = []
    for writes in range(20):
        train(new_model(), 2, bar_on(Gone(ERRORS[0], writes)))
        if sys.stdout is not stdout:
            lost.append(writes)
        sys.stdout = stdout
    assert lost == []  # what the user prints from now on does not go through the broken bar


def test_a_display_does_not_change_the_training(capsys):
    silent, shown = new_model(), new_model()
    train(silent, 2)
    train(shown, 2, bar_on(io.StringIO()), verbose=2)
    assert same_weights(silent.module, shown.module)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["Epoch", "Epoch", "Trained"]


@pytest.mark.filterwarnings("ignore")
def test_an_error_of_a_custom_callback_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match=r"on_epoch_end failed"):
        train(new_model(), 1, CSVLogger(tmp_path / "log.csv"), raising("on_epoch_end"))
