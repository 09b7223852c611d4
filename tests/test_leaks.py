"""Memory, threads, files and processes after many fits."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import (
    EMA,
    BackupAndRestore,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from tests.cases import slow_after_first
from tests.loops import blobs, mlp

MB = 2**20
X, Y = blobs(50)
ROWS = TensorDataset(X, Y)


def compiled_model(**options):
    return Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], **options)


# Scenarios, each of which runs many times in a separate process


def train_new_model(folder):
    """Create, train, evaluate, use and delete a model."""
    model = compiled_model()
    model.fit(X, Y, epochs=1, batch_size=25, validation_data=(X, Y), verbose=0)
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)


def train_same_model(folder, models=[]):  # noqa: B006 - the model of all calls
    if not models:
        models.append(compiled_model())
    models[0].fit(X, Y, epochs=1, batch_size=25, verbose=0)


def train_with_callbacks(folder):
    model = compiled_model()
    callbacks = [
        EMA(0.9),
        EarlyStopping("val_loss", patience=3, restore_best_weights=True),
        ReduceLROnPlateau("val_loss"),
        ModelCheckpoint(folder / "model.pt"),
        CSVLogger(folder / "log.csv"),
        LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    ]
    model.fit(X, Y, epochs=1, batch_size=25, validation_data=(X, Y), callbacks=callbacks, verbose=0)
    model.load(folder / "model.pt")


def resume_training(folder, rounds=[0]):  # noqa: B006 - counts the calls
    rounds[0] += 1
    run = folder / f"run-{rounds[0] // 2}"
    compiled_model().fit(X, Y, epochs=1 + rounds[0] % 2, batch_size=25, resume=run, verbose=0)


def fail_in_training(folder):
    def fail(batch, logs):
        raise RuntimeError("a callback fails")

    with pytest.raises(RuntimeError, match="a callback fails"):
        compiled_model().fit(X, Y, callbacks=[LambdaCallback(on_train_batch_end=fail)], verbose=0)
    with pytest.raises(ValueError):
        compiled_model().fit(X[:, :5], Y, verbose=0)


def train_with_worker(folder):
    loader = DataLoader(ROWS, 25, shuffle=True, num_workers=1)
    compiled_model().fit(loader, epochs=1, validation_data=loader, resume=folder / "run", verbose=0)


def train_with_persistent_worker(folder):
    loader = DataLoader(ROWS, 25, shuffle=True, num_workers=1, persistent_workers=True)
    compiled_model().fit(loader, epochs=1, verbose=0)


# Number of runs before and during the measurement.
SCENARIOS = {
    train_new_model: (100, 500),
    train_same_model: (100, 500),
    train_with_callbacks: (50, 100),
    resume_training: (50, 100),
    fail_in_training: (50, 100),
    train_with_worker: (4, 12),
    train_with_persistent_worker: (4, 12),
}


# The process that runs a scenario


def count_children():
    """Return the number of child processes of this process, zombies included."""
    parent_line = f"\nPPid:\t{os.getpid()}\n"
    number = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        # The process may exit after the listing.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            number += parent_line in status.read_text()
    return number


def count_resources():
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return {
        "memory": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
        "children": count_children(),
        "modules": sum(issubclass(type(value), nn.Module) for value in gc.get_objects()),
    }


def main():
    torch.set_num_threads(1)
    scenario = next(function for function in SCENARIOS if function.__name__ == sys.argv[1])
    warmup, repeats = SCENARIOS[scenario]
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork")
        folder = Path(name)
        for number in range(warmup + repeats):
            if number == warmup:
                before = count_resources()
            scenario(folder)
        after = count_resources()
        # The thread that feeds a worker may exit a moment later.
        deadline = time.monotonic() + 10
        while after["threads"] > before["threads"] and time.monotonic() < deadline:
            time.sleep(0.05)
            after = count_resources()
    print(json.dumps({"before": before, "after": after}))


linux = pytest.mark.skipif(sys.platform != "linux", reason="the counts come from /proc, which only Linux has")


@linux
@pytest.mark.parametrize("scenario", slow_after_first(SCENARIOS), ids=lambda scenario: scenario.__name__)
def test_hundreds_of_fits_do_not_leak_resources(scenario, tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.test_leaks", scenario.__name__, str(tmp_path)],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    counts = json.loads(process.stdout.splitlines()[-1])
    before, after = counts["before"], counts["after"]
    assert after["memory"] - before["memory"] < 5 * MB, counts
    for resource in ("threads", "files", "children", "modules"):
        assert after[resource] <= before[resource], counts
    assert after["children"] == 0


# References to a deleted model


def are_freed(use_model):
    """Return, for the model, its module and its optimizer, whether each is freed after ``use_model(model)``."""
    model = compiled_model()
    references = [weakref.ref(model), weakref.ref(model.module), weakref.ref(model.optimizer)]
    use_model(model)
    del model
    gc.collect()
    return [reference() is None for reference in references]


def fit_that_raises(error, **options):
    """Return a function that fits a model and ends with ``error``, by a callback or by wrong options."""

    def stop(batch, logs):
        raise error

    def use_model(model):
        callbacks = [] if options else [LambdaCallback(on_train_batch_end=stop)]
        with pytest.raises(error):
            model.fit(X, Y, callbacks=callbacks, verbose=0, **options)

    return use_model


USES = {
    "nothing": lambda model: None,
    "fit": lambda model: model.fit(X, Y, verbose=0),
    "fit with validation": lambda model: model.fit(X, Y, validation_split=0.2, verbose=0),
    "evaluate and predict": lambda model: (model.evaluate(X, Y, verbose=0), model.predict(X, verbose=0)),
    "a failing callback": fit_that_raises(RuntimeError),
    "a wrong argument": fit_that_raises(ValueError, sample_weight=torch.ones(7)),
    "Ctrl-C": fit_that_raises(KeyboardInterrupt),
    "a display": lambda model: model.fit(X, Y, verbose=1),
    "summary": lambda model: model.summary(),
}


@pytest.mark.parametrize("use_name", USES)
def test_a_deleted_model_is_freed(use_name, capsys):
    assert all(are_freed(USES[use_name]))


@pytest.mark.parametrize("result", ["loader", "predictions", "log"])
def test_the_results_of_fit_do_not_reference_the_model(result, tmp_path):
    loader, results = DataLoader(ROWS, 25, shuffle=True), []

    def use_model(model):
        callbacks = [
            EMA(0.9),
            EarlyStopping("loss"),
            BackupAndRestore(tmp_path / "run"),
            ModelCheckpoint(tmp_path / "m.pt"),
        ]
        history = model.fit(loader, epochs=2, callbacks=callbacks, verbose=0)
        kinds = {"loader": loader, "predictions": model.predict(X, verbose=0), "log": history.history}
        results.append(kinds[result])

    assert all(are_freed(use_model))
    assert results


def test_reused_callbacks_release_the_first_model():
    callbacks = [EarlyStopping("loss"), ReduceLROnPlateau("loss")]

    def use_model(model):
        model.fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)
        compiled_model().fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)

    assert all(are_freed(use_model))


def test_fit_does_not_change_the_loader_or_its_sampler():
    loader = DataLoader(ROWS, 25, shuffle=True)
    before = dict(vars(loader))
    compiled_model().fit(loader, epochs=2, validation_data=loader, verbose=0)
    assert {name: value is before[name] for name, value in vars(loader).items()} == dict.fromkeys(before, True)


@linux
@pytest.mark.parametrize("persistent", [False, True], ids=["workers", "persistent workers"])
@pytest.mark.parametrize("end", slow_after_first(["normal end", "error", "Ctrl-C"]))
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_no_worker_survives_fit(end, persistent):
    def stop(batch, logs):
        if end != "normal end":
            raise {"error": RuntimeError, "Ctrl-C": KeyboardInterrupt}[end]

    before = count_resources()
    loader = DataLoader(ROWS, 10, shuffle=True, num_workers=1, persistent_workers=persistent)
    model = compiled_model()
    try:
        model.fit(loader, epochs=2, callbacks=[LambdaCallback(on_train_batch_end=stop)], verbose=0)
    except (RuntimeError, KeyboardInterrupt):
        assert end != "normal end"
    # multiprocessing may have started a resource tracker in an earlier test.
    assert count_resources()["children"] == before["children"]
    del model, loader
    assert count_resources()["files"] <= before["files"]


@linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_fit_releases_the_memory_shared_by_workers():
    before = count_resources()
    model = compiled_model()
    model.fit(DataLoader(ROWS, 10, shuffle=True, num_workers=1), verbose=0)
    assert count_resources()["files"] <= before["files"]
    assert model.state.step == 5


def test_the_counters_detect_a_leak():
    if sys.platform != "linux":
        pytest.skip("the counts come from /proc, which only Linux has")
    before = count_resources()
    with open(os.devnull) as file, subprocess.Popen(["sleep", "10"]) as child:
        leak = [torch.ones(16 * MB), mlp(), file]  # 64 MB, too large for memory that was freed before
        after = count_resources()
        child.terminate()
    assert leak
    assert after["memory"] - before["memory"] > 50 * MB
    assert (after["files"], after["children"]) == (before["files"] + 1, before["children"] + 1)
    assert after["modules"] > before["modules"]


if __name__ == "__main__":
    main()
