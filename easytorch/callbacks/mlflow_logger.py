"""Runs of MLflow."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from easytorch._utils.paths import nearest_folder, to_absolute_path
from easytorch.callbacks.every import Every
from easytorch.callbacks.tracker import Tracker, last_of

STATUSES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# MLflow waits for minutes for a server that does not answer. A variable that the user has set takes precedence.
SHORT_WAITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# Stores that are a name and no URI.
NAMED_STORES = ("databricks", "databricks-uc", "uc")
MAX_PER_BATCH = 100
MAX_PARAM_LENGTH = 6_000
MAX_TAG_LENGTH = 8_000
# Loggers that report the creation of a database.
NOISY_LOGGERS = ("mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic", "alembic.runtime.migration")


class MLflowLogger(Tracker):
    """Write parameters, metrics, images and the model to a run of MLflow.

    Install it with ``pip install "easytorch-fit[mlflow]"``, and start the pages with
    ``mlflow ui --backend-store-uri sqlite:///mlflow.db``.

    Metrics of epochs have the index of the epoch as their step, from 0, and those of updates, ``batch_loss``, ..., the number of
    the update. Text and lists of the logs are tags. A value that is infinite is written as NaN, because databases of MLflow
    replace it by the largest number. Images are artifacts, such as ``images/reconstruction/120.png``.

    If ``mlflow.start_run()`` has started a run and neither ``tracking_uri`` nor ``run_id`` is passed, this run is used, and its
    end is left to the user. Otherwise the run ends with the fit, as FINISHED, FAILED or KILLED.

    Args:
        experiment: The name of the experiment, created if it does not exist.
        tracking_uri: A database, ``"sqlite:///mlflow.db"``, or a server, ``"http://127.0.0.1:5000"``; by default what
            ``mlflow.set_tracking_uri`` or ``MLFLOW_TRACKING_URI`` set, or the default of MLflow.
        run_name: The name of the run; by default MLflow chooses one.
        run_id: A run to continue.
        artifact_location: Where the artifacts of a new experiment are stored. By default next to a local database in
            ``mlartifacts``, otherwise where the server stores them.
        tags: Tags of the run.
        update_freq: See ``Tracker``.
        config: See ``Tracker``.
        log_model: See ``Tracker``. The artifact ``model.pt`` is read by ``Model(net).load(path)``.

    Raises:
        ImportError: If MLflow is not installed.
        ValueError: If ``tracking_uri`` is a folder, which MLflow 3 does not support, or another argument is invalid.

    Examples:
        >>> logger = MLflowLogger("digits", tracking_uri="sqlite:///mlflow.db", log_model=True)  # doctest: +SKIP
        >>> model.fit(x, y, epochs=3, callbacks=[logger])  # doctest: +SKIP
        >>> logger.log_report(model.report(x_test, y_test))  # doctest: +SKIP
    """

    def __init__(
        self,
        experiment: str = "Default",
        *,
        tracking_uri: str | os.PathLike[str] | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        artifact_location: str | os.PathLike[str] | None = None,
        tags: Mapping[str, str] | None = None,
        update_freq: str | int | Every = "epoch",
        config: Mapping[str, object] | None = None,
        log_model: bool = False,
    ) -> None:
        _import_mlflow()
        self.experiment, self.run_name, self.tags = experiment, run_name, dict(tags or {})
        self.tracking_uri = None if tracking_uri is None else _check_uri(os.fspath(tracking_uri))
        self.artifact_location = _as_location(artifact_location)
        self._given_run_id = run_id
        self._client: Any = None
        self._is_of_user = False
        super().__init__(update_freq=update_freq, config=config, log_model=log_model)

    def _fixed_run_id(self) -> str | None:
        return self._given_run_id

    def _local_folders(self) -> Mapping[str, Path]:
        """Return the folder of the database, if it is a file that was passed."""
        database = None if self.tracking_uri is None else _find_database(self.tracking_uri)
        return {} if database is None else {"tracking_uri": database.parent}

    def open_run(self, run_id: str | None, config: Mapping[str, Any]) -> str:
        """Start or continue a run, and write its parameters."""
        mlflow = _import_mlflow()
        active: Any = mlflow.active_run() if self.tracking_uri is None and self._given_run_id is None else None
        self._is_of_user = active is not None and run_id in (None, active.info.run_id)
        uri = _check_uri(self.tracking_uri or mlflow.get_tracking_uri())
        _make_folder(uri)
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if self._is_of_user:
            run_id = active.info.run_id
        elif run_id is None:
            tags = mlflow.tracking.context.registry.resolve_tags(self.tags)
            run = self._client.create_run(self._find_experiment(uri), run_name=self.run_name, tags=tags)
            run_id = run.info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        assert run_id is not None
        # Now, so that an attempt after a failure does not create a second run.
        self.run_id = run_id
        self._write_params(run_id, config)
        return run_id

    def _find_experiment(self, uri: str) -> str:
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = self.artifact_location or _default_location(uri)
        return str(self._client.create_experiment(self.experiment, artifact_location=location))

    def _write_params(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Write the parameters that the run does not have; another value of one that it has becomes a tag."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        texts = {self.format_name(name): str(value)[:MAX_PARAM_LENGTH] for name, value in config.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for i in range(0, len(new), MAX_PER_BATCH):
            self._client.log_batch(run_id, params=new[i : i + MAX_PER_BATCH])
        for name, text in texts.items():
            # MLflow does not change a parameter.
            if known.get(name, text) != text:
                self._client.set_tag(run_id, f"continued.{name}", text[:MAX_TAG_LENGTH])

    def read_last_steps(self) -> Mapping[str, int] | None:
        """Return the last step of each metric."""
        names = self._client.get_run(self.run_id).data.metrics
        return last_of(
            (name, metric.step) for name in names for metric in self._client.get_metric_history(self.run_id, name)
        )

    def format_name(self, name: str) -> str:
        """Return a name with the characters that MLflow accepts."""
        return posixpath.normpath(re.sub(r"[^\w.\- /]", "_", name)).lstrip("./") or "_"

    def write(self, values: Mapping[str, float], axis: str, step: int) -> None:
        """Write metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, math.nan if math.isinf(value) else value, now, step) for name, value in values.items()]
        for i in range(0, len(metrics), MAX_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[i : i + MAX_PER_BATCH])

    def write_text(self, texts: Mapping[str, str], axis: str, step: int) -> None:
        """Write texts as tags, which have the last value."""
        for name, text in texts.items():
            self._client.set_tag(self.run_id, name, text[:MAX_TAG_LENGTH])

    def write_image(self, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], axis: str, step: int) -> None:
        """Write an image as an artifact; a second one of the same name and step replaces it."""
        self._client.log_image(self.run_id, pixels, artifact_file=f"images/{name}/{step}.png")

    def write_file(self, path: Path, name: str) -> None:
        """Upload a file as an artifact."""
        folder, _, file_name = name.rpartition("/")
        if file_name != path.name:
            folder = name
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def close_run(self, status: str) -> None:
        """Set the status of the run."""
        if not self._is_of_user:
            self._client.set_terminated(self.run_id, STATUSES[status])

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Call MLflow inside, without its messages, and without waiting for minutes for a server."""
        loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
        levels = [logger.level for logger in loggers]
        unset = {name: value for name, value in SHORT_WAITS.items() if name not in os.environ}
        os.environ.update(unset)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for name in unset:
                os.environ.pop(name, None)


def _check_uri(uri: str) -> str:
    """Return ``uri``; raise a ``ValueError`` if it is a folder."""
    scheme = urlparse(uri).scheme
    if uri not in NAMED_STORES and (scheme in ("", "file") or len(scheme) == 1):
        folder = uri.removeprefix("file://")
        raise ValueError(
            f"tracking_uri={uri!r} is a folder, and MLflow 3 has no store of files. Pass a database: "
            f"tracking_uri='sqlite:///{folder.rstrip('/') or 'mlflow'}/mlflow.db'."
        )
    return uri


def _as_location(location: str | os.PathLike[str] | None) -> str | None:
    """Return where artifacts are stored as a URI."""
    if location is None or "://" in os.fspath(location):
        return None if location is None else os.fspath(location)
    return to_absolute_path(location, "artifact_location").as_uri()


def _find_database(uri: str) -> Path | None:
    """Return the file of a database of SQLite."""
    return Path(os.path.abspath(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None


def _default_location(uri: str) -> str | None:
    database = _find_database(uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def _make_folder(uri: str) -> None:
    database = _find_database(uri)
    if database is not None and nearest_folder(database.parent) != database.parent:
        database.parent.mkdir(parents=True, exist_ok=True)


def _import_mlflow() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise ImportError('MLflowLogger needs MLflow: pip install "easytorch-fit[mlflow]"') from error
    return mlflow
