"""Logs, images and hyperparameters for TensorBoard."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easytorch._utils.integers import boolean, non_negative_int
from easytorch._utils.paths import check_writable, to_absolute_path
from easytorch.callbacks.every import Every, as_every
from easytorch.callbacks.tracker import UPDATE_PREFIX, Tracker, last_of, split_values

# Seconds after which values are in the file at the latest.
FLUSH_SECONDS = 30


class TensorBoard(Tracker):
    """Write the logs for TensorBoard with torch's writer.

    Install it with ``pip install tensorboard``, and start it with ``tensorboard --logdir logs``.
    As in Keras, the folders ``train`` and ``validation`` contain the same names: ``epoch_loss``, ... Several data sets in
    ``validation_data`` get the folders ``validation_clean``, ... A validation after updates is written as ``batch_loss``, ...

    The hyperparameters are a table in the tab Text from the start, and a row of the tab HParams at the end of a fit, with the
    last values of the epochs. Images are those of ``log_image``, ``log_figure`` and ``log_report``; see ``Tracker``.

    Args:
        log_dir: The folder.
        histogram_freq: Number of epochs between two histograms of the parameters, or ``Every(epochs=...)``; 0 writes none.
        write_steps_per_second: Also write ``epoch_steps_per_second``.
        update_freq: ``"epoch"`` to write only the values of epochs. An integer, or an ``Every`` of updates or minutes, to also
            write the means so far, as ``batch_loss``, ..., after this many updates.
        config: Further hyperparameters by name.
        write_hparams: Whether to write the hyperparameters.

    Raises:
        ImportError: If tensorboard is not installed.
        ValueError: If a frequency is invalid.

    Examples:
        >>> model.fit(x, y, epochs=3, callbacks=[TensorBoard("logs", update_freq=100)])
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int | Every = 0,
        write_steps_per_second: bool = False,
        update_freq: str | int | Every = "epoch",
        *,
        config: Mapping[str, object] | None = None,
        write_hparams: bool = True,
    ) -> None:
        self.folder, self.histogram_freq = to_absolute_path(log_dir, "log_dir"), _check_histogram_freq(histogram_freq)
        self.write_steps_per_second = boolean("write_steps_per_second", write_steps_per_second)
        self.write_hparams = boolean("write_hparams", write_hparams)
        self.steps, self.started_at = 0, 0.0
        self._writers: dict[str, Any] = {}
        super().__init__(update_freq=update_freq, config=config)
        # A missing package is an error now, not during training.
        _import_summary_writer()

    def _local_folders(self) -> Mapping[str, Path]:
        """Return the folder of the files."""
        return {"log_dir": self.folder}

    def redirect(self, folder: Path) -> None:
        """Write to ``folder``, after each update too if values of updates are written."""
        check_writable(self.folder)
        self.folder = folder
        self.update_freq = self.update_freq if self.update_freq.epochs is not None else Every(updates=1)
        self.histogram_freq = None if self.histogram_freq is None else Every(epochs=1)

    def open_run(self, run_id: str | None, config: Mapping[str, Any]) -> str:
        """Write the hyperparameters of a new run."""
        if run_id is None and self.write_hparams:
            rows = [f"| {name} | {value} |" for name, value in config.items()]
            writer = self._open_writer("train")
            writer.add_text("hyperparameters", "\n".join(["| name | value |", "|---|---|", *rows]), 0)
        return str(self.folder)

    def read_last_steps(self) -> Mapping[str, int] | None:
        """Return the last step of each name, by folder."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        points: list[tuple[str, int]] = []
        for path in sorted(self.folder.glob("*/*tfevents*")):
            for event in EventFileLoader(str(path)).Load():
                points += [(_log_name(path.parent.name, value.tag), event.step) for value in event.summary.value]
        return last_of(points)

    def write(self, values: Mapping[str, float], axis: str, step: int) -> None:
        """Write numbers to the folders of training and validation."""
        for name, value in values.items():
            folder, tag = self._find_tag(name, axis)
            self._open_writer(folder).add_scalar(tag, value, step)
        if axis == "epoch":
            self._flush_writers()

    def write_text(self, texts: Mapping[str, str], axis: str, step: int) -> None:
        """Write texts to the folder of training."""
        for name, text in texts.items():
            folder, tag = self._find_tag(name, axis)
            self._open_writer(folder).add_text(tag, text, step)

    def write_image(self, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], axis: str, step: int) -> None:
        """Write an image to the folder of training."""
        self._open_writer("train").add_image(name, pixels, step, dataformats="HWC")
        self._flush_writers()

    def close_run(self, status: str) -> None:
        """Write the row of hyperparameters, and close the files."""
        try:
            rows = self.model.history.rows
            if self.write_hparams and rows and status == "finished" and self._has_begun:
                last = {f"hparam/{name}": value for name, value in split_values(rows[-1])[0].items()}
                writer = self._open_writer("train")
                writer.add_hparams(dict(self._run_config), last, run_name=".", global_step=self.model.state.epoch)
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers = {}

    # Hooks

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        super().on_epoch_begin(epoch, logs)
        self.started_at, self.steps = time.perf_counter(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the means so far, if it is due."""
        self.steps += 1
        super().on_train_batch_end(batch, logs)

    def on_log(self, values: Mapping[str, float], step: int) -> None:
        """Write what another callback has measured in an update."""
        self._record(values, "step", step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the values of the epoch."""
        values = dict(logs or {})
        if self.write_steps_per_second:
            values["steps_per_second"] = self.steps / (time.perf_counter() - self.started_at)
        super().on_epoch_end(epoch, values)
        if self.histogram_freq is not None and self.histogram_freq.is_due_after_epoch(epoch + 1):
            self._attempt(lambda: self._write_histograms(epoch))

    def _write_histograms(self, epoch: int) -> None:
        self._open()
        for name, parameter in self.model.module.named_parameters():
            if self._last_steps.get(name, -1) < epoch:
                self._open_writer("train").add_histogram(name, parameter.detach(), epoch)

    # Names

    def _find_tag(self, name: str, axis: str) -> tuple[str, str]:
        """Return the folder of a value, and its name there."""
        if axis == "epoch":
            folder, name = self._find_folder(name)
            return folder, f"epoch_{name}"
        if name.startswith(UPDATE_PREFIX):
            folder, name = self._find_folder(name.removeprefix(UPDATE_PREFIX))
            return folder, f"{UPDATE_PREFIX}{name}"
        return "train", name

    def _find_folder(self, name: str) -> tuple[str, str]:
        """Return the folder of a value and its name there."""
        if not name.startswith("val_"):
            return "train", name
        training_name = self.model.metrics.training_name(name)
        data_set = name.removeprefix("val_").removesuffix(training_name).strip("_")
        return f"validation_{data_set}" if data_set else "validation", training_name

    def _open_writer(self, folder: str) -> Any:
        if folder not in self._writers:
            writer_class = _import_summary_writer()
            self._writers[folder] = writer_class(str(self.folder / folder), flush_secs=FLUSH_SECONDS)
        return self._writers[folder]

    def _flush_writers(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def _log_name(folder: str, tag: str) -> str:
    """Return the name that the logs have for the value ``tag`` in ``folder``."""
    tag = tag.removesuffix("/text_summary")
    of_data = folder.replace("validation", "val", 1) + "_" if folder.startswith("validation") else ""
    if tag.startswith("epoch_"):
        return f"{of_data}{tag.removeprefix('epoch_')}"
    if tag.startswith(UPDATE_PREFIX):
        return f"{UPDATE_PREFIX}{of_data}{tag.removeprefix(UPDATE_PREFIX)}"
    return tag


def _check_histogram_freq(histogram_freq: Any) -> Every | None:
    if isinstance(histogram_freq, Every):
        return as_every("histogram_freq", histogram_freq, ("epochs",))
    epochs = non_negative_int("histogram_freq", histogram_freq)
    return Every(epochs=epochs) if epochs else None


def _import_summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard needs the package tensorboard: pip install "easytorch-fit[tensorboard]"'
        ) from error
    return SummaryWriter
