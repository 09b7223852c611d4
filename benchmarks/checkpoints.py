"""How long a checkpoint of a sharded run holds training up: in parts, written beside it, and in one file.

    python -m benchmarks.checkpoints [--processes 2] [--width 1024] [--rounds 2]

Every checkpoint but the first of a fit counts: that one loads torch's distributed checkpoint. What is measured is the time that
the training waits for it, with all that is still to be done of the checkpoint before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import easytorch
from easytorch.callbacks import BackupAndRestore

LAYERS, BATCH, EVERY, CHECKPOINTS = 12, 8, 4, 4


class Timed(BackupAndRestore):
    """Keeps the run, and notes how long that takes."""

    def on_train_begin(self, logs: object = None) -> None:
        self.seconds: list[float] = []

    def save(self, final: bool = False) -> None:
        began = time.perf_counter()
        super().save(final)
        self.seconds.append(time.perf_counter() - began)


def train(width: int, parts: bool) -> list[float]:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)])
    strategy = easytorch.FullySharded("cpu", sharded_checkpoints=parts)
    model = easytorch.Model(net, device="cpu").compile("adam", "mse", strategy=strategy)
    rows = torch.randn(BATCH * strategy.group.world_size * EVERY * CHECKPOINTS, width)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(strategy.group.broadcast(folder)) / "run"
        timed = Timed(place, EVERY, minutes=None)  # deletes its files in the end
        model.fit(rows, rows, batch_size=BATCH, callbacks=[timed], verbose=0)
        strategy.group.barrier()
    return timed.seconds[1:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--width", type=int, default=1024)
    options.add_argument("--rounds", type=int, default=2)
    args = options.parse_args()
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(args.rounds):
        for parts, seconds in found.items():
            seconds += easytorch.launch(train, args.width, parts, processes=args.group)[0]
    megabytes = 3 * 4 * LAYERS * (args.width**2 + args.width) / 1e6  # weights and two moments in float32
    print(f"{args.group} processes, {megabytes:.0f} MB, seconds that training waits, median of {len(found[True])}:")
    for parts, seconds in found.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"  {'in parts' if parts else 'in one file'}: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
