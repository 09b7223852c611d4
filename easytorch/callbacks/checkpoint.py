"""Callbacks that keep a run in files: to go on exactly where it stopped, and to have the best of it."""

from __future__ import annotations

import contextlib
import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easytorch._utils.rng import get_rng_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.callbacks.early_stopping import Monitor, check_name
from easytorch.checkpoint import files, rotation


class BackupAndRestore(Callback):
    """Keeps a run in a folder, and goes on exactly where it stopped; ``fit(resume=folder)`` is the short form.

    Kept are the weights, the optimizer, schedules, the loss scale, the totals of the metrics, every callback's state, the
    history, all random states and the place in the data. The same program continues with the very numbers that an
    undisturbed run would have had.

    Args:
        backup_dir: The folder, made if it is not there; or a file in one, to go on from there: newer ones beside it are then
            renamed to ``.archived``.
        save_freq: ``"epoch"``, or a number of updates, counted over all epochs.
        minutes: Keep it also when so many minutes have passed since the last time; None does not.
        keep: How many of the newest files to keep.
        delete_checkpoint: Delete these files, and the folder if it is empty then, when training has come to its end.
    """

    priority = 10  # told after all whose state it keeps

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        *,
        minutes: float | None = 10.0,
        keep: int = 2,
        delete_checkpoint: bool = True,
    ) -> None:
        if save_freq != "epoch" and not (type(save_freq) is int and save_freq >= 1):
            raise ValueError(f"save_freq must be 'epoch' or a number of updates, received {save_freq!r}.")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, received {keep!r}.")
        self.folder = Path(backup_dir).expanduser()
        self.save_freq, self.minutes, self.keep, self.delete_checkpoint = save_freq, minutes, keep, delete_checkpoint
        self.source = self.folder
        self._ended_by_error = self._begun = False
        self._random_before_test: dict[str, Any] | None = None
        self._failed: OSError | None = None

    @classmethod
    def at(cls, resume: str | os.PathLike[str] | None) -> list[BackupAndRestore]:
        """Return the callbacks for what the user passed as ``fit(resume=...)``."""
        if isinstance(resume, bool):
            raise TypeError(f"resume is the folder in which the run is kept, received {resume!r}. Pass resume='run/'.")
        return [] if resume is None else [cls(resume, delete_checkpoint=False)]

    def on_restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        self._saved, self._failed, self._ended_by_error = self.model.strategy.control.now(), None, False
        self._begun, self._random_before_test = False, None
        processes = self.model.strategy.group
        path, content = self._found() if processes.is_main else (None, {})
        path = processes.broadcast(path)
        if path is not None:
            self.folder = path.parent
            self._resume(content or files.read_model(path, self.model.device, verified=True), path)

    def _found(self) -> tuple[Path | None, dict[str, Any]]:
        """Return the file to go on from and what is in it, None where the run begins; newer ones beside it are set aside."""
        if self.source.is_file():
            content = files.read_model(self.source, self.model.device)
            self.folder = self.source.parent
            self._leave_newer(self.source)
            return self.source, content
        if self.source.suffix == ".pt":
            raise FileNotFoundError(
                f"There is no file {str(self.source)!r} to resume from. Name a folder to begin a run in it."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(error.errno, f"Cannot keep the run in {str(self.folder)!r}: {error.strerror}.") from error
        rotation.remove_stale(self.folder)
        if not rotation.list_checkpoints(self.folder):
            return None, {}
        path, content = rotation.read_newest(self.folder, self.model.device)
        self._leave_newer(path)
        return path, content

    def _leave_newer(self, source: Path) -> None:
        """Set those checkpoints aside that are newer than the one to go on from: broken ones, or of a way not taken."""
        rotation.archive_checkpoints(path for path in rotation.list_checkpoints(self.folder) if path.name > source.name)

    def _resume(self, content: dict[str, Any], path: Path) -> None:
        self.model.load_training_state(content, path)
        state = self.model.state
        if self.params["verbose"] == 0:
            return
        if state.epoch < state.last:
            left = f"stopped after update {state.step}, goes on in epoch {state.epoch + 1} of {state.last}"
            self.say(f"The run in {str(path)!r}, {left}")
        else:
            self.say(
                f"The run in {str(path)!r} is finished, so nothing is trained; larger epochs= than {state.epoch} go on"
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keep the run, if it is time."""
        due = self.save_freq != "epoch" and self.model.state.step % int(self.save_freq) == 0
        if due or (self.minutes is not None and self.model.strategy.control.now() - self._saved >= 60 * self.minutes):
            self.save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the run."""
        if self.save_freq == "epoch":
            self.save()

    def on_test_begin(self, logs: Any = None) -> None:
        """Note the random states: an interrupted validation is done again from its beginning."""
        self._random_before_test = get_rng_state()

    def on_test_end(self, logs: Any = None) -> None:
        """Note that validation was not interrupted."""
        self._random_before_test = None

    def on_interrupt(self) -> None:
        """Keep the run where it was interrupted."""
        self.save(final=True)

    def on_exception(self, error: BaseException) -> None:
        """Note that the run did not come to its end."""
        self._ended_by_error = True

    def on_train_end(self, logs: Any = None) -> None:
        """Delete the files of a run that came to its end, if that is wanted; say if the last one could not be written."""
        self._complete()
        ended = self.model.state.epoch >= self.model.state.last or self.model.stop_training
        failed = self._ended_by_error or self.model.history.interrupted or self.model.callbacks.diverged
        if ended and self.delete_checkpoint and not failed and self.model.strategy.group.is_main:
            rotation.delete_old(self.folder, 0)
            with contextlib.suppress(OSError):  # there is something else in it
                self.folder.rmdir()
        elif self._failed is not None:
            raise self._failed
        elif self._begun:
            self._tidy()

    def save(self, final: bool = False) -> None:
        """Write a checkpoint, or begin to, if that goes on beside the training; a failure is a warning until the last one."""
        if self.model.callbacks.diverged:  # the last whole one is from before the damage
            return
        content = self.model.training_state()
        if self._random_before_test is not None:
            content["train_data"]["random"] = self._random_before_test
        self._complete()
        try:
            self.model.strategy.checkpoints.write(rotation.step_path(self.folder, self.model.state.step), content)
            if final:
                self.model.strategy.checkpoints.wait()
        except OSError as error:
            if final:
                raise
            self._fail(error)
            return
        self._failed, self._saved, self._begun = None, self.model.strategy.control.now(), True
        self._tidy()

    def _complete(self) -> None:
        """Wait for a checkpoint that is written beside the training."""
        try:
            self.model.strategy.checkpoints.wait()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed = error
        if self.model.strategy.group.is_main:
            warn(f"{error} Training goes on; the next checkpoint is tried again.")

    def _tidy(self) -> None:
        if self.model.strategy.group.is_main:
            rotation.delete_old(self.folder, self.keep)


class ModelCheckpoint(Monitor):
    """Writes the model to a file after epochs, or every so often.

    Args:
        filepath: The file's name. ``{epoch}`` and ``{batch}`` count from 1; every value of the logs can stand in it too:
            ``"runs/{epoch:02d}-{val_loss:.3f}.pt"``.
        monitor: The value that tells which is the best.
        verbose: 1 says what is written.
        save_best_only: Write only what is better than all before.
        save_weights_only: Write the module's state dict alone (``save_weights``), not the whole model (``save``).
        mode: ``"min"``, ``"max"`` or ``"auto"``, which asks the metric.
        save_freq: ``"epoch"``; a number of updates, counted over all epochs; or ``"3 epochs"`` and ``"10 minutes"``.
        initial_value_threshold: A value that the first file has to beat, with ``save_best_only``.
        keep: Keep the last so many files that this object wrote, and delete the others; None keeps all.
        keep_best: Keep the best so many, beside the last. A file is deleted only after the next one is whole.

    Attributes:
        best_path: The file with the best value.
    """

    priority = 5  # after those that change the weights or the logs

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        *,
        keep: int | None = None,
        keep_best: int | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.filepath, self.verbose = os.path.expanduser(filepath), verbose
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.every, self.unit = _frequency(save_freq)
        self.initial_value_threshold, self.keep, self.keep_best = initial_value_threshold, keep, keep_best
        self.best_path: str | None = None
        self.written: list[list[Any]] = []  # path and value of each file that is there
        self._failed: OSError | None = None
        for name, count in (("keep", keep), ("keep_best", keep_best)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, or None, received {count!r}.")
        if not save_weights_only:
            files.check_suffix(filepath)
        self._judged = save_best_only or keep_best is not None
        self._saved = 0.0
        if self._judged and self.unit in ("updates", "minutes"):
            raise ValueError(
                "The best is known after an epoch, so save_best_only and keep_best need save_freq in epochs."
            )

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name to monitor, if it is needed; the best of an earlier fit stays."""
        if self._judged:
            known = self.best if self.best_path is not None else None
            super().on_train_begin(logs)
            threshold = self.initial_value_threshold if known is None else known
            self.best = self.best if threshold is None else threshold
        self._saved, self._failed = self.model.strategy.control.now(), None
        if self.filepath.endswith(("/", os.sep)) or os.path.isdir(self.filepath):
            file = os.path.join(self.filepath, "model-{epoch}.pt")
            raise ValueError(f"filepath={self.filepath!r} is a folder. Name the file in it, {file!r}.")
        for name in _fields(self.filepath):
            if (name == "batch") if self.unit == "epochs" else name.startswith("val_"):
                raise ValueError(
                    f"filepath={self.filepath!r} names {name!r}, which is not known when a file is written: save_freq counts "
                    f"{self.unit}. Leave it out."
                )
            if name not in ("epoch", "batch"):
                check_name(name, f"filepath={self.filepath!r} names", self.model)
        likely = dict.fromkeys(self.model.log_names(), 1.0) | {"epoch": 1, "batch": 1}
        try:
            if all(name in likely for name in _fields(self.filepath)):  # of what else is logged nobody knows the type
                self.filepath.format(**likely)
        except ValueError as error:
            raise ValueError(
                f"filepath={self.filepath!r} cannot be filled in: {error}. Write {{val_loss:.3f}}."
            ) from error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write, if it is time."""
        counted = self.unit == "updates" and self.model.state.step % self.every == 0
        if counted or (self.unit == "minutes" and self.model.strategy.control.now() - self._saved >= 60 * self.every):
            self._write(self.model.state.epoch, batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write, if it is time and good enough."""
        if self.unit != "epochs" or (epoch + 1) % self.every:
            return
        value = self.value(logs or {}) if self._judged else None
        if self._judged and value is None:
            return
        better = value is not None and self.improved(value)
        if better and value is not None:
            self.best = value
        if better or not self.save_best_only:
            self._write(epoch, None, logs, value, better)

    def _write(
        self, epoch: int, batch: int | None, logs: Any, value: float | None = None, better: bool = False
    ) -> None:
        self._saved = self.model.strategy.control.now()
        names = dict(logs.items() if logs else {}) | {"epoch": epoch + 1}
        if batch is not None:
            rate = float(self.model.require_optimizer("fit").param_groups[0]["lr"])
            names |= {"batch": batch + 1, "lr": rate}
        if any(name not in names for name in _fields(self.filepath)):  # an epoch that was not validated
            return
        path = self.filepath.format(**names)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with self.model.callbacks.evaluated_weights() if self._judged else contextlib.nullcontext():
                (self.model.save_weights if self.save_weights_only else self.model.save)(path)
        except OSError as error:
            self._failed = error
            warn(f"{error} Training goes on; the next file is tried again.")
            return
        self._failed = None
        self.best_path = path if better else self.best_path
        self.written = [entry for entry in self.written if entry[0] != path] + [[path, value]]
        if self.verbose:
            self.say(
                f"Epoch {epoch + 1}: saved {path}" + (f" ({self.monitor} {value:.4f})" if value is not None else "")
            )
        self._tidy()

    def on_train_end(self, logs: Any = None) -> None:
        """Say if the last file could not be written."""
        if self._failed is not None:
            raise self._failed

    def _tidy(self) -> None:
        if self.keep is None and self.keep_best is None:
            return
        last = self.written[-self.keep :] if self.keep else self.written[-1:]
        finite = [entry for entry in self.written if entry[1] is not None and entry[1] == entry[1]]
        ranked = sorted(finite, key=lambda entry: entry[1], reverse=self.direction == "max")
        kept = {path for path, _ in [*last, *ranked[: self.keep_best or 0]]} | (
            {self.best_path} if self.best_path else set()
        )
        for path, _ in self.written:
            if path not in kept and self.model.strategy.group.is_main:
                Path(path).unlink(missing_ok=True)
        self.written = [entry for entry in self.written if entry[0] in kept]

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the files that are there."""
        return super().state_dict() | {"best_path": self.best_path, "written": [list(entry) for entry in self.written]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        pattern = re.compile("".join(_as_pattern(*part[:2]) for part in string.Formatter().parse(self.filepath)))
        # Only files of the very kind that this object writes: a checkpoint must not name others to be deleted.
        self.written = [[path, value] for path, value in state["written"] if pattern.fullmatch(path)]
        self.best_path = state["best_path"] if state["best_path"] in [path for path, _ in self.written] else None


def _fields(filepath: str) -> list[str]:
    """Return the names that stand in a file's name."""
    fields = [field for _, field, _, _ in string.Formatter().parse(filepath) if field is not None]
    if "" in fields:
        raise ValueError(f"filepath={filepath!r} has a place without a name. Write {{epoch}}, or {{val_loss:.3f}}.")
    return fields


def _as_pattern(literal: str, field: str | None) -> str:
    return re.escape(literal) + ("" if field is None else r"[^/\\\0]*")


def _frequency(save_freq: str | int) -> tuple[float, str]:
    if type(save_freq) is int and save_freq >= 1:
        return save_freq, "updates"
    words = save_freq.split() if isinstance(save_freq, str) else []
    if words == ["epoch"]:
        return 1, "epochs"
    if len(words) == 2 and words[1] == "minutes" and words[0].replace(".", "", 1).isdigit() and float(words[0]) > 0:
        return float(words[0]), "minutes"
    if len(words) == 2 and words[1] in ("epochs", "updates") and words[0].isdigit() and int(words[0]) > 0:
        return int(words[0]), words[1]
    raise ValueError(
        f"save_freq must be 'epoch', a number of updates, '3 epochs' or '10 minutes'; received {save_freq!r}."
    )
