"""What surrounds the loop: callbacks told, modes put back, errors explained, interruptions taken as a normal ending."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from easytorch import data, optimizers
from easytorch._utils import train_mode
from easytorch._utils.registry import find
from easytorch._utils.rng import random_states, random_states_kept, set_random_states
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.callbacks.nan import NaNNotice
from easytorch.callbacks.progress import EndlessNotice
from easytorch.data.loader import first_batch
from easytorch.diagnostics.torch_errors import explained
from easytorch.distributed.process_group import launched
from easytorch.state import TrainState
from easytorch.strategies.base import INTERRUPT, STOP

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import Feed
    from easytorch.model import Model


ECHO = 2.0  # seconds in which a launcher hands a signal on


class Interruption(BaseException):
    """Leaves the loop after an update, because somebody asked for it from outside."""


@contextlib.contextmanager
def fitting(
    model: Model,
    callbacks: list[Callback],
    state: TrainState,
    feed: Feed,
    validation: Any,
    verbose: Any,
    on_interrupt: str,
) -> Iterator[None]:
    """Run the epochs of ``fit`` inside, from ``state`` on, and end them in order, however they end."""
    on_interrupt = find("on_interrupt", on_interrupt, {"return": "return", "raise": "raise"})
    optimizers.check_current(model.need_optimizer("fit"), model.module)
    interrupts, begin, processes = Interrupts(), state.step, model.strategy.processes
    params = {"epochs": state.last, "steps": len(feed) or None, "verbose": verbose}
    notices = [NaNNotice()] if len(feed) else [NaNNotice(), EndlessNotice()]
    every = [*callbacks, *notices, Agreement(), interrupts]
    listeners = CallbackList(every, model, params | {"validated": validation is not None})
    model.history.params, model.history.interrupted = params, False
    model.feed, feed.earlier, feed.clock = feed, state.first, model.strategy.clock
    # An update of the user's own may ask for anything of its batches, so that it must have one.
    feed.lends, model.metrics.processes = model.strategy.lends or model.has_own("update"), processes
    with training(model, listeners, state), interrupts:
        error: BaseException | None = None
        try:
            model.metrics.reset()
            listeners.on_train_begin({})
            listeners.on_restore()
            _try_out(model, validation)
            model.loss.expect(data.all_targets(feed.loader))
            yield
            if processes.size > 1:
                set_random_states(processes.same(random_states()))  # after training all go on alike
                processes.copy_first(list(model.module.buffers()))
        except Interruption:
            model.history.interrupted = True
            interrupts.caught = int(processes.largest(interrupts.caught or 0))  # of one process, or of all
            listeners.on_interrupt()
        except BaseException as caught:
            error = caught
            raise
        finally:
            if error is None or model.state.step > begin:
                model.last_fit = {"validation": validation, "training": feed.loader, "example": feed.example}
            model.feed = None
            feed.close()
            rows = model.history.rows
            listeners.finish(error, rows[-1] if rows else {})
    interrupts.settle(on_interrupt)


@contextlib.contextmanager
def training(model: Model, callbacks: CallbackList, state: TrainState | None = None) -> Iterator[None]:
    """Update weights inside, from ``state`` on; if the very first update fails, the model is what it was before."""
    optimizer, before = model.need_optimizer("fit"), model.state
    model.state = state or before
    begin = model.state.step
    buffers = [(buffer, buffer.clone()) for buffer in model.module.buffers()]
    model.stop_training = False
    optimizer.zero_grad()
    model.strategy.begin()
    with listening(model, callbacks), explained(model.module), train_mode.training(model.module):
        try:
            yield
        except BaseException:
            if model.state.step == begin:
                model.state = before
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
            optimizer.zero_grad()
            raise


@contextlib.contextmanager
def measuring(model: Model) -> Iterator[None]:
    """Measure inside, apart from what the training epoch measures, in eval mode and without gradients."""
    outer, model.metrics = model.metrics, model.metrics.fresh()
    model.strategy.clock.mark("rest")
    try:
        with train_mode.evaluating(model.module), torch.no_grad():
            yield
    finally:
        model.metrics = outer
        model.strategy.clock.mark("validation")


@contextlib.contextmanager
def watched(model: Model, callbacks: CallbackList) -> Iterator[None]:
    """Evaluate or predict inside; callbacks are told of an error, which is explained."""
    with listening(model, callbacks), explained(model.module):
        try:
            yield
        except BaseException as error:
            callbacks.on_exception(error)
            raise


@contextlib.contextmanager
def listening(model: Model, callbacks: CallbackList) -> Iterator[None]:
    """Tell ``callbacks`` inside, nobody else."""
    outer, model.callbacks = model.callbacks, callbacks
    try:
        yield
    finally:
        model.callbacks = outer


def _try_out(model: Model, loader: Any) -> None:
    """Take one step on the validation data, so that what is wrong with it is told before training, not after."""
    batch = first_batch(loader)
    model.loss.expect(data.all_targets(loader))
    if batch is not None:
        try:
            with explained(model.module), measuring(model), random_states_kept():
                model.strategy.run(model.test_step, batch)
        except (ValueError, TypeError, IndexError) as error:
            kind = next(kind for kind in (ValueError, TypeError, IndexError) if isinstance(error, kind))
            raise kind(
                f"On the validation data, which is tried first: {error}"
            ) from error  # a subclass may want other arguments


class Agreement(Callback):
    """Has all processes stop after the same update: where one of them wishes to, all do, one update later."""

    priority = 29  # told when all others have wished what they wish

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if all know that somebody wishes it, or that no number is worth anything any more."""
        known = self.model.callbacks.damaged and self.model.stop_training
        stop = self.model.strategy.agree(STOP, self.model.stop_training) or known
        if stop != self.model.stop_training:
            self.model.stop_training = stop

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ask all whether somebody wishes to stop."""
        self.model.stop_training = self.model.strategy.processes.any(self.model.stop_training)


class Interrupts(Callback):
    """Turns Ctrl-C and SIGTERM into an ending after the update that runs; a second one stops at once.

    Of many processes all end after the same update. A launcher hands a signal on that they have got already, so a second one that
    comes at once is the first one's echo.

    Handlers that somebody else installed stay. Only the main thread can have handlers; elsewhere this does nothing.
    """

    priority = 30  # told last: an interruption comes after whatever the others do with the update

    def __init__(self) -> None:
        self.caught: int | None = None
        self._since = 0.0  # on the clock of this process
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) == usual:
                    self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        echo = launched() and time.monotonic() - self._since < ECHO
        if self.caught is not None and echo:
            return
        if self.caught is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.caught, self._since = number, time.monotonic()
        if number == signal.SIGINT and self.model.strategy.processes.first:
            print("\nStopping after this update; Ctrl-C again stops at once.", file=sys.stderr, flush=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave, if somebody asked for it."""
        if self.model.strategy.agree(INTERRUPT, self.caught is not None):
            raise Interruption

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave, if somebody asked for it; many processes leave when all have measured."""
        if self.caught is not None and self.model.strategy.processes.size == 1:
            raise Interruption

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Leave, if somebody asked for it."""
        if self.model.strategy.processes.any(self.caught is not None):
            raise Interruption

    def settle(self, on_interrupt: str) -> None:
        """End the process after SIGTERM, with the usual status; raise after Ctrl-C, if that is wanted."""
        if self.caught == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.caught == signal.SIGINT and on_interrupt == "raise":
            raise KeyboardInterrupt
        if self.caught == signal.SIGINT and self.model.strategy.processes.first:
            print(f"Stopped after update {self.model.state.step}. The program goes on.", file=sys.stderr, flush=True)
