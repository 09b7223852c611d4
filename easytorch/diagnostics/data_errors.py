"""Errors in data as messages about what the user passed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils import train_mode
from easytorch._utils.pytree import describe, leaves
from easytorch._utils.rng import preserve_rng_state
from easytorch.data.arrays import as_tensor, is_array

VERBS = ("fit", "evaluate", "train_on_batch", "test_on_batch", "_predict")
LARGEST = 10_000_000  # values; no single sample is larger
# Cures are written for tensors; these are the same for what has no such method.
ARRAY = {
    ".long()": '{}.astype("int64")',
    ".float()": '{}.astype("float32")',
    ".unsqueeze(1)": "{}[:, None]",
    ".movedim(-1, 1)": "numpy.moveaxis({}, -1, 1)",
}
PANDAS = {
    **ARRAY,
    ".unsqueeze(1)": "{}.to_numpy()[:, None]",
    ".argmax(1)": "{}.to_numpy().argmax(1)",
    "[None]": "{}.to_numpy()[None]",
    "[:, None]": "{}.to_numpy()[:, None]",
}
LIST = {
    ".long()": "torch.tensor({}).long()",
    ".float()": "torch.tensor({}).float()",
    ".unsqueeze(1)": "torch.tensor({})[:, None]",
    ".squeeze(1)": "torch.tensor({}).squeeze(1)",
    ".argmax(1)": "torch.tensor({}).argmax(1)",
    "[None]": "[{}]",
    "[:, None]": "torch.tensor({})[:, None]",
}


def reword(error: Exception, frames: Sequence[FrameType]) -> None:
    """Let the cures that ``error`` names be those for an array, a series or a list, where the user passed one."""
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return
    message = error.args[0]
    for name, value in zip("xy", _given(frames), strict=True):
        for cure, instead in _cures(value).items():
            message = re.sub(rf"(?<![\w.]){re.escape(name + cure)}", instead.format(name), message)
    error.args = (message,)


def _cures(value: Any) -> Mapping[str, str]:
    if isinstance(value, np.ndarray):
        return ARRAY
    if hasattr(value, "to_numpy"):
        return PANDAS
    return LIST if isinstance(value, list) else {}


def _given(frames: Sequence[FrameType]) -> tuple[Any, Any]:
    """Return the inputs and targets that the user passed, the first of several; None where they came otherwise."""
    call = next((frame.f_locals for frame in _callers() if _is_verb(frame)), {})
    x, y = call.get("x"), call.get("y")
    if any(frame.f_code.co_name == "_try_out" for frame in frames) and call.get("validation_data") is not None:
        x, y = call.get("validation_data"), None
    if isinstance(x, list) and x and isinstance(x[0], (tuple, list)) and y is None:  # a list of batches
        x = tuple(x[0])
    if isinstance(x, list) and len(x) == 1 and is_array(x[0]):
        x = x[0]
    if isinstance(x, tuple) and y is None and len(x) in (2, 3):
        x, y = x[:2]
    return _first(x), _first(y)


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_verb(frame: FrameType) -> bool:
    return frame.f_code.co_name in VERBS and frame.f_globals.get("__name__") == "easytorch.model"


def _first(tree: Any) -> Any:
    return next(leaves(tree), None) if isinstance(tree, (tuple, Mapping)) else tree


# Samples that make no batch


COLLATING = ("default_collate", "collate", "collated", "collate_tensor_fn")


def explain_collate_error(error: Exception, frames: Sequence[FrameType]) -> Exception | None:
    """Return what is wrong with the samples of a dataset, of which no batch could be made."""
    text = str(error)
    if "DataLoader worker" not in text and not any(frame.f_code.co_name in COLLATING for frame in frames):
        return None
    if "NoneType" in text:
        return TypeError(
            "A sample of the dataset is None, or holds one. Let __getitem__ return (x, y) in every case, and leave out what has "
            "no sample by torch.utils.data.Subset(dataset, indices)."
        )
    found = re.search(r"batch must contain .*found <class '([\w.]+)'>", text)
    if found and found[1].startswith("PIL."):
        return TypeError(
            "A sample of the dataset holds a PIL image, of which no batch can be made. Make it a tensor: give the dataset "
            "transform=torchvision.transforms.ToTensor()."
        )
    if found:
        return TypeError(
            f"A sample of the dataset holds an object of the type {found[1]}, of which no batch can be made. Let __getitem__ "
            "return tensors, arrays or numbers, or give the DataLoader a collate_fn."
        )
    if "equal size" in text or "Trying to resize storage" in text:
        sizes = re.findall(r"(\[[\d, ]*\]) at entry", text)
        between = f", {' and '.join(sizes)}" if sizes else ""
        return ValueError(
            f"The samples of a batch differ in shape{between}. Pad them in a collate_fn of the DataLoader, for example by "
            "torch.nn.utils.rnn.pad_sequence, or bring images to one size by a transform."
        )
    return None


# One sample in the place of a batch


def explain_missing_batch_dim(error: Exception, frames: Sequence[FrameType], module: nn.Module) -> Exception | None:
    """Return what dimension ``predict`` misses in its input, found by trying the module on it with one more."""
    x = next((f.f_locals.get("x") for f in frames if _is_verb(f) and f.f_code.co_name == "_predict"), None)
    x = x[0] if isinstance(x, list) and len(x) == 1 else x  # as predict_on_batch passes it
    numbers = isinstance(x, list) and bool(x) and all(isinstance(value, (int, float)) for value in x)
    if not (is_array(x) or numbers) or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None  # of many processes none may call the module alone
    try:
        tensor = as_tensor(x)
    except (ValueError, TypeError):  # a single number, or none
        return None
    if not 0 < tensor.numel() <= LARGEST or (_rows(module, tensor) == len(tensor) and not _has_no_rows(error, tensor)):
        return None
    if _rows(module, tensor[None]) == 1:
        return ValueError(f"The input, {describe(tensor)}, looks like one sample: x[None] makes a batch of it.")
    if tensor.ndim == 1 and _rows(module, tensor[:, None]) == len(tensor):
        return ValueError(
            f"The input, {describe(tensor)}, has one number for each sample, but no dimension for it: pass x[:, None]."
        )
    return None


def _has_no_rows(error: Exception, x: Tensor) -> bool:
    """Whether outputs that have as many rows as ``x`` by chance were found to have no columns."""
    return x.ndim == 1 and isinstance(error, IndexError)


def _rows(module: nn.Module, x: Tensor) -> int | None:
    """Return the number of rows that ``module`` makes of ``x``; None where it fails, or they differ."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
    try:
        with train_mode.in_eval_mode(module), torch.no_grad(), preserve_rng_state():
            outputs = module(x)
    except Exception:  # whatever a module of the user's raises: it does not take this input
        return None
    rows = {len(leaf) if leaf.ndim else 0 for leaf in leaves(outputs) if isinstance(leaf, Tensor)}
    return rows.pop() if len(rows) == 1 else None
