"""What draws the order and the samples: generators, and the counters of samplers."""

from __future__ import annotations

import array
import dataclasses
import itertools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from easytorch._utils.object_graph import get_attributes, is_user_class, walk
from easytorch._utils.rng import (
    get_generator_states,
    get_rng_state,
    select_generators,
    set_generator_states,
    set_rng_state,
)
from easytorch._utils.warnings import warn
from easytorch.data.combined import CombinedLoader
from easytorch.data.webdatasets import counts_passes

# The largest list or array of a sampler that is saved.
MAX_VALUES = 10_000_000


class RandomSources:
    """The objects that draw for a loader, and the state that lets them draw the same again.

    The order is drawn at the start of a pass, by the samplers; for data that is not a ``DataLoader``, by the loader. To
    resume in the middle of a pass, they start from their state at its start and draw again. Everything else gets its
    current state.

    Args:
        loader: The loader of the user.
        validation_loader: The validation batches.

    Attributes:
        others: Other objects whose generators are saved, such as the module, by name.
    """

    def __init__(self, loader: Any, validation_loader: Any = None) -> None:
        self.loader, self.validation_loader = loader, validation_loader
        self.others: dict[str, Any] = {}
        self._initial_digests = {
            path: _digest(value) for path, value in self._scan().counters().items() if _is_plain(value)
        }
        self._initial_values: dict[str, Any] = {}  # of the counters that were restored
        self._has_warned = False

    # States

    def get_state(self, *, of_pass: bool = False) -> dict[str, Any]:
        """Return the states of all generators, and the counters that have changed; ``of_pass`` those of the loader alone."""
        scan = self._scan()
        objects = scan.order | scan.samples
        objects = objects if of_pass else objects | self._find_others(objects)
        return {
            "random": get_rng_state(),
            "generators": get_generator_states(select_generators(objects)),
            "counters": {
                path: _encode(value)
                for path, value in scan.counters().items()
                if _is_plain(value) and self._initial_digests.get(path) != _digest(value)
            },
        }

    def set_state(self, state: Mapping[str, Any], *, keep_order: bool = False) -> None:
        """Restore what ``get_state`` returned.

        Args:
            state: The state.
            keep_order: Whether the samplers, which have drawn the order of this pass, keep their state.
        """
        scan, states = self._scan(), dict(state["generators"])
        objects = scan.order | scan.samples
        generators = select_generators(objects | self._find_others(objects))
        if keep_order:
            for path in select_generators(scan.order):
                del generators[path]
                states.pop(path, None)
        else:
            self._set_counters(scan, state["counters"])
        self._report_missing(set_generator_states(generators, states))
        set_rng_state(state["random"])

    def set_state_of_pass(self, state: Mapping[str, Any]) -> None:
        """Restore what ``get_state(of_pass=True)`` returned at the start of a pass."""
        scan = self._scan()
        set_generator_states(select_generators(scan.order | scan.samples), state["generators"])
        self._set_counters(scan, state["counters"])
        set_rng_state(state["random"])

    def find_generators(self) -> dict[str, Any]:
        """Return all generators whose states ``get_state`` returns."""
        scan = self._scan()
        objects = scan.order | scan.samples
        return select_generators(objects | self._find_others(objects))

    def objects(self) -> dict[str, Any]:
        """Return the objects of the training data and of the validation data, by their path."""
        scan = self._scan()
        known = {"loader": self.loader, "validation": self.validation_loader} | scan.order | scan.samples
        return known | walk({"validation": self.validation_loader}, list(known.values())[2:])

    def of_samples(self) -> dict[str, Any]:
        """Return the objects that make the samples of training and validation, apart from those of streams.

        A stream is read again from its start, so its objects have the state of the start of a pass.
        """
        scan = self._scan()
        # A loader that saves itself saves a stream too.
        is_read_again = not isinstance(self.loader, DataLoader) or isinstance(self.loader.dataset, IterableDataset)
        samples = {} if is_read_again else scan.samples
        return samples | walk({"validation": self.validation_loader}, samples.values())

    def order_generators(self) -> dict[str, Any]:
        """Return the generators that draw the order."""
        return select_generators(self._scan().order)

    def set_epoch(self, epoch: int) -> None:
        """Call ``set_epoch`` of samplers, datasets and transforms that have it."""
        scan = self._scan()
        for source in (scan.order | scan.samples).values():
            if has_set_epoch(source):
                source.set_epoch(epoch)

    def _set_counters(self, scan: Scan, state: Mapping[str, Any]) -> None:
        """Restore counters; those without an entry had the value with which the program began."""
        previous = scan.counters()
        for path in state:
            if path not in self._initial_values:
                value = previous.get(path, _ABSENT)
                self._initial_values[path] = _encode(value) if _is_plain(value) else value
        for path, value in (self._initial_values | dict(state)).items():
            scan.set_counter(path, value, previous.get(path))

    def _report_missing(self, paths: list[str]) -> None:
        if self.validation_loader is None:  # this program does not validate
            paths = [path for path in paths if not path.startswith(("validation.", "validation["))]
        if paths and not self._has_warned:
            self._has_warned = True
            warn(
                "Results will differ from an uninterrupted run: it drew random numbers from "
                f"{', '.join(paths[:3])}{' and others' * (len(paths) > 3)}, and this program has no such generator there. Create "
                "generators before fit(), in the __init__ of the dataset or the transform."
            )

    # Objects

    def _scan(self) -> Scan:
        """Find the objects of the loader."""
        if isinstance(self.loader, CombinedLoader):
            return self._scan_parts(self.loader)
        return self._scan_loader(self.loader)

    def _scan_parts(self, loader: CombinedLoader) -> Scan:
        """Find the objects of all parts; each part restores the counters of its samplers by itself."""
        merged = Scan({}, {}, {})
        for name, part in loader.parts.items():
            scan = self._scan_loader(part)
            for objects, found in ((merged.order, scan.order), (merged.samples, scan.samples)):
                objects.update(
                    {f"loader[{name!r}]{path.removeprefix('loader')}": value for path, value in found.items()}
                )
        return merged

    def _scan_loader(self, loader: Any) -> Scan:
        if type(loader) in (list, tuple):  # of batches, which draw nothing
            return Scan({}, {}, {})
        if not isinstance(loader, DataLoader):
            objects = walk({"loader": loader})
            if not hasattr(loader, "load_state_dict"):
                return Scan(objects, {}, objects)
            # It replays its samplers, and nothing else.
            samplers = {path: value for path, value in objects.items() if isinstance(value, Sampler)}
            order = walk(samplers, exclude=[value for value in objects.values() if isinstance(value, Dataset)])
            drawn = set(map(id, order.values()))
            return Scan(order, {path: value for path, value in objects.items() if id(value) not in drawn}, {})
        # A subclass may add attributes.
        names = ["dataset", "collate_fn", "worker_init_fn", *sorted(vars(loader).keys() - _LOADER_ATTRIBUTES)]
        roots = {f"loader.{name}": getattr(loader, name, None) for name in names} | {"loader.class": type(loader)}
        samples = walk(roots)
        names = ["batch_sampler", "sampler", "generator"]
        # A sampler may refer to the dataset.
        order = walk({f"loader.{name}": getattr(loader, name, None) for name in names}, exclude=samples.values())
        is_stream = isinstance(loader.dataset, IterableDataset)
        counters = samples if is_stream else order
        return Scan(order, samples, {} if hasattr(loader, "load_state_dict") else counters)

    def _find_others(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return the objects of the validation data and of ``others``, without the ``known`` ones."""
        validation = walk({"validation": self.validation_loader}, known.values())
        return validation | walk(self.others, [*known.values(), *validation.values()])


@dataclasses.dataclass
class Scan:
    """Objects that can be reached from a loader, by path.

    Attributes:
        order: Those that draw the order of a pass.
        samples: Those that make the samples.
        sources: Those of them that may count, or change lists in place.
    """

    order: dict[str, Any]
    samples: dict[str, Any]
    sources: dict[str, Any]

    def counters(self) -> dict[str, Any]:
        """Return the attributes of samplers and streams that are plain or None, by path."""
        return {
            f"{path}.{name}": value
            for path, source in self.sources.items()
            if _draws_order(source)
            for name, value in get_attributes(source).items()
            if value is None or _is_plain(value)
        }

    def set_counter(self, path: str, value: Any, previous: Any) -> None:
        """Give an attribute the value that ``_encode`` returned, or delete it."""
        owner, _, name = path.rpartition(".")
        source = self.sources.get(owner)
        if source is None or not _draws_order(source):
            return
        if value is not _ABSENT:
            setattr(source, name, _decode(value, previous))
        elif hasattr(source, name):
            delattr(source, name)


_ABSENT = object()  # an attribute that the program does not have at its start
# Attributes that every DataLoader has.
_LOADER_ATTRIBUTES = frozenset(vars(DataLoader(TensorDataset())))


def has_set_epoch(source: Any) -> bool:
    """Return whether ``source`` itself defines ``set_epoch``, and not an object that it wraps."""
    if isinstance(source, type):
        return False
    return callable(getattr(type(source), "set_epoch", None)) or callable(get_attributes(source).get("set_epoch"))


def _draws_order(source: Any) -> bool:
    """Return whether ``source`` is a sampler, or a stream of the program."""
    kind = type(source)
    if counts_passes(source):
        return True
    if isinstance(source, (nn.Module, DataLoader)) or not hasattr(kind, "__iter__"):
        return False
    return isinstance(source, Sampler) or is_user_class(kind)


def _is_plain(value: Any) -> bool:
    """Return whether ``value`` is a number, an array of numbers, or a list of integers or of lists of integers."""
    if isinstance(value, torch.Tensor):
        return value.device.type == "cpu" and value.layout == torch.strided and value.numel() <= MAX_VALUES
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iufb" and value.dtype != np.uint64 and 0 < value.size <= MAX_VALUES
    if type(value) is list and value and len(value) <= MAX_VALUES:
        if type(value[0]) is list:
            return all(type(row) is list and all(type(item) is int for item in row) for row in value)
        return all(type(item) is int for item in value)
    return type(value) in (int, float)


def _digest(value: Any) -> Any:
    """Return a small value that differs for another ``value``."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().view(-1).view(torch.uint8).numpy() if value.numel() else value.numpy()
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).data)
    if type(value[0]) is list:
        return [len(value), zlib.crc32(repr([len(row) for row in value]).encode()), _digest_integers(value)]
    return [len(value), zlib.crc32(array.array("q", value))]


def _digest_integers(rows: list[list[int]]) -> int:
    return zlib.crc32(array.array("q", itertools.chain.from_iterable(rows)))


def _encode(value: Any) -> Any:
    """Return ``value`` as a number, or as its kind and tensors, which files can store."""
    if isinstance(value, np.ndarray):
        return ["array", torch.tensor(value.astype(np.int64) if value.dtype.kind in "iu" else value), str(value.dtype)]
    if isinstance(value, torch.Tensor):
        return ["tensor", value.detach().clone()]
    if type(value) is not list:
        return value
    if type(value[0]) is not list:
        return ["list", torch.tensor(value)]
    flat = torch.tensor(list(itertools.chain.from_iterable(value)), dtype=torch.int64)
    return ["lists", flat, torch.tensor([len(row) for row in value])]


def _decode(value: Any, previous: Any) -> Any:
    """Return the value that ``_encode`` stored: ``previous`` itself with new values where the object may be shared."""
    if not isinstance(value, list):
        return value
    kind, values, *rest = value
    if kind == "array":
        new: Any = values.numpy().astype(rest[0])
        if isinstance(previous, np.ndarray) and previous.shape == new.shape and previous.flags.writeable:
            previous[...] = new
            return previous
        return new
    if kind == "tensor":
        if isinstance(previous, torch.Tensor) and previous.shape == values.shape and previous.dtype == values.dtype:
            previous.detach().copy_(values)
            return previous
        return values.clone()
    new = values.tolist()
    if kind == "lists":
        ends = list(itertools.accumulate(rest[0].tolist()))
        new = [new[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if type(previous) is not list:
        return new
    previous[:] = new
    return previous
