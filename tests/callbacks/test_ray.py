"""Ray Tune and Ray Train on one machine: reports, pruned trials, and runs that continue exactly."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import Callback, RayReport
from tests.many import run_ranks

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (easytorch-fit[ray])")


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "easytorch-fit\[ray\]"'):
        RayReport()


@pytest.fixture(scope="module")
def session():
    """Ray with two processors, in a folder whose paths are short enough for sockets."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import ray

        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=100 * 2**20,
                runtime_env={"env_vars": paths},
                _temp_dir=folder,
            )
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def limit():
    """End a test that hangs; on a busy machine, each process of Ray takes a minute to start."""

    def end(number, frame):
        raise TimeoutError("Ray has not finished in 10 minutes")

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


class FailOnce(Callback):
    """Fails in one rank in the middle of an epoch, the first time."""

    def __init__(self, marker, epoch=1, rank=0):
        self.marker, self.epoch, self.rank = str(marker), epoch, rank

    def on_train_batch_end(self, batch, logs=None):
        is_due = self.model.state.epoch == self.epoch and batch == 3
        if is_due and self.model.strategy.group.rank == self.rank and not os.path.exists(self.marker):
            Path(self.marker).touch()
            raise RuntimeError("a failure of this test")


def weights_of(checkpoint):
    with checkpoint.as_directory() as folder:
        (path,) = Path(folder).glob("step-*.pt")
        return torch.load(path)["module"]


def is_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def tuned(config):
    """Train as ``examples/ray_tune.py`` does, with a failure."""
    from examples.ray_tune import load, new_model

    x, x_val, y, y_val = load()
    callbacks = [RayReport(), FailOnce(config["marker"])] if config["report"] else []
    if config["lr"] < 1e-3:
        callbacks = callbacks[:1]
    model = new_model(config["lr"])
    model.fit(x, y, epochs=config["epochs"], validation_data=(x_val, y_val), callbacks=callbacks, verbose=0)
    return model


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Ray
def test_tune_prunes_trials_and_resumes_one_exactly(session, limit, tmp_path, monkeypatch):
    from examples import ray_tune

    space = {"marker": str(tmp_path / "failed"), "report": True}
    monkeypatch.setattr(ray_tune, "train", session.tune.with_parameters(with_space, space=space))
    searches, search = [], ray_tune.search
    monkeypatch.setattr(ray_tune, "search", lambda *args: searches.append(search(*args)) or searches[0])
    best = ray_tune.main(["--quick", "--storage", str(tmp_path / "results")])
    assert (tmp_path / "failed").exists()
    assert best.config["lr"] == 0.01
    assert best.metrics["epoch"] == best.metrics["training_iteration"] == 4
    # ASHA stops the other trial, unless that was the first to reach an epoch.
    assert min(result.metrics["epoch"] for result in searches[0]) in (2, 4)
    expected = tuned({"lr": 0.01, "epochs": 4, "report": False})
    assert is_equal(weights_of(best.checkpoint), expected.module.state_dict())
    with best.checkpoint.as_directory() as folder:
        loaded = ray_tune.new_model(0.01).load(folder)
    assert loaded.state.epoch == 4


def with_space(config, space):
    tuned({**config, **space})


@needs_ray
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.filterwarnings("default")  # those of Ray
def test_train_restarts_its_workers_and_continues_exactly(session, limit, tmp_path, monkeypatch):
    from examples import ray_train

    failing = FailOnce(tmp_path / "failed", rank=1)
    run = ray_train.run
    monkeypatch.setattr(ray_train, "run", lambda *args: run(*args, [failing]))
    result = ray_train.main(["--quick", "--storage", str(tmp_path / "results")])
    assert (tmp_path / "failed").exists()
    assert result.metrics["epoch"] == 3
    run_ranks(train_without_ray, tmp_path)
    assert is_equal(weights_of(result.checkpoint), torch.load(tmp_path / "expected.pt"))


def train_without_ray(folder):
    from examples import ray_train

    models = []
    patch = pytest.MonkeyPatch()
    patch.setattr(ray_train, "RayReport", lambda: Remember(models))
    ray_train.train({"epochs": 3, "callbacks": []})
    patch.undo()
    torch.save(models[0].module.state_dict(), folder / "expected.pt")


class Remember(Callback):
    def __init__(self, models):
        self.models = models

    def on_train_end(self, logs=None):
        self.models.append(self.model)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Ray
def test_wrong_uses_are_errors_with_a_fix(session, tmp_path):
    x, y = torch.randn(20, 4), torch.randint(2, (20,))
    model = Model(torch.nn.Linear(4, 2), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(RuntimeError, match=r"found no session of Ray.*resume='run/'"):
        model.fit(x, y, callbacks=[RayReport()], verbose=0)
    with pytest.raises(ValueError, match="RayReport reports 'val_los'"):
        model.fit(x, y, callbacks=[RayReport("val_los")], verbose=0)
    with pytest.raises(ValueError, match=r"both resume the run\. Remove resume="):
        model.fit(x, y, callbacks=[RayReport()], resume=tmp_path, verbose=0)
    with pytest.raises(TypeError, match="metrics must be names"):
        RayReport([1])
    model.fit(x, y, callbacks=[RayReport()], dry_run=True, verbose=0)
