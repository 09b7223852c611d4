"""Tasks of SLURM as ranks: the variables of ``srun`` in the form of ``torchrun``."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Mapping

from easytorch._utils.notebook import is_interactive
from easytorch._utils.warnings import warn
from easytorch.errors import RankError

# Ports below those that Linux gives to outgoing connections.
FIRST_PORT, PORTS = 15_000, 10_000
# Numbers from here on are the steps of batch scripts, of interactive shells and of services.
FIRST_SPECIAL_STEP = 0xFFFFFFF0


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what ``torchrun`` would set in this process, if ``srun`` has started it as one of several tasks.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are those of ``environment`` where it has them. Otherwise the address is the first node of
    the step, and the port depends on the job and the step.

    Args:
        environment: The variables of this process.

    Returns:
        The variables; empty in a step with one task, in a batch script outside of ``srun``, and in an interactive session, where
        no other tasks run the same program.

    Raises:
        ValueError: If a list of nodes cannot be read.

    Examples:
        >>> launcher_variables({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", ...})
        {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2', ...}
    """
    if not _is_task(environment) or task_count(environment) < 2 or _is_in_shell_of_task(environment):
        return {}
    node = int(environment.get("SLURM_NODEID", "0"))
    counts = _expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", environment["SLURM_STEP_NUM_TASKS"]))
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "")))
    # The name of a single node need not be known to its resolver.
    address = nodes[0] if len(counts) > 1 and nodes else "127.0.0.1"
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(counts[node] if node < len(counts) else 1),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or address,
        "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + (job + 101 * step) % PORTS),
    }


def check_address(address: str) -> None:
    """Raise a ``RankError`` if ``address``, of rank 0, is no name that this machine knows; torch would try it for minutes."""
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise RankError(
            f"This machine cannot find the address {address!r} of rank 0, which is the name of its node in SLURM. Set "
            "MASTER_ADDR in the batch script to a name or an address that all nodes know."
        ) from error


def step_name(environment: Mapping[str, str]) -> str:
    """Return a name that no other step has, nor the same step before its job was requeued; empty outside of ``srun``."""
    if not _is_task(environment):
        return ""
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    return f"slurm-{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}-{restarts}"


def is_job(environment: Mapping[str, str]) -> bool:
    """Return whether this process belongs to a job of SLURM."""
    return "SLURM_JOB_ID" in environment


def warning_signals(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Return the signals that a job may get before its time ends, by ``#SBATCH --signal=USR1@120``; none outside of SLURM.

    A signal is left out if code without Python handles it, such as ``faulthandler.register``.
    """
    if not is_job(environment):
        return ()
    caught = _signals_with_c_handlers()
    numbers = (getattr(signal, "SIGUSR1", 0), getattr(signal, "SIGUSR2", 0))
    return tuple(int(number) for number in numbers if number and number not in caught)


def _signals_with_c_handlers() -> set[int]:
    """Return the signals of this process with a handler of which Python does not know; empty where that is unknown."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            masks = [line.split()[1] for line in file if line.startswith("SigCgt:")]
    except OSError:
        return set()
    mask = int(masks[0], 16) if masks else 0
    numbers = {int(number) for number in signal.valid_signals() if mask >> (number - 1) & 1}
    return {number for number in numbers if signal.getsignal(number) == signal.SIG_DFL}


def job_name(environment: Mapping[str, str]) -> str:
    """Return the number of the job for ``scontrol``, in the form ``array_task`` in a job array.

    ``SLURM_JOB_ID`` of one task of an array is the number of the whole array.
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def task_count(environment: Mapping[str, str]) -> int:
    """Return the number of tasks of this step; outside of ``srun``, of the job; 1 if it is unknown."""
    name = "SLURM_STEP_NUM_TASKS" if _is_task(environment) else "SLURM_NTASKS"
    return int(environment.get(name, "1"))


def warn_without_srun(environment: Mapping[str, str]) -> None:
    """Warn of a program that trains in one process although its job has several tasks."""
    count = task_count(environment)
    if is_job(environment) and not _is_task(environment) and count > 1 and not _has_terminal():
        warn(
            f"This job of SLURM has {count} tasks, but the program runs in one process, which trains alone. Start it with srun "
            "in the batch script: 'srun python train.py'. If one process is right, request '#SBATCH --ntasks=1'."
        )


def expand_nodes(nodes: str) -> list[str]:
    """Return the names in a list of nodes, as ``scontrol show hostnames`` does.

    Args:
        nodes: For example ``"gpu[01-03,07],login"``, which is ``gpu01``, ``gpu02``, ``gpu03``, ``gpu07`` and ``login``.

    Raises:
        ValueError: If a bracket is not closed, or contains something else than numbers and ranges.
    """
    # Commas between names, not those in brackets.
    return [name for part in re.findall(r"(?:\[[^\]]*\]|[^,\s])+", nodes) for name in _expand_node(part)]


def _expand_node(name: str) -> list[str]:
    prefix, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    ranges, closed, suffix = rest.partition("]")
    numbers = [number for item in ranges.split(",") for number in _expand_range(item)]
    if not closed or not numbers:
        raise ValueError(f"Cannot read the list of nodes {name!r}. Set MASTER_ADDR to the name of the first node.")
    return [prefix + number + end for number in numbers for end in _expand_node(suffix)]


def _expand_range(item: str) -> list[str]:
    match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", item)
    if match is None:
        return []
    first, last = match[1], match[2] or match[1]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _expand_counts(counts: str) -> list[int]:
    """Return the numbers in ``"2(x3),1"``, which is 2, 2, 2, 1."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, repeats in parts for _ in range(int(repeats or 1))]


def _is_task(environment: Mapping[str, str]) -> bool:
    """Return whether ``srun`` has started this process, or its shell."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(environment.get(name, "").isdecimal() for name in names):
        return False
    return int(environment["SLURM_STEP_ID"]) < FIRST_SPECIAL_STEP


def _is_in_shell_of_task(environment: Mapping[str, str]) -> bool:
    """Return whether a user has started this process in a task, as in a shell of ``srun --pty bash``."""
    if is_interactive():
        return True
    # Only the first task of "srun --pty" has a terminal. A nested srun inherits the variables of --pty, but no terminal.
    return _has_terminal() and environment.get("SLURM_TASK_PID") != str(os.getpid())


def _has_terminal() -> bool:
    # A closed or replaced input has no terminal.
    return bool(getattr(sys.stdin, "isatty", lambda: False)()) if not getattr(sys.stdin, "closed", True) else False
