"""Names, order and cleanup of the checkpoints in a folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from easytorch._utils.warnings import warn
from easytorch.checkpoint import validation
from easytorch.checkpoint.files import is_model, read, read_model
from easytorch.errors import FileError

STEP_PATTERN = "step-" + "[0-9]" * 10


def step_path(folder: str | os.PathLike[str], step: int) -> Path:
    """Return the path of the checkpoint of optimizer step ``step`` in ``folder``."""
    return Path(folder) / f"step-{step:010}.pt"


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first. The step decides, not the time of the file."""
    return sorted(Path(folder).glob(f"{STEP_PATTERN}.pt"), reverse=True)


def read_newest(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]]:
    """Return path and content of the newest intact checkpoint in ``folder``. Warn about newer ones that are damaged.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        FileError: If no checkpoint is intact.
    """
    paths = list_checkpoints(folder)
    if not paths:
        raise FileNotFoundError(
            f"There is no checkpoint in {str(folder)!r}: expected a file named like {step_path(folder, 123).name!r}."
        )
    errors: list[FileError] = []
    for path in paths:
        try:
            content = read_model(path, device)
        except FileError as error:
            errors.append(error)
            continue
        if errors:
            warn(f"{errors[0]} The older checkpoint {path.name!r} is used instead.")
        return path, content
    raise FileError(
        f"None of the {len(paths)} checkpoints in {str(folder)!r} is intact. The newest: {errors[0]}"
    ) from errors[0]


def archive_checkpoints(paths: Iterable[Path]) -> None:
    """Rename checkpoints to ``.archived``, so that a run neither deletes them nor resumes from them.

    Shard folders keep their names, because the index files refer to them.
    """
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            names = (f"{path.name}.archived" + f"-{number}" * (number > 1) for number in itertools.count(1))
            path.rename(_first_unused(path, names))


def delete_old(folder: str | os.PathLike[str], count: int) -> None:
    """Delete all checkpoints in ``folder`` except the ``count`` newest."""
    for path in list_checkpoints(folder)[count:]:
        shard_folder = shard_folder_of(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if shard_folder is not None:
            shutil.rmtree(shard_folder, ignore_errors=True)


def remove_stale(folder: str | os.PathLike[str]) -> None:
    """Delete incomplete files of killed processes in ``folder``, and shard folders without a checkpoint."""
    for path in Path(folder).glob(".step-*.pt.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    for shard_folder in Path(folder).glob(f"{STEP_PATTERN}.shards-*"):
        index_files = Path(folder).glob(f"{_stem(shard_folder)}.pt*")
        if not any(_may_own(path, shard_folder.name) for path in index_files):
            shutil.rmtree(shard_folder, ignore_errors=True)


def unused_shard_folder(path: Path) -> Path:
    """Return the path of a shard folder for the checkpoint ``path`` that does not exist yet."""
    return _first_unused(path, (f"{_stem(path)}.shards-{number}" for number in itertools.count()))


def shard_folder_of(path: Path) -> Path | None:
    """Return the shard folder of the checkpoint ``path``; None if it has none or cannot be read."""
    # Search for a folder first: reading a large file takes time.
    if not path.exists() or not any(path.parent.glob(f"{_stem(path)}.shards-*")):
        return None
    try:
        content = read(path)
        if not is_model(content) or "shards" not in content:
            return None
        return path.parent / validation.shard_folder_name(content["shards"], path)
    except FileError:
        return None


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _first_unused(path: Path, names: Iterable[str]) -> Path:
    """Return the first path next to ``path`` with one of ``names`` that does not exist."""
    return next(candidate for candidate in map(path.with_name, names) if not candidate.exists())


def _may_own(path: Path, shard_folder: str) -> bool:
    """Return whether the checkpoint ``path`` has the folder ``shard_folder``, or cannot be read."""
    try:
        content = read(path)
    except FileError:
        return True
    return is_model(content) and content.get("shards", {}).get("folder") == shard_folder
