"""Several writers of one path that are killed again and again, and one reader."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from easytorch.checkpoint import files

WRITERS = 3
SIZE = 60_000


def attack(kills: int, reads: int, seed: int) -> tuple[int, int, list[str]]:
    """Kill ``kills`` writers during ``reads`` reads; return kills, reads, and what was read wrongly."""
    rng, broken, done = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.pt"
        _write(path, 0)
        writers = [_fork_writer(path, number) for number in range(WRITERS)]
        try:
            for number in range(reads):
                try:
                    values = files.read(path)["values"]
                    if not bool((values == values[0]).all()):
                        broken.append(f"read {number} mixes two files")
                except Exception as error:
                    # A file that was replaced while it was open is intact.
                    broken.append(f"read {number}: {type(error).__name__}: {error}")
                if done < kills and number % max(reads // kills, 1) == 0:
                    time.sleep(rng.uniform(0, 0.01))
                    _kill(writers.pop(rng.randrange(WRITERS)))
                    writers.append(_fork_writer(path, number + WRITERS))
                    done += 1
        finally:
            for writer in writers:
                _kill(writer)
        files.read(path)
    return done, reads, broken


def _write(path: Path, value: int) -> None:
    files.write(path, {"values": torch.full((SIZE,), value)})


def _fork_writer(path: Path, number: int) -> int:
    process = os.fork()
    if process == 0:
        value = 1000 * number
        while True:
            value += 1
            _write(path, value)
    return process


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
