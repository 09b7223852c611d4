"""One contestant at one workload, in this process: prints what it measured as one line of JSON.

    python -m benchmarks.one mlp easytorch --quick

The seconds are those of an epoch or a call after the first, the time to import those on top of torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.plan import CONTESTANTS, PLAN


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("workload", choices=PLAN)
    options.add_argument("contestant", choices=CONTESTANTS)
    options.add_argument("--quick", action="store_true", help="little data")
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core alone")
    args = options.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    import torch

    if args.pin is not None:
        torch.set_num_threads(1)
    measured = imported(args.contestant) if args.workload == "import" else run(args)
    print("\n" + json.dumps(measured | {"peak_mb": round(peak_rss() / 2**20, 1)}), flush=True)


def run(args: Any) -> dict[str, Any]:
    """Return the seconds of the contestant's timed passes, and a number by which to see that it did its work."""
    from benchmarks import workloads

    contestant = importlib.import_module(f"benchmarks.contestants.{args.contestant}")
    times: list[float] = []
    task = workloads.task(args.workload, args.quick, lambda *_: times.append(time.perf_counter()))
    work = getattr(contestant, task.workload.verb, None)
    if work is None:
        raise NotImplementedError(f"{args.contestant} has no {task.workload.verb}")
    before, began = peak_rss(), time.perf_counter()
    if task.workload.verb == "fit":
        work(task)
        check = loss_of(task)
    else:
        call = work(task)
        for _ in range(task.epochs):
            result = call()
            task.tick()
        check = float(result) if task.workload.verb == "evaluate" else float(abs(result).mean())
    if len(times) != task.epochs:
        raise RuntimeError(f"{len(times)} passes were made instead of {task.epochs}")
    return {
        "seconds": (times[-1] - times[0]) / (len(times) - 1),
        "first_seconds": times[0] - began,
        "check": check,
        "before_mb": round(before / 2**20, 1),
    }


def loss_of(task: Any) -> float:
    """Return the loss on the first samples, as plain torch measures it."""
    import torch
    from torch.utils.data import default_collate

    x, y = default_collate([task.dataset[i] for i in range(min(1000, len(task.dataset)))])
    task.module.eval()
    with torch.no_grad():
        return task.loss(task.module(x), y).item()


def imported(name: str) -> dict[str, float]:
    """Return the seconds that the contestant's own modules take, torch being there already."""
    began = time.perf_counter()
    for module in CONTESTANTS[name].modules:
        importlib.import_module(module)
    return {"seconds": time.perf_counter() - began, "check": 0.0}


def peak_rss() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the memory of the process that started this one too
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
