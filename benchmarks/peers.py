"""easytorch beside its peers: every contestant at every workload, each in a process of its own, in turns.

    python -m benchmarks.peers --quick                       a first look, in minutes
    python -m benchmarks.peers --pin 1 --json results.json   the real thing; goes on where it was stopped

It installs nothing: contestants that cannot be imported are named, with what would install them. A ratio is a contestant's
time divided by that of the plain loop in the same round; the tables show the median and the quartiles of all rounds. Output
goes to a pseudo terminal, so that everybody shows the progress that people see. All run on the CPU.
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
from benchmarks.plan import CONTESTANTS, PLAN, folder_of

ROOT = Path(__file__).parents[1]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    options.add_argument("--only", type=names_of(PLAN), default=list(PLAN), help=f"workloads: {', '.join(PLAN)}")
    options.add_argument(
        "--peers", type=names_of(CONTESTANTS), default=list(CONTESTANTS), help="contestants, beside raw and easytorch"
    )
    options.add_argument("--rounds", type=int, default=7, help="how often each runs; 0 shows what is in the file")
    options.add_argument("--quick", action="store_true", help="little data")
    options.add_argument("--pin", type=int, metavar="CPU", help="run contestants on this core alone, with one thread")
    options.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="for one contestant's turn")
    options.add_argument("--retry", action="store_true", help="let those take part again that have failed")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="keep every round here, and go on from what is there"
    )
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the ratios (needs matplotlib)")
    args = options.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the turn that runs too
    if args.rounds:
        results = measure_all(args)
    elif args.json:
        results = json.loads(args.json.read_text())
    else:
        options.error("--rounds 0 shows what is in a file: --json FILE")
    report.write(results)
    if args.figure:
        report.draw(results, args.figure)


def measure_all(args: Any) -> dict[str, Any]:
    """Return the results of all that is asked for and can be imported, on top of those that are there."""
    asked = [name for name in CONTESTANTS if name in {"raw", "easytorch", *args.peers}]
    present = [name for name in asked if not CONTESTANTS[name].missing()]
    for contestant in (CONTESTANTS[name] for name in asked if name not in present):
        print(
            f"{contestant.title}: left out, no {', '.join(contestant.missing())} here; pip install {contestant.install}"
        )
    compileall.compile_dir(ROOT / "easytorch", quiet=1)  # as the others were when they were installed
    results = opened(args.json, conditions(args, present))
    for workload in args.only:
        measure(workload, present, args, results)
    return results


def names_of(known: Mapping[str, Any]) -> Any:
    """Return what reads a list of names from the command line."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


def measure(workload: str, contestants: list[str], args: Any, results: dict[str, Any]) -> None:
    """Let the contestants take turns at ``workload``, until all of them have had so many."""
    rounds = results["rounds"].setdefault(workload, [])
    if args.retry:
        results["failed"].pop(workload, None)
    running = [name for name in contestants if name not in results["failed"].get(workload, {})]
    if PLAN[workload].kind == "images" and importlib.util.find_spec("torchvision") is None:
        print(f"{workload}: left out, no torchvision here; pip install torchvision")
        return
    while "raw" in running and sum(set(running) <= set(one) for one in rounds) < args.rounds:
        shift = len(rounds) % len(running)  # nobody is always first, or always after the same one
        one: dict[str, Any] = {}
        for name in running[shift:] + running[:shift]:
            measured = turn(workload, name, args)
            if isinstance(measured, str):
                print(f"{workload}, {name}: {measured}", flush=True)
                results["failed"].setdefault(workload, {})[name] = measured
            else:
                one[name] = measured
        running = [name for name in running if name in one]
        rounds.append(one)
        shown = ", ".join(f"{name} {one[name]['seconds']:.3g}" for name in running)
        print(f"{workload}, round {len(rounds)}, seconds: {shown}", flush=True)
        if args.json:
            save(results, args.json)


def turn(workload: str, contestant: str, args: Any) -> dict[str, Any] | str:
    """Return what one process measured, or why it could not."""
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
    with tempfile.TemporaryDirectory() as folder:  # for the files that some write unasked
        code, output = in_terminal(command, env, folder, args.timeout)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "\n").split("\n")
    found = [line for line in lines if line.startswith("{") and line.endswith("}")]
    if code or not found:
        told = [line.strip() for line in lines if line.strip()]
        return told[-1] if told and code is not None else f"nothing after {args.timeout:g} s"
    return json.loads(found[-1])


def in_terminal(command: list[str], env: dict[str, str], folder: str, timeout: float) -> tuple[int | None, str]:
    """Run ``command`` in a pseudo terminal of 120 columns; return its status, None if it took too long, and its output."""
    try:
        import fcntl
        import pty
        import struct
        import termios
    except ImportError:  # Windows has no pseudo terminals
        done = subprocess.run(command, env=env, cwd=folder, timeout=timeout, capture_output=True, text=True)
        return done.returncode, done.stderr + done.stdout
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    parts, until = [], time.monotonic() + timeout
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so that the other side is closed
                part = b""
            if not part:
                return process.wait(), b"".join(parts).decode(errors="replace")
            parts.append(part)
        return None, ""
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def conditions(args: Any, contestants: list[str]) -> dict[str, Any]:
    """Return what the numbers depend on."""
    real = [name for name in ("MNIST", "FashionMNIST") if folder_of(name)]
    if len(real) < 2:
        print(
            f"Real data under EASYTORCH_DATA: {', '.join(real) or 'none'}. The rest is random numbers of the same shape."
        )
    versions = {
        "easytorch": revision(),
        "torch": importlib.metadata.version("torch"),
        "Python": platform.python_version(),
    }
    for name in contestants:
        if CONTESTANTS[name].distribution():
            versions[CONTESTANTS[name].title] = importlib.metadata.version(CONTESTANTS[name].distribution())
    return {
        "size": "quick" if args.quick else "full",
        "threads": "as they come" if args.pin is None else "one, pinned",
        "real data": real,
        "machine": processor(),
        "versions": versions,
    }


def revision() -> str:
    """Return the commit of this checkout; an archive has none."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Return the name of this machine's processor, as far as it tells."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{found.group(1) if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def opened(path: Path | None, now: dict[str, Any]) -> dict[str, Any]:
    """Return the results in ``path``, to which those under the conditions of ``now`` may be added; else empty ones."""
    if path is None or not path.exists():
        return {"conditions": now, "failed": {}, "rounds": {}}
    results = json.loads(path.read_text())
    before = results["conditions"]
    for name in ("size", "threads", "real data", "machine"):
        if before[name] != now[name]:
            raise SystemExit(f"{path} was measured with {name} {before[name]!r}, this is {now[name]!r}: another file.")
    for name in before["versions"].keys() & now["versions"].keys():
        if before["versions"][name] != now["versions"][name]:
            raise SystemExit(f"{path} was measured with another version of {name}: take another file.")
    before["versions"] |= now["versions"]
    return results


def save(results: dict[str, Any], path: Path) -> None:
    """Write ``results``, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
