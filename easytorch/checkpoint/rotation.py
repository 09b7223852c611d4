"""Names, order and cleanup of the checkpoints in a folder."""

from __future__ import annotations

import fnmatch
import itertools
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from easytorch._utils.atomic_file import STALE_SECONDS, warn_once
from easytorch._utils.warnings import warn
from easytorch.checkpoint import validation
from easytorch.checkpoint.files import is_model, read, read_model
from easytorch.checkpoint.storage import Location, storage_of, to_location
from easytorch.errors import FileError

STEP_PATTERN = "step-" + "[0-9]" * 10


def step_path(folder: str | os.PathLike[str], step: int) -> Location:
    """Return the path of the checkpoint of optimizer step ``step`` in ``folder``."""
    return to_location(folder) / f"step-{step:010}.pt"


def is_checkpoint_name(name: str) -> bool:
    """Return whether ``name`` is that of a checkpoint of ``step_path``."""
    return fnmatch.fnmatchcase(name, f"{STEP_PATTERN}.pt")


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Location]:
    """Return the checkpoints in ``folder``, the newest first. The step decides, not the time of the file."""
    return sorted(to_location(folder).glob(f"{STEP_PATTERN}.pt"), key=str, reverse=True)


def read_newest(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[Location, dict[str, Any]]:
    """Return path and content of the newest intact checkpoint in ``folder``. Warn about newer ones that are damaged.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        FileError: If no checkpoint is intact.
    """
    paths = list_checkpoints(folder)
    if not paths:
        other = min(map(str, to_location(folder).glob("*.pt")), default=None)
        fix = "the folder of fit(resume=folder) or BackupAndRestore(folder)" if other is None else f"a file: {other!r}"
        raise FileNotFoundError(
            f"There is no checkpoint in {str(folder)!r}. Expected a file named like {step_path(folder, 123).name!r}: pass {fix}."
        )
    errors: list[FileError] = []
    for path in paths:
        try:
            content = read_model(path, device)
        except FileError as error:
            errors.append(error)
            continue
        except PermissionError as error:
            errors.append(FileError(str(error)))
            continue
        if errors:
            warn(
                f"The newest checkpoint cannot be read: {errors[0]} The older checkpoint {path.name!r} is used instead."
            )
        return path, content
    raise FileError(
        f"None of the {len(paths)} checkpoints in {str(folder)!r} is intact. The newest: {errors[0]}"
    ) from errors[0]


def archive_checkpoints(paths: Iterable[Location]) -> set[Location]:
    """Rename checkpoints to ``.archived``, so that a run neither deletes them nor resumes from them.

    Shard folders keep their names, because the index files refer to them.

    Returns:
        Those that could not be renamed, with a warning; ``delete_old`` must not count them.
    """
    failed: set[Location] = set()
    for path in paths:
        names = (f"{path.name}.archived" + f"-{number}" * (number > 1) for number in itertools.count(1))
        try:
            target: Any = _first_unused(path, names)
            path.rename(target)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.add(path)
            warn(
                f"A later start may resume from {str(path)!r}, which is newer than the checkpoint of this run, because it "
                f"cannot be renamed: {error.strerror}. Delete it, or use another folder."
            )
    return failed


def delete_old(folder: str | os.PathLike[str], count: int, ignored: Collection[Location] = ()) -> None:
    """Delete all checkpoints in ``folder`` except the ``count`` newest. Warn once if one cannot be deleted.

    Args:
        folder: The folder.
        count: The number of checkpoints to retain.
        ignored: Checkpoints that are neither counted nor deleted.
    """
    try:
        for path in [path for path in list_checkpoints(folder) if path not in ignored][count:]:
            shard_folder = shard_folder_of(path)
            if delete(path) and shard_folder is not None:
                storage_of(shard_folder).delete_folder(shard_folder)
    except OSError as error:  # an object store does not answer
        warn_once(
            folder,
            "list",
            f"Old checkpoints in {str(folder)!r} may stay: {error.strerror}. Training continues, and the next checkpoint tries "
            "it again.",
        )


def delete(path: Location) -> bool:
    """Delete a file, and return whether it is gone. Warn once for its folder if that is impossible."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        warn_once(
            path.parent,
            "delete",
            f"Old checkpoints in {str(path.parent)!r} stay on the disk: {str(path)!r} cannot be deleted: {error.strerror}. "
            "Training continues. Delete them by hand, or use another folder.",
        )
        return False
    return True


def remove_stale(folder: str | os.PathLike[str], *, is_locked: bool = True) -> None:
    """Delete incomplete files of killed processes in ``folder``, and shard folders without a checkpoint.

    Args:
        folder: The folder.
        is_locked: Whether no other run uses the folder. If that is unknown, only old files are deleted.
    """
    location = to_location(folder)
    storage = storage_of(location)

    def is_stale(path: Location) -> bool:
        return is_locked or _is_old(path)

    storage.delete_incomplete(location, is_stale)
    for shard_folder in location.glob(f"{STEP_PATTERN}.shards-*"):
        index_files = location.glob(f"{_stem(shard_folder)}.pt*")
        if is_stale(shard_folder) and not any(_may_own(path, shard_folder.name) for path in index_files):
            storage.delete_folder(shard_folder)


def _is_old(path: Location) -> bool:
    if not isinstance(path, Path):  # folders of an object store have no time
        return False
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except OSError:
        return False


def unused_shard_folder(path: Location) -> Location:
    """Return the path of a shard folder for the checkpoint ``path`` that does not exist yet."""
    return _first_unused(path, (f"{_stem(path)}.shards-{number}" for number in itertools.count()))


def shard_folder_of(path: Location) -> Location | None:
    """Return the shard folder of the checkpoint ``path``; None if it has none or cannot be read."""
    # Search for a folder first: reading a large file takes time.
    if not any(True for _ in path.parent.glob(f"{_stem(path)}.shards-*")) or not path.exists():
        return None
    try:
        content = read(path)
        if not is_model(content) or "shards" not in content:
            return None
        return path.parent / validation.shard_folder_name(content["shards"], path)
    except (FileError, OSError):
        return None


def _stem(path: Location) -> str:
    return path.name.split(".")[0]


def _first_unused(path: Location, names: Iterable[str]) -> Location:
    """Return the first path next to ``path`` with one of ``names`` that does not exist."""
    candidates: Iterable[Location] = map(path.with_name, names)
    return next(candidate for candidate in candidates if not candidate.exists())


def _may_own(path: Location, shard_folder: str) -> bool:
    """Return whether the checkpoint ``path`` has the folder ``shard_folder``, or cannot be read."""
    try:
        content = read(path)
    except (FileError, OSError):
        return True
    return is_model(content) and content.get("shards", {}).get("folder") == shard_folder
