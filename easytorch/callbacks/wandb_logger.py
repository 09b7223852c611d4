"""Runs of Weights & Biases."""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from easytorch._utils.paths import to_absolute_path
from easytorch._utils.warnings import warn
from easytorch.callbacks.every import Every
from easytorch.callbacks.tracker import UPDATE_PREFIX, Tracker, check_options, last_of
from easytorch.callbacks.wandb_files import has_ended, read_history

# The status of a process that a signal has ended.
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}
# Longest time that W&B takes to write the file of a run that has ended.
WRITE_SECONDS = 5.0
KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# Runs that a WandbLogger has started, unlike those that the user has.
_OWN_RUNS: weakref.WeakSet[Any] = weakref.WeakSet()


class WandbLogger(Tracker):
    """Write a run to Weights & Biases, on its server or offline.

    Install it with ``pip install "easytorch-fit[wandb]"``.

    The x axis of values of epochs is ``epoch``, from 0, and that of values of updates, ``batch_loss``, ..., is ``step``, the
    number of the update.

    Without an API key the run is written to the disk, and no key is asked for. ``wandb sync wandb/offline-run-...`` uploads it.
    A resumed run adds a second folder with the same identifier, which has only further points. W&B writes offline files every
    15 seconds; what a killed process has not written is written again when it resumes.

    A run stays open after a fit that has finished, so that reports and later fits can follow. It ends with the program, with
    the next run, or with ``finish()``. After an error or an interruption it ends at once with this status.

    If ``wandb.init()`` has started a run, as in a sweep, this run is used, and its end is left to the user.

    Two ``WandbLogger`` of one fit need a run each: ``reinit="create_new"``, or ``run=``, in both.

    Args:
        project: The name of the project; by default that of the environment variable ``WANDB_PROJECT``.
        name: The name of the run; by default W&B chooses one.
        id: The identifier of a run, which is continued if it exists.
        mode: ``"online"``, ``"offline"`` or ``"disabled"``; by default that of the environment variable ``WANDB_MODE``,
            or online if there is an API key.
        run: A run that ``wandb.init()`` has returned; its end is left to the user.
        update_freq: See ``Tracker``.
        config: See ``Tracker``.
        log_model: See ``Tracker``. The model is an artifact of the type ``model``.
        options: Further arguments of ``wandb.init``, such as ``entity``, ``group``, ``tags`` or ``dir``.

    Raises:
        ImportError: If wandb is not installed.
        TypeError: If ``wandb.init`` has no such argument.
        ValueError: If ``mode`` is unknown, or another argument is invalid; in ``fit``, if two ``WandbLogger`` have the same run.

    Examples:
        >>> logger = WandbLogger("digits", mode="offline", update_freq=100)  # doctest: +SKIP
        >>> model.fit(x, y, epochs=3, callbacks=[logger])  # doctest: +SKIP
        >>> logger.log_report(model.report(x_test, y_test))  # doctest: +SKIP
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        id: str | None = None,
        mode: str | None = None,
        run: object | None = None,
        update_freq: str | int | Every = "epoch",
        config: Mapping[str, object] | None = None,
        log_model: bool = False,
        **options: Any,
    ) -> None:
        check_options(WandbLogger, _import_wandb().init, options)
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(
                f"mode must be 'online', 'offline' or 'disabled', received {mode!r}. Use WandbLogger(..., mode='offline') to "
                "write files without a network."
            )
        self.project, self.name, self.mode, self.options = project, name, mode, options
        self._given_id = id
        self._given_run: Any = run
        self.run: Any = None
        self._row = 0
        self._axes: set[str] = set()
        super().__init__(update_freq=update_freq, config=config, log_model=log_model)

    def _reset(self) -> None:
        super()._reset()
        self._row, self._axes = 0, set()

    def _fixed_run_id(self) -> str | None:
        return self._given_id if self._given_run is None else str(self._given_run.id)

    @property
    def url(self) -> str | None:
        """The page of the run; None offline and before the first epoch."""
        return None if self.run is None or self.run.offline else self.run.url

    def open_run(self, run_id: str | None, config: Mapping[str, Any]) -> str:
        """Start or continue a run."""
        wandb = _import_wandb()
        if self.run is None or self.run.id != run_id:
            # A new run in addition to others is not the active one.
            active = self._given_run or (None if self._creates_new() else wandb.run)
            if active is not None and active in _OWN_RUNS:
                active.finish()
                active = None
            is_of_user = active is not None and run_id in (None, active.id)
            self.run = active if is_of_user else self._init(wandb, run_id)
            self._axes = set()
        self.run.config.update(dict(config), allow_val_change=True)
        self._row = max(self._row, int(self.run.step or 0))
        return str(self.run.id)

    def _creates_new(self) -> bool:
        """Return whether the run may exist together with others in this process."""
        settings = self.options.get("settings")
        default = settings.get("reinit") if isinstance(settings, Mapping) else getattr(settings, "reinit", None)
        return bool(self.options.get("reinit", default) == "create_new")

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the arguments."""
        loggers = [callback for callback in self.model.callbacks.callbacks if isinstance(callback, WandbLogger)]
        has_own = all(logger._given_run is not None or logger._creates_new() for logger in loggers)
        given = [id(logger._given_run) for logger in loggers if logger._given_run is not None]
        if len(loggers) > 1 and not (has_own and len(set(given)) == len(given)):
            raise ValueError(
                f"callbacks has {len(loggers)} WandbLogger, and W&B has one run at a time, so that one would end the run of "
                'another. Pass one, or reinit="create_new" to each of them, or a separate run to each as run=....'
            )
        super().on_train_begin(logs)

    def _local_folders(self) -> Mapping[str, Path]:
        """Return the folder of the files, if it was passed."""
        is_used = "dir" in self.options and self.mode != "disabled"
        return {"dir": to_absolute_path(self.options["dir"], "dir")} if is_used else {}

    def _init(self, wandb: Any, run_id: str | None) -> Any:
        options = {"settings": wandb.Settings(silent=True, console="off"), **self.options}
        if "dir" in options:
            options["dir"] = to_absolute_path(options["dir"], "dir")
            options["dir"].mkdir(parents=True, exist_ok=True)
        mode = self.mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        run = wandb.init(
            project=self.project,
            name=self.name,
            id=run_id,
            mode=mode,
            resume="allow" if run_id is not None else None,
            **options,
        )
        _OWN_RUNS.add(run)
        if mode == "offline" and self.mode is None and not os.environ.get("WANDB_MODE"):
            warn(
                f"There is no API key of W&B, so the run is only in {os.path.dirname(run.dir)!r}. Call `wandb login` before "
                "the program, or upload the run with `wandb sync`. mode='offline' avoids this warning."
            )
        return run

    def read_last_steps(self) -> Mapping[str, int] | None:
        """Return the last step of each name, and find the number of the next row."""
        steps: list[tuple[str, int]] = []
        for row in self._read_rows():
            self._row = max(self._row, int(row.get("_step", -1)) + 1)
            axis = next((name for name in ("epoch", "step") if isinstance(row.get(name), (int, float))), None)
            if axis is not None:
                steps += [(name, int(row[axis])) for name in row if name != axis and not name.startswith("_")]
        return last_of(steps)

    def _read_rows(self) -> Iterable[Mapping[str, Any]]:
        if self.run.disabled:
            return []
        if not self.run.offline:
            rows: Iterable[Mapping[str, Any]] = _import_wandb().Api().run(self.run.path).scan_history()
            return rows
        folders = Path(self.run.settings.sync_dir).parent
        files = sorted(folders.glob(f"*-{self.run.id}/run-{self.run.id}.wandb"))
        return [row for path in files for row in read_history(path)]

    def write(self, values: Mapping[str, float], axis: str, step: int) -> None:
        """Write numbers as a row."""
        self._write_row(values, axis, step)

    def write_text(self, texts: Mapping[str, str], axis: str, step: int) -> None:
        """Write texts as a row."""
        self._write_row(texts, axis, step)

    def write_image(self, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], axis: str, step: int) -> None:
        """Write an image as a row."""
        self._write_row({name: _import_wandb().Image(pixels)}, axis, step)

    def _write_row(self, values: Mapping[str, Any], axis: str, step: int) -> None:
        for name in values:
            if name not in self._axes:
                self._axes.add(name)
                self.run.define_metric(_escape(name), step_metric=axis)
        # An explicit number continues those of an earlier folder. Rows are complete at once.
        self.run.log({axis: step, **values}, step=self._row, commit=True)
        self._row += 1

    def write_file(self, path: Path, name: str) -> None:
        """Upload a file as an artifact."""
        kind = "model" if path.suffix in (".pt", ".safetensors", ".onnx") else "file"
        label = re.sub(r"[^\w.-]", "-", Path(name).stem)
        artifact = _import_wandb().Artifact(f"run-{self.run.id}-{label}", type=kind)
        artifact.add_file(str(path), name=name)
        self.run.log_artifact(artifact)

    def close_run(self, status: str) -> None:
        """End the run, unless it has finished, so that reports can follow."""
        if status != "finished":
            self._finish(EXIT_CODES[status])

    def finish(self) -> None:
        """End the run, with a notebook for example; a program that ends does so too."""
        self._is_open = False
        self._attempt(lambda: self._finish(0), now=True)

    def _finish(self, exit_code: int) -> None:
        run, self.run = self.run, None
        if run is not None and run in _OWN_RUNS:
            run.finish(exit_code=exit_code)
            if run.offline and not run.disabled:
                _wait_for_file(Path(run.settings.sync_file))


def _wait_for_file(path: Path) -> None:
    """Wait until another process has written the file of a run that has ended, so that it can be continued."""
    deadline = time.monotonic() + WRITE_SECONDS
    while path.exists() and not has_ended(path) and time.monotonic() < deadline:
        time.sleep(0.02)


def _escape(name: str) -> str:
    # In the name of a metric, a point separates nested names, and a star at the end is a pattern.
    return name.replace("\\", "\\\\").replace(".", "\\.").rstrip("*") or UPDATE_PREFIX


def _has_key() -> bool:
    """Return whether W&B finds an API key without asking for it."""
    if any(os.environ.get(name) for name in KEY_VARIABLES):
        return True
    import netrc

    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError('WandbLogger needs wandb: pip install "easytorch-fit[wandb]"') from error
    return wandb
