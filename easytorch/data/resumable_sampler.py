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
    """Return the error for a sampler that does not give the order of the run that is to be resumed."""
    return ResumeError(
        "The data comes in another order than in the run that is to be resumed, so it cannot go on in the middle of the epoch. "
        f"Does {type(sampler).__name__} draw while it runs, or from a generator of its own that was made elsewhere? Seed it in "
        "the program, or give it set_epoch()."
    )


class ResumableSampler(Iterable[Any]):
    """Stands in for a loader's sampler: knows the order that it gave, and can begin after what was used.

    Args:
        sampler: What it stands in for.
        memory: How many batches the loader may be ahead of the loop, whose window included.
    """

    def __init__(self, sampler: Any, memory: int) -> None:
        self.inner, self.memory = sampler, memory  # not "sampler", which a batch sampler has of its own
        self.resume: Mapping[str, Any] | None = None
        self.start(None, {})

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "memory"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, resume: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
        """Be ready for a pass; ``resume`` is where to take it up, ``now`` the random states to go on with from there."""
        self.resume, self.now, self.drawn = resume, now, 0
        self.marks = collections.deque([0], maxlen=self.memory + 1)  # checksums of the order up to each batch
        self.batches: collections.deque[Any] = collections.deque(maxlen=self.memory)

    def batch(self, number: int) -> Any:
        """Return the indices of a batch, counted from the begin of the pass; of one that is lent, of the last."""
        return self.batches[min(number - self.drawn, -1)]

    def checksum(self, used: int) -> int:
        """Return the checksum of the first ``used`` batches of the order, of all where there are fewer."""
        return self.marks[min(used - self.drawn, 0) - 1]

    def __iter__(self) -> Iterator[Any]:
        batches = self._drawn()
        resume, self.resume = self.resume, None
        if resume is not None:
            for _ in itertools.islice(batches, resume["batches_used"]):
                pass
            if not resume[
                "batches_used"
            ]:  # others, more or fewer, have used what is skipped: the order must be drawn nevertheless
                batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
            mark = resume["order_checksum"]  # None where another number of processes had other batches
            if mark is not None and self.checksum(resume["batches_used"]) != mark:
                raise order_changed_error(getattr(self.inner, "batch_sampler", self.inner))
            set_rng_state(self.now)  # nothing is drawn between here and the loading of the next batch
        yield from batches

    def _drawn(self) -> Iterator[Any]:
        for indices in self.inner:
            self.drawn += 1
            self.batches.append(indices)
            self.marks.append(_digest(indices, self.marks[-1]))
            yield indices


def _digest(indices: Any, before: int) -> int:
    if type(indices) is list and indices and type(indices[0]) is int:
        return hash((before, *indices))  # a microsecond; hashes of whole numbers are the same in every process
    return zlib.crc32(repr(indices).encode(), before & 0xFFFFFFFF)
