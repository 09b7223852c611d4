"""Inputs and outputs of predict, in memory or in files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from easytorch._utils import atomic_file
from easytorch._utils.paths import to_path
from easytorch._utils.pytree import concatenate, describe, leaves, map_leaves, to_numpy
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch._utils.text_table import join_numbers
from easytorch._utils.warnings import warn
from easytorch.data.batch import EMPTY_DATA, batch_size
from easytorch.data.batch_objects import object_rows, without_neighbors
from easytorch.distributed.process_group import SingleProcess


def transform_outputs(transform: Callable[[Any], Any] | None, outputs: Any, batch: Any) -> Any:
    """Return ``transform(outputs)``; report outputs without one row for each sample of ``batch``, on which it would fail."""
    if transform is None:
        return outputs
    if isinstance(outputs, Tensor):
        outputs = check_one_row_per_sample(outputs, batch)
    return transform(outputs)


class ClassFinder(contextlib.AbstractContextManager["ClassFinder"]):
    """Finds the classes of each batch, and warns at the end of samples whose probabilities are NaN.

    Args:
        classes: Returns the classes of outputs, and calls ``observe`` with their probabilities.
        collector: Collects which samples have NaN, over all batches and ranks.
    """

    def __init__(self, classes: Callable[..., Any], collector: OutputCollector) -> None:
        self.classes, self.collector = classes, collector

    def __call__(self, outputs: Any) -> Any:
        """Return the classes of the outputs of a batch."""
        observed: list[Tensor] = []
        classes = self.classes(outputs, observe=observed.append)
        rows = [probabilities.isnan().reshape(len(probabilities), -1).any(1) for probabilities in observed]
        self.collector.add(to_numpy(torch.stack(rows).any(0)))
        return classes

    def __enter__(self) -> ClassFinder:
        self.collector.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Warn if a sample has NaN."""
        self.collector.__exit__(*error)
        if error[0] is None:
            warn_of_nan(self.collector.result())


def warn_of_nan(is_nan: Any) -> None:
    """Warn that the classes of the samples ``is_nan``, ``[N]`` of booleans, have no meaning."""
    indices = np.flatnonzero(is_nan).tolist()
    if indices:
        warn(
            f"The classes of {len(indices)} of {len(is_nan)} samples have no meaning: the module returned NaN for them. Their "
            f"indices: {join_numbers(indices)}. Check these inputs and the weights of the module for NaN and infinite values."
        )


def check_one_row_per_sample(outputs: Any, batch: Any) -> Any:
    """Return ``outputs`` if they have one row for each sample of ``batch``, so that batches can be joined.

    Of a sampled subgraph, only the rows of its seeds are returned. What a generating model caches is left out.

    Raises:
        TypeError: If ``outputs`` are None.
        ValueError: If an output has another number of rows.
    """
    if outputs is None:
        raise TypeError(
            "There are no outputs: the module returned None. Add a return statement to forward() or predict_step()."
        )
    outputs = without_caches(without_neighbors(outputs, batch))
    if _are_of_samples(outputs, batch):
        return SampleList(outputs)
    try:
        size = batch_size(batch)
    # A batch object of another library
    except ValueError:
        return outputs
    if isinstance(outputs, Tensor):
        is_valid = outputs.shape[:1] == (size,) or (outputs.ndim > 0 and len(outputs) in object_rows(batch))
    else:
        # Next to other outputs there may be a single number, such as a loss.
        is_valid = all(not leaf.ndim or len(leaf) in (size, 0) for leaf in leaves(outputs) if isinstance(leaf, Tensor))
    if isinstance(outputs, list) and len(outputs) == size and not (is_valid and _has_full_rows(outputs)):
        return SampleList(outputs)
    if is_valid:
        return outputs
    raise ValueError(
        f"predict() needs outputs with one row for each sample, but for a batch of {size} the module returned "
        f"{describe(outputs)}. Override predict_step to return such outputs, or replace squeeze() by squeeze(1) in forward()."
    )


def without_caches(outputs: Any) -> Any:
    """Return a dict of outputs without the keys and values of attention, which are for the next token and hold memory.

    The caches of transformers are objects, which cannot be joined over batches.
    """
    caches = [key for key in outputs if is_cache(outputs[key])] if isinstance(outputs, Mapping) else []
    if not caches:
        return outputs
    others = {key: value for key, value in outputs.items() if key not in caches}
    kind: Any = type(outputs)
    return kind(**others) if dataclasses.is_dataclass(outputs) else others


def is_cache(value: Any) -> bool:
    """Return whether ``value`` has the interface of the caches of transformers."""
    return all(callable(getattr(value, name, None)) for name in ("update", "get_seq_length"))


def pair_with_targets(outputs: Any, y: Any) -> tuple[Any, Any]:
    """Return outputs and targets of a batch.

    Raises:
        ValueError: If the batch has no targets, or the outputs are a list with one entry for each sample.
    """
    if y is None:
        raise ValueError(
            "targets=True needs data with targets, but the batch has none. Pass predict((x, y), targets=True)."
        )
    if isinstance(outputs, SampleList):
        raise ValueError(
            "targets=True and report() need outputs with one row for each sample, but the module returned a list with one entry "
            "for each sample, as detectors do. To measure detections, pass compile() a metric of all images, such as "
            "torchmetrics.detection.MeanAveragePrecision() or an easytorch.EpochMetric, name it in validation_only=[...], and "
            "call evaluate(data). For the targets next to the outputs, collect them in predict_step."
        )
    return outputs, y


def _are_of_samples(outputs: Any, batch: Any) -> bool:
    """Return whether ``outputs`` have a dict for each input of ``batch``, which are a list, such as images of any size."""
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else None
    is_list = isinstance(x, (tuple, list)) and isinstance(outputs, list) and len(outputs) == len(x)
    return is_list and all(isinstance(output, Mapping) for output in outputs)


class SampleList(list[Any]):
    """Outputs with one entry for each sample, such as the boxes of a detector or decoded texts."""


def _has_full_rows(outputs: Any) -> bool:
    """Return whether ``outputs`` have tensors with rows; detectors may find nothing in all images of a batch."""
    return any(leaf.ndim and len(leaf) for leaf in leaves(outputs) if isinstance(leaf, Tensor))


def join_samples(batches: Sequence[Any]) -> list[Any] | None:
    """Return one list with the entries of all batches if one of them is a ``SampleList``, otherwise None."""
    if not any(isinstance(batch, SampleList) for batch in batches):
        return None
    return list(itertools.chain.from_iterable(batches))


def warn_if_shuffled(loader: Any) -> Any:
    """Return ``loader``; warn if its sampler changes the order or the number of samples, so that outputs do not match them."""
    sampler = find_shuffling_sampler(loader)
    if sampler is not None:
        warn(
            "The outputs have another order than the samples of the dataset, or another number, because of the sampler "
            f"of this DataLoader, {type(sampler).__name__}. Pass a DataLoader with shuffle=False, or the dataset itself."
        )
    return loader


def find_shuffling_sampler(loader: Any) -> Any:
    """Return the sampler of ``loader`` if it changes the order or the number of samples, otherwise None."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    batch_sampler = loader.batch_sampler
    sampler: Any = getattr(batch_sampler, "sampler", loader.sampler)
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        sampler = batch_sampler
    return None if _keeps_order(sampler, loader.dataset) else sampler


def _keeps_order(sampler: Any, dataset: Any) -> bool:
    """Return whether ``sampler`` draws every sample of ``dataset`` once, in order."""
    if isinstance(sampler, SequentialSampler) or (isinstance(sampler, DistributedSampler) and not sampler.shuffle):
        return True
    if isinstance(sampler, (RandomSampler, WeightedRandomSampler, SubsetRandomSampler, DistributedSampler)):
        return False
    try:
        with preserve_rng_state(), preserve_generators([sampler]):
            indices = list(itertools.islice(sampler, len(dataset) + 1))
        if indices and all(isinstance(batch, (list, tuple)) for batch in indices):  # a sampler of batches
            indices = list(itertools.chain.from_iterable(indices))
        return not all(isinstance(index, int) for index in indices) or indices == list(range(len(dataset)))
    # A sampler of batches, or a dataset without a length.
    except TypeError:
        return True


class OutputCollector(contextlib.AbstractContextManager["OutputCollector"]):
    """The outputs of all batches, in memory."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    @staticmethod
    def to(path: str | os.PathLike[str] | None) -> OutputCollector:
        """Return a collector that writes files at ``path``, or collects in memory if it is None."""
        return OutputCollector() if path is None else NpyWriter(to_path(path, "to"))

    def __exit__(self, *_: object) -> None:
        """Do nothing; files need to be closed."""

    def add(self, outputs: Any) -> None:
        """Add a copy of the outputs of one batch: a module or loader may use their memory for the next batch."""
        self.outputs.append(map_leaves(_copy_array, outputs))

    def result(self) -> Any:
        """Return the outputs of all batches, joined.

        Raises:
            ValueError: If there was no batch, or the outputs differ in shape.
        """
        if not self.outputs:
            raise ValueError(EMPTY_DATA)
        samples = join_samples(self.outputs)
        if samples is not None:
            return samples
        try:
            return concatenate(self.outputs)
        # NumPy reports that dimensions "must match exactly".
        except ValueError as error:
            raise ValueError(
                "The outputs of the batches differ in shape, so they do not fit in one array. Pad them to one shape in "
                "predict_step."
            ) from error


def _copy_array(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


class DistributedCollector(OutputCollector):
    """The outputs of all ranks, gathered on each of them.

    Each rank predicts every ``world_size``-th batch, or separate data.

    Args:
        inner: The collector that receives the outputs of all ranks.
        group: The processes that predict.
    """

    def __init__(self, inner: OutputCollector, group: SingleProcess) -> None:
        super().__init__()
        self.inner, self.group = inner, group
        # Files may be larger than memory, so each batch is gathered at once.
        self.streams = isinstance(inner, NpyWriter)

    def __enter__(self) -> DistributedCollector:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Gather the remaining outputs, and close the inner collector."""
        failed = error[0] is not None
        with contextlib.ExitStack() as stack:
            stack.push(self.inner.__exit__)
            if not failed:
                self._finish()
        # After the barrier the files exist for all ranks.
        if not failed:
            self.group.barrier()

    def _finish(self) -> None:
        if not self.streams:
            self._gather(self.outputs)
            return
        # Other ranks may have more batches.
        while self._gather([]):
            pass

    def add(self, outputs: Any) -> None:
        """Add the outputs of one batch."""
        if self.streams:
            self._gather([outputs])
        else:
            super().add(outputs)

    def result(self) -> Any:
        """Return the outputs of all batches, joined."""
        return self.inner.result()

    def _gather(self, outputs: list[Any]) -> bool:
        """Add the outputs of all ranks in the order of the batches; return whether there were any."""
        by_rank = self.group.gather(outputs)
        ordered: Iterable[Any] = itertools.chain.from_iterable(by_rank)
        if self.group.splits_data:
            rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_rank))
            ordered = (batch_outputs for batch_outputs in rounds if batch_outputs is not None)
        for batch_outputs in ordered:
            self.inner.add(batch_outputs)
        return any(by_rank)


class NpyWriter(OutputCollector):
    """Outputs in ``.npy`` files, one for each array, written row by row and visible when complete.

    Args:
        path: ``name.npy``. Several outputs are written to several files, ``name.0.npy`` or ``name.key.npy``.

    Raises:
        ValueError: If the suffix is not ``.npy``.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".npy":
            name = f"{path.stem}.npy"
            raise ValueError(
                f"Outputs are written as .npy files: expected a path such as {name!r}, received {str(path)!r}. Pass to={name!r}."
            )
        super().__init__()
        self.path = path
        # Only the main process writes.
        self.writes = True
        self._stack = contextlib.ExitStack()
        self._files: list[GrowingNpyFile] = []
        self._paths: list[Path] = []
        self._structure: Any = None

    def __exit__(self, *error: Any) -> None:
        """Replace the files at ``path``, or remove the new ones after an error."""
        try:
            if error[0] is None:
                for file in self._files:
                    file.finish()
        except BaseException:
            error = sys.exc_info()
            raise
        finally:
            self._stack.__exit__(*error)

    def add(self, outputs: Any) -> None:
        """Write the outputs of one batch."""
        if isinstance(outputs, SampleList):
            raise ValueError(
                "A .npy file needs outputs with one row of equal shape for each sample, but the module returned a list with one "
                "entry for each sample. Leave out to=, or pad them to one shape in predict_step."
            )
        arrays = list(leaves(outputs))
        if not self._paths:
            self._open(outputs, arrays)
        if self.writes:
            for file, array in zip(self._files, arrays, strict=True):
                file.write(array)

    def _open(self, outputs: Any, arrays: list[Any]) -> None:
        self._structure = outputs
        self._paths = [self.path.with_suffix(f"{suffix}.npy") for suffix in _get_suffixes(outputs)]
        if self.writes:
            for array, path in zip(arrays, self._paths, strict=True):
                file = self._stack.enter_context(atomic_file.replace_atomically(path))
                self._files.append(GrowingNpyFile(file, array))

    def result(self) -> Any:
        """Return the files as arrays that are read from the disk on access."""
        if not self._paths:
            raise ValueError(EMPTY_DATA)
        paths = iter(self._paths)
        return map_leaves(lambda _: np.load(next(paths), mmap_mode="r"), self._structure)


class GrowingNpyFile:
    """A ``.npy`` file whose number of rows grows.

    Args:
        file: The file to write.
        first: The outputs of the first batch, which decide shape and dtype of a row.
    """

    def __init__(self, file: atomic_file.ErrorRecordingFile, first: Any) -> None:
        if not isinstance(first, np.ndarray) or not first.ndim:
            raise ValueError(
                f"A file needs outputs with one row for each sample: expected an array, received {first!r}. Override "
                "predict_step to remove it."
            )
        self.file, self.count = file, 0
        self.shape, self.dtype = first.shape[1:], first.dtype
        self._write_header()

    def write(self, array: np.ndarray[Any, Any]) -> None:
        """Append the rows of ``array``."""
        if array.shape[1:] != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"The outputs of the batches differ: expected rows of {self.dtype} {list(self.shape)}, received rows of "
                f"{array.dtype} {list(array.shape[1:])}. Pad them to one shape in predict_step."
            )
        self.file.write(np.ascontiguousarray(array).data)
        self.count += len(array)

    def finish(self) -> None:
        """Write the number of rows to the header."""
        self.file.raw.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that its length does not depend on the number of rows.
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def _get_suffixes(tree: Any, prefix: str = "") -> list[str]:
    """Return the suffix of the file of each leaf: nothing for a single array, otherwise its keys and positions."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (tuple, list)):
        items = enumerate(tree)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = ((field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree))
    else:
        return [prefix]
    return [suffix for key, value in items for suffix in _get_suffixes(value, f"{prefix}.{_file_name(key)}")]


def _file_name(key: Any) -> str:
    """Return ``key`` with the characters that a file name cannot contain as in a URL: ``head%2Fscores``."""
    return "".join(
        f"%{ord(letter):02X}" if letter in "/\\%" or not letter.isprintable() else letter for letter in str(key)
    )
