"""Ctrl-C, SIGTERM and the agreement of ranks to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from easytorch.callbacks.base import Callback
from easytorch.distributed.process_group import is_launched
from easytorch.strategies.base import INTERRUPT, STOP

ECHO = 2.0  # seconds in which a launcher hands a signal on


class Interruption(BaseException):
    """Leaves the loop after an update, because somebody asked for it from outside."""


class StopConsensus(Callback):
    """Has all processes stop after the same update: where one of them wishes to, all do, one update later."""

    priority = 29  # told when all others have wished what they wish

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if all know that somebody wishes it, or that no number is worth anything any more."""
        known = self.model.callbacks.diverged and self.model.stop_training
        stop = self.model.strategy.any_rank(STOP, self.model.stop_training) or known
        if stop != self.model.stop_training:
            self.model.stop_training = stop

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ask all whether somebody wishes to stop."""
        self.model.stop_training = self.model.strategy.group.any_rank(self.model.stop_training)


class SignalHandler(Callback):
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

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) == usual:
                    self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        echo = is_launched() and time.monotonic() - self._since < ECHO
        if self.caught is not None and echo:
            return
        if self.caught is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.caught, self._since = number, time.monotonic()
        if number == signal.SIGINT and self.model.strategy.group.is_main:
            print("\nStopping after this update; Ctrl-C again stops at once.", file=sys.stderr, flush=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave, if somebody asked for it."""
        if self.model.strategy.any_rank(INTERRUPT, self.caught is not None):
            raise Interruption

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave, if somebody asked for it; many processes leave when all have measured."""
        if self.caught is not None and self.model.strategy.group.world_size == 1:
            raise Interruption

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Leave, if somebody asked for it."""
        if self.model.strategy.group.any_rank(self.caught is not None):
            raise Interruption

    def settle(self, on_interrupt: str) -> None:
        """End the process after SIGTERM, with the usual status; raise after Ctrl-C, if that is wanted."""
        if self.caught == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.caught == signal.SIGINT and on_interrupt == "raise":
            raise KeyboardInterrupt
        if self.caught == signal.SIGINT and self.model.strategy.group.is_main:
            print(f"Stopped after update {self.model.state.step}. The program goes on.", file=sys.stderr, flush=True)
