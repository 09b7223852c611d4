"""How much of its time a process computes when many of them meet after every update: calculated, not measured.

    python -m benchmarks.scaling [--parameters 25.6e6] [--seconds 0.1] [--between 25e9]

Data parallel training, the same batch in each process whatever their number. Gradients of four bytes meet in a ring within a
machine, then in one ring for each device between machines. By [1] a ring of n sends and receives 2 (n - 1) / n of all bytes
in each of its members. While the backward, two thirds of a step, goes on, buckets of 25 MB that are ready travel; the last
bucket cannot. Each of the 2 log2(n) steps that a message takes at least costs a latency.

[1] P. Patarasuk, X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009.
"""

from __future__ import annotations

import argparse
from math import log2

from benchmarks.report import table

PROCESSES = (1, 2, 4, 8, 16, 64, 256, 1024)
PER_MACHINE = 8
WITHIN = 300e9  # bytes per second and device: NVLink
BETWEEN = {"InfiniBand": 25e9, "Ethernet": 10e9 / 8 / 8}  # 200 Gbit/s for each device; 10 Gbit/s for a machine
LATENCY = 10e-6  # seconds per message
BUCKET = 25e6  # bytes, the default of DistributedDataParallel
BACKWARD = 2 / 3  # of a step

CASES = {
    "the MLP of article 002": (109_386, 1e-3),
    "a ResNet-50": (25.6e6, 0.1),
    "a language model": (1.3e9, 1.0),
}


def volume(parameters: float, processes: int) -> float:
    """Return the bytes that each process sends in an update, as many as it receives."""
    return 2 * (processes - 1) / processes * 4 * parameters


def meeting(size: float, processes: int, between: float) -> float:
    """Return the seconds until gradients of ``size`` bytes are the same everywhere."""
    inner = min(processes, PER_MACHINE)
    machines = -(-processes // PER_MACHINE)
    seconds = 2 * (inner - 1) / inner * size / WITHIN + 2 * (machines - 1) / machines * (size / inner) / between
    return seconds + 2 * log2(processes) * LATENCY


def efficiency(parameters: float, seconds: float, processes: int, between: float) -> float:
    """Return the share of its time that a process computes, where a step alone takes ``seconds``."""
    if processes == 1:
        return 1.0
    size = 4 * parameters
    last = min(size, BUCKET)
    early = meeting(size - last, processes, between) if size > last else 0.0
    waiting = max(0.0, early - BACKWARD * seconds)
    return seconds / (seconds + waiting + meeting(last, processes, between))


def rows(cases: dict[str, tuple[float, float]], between: float) -> list[list[str]]:
    """Return the table: of each case the share of time that is computed, and as how many processes alone that counts."""
    found = [["processes", *cases]]
    for count in PROCESSES:
        shares = [efficiency(*case, count, between) for case in cases.values()]
        found.append([f"{count:,}", *(f"{share:.0%}, as {count * share:,.1f}" for share in shares)])
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--parameters", type=float, help="of your module")
    options.add_argument("--seconds", type=float, default=0.1, help="of one of its steps on one device; default 0.1")
    options.add_argument("--between", type=float, help="bytes per second and device between machines")
    args = options.parse_args()
    cases = {"yours": (args.parameters, args.seconds)} if args.parameters else CASES
    for network, speed in ({"your network": args.between} if args.between else BETWEEN).items():
        print(f"\n{network}\n")
        table(rows(cases, speed))


if __name__ == "__main__":
    main()
