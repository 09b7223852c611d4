"""The checkpoint files of a folder: names, order, cleanup."""

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


def step_path(folder: str | os.PathLike[str], step: int) -> Path:
    """Return the name of the checkpoint of ``step`` in ``folder``; the step, not the time, tells which is the newest."""
    return Path(folder) / f"step-{step:010}.pt"


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first."""
    return sorted(Path(folder).glob("step-" + "[0-9]" * 10 + ".pt"), reverse=True)


def read_newest(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]]:
    """Return path and content of the newest whole checkpoint in ``folder``, with a warning if a newer one is broken.

    Raises:
        FileNotFoundError: If there is none.
        FileError: If none is whole.
    """
    found = list_checkpoints(folder)
    if not found:
        raise FileNotFoundError(
            f"There is no checkpoint in {str(folder)!r}: no file named like {step_path(folder, 123).name!r}."
        )
    broken: list[FileError] = []
    for path in found:
        try:
            content = read_model(path, device)
        except FileError as error:
            broken.append(error)
            continue
        if broken:
            warn(f"{broken[0]} Passed over, for the older {path.name!r}.")
        return path, content
    raise FileError(
        f"None of the {len(found)} checkpoints in {str(folder)!r} is whole. The newest: {broken[0]}"
    ) from broken[0]


def archive_checkpoints(paths: Iterable[Path]) -> None:
    """Rename checkpoints that a run does not go on from, so that they are neither deleted nor taken for its newest.

    Their parts stay where they are: the files know them by name.
    """
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            names = itertools.chain([f"{path.name}.aside"], (f"{path.name}.aside-{i}" for i in itertools.count(2)))
            path.rename(next(one for name in names if not (one := path.with_name(name)).exists()))


def delete_old(folder: str | os.PathLike[str], count: int) -> None:
    """Delete all but the ``count`` newest checkpoints in ``folder``."""
    for path in list_checkpoints(folder)[count:]:
        parts = shard_folder_of(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if parts is not None:
            shutil.rmtree(parts, ignore_errors=True)


def remove_stale(folder: str | os.PathLike[str]) -> None:
    """Delete what a killed process left half written in ``folder``, and parts that belong to no checkpoint."""
    for path in Path(folder).glob(".step-*.pt.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    for parts in Path(folder).glob("step-" + "[0-9]" * 10 + ".parts-*"):
        owners = Path(folder).glob(f"{parts.name.split('.')[0]}.pt*")
        if not any(_may_own(path, parts.name) for path in owners):
            shutil.rmtree(parts, ignore_errors=True)


def unused_shard_folder(path: Path) -> Path:
    """Return the name of a folder, which is not there yet, for the parts of the checkpoint ``path``."""
    stem = path.name.split(".")[0]
    return next(one for i in itertools.count() if not (one := path.with_name(f"{stem}.parts-{i}")).exists())


def shard_folder_of(path: Path) -> Path | None:
    """Return the folder with the parts of the checkpoint ``path``, None if it has none that could be found."""
    if not path.exists() or not any(path.parent.glob(f"{path.name.split('.')[0]}.parts-*")):
        return None  # without having read a large file
    try:
        content = read(path)
        return (
            path.parent / validation.shard_folder_name(content["parts"], path)
            if is_model(content) and "parts" in content
            else None
        )
    except FileError:
        return None


def _may_own(path: Path, parts: str) -> bool:
    """Whether the checkpoint ``path`` has the folder ``parts``, as far as can be told."""
    try:
        content = read(path)
    except FileError:  # nobody knows what it was
        return True
    return is_model(content) and content.get("parts", {}).get("folder") == parts
