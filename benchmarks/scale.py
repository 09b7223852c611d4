"""Whether long runs stay as they begin: memory over many steps; time per step over epochs, history and parameters.

python -m benchmarks.scale [--pin 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.overhead import timed
from benchmarks.report import quartiles, table
from easytorch import Model
from easytorch.callbacks import LambdaCallback


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core alone")
    options.add_argument("--quick", action="store_true", help="a tenth of everything, or less")
    options.add_argument("--json", type=Path, metavar="FILE", help="write what was measured here")
    args = options.parse_args()
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    torch.set_num_threads(1)
    share = 20 if args.quick else 1
    measured = {
        "memory": memory(200_000 // share),
        "epochs": over_epochs(20_000 // share),
        "history": over_history(10_000 // share),
        "parameters": over_parameters([1, 10, 100] if args.quick else [1, 10, 100, 1000]),
    }
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


def tiny(**options: Any) -> Model:
    torch.manual_seed(0)
    module = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return Model(module, device="cpu").compile(optimizer, nn.CrossEntropyLoss(), **options)


def batches(count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 4, 8, generator=generator), torch.randint(3, (count, 4), generator=generator)
    return list(zip(x, y, strict=True))


def rss() -> float:
    """Return the memory that this process holds now, in MB; NaN where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(steps: int) -> list[dict[str, float]]:
    """Sample the memory over one long epoch of ``steps`` updates, with a metric, from a stream."""
    samples: list[dict[str, float]] = []
    every = steps // 10
    began = 0.0

    def look(batch: int, logs: Any) -> None:
        nonlocal began
        if (batch + 1) % every == 0 or batch == 99:
            gc.collect()
            now = time.perf_counter()
            steps_since = batch + 1 - (samples[-1]["step"] if samples else 0)
            pace = 1e6 * (now - began) / steps_since
            samples.append({"step": batch + 1, "rss_mb": rss(), "microseconds": pace})
            began = time.perf_counter()

    def stream() -> Iterator[Any]:
        nonlocal began
        few = batches(100)
        began = time.perf_counter()
        for i in range(steps):
            yield few[i % 100]

    tiny(metrics=["accuracy"]).fit(stream, verbose=0, callbacks=[LambdaCallback(on_train_batch_end=look)])
    print(f"\nMemory over {steps:,} steps of one epoch\n")
    rows = [[f"{one['step']:,}", f"{one['rss_mb']:.1f}", f"{one['microseconds']:.0f}"] for one in samples]
    table([["step", "RSS, MB", "microseconds per step"], *rows])
    grown = samples[-1]["rss_mb"] - samples[1]["rss_mb"]
    print(
        f"\nFrom step {samples[1]['step']:,} on it grew by {grown:+.2f} MB: {1e6 * grown / (steps - every):+.1f} bytes per step"
    )
    return samples


def over_epochs(steps: int) -> dict[int, float]:
    """Make the same number of updates in one epoch, in many, and in very many."""
    found = {}
    for epochs in (1, 10, 100, 1000):
        data, model = batches(steps // epochs), tiny(metrics=["accuracy"])
        times = [timed(partial(model.fit, data, epochs=epochs, verbose=0)) for _ in range(4)]
        found[epochs] = 1e6 * quartiles(times[1:])[1] / (steps // epochs * epochs)
    print(f"\nThe same {steps:,} steps in more and more epochs\n")
    table([["epochs", "microseconds per step"], *([f"{epochs:,}", f"{pace:.0f}"] for epochs, pace in found.items())])
    pace = (found[1000] - found[1]) * steps / 1000
    print(f"\nAn epoch costs {pace:.0f} microseconds beside its steps")
    return found


def over_history(epochs: int) -> dict[int, float]:
    """Train for many epochs of one step each, and see whether the last ones take longer than the first."""
    ends: list[float] = []
    clock = LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    tiny(metrics=["accuracy"]).fit(batches(1), epochs=epochs, verbose=0, callbacks=[clock])
    part = epochs // 5
    found = {end: 1e6 * (ends[end - 1] - ends[end - part]) / (part - 1) for end in range(part, epochs + 1, part)}
    print("\nEpochs of one step, as the history grows\n")
    table(
        [["epochs in the history", "microseconds per epoch"], *([f"{n:,}", f"{pace:.0f}"] for n, pace in found.items())]
    )
    return found


def over_parameters(layers: list[int]) -> dict[int, dict[str, float]]:
    """Train networks of more and more layers, by hand and by fit."""
    found = {}
    for count in layers:
        steps = max(20, 2000 // count)
        data = batches(steps)
        hand, fitted = (deep(count) for _ in range(2))
        model = Model(fitted, device="cpu")
        model.compile(torch.optim.SGD(fitted.parameters(), lr=1e-3), nn.CrossEntropyLoss())
        by_hand, by_fit = [], []
        for _ in range(6):
            by_hand.append(1e6 * timed(partial(loop, hand, data)) / steps)
            by_fit.append(1e6 * timed(partial(model.fit, data, verbose=0)) / steps)
        found[2 * count] = {"loop": quartiles(by_hand[1:])[1], "fit": quartiles(by_fit[1:])[1]}
    print("\nMore and more parameter tensors\n")
    rows = [
        [
            f"{n:,}",
            f"{one['loop']:.0f}",
            f"{one['fit']:.0f}",
            f"{one['fit'] - one['loop']:.1f}",
            f"{one['fit'] / one['loop']:.3f}",
        ]
        for n, one in found.items()
    ]
    table([["parameter tensors", "loop, microseconds per step", "fit", "fit - loop", "fit / loop"], *rows])
    return found


def deep(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers - 1)), nn.Linear(8, 3))


def loop(module: nn.Module, data: list[Any]) -> None:
    optimizer, criterion = torch.optim.SGD(module.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    module.train()
    for x, y in data:
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
