"""Callbacks that write the numbers of a run somewhere. They never stop training: one that fails is switched off."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easytorch._utils import atomic_file
from easytorch.callbacks.base import Callback


class CSVLogger(Callback):
    """Writes a line for each epoch into a CSV file: ``epoch``, from 0, and every value of the logs.

    A value that an epoch did not measure is ``NA``. A value that appears later gets its column then.

    Args:
        filename: The file.
        separator: Between two values.
        append: Go on in a file that is there, instead of replacing it.
    """

    optional = True
    all_ranks = False

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        self.path, self.separator, self.append = Path(filename).expanduser(), separator, append
        self.rows: list[dict[str, str]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Take over the lines that are to stay."""
        self.rows, self._whole = self._read() if self.append else [], False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the epoch's line."""
        row = {"epoch": str(epoch)} | {name: _text(value) for name, value in (logs or {}).items()}
        # A file that was there may end in half a line.
        new = not self._whole or any(name not in self._columns() for name in row)
        self.rows.append(row)
        if new:
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file).writerow(row)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of lines: those that a resumed run will write again are taken back."""
        return {"lines": len(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.rows = self._read()[: state["lines"]]
        if self.rows:
            self._rewrite()

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns(), restval="NA", delimiter=self.separator, lineterminator="\n")

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        writer = self._writer(text := io.StringIO())
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_file.replace_atomically(self.path) as file:  # the lines that are there stay until all are written
            file.write(text.getvalue().encode())
        self._whole = True

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter=self.separator))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(float(value))


class TensorBoard(Callback):
    """Writes the logs for TensorBoard, with torch's own writer; ``pip install tensorboard``, then ``tensorboard --logdir logs``.

    As in Keras there are the sub-folders ``train`` and ``validation``, with the same names in both: ``epoch_loss``, ...

    Args:
        log_dir: The folder.
        histogram_freq: Every so many epochs write histograms of the parameters; 0 never.
        write_steps_per_second: Write ``epoch_steps_per_second`` too.
        update_freq: ``"epoch"``; or a number of updates after which the running values are written too, as ``batch_loss``, ...
    """

    optional = True
    all_ranks = False

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int = 0,
        write_steps_per_second: bool = False,
        update_freq: str | int = "epoch",
    ) -> None:
        if update_freq != "epoch" and not (type(update_freq) is int and update_freq >= 1):
            raise ValueError(f"update_freq must be 'epoch' or a number of updates, received {update_freq!r}.")
        self.folder, self.histogram_freq, self.update_freq = Path(log_dir).expanduser(), histogram_freq, update_freq
        self.write_steps_per_second, self.steps, self.began = write_steps_per_second, 0, 0.0
        self._writers: dict[str, Any] = {}
        self.epochs = 0
        self._purge: int | None = None  # where a resumed run begins to write again
        _summary_writer()  # a missing package is told now, not when training runs

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.began, self.steps = time.perf_counter(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the running values, if it is time."""
        self.steps += 1
        if self.update_freq != "epoch" and self.model.state.step % int(self.update_freq) == 0:
            for name, value in logs.items():
                self._writer("train").add_scalar(f"batch_{name}", value, self.model.state.step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the epoch's values."""
        self.epochs = epoch + 1
        for name, value in (logs or {}).items():
            if isinstance(value, str):
                continue
            where = "validation" if name.startswith("val_") else "train"
            self._writer(where).add_scalar(f"epoch_{name.removeprefix('val_')}", value, epoch)
        if self.write_steps_per_second:
            pace = self.steps / (time.perf_counter() - self.began)
            self._writer("train").add_scalar("epoch_steps_per_second", pace, epoch)
        if self.histogram_freq and (epoch + 1) % self.histogram_freq == 0:
            for name, parameter in self.model.module.named_parameters():
                self._writer("train").add_histogram(name, parameter.detach(), epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers, self._purge = {}, None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of epochs written: what a resumed run will write again is taken back."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.epochs = state["epochs"]
        self._purge = self.epochs if self.update_freq == "epoch" else None

    def _writer(self, where: str) -> Any:
        if where not in self._writers:
            self._writers[where] = _summary_writer()(str(self.folder / where), purge_step=self._purge)
        return self._writers[where]


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("The TensorBoard callback needs tensorboard: pip install tensorboard") from error
    return SummaryWriter
