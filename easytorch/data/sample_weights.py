"""Weights of samples and classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from easytorch._utils.pytree import describe, leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch._utils.warnings import warn
from easytorch.data.arrays import as_tensor
from easytorch.data.batch import WEIGHT_KEY, Batch, from_numpy, unpack
from easytorch.data.splits import all_targets, targets_of

IGNORED = -100  # which cross-entropy leaves out
PROBES = 8  # samples that are loaded, to see whether an attribute tells their classes


def with_sample_weight(loader: DataLoader[Any], sample_weight: Any) -> DataLoader[Any]:
    """Return a loader of the same samples in the same order, each with its weight."""
    weights = as_tensor(sample_weight)
    check_weights("sample_weight", weights)
    dataset: Any = loader.dataset
    if len(weights) != len(dataset):
        raise ValueError(f"There are {len(weights)} sample weights for {len(dataset)} samples. Pass one for each.")
    twin = copy.copy(loader)
    # The twin draws the same samples in the same order: only what is fetched changes, which DataLoader guards.
    vars(twin).update(
        dataset=WeightedDataset(dataset, weights),
        collate_fn=WeightedCollate(loader.collate_fn),
        _iterator=None,
    )
    return twin


def check_weights(name: str, weights: Any) -> None:
    """Raise a ``ValueError`` if one of ``weights``, tensors in any nesting, is negative or no number."""
    for part in leaves(weights):
        if isinstance(part, Tensor) and part.numel() and not bool((part >= 0).all()):  # False of NaN, too
            raise ValueError(
                f"{name} must be 0 or more, but goes down to {float(part.min()):g}. A negative weight would reward errors: "
                "pass 0 for what is not to count."
            )


class WeightedDataset(Dataset[Any]):
    """A dataset whose samples bring their weights."""

    def __init__(self, dataset: Any, weights: Tensor) -> None:
        self.dataset, self.weights = dataset, weights

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index], self.weights[index]

    def __getitems__(self, indices: list[int]) -> Any:
        whole = getattr(self.dataset, "__getitems__", None)
        rows = whole(indices) if whole else [self.dataset[index] for index in indices]
        return rows, self.weights[torch.as_tensor(indices)]


class WeightedCollate:
    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, fetched: Any) -> Any:
        rows, weights = fetched
        return add_weight(self.collate(rows), weights)


def add_weight(batch: Any, weight: Tensor) -> Any:
    """Return ``batch`` with ``weight`` as its third part, multiplied with the weights that it has already."""
    if isinstance(batch, Mapping):
        return {**batch, WEIGHT_KEY: _multiplied(batch[WEIGHT_KEY], weight) if WEIGHT_KEY in batch else weight}
    x, y, own = unpack(batch)
    return (x, y, weight if own is None else _multiplied(own, weight))


def _multiplied(own: Any, weight: Tensor) -> Any:
    """Return the product of two weights, each of which has one number for each sample, or for each value."""
    own = from_numpy(own) if isinstance(own, np.ndarray) else torch.as_tensor(own)
    if own.ndim < weight.ndim:
        own, weight = weight, own
    if weight.numel() == len(own):
        weight = weight.reshape(len(own), *[1] * (own.ndim - 1))
    return own * weight


class ClassWeight:
    """Gives each sample of a batch the weight of its class.

    Args:
        weights: ``{class: weight}`` (1 for classes that are missing), a sequence with one weight for each class, or
            ``"balanced"``: samples / (classes * samples of the class), as scikit-learn has it.
        loader: The training data, which ``"balanced"`` counts.
    """

    def __init__(self, weights: Any, loader: Any, unpack: Callable[[Any], Batch] = unpack) -> None:
        self.unpack = unpack
        targets = all_targets(loader)
        self._unchecked = not isinstance(targets, Tensor)
        if isinstance(targets, Tensor):
            _check_classes(targets)
        self.table = _balanced(weights, loader) if isinstance(weights, str) else _table(weights, targets)
        check_weights("class_weight", self.table)

    def __call__(self, batch: Any) -> Any:
        """Return ``batch`` with weights."""
        y = self.unpack(batch).y
        y = from_numpy(y) if isinstance(y, np.ndarray) else y
        if not isinstance(y, Tensor):
            raise ValueError(
                f"class_weight needs one target of class numbers, received {describe(y)}. Use sample_weight."
            )
        if self._unchecked:  # the first batch stands for all where the targets are not at hand: it is looked at once
            _check_classes(y)
            self._unchecked = False
        classes = _classes(y)
        table = self.table.to(y.device)
        weight = table[classes.clamp(0, len(table) - 1)]
        return add_weight(batch, torch.where((classes >= 0) & (classes < len(table)), weight, 1.0))


def _table(weights: Any, targets: Any) -> Tensor:
    """Return the weight of each class, by its number."""
    weights = weights.to_dict() if hasattr(weights, "to_dict") else weights  # a series, by its index
    if not isinstance(weights, Mapping):
        table = torch.as_tensor(weights, dtype=torch.float32)
        if table.ndim != 1 or not len(table):
            raise ValueError(
                f"class_weight has one weight for each class, received {weights!r}. Pass {{0: 1.0, 1: 2.0}} or [1.0, 2.0]."
            )
        return table
    if any(not isinstance(key, (int, np.integer)) or key < 0 for key in weights):
        raise ValueError(
            f"class_weight has class numbers as keys, received {list(weights)!r}. Pass {{0: 1.0, 1: 2.0}}."
        )
    _warn_of_missing(weights, targets)
    table = torch.ones(max(weights, default=0) + 1)
    for key, weight in weights.items():
        table[int(key)] = float(weight)
    return table


def _check_classes(y: Tensor) -> None:
    """Raise a ``ValueError`` if the targets ``y`` are no classes, which a class weight would silently make of them."""
    if not y.is_floating_point() or not y.numel():
        return
    if _has_columns(y):
        other = ((y < 0) | ((y.sum(1, keepdim=True) - 1).abs() > 1e-3)).flatten(1).any(1)
        what = "several labels, or values, for a sample"
    else:
        other = (y != y.round()).flatten()  # NaN is no class either
        what = f"numbers such as {float(y.flatten()[other][0]):g}" if bool(other.any()) else ""
    if bool(other.any()):
        raise ValueError(
            f"class_weight needs one class for each sample, but the targets, {describe(y)}, hold {what}. Pass "
            "sample_weight, one weight for each sample, instead."
        )


def _warn_of_missing(weights: Mapping[int, float], targets: Any) -> None:
    """Warn of the weight of a class that no target is, where all targets are at hand."""
    if not isinstance(targets, Tensor) or not targets.numel() or targets.ndim > 1:
        return
    classes = _classes(targets)
    missing = sorted(set(weights) - set(classes.tolist()))
    if missing:
        warn(
            f"class_weight has a weight for class {missing[0]}, which no target is: they go from {int(classes.min())} to "
            f"{int(classes.max())}. Classes are counted from 0."
        )


def _has_columns(y: Tensor) -> bool:
    """Whether ``y`` has a column for each class, as one-hot rows have."""
    return y.ndim > 1 and y.is_floating_point() and y.shape[1] > 1


def _classes(y: Tensor) -> Tensor:
    if _has_columns(y):
        return y.argmax(1)
    return (y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y).long()


def _balanced(name: str, loader: Any) -> Tensor:
    if name != "balanced":
        raise ValueError(
            f"Unknown class_weight {name!r}. Pass 'balanced', a dict {{0: 1.0, 1: 2.0}} or one weight for each class."
        )
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, WeightedDataset):
        dataset = dataset.dataset
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, WeightedDataset):  # of validation_split
        dataset = Subset(dataset.dataset.dataset, dataset.indices)
    if dataset is None or isinstance(dataset, IterableDataset):
        raise ValueError(
            "class_weight='balanced' must count the classes before training, which needs arrays, a Dataset or a DataLoader of "
            "one. Pass the weights as a dict."
        )
    targets = targets_of(dataset, trusted_only=True)
    classes = _loaded_classes(dataset) if targets is None else _classes(targets).flatten()
    classes = classes[classes != IGNORED]
    if classes.numel() and int(classes.min()) < 0:
        raise ValueError(
            f"class_weight='balanced' counts classes from 0, but the targets begin at {int(classes.min())}. Renumber them, or "
            "pass sample_weight."
        )
    counts = torch.bincount(classes)
    present = (counts > 0).sum()
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 1.0)


def _loaded_classes(dataset: Any) -> Tensor:
    """Return the classes that the samples bring, by an attribute of the dataset where a few samples agree with it."""

    def loaded(places: Iterable[int]) -> Tensor:
        with preserve_rng_state(), preserve_generators(dataset):
            targets = torch.cat([torch.as_tensor(unpack(dataset[i]).y).reshape(1, -1) for i in places]).squeeze(1)
        _check_classes(targets)
        return _classes(targets).flatten()

    told, places = targets_of(dataset), list(range(0, len(dataset), -(-len(dataset) // PROBES)))
    if told is None or not torch.equal(_classes(told[places]).flatten(), loaded(places)):
        return loaded(range(len(dataset)))
    _check_classes(told)
    return _classes(told).flatten()
