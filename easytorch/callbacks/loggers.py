"""Logger that writes the values of a run to a CSV file."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easytorch._utils import atomic_file
from easytorch._utils.integers import boolean
from easytorch._utils.paths import check_file, check_writable, to_absolute_path
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.callbacks.every import Every, as_every


class CSVLogger(Callback):
    """Write one line per epoch to a CSV file: ``epoch``, from 0, and every value of the logs.

    A value that an epoch did not measure is ``NA``. Lists and None are written as JSON.
    A value that first appears in a later epoch gets a column then, unless the file existed before, as with ``append``.

    Args:
        filename: The file.
        separator: Separator of the values.
        append: Append to an existing file instead of replacing it. Its lines are never changed, so the columns are those of its
            header, and other values are left out with a warning.
        every: Write lines of updates instead of epochs: one after every n-th update, an integer or an ``Every`` of updates or
            minutes. A line has ``epoch``, ``step`` (the number of the update, from 1 and over all fits), the means over the epoch
            so far, and what ``GradientStatistics`` has measured in this update. Writing a line waits for the device.

    Raises:
        ValueError: If ``every`` is no such frequency. In ``fit``, if the file cannot be written, or if ``append`` and the header
            of the file has no column ``epoch``.

    Examples:
        >>> model.fit(x, y, epochs=3, callbacks=[CSVLogger("log.csv"), CSVLogger("updates.csv", every=10)])
    """

    optional = True
    all_ranks = False

    def __init__(
        self,
        filename: str | os.PathLike[str],
        separator: str = ",",
        append: bool = False,
        *,
        every: int | Every | None = None,
    ) -> None:
        self.every = None if every is None else as_every("every", as_every("every", every), ("updates", "minutes"))
        self._measured: tuple[int, Mapping[str, float]] = 0, {}  # the update, and what was measured in it
        self._written_at = time.perf_counter()
        self.path, self.separator = to_absolute_path(filename, "filename"), separator
        self.append = boolean("append", append)
        self.rows: list[dict[str, str]] = []
        self._existing = ""  # text that this fit did not write and does not change
        self._columns: list[str] = []  # of that text
        self._is_written = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that the file can be written, and read an existing one, if ``append``."""
        check_file(self.path, "filename")
        self.rows, self._existing, self._columns = [], "", []
        # A file that this fit did not write may end in an incomplete line.
        self._is_written, self._has_warned = False, False
        if self.append:
            self._keep(self._read_text())

    def redirect(self, folder: Path) -> None:
        """Write to ``folder``."""
        check_writable(self.path.parent)
        self.path = folder / self.path.name

    def on_log(self, values: Mapping[str, float], step: int) -> None:
        """Remember what was measured in an update, for its line."""
        self._measured = step, values

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the line of the update, if it is due."""
        if self.every is None:
            return
        now, state = time.perf_counter(), self.model.state
        if self.every.is_due_after_update(state.step, now - self._written_at):
            self._written_at = now
            measured = self._measured[1] if self._measured[0] == state.step else {}
            self._write({"epoch": state.epoch, "step": str(state.step), **dict((logs or {}).items()), **measured})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the line of the epoch."""
        if self.every is None:
            self._write({"epoch": epoch, **(logs or {})})

    def _write(self, values: Mapping[str, Any]) -> None:
        """Write one line."""
        row = {name: _format_value(value) for name, value in values.items()} | {"epoch": str(values["epoch"])}
        unknown = [name for name in row if self._columns and name not in self._columns]
        if unknown and not self._has_warned:
            self._has_warned = True
            warn(
                f"{str(self.path)!r} has no columns for {', '.join(unknown)}, and append=True does not change existing "
                "lines. These values are left out. Use another file for them."
            )
        is_extendable = self._is_written and (bool(self._columns) or set(row) <= set(self._list_columns()))
        self.rows.append(row)
        if not is_extendable:
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._make_writer(file).writerow(row)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of lines: a resumed run removes those that it will write again."""
        return {"lines": self._existing.count("\n") + len(self.rows) + (not self._existing)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remove the lines after the checkpoint."""
        text = "".join(self._read_text().splitlines(keepends=True)[: state["lines"]])
        if self.append:
            self._keep(text)
        else:
            self.rows = list(csv.DictReader(io.StringIO(text), delimiter=self.separator))
        if text:
            self._rewrite()

    def _keep(self, text: str) -> None:
        """Append to ``text``, the content of the file."""
        self.rows = []
        self._existing = text if not text or text.endswith("\n") else f"{text}\n"
        self._columns = next(csv.reader(text.removeprefix("\ufeff").splitlines()[:1], delimiter=self.separator), [])
        if text and "epoch" not in self._columns:
            raise ValueError(
                f"CSVLogger cannot append to {str(self.path)!r}: its first line, {text.splitlines()[0][:60]!r}, has no "
                f"column 'epoch' with separator={self.separator!r}. Pass the separator of the file, or another file."
            )

    def _read_text(self) -> str:
        if not self.path.exists():
            return ""
        with self.path.open(newline="", encoding="utf-8") as file:
            return file.read()

    def _list_columns(self) -> list[str]:
        return self._columns or list(dict.fromkeys(name for row in self.rows for name in row))

    def _make_writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(
            file,
            self._list_columns(),
            restval="NA",
            extrasaction="ignore",
            delimiter=self.separator,
            lineterminator="\n",
        )

    def _rewrite(self) -> None:
        """Replace the file atomically, so that existing lines survive a full disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        text.write(self._existing)
        writer = self._make_writer(text)
        if not self._existing:
            writer.writeheader()
        writer.writerows(self.rows)
        with atomic_file.replace_atomically(self.path) as file:
            file.write(text.getvalue().encode())
        self._is_written = True


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return json.dumps(value, default=str)
