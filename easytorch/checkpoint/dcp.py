"""Sharded checkpoints through torch.distributed.checkpoint."""

from __future__ import annotations

import datetime
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future as Task
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from easytorch import errors
from easytorch._utils import atomic_file
from easytorch._utils.pytree import map_leaves
from easytorch.checkpoint import files, rotation, validation
from easytorch.distributed.process_group import SingleProcess

Place = tuple[Any, ...]  # the keys that lead to a tensor in nested dicts and lists


class Writer:
    """Writes checkpoints one after another, each in all processes at once and beside the training.

    Args:
        processes: Those who write.
        timeout: Seconds after which a process that hears nothing of the others gives up.
    """

    def __init__(self, group: SingleProcess, timeout: float) -> None:
        self.group, self.timeout = group, datetime.timedelta(seconds=timeout)
        self._group: Any = None  # of their own, since messages of the training must not meet theirs
        self._task: Task[Any] | None = None
        self._folder = Path()

    def begin(self, path: Path, content: Mapping[str, Any]) -> None:
        """Begin to write ``content``, as it is now, to ``path``, when the one before is whole."""
        self.finish()
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self.timeout)
        rest, tensors = extract_tensors(validation.to_serializable(dict(content), "the content"))
        self._folder = self.group.broadcast(rotation.unused_shard_folder(path))
        storage: Any = _Storage(path, self._folder, self.group.rank, map_leaves(_copy, rest), list(tensors))
        named = {str(number): tensor for number, tensor in enumerate(tensors.values())}
        self._task = async_save(named, storage_writer=storage, process_group=self._group)  # type: ignore[assignment]  # a future, as asked

    def finish(self) -> None:
        """Wait until the checkpoint is whole.

        Raises:
            OSError: In every process, if one of them could not write; what was there before is unchanged then.
        """
        task = self._task
        try:
            if task is not None:
                task.result()
        except CheckpointException as failure:
            if self.group.is_main:
                shutil.rmtree(self._folder, ignore_errors=True)
            causes = [cause for cause, _ in failure.failures.values() if isinstance(cause, OSError)]
            if not causes:
                raise
            raise type(causes[0])(*causes[0].args) from failure
        finally:
            if task is not None and task.done():  # else somebody did not want to wait
                self._task = None


def read_shards(
    content: Mapping[str, Any], path: Path, empty: Callable[[torch.Size, torch.dtype], Tensor]
) -> dict[str, Any]:
    """Return ``content`` of ``path`` with all its tensors; each process reads what it keeps of them.

    Args:
        content: What stands in the small file.
        path: That file.
        empty: Makes a tensor to read into, or this process' part of one.
    """
    table, named = content["parts"], {}
    room = sum(size for _, size, _ in table["files"])
    if sum(torch.Size(entry["shape"]).numel() * entry["dtype"].itemsize for entry in table["tensors"]) > room:
        raise errors.FileError(f"{str(path)!r} is not whole: its tensors ask for more memory than its parts hold.")
    for number, entry in enumerate(table["tensors"]):
        named[str(number)] = empty(torch.Size(entry["shape"]), entry["dtype"])
    places = [tuple(entry["place"]) for entry in table["tensors"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process needs no other one to read
        try:
            load(named, storage_reader=_Source(path.parent / table["folder"], table), no_dist=True)
        except CheckpointException as failure:
            raise next(cause for cause, _ in failure.failures.values()) from failure
    rest = {key: value for key, value in content.items() if key != "parts"}
    whole: dict[str, Any] = insert_tensors(rest, dict(zip(places, named.values(), strict=True)))
    return whole


def extract_tensors(tree: Any) -> tuple[Any, dict[Place, Tensor]]:
    """Return ``tree`` with None for every tensor of which processes keep parts, and these tensors by their places."""
    found: dict[Place, Tensor] = {}

    def note(leaf: Any, place: Place) -> Any:
        if not hasattr(leaf, "full_tensor"):
            return leaf
        found[place] = leaf
        return None

    return _placed(note, tree, ()), found


def insert_tensors(tree: Any, tensors: Mapping[Place, Tensor]) -> Any:
    """Return ``tree`` with ``tensors`` at their places."""
    return _placed(lambda leaf, place: tensors.get(place, leaf), tree, ())


def _placed(function: Callable[[Any, Place], Any], tree: Any, place: Place) -> Any:
    if isinstance(tree, dict):
        return {key: _placed(function, value, (*place, key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_placed(function, value, (*place, i)) for i, value in enumerate(tree))
    return function(tree, place)


def _copy(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf


class _Storage(StorageWriter):
    """Tells DCP how the parts are written.

    Args:
        path: The small file that makes them a checkpoint.
        folder: Where the parts go.
        rank: The number of this process.
        rest: What the small file holds beside them.
        places: Where each tensor belongs in it.
    """

    def __init__(self, path: Path, folder: Path, rank: int, rest: dict[str, Any], places: list[Place]) -> None:
        self.path, self.folder, self.rank, self.rest, self.places = path, folder, rank, rest, places

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between two checkpoints."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be set up."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Let everybody write what he was to write."""
        return plans

    def write_data(self, plan: Any, planner: Any) -> Future[list[WriteResult]]:
        """Write the part of this process."""
        tensors = [planner.resolve_data(item).detach().clone() for item in plan.items]  # each in a memory of its own
        path = files.write(self.folder / f"{self.rank:05}.pt", {"tensors": tensors})
        told = [path.name, path.stat().st_size, validation.sha256(path)]
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, (told, number)) for number, item in enumerate(plan.items)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the small file, when all parts are on the disk; only one process does."""
        atomic_file.fsync_folder(self.folder)
        lie = {one.index: one.storage_data for some in results for one in some}
        written = {told[0]: told for told, _ in lie.values()}
        numbers = {name: number for number, name in enumerate(written)}
        tensors = []
        for number, place in enumerate(self.places):
            name = str(number)
            about: Any = metadata.state_dict_metadata[name]
            chunks = []
            for chunk in about.chunks:
                told, index = lie[MetadataIndex(name, chunk.offsets)]
                chunks.append([*chunk.offsets, *chunk.sizes, numbers[told[0]], index])
            shape, dtype = list(about.size), about.properties.dtype
            tensors.append({"place": list(place), "shape": shape, "dtype": dtype, "chunks": torch.tensor(chunks)})
        parts = {"folder": self.folder.name, "files": list(written.values()), "tensors": tensors}
        before = rotation.shard_folder_of(self.path)
        files.write(self.path, self.rest | {"parts": parts})
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Say that nothing is known by an id alone."""
        return False


class _Source(StorageReader):
    """Tells DCP how the parts are read, from ``folder`` as the ``table`` in the small file says."""

    def __init__(self, folder: Path, table: Mapping[str, Any]) -> None:
        self.folder = folder
        names = [name for name, _, _ in table["files"]]
        tensors: Any = {}
        self.lie: dict[MetadataIndex, tuple[str, int]] = {}
        for number, entry in enumerate(table["tensors"]):
            count, chunks = len(entry["shape"]), []
            for numbers in entry["chunks"].tolist():
                offsets, sizes, (file, index) = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                self.lie[MetadataIndex(str(number), offsets)] = names[file], index
            if sum(chunk.sizes.numel() for chunk in chunks) != torch.Size(entry["shape"]).numel():
                raise ValueError(f"not all of {entry['place']} is there")
            properties = TensorProperties(entry["dtype"])
            tensors[str(number)] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
        self.metadata = Metadata(tensors)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between two checkpoints."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what lies where."""
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be set up."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Let this process read what it wants."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Let everybody read what he wants."""
        return plans

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Read what this process keeps, one file after the other."""
        wanted: dict[str, list[Any]] = {}
        for item in plan.items:
            wanted.setdefault(self.lie[item.storage_index][0], []).append(item)
        for name, items in wanted.items():
            tensors = files.read(self.folder / name)["tensors"]
            for item in items:
                found = tensors[self.lie[item.storage_index][1]]
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    found = found.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(found)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Say that nothing is known by an id alone."""
        return False
