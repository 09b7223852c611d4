"""What ``predict`` gathers, batch by batch: arrays in memory, or files for what does not fit there."""

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

from easytorch._utils import atomic_file
from easytorch._utils.pytree import concatenate, leaves, map_leaves
from easytorch.batch import NO_BATCH
from easytorch.distributed.process_group import Alone

HEADER = 256  # bytes; as many digits as the number of rows may ever get have room in it


class Gathered(contextlib.AbstractContextManager["Gathered"]):
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
            raise ValueError(NO_BATCH)
        try:
            return concatenate(self.parts)
        except ValueError as error:  # "must match exactly", as NumPy says
            raise ValueError(
                "The outputs of the batches differ in shape, so they do not fit in one array. Pad them in predict_step."
            ) from error

    @staticmethod
    def to(path: str | os.PathLike[str] | None) -> Gathered:
        """Return what gathers in memory, or in files at ``path``."""
        return Gathered() if path is None else Written(Path(path))


class Joined(Gathered):
    """Outputs of many processes, each of which predicts every so-many-th batch, or data of its own.

    Args:
        inner: Where all of them are gathered.
        processes: Those who predict.
    """

    def __init__(self, inner: Gathered, processes: Alone) -> None:
        super().__init__()
        self.inner, self.processes = inner, processes
        self.streams = isinstance(inner, Written)  # round by round then: there may be more than fits in memory

    def __enter__(self) -> Joined:
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
                self._take(self.processes.gather(self.parts))
        if error[0] is None:
            self.processes.wait()  # the file is in its place

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
        found = self.processes.gather(parts)
        self._take(found)
        return any(found)

    def _take(self, found: list[list[Any]]) -> None:
        if self.processes.splits:  # the first of each, then the second of each
            found = [[part] for round_ in itertools.zip_longest(*found) for part in round_ if part is not None]
        for part in itertools.chain.from_iterable(found):
            self.inner.add(part)


class Written(Gathered):
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
        self._files: list[_Rows] = []
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
                self._files.append(_Rows(self._stack.enter_context(atomic_file.replacing(path)), array))
        for rows, array in zip(self._files, arrays, strict=self.writes):
            rows.write(array)

    def result(self) -> Any:
        """Return the files as arrays that are read from the disk when they are used."""
        if not self._paths:
            raise ValueError(NO_BATCH)
        paths = iter(self._paths)
        return map_leaves(lambda _: np.load(next(paths), mmap_mode="r"), self._tree)


class _Rows:
    """A ``.npy`` file that grows; the format is that of numpy.lib.format, version 1.0."""

    def __init__(self, file: atomic_file.Honest, first: Any) -> None:
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
