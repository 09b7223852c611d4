"""Training data in windows, with an exact position for resume.

The position consists of the random states at the start of the pass, so that the sampler draws the same order again; the
number of batches used since then, which the sampler skips without loading them; and the current random states, which are
restored right before the next batch is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from easytorch._utils import torch_private
from easytorch._utils.integers import optional_positive_int
from easytorch._utils.internal import is_internal
from easytorch._utils.object_graph import is_user_class
from easytorch._utils.pytree import map_leaves
from easytorch._utils.rng import (
    get_generator_states,
    get_rng_state,
    preserve_rng_state,
    set_generator_states,
    set_rng_state,
)
from easytorch._utils.timer import Timer
from easytorch._utils.warnings import warn
from easytorch.data import sharding
from easytorch.data.batch import (
    EMPTY_DATA,
    Batch,
    BatchFunctions,
    GeneratorWithLookahead,
    ShardedWindow,
    Window,
    batch_size,
    count_batches,
    is_single_pass,
    unpack,
)
from easytorch.data.combined import CombinedBatches, CombinedLoader
from easytorch.data.data_sets import by_name
from easytorch.data.fast_loaders import (
    MapBatches,
    TensorBatches,
    as_map_batches,
    as_tensor_batches,
    draw_base_seed,
    is_known_order,
)
from easytorch.data.random_sources import RandomSources
from easytorch.data.resumable_sampler import ResumableSampler, Resume, order_repeats_message
from easytorch.data.reused_memory import WindowReader
from easytorch.data.stream_check import StreamCheck
from easytorch.data.tables import has_shuffle_buffer
from easytorch.data.workers import iterate, refresh_workers, report_repeated_stream, shield_workers
from easytorch.distributed.process_group import SingleProcess
from easytorch.errors import ResumeError

if TYPE_CHECKING:
    from easytorch.training.state import TrainState

# Entries of a checkpoint that a resumed run which has read nothing yet passes on unchanged.
UNREAD_KEYS = (
    "passes", "batches_used", "rng_at_start", "order_checksum", "stream_checksum", "loader", "offset", "has_ended", "counters",
)  # fmt: skip

# Indices that are drawn at most to find the order of the last pass again.
MAX_DRAWN = 10_000_000


@dataclasses.dataclass
class Position:
    """Where the iteration is.

    Attributes:
        passes: Passes over the data that were started in this fit.
        batches_used: Batches of this pass that the loop took.
        offset: Batches of this pass, of all ranks, that a run with another world size used.
        has_ended: Whether the data has no more batches in this pass.
        rng_at_start: Random states at the start of this pass.
    """

    passes: int = 0
    batches_used: int = 0
    offset: int = 0
    has_ended: bool = False
    rng_at_start: dict[str, Any] = dataclasses.field(default_factory=dict)


class EpochIterator:
    """Iterates over the training data, one window of batches per update, epoch after epoch.

    Args:
        loader: The batches of all ranks.
        window_size: Batches per window. The last window of a pass may be shorter.
        steps: Windows per epoch. With None an epoch is one pass over the data. Otherwise an epoch continues where the last
            one stopped, and a new pass starts when the data ends.
        weigh: Applied to each batch; adds class weights.
        unreproducible: Whether workers may draw random numbers that cannot be restored.
        group: The ranks that share the data.
        validation_loader: The validation batches, or ``DataSets`` of these, whose generators are saved and restored too.
        batch_size: Returns the number of samples of a batch.
        unpack: Splits a batch into inputs, targets and weights.
        pins: Whether batches of data in memory are in pinned memory.

    Attributes:
        needs_batch_every_step: Whether a rank without a batch gets its last batch again as padding, which counts nothing.
            Otherwise its window is empty.
        window: The window of the update in progress.
        example: A copy of the first batch.
        timer: Measures the wait for data.
        first_epoch: Number of epochs before this fit, for samplers and datasets with ``set_epoch``.
        sources: The objects that draw random numbers.

    Raises:
        ValueError: If the loader is empty.
    """

    def __init__(
        self,
        loader: Any,
        *,
        window_size: int = 1,
        steps: int | None = None,
        weigh: Callable[[Any], Any] | None = None,
        unreproducible: bool = False,
        group: SingleProcess | None = None,
        validation_loader: Any = None,
        batch_size: Callable[[Any], int] = batch_size,
        unpack: Callable[[Any], Batch] = unpack,
        pins: bool = False,
    ) -> None:
        _check_has_batches(loader)
        self._pins = pins
        self.loader, self.validation_loader = loader, validation_loader
        self.sources = RandomSources(loader, validation_loader)
        self.window_size, self.steps = window_size, optional_positive_int("steps_per_epoch", steps)
        self.group = group or SingleProcess()
        self.needs_batch_every_step = False
        self.timer, self.first_epoch = Timer(), 0
        self.window, self.example = Window(), None
        self._weigh, self._unreproducible = weigh, unreproducible
        self._functions = BatchFunctions(batch_size, unpack)
        self._single_pass = is_single_pass(loader)
        if self._single_pass and self.steps is None and (length := count_batches(loader)) is not None:
            self.steps = -(-length // window_size)  # it may not end by itself
        self._exhausted = self._has_warned = False
        self._position = Position()
        self._resume: Mapping[str, Any] | None = None  # the position to continue from, until the first batch is read
        self._loader_state: Any = None  # of a loader that saves itself, until it is read
        self._now = dict[str, Any]()  # random states to restore after the batches that are skipped
        self._before_validation: dict[str, Any] | None = None
        self._last_order: dict[str, Any] | None = None  # what a resume between two passes compares
        self._length: int | None = None  # batches of this pass, if that is certain
        # Windows of the resumed epoch that are done already, and windows of the last epoch.
        self._batches_in_window = self._windows_done = self._windows_seen = 0
        self._iterator: Any = None
        self._padding_batch: Any = None
        self._sampler: ResumableSampler | TensorBatches | None = None
        self._reader, self._shards = self._make_reader(
            sharding.shard_loader(refresh_workers(shield_workers(loader)), self.group, True, batch_size)
        )
        self._window_reader = WindowReader(self._reader, self.window_size)
        # A stream has no order to compare, and is read again.
        is_stream = self._sampler is None and not hasattr(self._reader, "load_state_dict")
        self._stream_check = StreamCheck() if is_stream and type(loader) not in (list, tuple) else None
        self._check_has_rounds()
        self._stream = self._repeat() if self.steps else None
        self._lookahead: list[Window] = []  # the window that was read to see whether there is one
        self._windows: Iterator[Window] = iter(())  # the remaining windows of the epoch
        self._last_state: dict[str, Any] | None = None  # the state after the last update of a fit that ends

    def _check_has_rounds(self) -> None:
        """Raise a ``ValueError`` if there is no batch for this rank."""
        if count_batches(self._reader) == 0:
            raise ValueError(
                f"The data has fewer batches than the {self.group.world_size} processes, and drop_last=True drops an incomplete "
                "round. Use a smaller batch_size or fewer processes."
            )

    def __len__(self) -> int:
        """Return the number of windows per epoch; 0 if unknown."""
        return self.steps or -(-(count_batches(self._reader) or 0) // self.window_size)

    @property
    def has_ended(self) -> bool:
        """Whether the pass certainly has no more batches."""
        return self._position.has_ended

    @property
    def counts_exact(self) -> bool:
        """Whether the number of indices of a batch is its number of rows."""
        return self._shards is None or self._shards.counts_exact

    # Epochs and windows

    def epochs(self, state: TrainState) -> Iterator[int]:
        """Yield the number of each epoch until ``state.last``, or until a generator has no more data."""
        while state.epoch < state.last:
            yield state.epoch
            if state.epoch < state.last and (self._exhausted or not self._has_more()):
                warn(
                    f"Training stops after epoch {state.epoch} of {state.last}: the generator has no more data, since it can be "
                    "read only once. Pass the function that creates it (not its result), a list of batches or a DataLoader."
                )
                return
        if self._exhausted and self.steps and self._windows_seen < self.steps:
            warn(
                f"The last epoch had only {self._windows_seen} of steps_per_epoch={self.steps} updates: the generator has "
                "no more data, since it can be read only once. Pass the function that creates it (not its result)."
            )

    def _has_more(self) -> bool:
        """Return whether a generator that is divided into epochs has another window."""
        if not self._single_pass or self._stream is None:
            return True
        self._lookahead = list(itertools.islice(self._stream, 1))
        return bool(self._lookahead)

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows of one epoch; the remaining ones of a resumed epoch."""
        timer = self.timer
        timer.start()
        count, self._windows_done = self._windows_done, 0
        lookahead, self._lookahead = self._lookahead, []
        remaining = self.steps - count - len(lookahead) if self.steps else None
        self._windows = itertools.chain(lookahead, itertools.islice(self._stream or self._pass(), remaining))
        requested_at = perf_counter()
        for window in self._windows:
            if self.example is None and window:
                self.example = map_leaves(_clone_tensor, window[0])
            self.window = window
            count += 1
            timer.mark_data(requested_at)
            yield window
            requested_at = perf_counter()
        self._exhausted = count < self.steps if self.steps else self._single_pass
        self._windows_seen = count
        if not count:
            raise ValueError(EMPTY_DATA)

    def ends_here(self, epoch_step: int) -> bool:
        """Return whether the epoch certainly has no other window. If it has one, training must end now.

        Data without a length is read for this, and ``state_dict`` returns the state from before. Data that can be read only
        once is not read.

        Args:
            epoch_step: Updates of the epoch in progress.
        """
        if len(self) or self._single_pass:
            return epoch_step == len(self)
        self._last_state = self.state_dict(epoch_step)
        if next(self._windows, None) is not None:
            return False
        self._last_state = None
        return True

    def close(self) -> None:
        """Shut down the loader's workers now: a traceback that holds the iterator would keep them alive."""
        torch_private.shut_down_workers(self._iterator)
        if isinstance(self._reader, CombinedBatches):
            self._reader.close()
        self._iterator = self._reader = self._stream = None
        self._windows, self.window = iter(()), Window()

    def sample_indices(self) -> list[Any] | None:
        """Return the dataset indices of each batch in the current window; None if unknown."""
        if self._sampler is None:
            return None
        first = self._position.batches_used - self._batches_in_window
        return [self._sampler.batch(first + i) for i in range(len(self.window))]

    def data_loading_advice(self, device: torch.device) -> str | None:
        """Return advice that shortens the wait for data; None if there is none."""
        loader = self.loader
        if isinstance(self._reader, TensorBatches):
            return None
        if not isinstance(loader, DataLoader):
            return "Put a Dataset into a DataLoader(num_workers=2) to load samples while the model trains."
        advice = []
        if not isinstance(loader.dataset, IterableDataset):
            advice.append(
                "If its samples are the same every time and fit in memory, load them once: easytorch.data.in_memory(dataset)."
            )
        workers = 2 * loader.num_workers or 2
        advice.append(
            f"Use {'more ' if loader.num_workers else ''}workers, which load while the model trains: num_workers={workers}."
        )
        if device.type != "cpu" and not loader.pin_memory:
            advice.append("Use pin_memory=True: pinned memory is copied without waiting.")
        return " ".join(advice)

    def _pass(self) -> Iterator[Window]:
        """Yield the windows of one pass over the data; the remaining ones of a resumed pass."""
        skip = self._start_pass()
        # islice() calls iter() for each window, which would start an iterator that returns itself again.
        batches: Iterator[Any] = itertools.chain(self._read(skip))
        length = count_batches(self.loader) if isinstance(self.loader, Iterator) and not self._single_pass else None
        if length is not None:
            batches = itertools.islice(batches, length - skip)
        if not skip:
            batches = report_repeated_stream(self._reader, batches)
        if self._stream_check is not None:
            batches = self._stream_check.watch(batches)
        if self._weigh is not None:
            batches = map(self._apply_weights, batches)
        if self._shards is not None:
            batches = self._append_missing(batches)
        make_window = Window if self._shards is None else self._make_sharded_window
        while taken := self._window_reader.read(batches):
            position, count = self._position, len(taken)
            position.batches_used += count
            position.has_ended = count < self.window_size or position.batches_used == self._length
            self._batches_in_window = count
            window = make_window(taken)
            window.functions = self._functions
            yield window
        self._position.has_ended = True
        self._check_length()

    def _check_length(self) -> None:
        """Warn if the pass that has ended had another number of batches than its length promises."""
        count, promised = self._position.batches_used, count_batches(self._reader)
        if (
            self.group.world_size > 1
            or self._single_pass
            or self._has_warned
            or not count
            or count == (promised or count)
        ):
            return
        self._has_warned = True
        warn(_length_message(-(-count // self.window_size), -(-(promised or 0) // self.window_size)))

    def _repeat(self) -> Iterator[Window]:
        """Yield the windows of one pass after another."""
        while True:
            window = None
            for window in self._pass():
                yield window
            if self._single_pass or (window is None and not self._position.batches_used):
                return

    def _apply_weights(self, batch: Any) -> Any:
        return batch if batch is sharding.NO_BATCH or self._weigh is None else self._weigh(batch)

    # Windows of several ranks

    def _make_sharded_window(self, batches: list[Any]) -> Window:
        """Return this rank's window, with the sample counts of all ranks."""
        used = self._position.batches_used
        rounds = self._shards.rounds[used - len(batches) : used]
        if self.needs_batch_every_step:
            batches = [self._pad(batch) for batch in batches]
        else:
            batches = [batch for batch in batches if batch is not sharding.NO_BATCH]
        counts = [count for count, _ in rounds if count or self.needs_batch_every_step]
        total = sum(total for _, total in rounds)
        return ShardedWindow(batches, sample_counts=counts, total=total, counts_exact=self._shards.counts_exact)

    def _append_missing(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, then ``NO_BATCH`` for each round in which only other ranks have a batch."""
        count = self._position.batches_used
        for batch in batches:
            count += 1
            yield batch
        if any(size for size, _ in self._shards.rounds[count:]):
            raise ValueError(
                f"The data of rank {self.group.rank} ended after {count} of {len(self._shards.rounds)} batches. A StopIteration "
                "in __getitem__, for example of next(), ends a pass: raise another error, or return a sample."
            )
        yield from itertools.repeat(sharding.NO_BATCH, len(self._shards.rounds) - count)

    def _pad(self, batch: Any) -> Any:
        """Return ``batch``, or for ``NO_BATCH`` the last batch of this rank."""
        if batch is not sharding.NO_BATCH:
            self._padding_batch = batch
        elif self._padding_batch is None:
            self._padding_batch = self._load_padding()
        return self._padding_batch

    def _load_padding(self) -> Any:
        """Return a padding batch for a rank that has had no batch since it started."""
        loader = self.loader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ValueError(f"Rank {self.group.rank} has no batch. Use fewer processes or a smaller batch_size.")
        with preserve_rng_state():
            return self._apply_weights(MapBatches(loader).fetch([0, 0]))  # BatchNorm could not take a single sample

    # Reading a pass

    def _start_pass(self) -> int:
        """Start a pass, or restore the start of the pass to resume; return the number of batches to skip."""
        resume, self._resume = self._resume, None
        position = self._position
        if resume is None:
            self._check_last_order()
            self._synchronize_order()
            position.passes += 1
            position.rng_at_start = self.sources.get_state(of_pass=True)
            position.batches_used = position.offset = 0
            position.has_ended = False
        else:
            position.passes, position.batches_used = resume["passes"], resume["batches_used"]
            position.offset, position.rng_at_start = resume.get("offset", 0), dict(resume["rng_at_start"])
            position.has_ended = resume["has_ended"]
            if self._stream_check is not None:
                self._stream_check.expected = resume["stream_checksum"]
            self._now = self.sources.get_state() | {"counters": resume["counters"]}
            self._rewind()
        persists = getattr(self._reader, "persistent_workers", False)
        if persists and position.passes > 1 and not torch_private.workers_are_running(self._reader):
            # Persistent workers draw no new seed, so those of a resumed run, which start now, must not draw one either.
            self._reader.generator = torch.Generator()
        self.sources.set_epoch(self._epoch())
        if self._shards is not None:
            self._shards.offset = position.offset
        if self._sampler is not None:
            self._sampler.start(None if resume is None else self._make_resume(resume))
        self._length = count_batches(self._reader) if self._has_certain_length() else None
        return position.batches_used if resume is not None else 0

    def _has_certain_length(self) -> bool:
        """Return whether the data has as many batches as its length promises, unless loading fails."""
        if isinstance(self.loader, DataLoader):
            return not isinstance(self.loader.dataset, IterableDataset)
        return hasattr(self.loader, "load_state_dict")

    def _epoch(self) -> int:
        """Return the number of the pass, counted over all fits from 0."""
        return self.first_epoch + self._position.passes - 1

    def _rewind(self) -> None:
        """Restore the random states of the start of the pass."""
        self.sources.set_state_of_pass(self._position.rng_at_start)

    def _make_resume(self, resume: Mapping[str, Any]) -> Resume:
        def restore() -> None:
            self.sources.set_state(self._now, keep_order=True)

        attempts = 1 if self.steps else self._count_attempts()
        return Resume(self._position.batches_used, resume["order_checksum"], restore, self._prepare_order, attempts)

    def _prepare_order(self) -> None:
        """Do what a ``DataLoader`` does before its sampler draws the order of the pass."""
        self._rewind()
        self.sources.set_epoch(self._epoch())
        if self._position.passes == 1 or not getattr(self._reader, "persistent_workers", False):
            draw_base_seed(self.loader)

    def _count_attempts(self) -> int:
        """Return how many passes are drawn to find an order again: all that the run has drawn, within a bound."""
        samples = self._size()[0] or MAX_DRAWN
        return min(self._position.passes, max(MAX_DRAWN // samples, 1))

    def _check_last_order(self) -> None:
        """After a resume between two passes, draw the order of the last pass again; warn if it is another one.

        A custom sampler may count its passes, or draw from a generator, in a place that is not restored. Then it draws the
        order of an earlier pass, and as many passes as the run had lead to its state.
        """
        last, self._last_order = self._last_order, None
        if last is None or not isinstance(self._sampler, ResumableSampler):
            return
        now, sampler, self._position.rng_at_start = self.sources.get_state(), self._sampler, last["rng_at_start"]
        for _ in range(self._count_attempts()):
            self._prepare_order()
            if sampler.draw_pass() == last["checksum"]:
                break
        else:
            warn(order_repeats_message(sampler.inner))
        self.sources.set_state(now)

    def _synchronize_order(self) -> None:
        """Broadcast the random states of rank 0, so that all ranks draw the same order."""
        if self.group.world_size > 1:
            generators = self.sources.order_generators()
            random, states = self.group.broadcast((get_rng_state(), get_generator_states(generators)))
            if len(states) != len(generators):
                raise ValueError(
                    f"The data of rank 0 has {len(states)} random generators, and that of rank {self.group.rank} has "
                    f"{len(generators)}, so they cannot draw the same order. Create the data alike on all ranks."
                )
            if not self.group.is_main:
                set_rng_state(random)
                set_generator_states(generators, states)

    def _read(self, skip: int) -> Iterator[Any]:
        """Return the batches of this pass after the first ``skip``."""
        if skip and self._sampler is None and self._position.has_ended and not self._single_pass:
            self.sources.set_state(self._now)
            return iter(())
        state, self._loader_state = self._loader_state, None
        if state is not None:
            self._reader.load_state_dict(state)
        with _without_restart(self.loader if state is not None else None):
            batches = self._iterator = iterate(self._reader)
        if not skip:
            return batches if state is None else self._restart_if_empty(batches)
        if self._sampler is not None:
            batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
            if self._sampler.resume is None:  # the sampler has skipped; a custom loader may never ask it
                return batches
        if state is None:
            self._discard(batches, skip)
        # A StatefulDataLoader draws a seed more when it continues.
        self.sources.set_state(self._now, keep_order=state is None or not isinstance(self.loader, DataLoader))
        return batches

    def _restart_if_empty(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield ``batches``; if there is none, because the restored pass had ended, those of the next pass."""
        first = list(itertools.islice(batches, 1))
        if not first:
            self._rewind()  # the loader may have drawn the pass that had ended again
            batches = self._iterator = iterate(self._reader)
        yield from itertools.chain(first, batches)

    def _discard(self, batches: Iterator[Any], count: int) -> None:
        """Load ``count`` batches and discard them, since the sampler cannot skip them."""
        if not isinstance(self.loader, (list, tuple)):
            warn(
                f"{type(self.loader).__name__} has no sampler that can skip, so the {count} batches that were used before are "
                "loaded again and discarded. Use a DataLoader over a Dataset to skip them without loading."
            )
        discarded = list(itertools.islice(batches, count))
        if len(discarded) < count:
            raise ResumeError(
                f"The run stopped after {count} batches of a pass, but the data has fewer now. Pass the data of the stopped run, "
                "or start a new run in another folder."
            )
        if self._stream_check is not None:
            self._stream_check.compare(discarded[-1], type(self._source()).__name__, count)
        if self.needs_batch_every_step and discarded[-1] is not sharding.NO_BATCH:
            self._padding_batch = self._apply_weights(discarded[-1])

    def _source(self) -> Any:
        """Return the dataset of the loader, or the loader if it has none."""
        return self.loader.dataset if isinstance(self.loader, DataLoader) else self.loader

    def _make_reader(self, loader: Any) -> tuple[Any, Any]:
        """Return what batches are read from, and what knows the rounds of several ranks (None with one rank)."""
        if isinstance(loader, CombinedLoader):
            loader = CombinedBatches(
                loader,
                {
                    name: EpochIterator(part, group=self.group, pins=self._pins)
                    for name, part in self.loader.parts.items()
                },
                group=self.group,
                window_size=self.window_size,
                is_weighted=not is_internal(self._functions.batch_size),
                epoch=lambda: self.first_epoch,
            )
        if not isinstance(loader, DataLoader):
            return loader, None if self.group.world_size == 1 else loader
        reader = as_tensor_batches(loader, pins=self._pins)
        shards = None if self.group.world_size == 1 else loader.batch_sampler
        if isinstance(reader, TensorBatches):
            self._sampler = reader
            return reader, shards
        if not isinstance(loader.dataset, IterableDataset) and not hasattr(loader, "load_state_dict"):
            kind = "sampler" if loader.batch_sampler is None else "batch_sampler"
            prefetched = loader.num_workers * (loader.prefetch_factor or 0)
            self._sampler = ResumableSampler(getattr(loader, kind), memory=prefetched + self.window_size + 1)
            # DataLoader forbids this assignment, which is safe here: the order does not change.
            vars(reader)[kind] = self._sampler
        return as_map_batches(reader), shards

    # Checkpoints

    def state_dict(self, epoch_step: int) -> dict[str, Any]:
        """Return the position and the random states.

        Args:
            epoch_step: Updates of the epoch in progress; 0 between two epochs.
        """
        if self._last_state is not None:
            return self._last_state
        position = self._position
        between_passes = epoch_step == 0 and not self.steps
        unread = {} if self._resume is None else self._resume
        sampler = None if between_passes else self._sampler
        now = self._before_validation or self._get_random_state()
        return {
            "passes": position.passes,
            "batches_used": 0 if between_passes else position.batches_used,
            "offset": 0 if between_passes else position.offset,
            "has_ended": between_passes or position.has_ended,
            "rng_at_start": {} if between_passes else position.rng_at_start,
            "epoch_step": epoch_step,
            **now,
            "order_checksum": None if sampler is None else sampler.checksum(position.batches_used),
            "last_order": self._get_last_order() if between_passes else None,
            "stream_checksum": None if between_passes or self._stream_check is None else self._stream_check.checksum,
            "loader": self._get_loader_state(between_passes),
            "size": self._size(),
            "window_size": self.window_size,
            "steps": self.steps,
            "world_size": self.group.world_size,
            **{key: unread[key] for key in UNREAD_KEYS if key in unread},
        }

    def _get_random_state(self) -> dict[str, Any]:
        used = [generator.taken for generator in self._validation_generators()]
        return {**self.sources.get_state(), "validation_used": used[0] if len(used) == 1 else used or 0}

    def _validation_generators(self) -> list[GeneratorWithLookahead]:
        """Return the validation data that can be read only once."""
        loaders = by_name(self.validation_loader).values()
        return [loader for loader in loaders if isinstance(loader, GeneratorWithLookahead)]

    def _get_last_order(self) -> dict[str, Any] | None:
        """Return what is needed to draw the order of the last pass again; None if its state is surely restored."""
        if self._last_order is not None:
            return self._last_order
        position, sampler = self._position, self._sampler
        if not isinstance(sampler, ResumableSampler) or not sampler.drawn or not position.has_ended:
            return None
        if is_known_order(sampler.inner):
            return None
        return {"checksum": sampler.checksum(position.batches_used), "rng_at_start": position.rng_at_start}

    def _get_loader_state(self, between_passes: bool) -> Any:
        """Return the state of a loader that saves itself, or None.

        The state of a pass that has ended starts the next pass. A ``DataLoader`` would draw a seed more then; it needs no state.
        """
        if self._loader_state is not None:
            return self._loader_state
        has_ended = between_passes or self._position.has_ended
        if not hasattr(self._reader, "state_dict") or (has_ended and isinstance(self.loader, DataLoader)):
            return None
        return self._reader.state_dict(*[between_passes] * isinstance(self._reader, CombinedBatches))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``: the next window is the one after the last that was used.

        Raises:
            ResumeError: If the data has another length or is batched differently.
        """
        self._check_same_data(state)
        self._position.passes = state["passes"]
        self._windows_done = state["epoch_step"]
        if state["world_size"] != self.group.world_size:
            state = self._reshard(state)
        is_in_pass = bool(state["batches_used"] or state["offset"])
        self._loader_state, self._last_order = state["loader"], state["last_order"]
        used = state["validation_used"]
        for generator, count in zip(
            self._validation_generators(), used if isinstance(used, list) else [used], strict=False
        ):
            generator.skip(count)
        if is_in_pass:
            self._resume = state
            self._report_lost_samples()
        # In a pass, the counters of samplers start from their values at its start.
        self.sources.set_state({**state, "counters": {} if is_in_pass else state["counters"]})
        if self._unreproducible and (self._resume is not None or getattr(self._reader, "persistent_workers", False)):
            warn(
                "DataLoader workers load the samples, and their random numbers cannot be restored. If the dataset draws random "
                "numbers (augmentation), results will differ from an uninterrupted run. Wrap the dataset in "
                "easytorch.data.seeded(dataset) for an exact resume."
            )

    def _report_lost_samples(self) -> None:
        """Warn if the state of the loader lacks samples that its stream has read already."""
        if self._loader_state is not None and has_shuffle_buffer(self._source()):
            warn(
                f"Results will differ from an uninterrupted run: the state of {type(self.loader).__name__} does not contain the "
                "samples in the shuffle buffer of a Hugging Face stream, so they are lost. Pass a DataLoader, which reads the "
                "batches again."
            )

    def get_position(self) -> Position | None:
        """Return the position after the last window; None if the loader stores the position itself."""
        return None if hasattr(self._reader, "state_dict") else dataclasses.replace(self._position)

    def set_position(self, position: Position | None) -> bool:
        """Return to an earlier ``position`` of this pass, for a checkpoint; return False if that is not possible."""
        if position is None or position.passes != self._position.passes:
            return False
        self._position = dataclasses.replace(position)
        return True

    def sample_sources(self) -> dict[str, Any]:
        """Return the objects that make the samples, by their path."""
        # Another loader of the user is read again from the start of the pass, with its state at that moment.
        is_subclass = isinstance(self._reader, DataLoader) and is_user_class(type(self._reader))
        own_loader = {"loader": self._reader} if is_subclass else {}
        return own_loader | self.sources.of_samples()

    def restore_random_state(self, state: Mapping[str, Any]) -> None:
        """Restore the random states of ``state`` once more, after hooks of a resumed epoch that may have drawn numbers."""
        self.sources.set_state({**state, "counters": {}})

    def begin_validation(self) -> None:
        """Record the random states: an interrupted validation is repeated from its start."""
        self._before_validation = self._get_random_state()

    def end_validation(self) -> None:
        """Forget the random states from before the validation."""
        self._before_validation = None

    def _check_same_data(self, state: Mapping[str, Any]) -> None:
        samples, batches, size = self._size()
        samples_before, batches_before, size_before = state["size"]
        for name, before, now in (
            ("samples", samples_before, samples),
            ("batches", batches_before, batches),
            ("samples per batch", size_before, size),
            ("batches per update", state["window_size"], self.window_size),
        ):
            if before != now:
                raise ResumeError(
                    f"Cannot resume: the run had {before} {name}, and this program has {now}. Pass the same data and settings, "
                    "or start a new run in another folder."
                )
        if state["steps"] != self.steps:
            raise ResumeError(
                f"Cannot resume: the run had steps_per_epoch={state['steps']}, and this program has {self.steps}. "
                f"Pass fit(..., steps_per_epoch={state['steps']}), or start a new run in another folder."
            )

    def _reshard(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``state`` of a run with another world size for this one: the batches that all ranks used are skipped."""
        before = state["world_size"]
        if isinstance(self._reader, CombinedBatches) and state["batches_used"]:
            raise ResumeError(
                f"Cannot resume: the run had {before} processes, and now there are {self.group.world_size}. In the middle of a "
                f"pass over combined loaders the number must be the same. Start {before} processes, or start a new run in "
                "another folder."
            )
        if isinstance(self._reader, sharding.PerRankStream) and state["batches_used"]:
            raise ResumeError(
                f"Cannot resume: the run had {before} processes with separate data each, and now there are "
                f"{self.group.world_size}, so the remaining data is unknown. Start {before} processes, or start a new run in "
                "another folder."
            )
        self.group.seed_per_rank()
        skipped = state["offset"] + state["batches_used"] * before
        is_single = self.group.world_size == 1
        return {
            **state,
            "batches_used": skipped if is_single else 0,
            "offset": 0 if is_single else skipped,
            "order_checksum": None,
            "stream_checksum": None,
            "last_order": None,
            "loader": None,
        }

    def _size(self) -> list[int | None]:
        """Return the numbers of samples, batches and samples per batch; None for what is unknown."""
        dataset = getattr(self.loader, "dataset", None)
        samples = None if dataset is None else count_batches(dataset)
        return [samples, count_batches(self.loader), getattr(self.loader, "batch_size", None)]


def _check_has_batches(loader: Any) -> None:
    if count_batches(loader) == 0:
        raise ValueError(
            "The data is empty: it has no batch. With drop_last=True, use a batch_size that is not larger than the data."
        )


def _length_message(count: int, promised: int) -> str:
    """Return the warning about data that does not have the length that it promises."""
    if count > promised:
        return (
            f"The epoch had {count} updates, but the length of the data promises {promised}. Schedules and progress use "
            "the length. An IterableDataset with workers yields all samples once per worker unless it uses "
            "torch.utils.data.get_worker_info()."
        )
    return (
        f"The epoch had {count} updates, but the length of the data promises {promised}, so samples are missing. A "
        "StopIteration in __getitem__, for example of next(), ends a pass. Raise another error, such as IndexError."
    )


@contextlib.contextmanager
def _without_restart(loader: Any) -> Iterator[None]:
    """Let a loader of torchdata.nodes, whose state is that of the end of a pass, end this pass instead of starting the next."""
    restarts = getattr(loader, "restart_on_stop_iteration", None)
    if restarts is not True:
        yield
        return
    loader.restart_on_stop_iteration = False
    try:
        yield
    finally:
        loader.restart_on_stop_iteration = restarts


def _clone_tensor(leaf: Any) -> Any:
    """Return a copy of a tensor, since memory of a worker would stay shared as long as the tensor lives."""
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
