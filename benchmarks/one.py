"""Measurement of one library.

    python -m benchmarks.one mlp easytorch --quick     prints the result of one workload as a line of JSON
    python -m benchmarks.one --serve easytorch         measures a workload for each line that it reads, as ``peers`` does

The seconds are those of an epoch or a call after the warm-up, or of the import without torch. With ``--pin`` they are CPU
seconds: on one core with one thread these are the seconds on an idle machine, whatever else runs on this one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.plan import CONTESTANTS, PLAN


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter, epilog=__doc__
    )
    options.add_argument("workload", nargs="?", choices=PLAN)
    options.add_argument("contestant", choices=CONTESTANTS)
    options.add_argument("--serve", action="store_true", help="read lines of a workload and a file for its result")
    options.add_argument("--quick", action="store_true", help="use little data")
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core only, with one thread")
    args = options.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    import torch

    if args.pin is not None:
        torch.set_num_threads(1)
    if args.serve:
        serve(args)
    elif args.workload is None:
        options.error("expected a workload or --serve")
    else:
        print("\n" + json.dumps(measure(args.workload, args)), flush=True)


def serve(args: Any) -> None:
    """Measure the workload of each line in a new process, a copy of this one, which has imported the library."""
    for line in sys.stdin:
        workload, result = line.rstrip("\n").split("\t")
        if workload != "import":
            import_contestant(args.contestant)
        if sys.platform != "linux":  # where libraries do not support fork
            write_result(workload, args, Path(result))
            return
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.setpgid(0, 0)
            write_result(workload, args, Path(result))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            write(Path(result), {"error": f"the process died with status {status}"})


def write_result(workload: str, args: Any, path: Path) -> None:
    """Write the result of a workload, or the error."""
    try:
        result = measure(workload, args)
    except BaseException as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    write(path, result)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result atomically."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result))
    temporary.replace(path)


def import_contestant(name: str) -> Any:
    return importlib.import_module(f"benchmarks.contestants.{CONTESTANTS[name].file or name}")


def measure(workload: str, args: Any) -> dict[str, Any]:
    """Return the seconds of the measured passes, and a number that shows whether the training worked."""
    clock = time.perf_counter if args.pin is None else time.process_time
    result = time_import(args.contestant, clock) if workload == "import" else run(workload, args, clock)
    return result | {"peak_mb": round(peak_rss() / 2**20, 1)}


def run(workload: str, args: Any, clock: Callable[[], float]) -> dict[str, Any]:
    from benchmarks import workloads

    contestant = import_contestant(args.contestant)
    times: list[tuple[float, float]] = []
    task = workloads.task(workload, args.quick, lambda *_: times.append((clock(), time.perf_counter())))
    function = getattr(contestant, task.workload.verb, None)
    if function is None:
        raise ValueError(
            f"The contestant {args.contestant} does not define {task.workload.verb}(), which {workload} needs."
        )
    before, start = peak_rss(), clock()
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
    seconds, wall_seconds = ((times[-1][i] - times[0][i]) / (len(times) - 1) for i in range(2))
    return {
        "seconds": seconds,
        "wall_seconds": wall_seconds,
        "first_seconds": times[0][0] - start,
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


def time_import(name: str, clock: Callable[[], float]) -> dict[str, float]:
    """Return the import time of the library's modules in seconds. Torch is already imported."""
    start = clock()
    for module in CONTESTANTS[name].modules:
        importlib.import_module(module)
    return {"seconds": clock() - start, "check": 0.0}


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
