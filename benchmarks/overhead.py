"""What fit costs in Python: per step, beyond the torch calls of a loop; and what it takes to import it.

    python -m benchmarks.overhead [--pin 1] [--quick] [--json FILE]

The network is so small that nothing but Python and the cost of calling torch is left. Fit and a loop by hand take turns over the
same list of batches, with the same optimizer; the cost is the difference of their times per step.
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

from benchmarks.report import quartiles, table

ROOT = Path(__file__).parents[1]
PASSES = 11
GOALS = {"per step": 25.0, "import": 0.25}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core alone")
    options.add_argument("--quick", action="store_true", help="few steps")
    options.add_argument("--json", type=Path, metavar="FILE", help="write what was measured here")
    args = options.parse_args()
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})  # which the processes that import inherit
    steps, rounds = (500, 3) if args.quick else (5_000, PASSES)
    measured = {
        "per step, microseconds": per_step(steps, rounds),
        "import, seconds": imports(3 if args.quick else 9),
    }
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


def per_step(steps: int, rounds: int) -> dict[str, Any]:
    """Print and return the microseconds of a step, by hand and by fit."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(steps, 4, 8, generator=generator), torch.randint(3, (steps, 4), generator=generator)
    batches = list(zip(x, y, strict=True))
    measured = {}
    rows = [["", "loop", "fit", "fit - loop", "quartiles"]]
    for title, (by_hand, by_fit) in {
        "loss": (loop(batches), fit(batches)),
        "loss and accuracy": (loop(batches, accuracy=True), fit(batches, metrics=["accuracy"])),
        "TerminateOnNaN, beside fit without": (fit(batches), fit(batches, watched=True)),
    }.items():
        pairs = []
        for i in range(rounds + 1):
            first, second = (1e6 * timed(run) / steps for run in ((by_hand, by_fit) if i % 2 else (by_fit, by_hand)))
            pairs.append((first, second) if i % 2 else (second, first))
        hand, fitted = (quartiles([pair[i] for pair in pairs[1:]])[1] for i in range(2))  # the first warms up
        low, middle, high = quartiles([fitted - hand for hand, fitted in pairs[1:]])
        rows.append([title, f"{hand:.1f}", f"{fitted:.1f}", f"{middle:.1f}", f"{low:.1f} - {high:.1f}"])
        measured[title] = {"loop": hand, "fit": fitted, "beyond": [low, middle, high]}
    print(
        f"\nMicroseconds per step, {rounds} times {steps:,} steps (goal for the loss alone: {GOALS['per step']:.0f})\n"
    )
    table(rows)
    return measured


def network() -> tuple[Any, Any]:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Linear(8, 3)
    return module, torch.optim.SGD(module.parameters(), lr=0.01)


def loop(batches: list[Any], accuracy: bool = False) -> Callable[[], None]:
    """Return an epoch by hand, which reads no number on the way."""
    from torch import nn

    module, optimizer = network()
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


def fit(batches: list[Any], watched: bool = False, **options: Any) -> Callable[[], None]:
    """Return an epoch by fit."""
    from torch import nn

    from easytorch import Model
    from easytorch.callbacks import TerminateOnNaN

    module, optimizer = network()
    model = Model(module, device="cpu").compile(optimizer, nn.CrossEntropyLoss(), **options)
    callbacks = [TerminateOnNaN()] if watched else []
    return lambda: model.fit(batches, verbose=0, callbacks=callbacks)


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


PROBE = """
import sys, time
begin = time.perf_counter()
import torch
after = time.perf_counter()
before = set(sys.modules)
import easytorch
print(after - begin, time.perf_counter() - after, len(set(sys.modules) - before))
"""


def imports(rounds: int) -> dict[str, Any]:
    """Print and return the seconds that importing easytorch takes when torch is there already, and what takes longest."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}

    def probe(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *flags, "-c", PROBE], env=env, capture_output=True, text=True, check=True
        )

    compileall.compile_dir(ROOT / "easytorch", quiet=1)  # as an installed package is
    found = [[float(value) for value in probe().stdout.split()] for _ in range(rounds)]
    torch_alone, ours = (quartiles([one[i] for one in found]) for i in range(2))
    print(f"\nSeconds to import, {rounds} times (goal for easytorch: {GOALS['import']:.2f})\n")
    table(
        [
            ["", "median", "quartiles"],
            ["torch", f"{torch_alone[1]:.2f}", f"{torch_alone[0]:.2f} - {torch_alone[2]:.2f}"],
            ["easytorch, torch being there", f"{ours[1]:.3f}", f"{ours[0]:.3f} - {ours[2]:.3f}"],
        ]
    )
    print(f"\nIt imports {found[0][2]:.0f} more modules, of which these take longest, with what they import:\n")
    rows = [line.split("|") for line in probe("-X", "importtime").stderr.splitlines() if line.count("|") == 2]
    names = [name.strip() for *_, name in rows]
    after = rows[names.index("torch") + 1 :]
    longest = sorted(((int(total), name.strip()) for _, total, name in after if total.strip().isdigit()), reverse=True)
    table([["module", "ms"], *([name, f"{total / 1000:.1f}"] for total, name in longest[:8])])
    return {"torch": torch_alone, "easytorch": ours}


if __name__ == "__main__":
    main()
