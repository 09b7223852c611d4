"""Stratified splits, and the targets of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from easytorch._utils.internal import is_internal
from easytorch._utils.rng import preserve_rng_state, private_generator
from easytorch.data.arrays import ArrayDataset, is_array, is_map_style, transforms
from easytorch.data.batch import LABEL_KEYS, from_numpy, unpack
from easytorch.data.in_memory import InMemory


def split(data: Any, y: Any = None, fraction: float = 0.2, *, seed: int = 0, stratify: bool = True) -> tuple[Any, Any]:
    """Split data into a larger and a smaller part, the same for the same ``seed``.

    Args:
        data: A ``Dataset`` or a list of samples; a ``DataLoader`` with a plain or shuffled order; or arrays, with ``y``.
        y: The targets of arrays.
        fraction: The share of the second part, between 0 and 1.
        seed: Of the draw; no other random number generator is touched.
        stratify: Give both parts the same share of each class, where targets are classes and can be read without
            loading the samples (arrays, a ``TensorDataset``, an attribute ``targets`` or ``labels``).

    Returns:
        Two datasets; of a ``DataLoader`` two loaders like it, the second in order; of arrays two parts of an ``ArrayDataset``.

    Raises:
        ValueError: If a part would be empty, or the data has no length or an order of its own.
    """
    if isinstance(y, (int, float, np.number)):  # split(data, 0.2)
        y, fraction = None, y
    if isinstance(data, DataLoader):
        return split_loader(data, fraction, seed, stratify)
    samples = isinstance(data, list) and y is None and (len(data) > 3 or not all(map(is_array, data)))
    if not samples and (not is_map_style(data) or is_array(data) or y is not None):
        data = ArrayDataset(data if y is None else (data, y))
    if isinstance(data, IterableDataset):
        raise ValueError("An IterableDataset has no length, so it cannot be split. Pass validation_data instead.")
    return _split_samples(data, fraction, seed, stratify)


def _split_samples(dataset: Any, fraction: float, seed: int, stratify: bool) -> tuple[Subset[Any], Subset[Any]]:
    """Return two parts of a dataset, which may be a list of samples."""
    first, second = split_indices(len(dataset), fraction, seed, targets_of(dataset) if stratify else None)
    return Subset(dataset, first), Subset(dataset, second)


def split_indices(
    size: int, fraction: float, seed: int = 0, targets: Tensor | None = None
) -> tuple[list[int], list[int]]:
    """Return the row numbers of the two parts; see ``split``."""
    if not isinstance(fraction, (int, float, np.number)) or not 0 < fraction < 1:
        raise ValueError(f"A split needs a fraction between 0 and 1, received {fraction!r}: 0.2 is 20 %.")
    count = round(size * fraction)
    if not 0 < count < size:
        raise ValueError(
            f"A split of {size} samples by {fraction} leaves one part empty. Pass more data or another fraction."
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    if targets is not None and targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    if targets is not None and _are_classes(targets):
        order = order[torch.argsort(targets[order], stable=True)]  # class by class, each in random order
        # Every (size / count)-th of them goes to the second part, so each class gives its share, up to one sample.
        positions = ((torch.arange(count, dtype=torch.float64) + 0.5) * size / count).long()
    else:
        positions = torch.arange(size - count, size)
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[order[positions]] = True
    return (~chosen).nonzero().flatten().tolist(), chosen.nonzero().flatten().tolist()


def _are_classes(targets: Tensor) -> bool:
    if targets.ndim != 1:
        return False
    return not targets.is_floating_point() or bool(((targets == 0) | (targets == 1)).all())


def split_loader(loader: DataLoader[Any], fraction: float, seed: int, stratify: bool) -> tuple[Any, Any]:
    """Return two loaders like ``loader``; see ``split``."""
    sampler = loader.sampler
    random = isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(sampler.data_source)
    if (
        loader.batch_size is None
        or isinstance(loader.dataset, IterableDataset)
        or not (random or type(sampler) is SequentialSampler)
    ):
        raise ValueError(
            "validation_split cannot split this DataLoader: it has a sampler, a batch sampler or an iterable dataset of its "
            "own, which decides which samples are drawn. Split a dataset that has an index with easytorch.data.split, and pass "
            "validation_data."
        )
    first, second = _split_samples(loader.dataset, fraction, seed, stratify)
    settings: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            "batch_size",
            "num_workers",
            "collate_fn",
            "pin_memory",
            "timeout",
            "worker_init_fn",
            "multiprocessing_context",
        )
    }
    if loader.num_workers:
        settings |= {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    drop_last, generator = loader.drop_last, getattr(sampler, "generator", None) or loader.generator
    return (
        DataLoader(first, shuffle=random, drop_last=drop_last, generator=generator, **settings),
        DataLoader(second, generator=private_generator(False), **settings),
    )


def all_targets(loader: Any) -> Any:
    """Return all targets behind ``loader`` as its samples bring them, of several outputs in their structure; None where nobody
    can know that without loading them.
    """
    dataset = getattr(loader, "dataset", None)
    if not draws_all_samples(loader):  # the targets of samples that are never drawn may be anything
        return None
    if isinstance(dataset, ArrayDataset):
        return unpack(dataset.tree).y
    return targets_of(dataset, trusted_only=True)


def draws_all_samples(loader: Any) -> bool:
    """Whether ``loader`` surely draws from all samples of its dataset."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
    return type(sampler) in (RandomSampler, SequentialSampler, DistributedSampler)


def targets_of(dataset: Any, *, trusted_only: bool = False) -> Tensor | None:
    """Return the targets of ``dataset``, one for each sample, where they can be read without loading it, else None.

    Args:
        dataset: Any dataset, or a list of samples.
        trusted_only: Leave out what an attribute of a class of the user's own tells: its samples may bring something else.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    if isinstance(dataset, Subset):
        whole = targets_of(dataset.dataset, trusted_only=trusted_only)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [targets_of(part, trusted_only=trusted_only) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])
    if _is_wrapper(dataset):
        return targets_of(dataset.dataset, trusted_only=trusted_only)
    if trusted_only and isinstance(dataset, TensorDataset) and type(dataset) is not TensorDataset:
        return None
    read = next((read for kinds, read in READERS if isinstance(dataset, kinds)), None)
    found = _as_numbers(_attribute(dataset, trusted_only) if read is None else read(dataset))
    return found if found is not None and found.shape[:1] == (len(dataset),) else None


def _is_wrapper(dataset: Any) -> bool:
    """Whether ``dataset`` is one of this package around the user's."""
    return is_internal(type(dataset)) and not isinstance(dataset, (ArrayDataset, InMemory))


def _of_samples(samples: Sequence[Any]) -> Any:
    """Return the targets of a list of samples such as ``(x, y)``, None where they are not one number or row each."""
    try:
        targets = [unpack(sample).y for sample in samples]
    except ValueError:  # samples of four parts are no (x, y)
        return None
    if not targets or any(target is None for target in targets):
        return None
    if all(isinstance(target, Tensor) for target in targets):
        alike = len({target.shape for target in targets}) == 1
        return torch.stack(targets) if alike else None
    return targets


READERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    ((list, tuple), _of_samples),
    ((ArrayDataset, InMemory), lambda dataset: unpack(dataset.tree).y),
    (TensorDataset, lambda dataset: dataset.tensors[1] if len(dataset.tensors) > 1 else None),
)


def _attribute(dataset: Any, trusted_only: bool) -> Any:
    """Return a column of a Hugging Face dataset, or the attribute ``targets`` or ``labels`` of one as torchvision has them."""
    if hasattr(dataset, "with_format") and not (trusted_only and transforms(dataset)):
        column = next((key for key in LABEL_KEYS if key in dataset.column_names), None)
        return dataset.with_format("numpy")[column][:] if column else None
    if trusted_only and not type(dataset).__module__.startswith("torchvision."):
        return None
    found = next((getattr(dataset, key) for key in ("targets", "labels") if hasattr(dataset, key)), None)
    transform = getattr(dataset, "target_transform", None)
    return found if transform is None else _transformed(_as_numbers(found), transform)


def _transformed(targets: Tensor | None, transform: Callable[[int], Any]) -> Tensor | None:
    """Return what ``transform`` makes of each class in ``targets``; None where they are none, or it wants something else."""
    if targets is None or targets.is_floating_point() or targets.ndim != 1:
        return None
    classes, places = torch.unique(targets, return_inverse=True)
    try:
        with preserve_rng_state():
            made = [transform(int(one)) for one in classes]
        return torch.stack([torch.as_tensor(one) for one in made])[places]
    except Exception:  # whatever a function of the user's raises
        return None


def _as_numbers(found: Any) -> Tensor | None:
    if found is None or isinstance(found, Mapping):
        return None
    try:
        return found.cpu() if isinstance(found, Tensor) else from_numpy(np.asarray(found))
    except (TypeError, ValueError):  # labels that are text or ragged
        return None
