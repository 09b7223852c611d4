"""Time that training waits for a checkpoint of a sharded model, sharded or in one file.

    python -m benchmarks.checkpoints [--processes 2] [--width 1024] [--rounds 2]

The first checkpoint of a fit is not counted, because it imports torch's distributed checkpoint. The time includes
waiting for the previous checkpoint, which may still be written in the background.
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


class TimedBackup(BackupAndRestore):
    """Saves the run and records the seconds of each save."""

    def on_train_begin(self, logs: object = None) -> None:
        self.seconds: list[float] = []

    def save(self, final: bool = False) -> None:
        start = time.perf_counter()
        super().save(final)
        self.seconds.append(time.perf_counter() - start)


def train(width: int, sharded: bool) -> list[float]:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)])
    strategy = easytorch.FullySharded("cpu", sharded_checkpoints=sharded)
    model = easytorch.Model(net, device="cpu").compile("adam", "mse", strategy=strategy)
    rows = torch.randn(BATCH * strategy.group.world_size * EVERY * CHECKPOINTS, width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(strategy.group.broadcast(folder)) / "run"
        # The callback deletes its files at the end of training
        backup = TimedBackup(path, EVERY, minutes=None)
        model.fit(rows, rows, batch_size=BATCH, callbacks=[backup], verbose=0)
        strategy.group.barrier()
    return backup.seconds[1:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--processes", type=int, default=2, help="number of processes")
    options.add_argument("--width", type=int, default=1024, help="width of the linear layers")
    options.add_argument("--rounds", type=int, default=2, help="number of fits with each format")
    args = options.parse_args()
    durations: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(args.rounds):
        for sharded, seconds in durations.items():
            seconds += easytorch.launch(train, args.width, sharded, processes=args.processes)[0]
    # Weights and two moments in float32
    megabytes = 3 * 4 * LAYERS * (args.width**2 + args.width) / 1e6
    print(
        f"{args.processes} processes, {megabytes:.0f} MB, seconds that training waits, median of {len(durations[True])}:"
    )
    for sharded, seconds in durations.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"  {'sharded' if sharded else 'in one file'}: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
