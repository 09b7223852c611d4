"""Files of callbacks that are written while training continues."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from easytorch.callbacks.base import Callback
from easytorch.checkpoint import files, state_dicts
from easytorch.checkpoint.background import Job
from easytorch.checkpoint.storage import Storage, to_location

if TYPE_CHECKING:
    from easytorch.callbacks.backup import BackupAndRestore
    from easytorch.callbacks.checkpoint import ModelCheckpoint
    from easytorch.model import Model


class Written:
    """The result of a write that has ended."""

    has_ended = True

    def wait(self) -> None:
        """Return at once."""


@dataclasses.dataclass
class PendingFile:
    """A file that is being written.

    Attributes:
        job: The write.
        name: The name of the file.
        message: What to print when the file is complete.
        best_name: The best file before this one.
        written: The files before this one.
    """

    job: Job | Written
    name: str
    message: str
    best_name: str | None
    written: list[list[Any]]


def write_now(model: Model, path: str, weights_only: bool) -> Written:
    """Write ``model``, or its weights, to a file."""
    (model.save_weights if weights_only else model.save)(path)
    return Written()


def start_to_write(model: Model, path: str, weights_only: bool) -> Job:
    """Copy what ``write_now`` would write, and start to write it."""
    target = to_location(path)
    if not weights_only:
        content = {"format": files.FORMAT, "version": files.VERSION, **model.state_dict()}
        return model.strategy.checkpoints.background.start(files.write, target, content)
    write = files.write_safetensors if target.suffix == ".safetensors" else files.write
    weights = state_dicts.unwrapped_state_dict(model.module)
    return model.strategy.checkpoints.background.start(write, target, weights)


def writes_in_background(callback: BackupAndRestore | ModelCheckpoint, storage: Storage) -> bool:
    """Return ``save_in_background``; by default whether requests are slow and one process trains.

    A custom ``save`` of the model is not called in a thread.
    """
    if callback.save_in_background is not None:
        return callback.save_in_background
    model = callback.model
    has_custom_save = any(model.overrides(name) for name in ("save", "save_weights"))
    return storage.is_slow and model.strategy.group.world_size == 1 and not has_custom_save


def check_one_process(callback: Callback) -> None:
    """Raise a ``ValueError`` if several processes train, which could not agree when a write has ended."""
    if callback.model.strategy.group.world_size > 1:
        raise ValueError(
            f"{type(callback).__name__}(save_in_background=True) works in one process. Remove it, or use strategy='fsdp' with "
            "BackupAndRestore, which always writes in the background there."
        )


def check_saves_as_usual(model: Model) -> None:
    """Raise a ``ValueError`` if ``model`` has its own way to save, which may not be called in a thread."""
    name = next((name for name in ("save", "save_weights") if model.overrides(name)), None)
    if name is not None:
        raise ValueError(
            f"save_in_background=True does not call a custom {name}(). Override state_dict() instead, or remove "
            "save_in_background=True."
        )
