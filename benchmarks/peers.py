"""Comparison of easytorch with plain loops and other libraries.

    python -m benchmarks.peers --quick                       a short comparison, in minutes
    python -m benchmarks.peers --pin 1 --json results.json   the full comparison; continues after a stop

Every contestant runs every workload in a separate process on the CPU, in turns. The program installs nothing; it prints
the ``pip install`` command for missing libraries. A ratio is the time of a contestant divided by that of the plain loop
in the same round. The tables show the median and the quartiles of all rounds. Output goes to a pseudo terminal, so
libraries draw their progress bars as for users.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.plan import CONTESTANTS, PLAN, find_folder

ROOT = Path(__file__).parents[1]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    options.add_argument("--only", type=make_parser(PLAN), default=list(PLAN), help=f"workloads: {', '.join(PLAN)}")
    options.add_argument(
        "--peers",
        type=make_parser(CONTESTANTS),
        default=list(CONTESTANTS),
        help="contestants, in addition to raw and easytorch",
    )
    options.add_argument("--rounds", type=int, default=7, help="number of rounds; 0 prints the results of the file")
    options.add_argument("--quick", action="store_true", help="use little data")
    options.add_argument("--pin", type=int, metavar="CPU", help="run contestants on this core only, with one thread")
    options.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="time limit of one measurement")
    options.add_argument("--retry", action="store_true", help="measure contestants again that failed")
    options.add_argument("--json", type=Path, metavar="FILE", help="save every round in this file and continue from it")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the ratios (needs matplotlib)")
    args = options.parse_args()

    # The exit also ends the running measurement
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.rounds:
        results = measure_all(args)
    elif args.json:
        results = json.loads(args.json.read_text())
    else:
        options.error("--rounds 0 prints the results of a file and requires --json FILE")
    report.print_report(results)
    if args.figure:
        report.draw_figure(results, args.figure)


def measure_all(args: Any) -> dict[str, Any]:
    """Measure all requested contestants that are installed, and return their results with those of the file."""
    requested = [name for name in CONTESTANTS if name in {"raw", "easytorch", *args.peers}]
    installed = [name for name in requested if not CONTESTANTS[name].find_missing()]
    for contestant in (CONTESTANTS[name] for name in requested if name not in installed):
        print(
            f"{contestant.title} is skipped, because {', '.join(contestant.find_missing())} is not installed. "
            f"Run: pip install {contestant.install}"
        )
    compileall.compile_dir(ROOT / "easytorch", quiet=1)  # like an installed package
    results = load_results(args.json, get_conditions(args, installed))
    for workload in args.only:
        measure_workload(workload, installed, args, results)
    return results


def make_parser(known: Mapping[str, Any]) -> Any:
    """Return a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown names {', '.join(unknown)}; expected {', '.join(known)}")
        return names

    return parse


def measure_workload(workload: str, contestants: list[str], args: Any, results: dict[str, Any]) -> None:
    """Run the contestants in turns until the workload has ``args.rounds`` rounds."""
    rounds = results["rounds"].setdefault(workload, [])
    if args.retry:
        results["failed"].pop(workload, None)
    running = [name for name in contestants if name not in results["failed"].get(workload, {})]
    if PLAN[workload].kind == "images" and importlib.util.find_spec("torchvision") is None:
        print(f"{workload} is skipped, because torchvision is not installed. Run: pip install torchvision")
        return
    while "raw" in running and sum(set(running) <= set(results_by_name) for results_by_name in rounds) < args.rounds:
        # Each round starts with another contestant
        shift = len(rounds) % len(running)
        results_by_name: dict[str, Any] = {}
        for name in running[shift:] + running[:shift]:
            measurement = run_contestant(workload, name, args)
            if isinstance(measurement, str):
                print(f"{workload}, {name}: {measurement}", flush=True)
                results["failed"].setdefault(workload, {})[name] = measurement
            else:
                results_by_name[name] = measurement
        running = [name for name in running if name in results_by_name]
        rounds.append(results_by_name)
        summary = ", ".join(f"{name} {results_by_name[name]['seconds']:.3g}" for name in running)
        print(f"{workload}, round {len(rounds)}, seconds: {summary}", flush=True)
        if args.json:
            save_results(results, args.json)


def run_contestant(workload: str, contestant: str, args: Any) -> dict[str, Any] | str:
    """Return the measurement of one process, or its error message."""
    command = [sys.executable, "-m", "benchmarks.one", workload, contestant]
    command += ["--quick"] * args.quick + ([] if args.pin is None else ["--pin", str(args.pin)])
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "EASYTORCH_DATA": str(Path(os.environ.get("EASYTORCH_DATA", "data")).resolve()),
        "KERAS_BACKEND": "torch",
        "CUDA_VISIBLE_DEVICES": "",
        "TERM": "xterm-256color",
    }
    if args.pin is not None:
        env |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    with tempfile.TemporaryDirectory() as folder:  # for the files that some libraries write
        code, output = run_in_terminal(command, env, folder, args.timeout)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "\n").split("\n")
    measurements = [line for line in lines if line.startswith("{") and line.endswith("}")]
    if code or not measurements:
        messages = [line.strip() for line in lines if line.strip()]
        return messages[-1] if messages and code is not None else f"no result after {args.timeout:g} s"
    return json.loads(measurements[-1])


def run_in_terminal(command: list[str], env: dict[str, str], folder: str, timeout: float) -> tuple[int | None, str]:
    """Run ``command`` in a pseudo terminal of 120 columns, and return its status (None after a timeout) and its output."""
    try:
        import fcntl
        import pty
        import struct
        import termios
    except ImportError:  # Windows has no pseudo terminals
        process = subprocess.run(command, env=env, cwd=folder, timeout=timeout, capture_output=True, text=True)
        return process.returncode, process.stderr + process.stdout
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    child = subprocess.Popen(
        command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    chunks, deadline = [], time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                chunk = os.read(master, 65536)
            except OSError:  # on Linux, the child closed the terminal
                chunk = b""
            if not chunk:
                return child.wait(), b"".join(chunks).decode(errors="replace")
            chunks.append(chunk)
        return None, ""
    finally:
        child.kill()
        child.wait()
        os.close(master)


def get_conditions(args: Any, contestants: list[str]) -> dict[str, Any]:
    """Return the conditions of the measurements."""
    datasets = [name for name in ("MNIST", "FashionMNIST") if find_folder(name)]
    if len(datasets) < 2:
        print(
            f"Real data under EASYTORCH_DATA: {', '.join(datasets) or 'none'}. Other images are random numbers of the same shape."
        )
    versions = {
        "easytorch": get_revision(),
        "torch": importlib.metadata.version("torch"),
        "Python": platform.python_version(),
    }
    for name in contestants:
        if CONTESTANTS[name].distribution():
            versions[CONTESTANTS[name].title] = importlib.metadata.version(CONTESTANTS[name].distribution())
    return {
        "size": "quick" if args.quick else "full",
        "threads": "default" if args.pin is None else "one, pinned",
        "real data": datasets,
        "machine": get_processor(),
        "versions": versions,
    }


def get_revision() -> str:
    """Return the commit of this checkout, or ``"unknown"`` without git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def get_processor() -> str:
    """Return the name of the processor and the number of its cores."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{match.group(1) if match else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def load_results(path: Path | None, conditions: dict[str, Any]) -> dict[str, Any]:
    """Return the results in ``path``, or empty results. Exit if the file has other conditions."""
    if path is None or not path.exists():
        return {"conditions": conditions, "failed": {}, "rounds": {}}
    results = json.loads(path.read_text())
    file_conditions = results["conditions"]
    for name in ("size", "threads", "real data", "machine"):
        if file_conditions[name] != conditions[name]:
            raise SystemExit(
                f"{path} was measured with {name} {file_conditions[name]!r}, received {conditions[name]!r}. Use another file."
            )
    for name in file_conditions["versions"].keys() & conditions["versions"].keys():
        if file_conditions["versions"][name] != conditions["versions"][name]:
            raise SystemExit(f"{path} was measured with another version of {name}. Use another file.")
    file_conditions["versions"] |= conditions["versions"]
    return results


def save_results(results: dict[str, Any], path: Path) -> None:
    """Write ``results`` atomically."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
