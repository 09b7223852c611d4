"""Conversion of the user's data to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from easytorch._utils.integers import optional_positive_int
from easytorch._utils.pytree import describe, map_leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state, private_generator
from easytorch.data.arrays import (
    ArrayDataset,
    BatchedArrayDataset,
    as_batch,
    as_tensors,
    is_array,
    is_arrays,
    is_map_style,
    stack_samples,
    transforms,
)
from easytorch.data.batch import LABEL_KEYS, WEIGHT_KEY, Batch, as_labels, length, unpack
from easytorch.data.batch import batch_size as count_samples
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.data.in_memory import InMemory
from easytorch.data.sample_weights import ClassWeight, WeightedDataset, check_weights, with_sample_weight
from easytorch.data.seeded import SeededDataset
from easytorch.data.splits import draws_all_samples, split_loader
from easytorch.data.workers import shield_workers
from easytorch.distributed.process_group import SingleProcess

ACCEPTED = (
    "a DataLoader, a Dataset, tensors, NumPy arrays or pandas frames (x, y), dicts or tuples of these, a generator, a "
    "function that returns one, or a list of batches"
)


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
    x, y, sample_weight = _taken_apart(x, y, sample_weight)
    size = _checked_size(batch_size)
    _check_shuffle(x, shuffle)
    if is_arrays(x, y):
        dataset = _not_empty(_rows(x, y, sample_weight))
        return DataLoader(
            dataset, size, shuffle=bool(shuffle), collate_fn=as_batch, generator=private_generator(shuffle)
        )
    refuse(x, y=y)
    if isinstance(x, IterableDataset):
        refuse(x, sample_weight=sample_weight)
        return DataLoader(x, size)
    if not isinstance(x, DataLoader) and is_map_style(x):
        x = DataLoader(_not_empty(x), size, shuffle=bool(shuffle), generator=private_generator(shuffle))
    else:
        refuse(x, batch_size=batch_size, shuffle=shuffle)
    if not isinstance(x, DataLoader) or isinstance(x.dataset, IterableDataset):
        refuse(x, sample_weight=sample_weight)
    if sample_weight is not None:
        return with_sample_weight(x, sample_weight)
    return x if isinstance(x, DataLoader) else _batches(x)


def _taken_apart(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Return inputs, targets and weights, which may have come in one tuple."""
    if isinstance(x, tuple) and y is None and len(x) in (2, 3) and not hasattr(x, "_fields"):
        x, y, *rest = x
        sample_weight = rest[0] if rest and sample_weight is None else sample_weight
    if x is None or isinstance(x, type):
        raise TypeError(f"Cannot train on {'NoneType' if x is None else f'the class {x.__name__}'}. Pass {ACCEPTED}.")
    sparse = next((part for part in (x, y) if hasattr(part, "toarray") and hasattr(part, "nnz")), None)
    if sparse is not None:
        raise TypeError(
            f"Cannot train on a sparse {type(sparse).__name__}. Pass a dense array, {'x' if sparse is x else 'y'}.toarray()."
        )
    if hasattr(x, "with_format") and not transforms(x):  # Hugging Face gives lists of numbers unless asked for tensors
        x = x.with_format("torch")
    return x, y, sample_weight


def _checked_size(batch_size: int | None) -> int:
    size = 32 if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, received {batch_size!r}.")
    return int(size)  # NumPy's, too


def _check_shuffle(x: Any, shuffle: Any) -> None:
    if shuffle is not None and not isinstance(shuffle, (bool, np.bool_)):
        raise ValueError(f"shuffle must be True or False, received {shuffle!r}.")
    if shuffle and isinstance(x, IterableDataset):
        raise ValueError(
            f"shuffle=True has no meaning for {type(x).__name__}, an IterableDataset, which decides the order itself. Shuffle "
            "inside it, for example in a buffer of samples, or pass a Dataset with an index."
        )


def _rows(x: Any, y: Any, sample_weight: Any) -> ArrayDataset:
    """Return arrays, in any nesting, as the rows of one dataset."""
    x, y = stack_samples(x, y)
    if y is None and isinstance(x, Mapping):
        x = {key: map_leaves(as_labels, part) if key in LABEL_KEYS else part for key, part in x.items()}
    y = map_leaves(as_labels, y)
    dataset = BatchedArrayDataset((x, y, sample_weight) if sample_weight is not None else x if y is None else (x, y))
    check_weights(WEIGHT_KEY, None if len(dataset) == 0 else _weights_in(dataset.tree))
    return dataset


def _weights_in(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(WEIGHT_KEY)
    return tree[2] if isinstance(tree, tuple) and len(tree) == 3 else None


def _batches(x: Any) -> Iterable[Any]:
    """Return what comes in batches already, as something that can be read once for every pass if that is possible."""
    if isinstance(x, (Mapping, str, bytes)) or not (callable(x) or isinstance(x, Iterable)):
        raise TypeError(f"Cannot train on {type(x).__name__}: {str(x)[:80]!r}. Pass {ACCEPTED}.")
    if isinstance(x, Sequence):
        _check_batches(x)
    return Replayed(x) if callable(x) and not isinstance(x, Iterable) else x


def _check_batches(batches: Sequence[Any]) -> None:
    """Raise a ``ValueError`` if a list is empty, or holds something else than batches."""
    if not len(batches):
        raise ValueError("The data is empty: a list without batches.")
    first = batches[0]
    if isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], (int, float, np.generic, Tensor)):
        x, y = first
        if not np.ndim(y) and (not isinstance(y, Tensor) or np.ndim(x) < 2):
            raise ValueError(
                f"A list is taken as a list of batches, but this one holds samples: its first is {describe(first)}. Pass "
                "DataLoader(samples, batch_size=32, shuffle=True)."
            )
    parts = all(map(is_array, batches)) and {np.shape(part)[:1] for part in batches}
    if len(batches) == 2 and parts and len(parts) == 1 and np.ndim(batches[0]) != np.ndim(batches[1]):
        raise ValueError(
            f"A list is taken as a list of batches, and [{describe(batches[0])}, {describe(batches[1])}] looks like inputs and "
            "targets. Pass them as a tuple, (x, y)."
        )


class Replayed(Iterable[Any]):
    """A generator function, called for every pass."""

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function())


def is_indexed(x: Any, y: Any = None) -> bool:
    """Whether ``x`` is single samples that can be drawn in any order, not batches in an order of their own."""
    if isinstance(x, (DataLoader, IterableDataset)):
        return False
    return isinstance(x, tuple) or is_arrays(x, y) or is_map_style(x)


def _not_empty(dataset: Any) -> Any:
    if length(dataset) is None:
        raise TypeError(f"{type(dataset).__name__} has no length. Give it __len__(), the number of its samples.")
    if not len(dataset):
        raise ValueError(f"The data is empty: {type(dataset).__name__} of length 0. Check how it was read or filtered.")
    return dataset


def refuse(source: Any, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            cure = {
                "y": "It brings the targets itself, as (x, y)",
                "batch_size": "It comes in batches already",
                "shuffle": "It has an order already",
                "sample_weight": "Its samples cannot be counted off: let it yield (x, y, sample_weight)",
            }[name]
            raise ValueError(f"{name} cannot be given with a {type(source).__name__}. {cure}: leave {name} out.")


def is_deterministic(dataset: Any) -> bool:
    """Whether loading the same sample of ``dataset`` twice surely gives the same values."""
    if isinstance(dataset, ConcatDataset):
        return all(map(is_deterministic, dataset.datasets))
    if isinstance(dataset, (Subset, WeightedDataset)):
        return is_deterministic(dataset.dataset)
    return isinstance(dataset, (ArrayDataset, InMemory, TensorDataset, SeededDataset))


def first_batch(loader: Any) -> Any:
    """Return the first batch of data that can be read again, without a trace in any random state; else None."""
    if isinstance(loader, (Sequence, Replayed)):
        with preserve_rng_state():
            return next(iter(loader), None)
    if not isinstance(loader, DataLoader) or loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return None
    with preserve_rng_state(), preserve_generators([loader.dataset, loader.collate_fn]):
        dataset: Any = loader.dataset
        if type(loader.sampler) is SubsetRandomSampler:
            indices = list(loader.sampler.indices[: loader.batch_size])
        elif draws_all_samples(loader):
            indices = list(range(min(loader.batch_size, len(dataset))))
        else:  # only the sampler knows what can be loaded
            return None
        whole = getattr(dataset, "__getitems__", None)
        return loader.collate_fn(whole(indices) if whole else [dataset[i] for i in indices])


def make_fit_data(
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
    group: SingleProcess,
    unpack: Callable[[Any], Batch] = unpack,
    sample_count: Callable[[Any], int] = count_samples,
) -> tuple[EpochIterator, Any]:
    """Return the feed of the training data, and the batches of the validation data or None; see ``Model.fit``."""
    if shuffle is None and is_indexed(x, y):
        shuffle = True
    loader = as_loader(x, y, sample_weight, batch_size=batch_size, shuffle=shuffle)
    steps, validation_steps = (
        optional_positive_int("steps_per_epoch", steps),
        optional_positive_int("validation_steps", validation_steps),
    )
    if validation_data is not None and validation_split:
        raise ValueError("validation_data and validation_split were both given. Pass one of them.")
    validation = None
    if validation_data is not None:
        validation = _validation(validation_data, batch_size, once=epochs == 1 or validation_steps is not None)
    elif validation_split:
        loader, validation = _split(loader, validation_split)
    weigh = None if class_weight is None else ClassWeight(class_weight, loader, unpack)
    unsure = isinstance(loader, DataLoader) and loader.num_workers > 0 and not is_deterministic(loader.dataset)
    train_data = EpochIterator(
        loader,
        window_size=window,
        steps=steps,
        weigh=weigh,
        unreproducible=unsure,
        group=group,
        validation_loader=validation,
        batch_size=sample_count,
        unpack=unpack,
    )
    return train_data, shield_workers(validation)


def _validation(data: Any, batch_size: int | None, once: bool) -> Iterable[Any]:
    """Return the batches of ``validation_data``, which are read ``once`` or more often."""
    if isinstance(data, (int, float, np.number)):
        raise ValueError(
            f"validation_data is data, received the number {data!r}. Did you mean validation_split={data!r}?"
        )
    own_size = batch_size if is_indexed(data) or isinstance(data, IterableDataset) else None
    try:
        validation = as_loader(data, batch_size=own_size)
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError  # a subclass may want other arguments
        raise kind(f"In validation_data: {error}") from error
    if isinstance(validation, Iterator) and not once:
        raise ValueError(
            "validation_data is a generator, which can be read only once, but it is needed after every epoch. Pass the "
            "function that makes it (not its result), a list of batches or a DataLoader."
        )
    if length(validation) == 0:
        raise ValueError(
            "The validation data is empty: there is not one batch. With drop_last=True, is it smaller than one?"
        )
    return validation


def _split(loader: Any, share: Any) -> tuple[Any, Any]:
    """Return the loaders of the training data and of the share of it to validate on."""
    is_number = isinstance(share, (int, float, np.number)) and not isinstance(share, bool)
    if not is_number or not 0 < share < 1:
        percent = is_number and 1 < share < 100
        cure = f"{share:g} % is {share / 100:g}." if percent else "0.2 is a fifth of the training data."
        raise ValueError(f"validation_split must be a share between 0 and 1, received {share!r}. {cure}")
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "validation_split needs data with a length and an index, which this has not. Pass validation_data instead."
        )
    return split_loader(loader, float(share), seed=0, stratify=True)


def validated_epochs(frequency: Any) -> Callable[[int], bool]:
    """Return whether an epoch, counted from 0, is followed by a validation.

    Args:
        frequency: Every so many epochs, or a collection of epochs counted from 1.
    """
    if isinstance(frequency, (int, np.integer)) and not isinstance(frequency, bool) and frequency >= 1:
        return lambda epoch: (epoch + 1) % frequency == 0
    if isinstance(frequency, (list, tuple, set, frozenset, range)):
        return lambda epoch: epoch + 1 in frequency
    raise ValueError(
        f"validation_freq must be a whole number of at least 1, or a list of epochs; received {frequency!r}."
    )


def one_batch(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """Return all of ``x``, ``y`` and ``sample_weight`` as one batch; ``x`` may be a batch already."""
    return as_tensors(x) if y is None and sample_weight is None else _rows(x, y, sample_weight).tree
