"""Checkpoints of a run: files with its complete state, from which it continues."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easytorch._utils.integers import boolean, optional_boolean, positive_int
from easytorch._utils.warnings import warn
from easytorch.callbacks.background import (
    check_one_process,
    writes_in_background,
)
from easytorch.callbacks.base import Callback
from easytorch.callbacks.every import Every, as_every, check_minutes
from easytorch.callbacks.last_update import LastUpdate
from easytorch.checkpoint import files, rotation
from easytorch.checkpoint.folder_lock import Lock
from easytorch.checkpoint.serialization import to_serializable
from easytorch.checkpoint.storage import (
    Location,
    storage_of,
    to_absolute_location,
    to_location,
)
from easytorch.errors import ResumeError

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
