"""Progress: a live bar in a terminal, or plain lines."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from easytorch import Model
from easytorch._utils.timer import Timer as Seconds
from easytorch.callbacks import LambdaCallback, progress
from easytorch.callbacks.advice import WarnOnEndlessData, WarnOnEndlessValidation
from easytorch.callbacks.progress import (
    LineDisplay,
    ProgressBar,
    format_duration,
    format_number,
)
from tests.loops import blob_loader, blobs, mlp

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
ESCAPE = re.compile(r"\x1b\[\??[\d;]*[A-Za-z]")
COLOR_CODE = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
EPOCH = r"Epoch {}/2  4 steps  [\d.]+ m?s  " + "  ".join(
    rf"{name} \d\.\d{{{{4}}}}" for name in ("loss", "accuracy", "val_loss", "val_accuracy")
) + r"  lr 0\.001  \(data \d+%, model \d+%, optimizer \d+%, validation \d+%, rest \d+%\)"  # fmt: skip


def work(verbose, pause=0.0):
    """Fit for two epochs, evaluate and predict, four batches each, every batch ``pause`` seconds long."""
    torch.manual_seed(0)
    slow = LambdaCallback(
        on_train_batch_end=lambda batch, logs: time.sleep(pause),
        on_test_batch_end=lambda batch, logs: time.sleep(pause),
    )
    x, y = blobs(32)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    model.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y), callbacks=[slow], verbose=verbose)
    model.evaluate(x, y, batch_size=8, callbacks=[slow], verbose=verbose)
    model.predict(x, batch_size=8, verbose=verbose)


def in_a_pipe(*verbose, **changes):
    """Return what a program writes to stdout and to stderr, for each ``verbose``."""
    program = "import sys; from tests.callbacks.test_progress import work\n" + "".join(
        f"work({each!r}); print('====', flush=True); print('====', file=sys.stderr)\n" for each in verbose
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    folder = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment | changes,
        cwd=folder,
    )
    written = zip(run.stdout.split("====\n"), run.stderr.split("====\n"), strict=True)
    return dict(zip(verbose, written, strict=False))


def in_a_terminal(verbose="auto", columns=100, pause=0.06, **changes):
    """Return all that ``work`` writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    pieces = []

    def listen():
        with contextlib.suppress(OSError):  # the other end was closed
            while piece := os.read(ours, 65536):
                pieces.append(piece)

    listener = threading.Thread(target=listen)
    listener.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(theirs, "w") as terminal:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **changes}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", terminal)
        work(verbose, pause)
    listener.join()
    os.close(ours)
    return b"".join(pieces).decode()


def screen(output, columns):
    """Return the lines that a terminal shows in the end."""
    rows, row, column = [""], 0, 0
    for mark, text in re.findall(r"(\x1b\[\??[\d;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", output):
        if mark == "\r":
            column = 0
        elif mark == "\n":
            row, column = row + 1, 0
        elif mark.endswith("A"):
            row = max(0, row - int(mark[2:-1] or 1))
        elif mark.endswith("K"):
            rows[row] = ""
        for letter in text:
            if column == columns:
                row, column = row + 1, 0
            rows.extend([""] * (row + 1 - len(rows)))
            rows[row] = rows[row][:column].ljust(column) + letter + rows[row][column + 1 :]
            column += 1
        rows.extend([""] * (row + 1 - len(rows)))
    return [line.rstrip() for line in rows]


@pytest.fixture(scope="module")
def wide():
    return in_a_terminal(columns=200)


@pytest.fixture(scope="module")
def narrow():
    return in_a_terminal(columns=40)


# In a pipe


@pytest.fixture(scope="module")
def pipes():
    return in_a_pipe(0, "auto", 1, 2)


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_a_pipe_gets_one_plain_line_per_epoch_and_evaluation(pipes, verbose):
    lines = pipes[verbose][0].splitlines()
    assert len(lines) == 4
    assert re.fullmatch(EPOCH.format(1), lines[0])
    assert re.fullmatch(EPOCH.format(2), lines[1])
    assert re.fullmatch(r"Trained 2 epochs in [\d.]+ m?s  best val_loss \d\.\d{4} in epoch 2", lines[2])
    assert re.fullmatch(r"Evaluated on the given data  [\d.]+ m?s  loss \d\.\d{4}  accuracy \d\.\d{4}", lines[3])


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_a_pipe_gets_no_control_character(pipes, verbose):
    assert CONTROL.search(pipes[verbose][0]) is None


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_a_pipe_gets_nothing_on_stderr(pipes, verbose):
    assert pipes[verbose][1] == ""


def test_verbose_0_prints_nothing_into_a_pipe(pipes):
    assert pipes[0] == ("", "")


@pytest.mark.slow
def test_a_pipe_gets_plain_lines_even_with_forced_colors():  # as many CI systems do
    output, _ = in_a_pipe("auto", TERM="xterm-256color", FORCE_COLOR="1")["auto"]
    assert CONTROL.search(output) is None
    assert len(output.splitlines()) == 4


def test_lines_are_written_when_their_epoch_ends(capsys):
    seen = []
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    watch = LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(capsys.readouterr().out.count("\n")))
    model.fit(blob_loader(), 3, callbacks=[watch], verbose=2)
    assert seen == [0, 1, 1]


def test_a_fit_after_an_evaluation_prints_epoch_lines(capsys):
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(blob_loader(), 1, validation_data=blob_loader(), verbose=2)
    model.evaluate(blob_loader(), verbose=2)
    model.fit(blob_loader(), 1, verbose=2)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Epoch 1/1",
        "Evaluated on the given data",
        "Epoch 2/2",
    ]


# In a terminal


def test_verbose_0_prints_nothing_into_a_terminal():
    assert in_a_terminal(0, pause=0) == ""


def test_verbose_2_writes_plain_lines_into_a_terminal():
    output = in_a_terminal(2, pause=0).replace("\r\n", "\n")
    assert CONTROL.search(output) is None
    assert [re.split(r"  | [\d.]+ m?s", line)[0] for line in output.splitlines()] == [
        "Epoch 1/2",
        "Epoch 2/2",
        "Trained 2 epochs in",
        "Evaluated on the given data",
    ]


def test_a_terminal_retains_one_line_per_epoch(wide):
    lines = [line for line in screen(wide, 200) if line]
    assert len(lines) == 4
    assert re.fullmatch(EPOCH.format(1), lines[0])
    assert re.fullmatch(EPOCH.format(2), lines[1])
    assert lines[2].startswith("Trained 2 epochs in")
    assert lines[3].startswith("Evaluated on the given data")


def test_time_shares_are_omitted_if_they_do_not_fit():
    lines = [line for line in screen(in_a_terminal(columns=110), 110) if line]
    assert len(lines) == 4
    assert re.fullmatch(EPOCH.format(1).split("  \\(")[0], lines[0])


def test_a_terminal_shows_step_speed_remaining_time_and_values(wide):
    live = ESCAPE.sub("", wide)
    assert re.search(r"Epoch 1/2 \S* *[23]/4 [\d.,]+/s  [\d.]+ m?s left +loss \d\.\d", live)


def test_a_terminal_shows_the_validation(wide):
    live = ESCAPE.sub("", wide)
    assert re.search(r"Epoch 1/2 validation \S* *[23]/4", live)


def test_a_terminal_shows_the_evaluation_and_its_progress(wide):
    live = ESCAPE.sub("", wide)
    assert re.search(r"Evaluating \S* *[23]/4", live)


def test_a_terminal_has_colors_unless_no_color_is_set(wide):
    assert COLOR_CODE.search(wide)
    plain = in_a_terminal(NO_COLOR="1")
    assert COLOR_CODE.search(plain) is None
    assert "Epoch 1/2" in plain


def test_the_cursor_is_visible_at_the_end(wide):
    assert wide.rfind("\x1b[?25h") > wide.rfind("\x1b[?25l")


def test_no_live_line_is_wider_than_a_narrow_terminal(narrow):
    plain = ESCAPE.sub("", narrow)
    live = [line for line in re.split(r"[\r\n]+", plain) if line and "steps" not in line and "Evaluated" not in line]
    assert any("validation" in line for line in live)
    assert max(map(len, live)) <= 40


def test_a_narrow_terminal_retains_the_lines_of_the_epochs(narrow):
    text = "".join(line if len(line) >= 38 else f"{line}\n" for line in screen(narrow, 40))
    assert [line[:9] for line in text.splitlines() if line.startswith("Epoch")] == ["Epoch 1/2", "Epoch 2/2"]
    assert "2 validation" not in text  # the title of a bar that was left standing


def test_a_dumb_terminal_gets_plain_lines():
    output = in_a_terminal(pause=0, TERM="dumb").replace("\r\n", "\n")
    assert CONTROL.search(output) is None
    assert len(output.splitlines()) == 4


# What it costs


class Timer:
    """A clock that advances only when a test advances it."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


class CountedLogs(dict):
    reads = 0

    def items(self):
        self.reads += 1
        return super().items()

    def __getitem__(self, name):
        self.reads += 1
        return super().__getitem__(name)


@pytest.fixture
def clock(monkeypatch):
    clock = Timer()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def silent_bar():
    bar = ProgressBar()
    bar.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    prepare(bar)
    bar.model.history.append(0, {"loss": 0.5}, Seconds())
    return bar


def prepare(display):
    """Give ``display`` what a fit gives it."""
    display.params = {"epochs": 1, "steps": 10_000, "test_steps": 10_000, "count_validations": lambda first, last: 0}
    display.model = Model(mlp())
    display.model.state.last = 1
    display.on_train_begin()


def run_steps(display, clock, hook, seconds=10, step=0.001):
    logs = CountedLogs(loss=0.5)
    for batch in range(round(seconds / step)):
        clock.now += step
        getattr(display, hook)(batch, logs)
    return logs.reads


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_test_batch_end"])
def test_the_bar_reads_the_logs_at_most_ten_times_a_second(clock, hook):
    bar = silent_bar()
    bar.on_epoch_begin(0)
    if hook == "on_test_batch_end":
        bar.is_fitting = True
        bar.on_test_begin()
    reads = run_steps(bar, clock, hook)
    bar.end_pass()
    assert 50 <= reads <= 100


def test_short_epochs_do_not_make_the_bar_read_more_often(clock):
    bar, reads = silent_bar(), 0
    for epoch in range(100):
        bar.on_epoch_begin(epoch)
        reads += run_steps(bar, clock, "on_train_batch_end", seconds=0.05)
        bar.end_pass()
    assert reads <= 50


def test_a_slow_terminal_is_redrawn_less_often(clock, monkeypatch):
    bar = silent_bar()
    bar.on_epoch_begin(0)
    draw = bar.draw

    def slow_draw(step, logs):
        clock.now += 0.1
        draw(step, logs)

    monkeypatch.setattr(bar, "draw", slow_draw)
    reads = run_steps(bar, clock, "on_train_batch_end")
    bar.end_pass()
    assert 1 <= reads <= 5


def test_lines_read_no_logs_before_the_epoch_ends():
    lines = LineDisplay()
    prepare(lines)
    logs = CountedLogs(loss=0.5)
    lines.on_epoch_begin(0)
    for batch in range(100):
        lines.on_train_batch_end(batch, logs)
    assert logs.reads == 0


def test_the_bar_starts_no_thread(clock):
    before = threading.enumerate()
    bar = silent_bar()
    bar.on_epoch_begin(0)
    run_steps(bar, clock, "on_train_batch_end", seconds=1)
    during = threading.enumerate()
    bar.end_pass()
    assert during == threading.enumerate() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_removes_the_bar(monkeypatch, error):
    bar = silent_bar()
    monkeypatch.setattr("easytorch.model.progress_callbacks", lambda verbose: [bar])

    def fail(batch, logs):
        raise error("stop")

    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    with contextlib.suppress(error):
        model.fit(blob_loader(), 1, callbacks=[LambdaCallback(on_train_batch_end=fail)])
    assert bar.live is None
    written = bar.console.file.getvalue()
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")  # the cursor is there again
    assert written.endswith("\x1b[2K")  # and the line of the bar is empty


def test_a_bar_of_unknown_length_counts_the_steps(clock):
    bar = silent_bar()
    bar.params["steps"] = None
    bar.on_epoch_begin(0)
    run_steps(bar, clock, "on_train_batch_end", seconds=1)
    bar.end_pass()
    shown = ESCAPE.sub("", bar.console.file.getvalue())
    assert re.search(r"Epoch 1/1 .* \d{3} ", shown)
    assert "left" not in shown


def test_the_bar_of_a_resumed_epoch_shows_the_current_speed(clock):
    bar = silent_bar()
    bar.model.state.epoch_step = 9000
    bar.on_epoch_begin(0)
    for step in range(9000, 9020):
        clock.now += 0.1
        bar.on_train_batch_end(step, {"loss": 0.5})
    bar.end_pass()
    shown = ESCAPE.sub("", bar.console.file.getvalue())
    assert " 9000/10000" in shown
    assert "9020/10000 10/s" in shown
    assert "1:38 left" in shown or "1:39 left" in shown
    assert not re.search(r"\d{3}/s", shown)


def test_names_in_brackets_are_shown_unchanged(clock):
    bar = silent_bar()
    bar.on_epoch_begin(0)
    clock.now += 1
    bar.on_train_batch_end(0, {"loss": 0.5, "[red]f1": 0.25})
    bar.end_pass()
    bar.on_epoch_end(0, {"loss": 0.5, "[red]f1": 0.25})
    assert bar.console.file.getvalue().count("[red]f1 0.2500") >= 2  # in the bar and in the line


# How numbers look


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.21339, "0.2134"),
        ("loss", 0.0, "0.0000"),
        ("loss", 12345.678, "12345.6780"),
        ("loss", 123456.78, "1.235e+05"),
        ("loss", 0.00012, "1.200e-04"),
        ("loss", -2.5, "-2.5000"),
        ("loss", -0.00012, "-1.200e-04"),
        ("loss", float("nan"), "nan"),
        ("loss", float("inf"), "inf"),
        ("lr", 0.001, "0.001"),
        ("lr", 3e-5, "3e-05"),
        ("lr_1", 0.1, "0.1"),
    ],
)
def test_numbers_are_formatted_for_readers(name, value, text):
    assert format_number(name, value) == text


def fitted_on(data, **options):
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    stop = LambdaCallback(on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", batch == 5))
    model.fit(data, callbacks=[stop], verbose=0, **options)


def endless():
    while True:
        yield blobs(8)


@pytest.mark.parametrize("data", [endless(), endless])
def test_endless_data_is_one_warning_even_with_verbose_0(data, monkeypatch):
    monkeypatch.setattr(WarnOnEndlessData, "MAX_SECONDS", 0.0)
    with pytest.warns(UserWarning, match=r"steps_per_epoch=1000") as warned:
        fitted_on(data)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_endless_validation_is_one_warning(monkeypatch):
    monkeypatch.setattr(WarnOnEndlessValidation, "MAX_SECONDS", 0.0)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    stop = LambdaCallback(on_test_batch_end=lambda batch, logs: setattr(model, "stop_evaluating", batch == 5))
    with pytest.warns(UserWarning, match=r"validation_steps=100") as warned:
        model.fit(blob_loader(), 2, validation_data=endless, callbacks=[stop], verbose=0)
    assert len(warned) == 1


def test_data_that_ends_is_no_warning(monkeypatch):
    fitted_on(lambda: itertools.islice(endless(), 3), epochs=2)
    monkeypatch.setattr(WarnOnEndlessData, "MAX_SECONDS", 0.0)
    fitted_on(endless, steps_per_epoch=3)
    fitted_on([blobs(8)])
    monkeypatch.setattr(WarnOnEndlessValidation, "MAX_SECONDS", 0.0)
    fitted_on([blobs(8)], validation_data=[blobs(8)])
    fitted_on([blobs(8)], validation_data=endless, validation_steps=2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0451, "45 ms"),
        (0.9996, "1.0 s"),
        (1.34, "1.3 s"),
        (9.96, "10 s"),
        (12.3, "12 s"),
        (59.7, "1:00"),
        (125, "2:05"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
    ],
)
def test_durations_are_formatted_for_readers(seconds, text):
    assert format_duration(seconds) == text
