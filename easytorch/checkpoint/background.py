"""Files written by a thread while training continues."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from easytorch.checkpoint import files
from easytorch.checkpoint.storage import Location

# Writes that may be unfinished: the one in progress, and one that waits for it. Each holds a copy of its content.
MAX_UNFINISHED = 2


class Job:
    """One write in a thread, after the previous one has ended.

    The interpreter waits for the thread before it exits.

    Args:
        write: Writes the file.
        previous: The job to wait for; None starts at once.
        holds_copy: Whether it holds a copy of a state in memory.
    """

    def __init__(self, write: Callable[[], Any], previous: Job | None, holds_copy: bool = True) -> None:
        self.holds_copy = holds_copy
        self._write: Callable[[], Any] | None = write
        self._previous = previous
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="easytorch-checkpoint", daemon=False)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether the file is complete, or the write has failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the write has ended, and raise its error, if there is one, the first time."""
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        if self._previous is not None:
            self._previous._thread.join()
        write, self._write, self._previous = self._write, None, None
        try:
            assert write is not None
            write()
        except BaseException as error:  # wait() raises it in the thread of the user
            self._error = error


class BackgroundWriter:
    """Writes files one after another while training continues, in the order in which they were started."""

    in_snapshots = False  # of a dry run: a file that is written cannot be set back

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which writes nothing."""
        return {"_jobs": []}

    def start(
        self,
        write: Callable[[str | os.PathLike[str], Mapping[str, Any]], Any],
        path: Location,
        content: Mapping[str, Any],
    ) -> Job:
        """Copy ``content`` to host memory, and start to write it; wait first while two writes are unfinished.

        Args:
            write: ``files.write`` or ``files.write_safetensors``.
            path: The file.
            content: Tensors and plain values.

        Raises:
            TypeError: If ``content`` holds what no file can hold.
        """
        writes = [job for job in self._jobs if job.holds_copy and not job.has_ended]
        if len(writes) >= MAX_UNFINISHED:
            writes[0]._thread.join()
        return self._append(functools.partial(write, path, copy_to_host(content)), holds_copy=True)

    def run(self, function: Callable[[], Any]) -> None:
        """Call ``function`` after all writes so far, without waiting for it."""
        self._append(function, holds_copy=False)

    def _append(self, function: Callable[[], Any], *, holds_copy: bool) -> Job:
        self._jobs = [job for job in self._jobs if not job.has_ended]
        job = Job(function, self._jobs[-1] if self._jobs else None, holds_copy)
        self._jobs.append(job)
        return job

    def finish(self) -> None:
        """Wait until all writes have ended; their errors stay in the jobs."""
        for job in self._jobs:
            job._thread.join()
        self._jobs = []


def copy_to_host(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``content`` in host memory, which later updates do not change; tensors that share memory still do.

    Raises:
        TypeError: If ``content`` holds what no file can hold.
    """
    plain = files.to_plain(content)
    storages: dict[tuple[torch.device, int], torch.UntypedStorage] = {}
    copied: dict[str, Any] = _copy(plain, storages)
    return copied


def _copy(tree: Any, storages: dict[tuple[torch.device, int], torch.UntypedStorage]) -> Any:
    """Return ``tree``, which ``files.to_plain`` has made, with copies of the tensors."""
    if isinstance(tree, dict):
        copied = type(tree)((key, _copy(value, storages)) for key, value in tree.items())
        if hasattr(tree, "_metadata"):  # the versions of modules, in a state dict
            vars(copied)["_metadata"] = tree._metadata
        return copied
    if isinstance(tree, (list, tuple)):
        return type(tree)([_copy(item, storages) for item in tree])
    if not isinstance(tree, Tensor):
        return tree
    tensor = tree.detach().resolve_conj().resolve_neg()
    storage = tensor.untyped_storage()
    key = tensor.device, storage.data_ptr()
    if key not in storages or not storage.data_ptr():
        copy_storage: Any = storage.cpu if tensor.device.type != "cpu" else storage.clone
        storages[key] = copy_storage()
    empty = torch.empty(0, dtype=tensor.dtype)
    value = empty.set_(storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())
    return torch.nn.Parameter(value, tree.requires_grad) if isinstance(tree, torch.nn.Parameter) else value
