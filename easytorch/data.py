"""Whatever the user passed, as batches: recognizing it, splitting it, weighing it, feeding it to the loop."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from easytorch.batch import LABEL_KEYS, WEIGHT_KEY, Signature, from_numpy, unpack
from easytorch.feed import Feed, length, signal_proof
from easytorch.notice import warn
from easytorch.state import random_states_kept
from easytorch.tree import describe, leaves, map_leaves

__all__ = ["ArrayDataset", "as_loader", "seeded", "split", "targets_of"]

ACCEPTED = (
    "a DataLoader, a Dataset, tensors, NumPy arrays or pandas frames (x, y), dicts or tuples of these, a generator, a "
    "function that returns one, or a list of batches"
)


class ArrayDataset(Dataset[Any]):
    """Rows of tensors in any nesting, fetched a whole batch at a time.

    Args:
        tree: Tensors, arrays or frames of equal length, in dicts, lists and tuples.

    Raises:
        ValueError: If the lengths differ.
        TypeError: If something in it is not numbers.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = as_tensors(tree)
        sizes = {len(leaf) for leaf in leaves(self.tree) if isinstance(leaf, Tensor)}
        if len(sizes) > 1:
            raise ValueError(
                f"The parts of the data have different lengths, {' and '.join(map(str, sorted(sizes)))}: "
                f"{describe(self.tree)}. Give every input, target and weight one row for each sample."
            )
        self.size = sizes.pop() if sizes else 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return map_leaves(lambda leaf: None if leaf is None else leaf[index], self.tree)

    def __getitems__(self, indices: Sequence[int]) -> Any:  # torch fetches a batch by it, where it exists
        rows = torch.as_tensor(indices)
        return map_leaves(lambda leaf: None if leaf is None else leaf[rows.to(leaf.device)], self.tree)


def as_batch(rows: Any) -> Any:
    """Return ``rows``: what an ``ArrayDataset`` fetches is a batch already."""
    return rows


def as_tensors(tree: Any) -> Any:
    """Turn every array, frame and list of numbers in ``tree`` into a tensor."""
    if isinstance(tree, list) and tree and all(isinstance(leaf, (int, float, str)) for leaf in leaves(tree)):
        return as_tensor(tree)
    if isinstance(tree, Mapping):
        return {key: as_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(as_tensors(value) for value in tree)
    return map_leaves(as_tensor, tree)


def as_tensor(leaf: Any) -> Any:
    """Turn an array, frame, series or list of numbers into a tensor; a frame's columns become floats."""
    if leaf is None or isinstance(leaf, Tensor):
        return _rows(leaf)
    if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy"):
        return from_numpy(_frame_values(leaf))
    if hasattr(leaf, "to_numpy"):
        return _rows(from_numpy(leaf.to_numpy()))
    if isinstance(leaf, (np.ndarray, Sequence, float, int)) and not isinstance(leaf, str):
        return _rows(from_numpy(np.asarray(leaf)))
    raise TypeError(
        f"Expected numbers, received {leaf!r} of type {type(leaf).__name__}. Pass tensors, arrays or frames."
    )


def _rows(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.ndim == 0:
        raise ValueError(f"Expected one row for each sample, received the single number {leaf.item()}.")
    return leaf


def _frame_values(frame: Any) -> np.ndarray[Any, Any]:
    text = [
        str(name)
        for name, dtype in zip(frame.columns, frame.dtypes, strict=True)
        if getattr(dtype, "kind", "O") not in "biuf"
    ]
    if text:
        raise TypeError(
            f"The columns {', '.join(map(repr, text))} of the frame are not numbers. Drop them, or encode them, for example "
            "by pandas.get_dummies(frame)."
        )
    return np.asarray(frame.to_numpy(dtype="float64", na_value=np.nan))


def as_loader(
    x: Any, y: Any = None, sample_weight: Any = None, *, batch_size: int | None = None, shuffle: bool | None = None
) -> Iterable[Any]:
    """Return the batches of whatever the user passed: a ``DataLoader`` if its samples can be indexed, else an iterable.

    Args:
        x: See ``Model.fit``.
        y: Targets, where ``x`` does not bring them.
        sample_weight: A weight for each sample.
        batch_size: Rows in a batch, 32 if None; not for what comes in batches already.
        shuffle: Whether to draw the samples in random order; not for what has an order already.

    Raises:
        TypeError: If the data is of a kind that cannot be trained on.
        ValueError: If it is empty, its parts do not fit, or an argument has no meaning for it.
    """
    if isinstance(x, tuple) and y is None and len(x) in (2, 3) and not hasattr(x, "_fields"):
        x, y, *rest = x
        sample_weight = rest[0] if rest and sample_weight is None else sample_weight
    if hasattr(x, "with_format"):  # Hugging Face datasets give lists of Python numbers unless asked for tensors
        x = x.with_format("torch")
    size = 32 if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, received {batch_size!r}.")
    if _is_arrays(x, y):
        tree = x if y is None and sample_weight is None else (x, y) if sample_weight is None else (x, y, sample_weight)
        dataset = _not_empty(ArrayDataset(tree))
        return DataLoader(dataset, size, shuffle=bool(shuffle), collate_fn=as_batch, generator=_quiet(shuffle))
    _refuse(x, y=y)
    if isinstance(x, IterableDataset):
        _refuse(x, sample_weight=sample_weight)
        return DataLoader(x, size)
    if not isinstance(x, DataLoader) and _is_map_style(x):
        x = DataLoader(_not_empty(x), size, shuffle=bool(shuffle), generator=_quiet(shuffle))
    else:
        _refuse(x, batch_size=batch_size, shuffle=shuffle)
    if isinstance(x, DataLoader):
        return x if sample_weight is None else _with_sample_weight(x, sample_weight)
    _refuse(x, sample_weight=sample_weight)
    if isinstance(x, (Mapping, str, bytes)) or not (callable(x) or isinstance(x, Iterable)):
        raise TypeError(f"Cannot train on {type(x).__name__}: {str(x)[:80]!r}. Pass {ACCEPTED}.")
    if isinstance(x, Sequence) and not len(x):
        raise ValueError("The data is empty: a list without batches.")
    return _Replayed(x) if callable(x) and not isinstance(x, Iterable) else x


def _quiet(shuffle: bool | None) -> torch.Generator | None:
    """A loader draws a number whenever it begins; one without an order to draw need not change anybody else's numbers."""
    return None if shuffle else torch.Generator()


class _Replayed(Iterable[Any]):
    """A generator function, called for every pass."""

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function())


def _is_arrays(x: Any, y: Any) -> bool:
    if isinstance(x, Mapping):
        return all(_is_array(leaf) for leaf in leaves(x))
    if isinstance(x, (list, tuple)):  # without targets a list holds batches
        return y is not None or (isinstance(x, tuple) and len(x) > 0 and all(map(_is_array, leaves(x))))
    return _is_array(x)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, np.ndarray)) or (hasattr(leaf, "to_numpy") and hasattr(leaf, "__len__"))


def _is_indexed(x: Any, y: Any = None) -> bool:
    """Whether ``x`` is single samples that can be drawn in any order, not batches in an order of their own."""
    if isinstance(x, (DataLoader, IterableDataset)):
        return False
    return isinstance(x, tuple) or _is_arrays(x, y) or _is_map_style(x)


def _is_map_style(x: Any) -> bool:
    if isinstance(x, Dataset):
        return True
    return hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, (list, tuple, Mapping, str, bytes))


def _not_empty(dataset: Any) -> Any:
    if not len(dataset):
        raise ValueError(f"The data is empty: {type(dataset).__name__} of length 0. Check how it was read or filtered.")
    return dataset


def _refuse(source: Any, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            cure = {
                "y": "It brings the targets itself, as (x, y)",
                "batch_size": "It comes in batches already",
                "shuffle": "It has an order already",
                "sample_weight": "Its samples cannot be counted off: let it yield (x, y, sample_weight)",
            }[name]
            raise ValueError(f"{name} cannot be given with a {type(source).__name__}. {cure}: leave {name} out.")


def seeded(dataset: Any, seed: int = 0) -> Dataset[Any]:
    """Return ``dataset`` with random numbers that belong to its samples, not to the moment.

    Augmentation inside a loader's workers draws from generators that nothing can restore. Wrapped so, a sample draws the
    same numbers whoever loads it, whenever: from ``seed``, the epoch and its index. So a run resumes exactly in the middle
    of an epoch, with any number of workers.

    Args:
        dataset: Any map-style dataset.
        seed: Another seed draws other numbers.
    """
    return _Seeded(dataset, seed)


class _Seeded(Dataset[Any]):
    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.epoch = torch.zeros((), dtype=torch.int64)
        self.epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers see it change

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            digest = hashlib.sha256(repr((self.seed, int(self.epoch), index)).encode()).digest()
            random.seed(digest)
            np.random.seed(int.from_bytes(digest[:4], "little"))
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            return self.dataset[index]
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])

    def __getattr__(self, name: str) -> Any:  # targets, classes, ...
        if name in ("dataset", "__getitems__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def draws_nothing(dataset: Any) -> bool:
    """Whether loading the same sample of ``dataset`` twice surely gives the same values."""
    if isinstance(dataset, ConcatDataset):
        return all(map(draws_nothing, dataset.datasets))
    if isinstance(dataset, (Subset, _Weighted)):
        return draws_nothing(dataset.dataset)
    return isinstance(dataset, (ArrayDataset, TensorDataset, _Seeded))


def first_batch(loader: Any) -> Any:
    """Return the first batch of data that can be read again, without a trace in any random state; else None."""
    if isinstance(loader, (Sequence, _Replayed)):
        with random_states_kept():
            return next(iter(loader), None)
    if not isinstance(loader, DataLoader) or loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return None
    with random_states_kept():
        dataset, indices = loader.dataset, list(range(min(loader.batch_size, len(loader.dataset))))  # type: ignore[arg-type]
        whole = getattr(dataset, "__getitems__", None)
        return loader.collate_fn(whole(indices) if whole else [dataset[i] for i in indices])


# Splits


def split(data: Any, y: Any = None, fraction: float = 0.2, *, seed: int = 0, stratify: bool = True) -> tuple[Any, Any]:
    """Split data into a larger and a smaller part, the same for the same ``seed``.

    Args:
        data: A ``Dataset``; a ``DataLoader`` with a plain or shuffled order; or arrays, with ``y``.
        y: The targets of arrays.
        fraction: The share of the second part, between 0 and 1.
        seed: Of the draw; no other random number generator is touched.
        stratify: Give both parts the same share of each class, where targets are classes and can be read without
            loading the samples (arrays, a ``TensorDataset``, an attribute ``targets`` or ``labels``).

    Returns:
        Two datasets; of a ``DataLoader`` two loaders like it, the second in order; of arrays two ``ArrayDataset``.

    Raises:
        ValueError: If a part would be empty, or the data has no length or an order of its own.
    """
    if isinstance(data, DataLoader):
        return _split_loader(data, fraction, seed, stratify)
    if not _is_map_style(data) or _is_array(data) or y is not None:
        data = ArrayDataset(data if y is None else (data, y))
    if isinstance(data, IterableDataset):
        raise ValueError("An IterableDataset has no length, so it cannot be split. Pass validation_data instead.")
    first, second = split_indices(len(data), fraction, seed, targets_of(data) if stratify else None)
    return Subset(data, first), Subset(data, second)


def split_indices(
    size: int, fraction: float, seed: int = 0, targets: Tensor | None = None
) -> tuple[list[int], list[int]]:
    """Return the row numbers of the two parts; see ``split``."""
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ValueError(f"A split needs a fraction between 0 and 1, received {fraction!r}.")
    count = round(size * fraction)
    if not 0 < count < size:
        raise ValueError(
            f"A split of {size} samples by {fraction} leaves one part empty. Pass more data or another fraction."
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
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


def _split_loader(loader: DataLoader[Any], fraction: float, seed: int, stratify: bool) -> tuple[Any, Any]:
    sampler = loader.sampler
    random = isinstance(sampler, RandomSampler) and not sampler.replacement
    if (
        loader.batch_size is None
        or isinstance(loader.dataset, IterableDataset)
        or not (random or type(sampler) is SequentialSampler)
    ):
        raise ValueError(
            "validation_split cannot split this DataLoader: it has a sampler, a batch sampler or an iterable dataset of its "
            "own, which decides which samples are drawn. Split the dataset with easytorch.data.split and pass validation_data."
        )
    first, second = split(loader.dataset, fraction=fraction, seed=seed, stratify=stratify)
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
        DataLoader(second, generator=_quiet(False), **settings),
    )


def all_targets(loader: Any) -> Any:
    """Return all targets behind ``loader``, of several outputs in their structure; None where they are not at hand."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, ArrayDataset):
        return unpack(dataset.tree).y
    return targets_of(dataset)


def targets_of(dataset: Any) -> Tensor | None:
    """Return the targets of ``dataset`` where they can be read without loading its samples, else None."""
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [targets_of(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])
    if isinstance(dataset, ArrayDataset):
        found = unpack(dataset.tree).y
    elif isinstance(dataset, TensorDataset):
        found = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    elif hasattr(dataset, "with_format"):
        column = next((key for key in LABEL_KEYS if key in dataset.column_names), None)
        found = dataset.with_format("numpy")[column][:] if column else None
    else:
        found = next((getattr(dataset, key) for key in ("targets", "labels") if hasattr(dataset, key)), None)
    if isinstance(found, Tensor):
        return found.cpu()
    try:
        return None if found is None or isinstance(found, Mapping) else from_numpy(np.asarray(found))
    except (TypeError, ValueError):  # labels that are text or ragged
        return None


# Weights


def _with_sample_weight(loader: DataLoader[Any], sample_weight: Any) -> DataLoader[Any]:
    weights = as_tensor(sample_weight)
    if isinstance(loader.dataset, IterableDataset):
        _refuse(loader, sample_weight=weights)
    if len(weights) != len(loader.dataset):  # type: ignore[arg-type]
        raise ValueError(
            f"There are {len(weights)} sample weights for {len(loader.dataset)} samples. Pass one for each."  # type: ignore[arg-type]
        )
    twin = copy.copy(loader)
    # The twin draws the same samples in the same order: only what is fetched changes, which DataLoader guards.
    vars(twin).update(
        dataset=_Weighted(loader.dataset, weights),
        collate_fn=_WeightedCollate(
            loader.collate_fn, loader.batch_size is not None or loader.batch_sampler is not None
        ),
        _iterator=None,
    )
    return twin


class _Weighted(Dataset[Any]):
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
    if isinstance(dataset, _Weighted):
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


# What fit and evaluate ask for


def fit_data(
    x: Any,
    y: Any,
    batch_size: int | None,
    shuffle: bool | None,
    sample_weight: Any,
    class_weight: Any,
    validation_data: Any,
    validation_split: float,
    window: int,
    steps: int | None,
    validation_steps: int | None,
    epochs: int,
) -> tuple[Feed, Any]:
    """Return the feed of the training data, and the batches of the validation data or None; see ``Model.fit``."""
    if shuffle is None and _is_indexed(x, y):
        shuffle = True
    loader = as_loader(x, y, sample_weight, batch_size=batch_size, shuffle=shuffle)
    validation = None
    if validation_data is not None:
        own_size = batch_size if _is_indexed(validation_data) or isinstance(validation_data, IterableDataset) else None
        validation = as_loader(validation_data, batch_size=own_size)
        if isinstance(validation, Iterator) and epochs > 1 and validation_steps is None:
            raise ValueError(
                "validation_data is a generator, which can be read only once, but it is needed after every epoch. Pass the "
                "function that makes it (not its result), a list of batches or a DataLoader."
            )
    elif validation_split:
        if not isinstance(loader, DataLoader):
            raise ValueError("validation_split needs data with a length and an index. Pass validation_data instead.")
        loader, validation = _split_loader(loader, validation_split, seed=0, stratify=True)
    if validation_steps is not None and validation_steps < 1:
        raise ValueError(f"validation_steps must be at least 1, received {validation_steps!r}.")
    if validation is not None and length(validation) == 0:
        raise ValueError(
            "The validation data is empty: there is not one batch. With drop_last=True, is it smaller than one?"
        )
    weigh = None if class_weight is None else ClassWeight(class_weight, loader)
    return Feed(loader, window, steps, weigh), signal_proof(validation)


def validated_epochs(frequency: Any) -> Callable[[int], bool]:
    """Return whether an epoch, counted from 0, is followed by a validation.

    Args:
        frequency: Every so many epochs, or a collection of epochs counted from 1.
    """
    if isinstance(frequency, int) and not isinstance(frequency, bool) and frequency >= 1:
        return lambda epoch: (epoch + 1) % frequency == 0
    if isinstance(frequency, (list, tuple, set, frozenset, range)):
        return lambda epoch: epoch + 1 in frequency
    raise ValueError(
        f"validation_freq must be a whole number of at least 1, or a list of epochs; received {frequency!r}."
    )


def one_batch(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """Return all of ``x``, ``y`` and ``sample_weight`` as one batch; ``x`` may be a batch already."""
    if y is None and sample_weight is None:
        return as_tensors(x)
    return ArrayDataset((x, y) if sample_weight is None else (x, y, sample_weight)).tree


def inputs(x: Any, signature: Signature) -> Any:
    """Return ``x`` for ``predict``: as many arrays as the module takes are its inputs, not inputs and targets."""
    several = isinstance(x, tuple) and 1 < len(x) <= signature.positional and signature.positional != float("inf")
    return (x,) if several and all(map(_is_array, leaves(x))) else x


def in_order(loader: Any) -> Any:
    """Return ``loader``, with a warning if it draws its samples in random order: outputs would not match the samples."""
    if isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler):
        warn(
            "This DataLoader shuffles, so the outputs come in another order than its dataset's samples. Pass a DataLoader "
            "with shuffle=False, or the dataset itself."
        )
    return loader
