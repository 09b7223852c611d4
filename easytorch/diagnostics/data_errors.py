"""Errors in samples and in the batch dimension of inputs."""

from __future__ import annotations

import linecache
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe
from easytorch.data.arrays import COLLATE_DETECTION, is_array, is_detection_sample
from easytorch.data.predictions import check_one_row_per_sample
from easytorch.diagnostics.frames import Failure, calls_of, code_of
from easytorch.strategies.base import Strategy

# What torch and Python write about a wrong number of dimensions.
DIMENSION_ERROR = re.compile(r"dimension|shape|\bsizes?\b|\dD\b|to unpack|tuple index out of range", re.IGNORECASE)
# A sample has at most these dimensions: channels, height and width. An array with more is a batch.
MAX_SAMPLE_DIMENSIONS = 3


def collate_error(failure: Failure) -> Exception | None:
    """Return why the samples of a dataset do not fit into a batch."""
    text = str(failure.error)
    if any(map(is_detection_sample, _first_samples(failure))):
        return ValueError(f"The samples of a batch are images with dicts of boxes. {COLLATE_DETECTION}")
    # A worker passes its traceback on as text.
    in_worker = "DataLoader worker" in text and "collate" in text
    if not in_worker and not calls_of(failure.frames, default_collate):
        return None
    if "NoneType" in text:
        return TypeError(
            "A sample of the dataset is None, or contains None. Return (x, y) from __getitem__ for every index. To leave out "
            "samples, use torch.utils.data.Subset(dataset, indices)."
        )
    if match := re.search(r"batch must contain .*found <class '([\w.]+)'>", text):
        return _sample_type_error(match[1])
    if "equal size" in text or "Trying to resize storage" in text:
        sizes = re.findall(r"(\[[\d, ]*\]) at entry", text)
        rows = rows_of_batches(collated_samples(failure))
        if rows is not None:
            return ValueError(
                f"Each item of the dataset is a batch already, of {rows[0]} samples, and the last of {rows[1]}. Pass "
                "DataLoader(dataset, batch_size=None)."
            )
        examples = f", for example {' and '.join(sizes)}" if sizes else ""
        return ValueError(
            f"The samples of a batch differ in shape{examples}. Pad them in a collate_fn of the DataLoader with "
            "torch.nn.utils.rnn.pad_sequence, or resize images to one size in a transform."
        )
    return None


def rows_of_batches(samples: Any) -> tuple[int, int] | None:
    """Return the number of samples in the first and in the last of the "samples", if they are batches already, else None.

    All of their arrays have the same length then, and only the last batch has another one.
    """
    if not isinstance(samples, list) or len(samples) < 2:
        return None
    lengths = [set(map(_length, _parts_of(sample))) for sample in samples]
    first, last = lengths[0], lengths[-1]
    if any(other != first for other in lengths[:-1]) or not len(first) == len(last) == 1:
        return None
    rows = first.pop(), last.pop()
    return rows if rows[0] > rows[1] > 0 and len(_parts_of(samples[0])) > 1 else None


def _parts_of(sample: Any) -> list[Any]:
    values = sample.values() if isinstance(sample, Mapping) else sample if isinstance(sample, (tuple, list)) else ()
    return list(values)


def _length(value: Any) -> int:
    """Return the length of an array or a list, 0 if there is none."""
    if isinstance(value, (Tensor, np.ndarray)):
        return len(value) if value.ndim else 0
    return len(value) if isinstance(value, list) else 0


def unpacking_error(failure: Failure) -> Exception | None:
    """Return that ``self.unpack(batch)`` has three parts, if a line of the user takes another number."""
    frame, traceback = failure.frames[-1], failure.error.__traceback__
    if not re.search(r"values to unpack \(expected \d", str(failure.error)) or is_internal(frame) or traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    line = linecache.getline(frame.f_code.co_filename, traceback.tb_lineno, frame.f_globals)
    if not re.search(r"=\s*\w+\.unpack\(", line):
        return None
    return ValueError(
        f"{frame.f_code.co_name}: {failure.error}. self.unpack(batch) returns three parts, and the last one is None without "
        "sample weights. Write x, y, sample_weight = self.unpack(batch)."
    )


def detection_error(failure: Failure) -> Exception | None:
    """Return how to make batches for a detector, if one of torch has joined the images and the dicts of boxes."""
    batch = next((batch for _, _, batch in calls_of(failure.frames, Strategy.run)), None)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        return None
    if not isinstance(batch[1], Mapping) or "boxes" not in batch[1]:
        return None
    return ValueError(f"The batch has one tensor of images and one dict, {describe(batch)}. {COLLATE_DETECTION}")


def _first_samples(failure: Failure) -> list[Any]:
    return (collated_samples(failure) or [])[:1]


def collated_samples(failure: Failure) -> list[Any] | None:
    """Return the samples that the outermost call of ``default_collate`` got; None if there is none."""
    calls = calls_of(failure.frames, default_collate)
    samples = calls[-1][0] if calls else None
    return samples if isinstance(samples, list) else None


def _sample_type_error(name: str) -> Exception:
    if name.startswith("PIL."):
        return TypeError(
            "A sample of the dataset contains a PIL image, expected a tensor. Pass "
            "transform=torchvision.transforms.ToTensor() to the dataset."
        )
    if name.startswith("torch_geometric."):
        return TypeError(
            f"A sample of the dataset is a graph, {name}, of which torch's DataLoader makes no batch. Pass "
            "torch_geometric.loader.DataLoader(dataset, batch_size=32, shuffle=True)."
        )
    return TypeError(
        f"A sample of the dataset contains an object of type {name}, expected tensors, arrays or numbers. Convert it in "
        "__getitem__, or pass a collate_fn to the DataLoader."
    )


def add_batch_dimension_advice(failure: Failure, explanation: Exception | None) -> Exception | None:
    """Add to an error about dimensions in ``predict`` how to add a batch dimension to the input.

    Args:
        failure: The exception, with the input of ``predict``.
        explanation: The error that explains it; None if no rule applies.

    Returns:
        The error with the advice, or ``explanation`` if the input is no array that may lack a dimension.
    """
    # predict_on_batch passes a list with one batch.
    x = failure.x[0] if isinstance(failure.x, list) and len(failure.x) == 1 else failure.x
    if not _may_be_sample(x) or not _is_about_dimensions(failure, explanation):
        return explanation
    message = str(explanation or failure.error).rstrip(".")
    error_type = ValueError if explanation is None else type(explanation)
    return error_type(f"{message}. {_batch_dimension_advice(x)}")


def _may_be_sample(x: Any) -> bool:
    if isinstance(x, list):
        return bool(x) and all(isinstance(value, (int, float)) for value in x)
    return is_array(x) and np.ndim(x) <= MAX_SAMPLE_DIMENSIONS


def _is_about_dimensions(failure: Failure, explanation: Exception | None) -> bool:
    error, innermost = failure.error, failure.frames[-1]
    if innermost.f_code is code_of(check_one_row_per_sample):
        return isinstance(error, ValueError)
    if explanation is None and isinstance(error, ValueError) and is_internal(innermost):
        return False  # a message of this package
    is_error_of_torch = explanation is not None or isinstance(error, (RuntimeError, IndexError, ValueError))
    return is_error_of_torch and DIMENSION_ERROR.search(str(error)) is not None


def _batch_dimension_advice(x: Any) -> str:
    array = "torch.tensor(x)" if isinstance(x, list) else "x.to_numpy()" if hasattr(x, "to_numpy") else "x"
    advice = f"If the input is one sample, pass {array}[None]"
    return f"{advice}; if it has one number per sample, pass {array}[:, None]." if np.ndim(x) == 1 else f"{advice}."
