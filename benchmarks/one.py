"""Measurement of one library and one workload in this process.

    python -m benchmarks.one mlp easytorch --quick

It prints the result as one line of JSON. The seconds are those of an epoch or a call after the warm-up, or of the
import without torch.
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
    options.add_argument("--quick", action="store_true", help="use little data")
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core only")
    args = options.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    import torch

    if args.pin is not None:
        torch.set_num_threads(1)
    result = time_import(args.contestant) if args.workload == "import" else run(args)
    print("\n" + json.dumps(result | {"peak_mb": round(peak_rss() / 2**20, 1)}), flush=True)


def run(args: Any) -> dict[str, Any]:
    """Return the seconds of the measured passes, and a number that shows whether the training worked."""
    from benchmarks import workloads

    contestant = importlib.import_module(f"benchmarks.contestants.{args.contestant}")
    times: list[float] = []
    task = workloads.task(args.workload, args.quick, lambda *_: times.append(time.perf_counter()))
    function = getattr(contestant, task.workload.verb, None)
    if function is None:
        raise ValueError(
            f"The contestant {args.contestant} does not define {task.workload.verb}(), which {args.workload} needs."
        )
    before, start = peak_rss(), time.perf_counter()
    if task.workload.verb == "fit":
        function(task)
        check = compute_loss(task)
    else:
        call = function(task)
        for _ in range(task.epochs):
            result = call()
            task.tick()
        check = float(result) if task.workload.verb == "evaluate" else float(abs(result).mean())
    if len(times) != task.epochs:
        raise RuntimeError(f"Expected {task.epochs} passes, received {len(times)}. Call task.tick() after every pass.")
    return {
        "seconds": (times[-1] - times[0]) / (len(times) - 1),
        "first_seconds": times[0] - start,
        "check": check,
        "before_mb": round(before / 2**20, 1),
    }


def compute_loss(task: Any) -> float:
    """Return the loss on the first samples, computed with plain torch."""
    import torch
    from torch.utils.data import default_collate

    x, y = default_collate([task.dataset[i] for i in range(min(1000, len(task.dataset)))])
    task.module.eval()
    with torch.no_grad():
        return task.loss(task.module(x), y).item()


def time_import(name: str) -> dict[str, float]:
    """Return the import time of the library's modules in seconds. Torch is already imported."""
    start = time.perf_counter()
    for module in CONTESTANTS[name].modules:
        importlib.import_module(module)
    return {"seconds": time.perf_counter() - start, "check": 0.0}


def peak_rss() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    # On Linux, getrusage also counts the memory of the parent process
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
