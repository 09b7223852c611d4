"""Estimated efficiency of data parallel training for many processes.

    python -m benchmarks.scaling [--parameters 25.6e6] [--seconds 0.1] [--between 25e9]

Nothing is measured. The model assumes a constant batch size per process. An all-reduce of four-byte gradients runs in a
ring within each machine, then in one ring per device between machines. In a ring of n ranks, each rank sends and
receives 2 (n - 1) / n of all bytes [1]. The backward pass takes two thirds of a step, and overlaps with the all-reduce
of all buckets of 25 MB except the last. A message needs at least 2 log2(n) steps, and each step costs one latency.

[1] P. Patarasuk, X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009.
"""

from __future__ import annotations

import argparse
from math import log2

from benchmarks.report import print_table

PROCESSES = (1, 8, 16, 64, 256, 1024)
PER_MACHINE = 8
WITHIN = 300e9  # bytes per second and device: NVLink
BETWEEN = {"InfiniBand": 25e9, "Ethernet": 10e9 / 8 / 8}  # 200 Gbit/s for each device; 10 Gbit/s for a machine
LATENCY = 10e-6  # seconds per message
BUCKET = 25e6  # bytes, the default of DistributedDataParallel
BACKWARD = 2 / 3  # of a step

CASES = {
    "MLP for MNIST": (109_386, 1e-3),
    "ResNet-50": (25.6e6, 0.1),
    "language model": (1.3e9, 1.0),
}


def volume(parameters: float, processes: int) -> float:
    """Return the bytes that each process sends in an update. It receives the same number of bytes."""
    return 2 * (processes - 1) / processes * 4 * parameters


def all_reduce_seconds(size: float, processes: int, between: float) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes."""
    inner = min(processes, PER_MACHINE)
    machines = -(-processes // PER_MACHINE)
    seconds = 2 * (inner - 1) / inner * size / WITHIN + 2 * (machines - 1) / machines * (size / inner) / between
    return seconds + 2 * log2(processes) * LATENCY


def efficiency(parameters: float, seconds: float, processes: int, between: float) -> float:
    """Return the fraction of time that a process computes, if a step without communication takes ``seconds``."""
    if processes == 1:
        return 1.0
    size = 4 * parameters
    last_bucket = min(size, BUCKET)
    overlap = all_reduce_seconds(size - last_bucket, processes, between) if size > last_bucket else 0.0
    wait = max(0.0, overlap - BACKWARD * seconds)
    return seconds / (seconds + wait + all_reduce_seconds(last_bucket, processes, between))


def rows(cases: dict[str, tuple[float, float]], between: float) -> list[list[str]]:
    """Return a table with the speedup and the efficiency of each case, by the number of processes."""
    table = [["processes", *cases]]
    for count in PROCESSES:
        shares = [efficiency(*case, count, between) for case in cases.values()]
        table.append([f"{count:,}", *(f"{count * share:,.1f} ({share:.0%})" for share in shares)])
    return table


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--parameters", type=float, help="number of parameters of your module")
    options.add_argument("--seconds", type=float, default=0.1, help="seconds of one step on one device (default: 0.1)")
    options.add_argument("--between", type=float, help="bandwidth between machines in bytes per second and device")
    args = options.parse_args()
    cases = {"your module": (args.parameters, args.seconds)} if args.parameters else CASES
    for network, speed in ({"your network": args.between} if args.between else BETWEEN).items():
        print(f"\n{network}\n")
        print_table(rows(cases, speed))


if __name__ == "__main__":
    main()
