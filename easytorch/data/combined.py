"""Several loaders that are read at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from easytorch._utils.registry import find
from easytorch.data.batch import CombinedDict, CombinedTuple, count_batches
from easytorch.distributed.process_group import SingleProcess
from easytorch.errors import ResumeError

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator

END = object()
MODES: dict[str, Callable[[Iterable[int]], int]] = {"longest": max, "shortest": min}

UNEQUAL_SHARES = (
    "The loss of a combined batch cannot be weighted: with gradient accumulation or several processes, all batches that are "
    "averaged must have their samples from the loaders in the same ratio. {problem} Pass drop_last=True to its DataLoader, or "
    "override batch_size(self, batch) in a subclass of Model to choose the weight of each batch."
)


class CombinedLoader(Iterable[Any]):
    """Several loaders that are read at once; returned by ``combine``.

    Attributes:
        parts: The loaders by name; of a list, by position.
        mode: ``"longest"`` or ``"shortest"``.
    """

    def __init__(self, parts: Mapping[str, Any], mode: str, names: bool) -> None:
        self.parts, self.mode, self._has_names = dict(parts), mode, names
        find("mode", mode, MODES)

    def __len__(self) -> int:
        return combined_length(self.parts, self.mode)

    def __iter__(self) -> Iterator[Any]:
        # Each loader starts when its first batch is read, as in fit, so that both draw the same random numbers.
        iterators: dict[str, Iterator[Any]] = {}
        cycled = set[str]()
        while True:
            batches: dict[str, Any] = {}
            for name in sorted(self.parts, key=lambda name: name in cycled):
                if self._ends_with(cycled):
                    return
                iterator = iterators[name] if name in iterators else iter(self.parts[name])
                iterators[name], batches[name] = iterator, next(iterator, END)
                if batches[name] is END:
                    cycled.add(name)
            if self._ends_with(cycled):
                return
            for name in self.parts:
                if batches[name] is END:
                    iterators[name] = iter(self.parts[name])
                    batches[name] = next(iterators[name], END)
                if batches[name] is END:
                    raise ValueError(f"The loader {name!r} of combine() has no batch. Pass a loader that has data.")
            yield self.make_batch({name: batches[name] for name in self.parts})

    def _ends_with(self, cycled: Collection[str]) -> bool:
        """Return whether a pass is over if the loaders ``cycled`` have ended."""
        return len(cycled) == len(self.parts) or (self.mode == "shortest" and len(cycled) > 0)

    def make_batch(self, batches: Mapping[str, Any]) -> Any:
        """Return one batch of each loader as a dict, or as a tuple if the loaders were passed as a list."""
        return CombinedDict(batches) if self._has_names else CombinedTuple(batches.values())

    def map(self, function: Callable[[Any], Any]) -> CombinedLoader:
        """Return the same loader with ``function`` applied to each part."""
        parts = {name: function(part) for name, part in self.parts.items()}
        return CombinedLoader(parts, self.mode, self._has_names)


def combined_length(parts: Mapping[str, Any], mode: str) -> int:
    """Return the number of combined batches.

    Raises:
        TypeError: If the length of a part is unknown.
    """
    counts = {name: count_batches(part) for name, part in parts.items()}
    unknown = [name for name, count in counts.items() if not count]
    if unknown:
        raise TypeError(f"the number of batches of {unknown[0]!r} is unknown")
    return MODES[mode](count for count in counts.values() if count)


class CombinedBatches(Iterable[Any]):
    """The combined batches of one rank for training, with an exact position.

    Each loader has a separate position, so that a run can resume in any pass of a loader that is shorter than the others.
    Under data parallelism, each loader is divided between the ranks.

    Args:
        loader: The combined loader.
        parts: The iterator over the batches of each loader, of this rank.
        group: The ranks that share the data.
        window_size: Batches in one update.
        is_weighted: Whether the program itself chooses the weight of a batch.
        epoch: Returns the number of epochs before this fit.

    Attributes:
        rounds: For each combined batch of this pass, the samples of the first loader, of this rank and of all ranks.
        offset: Not used: a run with another number of ranks cannot continue in the middle of a pass.
        counts_exact: Whether these numbers are those of the rows.

    Raises:
        ValueError: If the loss of a batch cannot be weighted.
    """

    offset = 0

    def __init__(
        self,
        loader: CombinedLoader,
        parts: Mapping[str, EpochIterator],
        *,
        group: SingleProcess,
        window_size: int,
        is_weighted: bool,
        epoch: Callable[[], int],
    ) -> None:
        self.loader, self.parts, self.group, self._epoch = loader, parts, group, epoch
        self.averages = group.world_size > 1 or window_size > 1
        self.is_weighted, self.window_size = is_weighted, window_size
        self.rounds: list[tuple[int, int]] = []
        self.counts_exact = all(part.counts_exact for part in parts.values())
        self._iterators: dict[str, Iterator[Any]] = {}
        self._cycled: set[str] = set()  # the parts whose first pass has ended
        self._first: list[int] | None = None  # the samples of each part in the first batch
        self._in_pass = self._is_restored = False
        for part in parts.values():
            part.needs_batch_every_step = True
        if self.averages and not is_weighted:
            check_known_sizes(loader, group.world_size, window_size)

    def __len__(self) -> int:
        return combined_length(self.parts, self.loader.mode)

    def __iter__(self) -> Iterator[Any]:
        is_restored, self._is_restored = self._is_restored, False
        if is_restored and not self._in_pass:  # the restored pass had ended
            return iter(())
        self._iterators = {}  # end the workers of the last pass first
        if not is_restored:
            self._cycled, self.rounds = set(), []
        for part in self.parts.values():
            part.first_epoch = self._epoch()
        return self._read(is_restored)

    def _read(self, is_restored: bool) -> Iterator[Any]:
        """Yield the combined batches of a pass; the remaining ones of a restored pass."""
        self._iterators = {name: iter(part) for name, part in self.parts.items()}
        is_first, self._in_pass = not is_restored, True
        while is_first or is_restored or not self.has_ended():
            is_first = is_restored = False
            # The parts in their first pass decide about the end, before another one starts a new pass.
            order = sorted(self.parts, key=lambda name: name in self._cycled)
            windows = {name: next(self._iterators[name], None) for name in order}
            ended = [name for name in order if windows[name] is None]
            self._cycled.update(ended)
            if self._cycled and (self.loader.mode == "shortest" or len(self._cycled) == len(self.parts)):
                break
            for name in ended:
                self._iterators[name] = iter(self.parts[name])
                windows[name] = next(self._iterators[name])
            yield self._combine({name: windows[name] for name in self.parts})
        self._in_pass = False

    def has_ended(self) -> bool:
        """Return whether this pass certainly has no more batches; only after its first batch."""
        ended = [name in self._cycled or part.has_ended for name, part in self.parts.items()]
        return any(ended) if self.loader.mode == "shortest" else all(ended)

    def _combine(self, windows: Mapping[str, Any]) -> Any:
        batches = self.loader.make_batch({name: window[0] for name, window in windows.items()})
        if not self.averages:
            return batches
        counts, totals = self._count(windows)
        if not self.is_weighted:
            self._check_shares(counts, totals)
        if not all(counts):
            raise ValueError(
                UNEQUAL_SHARES.format(problem=f"Rank {self.group.rank} has no samples of {self._name(counts, 0)!r}.")
            )
        self.rounds.append((counts[0], totals[0]))
        return batches

    def _count(self, windows: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Return the samples of each part in a combined batch, of this rank and of all ranks."""
        if self.group.world_size == 1:
            counts = [window.sizes[0] for window in windows.values()]
            return counts, counts
        return [w.sample_counts[0] for w in windows.values()], [w.total for w in windows.values()]

    def _check_shares(self, counts: Sequence[int], totals: Sequence[int]) -> None:
        """Raise a ``ValueError`` if the samples of the parts are not in the ratio of the first batch, on all ranks."""
        self._first = self._first or list(totals)
        expected = [self._first[0] * total for total in totals]
        received = [totals[0] * first for first in self._first]
        for name, count, total, a, b in zip(self.parts, counts, totals, expected, received, strict=True):
            if (self.window_size > 1 and a != b) or counts[0] * total != count * totals[0]:
                problem = f"A batch of {name!r} has another size: {count} samples."
                raise ValueError(UNEQUAL_SHARES.format(problem=problem))

    def _name(self, counts: Sequence[int], value: int) -> str:
        return list(self.parts)[list(counts).index(value)]

    def close(self) -> None:
        """Shut down the workers of all loaders."""
        self._iterators = {}
        for part in self.parts.values():
            part.close()

    # Checkpoints

    def state_dict(self, between_passes: bool = False) -> dict[str, Any]:
        """Return the position of each loader; ``between_passes`` those from which a new pass starts."""
        in_pass = self._in_pass and not between_passes and not self.has_ended()
        return {
            "parts": {name: part.state_dict(int(in_pass)) for name, part in self.parts.items()},
            "in_pass": in_pass,
            "cycled": sorted(self._cycled),
            "rounds": len(self.rounds),
            "mode": self.loader.mode,
            "first": self._first,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            ResumeError: If the loaders have other names, another mode or other sizes.
        """
        names, mode = list(self.parts), self.loader.mode
        if sorted(state["parts"]) != sorted(names) or state["mode"] != mode:
            raise ResumeError(
                f"Cannot resume: the run combined the loaders {sorted(state['parts'])} in mode {state['mode']!r}, and this "
                f"program combines {sorted(names)} in mode {mode!r}. Pass the same loaders, or start a new run in another folder."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self._cycled, self._in_pass, self._is_restored = set(state["cycled"]), state["in_pass"], True
        self.rounds, self._first = [(0, 0)] * state["rounds"], state["first"]


def check_known_sizes(loader: CombinedLoader, world_size: int, window_size: int) -> None:
    """Raise a ``ValueError`` before training if a batch of a pass cannot be weighted; loaders of unknown sizes are left out.

    Args:
        loader: The combined loader.
        world_size: The number of ranks, which divide the samples of a round.
        window_size: Batches in one update.
    """
    totals = {name: _round_sizes(part, world_size) for name, part in loader.parts.items()}
    known = {name: sizes for name, sizes in totals.items() if sizes}
    if len(known) < len(totals) or not known:
        return
    length = MODES[loader.mode](map(len, known.values()))
    columns = [itertools.islice(itertools.cycle(sizes), length) for sizes in known.values()]
    first: tuple[int, ...] = ()
    for row in zip(*columns, strict=True):
        first = first or row
        for name, size, size_at_start in zip(known, row, first, strict=True):
            is_uneven = len(set(row)) > 1 and (size % world_size != 0 or size < 2 * world_size) and world_size > 1
            if is_uneven or (window_size > 1 and size * first[0] != row[0] * size_at_start):
                ranks = f", which {world_size} processes divide" if world_size > 1 else ""
                problem = f"The last batch of {name!r} has another size: {size} samples{ranks}."
                raise ValueError(UNEQUAL_SHARES.format(problem=problem))


def _round_sizes(loader: Any, world_size: int) -> list[int] | None:
    """Return the samples in each round of a pass, one batch for each rank; None if they are unknown before they are read."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if type(loader.batch_sampler) is not BatchSampler or (samples := count_batches(loader.sampler)) is None:
        return None
    size, drops_last = loader.batch_sampler.batch_size, loader.batch_sampler.drop_last
    batches = [min(size, samples - start) for start in range(0, samples, size)]
    batches = batches[: samples // size] if drops_last else batches
    rounds = [batches[i : i + world_size] for i in range(0, len(batches), world_size)]
    if drops_last and rounds and len(rounds[-1]) < world_size:
        rounds.pop()
    return [sum(sizes) for sizes in rounds]
