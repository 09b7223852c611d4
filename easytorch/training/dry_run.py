"""Dry run: one batch of everything that a fit does, and no trace of it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easytorch._utils.paths import nearest_folder
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.terminal import print_message
from easytorch.callbacks.advice import AdviseOnSlowData
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback
from easytorch.callbacks.progress import LineDisplay
from easytorch.callbacks.stop_after import StopAfter
from easytorch.data.batch import GeneratorWithLookahead, is_single_pass
from easytorch.data.data_sets import by_name
from easytorch.errors import escape_lines
from easytorch.training.trial import record, single_pass_message

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.model import Model
    from easytorch.training.validation import Validation

PURPOSE = "dry_run=True"


@contextlib.contextmanager
def dry_run(
    model: Model, train_data: EpochIterator, callbacks: list[Callback], validation: Validation, verbose: Any
) -> Iterator[list[Callback]]:
    """Restore everything that the fit inside changes; the fit has one update, one validation batch and one checkpoint.

    Args:
        model: The model.
        train_data: The training data, which refers to the validation data.
        callbacks: The callbacks of the fit.
        validation: The validation of the fit; from now on after each epoch.
        verbose: 0 prints nothing when all is well.

    Yields:
        The callbacks of the fit inside: all but those that display progress, and those that would end it before its hooks.

    Raises:
        ValueError: If data can be read only once.
    """
    _check_can_read_again(train_data)
    validation.validate_always()
    hidden = (LineDisplay, AdviseOnSlowData, StopAfter)
    callbacks = [callback for callback in callbacks if not isinstance(callback, hidden)]
    last = LastHooks()
    restore = record(model, [train_data.sources], callbacks, exclude=[train_data], purpose=PURPOSE)
    try:
        with preserve_rng_state():
            yield [FirstHook(last), *callbacks, last]
    finally:
        restore()
        last.remove_folder()
    if verbose != 0 and model.strategy.group.is_main:
        print_message(escape_lines(last.describe()), sys.stdout)


def _check_can_read_again(train_data: EpochIterator) -> None:
    """Raise a ``ValueError`` if a batch that is read cannot be read again."""
    loaders = by_name(train_data.validation_loader).values()
    is_generator = any(isinstance(loader, GeneratorWithLookahead) for loader in loaders)
    for name, is_read_once in (("x", is_single_pass(train_data.loader)), ("validation_data", is_generator)):
        if is_read_once:
            raise ValueError(single_pass_message(PURPOSE, name, "the run"))


class FirstHook(Callback):
    """Sends the files of all callbacks to a temporary folder, when ``on_train_begin`` has checked their true names.

    Args:
        last: The callback that deletes the folder.
    """

    priority = -1000

    def __init__(self, last: LastHooks) -> None:
        self.last = last

    def on_restore(self) -> None:
        """Create the folder on the main rank, near the checkpoints of the run if there are any."""
        group, callbacks = self.model.strategy.group, self.model.callbacks.callbacks
        folders = [each.folder for each in callbacks if isinstance(each, BackupAndRestore)]
        places = [nearest_folder(folder) for folder in folders if isinstance(folder, Path)]
        folder, error = None, None
        if group.is_main:
            try:
                folder = tempfile.mkdtemp(prefix=".dry-run-", dir=places[0] if places else None)
            except OSError as caught:
                error = type(caught)(caught.errno, f"Cannot save the run in {str(places[0])!r}: {caught.strerror}.")
        folder, error = group.broadcast((folder, error))
        if error is not None:
            raise error
        self.last.folder = Path(folder)
        for i, callback in enumerate(callbacks):
            callback.redirect(self.last.folder / str(i))


class LastHooks(Callback):
    """Stops training after one update and validation after one batch, and measures both and the checkpoint."""

    priority = 1000

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.updates, self.validation_batches, self.bytes = 0, 0, 0
        self.samples: int | None = None
        self._started_at = self._seconds = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Start the clock."""
        self._started_at = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop training."""
        float((logs or {}).get("loss", 0.0))  # it waits for the device
        self._seconds = time.perf_counter() - self._started_at
        self.updates += 1
        assert self.model.train_data is not None
        window = self.model.train_data.window
        self.samples = sum(window.sizes) if window.total is None else window.total
        self.model.stop_training = True

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop validation."""
        self.validation_batches += 1
        self.model.stop_evaluating = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Measure the files that were written."""
        self.model.strategy.checkpoints.wait()
        files = [] if self.folder is None else [path for path in self.folder.rglob("*.pt*") if path.is_file()]
        self.bytes = sum(path.stat().st_size for path in files)

    def remove_folder(self) -> None:
        """Delete the temporary folder."""
        if self.folder is not None and self.model.strategy.group.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def describe(self) -> str:
        """Return what was checked, in one line."""
        if not self.updates:
            return "Dry run: no update was tried, because the run to resume is complete. Nothing was changed."
        parts = [f"an update with {self.samples} samples ({self._seconds:.2g} s)"]
        parts += ["a validation batch"] * bool(self.validation_batches)
        parts += [f"checkpoints ({self.bytes / 1e6:.1f} MB)"] * bool(self.bytes)
        *others, final = parts
        listed = f"{', '.join(others)} and {final}" if others else final
        return f"Dry run passed: {listed}. Nothing was changed."
