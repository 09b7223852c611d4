"""One batch: its inputs, targets, weights, size and device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.pytree import describe, leaves, map_leaves

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
WEIGHT_KEY = "sample_weight"
PAD_HINT = "Pad them to one length, for example by torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)."
EMPTY_DATA = "The data is empty: there was not one batch in it. Was the generator read before?"


class Batch(NamedTuple):
    """The three parts of a batch; what is missing is None."""

    x: Any
    y: Any = None
    sample_weight: Any = None


def unpack(batch: Any, signature: ForwardSignature | None = None) -> Batch:
    """Split ``batch`` into inputs, targets and sample weights.

    Args:
        batch: ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``; or a dict, whose entries named like arguments
            of the module are the inputs, and whose entry ``labels`` (``label``, ``targets``, ``target``, ``y``) is
            the target.
        signature: The arguments of the module that takes the inputs; only dicts need it.
    """
    if isinstance(batch, (tuple, list)):
        if 1 <= len(batch) <= 3:
            return Batch(*batch)
        raise ValueError(
            f"A batch has one to three parts, x, (x, y) or (x, y, sample_weight); this one has {len(batch)}: "
            f"{describe(batch)}. Put several inputs into one tuple, ((x1, x2), y), or into a dict."
        )
    if isinstance(batch, Mapping):
        return _unpack_dict(batch, signature or ForwardSignature((), any_keyword=True))
    return Batch(batch)


def _unpack_dict(batch: Mapping[str, Any], signature: ForwardSignature) -> Batch:
    label = next((key for key in LABEL_KEYS if key in batch), None)
    inputs: Any = {key: value for key, value in batch.items() if key in signature.names}
    if label is None and inputs:
        others = [key for key in batch if key not in inputs and key != WEIGHT_KEY]
        label = others[0] if len(others) == 1 else None
    if not inputs:
        inputs = {key: value for key, value in batch.items() if key not in (label, WEIGHT_KEY)}
        if (
            len(inputs) == 1 and not signature.any_keyword
        ):  # {"image": x, "label": y} for a module that takes one tensor
            (inputs,) = inputs.values()
    return Batch(inputs, batch[label] if label is not None else None, batch.get(WEIGHT_KEY))


def batch_size(batch: Any) -> int:
    """Return the number of samples in ``batch``: the first dimension of its targets, else of its inputs.

    A batch object of another library may tell by an attribute ``batch_size`` or ``num_graphs``.
    """
    if type(batch) in (tuple, list) and len(batch) > 1 and isinstance(batch[1], Tensor) and batch[1].ndim:
        return batch[1].shape[0]
    for name in ("batch_size", "num_graphs"):
        if isinstance(getattr(batch, name, None), int):
            return int(getattr(batch, name))
    targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if isinstance(batch, Mapping):
        targets = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    if isinstance(targets, (tuple, list)) and targets and all(isinstance(one, Mapping) for one in targets):
        return len(targets)  # a dict for each sample, as detection has them
    for part in (targets, batch):
        sizes = {len(leaf) for leaf in leaves(part) if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0}
        if len(sizes) == 1:
            return sizes.pop()
        if sizes:
            raise ValueError(
                f"The parts of this batch have different first dimensions, {sorted(sizes)}: {describe(batch)}. "
                "Give every part one row for each sample."
            )
    raise ValueError(f"Cannot tell how many samples are in this batch: {describe(batch)}. Pass tensors or arrays.")


def make_to_device(device: torch.device, dtype: torch.dtype | None) -> Callable[[Any], Any]:
    """Return the function that brings a batch to ``device`` and its floats to ``dtype`` (None: as they are).

    Arrays become tensors, anything that is neither array nor tensor stays what it is. From pinned memory the copy
    does not wait.
    """

    return functools.partial(_place_batch, device, dtype)  # which, unlike a function made here, can be pickled


def _place_batch(device: torch.device, dtype: torch.dtype | None, batch: Any) -> Any:
    if type(batch) in (tuple, list):
        for leaf in batch:
            if type(leaf) is not Tensor or leaf.device != device or (leaf.dtype != dtype and leaf.is_floating_point()):
                break
        else:  # nothing is to be done, as mostly on a CPU
            return batch
        if len(batch) > 1 and type(batch[1]) is np.ndarray:
            batch = type(batch)([batch[0], as_labels(batch[1]), *batch[2:]])
    return map_leaves(functools.partial(_place, device, dtype), batch)


def _place(device: torch.device, dtype: torch.dtype | None, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = from_numpy(leaf)
    if isinstance(leaf, PackedSequence):
        packed: Any = leaf  # whose to() torch declares for a dtype alone; the batch sizes stay on the CPU
        return packed.to(device, dtype if dtype is not None and packed.data.is_floating_point() else packed.data.dtype)
    if not isinstance(leaf, Tensor):
        return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf
    wanted = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
    if leaf.device == device and leaf.dtype == wanted:
        return leaf
    return leaf.to(device, wanted, non_blocking=True)


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """Turn ``array`` into a tensor that shares its memory where NumPy allows it.

    Raises:
        TypeError: If it holds text or other objects.
    """
    if (
        array.dtype.kind == "O"
        and array.size
        and all(isinstance(value, (int, float, np.number)) for value in array.flat)
    ):
        array = array.astype(np.float64)  # numbers in a frame with columns of several kinds
    if array.dtype.kind not in "biufc":
        raise _no_numbers(array)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes little with unsigned integers
    if not array.dtype.isnative:  # torch has one byte order, and no long doubles
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(np.ascontiguousarray(array) if array.ndim else array)


def as_labels(leaf: Any) -> Any:
    """Return targets that came as an array or a series of short integers, or of True and False, as int64.

    That is what losses of classes take. Tensors stay what they are, as does whatever is no array; of bool only labels, one for
    each sample, are turned: a mask may be meant as one.
    """
    dtype = getattr(leaf, "dtype", None)
    dtype = getattr(dtype, "numpy_dtype", dtype)  # of pandas' types that know a missing value
    if isinstance(dtype, np.dtype) and hasattr(leaf, "astype"):
        short = dtype.kind == "i" and dtype.itemsize < 8
        if short or (dtype.kind == "b" and leaf.ndim < 2):
            return leaf.astype("int64")
    return leaf


def _no_numbers(array: np.ndarray[Any, Any]) -> TypeError:
    """Return the error for an array of text, of rows, or of other objects."""
    first = array.flat[0] if array.size else None
    if isinstance(first, (list, tuple, np.ndarray, Tensor)):
        lengths = sorted({len(row) for row in array.flat if hasattr(row, "__len__")})
        if len(lengths) == 1:
            return TypeError(
                f"Expected numbers, received an array whose {array.size} elements are rows of {lengths[0]}. Make one array of "
                "them: np.stack(x)."
            )
        return TypeError(
            f"Expected numbers, received an array of rows of different lengths, {', '.join(map(str, lengths[:3]))}. {PAD_HINT}"
        )
    kind = "text" if array.dtype.kind in "US" or isinstance(first, str) else str(array.dtype)
    return TypeError(
        f"Expected numbers, received an array of {kind} with shape {list(array.shape)}. Turn text into "
        "numbers first, for example labels by sklearn.preprocessing.LabelEncoder, columns by pandas.get_dummies."
    )


def length(loader: Any) -> int | None:
    """Return the number of batches in ``loader``, None where it cannot be known."""
    try:
        return len(loader)
    except TypeError:  # a loader over an IterableDataset has a __len__ that raises
        return None
