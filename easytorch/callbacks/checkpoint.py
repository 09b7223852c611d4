"""Checkpoints: files that contain the model or the complete state of a run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easytorch._utils.integers import boolean, optional_boolean, optional_positive_int, positive_int
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
from easytorch.callbacks.base import Callback
from easytorch.callbacks.early_stopping import Monitor
from easytorch.callbacks.every import Every, as_every, check_minutes
from easytorch.callbacks.filename import FilenameTemplate
from easytorch.callbacks.last_update import LastUpdate
from easytorch.checkpoint import files, rotation
from easytorch.checkpoint.background import Job
from easytorch.checkpoint.folder_lock import Lock
from easytorch.checkpoint.serialization import to_serializable
from easytorch.checkpoint.storage import (
    Location,
    storage_of,
    to_absolute_location,
    to_location,
    to_template,
    without_scheme,
)
from easytorch.errors import ResumeError
from easytorch.optimizer_group import learning_rates

if TYPE_CHECKING:
    from easytorch.model import Model


class BackupAndRestore(Callback):
    """Save the complete state of a run to a folder and resume it exactly; ``fit(resume=folder)`` is the short form.

    A checkpoint contains the weights, the optimizer, schedules, the loss scale, the totals of the metrics, the state of every
    callback, the history, all random states and the position in the data.
    The same program then continues with exactly the numbers of an uninterrupted run.

    Args:
        backup_dir: The folder, created if it does not exist, or the URL of one, such as ``"s3://bucket/run"``. Or a checkpoint
            file, to resume from it: newer checkpoints in the same folder are then renamed to ``.archived``.
        save_freq: ``"epoch"``; or an integer, the number of updates between two checkpoints, counted over all epochs; or an
            ``Every``.
        minutes: Also save a checkpoint when this many minutes have passed since the last one; None does not. Ignored with
            ``save_freq=Every(minutes=...)``.
        keep: Number of checkpoints to retain, the newest ones.
        delete_checkpoint: Delete the checkpoints when training is complete, and the folder if it is empty then.
        save_in_background: Write checkpoints in a thread while training continues; see ``ModelCheckpoint``.

    Raises:
        ValueError: If a number is invalid, or ``backup_dir`` is empty or None; in ``fit``, with ``save_in_background`` and
            ``strategy="ddp"``.
        ResumeError: In ``fit``, if another run uses the folder.

    Examples:
        >>> model.fit(x, y, epochs=5, callbacks=[BackupAndRestore("backup/", save_freq=Every(updates=500))])
    """

    # After all callbacks whose state it saves.
    priority = 10

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: str | int | Every = "epoch",
        *,
        minutes: float | None = 10.0,
        keep: int = 2,
        delete_checkpoint: bool = True,
        save_in_background: bool | None = None,
    ) -> None:
        self.save_freq = as_every("save_freq", save_freq)
        if minutes is not None:
            check_minutes(minutes)
        self.minutes = minutes if self.save_freq.minutes is None else self.save_freq.minutes
        self.keep, self.delete_checkpoint = positive_int("keep", keep), boolean("delete_checkpoint", delete_checkpoint)
        self.save_in_background = optional_boolean("save_in_background", save_in_background)
        self._in_background = bool(save_in_background)
        self._shown = to_location(backup_dir, "backup_dir")
        # Absolute, so that os.chdir does not split the run into two folders.
        self.source = self.folder = to_absolute_location(backup_dir, "backup_dir")
        self._lock: Lock | None = None
        # The folder to which a dry run writes.
        self._redirected: Path | None = None
        self._reset()

    def _reset(self) -> None:
        self._has_saved = self._has_resumed = self._has_failed = False
        # The checkpoint file whose folder is not locked yet.
        self._claimed: Location | None = None
        # Newer checkpoints that could not be renamed.
        self._unarchived: set[Location] = set()
        self._write_error: OSError | None = None
        # Restores the state after on_epoch_begin, and attributes after an interrupted validation.
        self._repeat_restore: Callable[[], None] | None = None
        self._restore_attributes: Callable[[], None] | None = None
        self._last_update = LastUpdate()

    @classmethod
    def at(cls, resume: str | os.PathLike[str] | None) -> list[BackupAndRestore]:
        """Return the callbacks for ``fit(resume=...)``.

        Args:
            resume: The folder or file, or None.

        Raises:
            TypeError: If it is a bool.
            ValueError: If it is empty.
        """
        if isinstance(resume, bool):
            raise TypeError(f"resume must be the folder of the run, received {resume!r}. Pass resume='run/'.")
        if resume is None:
            return []
        to_location(resume, "resume")  # an error that names this argument
        return [cls(resume, delete_checkpoint=False)]

    @property
    def saved(self) -> Location | None:
        """The folder with the checkpoints that this fit has written, as it was passed; None if there are none."""
        if not self._has_saved:
            return None
        return self._shown if self.source == self.folder else self._shown.parent

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that no other callback writes to the folder, and that a file can hold the state of all callbacks."""
        if self.save_in_background and not self.model.strategy.checkpoints.always_in_background:
            check_one_process(self)
        self._in_background = writes_in_background(self, storage_of(self.folder))
        for other in self.model.callbacks.callbacks:
            if isinstance(other, BackupAndRestore) and other is not self and other._is_in(self._folder_of_run()):
                raise ValueError(
                    f"Two BackupAndRestore callbacks, or one and resume=, use the folder {str(self._shown)!r}, so each would "
                    "delete the checkpoints of the other. Remove one of them."
                )
        _check_states(self.model)

    def redirect(self, folder: Path) -> None:
        """Resume from the run, but change nothing there: save to ``folder``, after each epoch."""
        of_run = self._folder_of_run()
        storage_of(of_run).check_writable(of_run)
        self._redirected, self.save_freq, self.minutes = folder, Every(epochs=1), None

    def _folder_of_run(self) -> Location:
        return self.source.parent if storage_of(self.source).is_file(self.source) else self.source

    def _is_in(self, folder: Location) -> bool:
        of_run = self._folder_of_run()
        return storage_of(of_run).real_path(of_run) == storage_of(folder).real_path(folder)

    def writes(self, path: str) -> bool:
        """Return whether this callback may write a checkpoint to ``path``."""
        location = to_location(path)
        return rotation.is_checkpoint_name(location.name) and self._is_in(location.parent)

    def on_restore(self) -> None:
        """Resume from the newest valid checkpoint, if there is one."""
        self._reset()
        self._saved_at = self.model.strategy.control.now()
        path, content = self._on_main_rank(self._find_checkpoint)
        self._claimed = path if path is not None and path == self.source else None
        if path is not None:
            self.folder = path.parent
            content = content or files.read_model(path, self.model.device, verified=True)
            self._repeat_restore = self.model.load_training_state(content, path)
            self._report_resumption(path)
            self._has_resumed = self._claimed is None
        if self._redirected is not None:
            self.folder, self._claimed = self._redirected, None

    def _on_main_rank(
        self, function: Callable[[], tuple[Location | None, dict[str, Any]]]
    ) -> tuple[Location | None, dict[str, Any]]:
        """Call ``function`` on the main rank; the others get its path, or the same error instead of waiting for it."""
        group = self.model.strategy.group
        path: Location | None = None
        content: dict[str, Any] = {}
        error: Exception | None = None
        if group.is_main:
            try:
                path, content = function()
            except Exception as caught:
                error = caught
        path, message = group.broadcast((path, None if error is None else str(error)))
        if message is not None:
            raise error or ResumeError(message)
        return path, content

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Claim the folder of the checkpoint file that was passed, now that its content is accepted."""
        if self._claimed is not None:
            self._claimed = None
            self._on_main_rank(self._claim_folder)

    def finish_restore(self) -> None:
        """Restore the state once more: in the middle of an epoch, it has what ``on_epoch_begin`` has changed already."""
        repeat, self._repeat_restore = self._repeat_restore, None
        if repeat is not None:
            repeat()

    def _claim_folder(self) -> tuple[Location, dict[str, Any]]:
        self._acquire_lock()
        self._archive_newer(self.source)
        return self.source, {}

    def _find_checkpoint(self) -> tuple[Location | None, dict[str, Any]]:
        """Return path and content of the checkpoint to resume from, or None; rename newer ones."""
        storage = storage_of(self.source)
        if storage.is_file(self.source):
            # A file that is refused leaves no trace in its folder: on_epoch_begin locks it.
            self.folder = self.source.parent
            return self.source, files.read_model(self.source, self.model.device)
        if self.source.suffix == ".pt" and not storage.is_folder(self.source):
            raise FileNotFoundError(
                f"There is no file {str(self._shown)!r} to resume from. Pass a folder to start a new run."
            )
        if self._redirected is not None:
            has_any = bool(rotation.list_checkpoints(self.folder))
            return rotation.read_newest(self.folder, self.model.device) if has_any else (None, {})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"Cannot save the run to {str(self.folder)!r}: {error.strerror}. Use another folder."
            raise type(error)(error.errno, message) from error
        is_locked = self._acquire_lock()
        rotation.remove_stale(self.folder, is_locked=is_locked)
        if not rotation.list_checkpoints(self.folder):
            return None, {}
        path, content = rotation.read_newest(self.folder, self.model.device)
        self._archive_newer(path)
        return path, content

    def _acquire_lock(self) -> bool:
        """Lock the folder, and return whether that was possible."""
        self._release_lock()
        self._lock = storage_of(self.folder).lock(self.folder, lambda: self.model.train_data is not None)
        self._lock.acquire()
        return self._lock.is_held

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _archive_newer(self, source: Location) -> None:
        """Rename the checkpoints newer than ``source``: they are damaged, or from an abandoned branch of the run."""
        newer = [path for path in rotation.list_checkpoints(self.folder) if path.name > source.name]
        self._unarchived = rotation.archive_checkpoints(newer)

    def _report_resumption(self, path: Location) -> None:
        state = self.model.state
        if self.params["verbose"] == 0:
            return
        path = (self._shown.parent if self._shown.name == path.name else self._shown) / path.name
        if state.epoch < state.last:
            self.print_message(
                f"Resuming the run in {str(path)!r} after update {state.step}, in epoch {state.epoch + 1} of {state.last}"
            )
        elif self.model.stop_training:
            self.print_message(
                f"The run in {str(path)!r} was stopped early after epoch {state.epoch}, so nothing is trained. To continue it, "
                f"call load({str(path)!r}), then fit() without resume"
            )
        else:
            self.print_message(
                f"The run in {str(path)!r} is complete, so nothing is trained. To continue it, pass epochs greater than "
                f"{state.epoch}"
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save a checkpoint if it is due."""
        seconds = self.model.strategy.control.now() - self._saved_at
        is_time = self.minutes is not None and seconds >= 60 * self.minutes
        if is_time or self.save_freq.is_due_after_update(self.model.state.step, seconds):
            self.save()
        self._last_update.record(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save a checkpoint if it is due."""
        if self.save_freq.is_due_after_epoch(epoch + 1):
            self.save()
        self._last_update.record(self.model)

    def on_validation_begin(self, logs: Any = None) -> None:
        """Record the state before a validation, which is repeated from its start if it is interrupted."""
        if self.model.train_data is not None:
            self.model.train_data.begin_validation()
            self._restore_attributes = self.model.attribute_state.snapshot(self.model.callbacks.callbacks)

    def on_validation_end(self, logs: Any = None) -> None:
        """Forget the state from before the validation."""
        if self.model.train_data is not None:
            self.model.train_data.end_validation()
            self._restore_attributes = None
            self._last_update.record(self.model)

    def on_interrupt(self) -> None:
        """Save a checkpoint of the interrupted run."""
        self._leave_validation()
        self.save(final=True)

    def on_exception(self, error: BaseException) -> None:
        """Record that the run failed, and save a checkpoint of the last finished update."""
        self._has_failed = True
        self._leave_validation()
        if self._lock is not None and self._lock.is_lost:
            return
        if self.model.train_data is not None and self._last_update.restore(self.model, error):
            self.save()

    def _leave_validation(self) -> None:
        """Restore what the user's code has changed in a validation that did not end."""
        restore, self._restore_attributes = self._restore_attributes, None
        if restore is not None:
            restore()

    def on_train_end(self, logs: Any = None) -> None:
        """Delete the checkpoints of a complete run, if wanted, or raise the error of the last write."""
        try:
            self._finish()
        finally:
            self._release_lock()
            self._remove_empty_folder()

    def _finish(self) -> None:
        self._wait_for_write()
        if self.delete_checkpoint and self._is_complete() and self.model.strategy.group.is_main:
            rotation.delete_old(self.folder, 0, self._unarchived)
            self._has_saved = False
        elif self._write_error is not None:
            raise self._write_error
        elif self._has_saved or self._has_resumed:
            # Also if nothing was trained: the process before this one may have been killed before it deleted them.
            self._delete_old()
        self.model.strategy.checkpoints.background.finish()

    def _remove_empty_folder(self) -> None:
        if self.delete_checkpoint and self._is_complete() and self.model.strategy.group.is_main:
            # The folder may contain other files.
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _is_complete(self) -> bool:
        has_ended = self.model.state.epoch >= self.model.state.last or self.model.stop_training
        return has_ended and not (self._has_failed or self.model.history.interrupted or self.model.callbacks.diverged)

    def save(self, final: bool = False) -> None:
        """Save a checkpoint, unless the loss was not finite.

        It may be written in the background.

        Args:
            final: Wait for the write and raise its error. By default an error is a warning.

        Raises:
            OSError: If ``final`` and the checkpoint cannot be written.
        """
        final = boolean("final", final)
        if self.model.callbacks.diverged:
            return
        if self._lock is not None:
            self._lock.check()
        content = self.model.training_state()
        self._wait_for_write()
        try:
            path, in_background = rotation.step_path(self.folder, self.model.state.step), self._in_background
            self.model.strategy.checkpoints.write(path, content, in_background=in_background)
            if final:
                self.model.strategy.checkpoints.wait()
        except OSError as error:
            if final:
                raise
            self._record_write_error(error)
            return
        self._write_error, self._saved_at, self._has_saved = None, self.model.strategy.control.now(), True
        self._delete_old()

    def _wait_for_write(self) -> None:
        """Wait for a checkpoint that is written in the background."""
        try:
            self.model.strategy.checkpoints.wait()
        except OSError as error:
            self._record_write_error(error)

    def _record_write_error(self, error: OSError) -> None:
        self._write_error = error
        if self.model.strategy.group.is_main:
            warn(f"No checkpoint was written: {error} Training continues, and will write the next checkpoint.")

    def _delete_old(self) -> None:
        if not self.model.strategy.group.is_main:
            return
        delete = functools.partial(rotation.delete_old, self.folder, self.keep, self._unarchived)
        if self._in_background and storage_of(self.folder).is_slow:
            self.model.strategy.checkpoints.background.run(delete)
        else:
            delete()


class FinishRestore(Callback):
    """Restores a run that continues in the middle of an epoch once more, when all callbacks have started the epoch."""

    priority = 100

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restore the state of the first resumed epoch."""
        for callback in self.model.callbacks.callbacks:
            if isinstance(callback, BackupAndRestore):
                callback.finish_restore()


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


def _check_states(model: Model) -> None:
    """Raise a ``TypeError`` if a file cannot hold the state of a run, before anything is trained."""
    parts: dict[str, Any] = {"module": model.module, "optimizer": model.optimizer}
    parts |= {
        model.callbacks.place(callback): callback
        for callback in model.callbacks.callbacks
        if type(callback).state_dict is not Callback.state_dict
    }
    for place, part in parts.items():
        try:
            state: Any = {} if part is None else part.state_dict()
        except Exception:  # a callback may have no state before its first epoch; the first checkpoint asks again
            continue
        to_serializable(dict(state) if place == "module" else state, place)
