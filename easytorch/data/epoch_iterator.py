"""Training data in windows, with an exact position for resume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from easytorch._utils.integers import whole
from easytorch._utils.pytree import map_leaves
from easytorch._utils.rng import (
    find_generators,
    get_generator_states,
    get_rng_state,
    order_sources,
    preserve_rng_state,
    sample_sources,
    set_generator_states,
    set_rng_state,
)
from easytorch._utils.timer import Timer
from easytorch._utils.warnings import warn
from easytorch.data import sharding
from easytorch.data.batch import EMPTY_DATA, length
from easytorch.data.fast_loaders import MapBatches, TensorBatches, as_map_batches, as_tensor_batches
from easytorch.data.resumable_sampler import ResumableSampler
from easytorch.data.workers import iterate, shield_workers
from easytorch.distributed.process_group import SingleProcess
from easytorch.errors import ResumeError

if TYPE_CHECKING:
    from easytorch.training.state import TrainState


class EpochIterator:
    """The training data as windows of batches, one window for each update, epoch after epoch.

    Args:
        loader: The batches.
        window: Batches in a window; the last window of a pass may be shorter.
        steps: Windows in an epoch. None: an epoch is one pass over the data. Otherwise the data goes on where the last
            epoch stopped, and starts again when it ends.
        weigh: Applied to each batch.
        unsure: Whether loading may draw random numbers that nothing can restore.
        processes: Those who share the data.
        beside: The batches to validate on, whose generators go on in a resumed run too.

    Attributes:
        lends: What to do where this process has no batch and others have. False: it is left out, and a window may be empty. True:
            it has its last batch again, which then counts nothing.
    """

    def __init__(
        self,
        loader: Any,
        window: int = 1,
        steps: int | None = None,
        weigh: Callable[[Any], Any] | None = None,
        unsure: bool = False,
        group: SingleProcess | None = None,
        beside: Any = None,
    ) -> None:
        if length(loader) == 0:
            raise ValueError(
                "The data is empty: there is not one batch. With drop_last=True, is batch_size larger than it?"
            )
        steps = whole("steps_per_epoch", steps)
        self.loader, self.window, self.steps, self.weigh, self.unsure = loader, window, steps, weigh, unsure
        self.group = group or SingleProcess()
        self.needs_batch_every_step, self.beside = False, beside
        self._last: Any = None  # the batch to lend
        self.once = isinstance(loader, Iterator)
        self.example: Any = None
        self.taken: list[Any] = []  # the window that the loop has now
        self.exhausted = False
        self.timer = Timer()
        self.passes = 0  # passes over the data begun, in this fit
        self.earlier = 0  # epochs before this fit, for samplers and datasets that count them
        self.used = 0  # batches that the loop took in this pass
        self.offset = 0  # batches of this pass that were used by another number of processes
        self._begin: dict[str, Any] = {}  # the random states when this pass began
        self._resume: Mapping[str, Any] | None = None
        self._done = 0  # windows of the epoch that runs, made before it was resumed
        self._iterator: Any = None  # of the pass that runs
        self._loader_state: Any = None
        self._now: dict[str, Any] = {}
        self._order: ResumableSampler | TensorBatches | None = None
        self._reader, self._part = self._watched(
            sharding.shard_loader(shield_workers(loader), self.group, training=True)
        )
        if length(self._reader) == 0:
            raise ValueError(
                f"There is not one round of batches for {self.group.world_size} processes, and drop_last=True drops what is not "
                "whole. Use a smaller batch_size or fewer processes."
            )
        self._stream = self._endless() if steps else None
        self._ahead: list[list[Any]] = []  # the window that was taken to see whether there is one

    def __len__(self) -> int:
        """Return the number of windows in an epoch; 0 where it is unknown."""
        return self.steps or -(-(length(self._reader) or 0) // self.window)

    def epochs(self, state: TrainState) -> Iterator[int]:
        """Yield the number of each epoch that ``state`` still wants, as long as there is data."""
        while state.epoch < state.last:
            yield state.epoch
            if state.epoch < state.last and (self.exhausted or self._is_over()):
                warn(
                    f"The data ran out in epoch {state.epoch} of {state.last}, so training stops there: a generator can be "
                    "read only once. Pass the function that makes it (not its result), a list of batches or a DataLoader."
                )
                return

    def _is_over(self) -> bool:
        """Whether a generator, read so many updates in an epoch, has none left for another one."""
        if not self.once or self._stream is None:
            return False
        self._ahead = list(itertools.islice(self._stream, 1))
        return not self._ahead

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the windows of one epoch; of a resumed one, the rest."""
        self.timer.start()
        count, self._done = self._done, 0
        ahead, self._ahead = self._ahead, []
        left = self.steps - count - len(ahead) if self.steps else None
        for window in itertools.chain(ahead, itertools.islice(self._stream or self._pass(), left)):
            if self.example is None and window:
                self.example = map_leaves(_copied, window[0])
            self.taken = window
            count += 1
            self.timer.mark("data")
            yield window
            self.timer.mark("rest")
        self.exhausted = count < self.steps if self.steps else self.once
        if not count:
            raise ValueError(EMPTY_DATA)

    def indices(self) -> list[Any] | None:
        """Return the dataset's indices of each batch in the window that the loop has now; None where nobody knows."""
        if self._order is None:
            return None
        first = self.used - self._rounds
        return [self._order.batch(first + i) for i in range(len(self.taken))]

    def data_loading_advice(self, device: torch.device) -> str | None:
        """Say what would shorten the wait for data; None where nothing would."""
        loader = self.loader
        if isinstance(self._reader, TensorBatches):
            return None
        if not isinstance(loader, DataLoader):
            return "A Dataset in a DataLoader(num_workers=2) is loaded while the model trains."
        cures = (
            []
            if isinstance(loader.dataset, IterableDataset)
            else [
                "If its samples are the same every time and fit in memory, load them once: easytorch.data.in_memory(dataset)."
            ]
        )
        more = 2 * loader.num_workers or 2
        cures.append(
            f"{'More' if loader.num_workers else 'Some'} workers load while the model trains: num_workers={more}."
        )
        if device.type != "cpu" and not loader.pin_memory:
            cures.append("Pinned memory is copied without waiting: pin_memory=True.")
        return " ".join(cures)

    def close(self) -> None:
        """End the loader's workers now: at the end of the process, whoever holds a traceback would hold them too."""
        end = getattr(self._iterator, "_shutdown_workers", None)
        if end is not None:
            end()
        self._iterator = self._reader = self._stream = None
        self.taken = []
        self.group.idle, self.group.foreseen = False, None

    def _pass(self) -> Iterator[list[Any]]:
        """Yield the windows of one pass over the data, or the rest of the pass in which the run stopped."""
        skip = self._start_pass()
        batches = self._batches(skip)
        batches = batches if self.weigh is None else map(self._weighed, batches)
        batches = batches if self._part is None else self._padded(batches)
        while window := list(itertools.islice(batches, self.window)):
            self.used += len(window)
            self._rounds = len(window)
            yield window if self._part is None else self._own(window)

    def _own(self, window: list[Any]) -> list[Any]:
        """Return what of ``window`` this process has, and tell what all of them have."""
        rounds = self._part.rounds[self.used - len(window) : self.used]
        if self.needs_batch_every_step:
            window = [self._lent(batch) for batch in window]
        else:
            window = [batch for batch in window if batch is not sharding.NO_BATCH]
        own = [count for count, _ in rounds if count or self.needs_batch_every_step]
        self.group.foreseen = own, sum(total for _, total in rounds)
        self.group.sure, self.group.idle = self._part.counts, not any(own)
        return window

    def _lent(self, batch: Any) -> Any:
        if batch is not sharding.NO_BATCH:
            self._last = batch
        elif self._last is None:
            self._last = self._spare()
        return self._last

    def _spare(self) -> Any:
        """Return a batch to lend, of which nothing counts, for a process that has had none since it started."""
        loader = self.loader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ValueError(
                f"Process {self.group.rank} has no batch, not even a first one. Use fewer processes or a smaller batch_size."
            )
        with preserve_rng_state():
            return self._weighed(MapBatches(loader).fetch([0, 0]))  # BatchNorm could not take a single sample

    def _padded(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, and ``IDLE`` for those that only others have in the end."""
        count = self.used
        for batch in batches:
            count += 1
            yield batch
        yield from itertools.repeat(sharding.NO_BATCH, len(self._part.rounds) - count)

    def _weighed(self, batch: Any) -> Any:
        return batch if batch is sharding.NO_BATCH or self.weigh is None else self.weigh(batch)

    def _endless(self) -> Iterator[list[Any]]:
        while True:
            window = None
            for window in self._pass():
                yield window
            if self.once or (window is None and not self.used):
                return

    def _start_pass(self) -> int:
        """Note the random states at the begin of a pass, or put back those of the pass to resume; return what to skip."""
        resume, self._resume = self._resume, None
        order = find_generators(*order_sources(self.loader))
        if resume is None:
            self._agree(order)
            self.passes += 1
            self._begin = {"random": get_rng_state(), "generators": get_generator_states(order)}
            self.used = self.offset = 0
        else:
            self.offset = resume.get("offset", 0)
            self.passes, self.used, self._begin = resume["passes"], resume["used"], dict(resume["begin"])
            self._now = get_rng_state()
            set_rng_state(self._begin["random"])
            set_generator_states(order, self._begin["generators"])
        if getattr(self._reader, "persistent_workers", False) and self._reader._iterator is None and self.passes > 1:
            # Workers that live on draw no new seed; those of a resumed run, which start now, must not either.
            self._reader.generator = torch.Generator()
        for part in [*order_sources(self.loader), *sample_sources(self.loader)]:
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.earlier + self.passes - 1)
        if self._part is not None:
            self._part.offset = self.offset
        if self._order is not None:
            self._order.start(resume, self._now)
        return self.used if resume is not None else 0

    def _agree(self, order: list[Any]) -> None:
        """Have the random states of process 0, so that everybody draws the same order."""
        if self.group.world_size > 1:
            random, own = self.group.broadcast((get_rng_state(), get_generator_states(order)))
            if not self.group.is_main:
                set_rng_state(random)
                set_generator_states(order, own)

    def _batches(self, skip: int) -> Iterator[Any]:
        batches: Iterator[Any]
        if self._loader_state is not None and skip:
            self._reader.load_state_dict(self._loader_state)
        batches = self._iterator = iterate(self._reader)
        if not skip:
            return batches
        if self._order is not None:
            batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
            if self._order.resume is None:  # it has skipped; a loader of the user's own may not ask it
                return batches
        if self._loader_state is None:
            warn(
                f"{type(self.loader).__name__} has no sampler that could skip, so the {skip} batches that were used before "
                "are read again and thrown away."
            )
            thrown = list(itertools.islice(batches, skip))
            if self.needs_batch_every_step and thrown and thrown[-1] is not sharding.NO_BATCH:
                self._last = self._weighed(thrown[-1])
            if len(thrown) < skip:
                raise ResumeError(f"The run stopped after {skip} batches of a pass, but the data has fewer now.")
        set_rng_state(self._now)
        return batches

    def _watched(self, loader: Any) -> tuple[Any, Any]:
        """Return a twin of ``loader`` whose order can be resumed, and what knows the rounds of it, where there are others."""
        if not isinstance(loader, DataLoader):
            return loader, None if self.group.world_size == 1 else loader
        twin, dealer = as_tensor_batches(loader), None if self.group.world_size == 1 else loader.batch_sampler
        if isinstance(twin, TensorBatches):
            self._order = twin
            return twin, dealer
        if not isinstance(loader.dataset, IterableDataset) and not hasattr(loader, "load_state_dict"):
            kind = "sampler" if loader.batch_sampler is None else "batch_sampler"
            ahead = loader.num_workers * (loader.prefetch_factor or 0)
            self._order = ResumableSampler(getattr(loader, kind), memory=ahead + self.window + 1)
            vars(twin)[kind] = self._order  # DataLoader guards it against a change of mind; the order does not change
        return as_map_batches(twin), dealer

    def state_dict(self, epoch_step: int) -> dict[str, Any]:
        """Return the place in the data, and the random states.

        Args:
            epoch_step: Updates made in the epoch that runs; 0 between two epochs.
        """
        between = epoch_step == 0 and not self.steps
        own = getattr(self._reader, "state_dict", None)
        resumed = {} if between or self._resume is None else self._resume
        place = {name: resumed[name] for name in PLACE if name in resumed}
        return {
            "passes": self.passes,
            "used": 0 if between else self.used,
            "epoch_step": epoch_step,
            "begin": {} if between else self._begin,
            "random": get_rng_state(),
            "generators": get_generator_states(find_generators(*order_sources(self.loader))),
            "data_generators": get_generator_states(find_generators(*sample_sources(self.loader))),
            "beside": get_generator_states(self._generators_beside()),
            "order": self._order.mark(self.used) if self._order is not None and not between else None,
            "loader": own() if own is not None and not between else None,
            "size": self._size(),
            "window": self.window,
            "processes": self.group.world_size,
            "offset": 0 if between else self.offset,
            **place,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next window is the one after the last that was used.

        Raises:
            ResumeError: If the data has another length, or is put together otherwise.
        """
        order, of_data = find_generators(*order_sources(self.loader)), find_generators(*sample_sources(self.loader))
        for what, before, now in (
            ("samples, batches and batch size", state["size"], self._size()),
            ("batches in an update", state["window"], self.window),
            ("random generators for the order", len(state["generators"]), len(order)),
            ("random generators in the dataset", len(state["data_generators"]), len(of_data)),
        ):
            if before != now:
                raise ResumeError(
                    f"The run that is to be resumed had {before} {what}; now there are {now}. Pass the same data and "
                    "settings, or begin anew in another folder."
                )
        self.passes = state["passes"]
        self._done = state["epoch_step"]
        set_rng_state(state["random"])
        if state.get("processes", 1) != self.group.world_size:
            state = self._redealt(state)
        if state["used"] or state.get("offset", 0):
            self._resume, self._loader_state = state, state["loader"]
            if self.unsure:
                self._warn_of_workers()
        else:
            set_generator_states(order, state["generators"])
        set_generator_states(of_data, state["data_generators"])
        if len(state.get("beside", ())) == len(self._generators_beside()):
            set_generator_states(self._generators_beside(), state.get("beside", ()))
        if self.unsure and getattr(self.loader, "persistent_workers", False) and not state["used"]:
            self._warn_of_workers()

    def _generators_beside(self) -> list[Any]:
        return find_generators(*order_sources(self.beside), *sample_sources(self.beside))

    def _redealt(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``state``, of another number of processes, for this one: what all of them have used is skipped."""
        before = state.get("processes", 1)
        if isinstance(self._reader, sharding.PerRankStream) and state["used"]:
            raise ResumeError(
                f"The run that is to be resumed had {before} processes, which brought data of their own; now there are "
                f"{self.group.world_size}, and nobody knows what is left. Start as many, or begin anew in another folder."
            )
        self.group.seed_per_rank()
        skipped = state.get("offset", 0) + state["used"] * before
        alone = self.group.world_size == 1
        return {
            **state,
            "used": skipped if alone else 0,
            "offset": 0 if alone else skipped,
            "order": None,
            "loader": None,
        }

    def _size(self) -> list[int | None]:
        dataset = getattr(self.loader, "dataset", None)
        return [
            None if dataset is None else length(dataset),
            length(self.loader),
            getattr(self.loader, "batch_size", None),
        ]

    @staticmethod
    def _warn_of_workers() -> None:
        warn(
            "The samples are loaded by workers, whose random numbers cannot be restored. If the dataset draws any "
            "(augmentation), the run is not that of an undisturbed one from here on. Wrap it in "
            "easytorch.data.seeded(dataset) to make it exact."
        )


# What a run that was resumed, and has read nothing yet, hands on as it came.
PLACE = ("passes", "used", "begin", "generators", "order", "loader", "offset")


class EvalIterator:
    """The batches to measure or to predict, by the fastest way to them; of many processes each has its own.

    Args:
        loader: All of them.
        steps: How many of them to take; None is all.
        processes: Those who share them.
    """

    def __init__(self, loader: Any, steps: int | None = None, group: SingleProcess | None = None) -> None:
        self.group = group = group or SingleProcess()
        self.reader = as_map_batches(as_tensor_batches(sharding.shard_loader(loader, group, training=False)))
        steps = whole("steps", steps)
        self.steps = steps if steps is None else -(-(steps - group.rank) // group.world_size)
        self.first: Callable[[], object] = bool  # what to do before the first of them

    def __len__(self) -> int:
        counts = [count for count in (length(self.reader), self.steps) if count is not None]
        if not counts:
            raise TypeError("nobody knows how many batches there are")
        return min(counts)

    def __iter__(self) -> Iterator[Any]:
        self.first()
        if self.group.world_size > 1:
            set_rng_state(self.group.broadcast(get_rng_state()))  # everybody draws the same order
        return itertools.islice(iterate(self.reader), self.steps)


def _copied(leaf: Any) -> Any:
    """Return a copy of a tensor: a worker's memory would be shared as long as the tensor is kept."""
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
