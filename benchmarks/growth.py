"""Time of a step and memory, as what is trained grows: easytorch next to a loop in plain torch.

    python -m benchmarks.growth --pin 1 --json growth.json --figure growth.svg --markdown growth.md

Each point is measured in a separate process, which trains with the loop or with ``fit`` and reports the seconds of the last
epoch and its peak memory. With ``--pin`` the seconds are CPU seconds. ``--json`` saves each point; the same command continues
after a stop. A curve of easytorch is steeper than that of torch if the ratio of the two grows with the number.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.one import peak_rss
from benchmarks.peers import get_processor, get_revision, save_results
from benchmarks.report import print_table
from easytorch import Model
from easytorch.callbacks import Callback

BATCH = 4


@dataclass
class Program:
    """What both train.

    Attributes:
        module: The network.
        data: A loader, or a list of batches.
        steps: The steps of an epoch.
        epochs: The number of epochs; the time is that of the last tenth of them, at least of the last one.
        metrics: The metrics, functions of outputs and targets.
        callbacks: The number of callbacks, each called after every step.
    """

    module: nn.Module
    data: Any
    steps: int
    epochs: int = 4
    metrics: tuple[Any, ...] = ()
    callbacks: int = 0

    @property
    def timed_epochs(self) -> int:
        """The number of epochs at the end that are measured."""
        return max(1, self.epochs // 10)

    @property
    def is_part(self) -> bool:
        """Whether an epoch is a part of the data, and the next epoch continues there."""
        return self.steps * BATCH < len(getattr(self.data, "dataset", ()))


# The curves


def with_parameters(count: int) -> Program:
    steps = max(5, 4000 // count)
    return Program(make_network(count // 2), make_batches(steps), steps)


def with_samples(count: int) -> Program:
    loader = DataLoader(Synthetic(count), BATCH, shuffle=True)
    return Program(make_network(1), loader, 250, epochs=2)


def with_rows(count: int) -> Program:
    rows = TensorDataset(torch.zeros(1, 8).expand(count, 8), torch.zeros(1, dtype=torch.int64).expand(count))
    return Program(make_network(1), DataLoader(rows, BATCH, shuffle=True), 250, epochs=2)


def with_epochs(count: int) -> Program:
    return Program(make_network(1), make_batches(1), 1, epochs=count)


def with_metrics(count: int) -> Program:
    metrics = tuple(make_metric(i) for i in range(count))
    return Program(make_network(1), make_batches(500), 500, metrics=metrics)


def with_callbacks(count: int) -> Program:
    return Program(make_network(1), make_batches(1000), 1000, callbacks=count)


def with_classes(count: int) -> Program:
    steps = max(20, min(1000, 1_000_000 // count))
    return Program(nn.Linear(8, count), make_batches(steps, classes=count), steps, metrics=(make_metric(0),))


CURVES: dict[str, tuple[str, Callable[[int], Program], list[int]]] = {
    "parameters": ("parameter tensors", with_parameters, [10, 100, 1_000, 10_000]),
    "samples": ("samples of a Dataset", with_samples, [10**3, 10**4, 10**5, 10**6, 10**7, 10**8]),
    "rows": ("rows of a TensorDataset", with_rows, [10**3, 10**4, 10**5, 10**6, 10**7, 10**8]),
    "epochs": ("epochs of one step", with_epochs, [1, 10, 100, 1_000, 10_000]),
    "metrics": ("metrics", with_metrics, [1, 5, 20, 50]),
    "callbacks": ("callbacks", with_callbacks, [0, 1, 5, 20]),
    "classes": ("classes", with_classes, [2, 100, 10_000, 100_000]),
}
PROCESSES = [1, 2, 4]


def make_network(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers - 1)), nn.Linear(8, 3))


def make_batches(count: int, classes: int = 3) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, BATCH, 8, generator=generator)
    return list(zip(x, torch.randint(classes, (count, BATCH), generator=generator), strict=True))


class Synthetic(Dataset[Any]):
    """Samples that are computed from their index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((8,), index % 7 / 7), index % 3


def make_metric(number: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def metric(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y_pred.argmax(1) == y).float()

    metric.__name__ = f"metric_{number}"
    return metric


# Training


def train_with_loop(program: Program) -> Iterator[int]:
    """Train with plain torch, and yield the number of each epoch when it has ended; numbers are read at its end."""
    module, criterion = program.module, nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, fused=True)
    hooks = [Silent() for _ in range(program.callbacks)]
    module.train()
    history: list[list[float]] = []
    batches: Iterator[Any] = iter(())
    for epoch in range(program.epochs):
        total, sums = torch.zeros(()), [torch.zeros(()) for _ in program.metrics]
        if not program.is_part or not epoch:
            batches = iter(program.data)
        for step, (x, y) in enumerate(itertools.islice(batches, program.steps)):
            output = module(x)
            loss = criterion(output, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            for metric, metric_sum in zip(program.metrics, sums, strict=True):
                metric_sum += metric(output.detach(), y).mean()
            for hook in hooks:
                hook.on_train_batch_end(step, {})
        history.append([value.item() / program.steps for value in (total, *sums)])
        yield epoch


def train_with_fit(program: Program) -> Iterator[tuple[int, float, float]]:
    """Train with ``fit``, and yield the number of each epoch and the times at its end."""
    model = Model(program.module, device="cpu").compile("sgd", "cross_entropy", metrics=program.metrics, lr=1e-3)
    clock = Clock()
    callbacks = [*(Silent() for _ in range(program.callbacks)), clock]
    steps = program.steps if program.is_part else None
    model.fit(program.data, epochs=program.epochs, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
    yield from clock.ends


class Silent(Callback):
    """Overrides a hook and does nothing."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do nothing."""


class Clock(Callback):
    """Records when epochs end."""

    def __init__(self) -> None:
        self.ends: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ends.append((epoch, time.process_time(), time.perf_counter()))


def measure_point(curve: str, count: int, who: str, is_pinned: bool) -> dict[str, float]:
    """Train in this process, and return the microseconds of a step, the seconds of the first epoch and the memory."""
    warm_up()
    program = CURVES[curve][1](count)
    gc.collect()
    before, start = peak_rss(), (time.process_time(), time.perf_counter())
    if who == "loop":
        ends = [(epoch, time.process_time(), time.perf_counter()) for epoch in train_with_loop(program)]
    else:
        ends = list(train_with_fit(program))
    kind = 0 if is_pinned else 1
    times = [start, *(end[1:] for end in ends)]
    seconds = times[-1][kind] - times[-1 - program.timed_epochs][kind]
    return {
        "microseconds": 1e6 * seconds / program.timed_epochs / program.steps,
        "first_seconds": times[1][kind] - start[kind],
        "memory_mb": (peak_rss() - before) / 2**20,
    }


def warm_up() -> None:
    """Train a few steps, so that what torch imports and allocates once is not measured."""
    torch.set_num_threads(1)
    for train in (train_with_loop, train_with_fit):
        for _ in train(Program(make_network(1), make_batches(3), 3)):
            pass


def run_in_process(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of ``function`` in a separate process, with fresh memory."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, args)


def measure_processes(count: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of an epoch of a hand-written DistributedDataParallel loop and of ``fit`` in ``count`` processes."""
    import easytorch
    from benchmarks import many

    pairs = easytorch.launch(many.measure, rounds, processes=count)[0]
    steps = many.ROWS // many.BATCH // count
    loop, fit = ([1e6 * seconds / steps for seconds in column] for column in zip(*pairs, strict=True))
    return {
        "loop": {"microseconds": statistics.median(loop)},
        "fit": {"microseconds": statistics.median(fit)},
        "ratio": statistics.median(b / a for a, b in zip(loop, fit, strict=True)),
    }


# Results


def measure_all(args: Any) -> dict[str, Any]:
    conditions = {
        "machine": get_processor(),
        "torch": torch.__version__,
        "clock": "wall" if args.pin is None else "CPU",
    }
    results: dict[str, Any] = {"conditions": conditions, "points": {}}
    if args.json and args.json.exists():
        results = json.loads(args.json.read_text())
    for curve in args.only:
        points = results["points"].setdefault(curve, {})
        counts = PROCESSES if curve == "processes" else CURVES[curve][2]
        for count in counts:
            if (count > args.largest and curve != "processes") or points.get(str(count), {}).get(
                "commit"
            ) == get_revision():
                continue
            if curve == "processes":
                point = measure_processes(count, args.rounds)
            else:
                runs: dict[str, list[dict[str, float]]] = {"loop": [], "fit": []}
                # Large points take long, and their noise is small.
                for _ in range(1 if count >= 10**7 else args.rounds):
                    for who, measured in runs.items():
                        measured.append(run_in_process(measure_point, curve, count, who, args.pin is not None))
                point = {
                    who: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
                    for who, measured in runs.items()
                }
                point["ratio"] = point["fit"]["microseconds"] / point["loop"]["microseconds"]
            points[str(count)] = point | {"commit": get_revision()}
            print(f"{curve} {count:,}: {json.dumps(point)}", flush=True)
            if args.json:
                save_results(results, args.json)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print a table for each curve."""
    conditions = results["conditions"]
    commits = {point["commit"] for points in results["points"].values() for point in points.values()}
    print(f"\n{conditions['machine']}; torch {conditions['torch']}; easytorch {', '.join(sorted(commits))}.")
    for curve, points in results["points"].items():
        title = "processes" if curve == "processes" else CURVES[curve][0]
        rows = [[title, "loop, µs", "fit, µs", "fit / loop", "first epoch: loop, s", "fit, s", "loop, MB", "fit, MB"]]
        for count, point in points.items():
            times, first, memory = (
                [format(point[who][key], kind) if key in point[who] else "" for who in ("loop", "fit")]
                for key, kind in (("microseconds", ",.0f"), ("first_seconds", ".2f"), ("memory_mb", ",.1f"))
            )
            rows.append([f"{int(count):,}", *times, f"{point['ratio']:.2f}", *first, *memory])
        print(f"\n### {title[0].upper()}{title[1:]}\n")
        print_table(rows)


def draw_figure(results: dict[str, Any], path: Path) -> None:
    """Draw the time of a step of each curve, in one column that is readable on a phone."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    gray, accent = "#808080", "#e64a19"
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "easytorch", "font.family": "sans-serif", "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), gray),
    }  # fmt: skip
    curves = [(curve, points) for curve, points in results["points"].items() if len(points) > 1]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.75, 1.7 * len(curves)), layout="constrained")
        for (curve, points), axes in zip(curves, figure.subplots(len(curves), squeeze=False)[:, 0], strict=True):
            counts = [int(count) for count in points]
            for who, color, width in (("loop", gray, 3.5), ("fit", accent, 1.5)):
                values = [point[who]["microseconds"] for point in points.values()]
                label = "loop in plain torch" if who == "loop" else "easytorch"
                axes.plot(counts, values, "o-", color=color, linewidth=width, markersize=4, label=label)
            if curve == "processes":
                axes.set_xticks(counts)
            else:
                axes.set_xscale("symlog" if 0 in counts else "log")
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(LogLocator())
            title = "processes" if curve == "processes" else CURVES[curve][0]
            axes.set_title(f"Step, µs, by {title}", fontsize=9, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            if curve == curves[0][0]:
                axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    names = [*CURVES, "processes"]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--only", type=lambda text: text.split(","), default=names, help=", ".join(names))
    options.add_argument("--largest", type=float, default=1e8, help="leave out the points with larger numbers")
    options.add_argument("--rounds", type=int, default=3, help="measurements of each point; 0 prints the file")
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core only")
    options.add_argument("--json", type=Path, metavar="FILE", help="save each point in this file and continue from it")
    options.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables in this file")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves (needs matplotlib)")
    args = options.parse_args()
    if unknown := set(args.only) - set(names):
        options.error(f"unknown curves {', '.join(unknown)}; expected {', '.join(names)}")
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    warm_up()
    results = measure_all(args) if args.rounds else json.loads(args.json.read_text())
    print_results(results)
    if args.markdown:
        with args.markdown.open("w") as file, contextlib.redirect_stdout(file):
            print_results(results)
    if args.figure:
        draw_figure(results, args.figure)


if __name__ == "__main__":
    main()
