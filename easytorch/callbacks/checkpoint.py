"""Files of the model that are written during training."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easytorch._utils.integers import boolean, optional_boolean, optional_positive_int
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch._utils.warnings import warn
from easytorch.callbacks.background import (
    PendingFile,
    Written,
    check_one_process,
    check_saves_as_usual,
    start_to_write,
    write_now,
    writes_in_background,
)
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback
from easytorch.callbacks.early_stopping import Monitor
from easytorch.callbacks.every import Every, as_every
from easytorch.callbacks.filename import FilenameTemplate
from easytorch.checkpoint import files, rotation
from easytorch.checkpoint.background import Job
from easytorch.checkpoint.serialization import to_serializable
from easytorch.checkpoint.storage import (
    Location,
    storage_of,
    to_location,
    to_template,
    without_scheme,
)
from easytorch.optimizer_group import learning_rates

if TYPE_CHECKING:
    pass


class ModelCheckpoint(Monitor):
    """Save the model to a file after epochs, updates or minutes.

    Args:
        filepath: Name of the file, or a URL such as ``"s3://bucket/best.pt"``. Its fields are filled with ``{epoch}`` and
            ``{batch}``, from 1, and with the values of the logs: ``"runs/{epoch:02d}-{val_loss:.3f}.pt"``.
        monitor: Name of the value that determines the best model.
        verbose: 1 prints a line for each file.
        save_best_only: Save the model only when the value is better than all before.
        save_weights_only: Save the state dict of the module (``save_weights``) instead of the complete model (``save``).
        mode: ``"min"``, ``"max"``, or ``"auto"`` to ask the metric.
        save_freq: ``"epoch"``; or an integer, the number of updates between two files, counted over all epochs; or an
            ``Every``.
        initial_value_threshold: With ``save_best_only``, the value that the first file must improve on.
        keep: Number of most recent files to retain; older files of this callback are deleted. None retains all.
        keep_best: Number of best files to retain in addition. A file is deleted only after the next one is complete.
        save_in_background: Write files in a thread while training continues. Training waits only for a copy to host memory, and
            for the previous file of this callback. An error of a write is reported at the next one, or at the end of ``fit``,
            which waits for all files. It works in one process. None does
            so for object stores, in one process.

    Attributes:
        best_path: The file with the best value.

    Raises:
        ValueError: If an argument is invalid; in ``fit``, if the logs will not contain ``monitor`` or a field of the name, or
            if another callback may write the same file.
        TypeError: In ``fit``, if a file cannot hold the state of the module.
        OSError: In ``fit``, before training, if the folder cannot be created or is not writable.

    Examples:
        >>> best = ModelCheckpoint("best.pt", monitor="val_accuracy", save_best_only=True)
        >>> last = ModelCheckpoint("runs/{epoch}-{batch}.pt", save_freq=Every(minutes=10), keep=2)
        >>> model.fit(x, y, epochs=5, validation_split=0.2, callbacks=[best, last])
    """

    # After callbacks that change the weights or the logs.
    priority = 5

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int | Every = "epoch",
        initial_value_threshold: float | None = None,
        *,
        keep: int | None = None,
        keep_best: int | None = None,
        save_in_background: bool | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        location = to_location(filepath, "filepath")
        self.filename, self.verbose = FilenameTemplate(to_template(filepath)), verbose
        # Relative names keep their folder after os.chdir.
        self._base = "" if storage_of(location).is_absolute(location) else os.getcwd()
        self.save_best_only = boolean("save_best_only", save_best_only)
        self.save_weights_only = boolean("save_weights_only", save_weights_only)
        self.save_freq = as_every("save_freq", save_freq)
        self.initial_value_threshold = initial_value_threshold
        self.keep, self.keep_best = optional_positive_int("keep", keep), optional_positive_int("keep_best", keep_best)
        self.save_in_background = optional_boolean("save_in_background", save_in_background)
        self._in_background = bool(save_in_background)
        self._best_name: str | None = None
        # Name and value of each file that exists, or will when the pending one is complete.
        self.written: list[list[Any]] = []
        self._pending: PendingFile | None = None
        self._write_error: OSError | None = None
        self._has_warned = False
        self._saved_at = 0.0
        self.compares = save_best_only or keep_best is not None
        files.check_suffix(self.filename.text, weights_only=self.save_weights_only)
        if self.compares and self.save_freq.unit != "epochs":
            raise ValueError(
                "The monitored value is known only after an epoch or a validation, so save_best_only and keep_best need "
                f"save_freq in epochs, received {save_freq!r}. Pass save_freq=Every(epochs=1). To compare after updates, also "
                "pass fit(validation_freq=Every(updates=500))."
            )

    @property
    def best_path(self) -> str | None:
        """The file with the best value, as an absolute path; None before it is written."""
        self._complete()
        return None if self._best_name is None else self._path(self._best_name)

    @property
    def saved(self) -> Location | None:
        """The best file, or the newest one, as it was named; None before one is written."""
        self._complete()
        name = self._best_name or (self.written[-1][0] if self.written else None)
        return None if name is None else to_location(name)

    def _path(self, name: str) -> str:
        return os.path.join(self._base, name)

    def _location(self, name: str) -> Location:
        return to_location(self._path(name))

    def _folder(self) -> Location:
        return self._location(self.filename.text).parent

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the monitored name, if it is used, the name of the file, and that a file can hold the module."""
        if self.compares:
            # The best value of an earlier fit remains.
            threshold = self.initial_value_threshold if self._best_name is None else self.best
            super().on_train_begin(logs)
            self.best = self.best if threshold is None else threshold
        self._saved_at, self._write_error, self._has_warned = self.model.strategy.control.now(), None, False
        if self.save_in_background:
            check_one_process(self)
            check_saves_as_usual(self.model)
        folder = self._folder()
        self._in_background = writes_in_background(self, storage_of(folder))
        follows_validations = (
            self.compares and self.monitor.startswith("val_") and self.params.get("validates_between_updates")
        )
        unit = "validations" if follows_validations else self.save_freq.unit
        self.filename.check(unit, self.model, self._path(self.filename.text))
        if self.model.strategy.group.is_main:
            storage_of(folder).check_before_training(folder)
        for other in self.model.callbacks.callbacks:
            self._check_other(other)
        if self.filename.text.endswith(".safetensors"):
            files.check_safetensors(self.model.module.state_dict(), self.filename.text)
        else:
            to_serializable(dict(self.model.module.state_dict()), "module")

    def redirect(self, folder: Path) -> None:
        """Write to ``folder`` at the next opportunity, whatever the value."""
        folder_of_files = self._folder()
        storage_of(folder_of_files).check_writable(folder_of_files)
        path = Path(without_scheme(self.filename.text))
        parts = [part for part in path.parts if part not in ("..", os.sep, path.anchor)]
        self.filename, self._base = FilenameTemplate(os.path.join(*parts)), str(folder)
        self.save_freq = Every(epochs=1) if self.save_freq.unit == "epochs" else Every(updates=1)
        self.written, self._best_name, self.verbose = [], None, 0
        self.reset()

    def _check_other(self, other: Callback) -> None:
        """Raise a ``ValueError`` if this callback and ``other`` may write one file."""
        if isinstance(other, ModelCheckpoint) and other is not self:
            is_one_folder = _real_path(other._folder()) == _real_path(self._folder())
            ours, theirs = (FilenameTemplate(os.path.basename(each.filename.text)) for each in (self, other))
            if is_one_folder and ours.collides(theirs, self.model.state.last):
                raise ValueError(
                    f"Two ModelCheckpoint callbacks have filepath={self.filename.text!r} and {other.filename.text!r}, so each "
                    "would replace or delete the files of the other. Give each a name, such as 'best-{epoch}.pt' and "
                    "'last-{epoch}.pt'."
                )
        if isinstance(other, BackupAndRestore) and any(map(other.writes, self._sample_paths())):
            raise ValueError(
                f"ModelCheckpoint(filepath={self.filename.text!r}) would replace checkpoints of the run, which have the names "
                "'step-....pt' in the same folder. Use another name, such as 'model-{epoch}.pt'."
            )

    def _sample_paths(self) -> list[str]:
        """Return paths that may be written in the first epoch."""
        fields = dict.fromkeys(self.filename.fields, 1.0)
        with contextlib.suppress(ValueError):  # a value that a custom step logs may have another type
            return [self._path(str(self.filename.fill(fields | {"epoch": 1, "batch": 1})))]
        return []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save the model if it is due."""
        if self._pending is not None and self._pending.job.has_ended:
            self._complete()
        if self.save_freq.epochs is not None:
            return
        state = self.model.state
        if self.save_freq.is_due_after_update(state.step, self.model.strategy.control.now() - self._saved_at):
            rates = learning_rates(self.model.require_optimizer("fit"))
            self._save(dict(logs.items()) | {"epoch": state.epoch + 1, "batch": batch + 1} | rates)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save the model if it is due, and if it is the best where that is wanted."""
        if not self.save_freq.is_due_after_epoch(epoch + 1) or (self.compares and self.follows_validations()):
            return
        values = dict(logs or {}) | {"epoch": epoch + 1}
        if self.compares:
            self._compare(logs or {}, values)
        else:
            self._save(values)

    def on_validation_end(self, logs: Any = None) -> None:
        """Save the model if it is the best, where that is wanted and validations follow updates."""
        if self.compares and self.follows_validations():
            state = self.model.state
            self._compare(logs or {}, {**(logs or {}), "epoch": state.epoch + 1, "batch": state.epoch_step})

    def _compare(self, logs: Mapping[str, float], values: dict[str, Any]) -> None:
        """Save the model, only if it is the best where that is wanted; ``values`` are those of the name."""
        value = self.read_value(logs)
        if value is None:
            return
        is_best = self.is_better(value)
        if is_best:
            self.best = value
        if is_best or not self.save_best_only:
            self._save(values, value, is_best)

    def on_train_end(self, logs: Any = None) -> None:
        """Raise the error of the last write."""
        self._complete()
        if self._write_error is not None:
            raise self._write_error

    def _save(self, values: Mapping[str, Any], value: float | None = None, is_best: bool = False) -> None:
        """Save the model, unless the name has a field that this epoch did not measure."""
        self._complete()
        self._saved_at = self.model.strategy.control.now()
        filled = self.filename.fill(values)
        if filled is None:
            self._warn_of_missing(values)
            return
        name = self._make_distinct(filled, is_best)
        suffix = "" if value is None else f" ({self.monitor} {value:.4f})"
        message = f"Epoch {values['epoch']}: saved {name}{suffix}"
        try:
            job = self._write(self._path(name))
        except OSError as error:
            self._record_write_error(error)
            return
        self._pending = PendingFile(job, name, message, self._best_name, self.written)
        self._best_name = name if is_best else self._best_name
        self.written = [entry for entry in self.written if entry[0] != name] + [[name, value]]
        if isinstance(job, Written):
            self._complete()

    def _warn_of_missing(self, values: Mapping[str, Any]) -> None:
        """Warn once if the name has a field that only a custom step or a callback may log."""
        known = {*values, *self.model.log_names()}
        if not any(name.startswith("val_") for name in values):  # a later epoch may have a validation
            known |= {field for field in self.filename.fields if field.startswith("val_")}
        field = next((field for field in self.filename.fields if field not in known), None)
        if field is None or self._has_warned:
            return
        self._has_warned = True
        warn(
            f"filepath={self.filename.text!r} contains {field!r}, which the logs do not contain, so no file was saved."
            f"{did_you_mean(field, [*values])} The logs contain {quote_list(list(values))}."
        )

    def _complete(self) -> None:
        """Wait for the pending file, report it, and delete old ones; undo its entry if it could not be written."""
        pending = self._pending
        if pending is None:
            return
        try:
            pending.job.wait()
        except Exception as error:
            self._pending = None
            self._best_name, self.written = pending.best_name, pending.written
            if not isinstance(error, OSError):
                raise
            self._record_write_error(error)
            return
        self._pending = self._write_error = None
        if self.verbose:
            self.print_message(pending.message)
        self._delete_old()

    def _record_write_error(self, error: OSError) -> None:
        self._write_error = error
        warn(f"No file was written: {error} Training continues, and will write the next file.")

    def _make_distinct(self, name: str, is_best: bool) -> str:
        """Return ``name``, or with a number appended if it is the name of a file that must stay.

        That is a file among the best, unless the new one is better, or the file of another callback.
        """
        others = [
            each for each in self.model.callbacks.callbacks if isinstance(each, ModelCheckpoint) and each is not self
        ]
        taken = {_real_path(each._location(entry[0])) for each in others for entry in each.written}
        if self.compares and not is_best:
            retained = self._select_retained() if self.written else set()
            taken |= {_real_path(self._location(each)) for each in retained if self._is_among_best(each)}
        root, suffix = os.path.splitext(name)
        names = itertools.chain([name], (f"{root}-{i}{suffix}" for i in itertools.count(2)))
        return next(each for each in names if _real_path(self._location(each)) not in taken)

    def _is_among_best(self, name: str) -> bool:
        return name == self._best_name or name in {entry[0] for entry in self._ranked()[: self.keep_best or 0]}

    def _write(self, path: str) -> Job | Written:
        """Write a file, or start to write it."""
        to_location(path).parent.mkdir(parents=True, exist_ok=True)
        write = start_to_write if self._in_background else write_now
        with self.model.callbacks.evaluated_weights() if self.compares else contextlib.nullcontext():
            return write(self.model, path, self.save_weights_only)

    def _delete_old(self) -> None:
        """Delete the files that are neither among the most recent nor among the best."""
        if self.keep is None and self.keep_best is None:
            return
        is_main = self.model.strategy.group.is_main
        retained = self._select_retained()
        remaining = []
        for entry in self.written:
            # A file that cannot be deleted is tried again after the next one.
            if entry[0] in retained or (is_main and not rotation.delete(self._location(entry[0]))):
                remaining.append(entry)
        self.written = remaining

    def _select_retained(self) -> set[str]:
        recent = self.written[-(self.keep or 1) :]
        names = {name for name, _ in [*recent, *self._ranked()[: self.keep_best or 0]]}
        return names if self._best_name is None else names | {self._best_name}

    def _ranked(self) -> list[list[Any]]:
        """Return the files that exist, the best first."""
        # NaN is not equal to itself and cannot be ranked.
        ranked = [entry for entry in self.written if entry[1] is not None and entry[1] == entry[1]]
        return sorted(ranked, key=lambda entry: entry[1], reverse=self.direction == "max")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the files that exist."""
        return super().state_dict() | {"best_path": self._best_name, "written": [list(entry) for entry in self.written]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the best value and the list of files."""
        super().load_state_dict(state)
        # A checkpoint file must not be able to name other files for deletion.
        self.written = [[name, value] for name, value in state["written"] if self.filename.matches(name)]
        if self._in_background:  # the run may have been killed before a file was complete
            self.written = [entry for entry in self.written if self._location(entry[0]).exists()]
        names = [name for name, _ in self.written]
        self._best_name = state["best_path"] if state["best_path"] in names else None


def saved_places(callbacks: Iterable[Callback]) -> list[str]:
    """Return the folders and files in which ``callbacks`` have saved the run or the model, the runs first."""
    runs = [callback.saved for callback in callbacks if isinstance(callback, BackupAndRestore)]
    models = [callback.saved for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    return [str(path) for path in [*runs, *models] if path is not None]


def _real_path(location: Location) -> str:
    return storage_of(location).real_path(location)
