"""Starts of a program in forked processes, and what remains of a run at its end."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import signal
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from easytorch import Model
from easytorch._utils.rng import get_rng_state
from easytorch.callbacks import Callback, LambdaCallback
from tests import common_sources


class End(NamedTuple):
    """What a program has at its end: the model, its own callbacks, and any other values that count."""

    model: Model
    callbacks: list[Callback]
    values: Any = None


# A program of a user: it trains with the given callbacks too, and keeps its files in the folder.
Program = Callable[[Path, list[Callback]], End]

# Hooks, with the number of calls in a run of three epochs.
HOOKS = {
    "on_epoch_begin": 3, "on_train_batch_begin": 20, "on_before_optimizer_step": 20, "on_train_batch_end": 20,
    "on_test_begin": 3, "on_test_batch_begin": 3, "on_test_batch_end": 3, "on_test_end": 3, "on_epoch_end": 3,
}  # fmt: skip
WAYS = ("SIGKILL", "os._exit", "SIGINT", "SIGTERM", "exception", "crash")
# Before all other callbacks; before and after the checkpoint is written; after everything.
PRIORITIES = (-5, 9, 11, 35)


class SimulatedCrash(BaseException):
    """Ends a process at once, without a last checkpoint."""


class Kill(NamedTuple):
    """Ends the process in the ``count``-th call of a hook, in one of ``WAYS``."""

    hook: str
    count: int
    way: str
    priority: int = PRIORITIES[0]

    def make_callback(self) -> Callback:
        """Return the callback. It counts in a closure, so that its state is no part of the run."""
        calls = itertools.count(1)

        def end(*_: Any) -> None:
            if next(calls) == self.count:
                end_process(self.way)

        callback = LambdaCallback(**{self.hook: end})
        callback.priority = self.priority
        return callback


def end_process(way: str) -> None:
    """End this process in one of ``WAYS``; a signal is handled first."""
    if way == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "os._exit":
        os._exit(9)
    elif way in ("SIGINT", "SIGTERM"):
        signal.raise_signal(getattr(signal, way))
    elif way == "crash":
        raise SimulatedCrash
    else:
        raise RuntimeError("a fault in a hook")


def random_kill(rng: random.Random) -> Kill:
    hook = rng.choice(list(HOOKS))
    # Several kills in one run: the first ones must not be at its end.
    return Kill(hook, rng.randint(1, 1 + HOOKS[hook] // 2), rng.choice(WAYS), rng.choice(PRIORITIES))


class Outcome(NamedTuple):
    """The end of a start: ``"ended"``, ``"stopped"`` before its end, or ``"failed"``, with what the program reported."""

    status: str
    result: dict[str, Any]
    messages: list[str]


class Process(NamedTuple):
    """A forked process, and the file to which it writes its outcome."""

    id: int
    path: str


def start(program: Program, folder: Path, callbacks: list[Callback] | None = None) -> Outcome:
    """Run ``program`` in a forked process, which knows of earlier starts only the files in ``folder``."""
    return result_of(fork(program, folder, callbacks))


def fork(program: Program, folder: Path, callbacks: list[Callback] | None = None) -> Process:
    """Start ``program`` in a process with a new process group."""
    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        _run_and_exit(program, folder, callbacks or [], path)
    return Process(process, path)


def result_of(process: Process) -> Outcome:
    """Wait for the end of a process, and return its outcome."""
    _, status = os.waitpid(process.id, 0)
    content = Path(process.path).read_bytes()
    os.unlink(process.path)
    # A process that was killed has not written its outcome.
    return Outcome(*pickle.loads(content)) if status == 0 and content else Outcome("stopped", {}, [])


def _run_and_exit(program: Program, folder: Path, callbacks: list[Callback], path: str) -> None:
    """Run the program in this process, write its outcome to ``path``, and exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    status = 1
    try:
        outcome = run(program, folder, callbacks)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        Path(path).write_bytes(pickle.dumps(outcome))
        status = 0
    finally:
        os._exit(status)


def run(program: Program, folder: Path, callbacks: list[Callback] | None = None) -> Outcome:
    """Run ``program`` in this process from its first line."""
    common_sources.restart()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    status, result = "ended", {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            end = program(folder, callbacks or [])
            status = "stopped" if end.model.history.interrupted else "ended"
            result = {} if status == "stopped" else fingerprint(end)
        except (SimulatedCrash, SystemExit, KeyboardInterrupt):
            status = "stopped"
        except Exception as error:
            is_ours = str(error) == "a fault in a hook"
            status, result = ("stopped", {}) if is_ours else ("failed", {"error": f"{type(error).__name__}: {error}"})
    return Outcome(status, result, [str(warning.message) for warning in caught])


def fingerprint(end: End) -> dict[str, Any]:
    """Return what an undisturbed run and a resumed one must have in common, as plain values."""
    model = end.model
    assert model.optimizer is not None
    return {
        "weights": _plain(model.module.state_dict()),
        "optimizer": _plain(model.optimizer.state_dict()),
        "history": _plain(model.history.history),
        "state": (model.state.epoch, model.state.step),
        "callbacks": _plain([callback.state_dict() for callback in end.callbacks]),
        "random": _plain(get_rng_state()),
        "requires_grad": [parameter.requires_grad for parameter in model.module.parameters()],
        "modes": [module.training for module in model.module.modules()],
        "values": _plain(end.values),
    }


def _plain(value: Any) -> Any:
    """Return ``value`` with tensors and arrays as bytes, so that NaN equals NaN."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.to_dense() if value.layout != torch.strided else value
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)


def differing(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Return the names of the parts of two fingerprints that differ."""
    return [name for name in expected if expected[name] != actual.get(name)]
