"""Promise 5: a process can fit all day; memory, threads, files and children stay what they were, and models go when dropped."""

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


def compiled(**options):
    return Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], **options)


# What is done again and again, each in a process of its own


def anew(folder):
    """Make a model, train, measure, predict and drop it."""
    model = compiled()
    model.fit(X, Y, epochs=1, batch_size=25, validation_data=(X, Y), verbose=0)
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)


def same_model(folder, models=[]):  # noqa: B006 - the one that is trained again and again
    if not models:
        models.append(compiled())
    models[0].fit(X, Y, epochs=1, batch_size=25, verbose=0)


def with_callbacks(folder):
    model = compiled()
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


def with_resume(folder, rounds=[0]):  # noqa: B006 - counts the calls
    rounds[0] += 1
    run = folder / f"run-{rounds[0] // 2}"
    compiled().fit(X, Y, epochs=1 + rounds[0] % 2, batch_size=25, resume=run, verbose=0)


def with_failures(folder):
    def fail(batch, logs):
        raise RuntimeError("a callback fails")

    with pytest.raises(RuntimeError, match="a callback fails"):
        compiled().fit(X, Y, callbacks=[LambdaCallback(on_train_batch_end=fail)], verbose=0)
    with pytest.raises(ValueError):
        compiled().fit(X[:, :5], Y, verbose=0)


def with_worker(folder):
    loader = DataLoader(ROWS, 25, shuffle=True, num_workers=1)
    compiled().fit(loader, epochs=1, validation_data=loader, resume=folder / "run", verbose=0)


def with_lasting_worker(folder):
    loader = DataLoader(ROWS, 25, shuffle=True, num_workers=1, persistent_workers=True)
    compiled().fit(loader, epochs=1, verbose=0)


SCENARIOS = {  # how often before the measurement, and how often in it
    anew: (100, 500),
    same_model: (100, 500),
    with_callbacks: (50, 100),
    with_resume: (50, 100),
    with_failures: (50, 100),
    with_worker: (4, 12),
    with_lasting_worker: (4, 12),
}


# The process that counts


def children():
    """How many processes have this one as their parent, those included that ended and were not waited for."""
    mine = f"\nPPid:\t{os.getpid()}\n"
    number = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            number += mine in status.read_text()
    return number


def counts():
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return {
        "memory": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
        "children": children(),
        "modules": sum(issubclass(type(one), nn.Module) for one in gc.get_objects()),
    }


def main():
    torch.set_num_threads(1)
    scenario = next(one for one in SCENARIOS if one.__name__ == sys.argv[1])
    warm, times = SCENARIOS[scenario]
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork")
        folder = Path(name)
        for number in range(warm + times):
            if number == warm:
                before = counts()
            scenario(folder)
        after = counts()
        deadline = time.monotonic() + 10  # the thread that fed a worker may need a moment to see that it is done
        while after["threads"] > before["threads"] and time.monotonic() < deadline:
            time.sleep(0.05)
            after = counts()
    print(json.dumps({"before": before, "after": after}))


linux = pytest.mark.skipif(sys.platform != "linux", reason="the counts come from /proc, which only Linux has")


@linux
@pytest.mark.parametrize("scenario", slow_after_first(SCENARIOS), ids=lambda one: one.__name__)
def test_after_hundreds_of_fits_the_process_has_what_it_had(scenario, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.test_leaks", scenario.__name__, str(tmp_path)],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    before, after = told["before"], told["after"]
    assert after["memory"] - before["memory"] < 5 * MB, told
    for what in ("threads", "files", "children", "modules"):
        assert after[what] <= before[what], told
    assert after["children"] == 0


# What is left of a model that nobody holds any more


def dropped(use):
    """Return whether ``use`` lets go of the model that it is given."""
    model = compiled()
    references = [weakref.ref(model), weakref.ref(model.module), weakref.ref(model.optimizer)]
    use(model)
    del model
    gc.collect()
    return [reference() is None for reference in references]


def failing(error, **options):
    """Return a use that ends with ``error``: raised after an update, unless the options are what is wrong."""

    def stop(batch, logs):
        raise error

    def use(model):
        callbacks = [] if options else [LambdaCallback(on_train_batch_end=stop)]
        with pytest.raises(error):
            model.fit(X, Y, callbacks=callbacks, verbose=0, **options)

    return use


USES = {
    "nothing": lambda model: None,
    "fit": lambda model: model.fit(X, Y, verbose=0),
    "fit with validation": lambda model: model.fit(X, Y, validation_split=0.2, verbose=0),
    "evaluate and predict": lambda model: (model.evaluate(X, Y, verbose=0), model.predict(X, verbose=0)),
    "a failing callback": failing(RuntimeError),
    "a wrong argument": failing(ValueError, sample_weight=torch.ones(7)),
    "Ctrl-C": failing(KeyboardInterrupt),
    "a display": lambda model: model.fit(X, Y, verbose=1),
    "summary": lambda model: model.summary(),
}


@pytest.mark.parametrize("use", USES)
def test_nothing_holds_a_dropped_model(use, capsys):
    assert all(dropped(USES[use]))


@pytest.mark.parametrize("kept", ["loader", "predictions", "log"])
def test_what_a_user_keeps_of_a_fit_does_not_hold_the_model(kept, tmp_path):
    loader, keep = DataLoader(ROWS, 25, shuffle=True), []

    def use(model):
        callbacks = [
            EMA(0.9),
            EarlyStopping("loss"),
            BackupAndRestore(tmp_path / "run"),
            ModelCheckpoint(tmp_path / "m.pt"),
        ]
        history = model.fit(loader, epochs=2, callbacks=callbacks, verbose=0)
        kinds = {"loader": loader, "predictions": model.predict(X, verbose=0), "log": history.history}
        keep.append(kinds[kept])

    assert all(dropped(use))
    assert keep


def test_callbacks_that_are_used_again_let_go_of_the_first_model():
    callbacks = [EarlyStopping("loss"), ReduceLROnPlateau("loss")]

    def use(model):
        model.fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)
        compiled().fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)

    assert all(dropped(use))


def test_fit_does_not_change_the_loader_or_its_sampler():
    loader = DataLoader(ROWS, 25, shuffle=True)
    before = dict(vars(loader))
    compiled().fit(loader, epochs=2, validation_data=loader, verbose=0)
    assert {name: value is before[name] for name, value in vars(loader).items()} == dict.fromkeys(before, True)


@linux
@pytest.mark.parametrize("lasting", [False, True], ids=["workers", "persistent workers"])
@pytest.mark.parametrize("end", slow_after_first(["as planned", "by an error", "by Ctrl-C"]))
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_no_worker_outlives_fit(end, lasting):
    def stop(batch, logs):
        if end != "as planned":
            raise {"by an error": RuntimeError, "by Ctrl-C": KeyboardInterrupt}[end]

    before = counts()
    loader = DataLoader(ROWS, 10, shuffle=True, num_workers=1, persistent_workers=lasting)
    model = compiled()
    try:
        model.fit(loader, epochs=2, callbacks=[LambdaCallback(on_train_batch_end=stop)], verbose=0)
    except (RuntimeError, KeyboardInterrupt):
        assert end != "as planned"
    assert counts()["children"] == before["children"] == 0
    del model, loader
    assert counts()["files"] <= before["files"]


@linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_model_keeps_no_memory_that_its_loaders_workers_shared():
    before = counts()
    model = compiled()
    model.fit(DataLoader(ROWS, 10, shuffle=True, num_workers=1), verbose=0)
    assert counts()["files"] <= before["files"]
    assert model.state.step == 5


def test_the_counts_see_a_leak():
    if sys.platform != "linux":
        pytest.skip("the counts come from /proc, which only Linux has")
    before = counts()
    with open(os.devnull) as file, subprocess.Popen(["sleep", "10"]) as child:
        leak = [torch.ones(4 * MB), mlp(), file]
        after = counts()
        child.terminate()
    assert leak
    assert after["memory"] - before["memory"] > 10 * MB
    assert (after["files"], after["children"]) == (before["files"] + 1, before["children"] + 1)
    assert after["modules"] > before["modules"]


if __name__ == "__main__":
    main()
