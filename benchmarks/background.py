"""Time that training waits for a checkpoint, written at once or in the background.

    python -m benchmarks.background [--width 1440] [--saves 8]

The module has about 100 MB of weights, and the optimizer, Adam, twice as much. Between two saves, training takes as long as a
write needs at most, so that the next save does not wait for it.
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
from easytorch.callbacks import BackupAndRestore, ModelCheckpoint

LAYERS, BATCH = 12, 8


class TimedBackup(BackupAndRestore):
    """Saves the run and records the seconds of each save."""

    def on_train_begin(self, logs: object = None) -> None:
        super().on_train_begin(logs)
        self.seconds: list[float] = []

    def save(self, final: bool = False) -> None:
        start = time.perf_counter()
        super().save(final)
        self.seconds.append(time.perf_counter() - start)


class TimedCheckpoint(ModelCheckpoint):
    """Saves the weights and records the seconds of each save."""

    def on_train_begin(self, logs: object = None) -> None:
        super().on_train_begin(logs)
        self.seconds: list[float] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        start = time.perf_counter()
        super().on_epoch_end(epoch, logs)
        self.seconds.append(time.perf_counter() - start)


def train(width: int, saves: int, what: str, in_background: bool) -> tuple[list[float], float]:
    """Return the seconds of each save but the first, and those of the fit."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)])
    model = easytorch.Model(net, device="cpu").compile("adam", "mse")
    rows = torch.randn(BATCH * 25, width)
    with tempfile.TemporaryDirectory() as folder:
        callback: TimedBackup | TimedCheckpoint
        if what == "run":
            callback = TimedBackup(Path(folder) / "run", save_in_background=in_background)
        else:
            path = Path(folder) / "{epoch}.pt"
            callback = TimedCheckpoint(path, save_weights_only=True, keep=1, save_in_background=in_background)
        start = time.perf_counter()
        model.fit(rows, rows, epochs=saves, batch_size=BATCH, callbacks=[callback], verbose=0)
        return callback.seconds[1:], time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--width", type=int, default=1440, help="width of the linear layers")
    options.add_argument("--saves", type=int, default=8, help="number of epochs, with one save each")
    args = options.parse_args()
    size = LAYERS * (args.width + 1) * args.width * 4 / 1e6
    for what, megabytes in (("weights", size), ("run", 3 * size)):
        for in_background in (False, True):
            seconds, total = train(args.width, args.saves, what, in_background)
            name = "in the background" if in_background else "at once"
            wait = statistics.median(seconds)
            print(
                f"{what:7} {megabytes:4.0f} MB {name:17} {1000 * wait:6.0f} ms per save, fit {total:5.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
