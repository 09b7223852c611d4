"""Kill a training process at random moments until it is done: ``python -m tests.chaos --kills 200``.

The processes are forked from one that has torch loaded, so that two hundred of them take seconds. Each runs the same program
from its first line; it knows of the others only what is in the folder. In the end the weights must be those of an undisturbed
run, and no file may be broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import EMA, BackupAndRestore
from easytorch.checkpoint import files, rotation
from tests.loops import blob_loader

EPOCHS = 12


@dataclasses.dataclass
class Report:
    kills: int
    runs: int
    broken: int
    stray: int
    equal: bool
    seconds: float


def program(folder: Path | None) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3))
    model = Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "cross_entropy")
    backup = [] if folder is None else [BackupAndRestore(folder, save_freq=3, delete_checkpoint=False)]
    model.fit(blob_loader(shuffle=True), EPOCHS, callbacks=[EMA(0.9), *backup], verbose=0)
    if model.history.interrupted:
        raise KeyboardInterrupt
    return net.state_dict()


def child(folder: Path) -> int:
    process = os.fork()
    if process:
        return process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hundreds of "Stopping after this update"
    try:
        files.write(folder / "final.pt", program(folder))
        os._exit(0)
    except SystemExit as ending:
        os._exit(int(ending.code or 0))
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)


def run(kills: int, folder: Path, seed: int = 0, numbers: tuple[int, ...] = (signal.SIGKILL,)) -> Report:
    """Kill so many times, however many runs to the end that takes, and compare every end with the undisturbed one."""
    began, rng = time.monotonic(), random.Random(seed)
    wanted = program(None)
    started = time.monotonic()
    program(Path(tempfile.mkdtemp(dir=folder)))
    length = time.monotonic() - started
    report = Report(0, 0, 0, 0, True, 0.0)
    while report.kills < kills:
        report.runs += 1
        place = folder / f"run-{report.runs}"
        place.mkdir()
        while True:
            process = child(place)
            deadline = time.monotonic() + rng.uniform(0, 0.8 * length)
            while time.monotonic() < deadline and os.waitpid(process, os.WNOHANG)[0] == 0:
                time.sleep(0.0005)
            try:
                os.kill(process, rng.choice(numbers))
                status = os.waitpid(process, 0)[1]
            except (ProcessLookupError, ChildProcessError):  # it was done before
                break
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 and (place / "final.pt").exists():
                break
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 130, 143):
                raise RuntimeError(f"a run failed with status {os.WEXITSTATUS(status)}")
            report.kills += 1
            for path in rotation.list_checkpoints(place):
                try:
                    files.read_model(path)
                except FileError:
                    report.broken += 1
        report.stray += len(list(place.glob(".step-*")))
        found = files.read(place / "final.pt")
        report.equal &= all(torch.equal(found[name], value) for name, value in wanted.items())
    report.seconds = time.monotonic() - began
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--signal", choices=["SIGKILL", "SIGTERM", "SIGINT"], default="SIGKILL")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(args.kills, Path(folder), args.seed, (getattr(signal, args.signal),))
    print(report)
    raise SystemExit(0 if report.equal and not report.broken else 1)


if __name__ == "__main__":
    main()
