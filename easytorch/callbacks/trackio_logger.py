"""Runs of Trackio."""

from __future__ import annotations

import contextlib
import io
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easytorch.callbacks.every import Every
from easytorch.callbacks.tracker import Tracker, check_options, last_of

# Runs that a TrackioLogger has started, unlike those that the user has.
_OWN_RUNS: weakref.WeakSet[Any] = weakref.WeakSet()


class TrackioLogger(Tracker):
    """Write a run to Trackio, which stores it on this machine.

    Install it with ``pip install "easytorch-fit[trackio]"``, and look at the runs with ``trackio show``.

    The step of values of epochs is the index of the epoch, from 0, and that of values of updates, ``batch_loss``, ..., the
    number of the update. Trackio has no status of a run.

    If ``trackio.init()`` has started a run, this run is used, and its end is left to the user.

    Args:
        project: The name of the project.
        name: The name of the run, which is continued if it exists; by default Trackio chooses one.
        run: A run that ``trackio.init()`` has returned; its end is left to the user.
        update_freq: See ``Tracker``.
        config: See ``Tracker``.
        log_model: See ``Tracker``.
        options: Further arguments of ``trackio.init``, such as ``group``, ``space_id`` or ``server_url``. Of runs on a server,
            the points after the last checkpoint of a run that was killed are there twice.

    Raises:
        ImportError: If Trackio is not installed.
        TypeError: If ``trackio.init`` has no such argument.

    Examples:
        >>> model.fit(x, y, epochs=3, callbacks=[TrackioLogger("digits", update_freq=100)])  # doctest: +SKIP
    """

    def __init__(
        self,
        project: str = "easytorch",
        name: str | None = None,
        *,
        run: object | None = None,
        update_freq: str | int | Every = "epoch",
        config: Mapping[str, object] | None = None,
        log_model: bool = False,
        **options: Any,
    ) -> None:
        check_options(TrackioLogger, _import_trackio().init, options)
        self.project, self.name, self.options = project, name, options
        self._given_run: Any = run
        self._run: Any = None
        super().__init__(update_freq=update_freq, config=config, log_model=log_model)

    def _fixed_run_id(self) -> str | None:
        return self.name if self._given_run is None else str(self._given_run.name)

    def open_run(self, run_id: str | None, config: Mapping[str, Any]) -> str:
        """Start or continue a run."""
        trackio = _import_trackio()
        active = self._given_run or trackio.context_vars.current_run.get()
        if active is not None and active not in _OWN_RUNS and run_id in (None, active.name):
            self._run = active
            active.config.update({name: value for name, value in config.items() if name not in active.config})
            return str(active.name)
        options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, **self.options}
        self._run = trackio.init(
            self.project,
            name=run_id,
            config=dict(config),
            resume="allow" if run_id is not None else "never",
            **options,
        )
        _OWN_RUNS.add(self._run)
        return str(self._run.name)

    def read_last_steps(self) -> Mapping[str, int] | None:
        """Return the last step of each name, of a run on this machine."""
        if not self._is_local():
            return None
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(self._run.project, run=self._run.name, run_id=self._run.id)
        return last_of((name, row["step"]) for row in rows for name in row if name not in ("step", "timestamp"))

    def _is_local(self) -> bool:
        remote = self.options.get("space_id") or self.options.get("server_url")
        return not (remote or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))

    def write(self, values: Mapping[str, float], axis: str, step: int) -> None:
        """Write numbers."""
        self._run.log(dict(values), step=step)

    def write_text(self, texts: Mapping[str, str], axis: str, step: int) -> None:
        """Write texts."""
        self._run.log(dict(texts), step=step)

    def write_image(self, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], axis: str, step: int) -> None:
        """Write an image."""
        trackio = _import_trackio()
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        self._run.log({name: trackio.Image(pixels)}, step=step)

    def write_file(self, path: Path, name: str) -> None:
        """Upload a file as an artifact."""
        kind = "model" if path.suffix in (".pt", ".safetensors", ".onnx") else "file"
        self._run.log_artifact(str(path), name=f"{self._run.name}-{name}", type=kind)

    def close_run(self, status: str) -> None:
        """Write what is left, and end the run."""
        if self._run not in _OWN_RUNS:
            return
        trackio = _import_trackio()
        run, self._run = self._run, None
        if trackio.context_vars.current_run.get() is run:
            trackio.finish()
        else:
            run.finish()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Call Trackio inside without its lines on the output."""
        with contextlib.redirect_stdout(io.StringIO()):
            yield


def _import_trackio() -> Any:
    try:
        import trackio
    except ImportError as error:
        raise ImportError('TrackioLogger needs Trackio: pip install "easytorch-fit[trackio]"') from error
    return trackio
