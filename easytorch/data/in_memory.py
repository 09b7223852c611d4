"""A dataset loaded once and held in memory as tensors."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch._utils.warnings import warn
from easytorch.checkpoint import files

CHUNK = 256  # samples loaded at once
PROBES = 8  # samples that are loaded again, to see whether they are still the same


def in_memory(
    dataset: Any,
    *,
    num_workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    verbose: int | str = "auto",
) -> Dataset[Any]:
    """Run ``dataset`` once and return it as tensors in memory; ``fit`` slices their rows instead of loading samples.

    The samples are those of ``dataset``, in its order and its dtypes, numbers as tensors. The result goes wherever a dataset
    goes: into a ``DataLoader``, a ``Subset``, ``random_split``, or ``fit`` itself. Attributes of values, such as
    ``targets`` and ``classes``, are those of ``dataset``.

    Args:
        dataset: A map-style dataset whose samples are the same every time: tensors, arrays and numbers, in tuples, lists
            and dicts. Random transforms belong into the training step then, where they work on whole batches.
        num_workers: Processes that load it.
        cache: A file to keep the tensors in, for the next time; written as safely as a checkpoint. It is used as long as
            its length and eight of its samples, spread over the data, are those of ``dataset``; else it is made anew.
        device: Where to keep the tensors; on an accelerator no batch has to be copied to it any more.
        verbose: 0 shows nothing; otherwise a bar in a terminal, and a line when it is done.

    Raises:
        TypeError: If it has no length or no index, or its samples hold something else than numbers, or differ in dtype.
        ValueError: If it is empty, loading it draws random numbers, or its samples differ in shape.
        FileNotFoundError: If there is no folder for the cache, told before anything is loaded.
        MemoryError: If it is larger than the memory of this machine, told after the first samples.

    Examples:
        >>> train = easytorch.data.in_memory(datasets.MNIST("data", transform=transforms.ToTensor()))
        >>> model.fit(DataLoader(train, batch_size=64, shuffle=True), epochs=5)
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"in_memory needs a dataset with a length and an index, received {describe(dataset)}. Gather the samples of a "
            "stream in a list first."
        )
    if not len(dataset):
        raise ValueError(f"The data is empty: {type(dataset).__name__} of length 0.")
    if cache is not None and not Path(cache).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"Cannot keep the samples in {os.fspath(cache)!r}: there is no folder {str(Path(cache).parent)!r}. Make the folder "
            "first, or choose another place."
        )
    began = time.perf_counter()
    probes = _probed(dataset)
    tree = _cached(cache, dataset, probes)
    kept = "Read from the cache" if tree is not None else "Loaded into memory"
    if tree is None:
        tree = _loaded(dataset, num_workers, _bar(len(dataset), verbose))
        if cache is not None:
            files.write(cache, {"in_memory": 1, "samples": len(dataset), "tree": tree})
    if verbose:
        size = _megabytes(tree)
        print(f"{kept}: {len(dataset):,} samples, {size:,.1f} MB, {time.perf_counter() - began:.1f} s", flush=True)
    return InMemory(dataset, map_leaves(lambda leaf: leaf.to(device), tree))


class InMemory(Dataset[Any]):
    """The samples of a dataset as rows of tensors; made by ``in_memory``.

    Attributes:
        tree: The tensors, in the structure that torch's default collate makes of a batch of samples.
        dataset: What they were loaded from.
    """

    def __init__(self, dataset: Any, tree: Any) -> None:
        self.dataset, self.tree = dataset, tree

    def __len__(self) -> int:
        return len(next(leaves(self.tree)))

    def __getitem__(self, index: int) -> Any:
        return map_leaves(lambda leaf: leaf[index], self.tree)

    def __getattr__(self, name: str) -> Any:  # targets, classes, ...: values, not what loads or transforms samples
        value = None if name in ("dataset", "tree") or name.startswith("__") else getattr(self.dataset, name, None)
        if value is None or callable(value):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return value


class DeterministicDataset(Dataset[Any]):
    """Loads samples, a chunk at a time, and refuses to draw random numbers on the way, in whatever process it does."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        before = _random_state()
        whole = getattr(self.dataset, "__getitems__", None)
        samples = whole(indices) if whole else [self.dataset[index] for index in indices]
        if _random_state() != before:
            raise _refusal(self.dataset, "draws random numbers")
        return list(samples)


def _refusal(dataset: Any, what: str) -> ValueError:
    return ValueError(
        f"Loading {type(dataset).__name__} {what}, so its samples are not the same every time and cannot be kept. Leave the "
        "random transforms out, and apply them to batches, on the device, in a train_step of your own."
    )


def _random_state() -> Any:
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()


def _places(size: int) -> list[int]:
    return sorted({i * (size - 1) // max(PROBES - 1, 1) for i in range(PROBES)})


def _probed(dataset: Any) -> Any:
    """Return a few samples from all over the data as a batch, loaded twice to see that they stay the same."""
    first, second = (_collated(DeterministicDataset(dataset).__getitems__(_places(len(dataset)))) for _ in range(2))
    if not _same(first, second):
        raise _refusal(dataset, "gives other values the second time")
    return first


def _collated(samples: list[Any]) -> Any:
    try:
        batch = default_collate(samples)
    except TypeError as error:
        raise TypeError(
            f"A sample holds something else than numbers: {describe(samples[0])}. Give images a transform to tensors, such as "
            "torchvision.transforms.ToTensor(), and leave text out."
        ) from error
    except RuntimeError as error:
        raise _uneven(sorted({describe(sample) for sample in samples})) from error
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)):
        raise TypeError(f"A sample holds something else than numbers: {describe(samples[0])}. Leave text out.")
    return batch


def _loaded(dataset: Any, num_workers: int, bar: Any) -> Any:
    loader = DataLoader(
        DeterministicDataset(dataset), CHUNK, num_workers=num_workers, collate_fn=_collated, generator=torch.Generator()
    )
    tree, done = None, 0
    with bar as advance:
        for chunk in loader:
            if tree is None:
                tree = map_leaves(lambda part: _room(part, len(dataset)), chunk)
            for whole, part in zip(leaves(tree), leaves(chunk), strict=True):
                if whole.shape[1:] != part.shape[1:]:
                    raise _uneven([f"{list(whole.shape[1:])}", f"{list(part.shape[1:])}"])
                if whole.dtype != part.dtype:
                    raise TypeError(
                        f"The samples differ in dtype: {whole.dtype} and {part.dtype}. Return one in every case."
                    )
                whole[done : done + len(part)] = part
            done += len(part)
            advance(len(part))
    return tree


def _room(part: Tensor, rows: int) -> Tensor:
    """Return an empty tensor for all rows, of which ``part`` has the first; later, the system would end the process."""
    needed = part[0].numel() * part.element_size() * rows
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # systems that do not tell
        there = needed
    if needed > there:
        raise MemoryError(
            f"The dataset needs {needed / 1e9:,.1f} GB as tensors, and this machine has {there / 1e9:,.1f} GB. Load it by "
            "workers instead: DataLoader(dataset, num_workers=4)."
        )
    return torch.empty(rows, *part.shape[1:], dtype=part.dtype)


def _uneven(shapes: list[str]) -> ValueError:
    return ValueError(
        f"The samples differ in shape: {' and '.join(shapes[:2])}. Resize or crop all of them to one shape."
    )


def _cached(cache: Any, dataset: Any, probes: Any) -> Any:
    """Return what the cache holds, if it holds this very dataset; else None."""
    if cache is None or not Path(cache).exists():
        return None
    content = files.read(cache)
    if not isinstance(content, dict) or content.get("in_memory") != 1:
        raise ValueError(
            f"{os.fspath(cache)} is no cache of in_memory, so it is not overwritten. Pass another file name."
        )
    with files.as_file_error(cache):
        rows = _places(len(dataset))
        if content["samples"] == len(dataset) and _same(map_leaves(lambda leaf: leaf[rows], content["tree"]), probes):
            return content["tree"]
    warn(f"The cache {os.fspath(cache)} was made from other data, and is made anew.")
    return None


def _same(first: Any, second: Any) -> bool:
    """Whether two trees of tensors are equal, bit for bit, NaN included."""
    ours, others = list(leaves(first)), list(leaves(second))
    return len(ours) == len(others) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(ours, others, strict=True)
    )


def _bar(total: int, verbose: int | str) -> Any:
    """Return a context that shows a bar, in a terminal, and gives the function that advances it."""
    import contextlib

    from rich.progress import Progress

    @contextlib.contextmanager
    def shown() -> Any:
        with Progress(transient=True, disable=not verbose or not sys.stdout.isatty()) as progress:
            task = progress.add_task("Loading into memory", total=total)
            yield lambda count: progress.advance(task, count)

    return shown()


def _megabytes(tree: Any) -> float:
    return float(sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))) / 1e6
