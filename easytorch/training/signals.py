"""Ctrl-C, signals of a cluster and the agreement of ranks to stop."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from easytorch._utils.notebook import is_interactive
from easytorch._utils.terminal import print_message
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback
from easytorch.callbacks.checkpoint import saved_places
from easytorch.callbacks.stop_after import StopAfter
from easytorch.distributed import slurm
from easytorch.distributed.process_group import is_launched
from easytorch.errors import escape_lines
from easytorch.strategies.control import INTERRUPT, STOP

ON_INTERRUPT = {"auto": "auto", "raise": "raise", "return": "return"}
DUPLICATE_SIGNAL_SECONDS = 2.0  # time in which a launcher forwards a signal that its processes got already


class Interruption(BaseException):
    """Leaves the loop after an update, because Ctrl-C, SIGTERM or a warning of SLURM was received."""


class StopConsensus(Callback):
    """Makes all ranks stop after the same update: if one sets ``stop_training``, all stop one update later."""

    priority = 29  # runs after all callbacks that may set stop_training

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if a rank requested it, or if training has diverged on all ranks."""
        diverged = self.model.callbacks.diverged and self.model.stop_training
        stop = self.model.strategy.control.any_rank(STOP, self.model.stop_training) or diverged
        if stop != self.model.stop_training:
            self.model.stop_training = stop

    def on_validation_end(self, logs: Any = None) -> None:
        """Stop if a rank requested it."""
        self.model.stop_training = self.model.strategy.group.any_rank(self.model.stop_training)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop if a rank requested it."""
        self.model.stop_training = self.model.strategy.group.any_rank(self.model.stop_training)


class SignalHandler(Callback):
    """Turns Ctrl-C and SIGTERM into a normal end after the current update; a second signal stops immediately.

    In a job of SLURM, SIGUSR1 and SIGUSR2 do the same: the job was submitted with ``--signal``, and its time ends soon. The
    SIGTERM that follows them does not stop immediately.

    All ranks stop after the same update. A launcher forwards signals to its processes, so a second signal within
    ``DUPLICATE_SIGNAL_SECONDS`` is treated as a duplicate.

    Custom handlers that were installed before are left in place; that of ``asyncio.run`` is replaced, since it would only act
    when training has ended. Only the main thread can install handlers; in other threads this callback does nothing.
    """

    priority = 30  # runs last, after all callbacks have handled the update

    def __init__(self) -> None:
        self.signal: int | None = None  # the signal that was received
        self._received_at = 0.0
        self._report = "when training had ended."
        self._previous: dict[int, Any] = {}
        self._warnings: tuple[int, ...] = ()  # signals that a cluster sends before the time of a job ends
        self._asks_ranks = False

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            self._warnings = slurm.warning_signals(os.environ)
            defaults |= dict.fromkeys(self._warnings, signal.SIG_DFL)
            for number, default in defaults.items():
                current = signal.getsignal(number)
                if current == default or _belongs_to_asyncio(current):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number in self._warnings:
            return
        if self.signal in self._warnings and number == signal.SIGTERM:
            self.signal = number  # the job is canceled, or its time is over
            return
        if self.signal is not None:
            if is_launched() and time.monotonic() - self._received_at < DUPLICATE_SIGNAL_SECONDS:
                return
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.signal, self._received_at = number, time.monotonic()
        if number == signal.SIGINT and self.model.strategy.group.is_main:
            print("\nStopping after this update. Press Ctrl-C again to stop immediately.", file=sys.stderr, flush=True)

    def on_train_begin(self, logs: Any = None) -> None:
        """Find out whether other ranks may receive a signal."""
        self._asks_ranks = self.model.strategy.group.world_size > 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave the loop if a rank received a signal."""
        received = self.signal is not None
        if self._asks_ranks:
            received = self.model.strategy.control.any_rank(INTERRUPT, received)
        if received:
            raise Interruption

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave the loop after a signal; several ranks leave when all have finished the evaluation."""
        if self.signal is not None and self.model.strategy.group.world_size == 1:
            raise Interruption

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Leave the loop if a rank received a signal."""
        if self.model.strategy.group.any_rank(self.signal is not None):
            raise Interruption

    def on_interrupt(self) -> None:
        """Record where training stopped, and what the callbacks have saved."""
        callbacks = self.model.callbacks.callbacks
        state, folders = self.model.state, saved_places(callbacks)
        position = f"in epoch {state.epoch + 1}" if state.epoch_step else f"at the end of epoch {state.epoch}"
        self._report = f"after update {state.step}, {position} of {state.last}. "
        if any(isinstance(callback, BackupAndRestore) for callback in callbacks) and folders:
            has_all = any(isinstance(callback, StopAfter) and callback.has_all_updates() for callback in callbacks)
            command = "the same command with a greater limit" if has_all else "the same command"
            self._report += f"The run is saved in {folders[0]!r}; {command} resumes it."
        elif folders:
            self._report += f"The model was last saved in {folders[0]!r}."
        else:
            self._report += "Nothing was saved; fit(..., resume='run/') saves a run and resumes it."

    def describe(self) -> str:
        """Return the name of the signal that was received; empty if there was none."""
        if self.signal is None:
            return ""
        return "Ctrl-C" if self.signal == signal.SIGINT else signal.Signals(self.signal).name

    def exit_or_return(self, on_interrupt: str) -> None:
        """End the program after a signal, or return.

        Args:
            on_interrupt: After Ctrl-C, ``"raise"`` raises ``KeyboardInterrupt``, ``"return"`` returns, and ``"auto"`` returns in
                an interactive session only.

        Raises:
            SystemExit: After SIGTERM, with status 143; after SIGUSR1 and SIGUSR2 in SLURM, with 138 and 140.
            KeyboardInterrupt: After Ctrl-C.
        """
        reason = self.model.history.stop_reason
        if self.signal is None:
            if self.model.history.interrupted and self.params["verbose"] != 0:
                self._print(f"{reason[:1].upper()}{reason[1:]} {self._report}")
            return
        if self.signal != signal.SIGINT:
            self._print(f"Stopped by {self.describe()} {self._report} The exit status is {128 + self.signal}.")
            raise SystemExit(128 + self.signal) from None
        if on_interrupt == "return" or (on_interrupt == "auto" and is_interactive()):
            self._print(f"Stopped by Ctrl-C {self._report} fit() returns the history.")
            return
        self._print(f"Stopped by Ctrl-C {self._report}")
        hint = " To run the lines after it, pass on_interrupt='return'." * (on_interrupt == "auto")
        # Without the exception that left the loop.
        raise KeyboardInterrupt(f"fit() was stopped after update {self.model.state.step}.{hint}") from None

    def _print(self, line: str) -> None:
        if self.model.strategy.group.is_main:
            print_message(escape_lines(line), sys.stderr)


def _belongs_to_asyncio(handler: Any) -> bool:
    """Return whether ``asyncio.run`` installed ``handler``, which cancels a task that training never lets run."""
    function = handler.func if isinstance(handler, functools.partial) else handler
    return getattr(function, "__module__", None) == "asyncio.runners"
