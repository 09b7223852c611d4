"""A sampler that can continue in the middle of an epoch."""

from __future__ import annotations

import array
import collections
import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler

from easytorch.errors import ResumeError


def order_changed_error(sampler: Any) -> ResumeError:
    """Return the error for a sampler that does not repeat the order of the interrupted run."""
    name = _get_name(sampler)
    return ResumeError(
        "The data has another order than in the interrupted run, so training cannot resume in the middle of the epoch. Does "
        f"{name} draw while it runs, or from a generator that it cannot restore? Seed the generator of {name} in the program, "
        f"or define {name}.set_epoch(epoch)."
    )


def order_repeats_message(sampler: Any) -> str:
    """Return the warning about a sampler that does not draw the order of the last pass again."""
    name = _get_name(sampler)
    return (
        "This epoch has another order than in an uninterrupted run, and may repeat that of an earlier epoch: "
        f"{name} does not draw the order of the last epoch again, so its state cannot be restored. Define "
        f"{name}.set_epoch(epoch), or give {name} its generator and its counters as attributes."
    )


def _get_name(sampler: Any) -> str:
    """Return the name of the class that decides about the order."""
    inner = getattr(sampler, "batch_sampler", sampler)  # of all ranks
    return type(inner.sampler if type(inner) is BatchSampler else inner).__name__


class ResumableSampler(Iterable[Any]):
    """A wrapper around a loader's sampler that can skip the batches which the interrupted run used.

    Args:
        sampler: The batch sampler, or the sampler of a loader without one.
        memory: The number of batches that the loader may be ahead of the loop, including the current window.
    """

    def __init__(self, sampler: Any, memory: int) -> None:
        # Not "sampler": __getattr__ returns the attribute "sampler" of a batch sampler.
        self.inner, self.memory = sampler, memory
        self.start()

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "memory"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, resume: Resume | None = None) -> None:
        """Prepare a pass; without ``resume`` a new one."""
        self.resume = resume
        self._reset()

    def _reset(self) -> None:
        self.drawn = 0
        # Checksums of the order up to each batch.
        self.checksums = collections.deque([0], maxlen=self.memory + 1)
        self.batches: collections.deque[Any] = collections.deque(maxlen=self.memory)

    def batch(self, number: int) -> Any:
        """Return the indices of a batch, counted from the start of the pass; of a repeated batch, the last indices."""
        return self.batches[min(number - self.drawn, -1)]

    def checksum(self, used: int) -> int:
        """Return the checksum of the first ``used`` batches, or of all batches if there are fewer."""
        return self.checksums[min(used - self.drawn, 0) - 1]

    def draw_pass(self) -> int:
        """Draw a complete pass and return the checksum of its order."""
        self.start()
        collections.deque(self._draw(), maxlen=0)
        return self.checksums[-1]

    def __iter__(self) -> Iterator[Any]:
        batches = self._draw()
        resume, self.resume = self.resume, None
        if resume is not None:
            batches = self._skip(resume)
            resume.restore()
        yield from batches

    def _draw(self) -> Iterator[Any]:
        for indices in self.inner:
            self.drawn += 1
            self.batches.append(indices)
            self.checksums.append(_update_checksum(self.checksums[-1], indices))
            yield indices

    def _skip(self, resume: Resume) -> Iterator[Any]:
        """Return the batches after the used ones; raise a ``ResumeError`` if those have another order."""
        batches: Iterator[Any] = iter(())
        for attempt in range(resume.attempts):
            if attempt:
                # The sampler may count its passes in a place that is not restored; then each pass leads to the next.
                collections.deque(batches, maxlen=0)
                resume.rewind()
                self._reset()
            batches = self._draw()
            collections.deque(itertools.islice(batches, resume.batches_used), maxlen=0)
            if not resume.batches_used:
                # The sharding may skip batches instead. The order must be drawn here all the same, before the random states
                # are restored.
                batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
            if resume.checksum is None or self.checksum(resume.batches_used) == resume.checksum:
                return batches
        raise order_changed_error(self.inner)


@dataclasses.dataclass
class Resume:
    """Where an interrupted pass continues.

    Attributes:
        batches_used: Batches of the pass that are skipped.
        checksum: The checksum of their order; None if unknown.
        restore: Restores the current random states, after the skipped batches.
        rewind: Restores the random states of the start of the pass.
        attempts: The number of passes in which the order may be found.
    """

    batches_used: int
    checksum: int | None
    restore: Callable[[], object]
    rewind: Callable[[], object] = bool
    attempts: int = 1


def _update_checksum(checksum: int, indices: Any) -> int:
    """Return the checksum of an order that continues with ``indices``; it does not depend on how the order is divided."""
    if hasattr(indices, "tolist"):  # the text of a long array is shortened
        indices = indices.tolist()
    try:
        integers = array.array("q", indices if isinstance(indices, (list, tuple)) else [indices])
    except (TypeError, OverflowError):
        return zlib.crc32(repr(indices).encode(), checksum)
    return zlib.crc32(integers, checksum)
