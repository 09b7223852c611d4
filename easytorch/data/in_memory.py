"""A dataset loaded once and held in memory as tensors."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from easytorch._utils.paths import to_path
from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch._utils.rng import get_host_rng_state, preserve_rng_state
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.warnings import warn
from easytorch.checkpoint import files
from easytorch.data.arrays import WrapperDataset, as_torch_samples, load_samples

if TYPE_CHECKING:
    from easytorch.typing import DatasetLike, DeviceLike, PathLike

# Samples loaded at once
CHUNK = 256
# Samples loaded again, to check that they have not changed
PROBES = 8


@hide_internal_frames
def in_memory(
    dataset: DatasetLike,
    *,
    num_workers: int = 0,
    cache: PathLike | None = None,
    device: DeviceLike = "cpu",
    verbose: int | str = "auto",
) -> Dataset[Any]:
    """Load ``dataset`` once and return it as tensors in memory; ``fit`` slices their rows instead of loading samples.

    Samples, order and dtypes are those of ``dataset``; numbers become tensors. The result works as any dataset: in a
    ``DataLoader``, a ``Subset``, ``random_split`` or ``fit``. It has the attributes of ``dataset`` that are values, such as
    ``targets`` and ``classes``.

    Args:
        dataset: A map-style dataset whose samples never change: tensors, arrays and numbers, in tuples, lists and dicts.
            Apply random transforms to batches, in a custom training step.
        num_workers: Processes that load it.
        cache: A file that stores the tensors for the next call; it is written atomically. It is used as long as its length
            and eight of its samples, spread over the data, equal those of ``dataset``; otherwise it is recreated.
        device: The device of the tensors; on an accelerator no batch has to be copied.
        verbose: 0 prints nothing; otherwise a progress bar in a terminal and one line at the end.

    Raises:
        TypeError: If it has no length or no index, or if its samples are not numeric or differ in dtype.
        ValueError: If it is empty, loading it draws random numbers, or its samples differ in shape.
        FileNotFoundError: If the folder of the cache does not exist; raised before loading.
        MemoryError: If it is larger than the memory of this machine; raised after the first samples.

    Examples:
        >>> train = easytorch.data.in_memory(dataset)
        >>> model.fit(DataLoader(train, batch_size=64, shuffle=True), epochs=5)
    """
    cache = None if cache is None else to_path(cache, "cache")
    _check_arguments(dataset, cache)
    samples: Any = as_torch_samples(dataset)
    dataset, size = samples, len(samples)
    start = time.perf_counter()
    probes = _load_probes(dataset)
    tree = _read_cache(cache, dataset, probes)
    source = "Loaded into memory" if tree is None else "Read from the cache"
    if tree is None:
        tree = _load(dataset, num_workers, _progress_bar(size, verbose))
        if cache is not None:
            files.write(cache, {"in_memory": 1, "samples": size, "tree": tree})
    if verbose:
        megabytes = sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree)) / 1e6
        seconds = time.perf_counter() - start
        print(f"{source}: {size:,} samples, {megabytes:,.1f} MB, {seconds:.1f} s", flush=True)
    return InMemory(dataset, map_leaves(lambda leaf: leaf.to(device), tree))


class InMemory(Dataset[Any]):
    """The samples of a dataset as rows of tensors; returned by ``in_memory``.

    Attributes:
        tree: The tensors, in the structure that torch's ``default_collate`` gives a batch of samples.
        dataset: The original dataset.
    """

    def __init__(self, dataset: Any, tree: Any) -> None:
        self.dataset, self.tree = dataset, tree

    def __len__(self) -> int:
        return len(next(leaves(self.tree)))

    def __getitem__(self, index: int) -> Any:
        return map_leaves(lambda leaf: leaf[index], self.tree)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the dataset that is a value, such as ``targets``, but no method or transform."""
        value = None if name in ("dataset", "tree") or name.startswith("__") else getattr(self.dataset, name, None)
        if value is None or callable(value):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return value


class DeterministicDataset(WrapperDataset):
    """A dataset that raises an error if loading a sample draws random numbers, in workers too."""

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples at ``indices``."""
        state = _get_random_state()
        samples = load_samples(self.dataset, indices)
        if _get_random_state() != state:
            raise _not_deterministic_error(self.dataset, "draws random numbers")
        return list(samples)


def _get_random_state() -> Any:
    python_state, numpy_state, torch_state = get_host_rng_state()
    return python_state, numpy_state[1].tobytes(), numpy_state[2:], torch_state.numpy().tobytes()


def _not_deterministic_error(dataset: Any, reason: str) -> ValueError:
    return ValueError(
        f"Loading {type(dataset).__name__} {reason}, but in_memory needs samples that never change. Remove the random "
        "transforms from the dataset, and apply them to batches in a custom train_step(self, batch)."
    )


def _check_arguments(dataset: Any, cache: Any) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"in_memory needs a dataset with a length and an index, received {describe(dataset)}. Pass the samples of a "
            "stream as a list: in_memory(list(dataset))."
        )
    if not len(dataset):
        raise ValueError(
            f"The data is empty: expected at least one sample, received {type(dataset).__name__} of length 0. Check how it was "
            "read or filtered."
        )
    if cache is not None and not Path(cache).absolute().parent.is_dir():
        folder = str(Path(cache).parent)
        raise FileNotFoundError(
            f"Cannot write the cache {os.fspath(cache)!r}: there is no folder {folder!r}. Create it with "
            f"os.makedirs({folder!r}), or pass another path."
        )


def _load_probes(dataset: Any) -> Any:
    """Return a few samples, spread over the data, as a batch; check that loading them twice gives the same values."""
    loader, indices = DeterministicDataset(dataset), _get_probe_indices(len(dataset))
    first, second = (_collate(loader.__getitems__(indices)) for _ in range(2))
    if not _are_equal(first, second):
        raise _not_deterministic_error(dataset, "gives other values the second time")
    return first


def _get_probe_indices(size: int) -> list[int]:
    return sorted({i * (size - 1) // (PROBES - 1) for i in range(PROBES)})


def _collate(samples: list[Any]) -> Any:
    not_numeric = (
        f"Expected samples of numbers, received {describe(samples[0])}. Give images a transform to tensors, such as "
        "torchvision.transforms.ToTensor(), and remove text."
    )
    try:
        batch = default_collate(samples)
    except TypeError as error:
        raise TypeError(not_numeric) from error
    except RuntimeError as error:
        raise _shape_error(sorted({describe(sample) for sample in samples})) from error
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)):
        raise TypeError(not_numeric)
    return batch


def _load(dataset: Any, num_workers: int, progress_bar: Any) -> Any:
    """Return all samples of ``dataset`` as tensors."""
    loader = DataLoader(
        DeterministicDataset(dataset), CHUNK, num_workers=num_workers, collate_fn=_collate, generator=torch.Generator()
    )
    tree, start = None, 0
    with progress_bar as advance:
        for chunk in loader:
            if tree is None:
                tree = map_leaves(lambda rows: _allocate(rows, len(dataset)), chunk)
            for tensor, rows in zip(leaves(tree), leaves(chunk), strict=True):
                _copy_rows(tensor, rows, start)
            start += len(rows)
            advance(len(rows))
    return tree


def _copy_rows(tensor: Tensor, rows: Tensor, start: int) -> None:
    if tensor.shape[1:] != rows.shape[1:]:
        raise _shape_error([str(list(tensor.shape[1:])), str(list(rows.shape[1:]))])
    if tensor.dtype != rows.dtype:
        raise TypeError(
            f"The samples differ in dtype: {tensor.dtype} and {rows.dtype}. Return the same dtype for each sample."
        )
    tensor[start : start + len(rows)] = rows


def _allocate(rows: Tensor, count: int) -> Tensor:
    """Return an empty tensor for ``count`` rows like the first ``rows``.

    Raises:
        MemoryError: If it is larger than the memory; otherwise the system would end the process later.
    """
    needed = rows[0].numel() * rows.element_size() * count
    try:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Some systems do not report it.
    except (AttributeError, ValueError, OSError):
        available = needed
    if needed > available:
        raise MemoryError(
            f"The dataset needs {needed / 1e9:,.1f} GB as tensors, and this machine has {available / 1e9:,.1f} GB. Load it with "
            "workers instead: DataLoader(dataset, num_workers=4)."
        )
    return torch.empty(count, *rows.shape[1:], dtype=rows.dtype)


def _shape_error(shapes: list[str]) -> ValueError:
    return ValueError(f"The samples differ in shape: {' and '.join(shapes[:2])}. Resize or crop them to one shape.")


def _read_cache(cache: Any, dataset: Any, probes: Any) -> Any:
    """Return the tensors of the cache if they are those of ``dataset``, otherwise None."""
    if cache is None or not Path(cache).exists():
        return None
    content = files.read(cache)
    if not isinstance(content, dict) or content.get("in_memory") != 1:
        raise ValueError(
            f"{os.fspath(cache)} is not a cache of in_memory, so it is not overwritten. Pass another file name as cache."
        )
    with files.as_file_error(cache):
        indices = _get_probe_indices(len(dataset))
        is_same_size = content["samples"] == len(dataset)
        if is_same_size and _are_equal(map_leaves(lambda leaf: leaf[indices], content["tree"]), probes):
            return content["tree"]
    warn(
        f"The dataset is loaded again and the cache {os.fspath(cache)} is overwritten, because it was made from other data. Pass "
        "another file name as cache to keep both."
    )
    return None


def _are_equal(first: Any, second: Any) -> bool:
    """Return whether two trees of tensors are equal, bit for bit, including NaN."""
    pairs = list(leaves(first)), list(leaves(second))
    return len(pairs[0]) == len(pairs[1]) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(*pairs, strict=True)
    )


@contextlib.contextmanager
def _progress_bar(total: int, verbose: int | str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar in a terminal and yield the function that advances it."""
    with preserve_rng_state():  # the import draws a number from Python's generator
        from rich.progress import Progress

    with Progress(transient=True, disable=not verbose or not sys.stdout.isatty()) as progress:
        task = progress.add_task("Loading into memory", total=total)
        yield lambda count: progress.advance(task, count)
