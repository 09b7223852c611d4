"""A function in several processes of one machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import distributed

GRACE = 5.0  # seconds that a process gets to end in order


def launch(
    function: Callable[..., Any], *args: Any, processes: int = 2, timeout: float | None = None, start: str = "auto"
) -> list[Any]:
    """Call ``function(*args)`` in so many processes of this machine at once, and return what each of them returned, in order.

    Inside, ``compile`` chooses ``DataParallel``, as under ``torchrun``. Whatever happens, no process is left behind.

    Args:
        function: What to run. Processes that are spawned import it, so it stands in a module, and the call of ``launch`` in a
            program under ``if __name__ == "__main__":``.
        args: Its arguments. They and what it returns are pickled on their way.
        processes: How many.
        timeout: Seconds after which all of them are ended; None waits as long as it takes.
        start: ``"spawn"`` starts them from nothing, which takes seconds; ``"fork"`` copies this process, with all that it has
            loaded, but no accelerator that it has used; ``"auto"`` forks in a notebook, whose functions nobody can import.

    Raises:
        RuntimeError: If one of them fails, with its traceback; the others are ended.
        TimeoutError: If they take too long.

    Examples:
        >>> def train():
        ...     model = Model(net()).compile("adam", "cross_entropy")
        ...     return model.fit(x, y, epochs=5).history
        >>> histories = easytorch.launch(train, processes=2)
    """
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes must be a whole number of at least 1, received {processes!r}.")
    if start not in ("auto", "fork", "spawn"):
        raise ValueError(f"start must be 'auto', 'fork' or 'spawn', received {start!r}.")
    start = start if start != "auto" else "fork" if _in_notebook() else "spawn"
    if start == "fork" and torch.accelerator.is_available() and torch.get_device_module().is_initialized():
        raise RuntimeError(
            "This process has used the accelerator already, and a copy of it could not. Restart the notebook and call launch() "
            "before anything that uses it, or put the function into a module and pass start='spawn'."
        )
    context: Any = multiprocessing.get_context(start)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address, port = server.getsockname()
        place = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": address}
        place |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        children: list[Any] = []
        stack.callback(_end, children)
        for rank in range(processes):
            here, there = context.Pipe(duplex=False)
            environment = {name: str(value) for name, value in (place | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            child = context.Process(target=_run, args=(function, args, environment, there), name=f"process {rank}")
            child.start()
            there.close()
            children.append((child, here))
        # Made when the copies are: they could not live with its thread.
        store = distributed.TCPStore(  # type: ignore[attr-defined]  # not in the stubs
            address, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach(), use_libuv=False
        )
        try:
            return _collected(children, timeout)
        finally:
            del store  # not when the traceback goes: copies of this process, made by then, could not end its thread


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _run(function: Callable[..., Any], args: Any, environment: dict[str, str], pipe: Any) -> None:
    os.environ.update(environment)
    if "OMP_NUM_THREADS" not in os.environ:  # or they would hinder each other
        torch.set_num_threads(max(1, torch.get_num_threads() // int(environment["WORLD_SIZE"])))
    try:
        good, message = True, pickle.dumps((True, function(*args)))
    except BaseException:
        good, message = False, pickle.dumps((False, traceback.format_exc()))
    pipe.send_bytes(message)
    pipe.close()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if good else 1)  # a copy must not do at its exit what the original will do


def _collected(children: list[Any], timeout: float | None) -> list[Any]:
    """Return what the processes return, or raise what the first of them that fails tells."""
    deadline = None if timeout is None else time.monotonic() + timeout
    results: dict[int, Any] = {}
    while waiting := {here: rank for rank, (_, here) in enumerate(children) if rank not in results}:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        with _handing_on(children):
            ready: list[Any] = wait(list(waiting), left)
        if not ready:
            running = ", ".join(map(str, waiting.values()))
            raise TimeoutError(
                f"After {timeout:g} seconds these processes were still running: {running}. All were ended."
            )
        for here in ready:
            rank = waiting[here]
            try:
                good, value = pickle.loads(here.recv_bytes())
            except EOFError:
                children[rank][0].join()
                good, value = False, f"It ended without a word, with exit code {children[rank][0].exitcode}."
            if not good:
                raise RuntimeError(f"Process {rank} of {len(children)} failed; the others were ended.\n\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(children))]


@contextlib.contextmanager
def _handing_on(children: list[Any]) -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM on to the processes, which end in order by it, and go on waiting."""

    def hand_on(number: int, _: Any) -> None:
        for child, _pipe in children:
            if child.is_alive():
                os.kill(child.pid, number)

    numbers = [signal.SIGINT]
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # who has a handler of his own ends this process by it
        numbers.append(signal.SIGTERM)
    try:
        before = {number: signal.signal(number, hand_on) for number in numbers}
    except ValueError:  # only the main thread can have handlers
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(children: list[Any]) -> None:
    """Let every process end, in order where it does so by itself, and free what it held."""
    deadline = time.monotonic() + GRACE
    failed = any(child.exitcode not in (0, None) for child, _ in children) or sys.exc_info()[0] is not None
    for child, here in children:
        if not failed:
            child.join(max(deadline - time.monotonic(), 0))
        if child.is_alive():
            child.kill()
            child.join()
        here.close()
        child.close()
