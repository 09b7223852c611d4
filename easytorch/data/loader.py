"""Conversion of user data to loaders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from easytorch._utils import torch_private
from easytorch._utils.forward_signature import LABEL_KEYS
from easytorch._utils.integers import optional_positive_int, positive_int
from easytorch._utils.pytree import describe, has_instance, map_leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state, private_generator
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.warnings import warn
from easytorch.data.arrays import (
    ArrayDataset,
    BatchedArrayDataset,
    as_batch,
    as_tensors,
    as_torch_samples,
    check_batches,
    check_finite,
    check_is_read,
    check_rows,
    column_names,
    copy_arrays,
    is_arrays,
    is_map_style,
    load_samples,
    match_columns,
    stack_samples,
    unpack_tuple,
)
from easytorch.data.batch import (
    WEIGHT_KEY,
    Batch,
    GeneratorWithLookahead,
    as_labels,
    count_batches,
    is_single_pass,
    unpack,
)
from easytorch.data.batch import batch_size as count_samples
from easytorch.data.batch_objects import is_batch_object
from easytorch.data.combined import CombinedLoader
from easytorch.data.data_sets import DataSets
from easytorch.data.endless import check_has_end
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.data.hugging_face import refuse_nulls
from easytorch.data.in_memory import InMemory
from easytorch.data.sample_weights import (
    ClassWeight,
    WeightedDataset,
    add_weight,
    as_weights,
    check_is_weight,
    check_weights,
    with_sample_weight,
)
from easytorch.data.seeded import SeededDataset
from easytorch.data.sparse import as_dense, refuse_sparse_tensors
from easytorch.data.splits import draws_all_samples, split_loader
from easytorch.data.tables import as_array, refuse_unread
from easytorch.data.webdatasets import as_plain_loader, yields_batches
from easytorch.data.without_data import WithoutData
from easytorch.data.workers import shield_workers
from easytorch.distributed.process_group import SingleProcess

if TYPE_CHECKING:
    from easytorch.typing import DataLike, SampleWeightLike, TargetLike

DEFAULT_BATCH_SIZE = 32
ACCEPTED = (
    "a DataLoader, a Dataset, tensors, NumPy arrays or frames (x, y), dicts or tuples of these, a generator, a "
    "function that returns one, or a list of batches"
)
# Why an argument has no effect on some kinds of data.
ARGUMENT_CONFLICTS = {
    "y": "It contains the targets already, as (x, y)",
    "batch_size": "It contains batches already",
    "shuffle": "It has an order already",
    "sample_weight": "Its samples have no index: let it yield (x, y, sample_weight)",
}


@hide_internal_frames
def as_loader(
    x: DataLike,
    y: TargetLike | None = None,
    sample_weight: SampleWeightLike | None = None,
    *,
    batch_size: int | None = None,
    shuffle: bool | None = None,
) -> Iterable[Any]:
    """Return the batches of any data: a ``DataLoader`` if the samples have an index, otherwise an iterable.

    Args:
        x: See ``Model.fit``.
        y: Targets, if ``x`` does not contain them.
        sample_weight: One weight for each sample.
        batch_size: Samples in a batch, 32 if None; not for data that contains batches already.
        shuffle: Whether to draw the samples in random order; not for data that has an order already.

    Raises:
        TypeError: If the kind of data is not supported.
        ValueError: If the data is empty, its lengths differ, or an argument has no effect on it.

    Examples:
        >>> for inputs, targets in as_loader(x, y, batch_size=64, shuffle=True):
        ...     print(inputs.shape)
    """
    inputs, targets, weights = unpack_tuple(x, y, sample_weight)
    check_rows(x=inputs, y=targets, sample_weight=weights)  # before tensors lose the labels of rows
    x, y, sample_weight = unpack_tuple(x, y, as_weights(sample_weight))
    _check_type(x, y)
    x = as_torch_samples(x)
    size = positive_int("batch_size", DEFAULT_BATCH_SIZE if batch_size is None else batch_size)
    _check_shuffle(x, shuffle)
    options: dict[str, Any] = {"shuffle": bool(shuffle), "generator": private_generator(shuffle)}
    if is_arrays(x, y):
        return DataLoader(_check_not_empty(_array_dataset(x, y, sample_weight)), size, collate_fn=as_batch, **options)
    refuse_arguments(x, y=y)
    if is_keras_sequence(x):
        refuse_arguments(x, batch_size=batch_size, sample_weight=sample_weight)
        x = DataLoader(KerasSequence(x), batch_size=None, shuffle=bool(shuffle), generator=private_generator(shuffle))
    if yields_batches(x):
        refuse_arguments(x, batch_size=batch_size, shuffle=shuffle or None, sample_weight=sample_weight)
        return as_plain_loader(x, shield_workers)
    if isinstance(x, IterableDataset):
        refuse_arguments(x, sample_weight=sample_weight)
        return DataLoader(x, size)
    if not isinstance(x, DataLoader) and is_map_style(x):
        x = DataLoader(_check_not_empty(x), size, **options)
    elif not isinstance(getattr(x, "dataset", None), KerasSequence):
        refuse_arguments(x, batch_size=batch_size, shuffle=shuffle)
    if sample_weight is None:
        return x if isinstance(x, DataLoader) else _as_batches(x)
    if not isinstance(x, DataLoader) or isinstance(x.dataset, IterableDataset):
        refuse_arguments(x, sample_weight=sample_weight)
    return with_sample_weight(x, sample_weight)


def is_keras_sequence(x: Any) -> bool:
    """Return whether ``x`` is a Keras ``Sequence`` or ``PyDataset``, whose items are batches; or an object like one."""
    if isinstance(x, (Dataset, DataLoader)) or not is_map_style(x):
        return False
    return hasattr(x, "on_epoch_end") or any(cls.__name__ in ("Sequence", "PyDataset") for cls in type(x).__mro__)


class KerasSequence(Dataset[Any]):
    """A Keras ``Sequence``, whose items are batches, as a dataset for ``DataLoader(batch_size=None)``."""

    def __init__(self, sequence: Any) -> None:
        self.sequence = sequence
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, index: int) -> Any:
        return self.sequence[index]

    def set_epoch(self, epoch: int) -> None:
        """Notify the sequence that the previous epoch has ended."""
        if self._epoch is not None and hasattr(self.sequence, "on_epoch_end"):
            self.sequence.on_epoch_end()
        self._epoch = epoch


def _check_type(x: Any, y: Any) -> None:
    """Raise a ``TypeError`` for None, a class, a file name, an image, a range or data that must be read first."""
    if x is None or isinstance(x, type):
        raise TypeError(
            f"Expected data, received {'None' if x is None else f'the class {x.__name__}'}. Pass {ACCEPTED}."
        )
    if isinstance(x, (int, float, nn.Module)):
        kind = f"the module {type(x).__name__}" if isinstance(x, nn.Module) else f"the number {x!r}"
        raise TypeError(f"Expected data, received {kind}. Pass {ACCEPTED}.")
    check_is_read("x", x)
    check_is_read("y", y)
    if isinstance(y, (DataLoader, IterableDataset)):
        raise TypeError(
            f"Expected data, received a tuple of two data sets, {type(x).__name__} and {type(y).__name__}. To read both at once, "
            "pass easytorch.data.combine([first, second]) of two DataLoaders and override train_step(batch), whose batch is "
            "((x, y), (x, y)). For validation, pass fit(first, validation_data=second)."
        )
    for name, value in (("x", x), ("y", y)):
        if isinstance(value, range):
            raise TypeError(f"Expected data, received {value!r} as {name}. Pass numpy.array({name}).")
        refuse_unread(name, value)
    if is_arrays(x, y):
        refuse_sparse_tensors(x=x, y=y)


def _check_shuffle(x: Any, shuffle: Any) -> None:
    if shuffle is not None and not isinstance(shuffle, (bool, np.bool_)):
        raise ValueError(f"shuffle must be True or False, received {shuffle!r}. Use shuffle=True.")
    if shuffle and isinstance(x, IterableDataset):
        raise ValueError(
            f"shuffle=True has no effect on {type(x).__name__}: an IterableDataset decides the order itself. Shuffle inside it, "
            "for example in a buffer of samples, or pass a Dataset with an index."
        )


def _array_dataset(x: Any, y: Any, sample_weight: Any) -> ArrayDataset:
    """Return arrays, in any nesting, as one dataset."""
    x, y = stack_samples(x, y)
    if y is None and isinstance(x, Mapping):
        x = {key: map_leaves(_as_labels, value) if key in LABEL_KEYS else value for key, value in x.items()}
        if sample_weight is not None:  # an entry, since the dict has the targets too
            x, sample_weight = add_weight(x, sample_weight), None
    y = map_leaves(_as_labels, y)
    dataset = BatchedArrayDataset((x, y, sample_weight) if sample_weight is not None else x if y is None else (x, y))
    if len(dataset):
        weights = _get_weights(dataset.tree)
        check_is_weight(weights)
        check_weights(WEIGHT_KEY, weights)
    return dataset


def _as_labels(leaf: Any) -> Any:
    return as_labels(as_array(leaf))


def _get_weights(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(WEIGHT_KEY)
    return tree[2] if isinstance(tree, tuple) and len(tree) == 3 else None


def _as_batches(x: Any) -> Iterable[Any]:
    """Return data that contains batches already as an iterable, for many passes if possible."""
    if isinstance(x, Mapping):
        _check_entries_are_numbers(x)
    if isinstance(x, (Mapping, str, bytes)) or not (callable(x) or isinstance(x, Iterable)):
        raise TypeError(f"Expected data, received {type(x).__name__}: {str(x)[:80]!r}. Pass {ACCEPTED}.")
    if isinstance(x, Sequence):
        if has_instance(x, (Dataset, DataLoader)):
            raise TypeError(
                f"A list of {len(x)} data sets is not a data set. To join them, pass "
                "torch.utils.data.ConcatDataset(datasets). To validate on each, name them: fit(train_data, "
                "validation_data={'clean': first, 'noisy': second})."
            )
        check_batches(x)
    return ReplayedGenerator(x) if callable(x) and not isinstance(x, Iterable) else x


def _check_entries_are_numbers(x: Mapping[Any, Any]) -> None:
    """Raise a ``TypeError`` for a dict with an entry of text, such as some rows or one row of a Hugging Face dataset."""
    for key, value in x.items():
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(first, str):
            raise TypeError(
                f"Expected data, received a dict whose entry {key!r} is text, {first[:40]!r}. Convert text to numbers: for a "
                "dataset of Hugging Face, with dataset.map(tokenize), where tokenize returns the input_ids of its tokenizer. "
                "To pass some of its rows, use dataset.select(range(8))."
            )


class ReplayedGenerator(Iterable[Any]):
    """A generator function, which is called for each pass.

    Attributes:
        check: Is called with the iterator of each pass.
    """

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function
        self.check: Callable[[Any], None] = lambda iterator: None

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.function())
        self.check(iterator)
        return iterator


def is_indexed(x: Any, y: Any = None) -> bool:
    """Return whether ``x`` holds single samples that can be drawn in any order."""
    if isinstance(x, (DataLoader, IterableDataset)):
        return False
    return isinstance(x, tuple) or is_arrays(x, y) or is_map_style(x)


def _check_not_empty(dataset: Any) -> Any:
    size = count_batches(dataset)
    name = "arrays" if isinstance(dataset, ArrayDataset) else type(dataset).__name__
    if size is None:
        raise TypeError(f"{name} has no length. Define {name}.__len__(), which returns the number of samples.")
    if not size:
        raise ValueError(
            f"The data is empty: expected at least one sample, received {name} of length 0. Check how it was read or filtered."
        )
    return dataset


def refuse_arguments(source: Any, **arguments: Any) -> None:
    """Raise a ``ValueError`` if one of ``arguments``, which have no effect on ``source``, is not None."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name} has no effect on a {type(source).__name__}. {ARGUMENT_CONFLICTS[name]}: leave {name} out."
            )


def is_deterministic(dataset: Any) -> bool:
    """Return whether a sample of ``dataset`` certainly has the same values each time."""
    if isinstance(dataset, ConcatDataset):
        return all(map(is_deterministic, dataset.datasets))
    if isinstance(dataset, (Subset, WeightedDataset)):
        return is_deterministic(dataset.dataset)
    return isinstance(dataset, (ArrayDataset, InMemory, TensorDataset, SeededDataset))


def first_batch(loader: Any) -> Any:
    """Return the first batch of data that can be read again, or None; random states are restored."""
    if isinstance(loader, (Sequence, ReplayedGenerator)):
        with preserve_rng_state(), preserve_generators(loader):
            return next(iter(loader), None)
    if not isinstance(loader, DataLoader) or loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return None
    if torch_private.overrides_iteration(loader):
        return None
    with preserve_rng_state(), preserve_generators([loader.dataset, loader.collate_fn]):
        dataset: Any = loader.dataset
        if type(loader.sampler) is SubsetRandomSampler:
            indices = list(loader.sampler.indices[: loader.batch_size])
        elif draws_all_samples(loader):
            indices = list(range(min(loader.batch_size, len(dataset))))
        # Only the sampler knows which samples can be loaded.
        else:
            return None
        return loader.collate_fn(load_samples(dataset, indices))


def make_fit_data(
    x: Any,
    y: Any,
    *,
    batch_size: int | None,
    shuffle: bool | None,
    sample_weight: Any,
    class_weight: Any,
    validation_data: Any,
    validation_split: float,
    window_size: int,
    steps_per_epoch: int | None,
    validation_steps: int | None,
    epochs: int,
    group: SingleProcess,
    unpack: Callable[[Any], Batch] = unpack,
    count_samples: Callable[[Any], int] = count_samples,
    ignore_index: int | None = None,
    pins: bool = False,
) -> tuple[EpochIterator, Any]:
    """Return the iterator over the training data and the batches of the validation data.

    Args:
        x, y, batch_size, shuffle, sample_weight, class_weight: The training data; see ``Model.fit``. None if the model makes it.
        validation_data, validation_split, validation_steps: The validation data; see ``Model.fit``.
        window_size: Batches in one update.
        steps_per_epoch: Updates in one epoch; None for a pass over the data.
        epochs: Epochs of the run.
        group: The processes that train together.
        unpack: Splits a batch into inputs, targets and weights.
        count_samples: Returns the number of samples of a batch.
        ignore_index: The label that the loss ignores.
        pins: Whether batches of data in memory are in pinned memory.

    Returns:
        An ``EpochIterator``, and an iterable of batches, ``DataSets`` of these, or None.

    Raises:
        TypeError: If the kind of data is not supported.
        ValueError: If the data or an argument is not valid.
    """
    if x is None:
        refuse_data_arguments(
            y=y, batch_size=batch_size, shuffle=shuffle, sample_weight=sample_weight, class_weight=class_weight,
            validation_split=validation_split or None,
        )  # fmt: skip
        x = _without_data(steps_per_epoch, window_size)
        if validation_data is None and optional_positive_int("validation_steps", validation_steps):
            validation_data = WithoutData(positive_int("validation_steps", validation_steps))
    if class_weight is not None and isinstance(x, CombinedLoader):
        raise ValueError(
            "class_weight has no effect on combined loaders, whose batches only train_step can read. Weight the loss there."
        )
    if shuffle is None and is_indexed(x, y):
        shuffle = True
    columns = column_names(x)
    refuse_nulls(x, unpack)
    loader = as_loader(x, y, sample_weight, batch_size=batch_size, shuffle=shuffle)
    _check_values_and_end(loader, columns, steps_per_epoch)
    optional_positive_int("validation_steps", validation_steps)
    validation: Any = None
    if validation_data is not None:
        if validation_split:
            raise ValueError("Expected validation_data or validation_split, received both. Pass one of them.")
        validation = _for_each_set(
            functools.partial(
                _validation_loader,
                columns=columns, batch_size=batch_size, once=epochs == 1 or validation_steps is not None,
                steps=validation_steps, unpack=unpack,
            ),
            validation_data,
        )  # fmt: skip
    elif validation_split:
        loader, validation = _split(loader, validation_split, unpack)
    train_data = EpochIterator(
        loader,
        window_size=window_size,
        steps=steps_per_epoch,
        weigh=None if class_weight is None else ClassWeight(class_weight, loader, unpack, ignore_index),
        unreproducible=_has_random_workers(loader),
        group=group,
        validation_loader=validation,
        batch_size=count_samples,
        unpack=unpack,
        pins=pins,
    )
    return train_data, _for_each_set(shield_workers, validation)


def _for_each_set(function: Callable[[Any], Any], validation: Any) -> Any:
    """Return ``function`` of the validation data, or the ``DataSets`` of its results for several data sets."""
    is_several = isinstance(validation, DataSets)
    return validation.convert(function, "validation_data") if is_several else function(validation)


def _without_data(steps: int | None, window_size: int) -> WithoutData:
    """Return the batches of a model that makes its data itself."""
    if steps is None:
        raise TypeError(
            f"Expected data, received None. Pass {ACCEPTED}. If train_step makes its data itself, pass the number of updates in "
            "an epoch: fit(steps_per_epoch=100, epochs=5)."
        )
    return WithoutData(positive_int("steps_per_epoch", steps) * window_size)


def refuse_data_arguments(**arguments: Any) -> None:
    """Raise a ``ValueError`` if an argument that needs data is not None."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"fit() received {name} without data. Pass fit(x, y, {name}=...), or leave {name} out.")


def _has_random_workers(loader: Any) -> bool:
    if isinstance(loader, CombinedLoader):
        return any(map(_has_random_workers, loader.parts.values()))
    return isinstance(loader, DataLoader) and loader.num_workers > 0 and not is_deterministic(loader.dataset)


def _check_values_and_end(loader: Any, columns: list[Any] | None, steps: int | None) -> None:
    _check_finite(loader, columns)
    require_end(loader, "steps_per_epoch", steps)


def _check_finite(loader: Any, columns: list[Any] | None) -> None:
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, ArrayDataset):
        check_finite(dataset.tree, columns)


def require_end(loader: Any, name: str, steps: int | None) -> None:
    """Raise a ``ValueError`` for batches that never end without the number of steps; a function is checked when it is called.

    Args:
        loader: The batches.
        name: The argument that limits them.
        steps: Its value.
    """
    check_has_end(loader, name, steps)
    if isinstance(loader, ReplayedGenerator):
        loader.check = functools.partial(check_has_end, name=name, steps=steps)


def _validation_loader(
    data: Any,
    *,
    columns: list[Any] | None,
    batch_size: int | None,
    once: bool,
    steps: int | None,
    unpack: Callable[[Any], Batch],
) -> Iterable[Any]:
    """Return the batches of ``validation_data``, which are read ``once`` or more often, ``steps`` batches each time."""
    data = match_columns(data, columns)
    if isinstance(data, (int, float, np.number)):
        raise ValueError(
            f"validation_data must be data, received the number {data!r}. Did you mean validation_split={data!r}?"
        )
    size = batch_size if is_indexed(data) or isinstance(data, IterableDataset) else None
    try:
        refuse_nulls(data, unpack)
        validation = as_loader(data, batch_size=size)
        _check_finite(validation, column_names(data))
        require_end(validation, "validation_steps", steps)
    except (ValueError, TypeError) as error:
        # A subclass may need other arguments.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"In validation_data: {error}") from error
    is_generator = is_single_pass(validation)
    if is_generator and not once:
        raise ValueError(
            "validation_data is a generator, which can be read only once, but each epoch needs it. Pass the function that "
            "returns it (not its result), a list of batches or a DataLoader."
        )
    if count_batches(validation) == 0:
        raise ValueError(
            "The validation data is empty: expected at least one batch, received none. With drop_last=True, pass at least "
            "batch_size samples."
        )
    return GeneratorWithLookahead(iter(validation)) if is_generator else validation


def _split(loader: Any, fraction: Any, unpack: Callable[[Any], Batch]) -> tuple[Any, Any]:
    """Return the loaders of the training data and of the validation data."""
    is_number = isinstance(fraction, (int, float, np.number)) and not isinstance(fraction, bool)
    if not is_number or not 0 < fraction < 1:
        received = repr(fraction) if isinstance(fraction, (int, float, str)) else describe(fraction)
        is_percentage = is_number and 1 < fraction < 100
        fix = f"{fraction:g}% is {fraction / 100:g}" if is_percentage else "20% of the training data is 0.2"
        raise ValueError(f"validation_split must be a fraction between 0 and 1, received {received}. {fix}.")
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ValueError("validation_split needs data with a length and an index. Pass validation_data instead.")
    return split_loader(loader, float(fraction), seed=0, stratify=True, unpack=unpack)


class ValidationSchedule:
    """Whether validation follows an epoch, counted from 0: ``schedule(epoch)``.

    Args:
        val_data: The validation data; without any, validation follows no epoch.
        frequency: The number of epochs between validations, or a collection of epochs counted from 1.

    Attributes:
        plan: The epochs, without the data.

    Raises:
        ValueError: If ``frequency`` is neither.
    """

    def __init__(self, val_data: Any, frequency: Any) -> None:
        self.frequency = frequency
        is_collection = isinstance(frequency, (list, tuple, set, frozenset, range))
        period = 1 if is_collection else positive_int("validation_freq", frequency)
        self.plan = ValidationPlan(period, frozenset(frequency) if is_collection else None)
        if val_data is None:
            self.plan = ValidationPlan(period, frozenset())

    def __call__(self, epoch: int) -> bool:
        """Return whether validation follows ``epoch``."""
        return self.plan.count(epoch, epoch + 1) > 0


@dataclasses.dataclass
class ValidationPlan:
    """The epochs that a validation follows, counted from 1: multiples of ``period``, or those in ``epochs``."""

    period: int
    epochs: frozenset[Any] | None

    def count(self, first: int, last: int) -> int:
        """Return the number of validations after the epochs ``first``, ..., ``last - 1``, counted from 0."""
        if self.epochs is None:
            return last // self.period - first // self.period
        return sum(epoch in range(first + 1, last + 1) for epoch in self.epochs)


def has_more(val_data: Any, epoch: int) -> bool:
    """Return whether there is validation data; warn if it was a generator that has no more."""
    if not isinstance(val_data, GeneratorWithLookahead) or val_data.has_more():
        return True
    warn(
        f"There is no validation after epoch {epoch + 1}: the generator in validation_data has no more batches, since it "
        "can be read only once. Pass the function that creates it (not its result), a list of batches or a DataLoader."
    )
    return False


def as_single_batch(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """Return all of ``x``, ``y`` and ``sample_weight`` as one batch; ``x`` may be a batch already."""
    check_rows(x=x, y=y, sample_weight=sample_weight)
    if y is None and sample_weight is None:
        return x if is_batch_object(x) else copy_arrays(as_dense(as_tensors(x)), x)
    batch = as_dense(_array_dataset(x, y, as_weights(sample_weight)).tree)
    return copy_arrays(batch, (x, y, sample_weight))
