"""Ends of programs under ``torchrun``: ``python -m tests.exits --launches 200``.

Each launch runs a minimal program in two processes, which ends by itself (``finished``), by an exception (``exception``), by
``sys.exit(7)`` (``exit``) or by a SIGTERM to the launcher (``sigterm``). The status of every process must be right: no SIGABRT,
no hang. A line with the counts so far is printed after every launch.

With ``--start fork`` processes are copies of one that has torch loaded, under the agent of ``torchrun``. Their interpreters end
as any other does. A launch then takes a second instead of ten.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import LambdaCallback

ROOT = Path(__file__).parents[1]
STRATEGIES = ("ddp", "fsdp")
# Status of each process by the way in which the program ends.
STATUS = {"finished": 0, "exception": 1, "exit": 7, "sigterm": 143}
# Seconds for one launch. A busy machine takes long to import torch.
LIMIT = 180.0
RANKS = 2


def program(folder: Path, strategy: str, end: str) -> Model:
    """Train as a user would, and return the model, so that it lives until the interpreter ends."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", strategy=strategy)
    if end == "sigterm":  # the launcher is stopped when all ranks train
        ready = folder / f"{model.strategy.group.rank}.ready"
        wait = LambdaCallback(on_train_batch_end=lambda batch, logs: (ready.touch(), time.sleep(0.01)))
        model.fit(x, y, epochs=100_000, callbacks=[wait], verbose=0)
    model.fit(x, y, verbose=0)
    if end == "exception":
        raise ValueError("an error at the end")
    if end == "exit":
        sys.exit(STATUS["exit"])
    return model


def launch(folder: Path, strategy: str, end: str, start: str) -> list[int | None]:
    """Run the program once, and return the status of the launcher and of each process; None for one that hung."""
    folder.mkdir()
    launcher = (start_torchrun if start == "exec" else fork_torchrun)(folder, strategy, end)
    deadline = time.monotonic() + LIMIT
    is_stopped, status = end != "sigterm", None
    while (status := poll(launcher)) is None and time.monotonic() < deadline:
        if not is_stopped and all((folder / f"{rank}.ready").exists() for rank in range(RANKS)):
            os.kill(launcher, signal.SIGTERM)
            is_stopped = True
        time.sleep(0.01)
    if status is None:
        os.kill(launcher, signal.SIGKILL)
        os.waitpid(launcher, 0)
    return [status, *(read_status(folder / f"{rank}.status") for rank in range(RANKS))]


def poll(process: int) -> int | None:
    """Return the exit status of a child process, or None while it runs."""
    finished, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if finished else None


def read_status(path: Path) -> int | None:
    """Return the status that was written for a process; 134 is SIGABRT."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


# The shell survives a SIGTERM and writes the status of the program.
SHELL = 'trap : TERM; folder=$1; shift; "$@"; code=$?; echo $code > "$folder/$RANK.status"; exit $code'


def start_torchrun(folder: Path, strategy: str, end: str) -> int:
    """Start ``torchrun`` and return its process id."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={RANKS}",
        "--no-python",
    ]
    command += ["sh", "-c", SHELL, "sh", str(folder), sys.executable, "-m", "tests.exits", "--program", str(folder)]
    command += ["--strategy", strategy, "--end", end]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    files = [(os.POSIX_SPAWN_OPEN, 1, folder / "output", os.O_WRONLY | os.O_CREAT, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
    return os.posix_spawn(sys.executable, command, environment, file_actions=files)


def fork_torchrun(folder: Path, strategy: str, end: str) -> int:
    """Run the code of ``torchrun`` in a copy of this process, and return its id."""
    launcher = os.fork()
    if launcher:
        return launcher
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # The ranks are forked first, since they could not end the threads of the launcher.
    ranks = [ForkedRank(folder, strategy, end) for _ in range(RANKS)]
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def start_rank(handler: Any, args: Any, environment: dict[str, str]) -> ForkedRank:
        return ranks[int(environment["LOCAL_RANK"])].start(environment)

    subprocess_handler.SubprocessHandler._popen = start_rank
    try:
        run.main(["--standalone", f"--nproc-per-node={RANKS}", "--no-python", "program"])
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
    os._exit(0)


class ForkedRank:
    """A forked interpreter that runs the program when it gets its environment, with the methods of ``Popen``."""

    def __init__(self, folder: Path, strategy: str, end: str) -> None:
        receiver, self._sender = os.pipe()
        self._folder, self.returncode = folder, None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._sender)
            os.setsid()
            with os.fdopen(receiver, "rb") as pipe:
                environment = pickle.load(pipe)
            run_and_finalize(folder, strategy, end, environment)
        os.close(receiver)

    def start(self, environment: dict[str, str]) -> ForkedRank:
        """Start the program."""
        self._rank = environment["RANK"]
        with os.fdopen(self._sender, "wb") as pipe:
            pickle.dump(environment, pipe)
        return self

    def poll(self) -> int | None:
        """Return the status, and write it to a file, in the form of a shell."""
        if self.returncode is None and (status := poll(self.pid)) is not None:
            self.returncode = status
            (self._folder / f"{self._rank}.status").write_text(str(status if status >= 0 else 128 - status))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, for at most ``timeout`` seconds."""
        deadline = time.monotonic() + (LIMIT if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("program", LIMIT if timeout is None else timeout)
            time.sleep(0.01)
        return status


def run_and_finalize(folder: Path, strategy: str, end: str, environment: dict[str, str]) -> None:
    """Run the program as the interpreter runs a script, and let the interpreter end."""
    os.environ.update(environment)
    source = f"from tests import exits; model = exits.program(exits.Path({str(folder)!r}), {strategy!r}, {end!r})"
    # An error is printed, and sys.exit ends the process, as for a script.
    failed = ctypes.pythonapi.PyRun_SimpleString(source.encode())
    ctypes.pythonapi.Py_Exit(1 if failed else 0)


def run(launches: int, folder: Path, strategy: str, end: str, start: str) -> collections.Counter[str]:
    """Launch the program ``launches`` times, print and return the counts of each result."""
    counts: collections.Counter[str] = collections.Counter()
    run_start = time.monotonic()
    for i in range(launches):
        launcher, *ranks = launch(folder / f"{strategy}-{end}-{i}", strategy, end, start)
        expected = STATUS[end]
        # torchrun stops the other processes when one has failed: that one has the status 143 then.
        allowed = {expected} if end in ("finished", "sigterm") else {expected, 143}
        if 134 in ranks:
            result = "aborted"
        elif None in (launcher, *ranks):
            result = "hung"
        elif set(ranks) <= allowed and expected in ranks and (launcher == 0) == (end == "finished"):
            result = "right"
        else:
            result = f"launcher {launcher}, ranks {ranks}"
        counts[result] += 1
        if result != "right":
            print((folder / f"{strategy}-{end}-{i}" / "output").read_text()[-3000:], flush=True)
        seconds = time.monotonic() - run_start
        print(f"{strategy} {end}: {i + 1} launches in {seconds:.0f} s: {dict(counts)}", flush=True)
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--launches", type=int, default=200)
    options.add_argument("--strategy", choices=STRATEGIES, action="append")
    options.add_argument("--end", choices=list(STATUS), action="append")
    options.add_argument("--start", choices=["exec", "fork"], default="exec")
    options.add_argument("--program", type=Path)
    args = options.parse_args()
    if args.program:
        global model  # the model of a script lives until the interpreter ends
        model = program(args.program, args.strategy[0], args.end[0])
        return
    if args.start == "fork":
        for name in ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run", "torch.distributed.tensor"):
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # the collections of an ending interpreter would copy all memory
    results = {}
    folder = tempfile.mkdtemp()  # a TemporaryDirectory would be deleted by the first forked process that ends
    try:
        for strategy in args.strategy or STRATEGIES:
            for end in args.end or STATUS:
                results[strategy, end] = run(args.launches, Path(folder), strategy, end, args.start)
    finally:
        shutil.rmtree(folder)
    print(f"\n{'strategy':10}{'end':12}{'launches':>10}  results")
    for (strategy, end), counts in results.items():
        print(f"{strategy:10}{end:12}{counts.total():>10}  {dict(counts)}")
    raise SystemExit(0 if all(set(counts) <= {"right"} for counts in results.values()) else 1)


if __name__ == "__main__":
    main()
