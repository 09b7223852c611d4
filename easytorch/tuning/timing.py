"""The time of training updates, and limits of time."""

from __future__ import annotations

import contextlib
import signal
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from easytorch.callbacks.base import Callback
from easytorch.training.trial import trial
from easytorch.tuning.range_test import find_base_rates, set_rates

if TYPE_CHECKING:
    from easytorch.model import Model

# A fit that measures ends by its callback, and not by this number of updates.
MAX_UPDATES = 100_000
# The time after which an expired limit tries again to interrupt the program.
RETRY_SECONDS = 0.05


class Timing(NamedTuple):
    """The time of some updates.

    Attributes:
        seconds: The median time of an update, with the wait for its data.
        samples: The mean number of samples of an update.
        loss: The mean loss of the first updates, whose number does not depend on the warm-up; None if there are several losses.
    """

    seconds: float
    samples: float
    loss: float | None = None

    @property
    def seconds_per_sample(self) -> float:
        """The time of one sample."""
        return self.seconds / self.samples


class UpdateTimer(Callback):
    """Measures the time between the ends of two updates, and then stops training.

    Args:
        warmup: Updates before the measurement.
        count: Updates that are measured at least.
        min_seconds: Seconds that are measured at least.
        clock: Returns the time in seconds.
    """

    priority = 1000  # the time of an update includes that of its callbacks

    def __init__(
        self, warmup: int, count: int, min_seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.warmup, self.count, self.min_seconds, self.clock = max(1, warmup), count, min_seconds, clock
        self._ends: list[float] = []
        self._samples: list[int] = []
        self._loss: float | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Read the clock, when the device has finished the update."""
        if batch + 1 == self.count and logs and "loss" in logs:
            self._loss = float(logs["loss"])
        if batch + 1 < self.warmup:
            return
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize()
        self._ends.append(self.clock())
        assert self.model.train_data is not None
        window = self.model.train_data.window
        self._samples.append(sum(window.sizes))
        elapsed = self._ends[-1] - self._ends[0]
        if len(self._ends) > self.count and elapsed >= self.min_seconds:
            self.model.stop_training = True

    def read(self) -> Timing:
        """Return the time of the measured updates.

        Raises:
            ValueError: If there were fewer than two updates.
        """
        if len(self._ends) < 2:
            raise ValueError("The data ended before an update was measured. Pass more samples or smaller batches.")
        # The first end is that of the last update of the warm-up.
        seconds = [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]
        return Timing(statistics.median(seconds), statistics.mean(self._samples[1:]), self._loss)


def measure_updates(model: Model, x: Any, y: Any, timer: UpdateTimer, /, **options: Any) -> Timing:
    """Train until ``timer`` stops, and return what it has measured; the model stays as it is.

    Args:
        model: The model.
        x: The data of ``fit``.
        y: The targets of ``fit``.
        timer: The timer.
        options: Further arguments of ``fit``.
    """
    with trial(model, *(value for value in (x, y) if value is not None), purpose="A measurement"):
        suspend_schedules(model)
        model.fit(x, y, epochs=1, steps_per_epoch=MAX_UPDATES, callbacks=[timer], verbose=0, **options)
    return timer.read()


def suspend_schedules(model: Model) -> None:
    """Let the optimizer have its rates without schedules, which would count updates that are only measured."""
    set_rates(model.require_optimizer("fit").param_groups, find_base_rates(model))
    model.schedules = []


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a ``TimeoutError`` inside after ``seconds``; only in the main thread, and where no other timer runs."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(_: int, frame: FrameType | None) -> None:
        if not _is_finalizer(frame):
            raise TimeoutError(f"it took longer than {seconds:.0f} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), RETRY_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _is_finalizer(frame: FrameType | None) -> bool:
    """Return whether ``frame`` runs in ``__del__`` or in the callback of a weak reference, where Python ignores errors."""
    for _ in range(5):  # finalizers hardly call other functions
        if frame is None:
            return False
        arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        if frame.f_code.co_name == "__del__" or any(
            isinstance(frame.f_locals.get(name), weakref.ref) for name in arguments
        ):
            return True
        frame = frame.f_back
    return False
