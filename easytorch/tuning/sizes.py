"""The batch size after which larger batches are no faster, and the largest that fits."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from easytorch._utils.integers import optional_positive_int, positive_int
from easytorch.data.batch import count_batches
from easytorch.tuning.base import Measurement
from easytorch.tuning.loaders import check_batch_size, check_data, count_samples, takes_batch_size, with_batch_size
from easytorch.tuning.progress import StepDisplay
from easytorch.tuning.timing import Timing, UpdateTimer, measure_updates

if TYPE_CHECKING:
    from easytorch.model import Model

# A batch size is at the knee if it reaches this share of the highest throughput.
KNEE = 0.9
# The search ends after two doublings that gain less than this share.
GAIN = 1.05
# Why the search ends then.
NO_FASTER = "Larger batches are no faster."
# Measurements of each size, whose median counts.
ROUNDS = 3
# The last of them is only of sizes with this share of the highest throughput.
CONTENDER = 0.7
WARMUP, UPDATES, SECONDS = 2, 5, 0.1
# Time after which no further size and no further round starts.
MAX_SECONDS = 60.0
# A batch that takes longer on a CPU is the last one.
MAX_UPDATE_SECONDS = 3.0
# The largest size that fits is found up to this share of it.
PRECISION = 1 / 8

Measure = Callable[[int], Timing]


class BatchSizes(Measurement):
    """The throughput of training with several batch sizes; ``find_batch_size`` returns it.

    Attributes:
        suggestion: The smallest batch size that reaches 90% of the highest throughput.
        reason: Why, in a sentence.
        largest: The largest size that fits in memory; None if all sizes fit.
        rows: For each size the samples per second and the seconds of an update, or None if it does not fit.

    Examples:
        >>> found = model.find_batch_size(x, y)
        >>> model.fit(x, y, batch_size=found.suggestion)
    """

    title = "Batch size and throughput of training"

    def __init__(self, timings: dict[int, list[Timing]], failed: Sequence[int], end: str, usage: str) -> None:
        rates = {size: statistics.median(t.samples / t.seconds for t in each) for size, each in timings.items()}
        self.largest = max(timings) if failed else None
        best = max(rates.values())
        suggestion = min(size for size, rate in rates.items() if rate >= KNEE * best)
        rows = [
            {
                "batch_size": size,
                "samples_per_second": rates.get(size),
                "seconds_per_update": statistics.median(t.seconds for t in timings[size]) if size in timings else None,
                "note": _note(size, suggestion, size in failed),
            }
            for size in sorted({*rates, *failed})
        ]
        share = rates[suggestion] / best
        fastest = next(size for size, rate in rates.items() if rate == best)
        by_size = [rates[size] for size in sorted(rates)]
        if end == NO_FASTER and not _is_flat(by_size):
            # One slow measurement has ended the search; the medians say otherwise.
            end = f"Sizes above {max(rates)} were not measured and may be faster. To measure them, pass min_size={max(rates)}."
        reason = f"Suggestion: {suggestion}. It reaches {share:.0%} of the highest throughput, that of {fastest}. {end}"
        notes = [f"The largest batch size that fits is {self.largest}."] * (self.largest is not None)
        super().__init__(rows, suggestion, reason, [*notes, usage.format(suggestion)])

    def to_dict(self) -> dict[str, Any]:
        """Return the table, the suggestion, the largest size and the reason as plain values.

        Examples:
            >>> largest = model.find_batch_size(x, y, verbose=0).to_dict()["largest"]
        """
        return super().to_dict() | {"largest": self.largest}

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return the panel of the throughput."""
        return [("Throughput of training", self._draw)]

    def _draw(self, axes: Any) -> None:
        rows = [row for row in self.rows if row["samples_per_second"] is not None]
        sizes = [row["batch_size"] for row in rows]
        axes.plot(sizes, [row["samples_per_second"] for row in rows], marker=".")
        axes.axvline(self.suggestion, color="C3", linestyle="--", label=f"suggestion {self.suggestion}")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch size")
        axes.set_ylabel("samples per second")
        axes.legend()


def find_batch_size(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    min_size: int = 8,
    max_size: int | None = None,
    verbose: int | str = "auto",
    **options: Any,
) -> BatchSizes:
    """Return the throughput of several batch sizes, and a suggestion; see ``Model.find_batch_size``."""
    model.require_optimizer("find_batch_size")
    if model.strategy.group.world_size > 1:
        raise ValueError(
            "find_batch_size() works in one process: with several, a rank whose batch does not fit would leave the others "
            "waiting. Call it in a program with one process."
        )
    check_data("find_batch_size", x, y)
    count = _check_data(x, y)
    first = positive_int("min_size", min_size)
    last = optional_positive_int("max_size", max_size) or count or 65_536
    if count == 0:
        raise ValueError("The data is empty: expected at least one sample. Check how it was read or filtered.")
    if count is not None and first > count:
        raise ValueError(f"min_size={first} is larger than the data, which has {count} samples. Pass min_size={count}.")

    usage = "Use it: DataLoader(..., batch_size={})" if isinstance(x, DataLoader) else "Use it: fit(..., batch_size={})"
    on_accelerator = model.device.type != "cpu"
    measure = functools.partial(_measure, model, x, y, options=options)
    with StepDisplay("find_batch_size", verbose) as display:
        return search(
            measure, first, min(last, count or last), usage=usage, finds_largest=on_accelerator, show=display.show
        )


def search(
    measure: Measure,
    first: int,
    last: int,
    *,
    usage: str = "Use it: batch_size={}",
    finds_largest: bool = False,
    show: Callable[[str], None] = lambda step: None,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSizes:
    """Double the batch size until it does not fit or is no faster, and measure all sizes several times.

    Args:
        measure: Returns the time of updates with a batch size, or raises ``torch.OutOfMemoryError``.
        first: The smallest size.
        last: The largest size.
        usage: How to use the suggestion.
        finds_largest: Whether to continue when larger sizes are no faster.
        show: Displays the step that is running.
        clock: Returns the time in seconds.

    Raises:
        torch.OutOfMemoryError: If the smallest size does not fit.
    """
    start = clock()
    timings: dict[int, list[Timing]] = {}
    failed: list[int] = []
    end = ""
    size = first
    while not end:
        show(f"batch size {size}")
        timing = _try(measure, size)
        if timing is None:
            failed.append(size)
            end = f"A batch of {size} samples does not fit in memory."
            break
        timings[size] = [timing]
        end = _find_end(timings, size, last, finds_largest, clock() - start)
        size = min(2 * size, last)
    if not timings:
        raise torch.OutOfMemoryError(
            f"A batch of {first} samples does not fit in memory. Pass a smaller min_size, such as min_size={max(1, first // 8)}."
        )
    if failed:
        show(f"the largest size that fits, from {max(timings)} to {min(failed)}")
        _narrow(measure, timings, failed)
    _repeat(measure, timings, lambda: clock() - start < MAX_SECONDS, show)
    return BatchSizes(timings, failed, end, usage)


def _find_end(timings: dict[int, list[Timing]], size: int, last: int, finds_largest: bool, seconds: float) -> str:
    """Return why the search ends with ``size``; empty if it does not."""
    rates = [each[0].samples / each[0].seconds for each in timings.values()]
    if size >= last:
        return f"{size} is the largest size to try."
    if seconds > MAX_SECONDS:
        return f"The search ended at {size} after {MAX_SECONDS:.0f} seconds."
    if finds_largest:
        return ""
    if timings[size][0].seconds > MAX_UPDATE_SECONDS:
        return f"The search ended at {size}, whose updates take {timings[size][0].seconds:.1f} seconds."
    return NO_FASTER if _is_flat(rates) else ""


def _is_flat(rates: list[float]) -> bool:
    """Return whether the two largest sizes are no faster than the smaller ones."""
    return len(rates) > 2 and max(rates[-2:]) < GAIN * max(rates[:-2])


def _narrow(measure: Measure, timings: dict[int, list[Timing]], failed: list[int]) -> None:
    """Find the largest size that fits, between the largest that did and the smallest that did not."""
    while min(failed) - max(timings) > max(1, PRECISION * max(timings)):
        size = (min(failed) + max(timings)) // 2
        timing = _try(measure, size)
        if timing is None:
            failed.append(size)
        else:
            timings[size] = [timing]


def _repeat(
    measure: Measure,
    timings: dict[int, list[Timing]],
    has_time: Callable[[], bool],
    show: Callable[[str], None],
) -> None:
    """Measure the sizes again, in another order in each round, so that a slow moment of the machine does not decide.

    The last round leaves out the sizes of which no measurement comes near the highest throughput.
    """
    for i in range(1, ROUNDS):
        rates = {size: max(timing.samples / timing.seconds for timing in each) for size, each in timings.items()}
        share = CONTENDER if i == ROUNDS - 1 else 0.0
        sizes = sorted((size for size in rates if rates[size] >= share * max(rates.values())), reverse=bool(i % 2))
        show(f"round {i + 1} of {ROUNDS}, batch sizes {min(sizes)} to {max(sizes)}")
        for size in sizes:
            if not has_time():
                return
            timing = _try(measure, size)
            if timing is not None:
                timings[size].append(timing)


def _try(measure: Measure, size: int) -> Timing | None:
    """Return the time of updates with ``size`` samples; None if they do not fit."""
    try:
        return measure(size)
    except torch.OutOfMemoryError:
        pass
    # The frames of the error, which hold the activations, are gone here.
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return None


def _measure(model: Model, x: Any, y: Any, size: int, *, options: dict[str, Any]) -> Timing:
    timer = UpdateTimer(WARMUP, UPDATES, SECONDS)
    if isinstance(x, DataLoader):
        return measure_updates(model, with_batch_size(x, size), y, timer, **options)
    return measure_updates(model, x, y, timer, batch_size=size, **options)


def _check_data(x: Any, y: Any) -> int | None:
    """Return the number of samples, None if it is unknown.

    Raises:
        ValueError: If the data has batches whose size cannot be changed.
    """
    if isinstance(x, DataLoader):
        check_batch_size(x)
        return count_batches(x.dataset)
    if not takes_batch_size(x, y):
        raise ValueError(
            f"find_batch_size() cannot change the batches of a {type(x).__name__}. Pass arrays (x, y), a Dataset or a "
            "DataLoader."
        )
    return count_samples(x)


def _note(size: int, suggestion: int, has_failed: bool) -> str:
    return "does not fit in memory" if has_failed else "suggestion" if size == suggestion else ""
