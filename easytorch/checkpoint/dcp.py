"""Sharded checkpoints through torch.distributed.checkpoint (DCP).

DCP plans which rank writes and reads which chunks; this module implements the storage.
Each rank writes its shards to one file, in the format of all other files of easytorch, while training continues.
The index file is written last. It holds everything else, and the position, size and checksum of each shard.
Without an index file the shards are no checkpoint. It replaces the pickled metadata of DCP, so no file can run code.

DCP imports many modules, so import this module only where it is used.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import warnings
from collections.abc import Callable, Iterable, Mapping
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
from easytorch.checkpoint import files, rotation, serialization, validation
from easytorch.checkpoint.storage import Location, storage_of
from easytorch.distributed.process_group import GroupHolder, SingleProcess

# The keys that lead to a tensor in nested dicts and lists.
KeyPath = tuple[Any, ...]


class CheckpointWriter(GroupHolder):
    """Writes sharded checkpoints one after another, on all ranks, while training continues.

    Args:
        group: The ranks that write.
        timeout: Seconds after which a rank that receives no message from the others raises an error.
    """

    def __init__(self, group: SingleProcess, timeout: float) -> None:
        self.group, self.timeout = group, datetime.timedelta(seconds=timeout)
        # A separate process group, because the collectives of training must not mix with those of the writer.
        self._group: Any = None
        self._task: concurrent.futures.Future[Any] | None = None
        self._folder: Location = Path()

    def start(self, path: Location, content: Mapping[str, Any]) -> None:
        """Wait for the previous checkpoint, copy ``content``, and start to write it to ``path``.

        Args:
            path: The index file.
            content: Tensors and plain values; sharded tensors are written by their ranks.

        Raises:
            OSError: On every rank, if a rank could not write the previous checkpoint.
        """
        self.wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self.timeout)
        rest, tensors = extract_tensors(serialization.to_serializable(dict(content), ""))
        self._folder = self.group.broadcast(rotation.unused_shard_folder(path))
        storage: Any = _ShardWriter(path, self._folder, self.group.rank, map_leaves(_copy_to_cpu, rest), list(tensors))
        # async_save returns a future unless an AsyncSaveResponse is requested.
        task: Any = async_save(_number(tensors.values()), storage_writer=storage, process_group=self._group)
        self._task = task

    def wait(self) -> None:
        """Wait until the checkpoint is complete.

        Raises:
            OSError: On every rank, if a rank could not write. The previous checkpoint is unchanged.
        """
        task = self._task
        try:
            if task is not None:
                task.result()
        except CheckpointException as error:
            if self.group.is_main:
                storage_of(self._folder).delete_folder(self._folder)
            causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
            if not causes:
                raise
            raise type(causes[0])(*causes[0].args) from error
        finally:
            # An interrupted wait leaves the task running.
            if task is not None and task.done():
                self._task = None


def read_shards(
    content: Mapping[str, Any], path: Location, empty: Callable[[torch.Size, torch.dtype], Tensor]
) -> dict[str, Any]:
    """Return ``content`` with the tensors of its shards. Each rank reads only its chunks.

    Args:
        content: The content of the index file.
        path: The index file.
        empty: Creates a tensor to read into, or this rank's chunk of it, from a shape and a dtype.

    Raises:
        FileError: If the tensors need more memory than the shard files hold.
        ValueError: If chunks of a tensor are missing.
    """
    shards = content["shards"]
    needed = sum(torch.Size(entry["shape"]).numel() * entry["dtype"].itemsize for entry in shards["tensors"])
    if needed > sum(size for _, size, _ in shards["files"]):
        raise errors.FileError(
            f"{str(path)!r} is damaged: its tensors need more memory than its shards hold. Use an older copy."
        )
    tensors = _number(empty(torch.Size(entry["shape"]), entry["dtype"]) for entry in shards["tensors"])
    with warnings.catch_warnings():
        # A rank reads without messages to other ranks.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            load(tensors, storage_reader=_ShardReader(path.parent / shards["folder"], shards), no_dist=True)
        except CheckpointException as error:
            raise next(cause for cause, _ in error.failures.values()) from error
    rest = {key: value for key, value in content.items() if key != "shards"}
    key_paths = [tuple(entry["path"]) for entry in shards["tensors"]]
    complete: dict[str, Any] = insert_tensors(rest, dict(zip(key_paths, tensors.values(), strict=True)))
    return complete


def extract_tensors(tree: Any) -> tuple[Any, dict[KeyPath, Tensor]]:
    """Return ``tree`` with None for every sharded tensor, and the sharded tensors by key path."""
    tensors: dict[KeyPath, Tensor] = {}

    def extract(leaf: Any, key_path: KeyPath) -> Any:
        if not hasattr(leaf, "full_tensor"):
            return leaf
        tensors[key_path] = leaf
        return None

    return _map_with_path(extract, tree, ()), tensors


def insert_tensors(tree: Any, tensors: Mapping[KeyPath, Tensor]) -> Any:
    """Return ``tree`` with ``tensors`` at their key paths."""
    return _map_with_path(lambda leaf, key_path: tensors.get(key_path, leaf), tree, ())


def _map_with_path(function: Callable[[Any, KeyPath], Any], tree: Any, key_path: KeyPath) -> Any:
    if isinstance(tree, dict):
        return {key: _map_with_path(function, value, (*key_path, key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map_with_path(function, value, (*key_path, i)) for i, value in enumerate(tree))
    return function(tree, key_path)


def _number(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Return ``tensors`` under the names that DCP knows them by, their numbers."""
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def _copy_to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf


class _Storage:
    """The methods of DCP's storage interface that need no work."""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: a storage is used once."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Keep DCP's plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Keep DCP's plans unchanged."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return False: an id alone does not identify a checkpoint."""
        return False


class _ShardWriter(_Storage, StorageWriter):
    """Writes shards and the index file for DCP.

    Args:
        path: The index file.
        folder: The folder of the shards.
        rank: The rank of this process.
        rest: The content of the index file without the sharded tensors.
        key_paths: The key path of each sharded tensor.
    """

    def __init__(
        self, path: Location, folder: Location, rank: int, rest: dict[str, Any], key_paths: list[KeyPath]
    ) -> None:
        self.path, self.folder, self.rank, self.rest, self.key_paths = path, folder, rank, rest, key_paths

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``__init__`` sets everything up."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Create the folder, and keep DCP's plan unchanged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return plan

    def write_data(self, plan: Any, planner: Any) -> Future[list[WriteResult]]:
        """Write the chunks of this rank to one file, and return where each is."""
        # A clone has only the memory of its chunk, which torch.save writes completely.
        tensors = [planner.resolve_data(item).detach().clone() for item in plan.items]
        path = files.write(self.folder / f"{self.rank:05}.pt", {"tensors": tensors})
        file = [path.name, path.stat().st_size, validation.sha256(path)]
        return _completed([WriteResult(item.index, 0, (file, position)) for position, item in enumerate(plan.items)])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index file after all shards; DCP calls this on one rank."""
        if isinstance(self.folder, Path):  # an object store has no cache of names
            atomic_file.fsync_folder(self.folder)
        locations = {result.index: result.storage_data for rank_results in results for result in rank_results}
        shard_files = {file[0]: file for file, _ in locations.values()}
        file_numbers = {name: number for number, name in enumerate(shard_files)}
        tensors = []
        for number, key_path in enumerate(self.key_paths):
            tensor: Any = metadata.state_dict_metadata[str(number)]
            chunks = []
            for chunk in tensor.chunks:
                file, position = locations[MetadataIndex(str(number), chunk.offsets)]
                chunks.append([*chunk.offsets, *chunk.sizes, file_numbers[file[0]], position])
            shape, dtype = list(tensor.size), tensor.properties.dtype
            tensors.append({"path": list(key_path), "shape": shape, "dtype": dtype, "chunks": torch.tensor(chunks)})
        shards = {"folder": self.folder.name, "files": list(shard_files.values()), "tensors": tensors}
        replaced_folder = rotation.shard_folder_of(self.path)
        files.write(self.path, self.rest | {"shards": shards})
        if replaced_folder is not None:
            storage_of(replaced_folder).delete_folder(replaced_folder)


class _ShardReader(_Storage, StorageReader):
    """Reads shards for DCP.

    Args:
        folder: The folder of the shards.
        shards: The entry ``"shards"`` of the index file.

    Raises:
        ValueError: If chunks of a tensor are missing.
    """

    def __init__(self, folder: Location, shards: Mapping[str, Any]) -> None:
        self.folder = folder
        # The file name and the position in the file of each chunk.
        self.locations: dict[MetadataIndex, tuple[str, int]] = {}
        names = [name for name, _, _ in shards["files"]]
        self.checksums = {name: checksum for name, _, checksum in shards["files"]}
        self.metadata = Metadata(
            {str(number): self._add_tensor(str(number), entry, names) for number, entry in enumerate(shards["tensors"])}
        )

    def _add_tensor(self, number: str, entry: Mapping[str, Any], names: list[str]) -> TensorStorageMetadata:
        shape, chunks = torch.Size(entry["shape"]), []
        for row in entry["chunks"].tolist():
            offsets, sizes, (file, position) = (
                row[: len(shape)],
                row[len(shape) : 2 * len(shape)],
                row[2 * len(shape) :],
            )
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            self.locations[MetadataIndex(number, offsets)] = names[file], position
        if sum(chunk.sizes.numel() for chunk in chunks) != shape.numel():
            raise ValueError(f"chunks of the tensor {entry['path']} are missing")
        if not _cover(chunks, shape):
            raise ValueError(f"chunks of the tensor {entry['path']} overlap or are outside of it")
        return TensorStorageMetadata(TensorProperties(entry["dtype"]), shape, chunks)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return shapes, dtypes and chunks of all tensors."""
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``__init__`` sets everything up."""

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Read the chunks of this rank, one file after the other."""
        items_by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            items_by_file.setdefault(self.locations[item.storage_index][0], []).append(item)
        for name, items in items_by_file.items():
            tensors = files.read(self.folder / name, checksum=self.checksums[name])["tensors"]
            for item in items:
                chunk = tensors[self.locations[item.storage_index][1]]
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    chunk = chunk.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(chunk)
                planner.commit_tensor(item, target)
        return _completed(None)


def _cover(chunks: list[ChunkStorageMetadata], shape: torch.Size) -> bool:
    """Return whether ``chunks``, which have as many values as a tensor of ``shape``, fill it: none is outside, none overlap."""
    boxes = sorted(
        [(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)] for chunk in chunks
    )
    open_boxes: list[list[tuple[int, int]]] = []
    for box in boxes:
        if not all(0 <= start <= end <= length for (start, end), length in zip(box, shape, strict=True)):
            return False
        # The boxes are sorted by their start along the first dimension.
        open_boxes = [other for other in open_boxes if not box or other[0][1] > box[0][0]]
        if any(all(a < d and c < b for (a, b), (c, d) in zip(box, other, strict=True)) for other in open_boxes):
            return False
        open_boxes.append(box)
    return True


def _completed(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
