"""Progress of measurements, and errors about their data."""

from __future__ import annotations

import contextlib
import re
import sys

import pytest
from torch import nn

from easytorch import Model
from easytorch.tuning.progress import StepDisplay
from tests.loops import blobs

X, Y = blobs(64)
METHODS = ["find_lr", "find_batch_size", "tune_speed"]


def new_model():
    return Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")


def test_a_pipe_gets_a_line_per_step(capsys):
    with StepDisplay("find_lr", "auto") as display:
        display.show("first")
        display.show("second")
    assert capsys.readouterr().out == "find_lr: first\nfind_lr: second\n"


def test_a_terminal_gets_one_line_that_disappears(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with StepDisplay("find_lr", "auto") as display:
        display.show("long step")
        display.show("step")
        display.show("x" * 200)
    out = capsys.readouterr().out
    assert "\n" not in out
    parts = out.split("\r")
    assert parts[1:3] == ["find_lr: long step", "find_lr: step     "]
    assert parts[-2:] == [" " * 79, ""]


def test_0_displays_nothing_and_2_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for verbose, is_main, text in ((0, True, ""), ("auto", False, ""), (2, True, "a: b\n")):
        with StepDisplay("a", verbose, is_main) as display:
            display.show("b")
        assert capsys.readouterr().out == text


def test_an_error_removes_the_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    display = StepDisplay("a", "auto")
    with contextlib.suppress(KeyError), display:
        display.show("b")
        raise KeyError
    assert capsys.readouterr().out.endswith("\r    \r")


def test_find_lr_displays_each_training(capsys):
    found = new_model().find_lr(X, Y, updates=20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "find_lr: range test of up to 20 updates, lr from 1e-06 to 10"
    assert len(lines) == 1 + len(found.scores)
    assert all(re.match(r"find_lr: short training of 20 updates with lr=[\d.e+-]+$", line) for line in lines[1:])


def test_find_batch_size_displays_each_size_and_round(capsys, monkeypatch):
    monkeypatch.setattr("easytorch.tuning.sizes.SECONDS", 0.0)
    new_model().find_batch_size(X, Y, max_size=16)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "find_batch_size: batch size 8",
        "find_batch_size: batch size 16",
        "find_batch_size: round 2 of 3, batch sizes 8 to 16",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_arguments_without_an_effect_are_refused(method):
    find = getattr(new_model(), method)
    with pytest.raises(
        TypeError, match=rf"{method}\(\) takes the targets as its second argument, received the number 5"
    ):
        find([(X, Y)], 5)
    with pytest.raises(TypeError, match=r"received the name 'data\.csv'\. Read it: frame = pandas\.read_csv"):
        find("data.csv")
    with pytest.raises(ValueError, match="Unknown verbose 'silent'"):
        find(X, Y, verbose="silent")
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        find(X, Y, epochs=3)


def test_sizes_that_are_slow_are_measured_twice():
    from easytorch.tuning.sizes import search
    from easytorch.tuning.timing import Timing

    calls = []

    def measure(size):
        calls.append(size)
        return Timing(0.010 + 0.001 * size, size)

    assert search(measure, 1, 4096).suggestion == 128
    assert calls.count(1) == 2
    assert calls.count(1024) == 3
