"""A sampler that can continue in the middle of an epoch."""

from __future__ import annotations

import collections
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from easytorch._utils.rng import set_rng_state
from easytorch.errors import ResumeError


def order_changed_error(sampler: Any) -> ResumeError:
    """Return the error for a sampler that does not repeat the order of the interrupted run."""
    name = type(sampler).__name__
    return ResumeError(
        "The data has another order than in the interrupted run, so training cannot resume in the middle of the epoch. Does "
        f"{name} draw while it runs, or from a generator that it cannot restore? Seed the generator of {name} in the program, "
        f"or define {name}.set_epoch(epoch)."
    )


class ResumableSampler(Iterable[Any]):
    """A wrapper around a loader's sampler that can skip the batches which the interrupted run used.

    Args:
        sampler: The batch sampler, or the sampler of a loader without one.
        memory: The number of batches that the loader may be ahead of the loop, including the current window.
    """

    def __init__(self, sampler: Any, memory: int) -> None:
        # Not "sampler": __getattr__ returns the attribute "sampler" of a batch sampler.
        self.inner, self.memory = sampler, memory
        self.start(None, {})

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "memory"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, resume: Mapping[str, Any] | None, rng_state: Mapping[str, Any]) -> None:
        """Prepare a pass.

        Args:
            resume: The position in the interrupted pass: its number of ``batches_used`` and their ``order_checksum`` (None
                if unknown). None starts a new pass.
            rng_state: The random states to restore after the skipped batches.
        """
        self.resume, self.rng_state, self.drawn = resume, rng_state, 0
        # Checksums of the order up to each batch.
        self.checksums = collections.deque([0], maxlen=self.memory + 1)
        self.batches: collections.deque[Any] = collections.deque(maxlen=self.memory)

    def batch(self, number: int) -> Any:
        """Return the indices of a batch, counted from the start of the pass; of a repeated batch, the last indices."""
        return self.batches[min(number - self.drawn, -1)]

    def checksum(self, used: int) -> int:
        """Return the checksum of the first ``used`` batches, or of all batches if there are fewer."""
        return self.checksums[min(used - self.drawn, 0) - 1]

    def __iter__(self) -> Iterator[Any]:
        batches = self._draw()
        resume, self.resume = self.resume, None
        if resume is not None:
            batches = self._skip(batches, resume)
            set_rng_state(self.rng_state)
        yield from batches

    def _draw(self) -> Iterator[Any]:
        for indices in self.inner:
            self.drawn += 1
            self.batches.append(indices)
            self.checksums.append(_update_checksum(self.checksums[-1], indices))
            yield indices

    def _skip(self, batches: Iterator[Any], resume: Mapping[str, Any]) -> Iterator[Any]:
        """Return ``batches`` after the used ones; raise a ``ResumeError`` if those have another order."""
        used, checksum = resume["batches_used"], resume["order_checksum"]
        collections.deque(itertools.islice(batches, used), maxlen=0)
        if not used:
            # The sharding may skip batches instead. The order must be drawn here all the same, before the random states
            # are restored.
            batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
        if checksum is not None and self.checksum(used) != checksum:
            raise order_changed_error(getattr(self.inner, "batch_sampler", self.inner))
        return batches


def _update_checksum(checksum: int, indices: Any) -> int:
    if type(indices) is list and indices and type(indices[0]) is int:
        # About a microsecond; Python hashes integers alike in every process.
        return hash((checksum, *indices))
    return zlib.crc32(repr(indices).encode(), checksum & 0xFFFFFFFF)
