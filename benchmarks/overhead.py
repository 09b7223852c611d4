"""Overhead of fit per training step, and import time of easytorch.

    python -m benchmarks.overhead [--pin 1] [--quick] [--json FILE]

The network is so small that only Python and the overhead of torch calls matter. A manual loop and fit run in turns over
the same list of batches with the same optimizer. The overhead is the difference of their times per step.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, quartiles

ROOT = Path(__file__).parents[1]
PASSES = 11
GOALS = {"per step": 25.0, "import": 0.25}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core only")
    options.add_argument("--quick", action="store_true", help="use few steps")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = options.parse_args()
    if args.pin is not None:
        # The processes that measure the import inherit the affinity
        os.sched_setaffinity(0, {args.pin})
    steps, rounds = (500, 3) if args.quick else (5_000, PASSES)
    results = {
        "per step, microseconds": measure_step(steps, rounds),
        "import, seconds": measure_import(3 if args.quick else 9),
    }
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def measure_step(steps: int, rounds: int) -> dict[str, Any]:
    """Print and return the microseconds per step of the manual loop and of fit."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(steps, 4, 8, generator=generator), torch.randint(3, (steps, 4), generator=generator)
    batches = list(zip(x, y, strict=True))
    results = {}
    rows = [["", "loop", "fit", "fit - loop", "quartiles"]]
    for title, runs in {
        "loss": (make_loop(batches), make_fit(batches)),
        "loss and accuracy": (make_loop(batches, accuracy=True), make_fit(batches, metrics=["accuracy"])),
        "TerminateOnNaN, compared with fit": (make_fit(batches), make_fit(batches, nan_check=True)),
    }.items():
        pairs = []
        for i in range(rounds + 1):
            first, second = (1e6 * measure_seconds(run) / steps for run in (runs if i % 2 else reversed(runs)))
            pairs.append((first, second) if i % 2 else (second, first))
        # The first pair is the warm-up
        loop, fit = (quartiles([pair[i] for pair in pairs[1:]])[1] for i in range(2))
        low, middle, high = quartiles([fit - loop for loop, fit in pairs[1:]])
        rows.append([title, f"{loop:.1f}", f"{fit:.1f}", f"{middle:.1f}", f"{low:.1f} - {high:.1f}"])
        results[title] = {"loop": loop, "fit": fit, "difference": [low, middle, high]}
    print(
        f"\nMicroseconds per step, {rounds} rounds of {steps:,} steps (goal for the loss only: {GOALS['per step']:.0f})\n"
    )
    print_table(rows)
    return results


def make_network() -> tuple[Any, Any]:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Linear(8, 3)
    return module, torch.optim.SGD(module.parameters(), lr=0.01)


def make_loop(batches: list[Any], accuracy: bool = False) -> Callable[[], None]:
    """Return a manual training loop that does not read values from tensors."""
    from torch import nn

    module, optimizer = make_network()
    criterion = nn.CrossEntropyLoss()

    def run() -> None:
        hits: Any = 0
        module.train()
        for x, y in batches:
            optimizer.zero_grad()
            output = module(x)
            loss = criterion(output, y)
            loss.backward()
            optimizer.step()
            if accuracy:
                hits += (output.argmax(1) == y).sum()

    return run


def make_fit(batches: list[Any], nan_check: bool = False, **options: Any) -> Callable[[], None]:
    """Return a function that trains one epoch with fit."""
    from torch import nn

    from easytorch import Model
    from easytorch.callbacks import TerminateOnNaN

    module, optimizer = make_network()
    model = Model(module, device="cpu").compile(optimizer, nn.CrossEntropyLoss(), **options)
    callbacks = [TerminateOnNaN()] if nan_check else []
    return lambda: model.fit(batches, verbose=0, callbacks=callbacks)


def measure_seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


PROBE = """
import sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
modules = set(sys.modules)
import easytorch
print(middle - start, time.perf_counter() - middle, len(set(sys.modules) - modules))
"""


def measure_import(rounds: int) -> dict[str, Any]:
    """Print and return the import time of easytorch after torch, in seconds. Print its slowest modules."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}

    def probe(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *flags, "-c", PROBE], env=env, capture_output=True, text=True, check=True
        )

    compileall.compile_dir(ROOT / "easytorch", quiet=1)  # like an installed package
    samples = [[float(value) for value in probe().stdout.split()] for _ in range(rounds)]
    torch_seconds, easytorch_seconds = (quartiles([sample[i] for sample in samples]) for i in range(2))
    print(f"\nImport time in seconds, {rounds} rounds (goal for easytorch: {GOALS['import']:.2f})\n")
    print_table(
        [
            ["", "median", "quartiles"],
            ["torch", f"{torch_seconds[1]:.2f}", f"{torch_seconds[0]:.2f} - {torch_seconds[2]:.2f}"],
            [
                "easytorch, after torch",
                f"{easytorch_seconds[1]:.3f}",
                f"{easytorch_seconds[0]:.3f} - {easytorch_seconds[2]:.3f}",
            ],
        ]
    )
    print(f"\neasytorch imports {samples[0][2]:.0f} additional modules. The slowest, including their imports:\n")
    rows = [line.split("|") for line in probe("-X", "importtime").stderr.splitlines() if line.count("|") == 2]
    names = [name.strip() for *_, name in rows]
    new_rows = rows[names.index("torch") + 1 :]
    slowest = sorted(
        ((int(total), name.strip()) for _, total, name in new_rows if total.strip().isdigit()), reverse=True
    )
    print_table([["module", "ms"], *([name, f"{total / 1000:.1f}"] for total, name in slowest[:8])])
    return {"torch": torch_seconds, "easytorch": easytorch_seconds}


if __name__ == "__main__":
    main()
