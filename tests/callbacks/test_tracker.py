"""Trackers: what a run gets, resumed runs, and trackers that fail."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import Every, Model
from easytorch._utils.images import to_pixels
from easytorch.callbacks import (
    GradientStatistics,
    LambdaCallback,
    MLflowLogger,
    StopAfter,
    TensorBoard,
    Tracker,
    TrackioLogger,
    WandbLogger,
    tracker,
)
from tests.loops import same_weights
from tests.many import run_ranks
from tests.scripted import UPDATES, X, Y, new_model, raising, train


class FileTracker(Tracker):
    """A tracker that appends lines of JSON to a file for each run."""

    def __init__(self, folder, **options):
        super().__init__(**options)
        self.folder = folder

    def open_run(self, run_id, config):
        random.random()  # as libraries that draw a name
        np.random.rand()
        torch.rand(())
        self.path = self.folder / (run_id or f"run-{len(list(self.folder.iterdir()))}")
        self.add(open=config)
        return self.path.name

    def read_last_steps(self):
        return tracker.last_of((name, line["step"]) for line in self.lines("values") for name in line["values"])

    def write(self, values, axis, step):
        torch.rand(())
        self.add(values=values, axis=axis, step=step)

    def write_text(self, texts, axis, step):
        self.add(texts=texts, step=step)

    def write_image(self, name, pixels, axis, step):
        self.add(image=name, shape=list(pixels.shape), step=step)

    def write_file(self, path, name):
        self.add(file=name, size=path.stat().st_size)

    def close_run(self, status):
        self.add(close=status)

    def add(self, **line):
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)

    def lines(self, kind):
        lines = map(json.loads, self.path.read_text().splitlines())
        return [line for line in lines if kind in line]

    def points(self, name):
        return [(line["step"], line["values"][name]) for line in self.lines("values") if name in line["values"]]


class Unreachable(FileTracker):
    """A tracker whose server does not answer in some of its writes."""

    def __init__(self, folder, failures, **options):
        super().__init__(folder, **options)
        self.failures, self.attempts = failures, 0

    def write(self, values, axis, step):
        self.attempts += 1
        if self.attempts in self.failures:
            raise ConnectionError("no answer")
        super().write(values, axis, step)


@pytest.fixture
def file_tracker(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return FileTracker(folder)


def new_tracker(tmp_path, **options):
    (tmp_path / "runs").mkdir(exist_ok=True)
    return FileTracker(tmp_path / "runs", **options)


# What a run gets


def test_a_run_has_the_values_of_each_epoch_at_its_index(file_tracker):
    history = train(new_model(metrics=["accuracy"]), 3, file_tracker)
    for name in history:
        assert file_tracker.points(name) == list(enumerate(history[name]))
    assert {line["axis"] for line in file_tracker.lines("values")} == {"epoch"}


def test_values_of_updates_have_a_prefix_and_their_number(tmp_path):
    logger, seen = new_tracker(tmp_path, update_freq=2), {}
    look = LambdaCallback(on_train_batch_end=lambda batch, logs: seen.update({len(seen) + 1: logs["loss"]}))
    train(new_model(), 2, look, logger)
    assert logger.points("batch_loss") == [(step, seen[step]) for step in (2, 4, 6)]
    assert logger.points("batch_lr") == [(step, 0.1) for step in (2, 4, 6)]


def test_several_optimizers_and_data_sets_have_names(tmp_path):
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    parts = {"0": ("sgd", {"lr": 0.1}), "1": ("sgd", {"lr": 0.01})}
    model, logger = Model(net, device="cpu").compile(parts, "cross_entropy"), new_tracker(tmp_path)
    train(model, 1, logger, validation_data={"clean": (X, Y), "noisy": (X + 1, Y)})
    assert logger.points("lr_0") == [(0, 0.1)]
    assert logger.points("lr_1") == [(0, 0.01)]
    assert logger.points("val_noisy_loss") == [(0, model.history["val_noisy_loss"][0])]


def test_validations_and_measurements_of_updates_are_written(file_tracker):
    model = new_model()
    train(model, 1, GradientStatistics(2), file_tracker, validation_freq=Every(updates=1))
    validations = [(row["update"], row["val_loss"]) for row in model.history.validations]
    assert file_tracker.points("batch_val_loss") == validations
    assert [step for step, _ in file_tracker.points("batch_grad_norm")] == [2]
    assert [step for step, _ in file_tracker.points("grad_norm")] == [0]


def test_logs_may_be_text_lists_tensors_and_not_finite(file_tracker):
    extra = {
        "text": "good",
        "list": [1, 2],
        "none": None,
        "tensor": torch.tensor(2.0),
        "inf": math.inf,
        "nan": math.nan,
    }
    train(new_model(), 1, LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(extra)), file_tracker)
    assert file_tracker.lines("texts")[0]["texts"] == {"text": "good", "list": "[1, 2]"}
    assert file_tracker.points("tensor") == [(0, 2.0)]
    assert file_tracker.points("inf") == [(0, math.inf)]
    assert math.isnan(file_tracker.points("nan")[0][1])
    assert not file_tracker.points("none")


def test_a_run_has_the_hyperparameters(tmp_path):
    logger = new_tracker(tmp_path, config={"data": {"size": 48, "path": tmp_path}, "layers": [8, 3]})
    model = Model(nn.Linear(8, 3), device="cpu")
    model.compile("sgd", nn.CrossEntropyLoss(label_smoothing=0.1), metrics=["accuracy"], lr=0.2, momentum=0.9)
    train(model, 2, logger)
    config = logger.lines("open")[0]["open"]
    expected = {
        "module": "Linear", "parameters": 27, "trainable_parameters": 27, "optimizer": "sgd", "lr": 0.2,
        "optimizer_momentum": 0.9, "metrics": "accuracy", "epochs": 2, "batch_size": 16, "shuffle": False, "device": "cpu",
        "precision": "fp32", "processes": 1, "data.size": 48, "layers": "8, 3", "callbacks": "FileTracker",
    }  # fmt: skip
    assert {name: config.get(name) for name in expected} == expected
    assert "CrossEntropyLoss" in config["loss"]


def test_config_never_replaces_a_true_hyperparameter(tmp_path):
    logger = new_tracker(tmp_path, config={"lr": 99, "epochs": "1", "blocks": [{"width": 8}, {"width": nn.ReLU}]})
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", lr=0.01)
    with pytest.warns(UserWarning, match=r"lr=99 \(the fit has 0\.01\).*as config\.lr\. Remove or rename") as warned:
        train(model, 1, logger)
    assert len(warned) == 1
    config = logger.lines("open")[0]["open"]
    assert (config["lr"], config["config.lr"], config["epochs"]) == (0.01, 99, 1)
    assert "config.epochs" not in config
    assert json.loads(config["blocks"]) == [{"width": 8}, {"width": "ReLU"}]


def test_names_of_values_become_text(file_tracker):
    train(new_model(), 1, file_tracker)
    file_tracker.log_values({3: 1.0, "list": [{("a", 1): 2}]})
    assert file_tracker.points("3") == [(3, 1.0)]
    assert not file_tracker._waiting


def test_the_model_is_uploaded_after_the_best_weights_are_back(tmp_path):
    train(new_model(), 1, logger := new_tracker(tmp_path, log_model=True))
    assert logger.lines("file")[0]["file"] == "model.pt"
    assert logger.lines("file")[0]["size"] > 500


def test_weights_are_those_of_a_run_without_a_tracker(tmp_path):
    def fit(*callbacks):
        model = new_model(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)))
        train(model, 2, *callbacks, shuffle=True)
        return model.module

    assert same_weights(fit(), fit(new_tracker(tmp_path, update_freq=1, log_model=True)))


def test_a_dry_run_writes_nothing(file_tracker):
    train(new_model(), 3, file_tracker, dry_run=True)
    assert not list(file_tracker.folder.iterdir())
    train(new_model(), 1, file_tracker)
    assert len(file_tracker.points("loss")) == 1


# Methods


def test_images_are_written_after_a_fit(file_tracker):
    train(new_model(), 1, file_tracker)
    file_tracker.log_image("picture", torch.rand(3, 8, 6))
    assert file_tracker.lines("image") == [{"image": "picture", "shape": [8, 6, 3], "step": 3}]


@pytest.mark.slow
def test_reports_are_written_after_a_fit(file_tracker):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    model = new_model()
    train(model, 1, file_tracker)
    report = model.report(X, Y)
    file_tracker.log_report(report)
    assert [(line["image"], line["step"]) for line in file_tracker.lines("image")] == [("report", 3)]
    accuracy = report.summary["accuracy"]
    assert file_tracker.points("report/accuracy") == [(3, accuracy.value)]
    assert file_tracker.points("report/accuracy_low") == [(3, accuracy.low)]


def test_files_and_values_are_written_in_a_hook(file_tracker, tmp_path):
    (tmp_path / "notes.txt").write_text("good")

    def log(epoch, logs):
        file_tracker.log_values({"mine": epoch})
        file_tracker.log_file(tmp_path / "notes.txt")

    train(new_model(), 2, file_tracker, LambdaCallback(on_epoch_end=log))
    assert file_tracker.points("mine") == [(3, 0.0), (6, 1.0)]
    assert len(file_tracker.lines("file")) == 2


def test_wrong_arguments_of_methods_are_errors(file_tracker, tmp_path):
    with pytest.raises(RuntimeError, match=r"log_image\(\) writes to the run of a fit.*Call fit"):
        file_tracker.log_image("picture", torch.rand(3, 8, 6))
    train(new_model(), 1, file_tracker)
    with pytest.raises(ValueError, match=r"shape \[2, 3, 8, 6\]\. For a batch of images"):
        file_tracker.log_image("picture", torch.rand(2, 3, 8, 6))
    with pytest.raises(TypeError, match=r"Pass model\.report\(x, y\)"):
        file_tracker.log_report({"accuracy": 1})
    with pytest.raises(TypeError, match="figure of matplotlib"):
        file_tracker.log_figure("figure", "file.png")
    with pytest.raises(FileNotFoundError, match="to upload"):
        file_tracker.log_file(tmp_path / "missing")
    with pytest.raises(TypeError, match=r"log_values\(\) takes a dict.*float\. Call log_values\(\{"):
        file_tracker.log_values(0.5)
    with pytest.raises(
        TypeError, match=r'log_figure\(\) takes a name.*list as the name\. Call log_figure\("name", figure\)'
    ):
        file_tracker.log_figure([], "f")
    with pytest.raises(TypeError, match=r"log_image\(\) takes a name and then the image, received Tensor"):
        file_tracker.log_image(torch.rand(3, 3), "f")
    with pytest.raises(TypeError, match=r"step of log_values\(\) must be an integer, received 'epoch'"):
        file_tracker.log_values({"a": 1}, "epoch")
    with pytest.raises(ValueError, match=r"config=vars\(args\)"):
        FileTracker(tmp_path, config=object())


@pytest.mark.parametrize(
    ("image", "shape", "extremes"),
    [
        (np.array([[0, 255]], np.uint8), (1, 2, 1), (0, 255)),
        (torch.tensor([[0.0, 0.5, 1.0]]), (1, 3, 1), (0, 255)),
        (torch.tensor([[-1.0, 3.0]]), (1, 2, 1), (0, 255)),
        (torch.tensor([[0.25, math.nan]]), (1, 2, 1), (0, 64)),
        (torch.tensor([[True, False]]), (1, 2, 1), (0, 255)),
        (torch.tensor([[10, 20]]), (1, 2, 1), (10, 20)),
        (np.array([[3, 255]], np.uint16), (1, 2, 1), (3, 255)),
        (torch.tensor([[0, 1]]), (1, 2, 1), (0, 255)),
        (torch.tensor([[0, 1000]]), (1, 2, 1), (0, 255)),
        (torch.full((2, 2), 0.2, dtype=torch.bfloat16), (2, 2, 1), (51, 51)),
        (torch.zeros(3, 5, 7), (5, 7, 3), (0, 0)),
        (torch.zeros(5, 7, 4), (5, 7, 4), (0, 0)),
        (torch.zeros(1, 28, 28), (28, 28, 1), (0, 0)),
    ],
)
def test_images_become_bytes(image, shape, extremes):
    pixels = to_pixels(image)
    assert pixels.shape == shape
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == extremes


# Runs


def test_a_second_fit_of_the_same_model_continues_the_run(file_tracker):
    model = new_model()
    for _ in range(2):
        train(model, 2, file_tracker)
    assert [step for step, _ in file_tracker.points("loss")] == [0, 1, 2, 3]
    assert file_tracker.run_id == "run-0"
    train(new_model(), 2, file_tracker)
    assert file_tracker.run_id == "run-1"
    assert [step for step, _ in file_tracker.points("loss")] == [0, 1]


def test_a_run_ends_with_its_status(tmp_path):
    def status(*callbacks):
        logger = new_tracker(tmp_path)
        train(new_model(), 2, *callbacks, logger, on_interrupt="return")
        return logger.lines("close")[-1]["close"]

    assert status() == "finished"
    assert status(StopAfter(updates=2)) == "interrupted"
    assert status(LambdaCallback(on_epoch_end=lambda *_: signal.raise_signal(signal.SIGINT))) == "interrupted"
    logger = new_tracker(tmp_path)
    with pytest.raises(RuntimeError, match="on_epoch_end failed"):
        train(new_model(), 2, raising("on_epoch_end", at=1), logger)
    assert logger.lines("close")[-1]["close"] == "failed"


@pytest.mark.parametrize("at", ["on_train_batch_end", "on_epoch_end"])
def test_a_resumed_run_is_the_same_without_double_points(at, tmp_path):
    def program(*more):
        logger = new_tracker(tmp_path, update_freq=1)
        history = train(new_model(), 3, logger, *more, resume=tmp_path / "run")
        return logger, history

    with pytest.raises(KeyError):  # no checkpoint follows
        program(Fatal(at))
    logger, history = program()
    assert logger.run_id == "run-0"
    assert logger.points("loss") == list(enumerate(history["loss"]))
    assert [step for step, _ in logger.points("batch_loss")] == list(range(1, 3 * UPDATES + 1))


class Fatal(LambdaCallback):
    """Stops in the second epoch, like a killed process: after the trackers have written, and without a checkpoint."""

    priority = 8

    def __init__(self, hook):
        super().__init__(**{hook: self.stop})

    def stop(self, index, logs):
        if self.model.state.step == UPDATES + 2 or (
            self.model.state.step == 2 * UPDATES and self.model.state.epoch == 2
        ):
            for callback in self.model.callbacks.callbacks:
                callback.on_exception = lambda error: None
            raise KeyError("killed")


def test_a_passed_run_with_points_is_reported(tmp_path):
    class Named(FileTracker):
        def _fixed_run_id(self):
            return "run-0"

    train(new_model(), 2, new_tracker(tmp_path))
    with pytest.warns(UserWarning, match=r"The run 'run-0' of Named has points already.*fit\(resume=\.\.\.\)"):
        train(new_model(), 3, logger := Named(tmp_path / "runs"))
    assert [step for step, _ in logger.points("loss")] == [0, 1, 2]


def test_a_finished_run_that_is_started_again_writes_nothing(tmp_path):
    for _ in range(2):
        train(new_model(), 2, logger := new_tracker(tmp_path), resume=tmp_path / "run")
    assert not hasattr(logger, "path")
    logger.log_values({"score": 1.0})  # a report after the fit
    assert logger.points("score") == [(6, 1.0)]
    assert logger.points("loss") == list(enumerate(logger.model.history["loss"]))


# Failures


def test_a_tracker_that_recovers_gets_all_points(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.0)
    (tmp_path / "runs").mkdir()
    plain = new_model()
    train(plain, 3)
    logger, model = Unreachable(tmp_path / "runs", {1, 2, 5}, update_freq=1), new_model()
    with pytest.warns(
        UserWarning, match=r"Unreachable failed; training continues.*ConnectionError: no answer"
    ) as warned:
        history = train(model, 3, logger)
    assert len(warned) == 1
    assert logger.points("loss") == list(enumerate(history["loss"]))
    assert [step for step, _ in logger.points("batch_loss")] == list(range(1, 10))
    assert same_weights(plain.module, model.module)


@pytest.mark.filterwarnings("ignore:Unreachable")
@pytest.mark.parametrize("seed", range(6))
def test_a_tracker_that_fails_at_random_gets_each_point_once(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.0)
    (tmp_path / "runs").mkdir()
    start = random.Random(seed).randrange(1, 12)
    logger = Unreachable(tmp_path / "runs", range(start, start + 4 * seed + 1), update_freq=1)
    model = new_model()
    train(model, 4, logger)
    train(model, 1, logger)
    for name, steps in {"loss": range(5), "batch_loss": range(1, 16), "batch_lr": range(1, 16)}.items():
        assert sorted(step for step, _ in logger.points(name)) == list(steps)


@pytest.mark.filterwarnings("ignore:Unreachable failed")
def test_a_tracker_that_does_not_answer_is_not_asked_often(tmp_path):
    (tmp_path / "runs").mkdir()
    logger = Unreachable(tmp_path / "runs", range(100), update_freq=1)
    with pytest.warns(UserWarning, match=r"could not write 12 points\. Run fit\(\.\.\., resume=folder\)"):
        train(new_model(), 3, logger)
    assert logger.attempts <= 2 + 4  # a point and its first value; at the end a point of other names too


@pytest.mark.filterwarnings("ignore:Unreachable")
def test_points_that_were_not_written_are_in_the_checkpoint(tmp_path):
    (tmp_path / "runs").mkdir()
    broken = Unreachable(tmp_path / "runs", range(2, 100))
    train(new_model(), 2, broken, resume=tmp_path / "run")
    history = train(new_model(), 3, works := Unreachable(tmp_path / "runs", ()), resume=tmp_path / "run")
    assert works.run_id == broken.run_id
    assert works.points("loss") == list(enumerate(history["loss"]))


class Selective(FileTracker):
    """A tracker that refuses long names, and images while their store is away."""

    images_work, is_away = False, False

    def write(self, values, axis, step):
        if self.is_away:
            raise ConnectionError("no answer")
        if any(len(name) > 250 for name in values):
            raise ValueError("name too long")
        super().write(values, axis, step)

    def write_image(self, name, pixels, axis, step):
        if not self.images_work:
            raise ConnectionError("no store")
        super().write_image(name, pixels, axis, step)

    write_file = write_image


@pytest.fixture
def selective(tmp_path):
    (tmp_path / "runs").mkdir()
    return Selective(tmp_path / "runs")


@pytest.mark.filterwarnings("ignore:Selective (failed|has refused values of 8 names)")
@pytest.mark.parametrize("retry_seconds", [0.0, 60.0])
def test_several_refused_metrics_do_not_block_others(selective, retry_seconds, monkeypatch):
    monkeypatch.setattr(tracker, "RETRY_SECONDS", retry_seconds)
    refused = {name * 300: 1.0 for name in "abcd"}
    selective.update_freq = Every(updates=1)
    bad = LambdaCallback(
        on_train_batch_end=lambda batch, logs: selective.on_log(refused, selective.model.state.step),
        on_epoch_end=lambda epoch, logs: logs.update(refused),
    )
    with pytest.warns(UserWarning, match="was refused by Selective"):
        history = train(new_model(), 4, bad, selective)
    for name in ("loss", "val_loss", "lr"):
        assert selective.points(name) == list(enumerate(history[name]))
    assert [step for step, _ in selective.points("batch_lr")] == list(range(1, 13))


def test_a_refused_metric_is_named_and_does_not_block_others(selective):
    bad = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update({"x" * 300: 1.0}))
    with pytest.warns(
        UserWarning, match=r"The value 'x{40}…' was refused by Selective.*ValueError: name too long"
    ) as warned:
        history = train(new_model(), 3, bad, selective)
    assert len(warned) == 1
    for name in ("loss", "val_loss", "lr"):
        assert selective.points(name) == list(enumerate(history[name]))
    assert not selective._waiting


@pytest.mark.filterwarnings("ignore:Selective failed")
@pytest.mark.parametrize("count", [1, 2, 50])
def test_refused_calls_are_named_and_do_not_block_numbers(selective, count, tmp_path):
    def log(batch, logs):
        if selective.model.state.step == 1:
            for i in range(count):
                selective.log_values({f"x{i % 2}" * 200: 1.0})

    with pytest.warns(UserWarning, match="refused") as warned:
        history = train(new_model(), 2, LambdaCallback(on_train_batch_end=log), selective, resume=tmp_path / "run")
    messages = [str(warning.message) for warning in warned]
    assert "Selective failed; training continues" in messages[0]
    assert re.search(r"log_values\('(x0){20}…'\) was refused by Selective", messages[1])
    assert len(messages) == 2 + (count > 1)
    assert selective.points("loss") == list(enumerate(history["loss"]))
    assert not selective._waiting


@pytest.mark.filterwarnings("ignore:Selective")
def test_a_checkpoint_with_refused_points_does_not_block_the_next(selective, tmp_path):
    log = LambdaCallback(on_epoch_end=lambda *_: selective.log_values({"x" * 300: 1.0}))
    selective.is_away = True
    train(new_model(), 2, log, selective, resume=tmp_path / "run")
    with pytest.warns(UserWarning, match="refused by Selective"):
        history = train(new_model(), 3, works := Selective(tmp_path / "runs"), resume=tmp_path / "run")
    assert works.points("loss") == list(enumerate(history["loss"]))
    assert len(tracker._from_json(json.dumps([["values", {"loss": 1.0}, "epoch", 0]]))) == 1  # of an older file


@pytest.mark.filterwarnings("ignore:Selective could not write 6 points")
def test_images_and_files_never_delay_numbers(selective, tmp_path):
    (tmp_path / "notes.txt").write_text("good")

    def log(batch, logs):
        selective.log_image("picture", torch.rand(4, 4))
        selective.log_file(tmp_path / "notes.txt")
        selective.log_values({"mine": 1.0})
        assert selective.points("mine")[-1][0] == selective.model.state.step

    with pytest.warns(UserWarning, match="Selective failed; training continues"):
        history = train(new_model(), 2, LambdaCallback(on_train_batch_end=log), selective)
    assert selective.points("loss") == list(enumerate(history["loss"]))
    selective.images_work = True
    train(selective.model, 1, selective)
    assert len(selective.lines("image")) == 6


@pytest.mark.filterwarnings("ignore:Selective")
def test_images_are_dropped_after_three_attempts(selective, monkeypatch):
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.0)
    log = LambdaCallback(on_train_batch_end=lambda *_: selective.log_image("picture", torch.rand(4, 4)))
    with pytest.warns(UserWarning, match=r"log_image\('picture'\) was refused by Selective.*ConnectionError: no store"):
        train(new_model(), 4, log, selective)
    assert len(selective._waiting) <= 3
    assert [step for step, _ in selective.points("loss")] == [0, 1, 2, 3]


def test_only_rank_0_writes(tmp_path):
    (tmp_path / "runs").mkdir()
    assert run_ranks(_fit_on_a_rank, tmp_path) == [["run-0"], ["run-0"]]
    values = [json.loads(line) for line in (tmp_path / "runs" / "run-0").read_text().splitlines()]
    assert [line["step"] for line in values if "values" in line and "loss" in line["values"]] == [0, 1]
    assert [line["image"] for line in values if "image" in line] == ["picture"]


def _fit_on_a_rank(tmp_path):
    logger = FileTracker(tmp_path / "runs")
    model = new_model(strategy="ddp")
    train(model, 2, logger)
    logger.log_image("picture", torch.rand(4, 4))
    model.strategy.group.barrier()
    return [path.name for path in (tmp_path / "runs").iterdir()]


@pytest.mark.filterwarnings("ignore:Selective (failed|has refused values of 10 names)")
def test_refused_points_of_many_names_are_passed_in_time(selective, monkeypatch):
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.0)
    calls = [{f"{i}{part}" * 300: 1.0 for part in "ab"} for i in range(5)]
    train(new_model(), 1, selective)
    selective._waiting.extend(tracker.Point("values", values, "step", 1) for values in calls)
    with pytest.warns(UserWarning, match="refused"):
        train(selective.model, 3, selective)
    assert [step for step, _ in selective.points("loss")] == [0, 1, 2, 3]
    assert not selective._waiting


# Libraries


@pytest.mark.parametrize(
    ("cls", "package", "extra"),
    [(WandbLogger, "wandb", "wandb"), (MLflowLogger, "mlflow", "mlflow"), (TrackioLogger, "trackio", "trackio")],
)
def test_a_missing_library_is_an_error_with_the_pip_command(cls, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "easytorch-fit\[{extra}\]"'):
        cls()


def test_an_unknown_option_of_a_library_is_an_error_with_a_hint():
    pytest.importorskip("wandb")
    with pytest.raises(
        TypeError, match=r"WandbLogger has no argument 'save_dir'\. Use WandbLogger\(\.\.\., dir='runs'\)"
    ):
        WandbLogger(save_dir="runs")
    with pytest.raises(TypeError, match=r"no argument 'projects'.* Did you mean 'project'"):
        WandbLogger(projects="digits")


def test_two_wandb_loggers_of_one_run_are_refused_before_training():
    pytest.importorskip("wandb")
    loggers = [WandbLogger("a", mode="disabled"), WandbLogger("b", mode="disabled")]
    model = new_model()
    with pytest.raises(ValueError, match=r'callbacks has 2 WandbLogger.*Pass one, or reinit="create_new"'):
        train(model, 1, *loggers)
    assert model.state.step == 0


# TensorBoard


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}
    ).Reload()


def test_tensorboard_has_images_texts_and_hyperparameters(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams import plugin_data_pb2

    model, board = new_model(metrics=["accuracy"]), TensorBoard(tmp_path, config={"note": "first"})
    text = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(text="good"))
    train(model, 2, text, board)
    board.log_image("picture", torch.rand(3, 8, 6))
    board.close_run("failed")
    events = read_events(tmp_path / "train")
    assert [(event.step, event.width, event.height) for event in events.Images("picture")] == [(6, 6, 8)]
    assert {"hyperparameters/text_summary", "epoch_text/text_summary"} <= set(events.Tags()["tensors"])
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert found["note"].string_value == "first"
    assert found["epochs"].number_value == 2
    assert events.Scalars("hparam/val_accuracy")[0].value == pytest.approx(model.history["val_accuracy"][-1])


def test_a_resumed_tensorboard_has_no_point_twice(tmp_path):
    pytest.importorskip("tensorboard")

    def program(*more):
        board = TensorBoard(tmp_path / "logs", update_freq=1, histogram_freq=1, write_steps_per_second=True)
        return train(new_model(), 3, board, GradientStatistics(1), *more, resume=tmp_path / "run")

    with pytest.raises(KeyError):
        program(Fatal("on_epoch_end"))
    history = program()
    events = read_events(tmp_path / "logs" / "train")
    for name, steps in {
        "epoch_loss": [0, 1, 2],
        "epoch_steps_per_second": [0, 1, 2],
        "batch_loss": list(range(1, 10)),
        "grad_norm": list(range(1, 10)),
    }.items():
        assert [event.step for event in events.Scalars(name)] == steps, name
    assert [event.step for event in events.Histograms("weight")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("epoch_loss")] == [
        pytest.approx(value) for value in history["loss"]
    ]
    assert [event.step for event in read_events(tmp_path / "logs/validation").Scalars("epoch_loss")] == [0, 1, 2]
