"""Pipelines of WebDataset: whether they yield batches, and whether they divide the data between ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from easytorch.data.tables import library_of

# What a stage of a pipeline makes of its input, by the name of its function.
MAKES_BATCHES = {"_batched": True, "_unbatched": False, "_unlisted": False}
SPLITS_RANKS = ("split_by_node",)
# Each rank draws other shards.
RANDOM_SHARDS = ("ResampledShards",)


def is_pipeline(x: Any) -> bool:
    """Return whether ``x`` is a pipeline of WebDataset, such as a ``WebDataset`` or a ``WebLoader``."""
    return any(cls.__module__.startswith("webdataset.") and cls.__name__ == "DataPipeline" for cls in type(x).__mro__)


def yields_batches(x: Any) -> bool:
    """Return whether a pipeline yields batches: that of a ``WebLoader``, or one with the stage ``batched``.

    Examples:
        >>> yields_batches(webdataset.WebDataset(urls).decode().to_tuple("jpg", "cls").batched(32))
        True
    """
    if not is_pipeline(x):
        return False
    result = False
    for stage in x.pipeline:
        if isinstance(stage, DataLoader):
            result = stage.batch_size is not None or yields_batches(stage.dataset)
        elif is_pipeline(stage):
            result = yields_batches(stage)
        result = MAKES_BATCHES.get(_get_name(stage), result)
    return result


def as_plain_loader(x: Any, shield: Callable[[Any], Any]) -> DataLoader[Any]:
    """Return a ``DataLoader`` with the batches of a pipeline: that of a ``WebLoader`` without further stages, if it is one.

    Args:
        x: A pipeline that yields batches.
        shield: Protects the workers of a loader from signals.
    """
    is_alone = len(x.pipeline) == 1 and x.repetitions == 1 and not hasattr(x, "__len__")
    if is_alone and isinstance(x.pipeline[0], DataLoader):
        return x.pipeline[0]
    x = copy.copy(x)
    x.pipeline = [shield(stage) if isinstance(stage, DataLoader) else stage for stage in x.pipeline]
    return DataLoader(x, batch_size=None)


def is_split_by_rank(dataset: Any) -> bool:
    """Return whether each rank reads other shards of a pipeline."""
    return any(
        _get_name(stage) in SPLITS_RANKS or type(stage).__name__ in RANDOM_SHARDS for stage in _find_stages(dataset)
    )


def _find_stages(x: Any) -> Iterator[Any]:
    if isinstance(x, DataLoader):
        yield from _find_stages(x.dataset)
    elif is_pipeline(x):
        for stage in x.pipeline:
            yield from _find_stages(stage)
    else:
        yield x


def counts_passes(source: Any) -> bool:
    """Return whether ``source`` is a stage whose order depends on a number that it counts, such as ``detshuffle``."""
    return library_of(source) == "webdataset" and type(getattr(source, "epoch", None)) is int


def _get_name(stage: Any) -> str:
    """Return the name of the function of a stage; an empty text for other objects."""
    function = stage.f if type(stage).__name__ == "FilterFunction" else stage
    return str(getattr(function, "__name__", ""))
