"""A function in several processes of one machine.

``torch.distributed.launcher.api.elastic_launch`` (torch 2.14) was measured and not used:

- It has no timeout.
- It ends the ranks on Ctrl-C instead of waiting until they have stopped in order, so their results are lost.
- It leaves a folder of logs behind after every call.
- A call takes 0.2 s longer with ``fork`` and several seconds longer with ``spawn``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch
from torch import distributed

from easytorch._utils import torch_private
from easytorch._utils.integers import positive_int
from easytorch._utils.notebook import in_notebook
from easytorch._utils.pytree import describe
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.distributed import agreement, slurm

START_METHODS = ("auto", "fork", "spawn")

# Seconds that a rank gets to exit after it has sent its result.
EXIT_SECONDS = 5.0


class Rank(NamedTuple):
    """A started process and the connection on which its result arrives."""

    process: Any
    connection: Any


@hide_internal_frames
def launch(
    function: Callable[..., Any], *args: Any, processes: int = 2, timeout: float | None = None, start: str = "auto"
) -> list[Any]:
    """Call ``function(*args)`` in several processes of this machine, and return their results in rank order.

    In these processes ``compile`` chooses ``DataParallel``, as under ``torchrun``. No process survives the call.

    Args:
        function: The function to run. Spawned processes import it: define it in a module, and call ``launch`` under
            ``if __name__ == "__main__":``.
        args: The arguments of ``function``. Spawned processes receive them pickled; results are always pickled.
        processes: The number of processes (the world size).
        timeout: The seconds after which all processes are stopped; None (default) means no limit.
        start: ``"spawn"`` starts new interpreters, which takes seconds. ``"fork"`` copies this process with its modules and
            data; it must not have used an accelerator. ``"auto"`` (default) forks in a notebook, and spawns elsewhere.

    Raises:
        RuntimeError: If a rank fails, with its traceback; the other ranks are stopped.
        KeyboardInterrupt: After Ctrl-C, when all ranks have ended, unless the function returns as with ``on_interrupt="return"``.
        TimeoutError: If a rank still runs after ``timeout`` seconds.
        ValueError: If ``processes`` or ``start`` has an invalid value.
        TypeError: If ``function`` is no function, or spawned processes cannot import it.

    Examples:
        >>> def train():
        ...     model = Model(make_net()).compile("adam", "cross_entropy")
        ...     return model.fit(x, y, epochs=5).history
        >>> histories = easytorch.launch(train, processes=2)  # doctest: +SKIP
    """
    _check_main_guard(function)
    world_size = positive_int("processes", processes)
    method = _choose_start_method(start)
    _check_function(function, method)
    context: Any = multiprocessing.get_context(method)
    ranks: list[Rank] = []
    # The socket is opened before the processes start, so that no other program can take its port.
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, port = server.getsockname()
        try:
            for number in range(world_size):
                environment = _rank_environment(number, world_size, address, port)
                ranks.append(_start_rank(context, function, args, environment))
            # A forked copy cannot end the thread of a store. The store is therefore created after the forks,
            # and deleted before a traceback could keep it alive until the next fork.
            store = torch_private.stores.TCPStore(
                address, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach(), use_libuv=False
            )
            try:
                with _forward_signals(ranks):
                    results = _collect_results(ranks, timeout)
            except BaseException:
                # A rank that still runs would print an error of the store.
                for rank in ranks:
                    rank.process.kill()
                raise
            finally:
                del store
            _join_ranks(ranks)
            return results
        finally:
            _kill_ranks(ranks)


def _choose_start_method(start: str) -> str:
    """Return ``"fork"`` or ``"spawn"``.

    Raises:
        ValueError: If ``start`` is unknown.
        RuntimeError: If a copy of this process could not use the accelerator.
    """
    if start not in START_METHODS:
        raise ValueError(f"start must be 'auto', 'fork' or 'spawn', received {start!r}. Use start='auto'.")
    if start == "auto":
        start = "fork" if in_notebook() else "spawn"
    if start == "fork" and torch.accelerator.is_available() and torch.get_device_module().is_initialized():
        raise RuntimeError(
            "launch() cannot fork a process that has already used the accelerator. In a notebook, restart the kernel and call "
            "launch() before anything that uses the accelerator. Or define the function in a module and pass start='spawn'."
        )
    return start


def _check_main_guard(function: Any) -> None:
    """Raise a ``RuntimeError`` in a spawned process that imports the program: it must not start processes itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        name = getattr(function, "__name__", "function")
        raise RuntimeError(
            "launch() was called while a started process imports this program, which would start processes without end. Call it "
            f"below a guard: if __name__ == '__main__': easytorch.launch({name}, ...)."
        )


def _check_function(function: Any, method: str) -> None:
    """Raise a ``TypeError`` for a result in place of a function, and for one that spawned processes cannot import."""
    if not callable(function):
        raise TypeError(
            f"launch() expects a function, received {describe(function)}. Pass the function and its arguments without calling "
            "it: launch(train, x, y, processes=2)."
        )
    if method == "spawn":
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"The started processes cannot import {function!r}: {error}. Define it with def at the top level of a module, or "
                "pass start='fork', if this process has not used an accelerator."
            ) from error


def _rank_environment(rank: int, world_size: int, address: str, port: int) -> dict[str, str]:
    """Return the environment variables that ``torchrun`` sets for ``rank``."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    return {name: str(value) for name, value in variables.items()}


def _start_rank(context: Any, function: Callable[..., Any], args: Any, environment: dict[str, str]) -> Rank:
    receiver, sender = context.Pipe(duplex=False)
    name = f"rank {environment['RANK']}"
    process = context.Process(target=_run_rank, args=(function, args, environment, sender), name=name)
    process.start()
    sender.close()
    return Rank(process, receiver)


def _run_rank(function: Callable[..., Any], args: Any, environment: dict[str, str], sender: Any) -> None:
    """Send ``(True, result)``, or ``(False, traceback or KeyboardInterrupt)``, and exit."""
    os.environ.update(environment)
    if "OMP_NUM_THREADS" not in os.environ:
        # With all threads in every rank, the ranks would slow each other down.
        torch.set_num_threads(max(1, torch.get_num_threads() // int(environment["WORLD_SIZE"])))
    try:
        succeeded, message = True, pickle.dumps((True, function(*args)))
    except BaseException as error:
        reason = error if isinstance(error, KeyboardInterrupt) else traceback.format_exc()
        succeeded, message = False, pickle.dumps((False, reason))
        agreement.report_end(error)
    agreement.report_end()
    sender.send_bytes(message)
    sender.close()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A forked copy must not run the exit handlers of the original process.
    os._exit(0 if succeeded else 1)


def _collect_results(ranks: list[Rank], timeout: float | None) -> list[Any]:
    """Return the results in rank order, or raise the error of the first rank that fails.

    After a Ctrl-C that ends a rank, the others are awaited before ``KeyboardInterrupt`` is raised.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    results: dict[int, Any] = {}
    interrupt: KeyboardInterrupt | None = None
    while running := {ranks[i].connection: i for i in range(len(ranks)) if i not in results}:
        seconds = None if deadline is None else max(deadline - time.monotonic(), 0)
        ready: list[Any] = wait(list(running), seconds)
        if not ready:
            raise TimeoutError(
                f"launch() stopped all ranks after timeout={timeout:g} seconds; rank {', '.join(map(str, running.values()))} had "
                "not finished. Pass a larger timeout, or find the collective in which the ranks wait for each other."
            )
        for connection in ready:
            rank = running[connection]
            succeeded, value = _receive(ranks[rank])
            if isinstance(value, KeyboardInterrupt):  # after an orderly end, which the other ranks reach, too
                interrupt = value
            elif not succeeded:
                raise RuntimeError(f"Rank {rank} of {len(ranks)} failed; launch() stopped the other ranks.\n\n{value}")
            results[rank] = value
    if interrupt is not None:
        raise interrupt
    return [results[i] for i in range(len(ranks))]


def _receive(rank: Rank) -> Any:
    """Return what ``_run_rank`` has sent."""
    try:
        return pickle.loads(rank.connection.recv_bytes())
    except EOFError:
        rank.process.join()
        return False, f"The process exited with code {rank.process.exitcode} and no traceback."


@contextlib.contextmanager
def _forward_signals(ranks: list[Rank]) -> Iterator[None]:
    """Forward Ctrl-C, SIGTERM and warnings of SLURM to the ranks, which stop in order, and continue to wait for them."""

    def forward(number: int, _: Any) -> None:
        for rank in ranks:
            if rank.process.is_alive():
                os.kill(rank.process.pid, number)

    # Only the main thread can set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, forward)}
    # A handler of the user ends this process, and thereby the ranks.
    for number in (signal.SIGTERM, *slurm.warning_signals(os.environ)):
        if signal.getsignal(number) is signal.SIG_DFL:
            handlers[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _join_ranks(ranks: list[Rank]) -> None:
    """Wait until the ranks have exited, at most ``EXIT_SECONDS``."""
    deadline = time.monotonic() + EXIT_SECONDS
    for rank in ranks:
        rank.process.join(max(deadline - time.monotonic(), 0))


def _kill_ranks(ranks: list[Rank]) -> None:
    """Kill the ranks that still run, and free the resources of all."""
    for rank in ranks:
        rank.process.kill()
        rank.process.join()
        rank.connection.close()
        rank.process.close()
