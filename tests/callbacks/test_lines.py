"""Lines of epochs, fits and unfinished passes: what they contain, and what is left out in a narrow terminal."""

from __future__ import annotations

import io
import re
import signal

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from easytorch import Model
from easytorch.callbacks import (
    Callback,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    progress,
)
from easytorch.callbacks.line_layout import fit_to_width
from easytorch.callbacks.progress import LineDisplay, ProgressBar, format_left
from tests.callbacks.test_progress import ESCAPE, Timer, screen
from tests.loops import blob_loader, blobs, mlp

X, Y = blobs(32)


@pytest.fixture
def clock(monkeypatch):
    clock = Timer()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def new_model(metrics=("accuracy",)):
    torch.manual_seed(0)
    return Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=list(metrics))


class Log(Callback):
    """Adds values to the logs of each epoch."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        values = {name: value[epoch] if isinstance(value, list) else value for name, value in self.values.items()}
        logs.update({name: value for name, value in values.items() if value is not None})


def shown(monkeypatch, width, *callbacks, epochs=1, model=None, encoding="utf-8", **options):
    """Return the lines that a fit leaves in a terminal, and those of its bar."""
    bars = []

    def make_bar(verbose):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        bar = ProgressBar()
        bar.console = Console(file=file, force_terminal=True, width=width, highlight=False, legacy_windows=False)
        bars.append(bar)
        return [bar]

    monkeypatch.setattr("easytorch.model.progress_callbacks", make_bar)
    model = model or new_model()
    options = {"validation_data": (X, Y), "on_interrupt": "return", **options}
    model.fit(X, Y, batch_size=8, epochs=epochs, callbacks=list(callbacks), **options)
    written = bars[0].console.file.buffer.getvalue().decode(encoding).replace("\r\n", "\n")
    lines = [line for line in screen(written, 10**6) if line]
    return lines, [piece for piece in re.split(r"[\r\n]", ESCAPE.sub("", written)) if piece and piece not in lines]


# The width of a terminal


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (130, ["steps", "s", "loss", "accuracy", "val_loss", "val_accuracy", "lr"]),
        (95, ["steps", "s", "loss", "accuracy", "val_loss", "val_accuracy"]),
        (90, ["s", "loss", "accuracy", "val_loss", "val_accuracy"]),
        (80, ["loss", "accuracy", "val_loss", "val_accuracy"]),
        (70, ["loss", "val_loss", "val_accuracy"]),
        (60, ["loss", "val_loss", "val_accuracy"]),
        (50, ["val_loss", "val_accuracy"]),
        (30, ["val_loss"]),
    ],
)
def test_an_epoch_line_drops_the_least_important_parts(width, names, monkeypatch):
    (line,), _ = shown(monkeypatch, width)
    assert cell_len(line) <= width
    title, *parts = line.split("  ")
    assert title == "Epoch 1/1"
    assert [re.sub(r"[\d.]+| ", "", part).replace("ms", "s") for part in parts] == names


@pytest.mark.parametrize("width", range(31, 140, 7))
def test_no_line_and_no_bar_is_wider_than_the_terminal(width, monkeypatch):
    names = Log(**{"Größe": 1.5, "val_精度": 0.25, "f1 😀": 0.5})
    lines, live = shown(monkeypatch, width, names, epochs=2)
    assert [line[:9] for line in lines if line.startswith("Epoch")] == ["Epoch 1/2", "Epoch 2/2"]
    # A bar that fills its line would start another one. The summary may fill a line.
    assert max(cell_len(piece) for piece in live if piece.startswith("Epoch")) < width
    assert max(cell_len(line) for line in (*live, *lines)) <= width
    for line in lines:
        assert not re.search(r"\w…|\bval$", line)


def test_wide_characters_count_twice(monkeypatch):
    metrics = Log(val_精度精度精度精度=0.25)
    (line,), _ = shown(monkeypatch, 80, metrics)
    assert "val_精度精度精度精度 0.2500" in line
    assert len(line) < cell_len(line) <= 80


def test_a_plain_line_is_complete_however_long(capsys):
    model = new_model()
    model.fit(X, Y, callbacks=[Log(**{f"value_{i}": i for i in range(30)})], verbose=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert "value_29 29.0000" in line
    assert line.endswith("%)")


def test_parts_are_shortened_in_order_until_they_fit():
    parts = {"a": ["aaaa", "a", ""], "b": ["bbbb", ""], "c": ["c"]}
    order = ["a", "b", "a"]
    widths = {width: "".join(fit_to_width(parts, order, width, len).values()) for width in (9, 8, 5, 1, 0)}
    assert widths == {9: "aaaabbbbc", 8: "abbbbc", 5: "ac", 1: "c", 0: "c"}


def bar_at(clock, width, *, seconds=1.0, epoch=1, **params):
    """Return the bar in the second epoch of ten."""
    bar = ProgressBar()
    bar.console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    bar.params = {"epochs": 10, "steps": 1000, "test_steps": 100, "count_validations": lambda first, last: 0} | params
    bar.model = new_model()
    bar.model.state.last = bar.params["epochs"]
    bar.on_train_begin()
    for batch in range(700):
        if batch == 0:
            bar.on_epoch_begin(epoch)
        clock.now += seconds
        bar.on_train_batch_end(batch, {"loss": 0.5, "accuracy": 0.25})
    return ESCAPE.sub("", bar.console.file.getvalue().split("\r")[-1])


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (
            120,
            "Epoch 2/10 ━━━━━━━━━━━━━━━━━━━━  700/1000 1/s  epoch 5:00 left, all 2:18:20 left  loss 0.5000  accuracy 0.2500",
        ),
        (102, "Epoch 2/10 ━━━━━━━━━━  700/1000 1/s  epoch 5:00 left, all 2:18:20 left  loss 0.5000  accuracy 0.2500"),
        (90, "Epoch 2/10 ━━━━━━━━━━  700/1000  5:00 left, all 2:18:20  loss 0.5000  accuracy 0.2500"),
        (80, "Epoch 2/10  700/1000  5:00 left, all 2:18:20  loss 0.5000  accuracy 0.2500"),
        (60, "Epoch 2/10  700/1000  5:00 left, all 2:18:20  loss 0.5000"),
        (50, "Epoch 2/10  700/1000  5:00 left  loss 0.5000"),
        (40, "Epoch 2/10  700/1000  loss 0.5000"),
        (30, "Epoch 2/10  700/1000"),
    ],
)
def test_a_bar_drops_the_least_important_parts(width, line, clock):
    assert bar_at(clock, width) == line


def test_a_fit_of_one_epoch_has_one_remaining_time(clock):
    line = bar_at(clock, 120, epoch=0, epochs=1)
    assert "  5:00 left  loss" in line
    assert "all" not in line


def test_an_encoding_without_blocks_gets_ascii(monkeypatch):
    lines, live = shown(monkeypatch, 120, encoding="ascii")
    assert lines[0].startswith("Epoch 1/1")
    assert live[0].startswith("Epoch 1/1 --------------------")


def test_progress_is_visible_without_colors(clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "Epoch 2/10 ━━━━━━━━━━━━━━        700/1000" in bar_at(clock, 120).replace("   ", "  ", 0)


@pytest.mark.parametrize(("seconds", "text"), [(0.01, "1 s"), (11.2, "12 s"), (59.5, "1:00"), (100, "1:40")])
def test_remaining_times_are_whole_seconds(seconds, text):
    assert format_left(seconds) == text


# The end of a fit


def summary(capsys, *callbacks, epochs=3, model=None, **options):
    """Return the lines of a fit that are not those of an epoch."""
    model = model or new_model()
    model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), verbose=2, **options)
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Epoch")]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"loss": [3.0, 1.0, 2.0]}, "best loss 1.0000 in epoch 2"),
        ({"loss": [3.0, 2.0, 1.0], "val_loss": [0.5, 0.6, 0.7]}, "best val_loss 0.5000 in epoch 1"),
        ({"loss": [3.0, 2.0, 1.0], "val_loss": [None, 0.6, 0.7]}, "best val_loss 0.6000 in epoch 2"),
    ],
)
def test_the_last_line_names_the_best_epoch(values, text, capsys):
    (line,) = summary(capsys, Log(**values))
    assert re.fullmatch(rf"Trained 3 epochs in [\d.]+ m?s  {text}", line)


def test_the_best_epoch_is_that_of_the_monitored_value(capsys):
    callbacks = [Log(val_f=[0.5, 0.7, 0.6], val_loss=[1.0, 2.0, 3.0]), EarlyStopping("val_f", mode="max", patience=9)]
    (line,) = summary(capsys, *callbacks)
    assert line.endswith("best val_f 0.7000 in epoch 2")


def test_a_fit_without_finite_values_has_no_best_epoch(capsys):
    nan = float("nan")
    with pytest.warns(UserWarning, match="loss"):
        (line,) = summary(capsys, Log(loss=nan))
    assert "best" not in line


def test_the_last_line_says_where_the_run_and_the_model_are(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = summary(capsys, ModelCheckpoint("best.pt", "loss", save_best_only=True), resume="run/")
    assert line.endswith("  saved in 'run' and 'best.pt'")


def test_a_fit_of_one_epoch_has_no_last_line_unless_it_saved(capsys, tmp_path):
    model = new_model()
    assert summary(capsys, epochs=1, model=model) == []
    (line,) = summary(capsys, epochs=1, model=model, resume=tmp_path)
    assert line.startswith("Trained 1 epoch in ")


def test_a_later_fit_is_summarized_by_its_own_epochs(capsys):
    model = new_model()
    summary(capsys, Log(loss=[0.1, 0.2, 0.3, 3, 1, 2]), model=model)
    (line,) = summary(capsys, Log(loss=[0.1, 0.2, 0.3, 3.0, 1.0, 2.0]), model=model)
    assert line.endswith("best loss 1.0000 in epoch 5")


def test_a_resumed_run_is_summarized_as_a_whole(capsys, tmp_path):
    log = Log(loss=[0.1, 0.2, 0.3, 0.4])
    summary(capsys, log, epochs=2, resume=tmp_path)
    resumed, line = summary(capsys, log, epochs=4, resume=tmp_path)
    assert resumed.startswith("Resuming the run")
    assert line.startswith("Trained 2 epochs in ")
    assert "best loss 0.1000 in epoch 1" in line


# Unfinished epochs


def press_at(step, hook="on_train_batch_begin"):
    def press(batch, logs):
        if batch + 1 == step:
            signal.raise_signal(signal.SIGINT)

    return LambdaCallback(**{hook: press})


def test_an_interrupted_epoch_leaves_its_line(monkeypatch):
    lines, _ = shown(monkeypatch, 100, press_at(3), epochs=3)
    assert re.fullmatch(r"Epoch 1/3  stopped at 3/4  [\d.]+ m?s  loss \d\.\d{4}  accuracy \d\.\d{4}", lines[-1])


def test_an_interrupted_validation_leaves_its_line(capsys):
    model = new_model()
    data = {"validation_data": blob_loader(32), "on_interrupt": "return"}
    model.fit(X, Y, epochs=3, callbacks=[press_at(2, "on_test_batch_begin")], verbose=2, **data)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Epoch 1/3  stopped at validation 2/4  [\d.]+ m?s  loss \d\.\d{4}  accuracy \d\.\d{4}", line)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_line_of_its_epoch(error, capsys):
    def fail(batch, logs):
        if batch == 2:
            raise error("stop")

    model = new_model()
    with pytest.raises(error):
        model.fit(X, Y, batch_size=8, epochs=3, callbacks=[LambdaCallback(on_train_batch_begin=fail)], verbose=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Epoch 1/3  stopped at 2/4  [\d.]+ m?s  loss \d\.\d{4}  accuracy \d\.\d{4}", line)


def test_an_error_before_the_first_update_leaves_no_line(capsys):
    with pytest.raises(ValueError, match=r".+"):
        new_model().fit(X[:, :3], Y, epochs=3, verbose=2)
    assert capsys.readouterr().out == ""


def test_a_stop_between_two_epochs_leaves_no_second_line(capsys):
    stop = LambdaCallback(on_epoch_end=lambda epoch, logs: signal.raise_signal(signal.SIGINT))
    new_model().fit(X, Y, epochs=3, callbacks=[stop], on_interrupt="return", verbose=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Epoch 1/3  1 step  ")


def test_an_error_after_the_end_of_an_epoch_leaves_its_line(capsys):
    def fail(epoch, logs):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        new_model().fit(X, Y, epochs=3, callbacks=[LambdaCallback(on_epoch_end=fail)], verbose=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"Epoch 1/3  1 step  [\d.]+ m?s  loss \d\.\d{4}  accuracy \d\.\d{4}  lr", line)


def test_an_interrupted_evaluation_leaves_its_line(capsys):
    def press(batch, logs):
        if batch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_model().evaluate(X, Y, batch_size=8, callbacks=[LambdaCallback(on_test_batch_end=press)], verbose=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Evaluating  stopped at [12]/4  [\d.]+ m?s  loss \d\.\d{4}  accuracy \d\.\d{4}", line)


def test_values_that_cannot_be_read_do_not_hide_the_error(capsys):
    class Broken(dict):
        def items(self):
            raise RuntimeError("device-side assert")

    display = LineDisplay()
    display.model, display.params = new_model(), {"epochs": 1, "steps": 4}
    display.on_train_begin()
    display.on_epoch_begin(0)
    display.on_train_batch_end(1, {})
    display.model.metrics.logs = Broken()
    display.on_exception(ValueError("the error"))
    assert re.fullmatch(r"Epoch 1/1  stopped at 2/4  [\d.]+ m?s\n", capsys.readouterr().out)


# Very short epochs


def run_epochs(display, clock, count, seconds):
    display.params = {"epochs": count, "steps": 1, "test_steps": None, "count_validations": lambda first, last: 0}
    display.model = new_model()
    display.model.state.last = count
    display.on_train_begin()
    for epoch in range(count):
        display.on_epoch_begin(epoch)
        clock.now += seconds
        display.on_train_batch_end(0, {"loss": 0.5})
        display.model.recorded_history.append(epoch, {"loss": 0.5}, display.model.strategy.timer)
        display.on_epoch_end(epoch, {"loss": 0.5})
    display.on_train_end({})


def make_plain():
    return LineDisplay()


def make_bar():
    bar = ProgressBar()
    bar.console = Console(force_terminal=False, width=200, highlight=False)
    return bar


@pytest.mark.parametrize("make", [make_plain, make_bar])
def test_short_epochs_are_printed_by_time_and_the_last_always(make, clock, capsys):
    run_epochs(make(), clock, 4000, 0.003)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Epoch", "From", "Trained"))]
    numbers = [int(re.match(r"Epoch (\d+)/", line)[1]) for line in lines if line.startswith("Epoch")]
    assert numbers[:50] == list(range(1, 51))
    assert 70 <= len(numbers) <= 80  # 50, and two in each of 12 seconds
    assert numbers[-1] == 4000
    assert lines.count("From here on at most 2 epochs per second are printed; model.history has all.") == 1
    assert lines[-1].startswith(f"Trained 4,000 epochs in 12 s ({len(numbers)} printed)")


def test_epochs_of_a_second_are_all_printed(clock, capsys):
    run_epochs(LineDisplay(), clock, 200, 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("Epoch") for line in lines) == 200
    assert len(lines) == 201


def test_few_short_epochs_are_all_printed(clock, capsys):
    run_epochs(LineDisplay(), clock, 50, 0.001)
    assert capsys.readouterr().out.count("Epoch") == 50
