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
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.plan import CONTESTANTS, LIBRARIES, PLAN, choose_contestants, find_folder

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

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
        type=make_parser(["tuned", *LIBRARIES]),
        default=["tuned", *LIBRARIES],
        help="contestants, in addition to the plain loop and easytorch",
    )
    options.add_argument(
        "--again",
        type=make_parser(["tuned", "easytorch", *LIBRARIES]),
        default=["tuned", "easytorch", *LIBRARIES],
        help="contestants that are measured twice in each round where a step is all kernels; the plain loop always is",
    )
    options.add_argument("--rounds", type=int, default=7, help="number of rounds; 0 prints the results of the file")
    options.add_argument("--quick", action="store_true", help="use little data")
    options.add_argument("--pin", type=int, metavar="CPU", help="run contestants on this core only, with one thread")
    options.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="time limit of one measurement")
    options.add_argument("--retry", action="store_true", help="measure contestants again that failed")
    options.add_argument("--json", type=Path, metavar="FILE", help="save every round in this file and continue from it")
    options.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables in this file")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the ratios (needs matplotlib)")
    args = options.parse_args()

    if sys.platform == "win32":
        options.error("the benchmark needs pseudo terminals: run it on Linux or macOS")
    # The exit also ends the running measurement
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.rounds:
        results = measure_all(args)
    elif args.json:
        results = json.loads(args.json.read_text())
    else:
        options.error("--rounds 0 prints the results of a file and requires --json FILE")
    report.print_report(results)
    if args.markdown:
        with args.markdown.open("w") as file, contextlib.redirect_stdout(file):
            report.print_report(results)
    if args.figure:
        report.draw_figure(results, args.figure)


def measure_all(args: Any) -> dict[str, Any]:
    """Measure all requested contestants that are installed, and return their results with those of the file."""
    requested = [name for name in CONTESTANTS if name in {"raw", "easytorch", *args.peers}]  # without controls
    installed = [name for name in requested if not CONTESTANTS[name].find_missing()]
    for contestant in (CONTESTANTS[name] for name in requested if name not in installed):
        print(
            f"{contestant.title} is skipped, because {', '.join(contestant.find_missing())} is not installed. "
            f"Run: pip install {contestant.install}"
        )
    compileall.compile_dir(ROOT / "easytorch", quiet=1)  # like an installed package
    results = load_results(args.json, get_conditions(args, installed))
    if args.retry:
        results["failed"].clear()
    servers = Servers(args)
    try:
        for number in range(args.rounds):
            measure_round(number, installed, servers, args, results)
    finally:
        servers.close()
    return results


def make_parser(known: Collection[str]) -> Any:
    """Return a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown names {', '.join(unknown)}; expected {', '.join(known)}")
        return names

    return parse


def measure_round(number: int, installed: list[str], servers: Servers, args: Any, results: dict[str, Any]) -> None:
    """Measure the round ``number`` of each workload, or what is missing of it."""
    for workload in args.only:
        if PLAN[workload].kind == "images" and importlib.util.find_spec("torchvision") is None:
            continue
        failed = results["failed"].setdefault(workload, {})
        names = [name for name in choose_contestants(workload, installed, args.again) if name not in failed]
        cells = find_round(number, results["rounds"].setdefault(workload, []))
        # Each round starts with another contestant
        shift = number * max(len(names) // args.rounds, 1) % len(names)
        for name in names[shift:] + names[:shift]:
            if name in cells:
                continue
            measurement = servers.measure(workload, name)
            if "error" in measurement:
                print(f"{workload}, {name}: {measurement['error']}", flush=True)
                failed[name] = measurement["error"]
            else:
                cells[name] = measurement | {"commit": get_revision()}
            if args.json:
                save_results(results, args.json)
        summary = ", ".join(f"{name} {cells[name]['seconds']:.3g}" for name in names if name in cells)
        print(f"{workload}, round {number + 1}, seconds: {summary}", flush=True)


def find_round(number: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the cells of the round ``number`` of this commit; a round is never of two commits."""
    own = [cells for cells in rounds if all(cell["commit"] == get_revision() for cell in cells.values())]
    if number >= len(own):
        rounds.append({})
        return rounds[-1]
    return own[number]


class Servers:
    """One process for each contestant, which imports its library once and measures each workload in a copy of itself.

    Args:
        args: The options of the command.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self._servers: dict[tuple[str, bool], Server] = {}

    def measure(self, workload: str, contestant: str) -> dict[str, Any]:
        """Return the measurement, or ``{"error": message}``."""
        file = CONTESTANTS[contestant].file or contestant
        key = file, workload == "import"  # a process that imports a library again needs one that has not
        server = self._servers.get(key)
        if server is None or not server.is_running():
            server = self._servers[key] = Server(file, self.args)
        return server.measure(workload)

    def close(self) -> None:
        """End all processes."""
        for server in self._servers.values():
            server.close()


class Server:
    """The process of one contestant, in a pseudo terminal of 120 columns.

    Args:
        contestant: The name of its file.
        args: The options of the command.
    """

    def __init__(self, contestant: str, args: Any) -> None:
        self.timeout = args.timeout
        self.folder = tempfile.TemporaryDirectory()  # for the files that some libraries write
        command = [sys.executable, "-m", "benchmarks.one", "--serve", contestant]
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
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            command, env=env, cwd=self.folder.name, stdin=subprocess.PIPE, stdout=terminal, stderr=terminal, text=True,
            start_new_session=True,
        )  # fmt: skip
        os.close(terminal)

    def is_running(self) -> bool:
        """Return whether the process can measure another workload."""
        return self.process.poll() is None

    def measure(self, workload: str) -> dict[str, Any]:
        """Return the measurement, or ``{"error": message}``."""
        assert self.process.stdin is not None
        result, output = Path(self.folder.name) / "result.json", b""
        result.unlink(missing_ok=True)
        self.process.stdin.write(f"{workload}\t{result}\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + self.timeout
        while not result.exists():
            if time.monotonic() > deadline:
                self.close()
                return {"error": f"no result after {self.timeout:g} s"}
            output = (output + self._read())[-10_000:]
            if not self.is_running() and not result.exists():
                lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode(errors="replace")).split()
                return {"error": " ".join(lines)[-200:]}
        self._read()
        return dict(json.loads(result.read_text()))

    def _read(self) -> bytes:
        """Return what the process has written, so that it never waits for the terminal."""
        if not select.select([self.master], [], [], 0.1)[0]:
            return b""
        try:
            return os.read(self.master, 65536)
        except OSError:  # on Linux, the child has closed the terminal
            time.sleep(0.1)
            return b""

    def close(self) -> None:
        """End the process and those that it has started."""
        if self.is_running():
            for pid in (*children_of(self.process.pid), self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)
        self.folder.cleanup()


def children_of(pid: int) -> list[int]:
    """Return the processes that ``pid`` has forked; known on Linux, where a server forks."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def get_conditions(args: Any, contestants: list[str]) -> dict[str, Any]:
    """Return the conditions of the measurements."""
    datasets = [name for name in ("MNIST", "FashionMNIST") if find_folder(name)]
    if len(datasets) < 2:
        print(
            f"Real data under EASYTORCH_DATA: {', '.join(datasets) or 'none'}. Other images are random numbers of the same shape."
        )
    versions = {
        "torch": importlib.metadata.version("torch"),
        "Python": platform.python_version(),
    }
    for name in contestants:
        if CONTESTANTS[name].distribution():
            versions[CONTESTANTS[name].title] = importlib.metadata.version(CONTESTANTS[name].distribution())
    return {
        "size": "quick" if args.quick else "full",
        "threads": "default" if args.pin is None else "one, pinned, CPU seconds",
        "real data": datasets,
        "machine": get_processor(),
        "versions": versions,
    }


@functools.cache
def get_revision() -> str:
    """Return the last commit that changed what is measured, with ``-dirty`` for changes since; ``"unknown"`` without git."""
    measured = ["--", "easytorch", *(f"benchmarks/{name}" for name in ("contestants", "one.py", "workloads.py"))]
    commands = ["log", "-1", "--format=%h", *measured], ["status", "--porcelain", *measured]
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit


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
