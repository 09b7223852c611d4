"""Parts, size and device of one batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from easytorch._utils.forward_signature import LABEL_KEYS, ForwardSignature
from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn
from easytorch.data.batch_objects import is_batch_object, object_size, read_size, unpack_object

WEIGHT_KEY = "sample_weight"
# "attn_mask" may be "attention_mask"; "pixel_mask" is not "pixel_values".
MIN_ENTRY_SIMILARITY = 0.75
# Types of numbers in an array of objects.
NUMBERS = (int, float, np.number, np.bool_)
PAD_HINT = "Pad them to one length with torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)."
EMPTY_DATA = (
    "The data is empty: expected at least one batch, received none. A generator can be read only once: pass the function that "
    "returns it, not its result. With drop_last=True, use a batch_size that is not larger than the data."
)


class Batch(NamedTuple):
    """Inputs, targets and sample weights of a batch; a missing part is None.

    Attributes:
        x: The inputs: a tensor, or a tuple or dict of arguments of the module.
        y: The targets, in any structure.
        sample_weight: One weight per sample; for several outputs in the structure of the targets.

    Examples:
        >>> x, y, sample_weight = model.unpack((x, y))
        >>> targets = model.unpack((x, y)).y
    """

    x: Any
    y: Any = None
    sample_weight: Any = None


class _Combined:
    """Base of the batches of several loaders, whose size is that of the batch of the first loader."""

    @property
    def batch_size(self) -> int:
        """Number of samples of the first loader."""
        parts: Any = self.values() if isinstance(self, dict) else self
        return batch_size(next(iter(parts)))


class CombinedDict(_Combined, dict[str, Any]):
    """One batch of each loader by name; see ``combine``."""


class CombinedTuple(_Combined, tuple[Any, ...]):
    """One batch of each loader; see ``combine``."""


def unpack(
    batch: Any,
    signature: ForwardSignature | None = None,
    loss_entries: Collection[str] = frozenset(),
    ignored: int | None = None,
) -> Batch:
    """Split ``batch`` into inputs, targets and sample weights.

    Args:
        batch: ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``; or a dict. The entries of a dict that have the
            names of arguments of the module are the inputs. Its entry ``labels`` (``label``, ``targets``, ``target``,
            ``y``) is the target. So is this attribute of an object of another library, such as a batch of graphs.
        signature: The arguments of the module that takes the inputs; only dicts and objects need it.
        loss_entries: Entries of a dict that are arguments of the loss, and no inputs unless the module has them as arguments.
        ignored: The label that the loss ignores, which only objects need.

    Raises:
        ValueError: If a tuple has more than three parts.
    """
    if not loss_entries and type(batch) in (tuple, list) and len(batch) in (1, 2, 3):  # by far the most frequent case
        if type(batch[0]) is tuple and len(batch) == 2 and _has_target_dicts(batch[1]):
            return Batch([*batch[0]], batch[1])  # a list of images, which is one argument
        return Batch(*batch)
    if batch is None:
        raise ValueError(
            "There is no data, since fit() got only steps_per_epoch. Override train_step(self, batch) in a subclass of Model: "
            "its batch is None, and it makes its data itself. Otherwise pass the data: fit(x, y)."
        )
    if isinstance(batch, _Combined):
        raise ValueError(
            f"A batch of combined loaders cannot be split into inputs and targets: {describe(batch)}. Override train_step(self, "
            "batch) in a subclass of Model, and return the loss that it computes from the batch of each loader."
        )
    if isinstance(batch, (tuple, list)):
        if 1 <= len(batch) <= 3:
            x = _without_entries(batch[0], loss_entries, signature) if loss_entries else batch[0]
            return Batch(x, *batch[1:])
        raise ValueError(
            f"Expected a batch of one to three parts, x, (x, y) or (x, y, sample_weight); received {len(batch)} parts: "
            f"{describe(batch)}. Put several inputs into one tuple, ((x1, x2), y), or into a dict. Put what a custom loss needs "
            'into a dict: {"x": x, "y": y, "teacher": t} for def loss(y_pred, y, teacher).'
        )
    if isinstance(batch, Mapping):
        signature = signature or ForwardSignature((), any_keyword=True)
        names = set(loss_entries).difference(signature.names, LABEL_KEYS)
        return _unpack_dict({key: batch[key] for key in batch if key not in names} if names else batch, signature)
    return Batch(*unpack_object(batch, signature, ignored)) if is_batch_object(batch) else Batch(batch)


def _has_target_dicts(y: Any) -> bool:
    """Return whether ``y`` has a dict for each sample, as in object detection."""
    return isinstance(y, (tuple, list)) and bool(y) and all(isinstance(target, Mapping) for target in y)


def _without_entries(x: Any, loss_entries: Collection[str], signature: ForwardSignature | None) -> Any:
    """Return inputs that are a dict without the entries for the loss, unless the module takes them too."""
    names = set(loss_entries).difference(() if signature is None else signature.names)
    if not isinstance(x, Mapping) or names.isdisjoint(x):
        return x
    inputs = {key: value for key, value in x.items() if key not in names}
    is_single = len(inputs) == 1 and signature is not None and not signature.any_keyword
    return next(iter(inputs.values())) if is_single else inputs


def _unpack_dict(batch: Mapping[str, Any], signature: ForwardSignature) -> Batch:
    inputs: Any = {key: value for key, value in batch.items() if key in signature.names}
    label = _find_label_key(batch, inputs, signature)
    if not inputs:
        inputs = {
            key: value for key, value in batch.items() if key not in (label, WEIGHT_KEY) and not _is_metadata(key)
        }
        # {"image": x, "label": y} for a module with one argument
        if len(inputs) == 1 and not signature.any_keyword:
            (inputs,) = inputs.values()
    return Batch(inputs, None if label is None else batch[label], batch.get(WEIGHT_KEY))


def _find_label_key(batch: Mapping[str, Any], inputs: Mapping[str, Any], signature: ForwardSignature) -> str | None:
    label = next((key for key in LABEL_KEYS if key in batch), None)
    # If only one entry remains, it is the target.
    remaining = (
        [key for key in batch if key not in inputs and key != WEIGHT_KEY and not _is_metadata(key)] if inputs else []
    )
    # forward(x, y) demands coordinates x and y, and the only other entry is the target.
    is_input = label in signature.required_names and label not in ("labels", "label")
    if len(remaining) == 1 and (label is None or is_input):
        return remaining[0]
    return label


def _is_metadata(key: Any) -> bool:
    """Return whether an entry belongs to no sample, such as ``__key__`` and ``__url__`` of WebDataset."""
    return isinstance(key, str) and key.startswith("__")


def find_misspelled_entry(
    batch: Any, signature: ForwardSignature, loss_entries: Collection[str] = frozenset(), *, predicts: bool = False
) -> str:
    """Return a message about an entry of a dict that nothing takes, if a parameter of the module without a value is similar.

    Args:
        batch: A batch of any kind; the message is empty unless it is a dict.
        signature: The arguments of the module.
        loss_entries: The entries that a custom loss or metric takes.
        predicts: Whether targets have no effect, so that an entry is no target unless it has a name for targets.
    """
    if not isinstance(batch, Mapping) or isinstance(batch, _Combined):
        return ""
    x, y, _ = unpack(batch, signature, loss_entries)
    if not isinstance(x, Mapping) or set(signature.names).isdisjoint(x):  # the module gets all entries
        return ""
    missing = [name for name in signature.names if name not in x and (name != signature.label or y is None)]
    for key in batch:
        is_target = batch[key] is y and (not predicts or key in LABEL_KEYS)
        if key in x or is_target or key == WEIGHT_KEY or key in loss_entries:
            continue
        # A module may have more numbered inputs than the batch: image_1 and image_2.
        names = [name for name in missing if _digits(name) == _digits(key)]
        suggestion = did_you_mean(key, names, MIN_ENTRY_SIMILARITY)
        if suggestion:
            return f"The entry {key!r} of the batch is ignored.{suggestion}"
    return ""


def _digits(name: Any) -> str:
    return "".join(filter(str.isdigit, str(name)))


def select_inputs(batch: Any, x: Any, signature: ForwardSignature) -> Any:
    """Return the inputs ``x`` of ``batch``, or all of a batch ``(left, right)`` that has one array per required argument."""
    has_all = isinstance(batch, (tuple, list)) and len(batch) == signature.required > 1
    return tuple(batch) if has_all and not isinstance(x, (tuple, list, Mapping)) else x


def batch_size(batch: Any) -> int:
    """Return the number of samples in ``batch``: the first dimension of its targets, or else of its inputs.

    A batch object of another library may have an attribute ``batch_size`` or ``num_graphs``. Without data the batch is None,
    and counts as one sample.

    Args:
        batch: A tensor or array, a tuple of inputs and targets, a dict, or a batch object.

    Raises:
        ValueError: If first dimensions differ, or there is neither tensor nor array. Of a batch of three or more parts, the
            inputs may have another first dimension; all other parts must agree.

    Examples:
        >>> easytorch.data.batch_size((images[:32], labels[:32]))
        32
    """
    # By far the most frequent cases, once for each batch.
    if type(batch) in (tuple, list) and len(batch) in (2, 3):
        y = batch[1]
        if isinstance(y, Tensor) and y.ndim and (len(batch) == 2 or _has_one_weight_per_row(batch[2], y)):
            return y.shape[0]
    if batch is None:  # the step makes its data itself
        return 1
    _check_is_batch(batch)
    if type(batch) is Tensor and batch.ndim:
        return batch.shape[0]
    for count in (object_size, read_size, _count_other_parts, _count_targets, _count_rows):
        found = count(batch)
        if found is not None:
            return found
    raise ValueError(
        f"Cannot find the number of samples in this batch: expected tensors or arrays, received {describe(batch)}. Pass "
        "(x, y) as tensors, or override Model.batch_size."
    )


def _has_one_weight_per_row(weights: Any, y: Tensor) -> bool:
    return isinstance(weights, Tensor) and weights.shape[:1] == y.shape[:1]


def _check_is_batch(batch: Any) -> None:
    """Raise a ``ValueError`` for the pair of a vector and a number, which is a sample."""
    if type(batch) not in (tuple, list) or len(batch) != 2:
        return
    x, y = batch
    are_arrays = isinstance(x, (Tensor, np.ndarray)) and isinstance(y, (Tensor, np.ndarray, np.generic))
    if are_arrays and x.ndim == 1 and not y.ndim:
        raise ValueError(
            f"Expected batches, received single samples: the first is {describe(batch)}. Pass "
            "DataLoader(list(samples), batch_size=32, shuffle=True), or arrays with one row for each sample: fit(x, y)."
        )


def _count_other_parts(batch: Any) -> int | None:
    """Return the number of rows of all parts after the inputs, for a batch of three or more parts."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 3:
        return None
    is_detection = any(
        isinstance(leaf, Mapping) for part in batch[1:] if isinstance(part, (tuple, list)) for leaf in part
    )
    return None if is_detection else _count_first_dimension(batch[1:], batch)


def _count_targets(batch: Any) -> int | None:
    targets = _get_targets(batch)
    if _has_target_dicts(targets):
        return len(targets)
    size = _count_first_dimension(targets, batch)
    if isinstance(batch, Mapping) and size is not None:
        _check_targets_count_samples(size, batch)
    return size


def _check_targets_count_samples(size: int, batch: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if the other entries of a dict agree on another number of samples than the targets.

    The targets of CTC may be concatenated. Entries of time-major inputs, ``[T, N]``, have the samples in their second dimension.
    """
    others = [leaf for key, part in batch.items() if key not in LABEL_KEYS for leaf in leaves(part) if _has_rows(leaf)]
    is_confirmed = any(len(leaf) == size for leaf in others) or all(leaf.shape[1:2] == (size,) for leaf in others)
    if len(others) > 1 and not is_confirmed and len({len(leaf) for leaf in others}) == 1:
        _count_first_dimension(batch, batch)


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0


def _count_rows(batch: Any) -> int | None:
    return _count_first_dimension(batch, batch)


def _get_targets(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def _count_first_dimension(tree: Any, batch: Any) -> int | None:
    sizes = {len(leaf) for leaf in leaves(tree) if _has_rows(leaf)}
    if len(sizes) > 1:
        raise ValueError(
            f"The parts of a batch have different first dimensions: expected one row for each sample, received {sorted(sizes)} "
            f"rows in {describe(batch)}. Check that len(x) == len(y). If the batch is right, override batch_size(self, batch) in "
            "a subclass of Model, and return the number of samples."
        )
    return sizes.pop() if sizes else None


def make_to_device(device: torch.device, dtype: torch.dtype | None) -> Callable[[Any], Any]:
    """Return a function that moves a batch to ``device``.

    Arrays become tensors; a leaf that is neither array nor tensor stays unchanged. The copy from pinned memory is
    asynchronous.

    Args:
        device: The target device.
        dtype: The dtype for floating-point leaves; None keeps their dtype.
    """
    # Unlike a closure, a partial can be pickled.
    return functools.partial(_move_batch, device, dtype)


def _move_batch(device: torch.device, dtype: torch.dtype | None, batch: Any) -> Any:
    if type(batch) in (tuple, list):
        for leaf in batch:
            # Each dtype is one object.
            if (
                type(leaf) is not Tensor
                or leaf.device != device
                or (leaf.dtype is not dtype and leaf.is_floating_point())
            ):
                break
        # Nothing has to change, which is the usual case on a CPU.
        else:
            return batch
        if len(batch) > 1 and type(batch[1]) is np.ndarray:
            batch = type(batch)([batch[0], as_labels(batch[1]), *batch[2:]])
    return map_leaves(functools.partial(_move_leaf, device, dtype), batch)


def _move_leaf(device: torch.device, dtype: torch.dtype | None, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = from_numpy(leaf)
    if isinstance(leaf, Tensor):
        target_dtype = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        if leaf.device == device and leaf.dtype == target_dtype:
            return leaf
        return leaf.to(device, target_dtype, non_blocking=True)
    if isinstance(leaf, PackedSequence):
        # Its to() moves the data; the batch sizes stay on the CPU. torch annotates it for a dtype alone.
        packed: Any = leaf
        return packed.to(device, dtype if dtype is not None and packed.data.is_floating_point() else packed.data.dtype)
    return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """Return ``array`` as a tensor that shares its memory where NumPy permits it.

    Raises:
        TypeError: If it holds text or other objects.
        ValueError: If it is a masked array with masked values.
    """
    if isinstance(array, np.ma.MaskedArray):
        array = _without_mask(array)
    # An object array of numbers comes from a frame with columns of different dtypes.
    is_object = array.dtype.kind == "O" and array.size > 0
    if is_object and all(isinstance(value, NUMBERS) for value in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biufc":
        raise _not_numeric_error(array)
    array = array.astype(_torch_compatible(array.dtype), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(np.ascontiguousarray(array) if array.ndim else array)


def _without_mask(array: np.ma.MaskedArray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the data of a masked array that has no masked value."""
    masked = int(np.ma.getmaskarray(array).sum())
    if masked:
        raise ValueError(
            f"A masked array has {masked} masked values, and tensors have no mask. Pass array.filled(value), or only the rows "
            "without masked values: x[~numpy.ma.getmaskarray(x).any(axis=1)]."
        )
    return np.asarray(array.data)


def _torch_compatible(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return ``dtype``, or the nearest dtype that torch supports."""
    # Most operations of torch reject unsigned integers of more than one byte.
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int64)
    native = dtype.newbyteorder("=")
    return np.dtype(np.float64) if native == np.longdouble else native


def as_labels(leaf: Any) -> Any:
    """Return an array or series of short integers or booleans as int64, the dtype that classification losses take.

    Tensors and other objects stay unchanged. Booleans with two or more dimensions may be a mask and stay unchanged.
    """
    dtype = getattr(leaf, "dtype", None)
    # The nullable dtypes of pandas
    dtype = getattr(dtype, "numpy_dtype", dtype)
    if not isinstance(dtype, np.dtype) or not hasattr(leaf, "astype"):
        return leaf
    is_short = dtype.kind == "i" and dtype.itemsize < 8
    is_boolean = dtype.kind == "b" and leaf.ndim < 2
    return leaf.astype("int64") if is_short or is_boolean else leaf


def _not_numeric_error(array: np.ndarray[Any, Any]) -> TypeError:
    """Return the error for an array of text, rows or other objects."""
    first = array.flat[0] if array.size else None
    if isinstance(first, (list, tuple, np.ndarray, Tensor)):
        return _nested_rows_error(array)
    if array.dtype.kind == "O" and array.size:
        index = next(index for index, value in np.ndenumerate(array) if not isinstance(value, NUMBERS))
        names = ("row", "column") if array.ndim < 3 else ("index",) * array.ndim
        place = ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))
        found = f"{array[index]!r} in {place} of an array of objects with shape {list(array.shape)}"
    else:
        kind = "text" if array.dtype.kind in "US" else str(array.dtype)
        found = f"an array of {kind} with shape {list(array.shape)}"
    return TypeError(
        f"Expected numbers, received {found}. Encode columns of text with pandas.get_dummies(frame). Labels may be text: pass "
        "them as y to fit()."
    )


def _nested_rows_error(array: np.ndarray[Any, Any]) -> TypeError:
    lengths = sorted({len(row) for row in array.flat if hasattr(row, "__len__")})
    if len(lengths) == 1:
        return TypeError(
            f"Expected numbers, received an array with {array.size} rows of length {lengths[0]} as objects. Stack them into one "
            "array: np.stack(x)."
        )
    return TypeError(
        f"Expected numbers, received an array of rows of different lengths, {', '.join(map(str, lengths[:3]))}. {PAD_HINT}"
    )


def count_batches(loader: Any) -> int | None:
    """Return the number of batches in ``loader``, or None if it is unknown."""
    try:
        return len(loader)
    # A DataLoader of an IterableDataset has a __len__ that raises.
    except TypeError:
        return None


@overload
def divide(total: Tensor, count: Any) -> Tensor: ...
@overload
def divide(total: float, count: Any) -> Any: ...
def divide(total: Any, count: Any) -> Any:
    """Return ``total / count``, and 0 if nothing counts; both may be tensors on the device."""
    if isinstance(total, Tensor) and not total.is_floating_point():
        # MPS has no float64.
        total = total.to(torch.float32 if total.device.type == "mps" else torch.float64)
    return total / one_if_zero(count)


def one_if_zero(count: Any) -> Any:
    """Return ``count``, or 1 if it is 0; it may be a tensor on the device."""
    return torch.where(count == 0, 1, count) if isinstance(count, Tensor) else (count or 1)


def is_single_pass(loader: Any) -> bool:
    """Return whether ``loader`` can be read only once, as a generator can; not if its ``__iter__`` starts it again."""
    if not isinstance(loader, Iterator):
        return False
    code = getattr(type(loader).__iter__, "__code__", None)
    # `return self` uses no name. Anything else starts the iterator again, which needs a known end.
    return code is None or not code.co_names or count_batches(loader) is None


class GeneratorWithLookahead(Iterator[Any]):
    """An iterator of validation batches that can be asked whether it has another one.

    Attributes:
        taken: Batches that were taken.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator, self.taken = iterator, 0
        self._next: list[Any] = []

    def __next__(self) -> Any:
        batch = self._next.pop() if self._next else next(self._iterator)
        self.taken += 1
        return batch

    def has_more(self) -> bool:
        """Return whether there is another item, which may be read for this."""
        self._next = self._next or list(itertools.islice(self._iterator, 1))
        return bool(self._next)

    def skip(self, count: int) -> None:
        """Take and discard the batches that a stopped run has used."""
        if not count:
            return
        warn(
            f"The {count} batches of validation_data that were used before are loaded again and discarded, since a generator has "
            "no position. Pass the function that creates it (not its result), a list of batches or a DataLoader."
        )
        for _ in itertools.islice(self, count):
            pass


@dataclasses.dataclass(frozen=True, slots=True)
class BatchFunctions:
    """How batches are read.

    Attributes:
        batch_size: Returns the number of samples of a batch, as ``Model.batch_size`` does.
        unpack: Splits a batch into inputs, targets and weights, as ``Model.unpack`` does.
    """

    batch_size: Callable[[Any], int] = batch_size
    unpack: Callable[[Any], Batch] = unpack


class Window(list[Any]):
    """The batches of one optimizer update, with their sample counts.

    A window is a list of batches: ``(batch,) = window`` and ``window[0]`` work.

    Attributes:
        functions: How its batches are read. It is no argument, since a list without ``__init__`` is created in half of the time.
        sample_counts: Per batch, the number of samples that the sampler drew for this rank, 0 for padding; None if unknown.
        total: The number of samples of all ranks in this window; None if unknown.
        counts_exact: Whether the collate function keeps one row per sample, so that sample counts are sizes.
        is_padding: Whether the batch that was taken last is padding: other ranks have a batch and this rank has none, so the
            batch counts nothing.
    """

    functions = BatchFunctions()
    sample_counts: Sequence[int] | None = None
    total: int | None = None
    counts_exact = False
    is_padding = False
    _sizes: list[int] | None = None

    def of_parts(self, batches: Iterable[Any]) -> Window:
        """Return a window of other batches with the same samples."""
        window = Window(batches)
        window.functions = self.functions
        return window

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each batch, by which its loss is weighted; always the same list."""
        if self._sizes is None:  # cached_property takes a lock in Python before 3.12
            self._sizes = list(map(self.functions.batch_size, self[:]))
        return self._sizes

    def unpacked(self) -> Iterator[Batch]:
        """Yield inputs, targets and weights of each batch."""
        return map(self.functions.unpack, self[:])


class ShardedWindow(Window):
    """The window of one of several ranks, which knows the sample counts of all ranks."""

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        sample_counts: Sequence[int],
        total: int,
        counts_exact: bool,
    ) -> None:
        super().__init__(batches)
        self.sample_counts, self.total, self.counts_exact = sample_counts, total, counts_exact
        self.is_padding = bool(sample_counts) and not sample_counts[0]

    def __iter__(self) -> Iterator[Any]:
        counts = self.sample_counts or ()
        for i, batch in enumerate(super().__iter__()):
            self.is_padding = i < len(counts) and not counts[i]
            yield batch
