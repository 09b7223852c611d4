"""Weights of samples and classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from easytorch._utils import torch_private
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch._utils.warnings import warn
from easytorch.data.arrays import WrapperDataset, as_tensor, as_tensors, load_samples
from easytorch.data.batch import WEIGHT_KEY, Batch, from_numpy, unpack
from easytorch.data.sparse import is_sparse
from easytorch.data.splits import all_targets, changes_samples, load_targets, targets_of

# The target that cross-entropy ignores.
IGNORE_INDEX = -100
# Samples loaded to check that an attribute has their classes.
PROBES = 8
CLASS_WEIGHT_EXAMPLE = "Pass {0: 1.0, 1: 2.0} or [1.0, 2.0]."


def with_sample_weight(loader: Any, sample_weight: Any) -> DataLoader[Any]:
    """Return a loader of the same samples in the same order, each with its weight.

    Args:
        loader: A loader of a map-style dataset.
        sample_weight: One weight for each sample of the dataset.

    Raises:
        ValueError: If the number of weights differs from the number of samples, a weight is negative, or the class of the
            loader makes other batches.
    """
    if torch_private.overrides_iteration(loader):
        name = type(loader).__name__
        raise ValueError(
            f"sample_weight has no effect on a {name}, which overrides DataLoader.__iter__ and may change the batches. Let it "
            "yield (x, y, sample_weight)."
        )
    weights = as_tensor(sample_weight)
    check_weights("sample_weight", weights)
    dataset: Any = loader.dataset
    if len(weights) != len(dataset):
        raise ValueError(
            f"sample_weight must have one weight for each sample: expected {len(dataset)} weights, received {len(weights)}. "
            "Check that len(sample_weight) == len(dataset)."
        )
    # The sampler stays, so order and random numbers stay too.
    weighted, collate = WeightedDataset(dataset, weights), WeightedCollate(loader.collate_fn)
    copied: DataLoader[Any] = torch_private.copy_loader(loader, dataset=weighted, collate_fn=collate)
    return copied


def check_weights(name: str, weights: Any) -> None:
    """Raise a ``ValueError`` if one of ``weights``, tensors in any nesting, is negative or NaN."""
    for tensor in leaves(weights):
        # The comparison is also False for NaN.
        if isinstance(tensor, Tensor) and tensor.numel() and not bool((tensor >= 0).all()):
            raise ValueError(
                f"{name} must be 0 or more, but its minimum is {float(tensor.min()):g}. A negative weight would reward errors. "
                "Pass 0 to ignore a sample or a class."
            )


def check_is_weight(weight: Any) -> None:
    """Raise a ``TypeError`` unless the third part of a batch consists of float or boolean tensors."""
    for leaf in leaves(weight):
        leaf = from_numpy(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" else leaf
        if leaf is None or (isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.dtype == torch.bool)):
            continue
        if isinstance(leaf, Tensor):
            found, fix = "whole numbers, such as indices", "If they are weights, pass weights.float()."
        else:
            found, fix = "no numbers", ""
        raise TypeError(
            f"A batch of three parts is (x, y, sample_weight), but the third part, {describe(weight)}, has {found}. Return "
            f"(x, y) from the dataset, or override train_step and test_step, which receive the whole batch.{fix and ' '}{fix}"
        )


def as_weights(weight: Any) -> Any:
    """Return an argument ``sample_weight``, in which whole numbers are weights too, with floats."""
    if isinstance(weight, list) and not weight:
        return torch.zeros(0)
    if is_sparse(weight):
        raise TypeError(
            "sample_weight must have one number for each sample, received a sparse matrix. Pass "
            "sample_weight.toarray().ravel()."
        )
    try:
        return map_leaves(_as_floats, as_tensors(weight))
    except (TypeError, ValueError) as error:
        # A subclass may need other arguments.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"In sample_weight: {error}") from error


def _as_floats(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and not leaf.is_floating_point() else leaf


def align_weights(weights: Tensor, values: Tensor) -> Tensor | None:
    """Return ``weights`` in a shape that broadcasts to that of ``values``, None if they do not fit.

    Args:
        weights: One weight per sample, ``[N]`` or ``[N, 1]``; or one per value, with the leading dimensions of ``values``.
        values: ``[N, ...]``.
    """
    if weights.numel() == len(values):
        return weights.reshape(len(values), *[1] * (values.ndim - 1))
    if weights.shape == values.shape[: weights.ndim]:
        return weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
    if [size for size in weights.shape if size > 1] == [size for size in values.shape if size > 1]:
        return weights.reshape(values.shape)
    return None


class WeightedDataset(WrapperDataset):
    """A dataset whose samples have weights; needs ``WeightedCollate``."""

    def __init__(self, dataset: Any, weights: Tensor) -> None:
        super().__init__(dataset)
        self.weights = weights

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index], self.weights[index]

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the samples at ``indices`` and their weights."""
        return load_samples(self.dataset, indices), self.weights[torch.as_tensor(indices)]


class WeightedCollate:
    """A ``collate_fn`` that adds the weights of a ``WeightedDataset`` to the batch."""

    only_adds_weights = True

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, fetched: Any) -> Any:
        """Return the batch of the samples, with their weights."""
        samples, weights = fetched
        return add_weight(self.collate(samples), weights)


def add_weight(batch: Any, weight: Tensor) -> Any:
    """Return ``batch`` with ``weight`` as its third part, multiplied by the weights that the batch has already."""
    if isinstance(batch, Mapping):
        return {**batch, WEIGHT_KEY: _multiply(batch[WEIGHT_KEY], weight) if WEIGHT_KEY in batch else weight}
    x, y, sample_weight = unpack(batch)
    check_is_weight(sample_weight)
    return (x, y, weight if sample_weight is None else _multiply(sample_weight, weight))


def _multiply(first: Any, second: Tensor) -> Any:
    """Return the product of two weights, with one number for each sample or for each value."""
    first = from_numpy(first) if isinstance(first, np.ndarray) else torch.as_tensor(first)
    if first.ndim < second.ndim:
        first, second = second, first
    if second.numel() == len(first):
        second = second.reshape(len(first), *[1] * (first.ndim - 1))
    return first * second


class ClassWeight:
    """A function that gives each sample of a batch the weight of its class.

    Args:
        weights: ``{class: weight}`` (1 for missing classes), a sequence with one weight for each class, or ``"balanced"``:
            ``samples / (classes * samples of the class)``, as in ``sklearn.utils.class_weight.compute_class_weight``.
        loader: The training data, whose classes ``"balanced"`` counts.
        unpack: Splits a batch into inputs, targets and weights.
        ignore_index: The label that the loss ignores; it is no class.

    Raises:
        ValueError: If ``weights`` are not valid, or the targets are not classes.
    """

    def __init__(
        self,
        weights: Any,
        loader: Any,
        unpack: Callable[[Any], Batch] = unpack,
        ignore_index: int | None = IGNORE_INDEX,
    ) -> None:
        self.unpack = unpack
        is_custom = not is_internal(unpack) or changes_samples(loader)
        targets: Any = None if is_custom else all_targets(loader)
        if isinstance(targets, (Mapping, list, tuple)) or _has_structure(weights):
            raise ValueError(
                "class_weight needs one tensor of class numbers as targets, which data with several targets does not have. Pass "
                "sample_weight instead, with one tensor of weights per output."
            )
        # If the targets are unknown before training, the first batch shows their layout.
        self.is_known = isinstance(targets, Tensor)
        self.has_columns: bool | None = None
        if isinstance(targets, Tensor):
            _check_classes(targets)
            self.has_columns = _has_class_columns(targets)
        self.table = (
            _count_balanced(weights, loader, ignore_index, unpack if is_custom else None)
            if isinstance(weights, str)
            else _as_table(weights, targets)
        )
        check_weights("class_weight", self.table)

    def __call__(self, batch: Any) -> Any:
        """Return ``batch`` with weights."""
        y = self.unpack(batch).y
        y = from_numpy(y) if isinstance(y, np.ndarray) else y
        if not isinstance(y, Tensor):
            raise ValueError(
                f"class_weight needs one tensor of class numbers as target, received {describe(y)}. Pass sample_weight, one "
                "weight for each sample, instead."
            )
        if not self.is_known:
            self._check_layout(y)
        classes = _get_classes(y, bool(self.has_columns))
        table = self.table.to(y.device)
        weight = table[classes.clamp(0, len(table) - 1)]
        return add_weight(batch, torch.where((classes >= 0) & (classes < len(table)), weight, 1.0))

    def _check_layout(self, y: Tensor) -> None:
        """Raise a ``ValueError`` if ``y``, the targets of a batch, are not classes in the layout of the first batch.

        On an accelerator, which a check would wait for, only the first batch is checked.
        """
        if self.has_columns is None:
            _check_classes(y)
            self.has_columns = _has_class_columns(y)
        elif self.has_columns and y.is_cpu:
            _check_classes(y)
            if not _has_class_columns(y):
                raise ValueError(
                    "class_weight cannot distinguish class numbers from one-hot rows: all rows of the first batch of targets "
                    f"consist of zeros and a single 1, but not those of a later one, {describe(y)}. Pass sample_weight, or the "
                    "weights of the classes in the loss: nn.CrossEntropyLoss(weight=...)."
                )


def _as_table(weights: Any, targets: Any) -> Tensor:
    """Return a tensor with the weight of each class."""
    # A pandas series has the classes as its index.
    weights = weights.to_dict() if hasattr(weights, "to_dict") else weights
    if not isinstance(weights, Mapping):
        table = torch.as_tensor(weights, dtype=torch.float32)
        if table.ndim != 1 or not len(table):
            raise ValueError(
                f"class_weight must have one weight for each class, received {weights!r}. {CLASS_WEIGHT_EXAMPLE}"
            )
        return table
    if any(not _is_class_number(key) for key in weights):
        raise ValueError(
            f"class_weight must have class numbers as keys, received {list(weights)!r}. {CLASS_WEIGHT_EXAMPLE}"
        )
    weights = {int(key): weight for key, weight in weights.items()}
    _warn_if_class_is_missing(weights, targets)
    table = torch.ones(max(weights, default=0) + 1)
    for key, weight in weights.items():
        table[int(key)] = float(weight)
    return table


def _has_structure(weights: Any) -> bool:
    """Return whether there are weights for each of several outputs."""
    values = weights.values() if isinstance(weights, Mapping) else weights if isinstance(weights, (list, tuple)) else ()
    return any(isinstance(value, (Mapping, list, tuple, str)) for value in values)


def _is_class_number(key: Any) -> bool:
    """Return whether ``key`` is a whole number, also as a float or as text, as in JSON."""
    if isinstance(key, str):
        return key.isdecimal()
    is_number = isinstance(key, (int, float, np.number)) and not isinstance(key, bool)
    return bool(is_number and key >= 0 and float(key).is_integer())


def _check_classes(y: Tensor) -> None:
    """Raise a ``ValueError`` if the targets ``y`` are not classes."""
    if not y.numel() or (not y.is_floating_point() and not _has_class_columns(y)):
        return
    if _has_class_columns(y):
        is_invalid = ((y < 0) | ((y.float().sum(1, keepdim=True) - 1).abs() > 1e-3)).flatten(1).any(1)
        values = "several labels, or values, for a sample"
    else:
        # The comparison is also True for NaN.
        is_invalid = (y != y.round()).flatten()
        values = f"numbers such as {float(y.flatten()[is_invalid.int().argmax()]):g}"
    if bool(is_invalid.any()):
        raise ValueError(
            f"class_weight needs one class for each sample, but the targets, {describe(y)}, contain {values}. Pass "
            "sample_weight, one weight for each sample, instead."
        )


def _warn_if_class_is_missing(weights: Mapping[int, float], targets: Any) -> None:
    """Warn if a class has a weight but no target, provided that all targets are known."""
    if not isinstance(targets, Tensor) or not targets.numel() or targets.ndim > 1:
        return
    classes = _get_classes(targets, has_columns=False)
    missing = sorted(set(weights) - set(classes.tolist()))
    if missing:
        warn(
            f"The class_weight of class {missing[0]} has no effect: the targets have classes from {int(classes.min())} to "
            f"{int(classes.max())}. Count classes from 0."
        )


def _has_class_columns(y: Tensor) -> bool:
    """Return whether ``y`` has a column for each class, as one-hot targets have."""
    if y.ndim < 2 or y.shape[1] < 2:
        return False
    # Integers [N, tokens] are classes, unless each row is 0 but for a single 1.
    return y.is_floating_point() or (y.ndim == 2 and bool((((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)).all()))


def _get_classes(y: Tensor, has_columns: bool) -> Tensor:
    """Return ``y`` as class numbers; ``has_columns`` is what ``_has_class_columns`` returned for all targets."""
    if has_columns:
        return y.long().argmax(1) if y.dtype == torch.bool else y.argmax(1)
    return (y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y).long()


def _flat_classes(targets: Tensor) -> Tensor:
    """Return the class numbers of all ``targets`` in one dimension."""
    return _get_classes(targets, _has_class_columns(targets)).flatten()


def _count_balanced(
    name: str, loader: Any, ignore_index: int | None, unpack: Callable[[Any], Batch] | None = None
) -> Tensor:
    """Return the balanced weight of each class, of the targets that ``unpack`` finds in the batches if it is not None."""
    if name != "balanced":
        raise ValueError(f"Unknown class_weight {name!r}. Pass 'balanced'. {CLASS_WEIGHT_EXAMPLE}")
    dataset = _remove_weights(getattr(loader, "dataset", None))
    if dataset is None or isinstance(dataset, IterableDataset):
        raise ValueError(
            "class_weight='balanced' must count the classes before training, which needs arrays, a Dataset or a DataLoader "
            "of one. Pass the weights as a dict: {0: 1.0, 1: 2.0}."
        )
    classes = _load_classes(dataset) if unpack is None else _load_classes_of_batches(loader, unpack)
    classes = classes[(classes != IGNORE_INDEX) & (classes != (IGNORE_INDEX if ignore_index is None else ignore_index))]
    if classes.numel() and int(classes.min()) < 0:
        raise ValueError(
            f"class_weight='balanced' needs classes from 0, but the targets start at {int(classes.min())}. Renumber them, or "
            "pass sample_weight."
        )
    counts = torch.bincount(classes)
    present = (counts > 0).sum()
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 1.0)


def _remove_weights(dataset: Any) -> Any:
    """Return ``dataset`` without the wrapper that adds sample weights, which also ``validation_split`` may contain."""
    if isinstance(dataset, WeightedDataset):
        return dataset.dataset
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, WeightedDataset):
        return Subset(dataset.dataset.dataset, dataset.indices)
    return dataset


def _load_classes_of_batches(loader: DataLoader[Any], unpack: Callable[[Any], Batch]) -> Tensor:
    """Return the classes in the batches of ``loader``, which a custom function makes."""
    targets = load_targets(loader, unpack)
    if targets is None:
        raise ValueError(
            "class_weight='balanced' needs one tensor of class numbers as target of each batch, but the collate_fn of the "
            "DataLoader, or unpack, gives something else. Pass the weights as a dict: {0: 1.0, 1: 2.0}."
        )
    for y in targets:
        _check_classes(y)
    has_columns = all(map(_has_class_columns, targets))
    return torch.cat([_get_classes(y, has_columns).flatten() for y in targets])


def _load_classes(dataset: Any) -> Tensor:
    """Return the class of each sample, from an attribute of ``dataset`` if a few samples agree with it."""
    known = targets_of(dataset, trusted_only=True)
    if known is not None:
        return _flat_classes(known)
    size = len(dataset)
    targets, probes = targets_of(dataset), list(range(0, size, -(-size // PROBES)))
    if targets is None or not torch.equal(_flat_classes(targets[probes]), _load_classes_at(dataset, probes)):
        return _load_classes_at(dataset, range(size))
    _check_classes(targets)
    return _flat_classes(targets)


def _load_classes_at(dataset: Any, indices: Iterable[int]) -> Tensor:
    with preserve_rng_state(), preserve_generators(dataset):
        targets = [unpack(dataset[index]).y for index in indices]
    if any(isinstance(target, str) for target in targets):
        raise ValueError(
            "class_weight='balanced' needs class numbers, but the targets of the dataset are text. Pass the weights by name: "
            "class_weight={'cat': 1.0, 'dog': 2.0}."
        )
    rows = [torch.as_tensor(target).reshape(1, -1) for target in targets]
    classes = torch.cat(rows).squeeze(1)
    _check_classes(classes)
    return _flat_classes(classes)
