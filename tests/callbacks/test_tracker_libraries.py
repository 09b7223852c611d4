"""W&B, MLflow, TensorBoard and Trackio: what their files contain, also after a process was killed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import LambdaCallback, MLflowLogger, TrackioLogger, WandbLogger
from easytorch.callbacks.tracker import last_of
from easytorch.callbacks.wandb_files import read_history
from tests.loops import same_weights
from tests.scripted import new_model, train

pytestmark = [
    pytest.mark.slow,
    # MLflow uses functions of SQLAlchemy that are deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

# The program of a process that may be killed, or fail, after an update.
PROGRAM = """
import os, signal, sys
from easytorch.callbacks import *
from tests.scripted import new_model, train

class Kill(Callback):
    priority = 8  # after the trackers, before a checkpoint
    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == 8 and "kill" in sys.argv[2]:
            if "flush" in sys.argv[2]:
                FLUSH
            os.kill(os.getpid(), signal.SIGKILL)

logger = LOGGER
train(new_model(), 4, logger, Kill(), resume="run", validation_data=None)
logger.log_values({"score": 0.5})
print(logger.run_id)
"""
LOGGERS = {
    "wandb": (
        "WandbLogger('digits', mode='offline', update_freq=1)",
        "logger.run.finish(); import time; time.sleep(1)",
    ),
    "mlflow": ("MLflowLogger('digits', tracking_uri='sqlite:///mlflow.db', update_freq=1)", "pass"),
    "trackio": ("TrackioLogger('digits', update_freq=1)", "import time; time.sleep(2)"),
    "tensorboard": ("TensorBoard('logs', update_freq=1)", "pass"),
}


def environment(folder):
    """Return variables that keep each library within ``folder``, and off the network."""
    names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "TRACKIO_DIR", "HF_HOME")
    variables = {name: str(folder / name.lower()) for name in names}
    for path in variables.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    return variables | {
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HOME": str(folder),
    }


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def require(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def run_program(name, mode):
    logger, flush = LOGGERS[name]
    code = PROGRAM.replace("LOGGER", logger).replace("FLUSH", flush)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", code, name, mode],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == (-9 if mode != "run" else 0), process.stderr
    return process.stdout.split()[-1] if mode == "run" else ""


def read_points(name, run_id):
    """Return the steps of each value in the files of a library, in their order."""
    steps: dict[str, list[int]] = {}
    for value, step in globals()[f"points_of_{name}"](run_id):
        steps.setdefault(value, []).append(step)
    return steps


def points_of_wandb(run_id):
    for path in sorted(Path(os.environ["WANDB_DIR"]).glob(f"wandb/offline-run-*-{run_id}/*.wandb")):
        for row in read_history(path):
            axis = "epoch" if "epoch" in row else "step"
            yield from ((name, row[axis]) for name in row)


def points_of_mlflow(run_id):
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    for name in client.get_run(run_id).data.metrics:
        yield from ((name, metric.step) for metric in client.get_metric_history(run_id, name))


def points_of_trackio(run_id):
    # The library reads its folder when it is imported.
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage; rows = SQLiteStorage.get_logs('digits', "
        "run=sys.argv[1]); print(json.dumps([(name, row['step']) for row in rows for name in row]))"
    )
    result = subprocess.run([sys.executable, "-c", code, run_id], capture_output=True, text=True, check=True)
    yield from json.loads(result.stdout.splitlines()[-1])


def points_of_tensorboard(run_id):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("logs/train", size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        yield from ((tag.removeprefix("epoch_"), event.step) for event in events.Scalars(tag))


# MLflow writes at once; the tests of trackers have a TensorBoard that has written everything.
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("wandb", "kill"),
        ("wandb", "kill flush"),
        ("mlflow", "kill"),
        ("trackio", "kill"),
        ("trackio", "kill flush"),
        ("tensorboard", "kill"),
    ],
)
def test_a_killed_run_continues_without_double_points(name, mode):
    """With "flush", the library has written all points; otherwise it may have lost some in its memory."""
    require(name)
    run_program(name, mode)
    steps = read_points(name, run_program(name, "run"))
    assert steps["loss"] == [0, 1, 2, 3]
    assert steps["batch_loss"] == list(range(1, 13))
    assert steps["score"] == [12]


# W&B


@pytest.fixture
def wandb_logger():
    require("wandb")
    logger = WandbLogger("digits", mode="offline", update_freq=2, config={"note": "first"}, log_model=True)
    yield logger
    logger.finish()


def test_wandb_has_rows_images_and_numbers_not_finite(wandb_logger, capfd):
    model, plain = new_model(), new_model()
    train(plain, 2)
    strange = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(text="good", inf=math.inf, nan=math.nan))
    train(model, 2, strange, wandb_logger)
    wandb_logger.log_image("picture", torch.rand(3, 8, 6))
    path = Path(wandb_logger.run.settings.sync_file)
    assert wandb_logger.run.config["note"] == "first"
    assert wandb_logger.run.config["epochs"] == 2
    assert wandb_logger.url is None
    wandb_logger.finish()
    rows = list(read_history(path))
    assert [(row["epoch"], row["loss"]) for row in rows if "loss" in row] == list(enumerate(model.history["loss"]))
    assert [row["step"] for row in rows if "batch_loss" in row] == [2, 4, 6]
    assert [row["text"] for row in rows if "text" in row] == ["good", "good"]
    assert [row["inf"] for row in rows if "inf" in row] == [math.inf, math.inf]
    assert [row["picture"]["height"] for row in rows if "picture" in row] == [8]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert same_weights(plain.module, model.module)
    assert capfd.readouterr() == ("", "")


def test_wandb_uses_a_run_of_the_user_and_leaves_it_open(wandb_logger):
    import wandb

    run = wandb.init(project="mine", mode="offline", settings=wandb.Settings(silent=True, console="off"))
    train(new_model(), 1, wandb_logger)
    assert wandb_logger.run_id == run.id
    wandb_logger.finish()
    run.log({"still": "open"})
    run.finish()
    other = wandb.init(project="mine", mode="offline", settings=wandb.Settings(silent=True, console="off"))
    train(new_model(), 1, logger := WandbLogger(run=other))
    assert logger.run_id == other.id
    other.finish()


def test_two_wandb_loggers_have_separate_runs_with_create_new():
    require("wandb")
    loggers = [WandbLogger(name, mode="offline", reinit="create_new") for name in ("a", "b")]
    train(new_model(), 2, *loggers)
    first, second = loggers
    assert first.run_id != second.run_id
    assert [logger.run.summary["epoch"] for logger in loggers] == [1, 1]
    for logger in loggers:
        logger.finish()


def test_wandb_without_a_key_asks_for_none_and_warns():
    require("wandb")
    with pytest.warns(UserWarning, match=r"There is no API key of W&B, so the run is only in .*`wandb sync`"):
        train(new_model(), 1, logger := WandbLogger("digits"))
    first = logger.run_id
    with pytest.warns(UserWarning, match="no API key"):
        train(new_model(), 1, logger)
    assert logger.run_id != first
    logger.finish()
    with pytest.raises(ValueError, match="mode must be 'online', 'offline' or 'disabled', received 'off'"):
        WandbLogger(mode="off")


# MLflow


def test_mlflow_has_parameters_metrics_images_and_the_model(tmp_path, capfd):
    require("mlflow")
    from mlflow import MlflowClient

    uri = "sqlite:///new/mlflow.db"
    model, plain = new_model(), new_model()
    train(plain, 2)
    strange = LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update({"text": "good", "inf": math.inf, "top@5": 1.0})
    )
    logger = MLflowLogger("digits", tracking_uri=uri, run_name="one", tags={"team": "a"}, log_model=True)
    train(model, 2, strange, logger)
    logger.log_image("picture", torch.rand(3, 8, 6))
    client = MlflowClient(uri)
    run = client.get_run(logger.run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["team"], run.data.tags["text"]) == (
        "FINISHED",
        "one",
        "a",
        "good",
    )
    assert run.data.params["epochs"] == "2"
    history = client.get_metric_history(logger.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(model.history["loss"]))
    assert math.isnan(run.data.metrics["inf"])
    assert run.data.metrics["top_5"] == 1.0
    files = tmp_path / "new/mlartifacts" / logger.run_id / "artifacts"
    assert (files / "images/picture/6.png").is_file()
    assert same_weights(Model(torch.nn.Linear(8, 3)).load(files / "model.pt").module, model.module)
    assert same_weights(plain.module, model.module)
    # The same parameters of a longer fit cannot be changed.
    train(model, 3, logger)
    run = client.get_run(logger.run_id)
    assert (run.data.params["epochs"], run.data.tags["continued.epochs"]) == ("2", "3")
    with pytest.raises(KeyError):
        train(model, 1, LambdaCallback(on_epoch_end=lambda epoch, logs: logs["missing"]), logger)
    assert client.get_run(logger.run_id).info.status == "FAILED"
    assert capfd.readouterr() == ("", "")
    check_active_run(uri)


def check_active_run(uri):
    """A run of the user is used, and stays open."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run() as run:
            train(new_model(), 1, logger := MLflowLogger())
            assert logger.run_id == run.info.run_id
            assert mlflow.active_run() is not None
            assert mlflow.get_run(logger.run_id).info.status == "RUNNING"
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("library", ["mlflow", "wandb"])
def test_a_folder_that_cannot_be_created_is_an_error_before_training(library, tmp_path):
    require(library)
    (tmp_path / "file").touch()
    place, model = tmp_path / "file" / "runs", new_model()
    logger = (
        MLflowLogger(tracking_uri=f"sqlite:///{place}/mlflow.db")
        if library == "mlflow"
        else WandbLogger(mode="offline", dir=place)
    )
    with pytest.raises(ValueError, match=r"runs' cannot be written.*Use another folder"):
        train(model, 1, logger)
    assert model.state.step == 0


def test_mlflow_needs_a_database():
    require("mlflow")
    with pytest.raises(ValueError, match=r"is a folder.*tracking_uri='sqlite:///runs/mlflow\.db'"):
        MLflowLogger(tracking_uri="runs")


def test_an_mlflow_server_that_is_away_stops_nothing(monkeypatch):
    require("mlflow")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plain, model = new_model(), new_model()
    train(plain, 2)
    with pytest.warns(UserWarning, match="MLflowLogger") as warned:
        train(model, 2, MLflowLogger(tracking_uri=f"http://127.0.0.1:{port}"))
    assert "MLflowLogger failed; training continues" in str(warned[0].message)
    assert "could not write 2 points" in str(warned[1].message)
    assert len(warned) == 2
    assert same_weights(plain.module, model.module)


# Trackio


def test_trackio_prints_nothing_and_changes_no_weight(capfd):
    require("trackio")
    model, plain = new_model(), new_model()
    train(plain, 2)
    logger = TrackioLogger("digits", log_model=True, config={"note": "first"})
    train(model, 2, logger)
    logger.log_image("picture", torch.rand(1, 8, 6))
    last = last_of((name, step) for name, steps in read_local(logger).items() for step in steps)
    assert last["loss"] == 1
    assert last["picture"] == 6
    assert same_weights(plain.module, model.module)
    assert capfd.readouterr() == ("", "")


def read_local(logger):
    from trackio.sqlite_storage import SQLiteStorage

    logger._close("finished")
    steps: dict[str, list[int]] = {}
    for row in SQLiteStorage.get_logs("digits", run=logger.run_id):
        for name in row:
            steps.setdefault(name, []).append(row["step"])
    assert SQLiteStorage.get_run_config("digits", logger.run_id)["note"] == "first"
    return steps
