"""Two signals in short succession at random moments of a run, with and without workers."""

from __future__ import annotations

import functools
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from torch.utils.data import DataLoader

from easytorch.callbacks import Callback
from tests.common_resume import ROWS
from tests.security.battery import hidden_state
from tests.security.battery.starts import End, differing, fork, result_of

MAX_STARTS = 6
EPOCHS = 4


def program(folder: Path, callbacks: list[Callback], *, workers: int) -> End:
    def make_loader() -> DataLoader:
        return DataLoader(ROWS, 8, shuffle=True, num_workers=workers)

    return hidden_state.train(folder, callbacks, 2, make_data=make_loader, epochs=EPOCHS)


def attack(runs: int, seed: int) -> tuple[int, int, list[str]]:
    """Send two signals, 0 to 50 ms apart, to each start of ``runs`` runs; return runs, signals, and broken promises."""
    rng, sent, broken = random.Random(seed), 0, []
    for number in range(runs):
        start_once = functools.partial(program, workers=2 * (number % 2))
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            started_at = time.monotonic()
            expected = result_of(fork(start_once, Path(first)))
            length = time.monotonic() - started_at
            for attempt in range(MAX_STARTS + 1):
                process = fork(start_once, Path(second))
                if attempt < MAX_STARTS:
                    sent += _send_two(process.id, rng, length)
                outcome = result_of(process)
                if outcome.status != "stopped":
                    break
            differences = differing(expected.result, outcome.result) if outcome.status == "ended" else [outcome.status]
            broken += [f"run {number} differs in {name}" for name in differences]
            if left := _children_of(process.id):
                broken.append(f"run {number} leaves the processes {left}")
    return runs, sent, broken


def _send_two(process: int, rng: random.Random, length: float) -> int:
    time.sleep(rng.uniform(0, length))
    sent = 0
    for pause in (0, rng.uniform(0, 0.05)):
        time.sleep(pause)
        # The process is a zombie until its parent waits for it, so that its number is not used again.
        os.kill(process, rng.choice([signal.SIGINT, signal.SIGTERM]))
        sent += 1
    return sent


def _children_of(process: int) -> list[str]:
    """Return the running processes whose group is that of ``process``."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(group) == process and state != "Z":
            running.append(path.parent.name)
    return running
