"""The batches of an evaluation or a prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from easytorch._utils.integers import optional_positive_int
from easytorch._utils.rng import get_rng_state, set_rng_state
from easytorch._utils.warnings import warn
from easytorch.data import sharding
from easytorch.data.batch import count_batches
from easytorch.data.fast_loaders import TensorBatches, as_map_batches, as_tensor_batches
from easytorch.data.workers import iterate, report_repeated_stream
from easytorch.distributed.process_group import SingleProcess

if TYPE_CHECKING:
    from typing_extensions import Self


class EvalIterator:
    """The batches for evaluation and prediction; with several ranks, this rank's share.

    As a context manager, it checks at the end that the last batch has not changed the data of the user.

    Args:
        loader: The batches of all ranks.
        steps: Number of batches of all ranks; None for all.
        group: The ranks that share the data.
        pins: Whether batches of data in memory are in pinned memory.

    Attributes:
        before_first: Called before the first batch.
    """

    def __init__(
        self, loader: Any, steps: int | None = None, group: SingleProcess | None = None, *, pins: bool = False
    ) -> None:
        self.group = group = group or SingleProcess()
        shard = sharding.shard_loader(loader, group, training=False)
        reader = as_tensor_batches(shard, shares_rows=True, pins=pins)
        self._reader = as_map_batches(reader)
        steps = optional_positive_int("steps", steps)
        self._steps = steps if steps is None else -(-(steps - group.rank) // group.world_size)
        self.before_first: Callable[[], object] = bool

    def __len__(self) -> int:
        counts = [count for count in (count_batches(self._reader), self._steps) if count is not None]
        if not counts:
            raise TypeError("the number of batches is unknown")
        return min(counts)

    def __iter__(self) -> Iterator[Any]:
        self.before_first()
        if self.group.world_size > 1:  # all ranks draw the same order
            set_rng_state(self.group.broadcast(get_rng_state()))
        count = 0
        batches = report_repeated_stream(self._reader, iterate(self._reader))
        for batch in itertools.islice(batches, self._limit()):
            count += 1
            yield batch
        if self.group.world_size > 1:
            return
        if self._steps is None and (promised := count_batches(self._reader) or 0) > count > 0:
            warn(
                f"The values are of {count} batches, but the length of the data promises {promised}, so samples are missing. A "
                "StopIteration in __getitem__, for example of next(), ends a pass. Raise another error, such as IndexError."
            )
        if self._steps is not None and 0 < count < self._steps:
            is_whole = count_batches(self._reader) == count
            fix = (
                "These are all batches of the data: pass fewer steps, or none."
                if is_whole
                else "A generator can be read only once: pass the function that creates it (not its result), or fewer steps."
            )
            warn(f"The data ended after {count} of {self._steps} batches, so the values are of {count} only. {fix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and isinstance(self._reader, TensorBatches):
            self._reader.check_rows()

    def _limit(self) -> int | None:
        """Return the number of batches to read: the steps, or the length of an iterator that may not end by itself."""
        is_iterator = isinstance(self._reader, Iterator)
        return self._steps if self._steps is not None or not is_iterator else count_batches(self._reader)
