"""Kill one process of a ``torchrun`` at random moments, which starts all of them again: ``python -m tests.elastic --kills 10``.

In the end the weights must be those of an undisturbed run. Nothing may hang: there is a time limit for the whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from easytorch import Model, files
from easytorch.callbacks import BackupAndRestore, Callback
from tests.loops import blob_loader

ROOT = Path(__file__).parents[1]
LIMIT = 180.0  # seconds for one start of all processes; a busy machine takes long to import torch


@dataclasses.dataclass
class Report:
    kills: int
    equal: bool
    seconds: float


class Slowly(Callback):
    """Gives those who kill the time to do it."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)


def program(folder: Path | None) -> None:
    """Train, as a user would: nothing in here knows that it may be killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    model = Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    rank = model.strategy.processes.rank
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    backup = BackupAndRestore(folder / "run", save_freq=1, delete_checkpoint=False)
    model.fit(blob_loader(shuffle=True), 20, callbacks=[backup, Slowly()], verbose=0)
    model.save_weights(folder / "final.pt")


def start(folder: Path, restarts: int) -> subprocess.Popen[bytes]:
    folder.mkdir()
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run += [f"--max-restarts={restarts}", "-m", "tests.elastic", "--program", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "errors").open("wb") as errors:
        return subprocess.Popen(run, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def kill_one(folder: Path, rng: random.Random, after: int) -> int:
    """Kill one process some updates after ``after``, the last of the start before, and return how far it was."""
    deadline, wanted = time.monotonic() + LIMIT, after + rng.randint(1, 6)
    while (newest := last_step(folder)) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no update in {LIMIT:g} seconds\n{(folder / 'errors').read_text()[-3000:]}")
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.03))
    os.kill(int((folder / f"{rng.randrange(2)}.pid").read_text()), signal.SIGKILL)
    return newest


def last_step(folder: Path) -> int:
    found = files.checkpoints(folder / "run")
    return int(found[0].stem.removeprefix("step-")) if found else 0


def run(kills: int, folder: Path, seed: int = 0) -> Report:
    """Kill one of two processes so many times in one run, and compare its end with that of an undisturbed one."""
    began, rng = time.monotonic(), random.Random(seed)
    whole, disturbed = start(folder / "whole", 0), start(folder / "disturbed", kills)
    try:
        step = 0
        for _ in range(kills):
            step = kill_one(folder / "disturbed", rng, step)
        codes = [one.wait(LIMIT) for one in (whole, disturbed)]
    finally:
        for one in (whole, disturbed):
            if one.poll() is None:
                one.terminate()
                one.wait()
    if any(codes):
        raise RuntimeError((folder / "disturbed" / "errors").read_text()[-3000:])
    wanted, found = (files.read(folder / name / "final.pt") for name in ("whole", "disturbed"))
    equal = all(torch.equal(found[name], value) for name, value in wanted.items())
    return Report(kills, equal, time.monotonic() - began)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--program", type=Path)
    args = options.parse_args()
    if args.program:
        program(args.program)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = run(args.kills, Path(folder), args.seed)
    print(report)
    raise SystemExit(0 if report.equal else 1)


if __name__ == "__main__":
    main()
