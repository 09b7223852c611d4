"""Stratified splits, and the targets of a dataset."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    default_collate,
    default_convert,
)

from easytorch._utils import torch_private
from easytorch._utils.forward_signature import LABEL_KEYS
from easytorch._utils.integers import boolean
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import are_instances, leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state, private_generator
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.data.arrays import (
    ArrayDataset,
    WrapperDataset,
    as_batch,
    as_torch_samples,
    check_rows,
    has_custom_transform,
    is_array,
    is_map_style,
    is_sample_list,
    load_samples,
)
from easytorch.data.batch import Batch, from_numpy, unpack
from easytorch.data.in_memory import InMemory
from easytorch.data.sparse import has_sparse

if TYPE_CHECKING:
    from easytorch.typing import DataLike, DatasetLike, TargetLike

# Attributes of a DataLoader that the loaders of both parts share.
LOADER_SETTINGS = (
    "batch_size",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
)
WORKER_SETTINGS = ("prefetch_factor", "persistent_workers")


@hide_internal_frames
def split(
    data: DataLike, y: TargetLike | float | None = None, fraction: float = 0.2, *, seed: int = 0, stratify: bool = True
) -> tuple[Any, Any]:
    """Split data into two parts; the same ``seed`` gives the same parts.

    Args:
        data: A ``Dataset`` or a list of samples; a ``DataLoader`` with sequential or random order; or arrays, with ``y``.
        y: The targets of arrays.
        fraction: The fraction of samples in the second part, between 0 and 1.
        seed: The seed of the random split; the global random generators do not change.
        stratify: Whether both parts have the same fraction of each class. It needs classes that can be read without
            loading the samples: arrays, a ``TensorDataset``, or an attribute ``targets`` or ``labels``.

    Returns:
        Two datasets. For a ``DataLoader`` two loaders with its settings, the second with sequential order. For arrays two
        parts of an ``ArrayDataset``.

    Raises:
        ValueError: If a part would be empty, or the data has no length or a custom order.

    Examples:
        >>> train, test = easytorch.data.split(x, y, fraction=0.1)
        >>> model.fit(train, epochs=5, validation_data=test)
    """
    stratify = boolean("stratify", stratify)
    # split(data, 0.2)
    if isinstance(y, (int, float, np.number)):
        fraction, y = float(y), None
    if isinstance(data, DataLoader):
        return split_loader(data, fraction, seed, stratify)
    samples = _as_samples(data, y)
    return _split_samples(samples, fraction, seed, targets_of(samples) if stratify else None)


def _as_samples(data: Any, y: Any) -> Any:
    """Return ``data`` as a map-style dataset or a list of samples."""
    check_rows(x=data, y=y)
    if y is not None:
        return ArrayDataset((data, y))
    if isinstance(data, IterableDataset):
        raise ValueError("Cannot split an IterableDataset, because it has no length. Pass validation_data instead.")
    data = as_torch_samples(data)
    if is_sample_list(data) or (is_map_style(data) and not is_array(data)):
        return data
    return ArrayDataset(data)


def _split_samples(dataset: Any, fraction: float, seed: int, targets: Tensor | None) -> tuple[Subset[Any], Subset[Any]]:
    """Return two parts of a dataset, which may be a list of samples, stratified by ``targets``."""
    first, second = split_indices(len(dataset), fraction, seed=seed, targets=targets)
    return Subset(dataset, first), Subset(dataset, second)


def split_indices(
    size: int, fraction: float, *, seed: int = 0, targets: Tensor | None = None
) -> tuple[list[int], list[int]]:
    """Return the sorted row numbers of both parts; see ``split``."""
    if not isinstance(fraction, (int, float, np.number)) or not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, received {fraction!r}. Pass 0.2 for 20%.")
    count = round(size * fraction)
    if not 0 < count < size:
        raise ValueError(
            f"A split of {size} samples with fraction={fraction} leaves one part empty. Pass more data or another fraction."
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(size - count, size)
    classes = None if targets is None else _get_classes(targets)
    if classes is not None:
        # Sort by class, in random order within each class. Every (size / count)-th sample goes to the second part, so
        # each class has its fraction there, up to one sample.
        order = order[torch.argsort(classes[order], stable=True)]
        positions = ((torch.arange(count, dtype=torch.float64) + 0.5) * size / count).long()
    is_second = torch.zeros(size, dtype=torch.bool)
    is_second[order[positions]] = True
    return (~is_second).nonzero().flatten().tolist(), is_second.nonzero().flatten().tolist()


def _get_classes(targets: Tensor) -> Tensor | None:
    """Return ``targets`` with one dimension if they are classes, otherwise None."""
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    if targets.ndim != 1:
        return None
    are_classes = not targets.is_floating_point() or bool(((targets == 0) | (targets == 1)).all())
    return targets if are_classes else None


def split_loader(
    loader: DataLoader[Any],
    fraction: float,
    seed: int,
    stratify: bool,
    unpack: Callable[[Any], Batch] = unpack,
) -> tuple[Any, Any]:
    """Return two loaders with the settings of ``loader``; see ``split``. ``unpack`` finds the targets in a batch."""
    is_random = type(loader.sampler) is not SequentialSampler
    if torch_private.overrides_iteration(loader):
        raise ValueError(
            f"Cannot split a {type(loader).__name__}, which overrides DataLoader.__iter__: its parts would be plain DataLoaders. "
            "Split the dataset, and pass a loader of each part: train, val = easytorch.data.split(dataset, 0.2); "
            f"fit({type(loader).__name__}(train, ...), validation_data={type(loader).__name__}(val, ...))."
        )
    if not _can_split(loader):
        raise ValueError(
            "Cannot split this DataLoader: expected shuffle=True or shuffle=False and a dataset with an index, "
            "received a custom sampler, a batch_sampler or an IterableDataset. Split the dataset with "
            "easytorch.data.split(dataset, 0.2), and pass validation_data."
        )
    targets = _find_classes(loader, unpack) if stratify else None
    first, second = _split_samples(loader.dataset, fraction, seed, targets)
    names = LOADER_SETTINGS + (WORKER_SETTINGS if loader.num_workers else ())
    settings: dict[str, Any] = {name: getattr(loader, name) for name in names}
    generator = getattr(loader.sampler, "generator", None) or loader.generator
    return (
        DataLoader(first, shuffle=is_random, drop_last=loader.drop_last, generator=generator, **settings),
        DataLoader(second, generator=private_generator(False), **settings),
    )


def _find_classes(loader: DataLoader[Any], unpack: Callable[[Any], Batch]) -> Tensor | None:
    """Return the class of each sample for a stratified split, None if it is unknown; no sample is read from a disk."""
    dataset: Any = loader.dataset
    is_custom = not is_internal(unpack) or changes_samples(loader)
    is_in_memory = isinstance(dataset, (ArrayDataset, InMemory, TensorDataset, list, tuple))
    if not is_custom or not is_in_memory or _overrides_iteration(loader):
        return targets_of(dataset)
    try:
        targets = load_targets(loader, unpack) or []
    except Exception:  # code of the user, which training runs too, and then reports its error
        targets = []
    if targets and all(target.ndim == 1 for target in targets) and sum(map(len, targets)) == len(dataset):
        return torch.cat(targets)
    # MixUp mixes the labels of a batch, whose samples have one label each.
    has_other_parts = isinstance(dataset, TensorDataset) and len(dataset.tensors) != 2
    return None if has_other_parts or not is_internal(unpack) else targets_of(dataset)


def _can_split(loader: DataLoader[Any]) -> bool:
    sampler = loader.sampler
    if loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return False
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and len(sampler) == len(sampler.data_source)
    return type(sampler) is SequentialSampler


def all_targets(loader: DataLike) -> Any:
    """Return the targets of all samples of ``loader``, in the structure that the samples have.

    Args:
        loader: A ``DataLoader``, or a list of batches.

    Returns:
        Tensors, or None if the targets are unknown until the samples are loaded.

    Examples:
        >>> all_targets(train_loader).shape
        torch.Size([60])
    """
    if type(loader) in (list, tuple):
        return _labels_of_batches(loader)
    dataset: Any = getattr(loader, "dataset", None)
    # The targets of samples that are never drawn may have any value, and a collate function may change those that are.
    if not draws_all_samples(loader) or changes_samples(loader):
        return None
    if isinstance(dataset, ArrayDataset):
        targets = unpack(dataset.tree).y
        return None if has_sparse(leaves(targets)) else targets
    return targets_of(dataset, trusted_only=True)


def _labels_of_batches(batches: Any) -> Tensor | None:
    """Return the labels of all ``batches`` in one dimension; None unless each batch is a tuple with a tensor of integers."""
    if not are_instances(batches, (tuple, list)) or not set(map(len, batches)) <= {2, 3}:
        return None
    labels = list(map(operator.itemgetter(1), batches))
    if not are_instances(labels, Tensor) or len(set(map(operator.attrgetter("dtype", "device"), labels))) != 1:
        return None
    if labels[0].is_floating_point() or labels[0].is_complex():
        return None
    are_flat = set(map(operator.attrgetter("ndim"), labels)) == {1}
    return torch.cat(labels if are_flat else [y.flatten() for y in labels])


def changes_samples(loader: Any) -> bool:
    """Return whether code of the user stands between the samples of ``loader`` and its batches."""
    if not isinstance(loader, DataLoader):
        return False
    collate: Any = loader.collate_fn
    if getattr(collate, "only_adds_weights", False):
        collate = collate.collate
    is_custom = all(collate is not known for known in (default_collate, default_convert, as_batch))
    return is_custom or _overrides_iteration(loader)


def _overrides_iteration(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and torch_private.overrides_iteration(loader)


def load_targets(loader: DataLoader[Any], unpack: Callable[[Any], Batch] = unpack) -> list[Tensor] | None:
    """Return the targets that ``unpack`` finds in each batch of ``loader``; None if a batch has no tensor of targets.

    All samples are loaded, once and in order, unless the loader overrides ``__iter__``. Random states are restored.
    """
    dataset: Any = loader.dataset
    with preserve_rng_state(), preserve_generators([dataset, loader.collate_fn]):
        batches = (
            torch_private.copy_loader(loader)
            if torch_private.overrides_iteration(loader)
            else _batches_in_order(loader)
        )
        targets = [_as_numbers(unpack(batch).y) for batch in batches]
    known = [target.reshape(1) if not target.ndim else target for target in targets if target is not None]
    return known if known and len(known) == len(targets) else None


def _batches_in_order(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of ``loader`` without its sampler."""
    dataset: Any = loader.dataset
    rows = range(len(dataset))
    if loader.batch_sampler is None:
        yield from (loader.collate_fn(dataset[row]) for row in rows)
        return
    size: Any = getattr(loader.batch_sampler, "batch_size", None)
    size = size if isinstance(size, int) and size > 0 else len(rows)
    yield from (loader.collate_fn(load_samples(dataset, list(rows[i : i + size]))) for i in rows[::size])


def draws_all_samples(loader: Any) -> bool:
    """Return whether ``loader`` certainly draws from all samples of its dataset."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
    return type(sampler) in (RandomSampler, SequentialSampler, DistributedSampler)


def targets_of(dataset: DatasetLike, *, trusted_only: bool = False) -> Tensor | None:
    """Return the targets of ``dataset`` if they can be read without loading its samples, otherwise None.

    Args:
        dataset: Any dataset, or a list of samples.
        trusted_only: Whether to ignore attributes of custom classes, whose samples may have other targets.

    Returns:
        A tensor with one row for each sample, or None.

    Examples:
        >>> targets_of(TensorDataset(x[:3], torch.tensor([0, 1, 1])))
        tensor([0, 1, 1])
    """
    trusted_only = boolean("trusted_only", trusted_only)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    targets = _as_numbers(_read_targets(dataset, trusted_only))
    return targets if targets is not None and targets.shape[:1] == (len(dataset),) else None


@functools.singledispatch
def _read_targets(dataset: Any, trusted_only: bool) -> Any:
    """Return the targets of ``dataset`` as it stores them, or None; one function for each type of dataset."""
    if hasattr(dataset, "with_format") and not (trusted_only and has_custom_transform(dataset)):
        return _read_label_column(dataset)
    if trusted_only and not type(dataset).__module__.startswith("torchvision."):
        return None
    targets = getattr(dataset, "targets", None) if hasattr(dataset, "targets") else getattr(dataset, "labels", None)
    transform = getattr(dataset, "target_transform", None)
    return targets if transform is None else _transform_classes(_as_numbers(targets), transform)


@_read_targets.register(Subset)
def _(dataset: Subset[Any], trusted_only: bool) -> Any:
    targets = targets_of(dataset.dataset, trusted_only=trusted_only)
    return None if targets is None else targets[torch.as_tensor(dataset.indices, dtype=torch.int64)]


@_read_targets.register(ConcatDataset)
def _(dataset: ConcatDataset[Any], trusted_only: bool) -> Any:
    targets = [targets_of(part, trusted_only=trusted_only) for part in dataset.datasets]
    return None if any(part is None for part in targets) else torch.cat([part for part in targets if part is not None])


@_read_targets.register
def _(dataset: WrapperDataset, trusted_only: bool) -> Any:
    return targets_of(dataset.dataset, trusted_only=trusted_only)


@_read_targets.register(ArrayDataset)
@_read_targets.register(InMemory)
def _(dataset: Any, trusted_only: bool) -> Any:
    return unpack(dataset.tree).y


@_read_targets.register
def _(dataset: TensorDataset, trusted_only: bool) -> Any:
    if len(dataset.tensors) < 2 or (trusted_only and type(dataset) is not TensorDataset):
        return None
    return dataset.tensors[1]


@_read_targets.register(list)
@_read_targets.register(tuple)
def _(dataset: Sequence[Any], trusted_only: bool) -> Any:
    """Return the targets of samples such as ``(x, y)`` if all have one shape, otherwise None."""
    try:
        targets = [unpack(sample).y for sample in dataset]
    # Samples of four parts are not (x, y).
    except ValueError:
        return None
    if not targets or any(target is None for target in targets):
        return None
    if not all(isinstance(target, Tensor) for target in targets):
        return targets
    return torch.stack(targets) if len({target.shape for target in targets}) == 1 else None


def _read_label_column(dataset: Any) -> Any:
    """Return the label column of a Hugging Face dataset, or None."""
    column = next((key for key in LABEL_KEYS if key in dataset.column_names), None)
    return dataset.with_format("numpy")[column][:] if column else None


def _transform_classes(targets: Tensor | None, transform: Callable[[int], Any]) -> Tensor | None:
    """Return ``targets`` after ``transform``, or None if they are not classes or the transform fails."""
    if targets is None or targets.is_floating_point() or targets.ndim != 1:
        return None
    classes, positions = torch.unique(targets, return_inverse=True)
    try:
        with preserve_rng_state():
            transformed = [torch.as_tensor(transform(int(class_))) for class_ in classes]
        return torch.stack(transformed)[positions]
    except Exception:  # a function of the user may raise anything, and does so again where training reads such a sample
        return None


def _as_numbers(targets: Any) -> Tensor | None:
    if targets is None or isinstance(targets, Mapping):
        return None
    try:
        return targets.cpu() if isinstance(targets, Tensor) else from_numpy(np.asarray(targets))
    # The labels are text or differ in length.
    except (TypeError, ValueError):
        return None
