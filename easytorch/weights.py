"""Weights of samples and classes, for every kind of data: they travel as the third part of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from easytorch.arrays import as_tensor
from easytorch.batch import WEIGHT_KEY, unpack
from easytorch.notice import warn
from easytorch.splits import all_targets, targets_of
from easytorch.state import random_states_kept
from easytorch.tree import describe


def with_sample_weight(loader: DataLoader[Any], sample_weight: Any) -> DataLoader[Any]:
    """Return a loader of the same samples in the same order, each with its weight."""
    weights = as_tensor(sample_weight)
    dataset: Any = loader.dataset
    if len(weights) != len(dataset):
        raise ValueError(f"There are {len(weights)} sample weights for {len(dataset)} samples. Pass one for each.")
    twin = copy.copy(loader)
    # The twin draws the same samples in the same order: only what is fetched changes, which DataLoader guards.
    vars(twin).update(
        dataset=Weighted(dataset, weights),
        collate_fn=_WeightedCollate(
            loader.collate_fn, loader.batch_size is not None or loader.batch_sampler is not None
        ),
        _iterator=None,
    )
    return twin


class Weighted(Dataset[Any]):
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


class _WeightedCollate:
    def __init__(self, collate: Callable[[Any], Any], batched: bool) -> None:
        self.collate, self.batched = collate, batched

    def __call__(self, fetched: Any) -> Any:
        rows, weights = fetched
        return add_weight(self.collate(rows), weights)


def add_weight(batch: Any, weight: Tensor) -> Any:
    """Return ``batch`` with ``weight`` as its third part, multiplied with the weights that it has already."""
    if isinstance(batch, Mapping):
        return {**batch, WEIGHT_KEY: weight * batch[WEIGHT_KEY] if WEIGHT_KEY in batch else weight}
    x, y, own = unpack(batch)
    return (x, y, weight if own is None else own * weight)


class ClassWeight:
    """Gives each sample of a batch the weight of its class.

    Args:
        weights: ``{class: weight}`` (1 for classes that are missing), a sequence with one weight for each class, or
            ``"balanced"``: samples / (classes * samples of the class), as scikit-learn has it.
        loader: The training data, which ``"balanced"`` counts.
    """

    def __init__(self, weights: Any, loader: Any) -> None:
        if isinstance(weights, str):
            self.table = _balanced(weights, loader)
        elif isinstance(weights, Mapping):
            if any(not isinstance(key, (int, np.integer)) or key < 0 for key in weights):
                raise ValueError(
                    f"class_weight has class numbers as keys, received {list(weights)!r}. Pass {{0: 1.0, 1: 2.0}}."
                )
            _warn_of_missing(weights, loader)
            self.table = torch.ones(max(weights, default=0) + 1)
            for key, weight in weights.items():
                self.table[int(key)] = float(weight)
        else:
            self.table = torch.as_tensor(weights, dtype=torch.float32)

    def __call__(self, batch: Any) -> Any:
        """Return ``batch`` with weights."""
        y = unpack(batch).y
        y = torch.as_tensor(y) if isinstance(y, np.ndarray) else y
        if not isinstance(y, Tensor):
            raise ValueError(
                f"class_weight needs one target of class numbers, received {describe(y)}. Use sample_weight."
            )
        classes = _classes(y)
        table = self.table.to(y.device)
        weight = table[classes.clamp(0, len(table) - 1)]
        return add_weight(batch, torch.where((classes >= 0) & (classes < len(table)), weight, 1.0))


def _warn_of_missing(weights: Mapping[int, float], loader: Any) -> None:
    """Warn of the weight of a class that no target is, where all targets are at hand."""
    targets = all_targets(loader)
    if not isinstance(targets, Tensor) or not targets.numel() or targets.ndim > 1:
        return
    classes = _classes(targets)
    missing = sorted(set(weights) - set(classes.tolist()))
    if missing:
        warn(
            f"class_weight has a weight for class {missing[0]}, which no target is: they go from {int(classes.min())} to "
            f"{int(classes.max())}. Classes are counted from 0."
        )


def _classes(y: Tensor) -> Tensor:
    if y.ndim > 1 and y.is_floating_point() and y.shape[1] > 1:
        return y.argmax(1)
    return (y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y).long()


def _balanced(name: str, loader: Any) -> Tensor:
    if name != "balanced":
        raise ValueError(
            f"Unknown class_weight {name!r}. Pass 'balanced', a dict {{0: 1.0, 1: 2.0}} or one weight for each class."
        )
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Weighted):
        dataset = dataset.dataset
    if dataset is None or isinstance(dataset, IterableDataset):
        raise ValueError(
            "class_weight='balanced' must count the classes before training, which needs arrays, a Dataset or a DataLoader of "
            "one. Pass the weights as a dict."
        )
    targets = targets_of(dataset)
    if targets is None:  # every sample has to be loaded; the random states are put back
        with random_states_kept():
            targets = torch.cat(
                [torch.as_tensor(unpack(dataset[i]).y).reshape(1, -1) for i in range(len(dataset))]
            ).squeeze(1)
    counts = torch.bincount(_classes(targets).flatten())
    present = (counts > 0).sum()
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 1.0)
