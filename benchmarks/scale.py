"""Memory and time per step of long runs, for more steps, epochs, history, and parameters.

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

from benchmarks.overhead import measure_seconds
from benchmarks.report import print_table, quartiles
from easytorch import Model
from easytorch.callbacks import LambdaCallback


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core only")
    options.add_argument("--quick", action="store_true", help="use at most a tenth of the steps")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = options.parse_args()
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    torch.set_num_threads(1)
    divisor = 20 if args.quick else 1
    results = {
        "memory": measure_memory(200_000 // divisor),
        "epochs": measure_epochs(20_000 // divisor),
        "history": measure_history(10_000 // divisor),
        "parameters": measure_parameters([1, 10, 100] if args.quick else [1, 10, 100, 1000]),
    }
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def make_model(**options: Any) -> Model:
    torch.manual_seed(0)
    module = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return Model(module, device="cpu").compile(optimizer, nn.CrossEntropyLoss(), **options)


def make_batches(count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 4, 8, generator=generator), torch.randint(3, (count, 4), generator=generator)
    return list(zip(x, y, strict=True))


def rss() -> float:
    """Return the current memory of this process in MB, or NaN if the system does not report it."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_memory(steps: int) -> list[dict[str, float]]:
    """Sample the memory over one epoch of ``steps`` updates from a generator, with a metric."""
    samples: list[dict[str, float]] = []
    interval = steps // 10
    start = 0.0

    def sample(batch: int, logs: Any) -> None:
        nonlocal start
        if (batch + 1) % interval == 0 or batch == 99:
            gc.collect()
            now = time.perf_counter()
            steps_since = batch + 1 - (samples[-1]["step"] if samples else 0)
            pace = 1e6 * (now - start) / steps_since
            samples.append({"step": batch + 1, "rss_mb": rss(), "microseconds": pace})
            start = time.perf_counter()

    def stream() -> Iterator[Any]:
        nonlocal start
        data = make_batches(100)
        start = time.perf_counter()
        for i in range(steps):
            yield data[i % 100]

    make_model(metrics=["accuracy"]).fit(stream, verbose=0, callbacks=[LambdaCallback(on_train_batch_end=sample)])
    print(f"\nMemory over {steps:,} steps of one epoch\n")
    rows = [[f"{row['step']:,}", f"{row['rss_mb']:.1f}", f"{row['microseconds']:.0f}"] for row in samples]
    print_table([["step", "RSS, MB", "microseconds per step"], *rows])
    growth = samples[-1]["rss_mb"] - samples[1]["rss_mb"]
    print(
        f"\nGrowth after step {samples[1]['step']:,}: {growth:+.2f} MB: {1e6 * growth / (steps - interval):+.1f} bytes per step"
    )
    return samples


def measure_epochs(steps: int) -> dict[int, float]:
    """Train the same number of updates in 1, 10, 100, and 1,000 epochs."""
    paces = {}
    for epochs in (1, 10, 100, 1000):
        data, model = make_batches(steps // epochs), make_model(metrics=["accuracy"])
        times = [measure_seconds(partial(model.fit, data, epochs=epochs, verbose=0)) for _ in range(4)]
        paces[epochs] = 1e6 * quartiles(times[1:])[1] / (steps // epochs * epochs)
    print(f"\n{steps:,} steps in different numbers of epochs\n")
    print_table(
        [["epochs", "microseconds per step"], *([f"{epochs:,}", f"{pace:.0f}"] for epochs, pace in paces.items())]
    )
    pace = (paces[1000] - paces[1]) * steps / 1000
    print(f"\nAn epoch costs {pace:.0f} microseconds in addition to its steps")
    return paces


def measure_history(epochs: int) -> dict[int, float]:
    """Train many epochs of one step each, and measure the time per epoch as the history grows."""
    ends: list[float] = []
    clock = LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    make_model(metrics=["accuracy"]).fit(make_batches(1), epochs=epochs, verbose=0, callbacks=[clock])
    size = epochs // 5
    paces = {end: 1e6 * (ends[end - 1] - ends[end - size]) / (size - 1) for end in range(size, epochs + 1, size)}
    print("\nEpochs of one step, as the history grows\n")
    print_table(
        [["epochs in the history", "microseconds per epoch"], *([f"{n:,}", f"{pace:.0f}"] for n, pace in paces.items())]
    )
    return paces


def measure_parameters(layers: list[int]) -> dict[int, dict[str, float]]:
    """Train networks of different depths with a manual loop and with fit."""
    results = {}
    for count in layers:
        steps = max(20, 2000 // count)
        data = make_batches(steps)
        loop_module, fit_module = (make_network(count) for _ in range(2))
        model = Model(fit_module, device="cpu")
        model.compile(torch.optim.SGD(fit_module.parameters(), lr=1e-3), nn.CrossEntropyLoss())
        loop_times, fit_times = [], []
        for _ in range(6):
            loop_times.append(1e6 * measure_seconds(partial(train_epoch, loop_module, data)) / steps)
            fit_times.append(1e6 * measure_seconds(partial(model.fit, data, verbose=0)) / steps)
        results[2 * count] = {"loop": quartiles(loop_times[1:])[1], "fit": quartiles(fit_times[1:])[1]}
    print("\nDifferent numbers of parameter tensors\n")
    rows = [
        [
            f"{n:,}",
            f"{times['loop']:.0f}",
            f"{times['fit']:.0f}",
            f"{times['fit'] - times['loop']:.1f}",
            f"{times['fit'] / times['loop']:.3f}",
        ]
        for n, times in results.items()
    ]
    print_table([["parameter tensors", "loop, microseconds per step", "fit", "fit - loop", "fit / loop"], *rows])
    return results


def make_network(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers - 1)), nn.Linear(8, 3))


def train_epoch(module: nn.Module, data: list[Any]) -> None:
    optimizer, criterion = torch.optim.SGD(module.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    module.train()
    for x, y in data:
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
