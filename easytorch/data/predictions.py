"""Inputs and outputs of predict, in memory or in files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from easytorch._utils import atomic_file
from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.pytree import concatenate, describe, leaves, map_leaves
from easytorch._utils.warnings import warn
from easytorch.data.arrays import as_tensor, as_tensors, is_array
from easytorch.data.batch import EMPTY_DATA, batch_size
from easytorch.distributed.process_group import SingleProcess


def inputs(x: Any, signature: ForwardSignature) -> Any:
    """Return ``x`` for ``predict``: as many arrays as the module takes are its inputs, not inputs and targets."""
    if isinstance(x, list):
        return _listed_inputs(x, signature)
    several = isinstance(x, tuple) and 1 < len(x) <= signature.positional and signature.positional != float("inf")
    return (x,) if several and all(map(is_array, x)) else x


def _listed_inputs(x: list[Any], signature: ForwardSignature) -> Any:
    """Return a list as what ``fit`` takes it for beside targets, numbers, rows or several inputs; else it holds batches."""
    if isinstance(next(leaves(x), None), (int, float, np.generic)):
        return as_tensors(x)
    if signature.required > 1 and all(_are_arrays(part, signature.required) for part in x):
        return [(tuple(part),) for part in x]  # batches of several inputs, which cannot be (x, y)
    if len(x) < 2 or not all(map(is_array, x)):
        return x
    if signature.required == len(x):
        return (x,)
    shapes = {np.shape(part) for part in x}
    if len(shapes) == 1 and all(map(_is_row, x)):
        return torch.stack([as_tensor(row) for row in x])
    if len(shapes) == 1:
        count = "one input" if len(signature.names) == 1 else f"{len(signature.names) or 'any number of'} inputs"
        raise ValueError(
            f"The module takes {', '.join([count, *map(repr, signature.names)])}, but predict() was given a list of {len(x)} "
            f"arrays of one shape, {describe(x)}. Pass several inputs as a tuple, samples as one array, torch.stack(x), and "
            "batches as [(x1,), (x2,), ...]."
        )
    return x


def _are_arrays(part: Any, count: int) -> bool:
    return isinstance(part, (tuple, list)) and len(part) == count and all(map(is_array, part))


def _is_row(part: Any) -> bool:
    """Whether ``part`` is the features of one sample; a batch of single whole numbers is nothing unusual, one of floats is."""
    tensor = as_tensor(part)
    return bool(tensor.ndim == 1 and tensor.is_floating_point())


def check_one_row_per_sample(outputs: Any, batch: Any) -> Any:
    """Return ``outputs`` if they have one row for each sample of ``batch``, so that those of many batches can be joined."""
    if outputs is None:
        raise TypeError("There are no outputs: does forward(), or predict_step, lack its return?")
    try:
        size = batch_size(batch)
    except ValueError:  # a batch of another library
        return outputs
    single = isinstance(outputs, Tensor)
    if single and outputs.shape[:1] == (size,):
        return outputs
    shapes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves(outputs) if isinstance(leaf, Tensor)}
    if not shapes - {size} - (set() if single else {0}):  # beside others a single number may stand, such as a loss
        return outputs
    raise ValueError(
        f"predict() joins outputs that have one row for each sample, but for a batch of {size} the module returned "
        f"{describe(outputs)}. Override predict_step to return what has a row for each, or use squeeze(1) for squeeze() in "
        "forward()."
    )


def warn_if_shuffled(loader: Any) -> Any:
    """Return ``loader``, with a warning if it draws its samples in random order: outputs would not match the samples."""
    if isinstance(loader, DataLoader) and isinstance(
        getattr(loader.batch_sampler, "sampler", loader.sampler), RandomSampler
    ):
        warn(
            "This DataLoader shuffles, so the outputs come in another order than its dataset's samples. Pass a DataLoader "
            "with shuffle=False, or the dataset itself."
        )
    return loader


HEADER = 256  # bytes; as many digits as the number of rows may ever get have room in it


class OutputCollector(contextlib.AbstractContextManager["OutputCollector"]):
    """Outputs in memory."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def __exit__(self, *_: object) -> None:
        """Keep what there is."""

    def add(self, part: Any) -> None:
        """Take the outputs of one batch."""
        self.parts.append(part)

    def result(self) -> Any:
        """Return all outputs, joined."""
        if not self.parts:
            raise ValueError(EMPTY_DATA)
        try:
            return concatenate(self.parts)
        except ValueError as error:  # "must match exactly", as NumPy says
            raise ValueError(
                "The outputs of the batches differ in shape, so they do not fit in one array. Pad them in predict_step."
            ) from error

    @staticmethod
    def to(path: str | os.PathLike[str] | None) -> OutputCollector:
        """Return what gathers in memory, or in files at ``path``."""
        return OutputCollector() if path is None else NpyWriter(Path(path))


class DistributedCollector(OutputCollector):
    """Outputs of many processes, each of which predicts every so-many-th batch, or data of its own.

    Args:
        inner: Where all of them are gathered.
        processes: Those who predict.
    """

    def __init__(self, inner: OutputCollector, group: SingleProcess) -> None:
        super().__init__()
        self.inner, self.group = inner, group
        self.streams = isinstance(inner, NpyWriter)  # round by round then: there may be more than fits in memory

    def __enter__(self) -> DistributedCollector:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Gather the last rounds, and end what gathers them."""
        with contextlib.ExitStack() as stack:
            stack.push(self.inner.__exit__)
            if error[0] is None and self.streams:
                while self._round([]):
                    pass
            elif error[0] is None:
                self._take(self.group.gather(self.parts))
        if error[0] is None:
            self.group.barrier()  # the file is in its place

    def add(self, part: Any) -> None:
        """Take the outputs of one batch."""
        if self.streams:
            self._round([part])
        else:
            super().add(part)

    def result(self) -> Any:
        """Return all outputs, joined."""
        return self.inner.result()

    def _round(self, parts: list[Any]) -> bool:
        found = self.group.gather(parts)
        self._take(found)
        return any(found)

    def _take(self, found: list[list[Any]]) -> None:
        if self.group.splits_data:  # the first of each, then the second of each
            found = [[part] for round_ in itertools.zip_longest(*found) for part in round_ if part is not None]
        for part in itertools.chain.from_iterable(found):
            self.inner.add(part)


class NpyWriter(OutputCollector):
    """Outputs in ``.npy`` files, one for each array, written row by row; they appear when they are whole.

    Args:
        path: ``name.npy``. Of several outputs each gets a file of its own, ``name.0.npy`` or ``name.key.npy``.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".npy":
            raise ValueError(
                f"Outputs are written as NumPy's .npy, received {str(path)!r}. Pass {path.stem + '.npy'!r}."
            )
        super().__init__()
        self.path = path
        self._stack = contextlib.ExitStack()
        self._files: list[GrowingNpyFile] = []
        self._paths: list[Path] = []
        self._tree: Any = None
        self.writes = True  # not where another process does it

    def __exit__(self, *error: Any) -> None:
        """Put the files in their places, or, after an error, leave nothing behind."""
        try:
            for rows in self._files if error[0] is None else ():
                rows.finish()
        except BaseException:
            error = sys.exc_info()
            raise
        finally:
            self._stack.__exit__(*error)

    def add(self, part: Any) -> None:
        """Write the outputs of one batch."""
        arrays = list(leaves(part))
        if not self._paths:
            self._tree, self._paths = part, [self.path.with_suffix(f"{name}.npy") for name in _names(part)]
            for array, path in zip(arrays if self.writes else (), self._paths, strict=self.writes):
                self._files.append(
                    GrowingNpyFile(self._stack.enter_context(atomic_file.replace_atomically(path)), array)
                )
        for rows, array in zip(self._files, arrays, strict=self.writes):
            rows.write(array)

    def result(self) -> Any:
        """Return the files as arrays that are read from the disk when they are used."""
        if not self._paths:
            raise ValueError(EMPTY_DATA)
        paths = iter(self._paths)
        return map_leaves(lambda _: np.load(next(paths), mmap_mode="r"), self._tree)


class GrowingNpyFile:
    """A ``.npy`` file that grows; the format is that of numpy.lib.format, version 1.0."""

    def __init__(self, file: atomic_file.ErrorRecordingFile, first: Any) -> None:
        if not isinstance(first, np.ndarray) or not first.ndim:
            raise ValueError(
                f"Only outputs with one row for each sample can be written to a file, and one of them is {first!r}. Override "
                "predict_step to leave it out."
            )
        self.file, self.count = file, 0
        self.shape, self.dtype = first.shape[1:], first.dtype
        file.write(self._header())

    def write(self, array: np.ndarray[Any, Any]) -> None:
        if array.shape[1:] != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"The outputs of the batches differ, {self.dtype} {list(self.shape)} and {array.dtype} {list(array.shape[1:])}, "
                "so they do not fit in one array. Pad them in predict_step."
            )
        self.file.write(np.ascontiguousarray(array).data)
        self.count += len(array)

    def finish(self) -> None:
        self.file.raw.seek(0)
        self.file.write(self._header())

    def _header(self) -> bytes:
        shape = (self.count, *self.shape)
        text = repr({"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER - 10) + text.ljust(HEADER - 11).encode() + b"\n"


def _names(tree: Any, prefix: str = "") -> list[str]:
    """Return what tells the file of each leaf: nothing for a single array, else its key or its place."""
    if isinstance(tree, Mapping):
        return [name for key, value in tree.items() for name in _names(value, f"{prefix}.{key}")]
    if isinstance(tree, (tuple, list)):
        return [name for i, value in enumerate(tree) for name in _names(value, f"{prefix}.{i}")]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [
            name for one in dataclasses.fields(tree) for name in _names(getattr(tree, one.name), f"{prefix}.{one.name}")
        ]
    return [prefix]
