"""Kill one process of a ``torchrun`` at random moments, which starts all of them again: ``python -m tests.elastic --kills 10``.

In the end the weights must be those of an undisturbed run. Nothing may hang: there is a time limit for each start. The processes
can be those of two launchers, which stand for two machines (``--machines 2``), can keep a part of the weights each
(``--strategy fsdp``), and can fail by an error instead of a signal (``--how raise``).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import BackupAndRestore, Callback
from easytorch.checkpoint import files, rotation
from tests.loops import blob_loader

ROOT = Path(__file__).parents[1]
LIMIT = 180.0  # seconds for one start of all processes; a busy machine takes long to import torch


@dataclasses.dataclass
class Report:
    kills: int
    equal: bool
    seconds: float


class Slowly(Callback):
    """Gives those who kill the time to do it, and fails if it is told to."""

    def __init__(self, order: Path):
        self.order = order

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)
        if self.order.exists():
            self.order.unlink()
            raise RuntimeError("told to fail")


def program(folder: Path, strategy: str) -> None:
    """Train, as a user would: nothing in here knows that it may be killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    model = Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], strategy=strategy)
    rank = model.strategy.group.rank
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    backup = BackupAndRestore(folder / "run", save_freq=1, delete_checkpoint=False)
    model.fit(blob_loader(shuffle=True), 20, callbacks=[backup, Slowly(folder / f"{rank}.fail")], verbose=0)
    model.save_weights(folder / "final.pt")


def start(folder: Path, restarts: int, machines: int = 1, strategy: str = "ddp") -> list[subprocess.Popen[bytes]]:
    """Start two processes by a launcher, or one by each of two launchers."""
    folder.mkdir()
    place = ["--standalone", "--nproc-per-node=2"]
    if machines == 2:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        place = ["--nnodes=2", "--nproc-per-node=1", "--local-addr=127.0.0.1"]
        place += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic"]
    run = [sys.executable, "-m", "torch.distributed.run", *place, f"--max-restarts={restarts}"]
    run += ["-m", "tests.elastic", "--program", str(folder), "--strategy", strategy]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if machines == 2:
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as the guide says
    with (folder / "errors").open("ab") as errors:
        return [
            subprocess.Popen(run, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            for _ in range(machines)
        ]


def end_one(folder: Path, rng: random.Random, after: int, how: str = "kill") -> int:
    """Kill one process, or have it fail, some updates after ``after``, the last of the start before; return how far it was."""
    deadline, wanted = time.monotonic() + LIMIT, after + rng.randint(1, 6)
    while (newest := last_step(folder)) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no update in {LIMIT:g} seconds\n{(folder / 'errors').read_text()[-3000:]}")
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.03))
    rank = rng.randrange(2)
    if how == "raise":
        (folder / f"{rank}.fail").touch()
    else:
        os.kill(int((folder / f"{rank}.pid").read_text()), signal.SIGKILL)
    return newest


def last_step(folder: Path) -> int:
    found = rotation.list_checkpoints(folder / "run")
    return int(found[0].stem.removeprefix("step-")) if found else 0


def run(kills: int, folder: Path, seed: int = 0, machines: int = 1, strategy: str = "ddp", how: str = "kill") -> Report:
    """End one of two processes so many times in one run, and compare its end with that of an undisturbed one."""
    began, rng = time.monotonic(), random.Random(seed)
    whole = start(folder / "whole", 0, 1, strategy)
    disturbed = start(folder / "disturbed", kills, machines, strategy)
    try:
        step = 0
        for _ in range(kills):
            step = end_one(folder / "disturbed", rng, step, how)
        codes = [one.wait(LIMIT) for one in (*whole, *disturbed)]
    finally:
        for one in (*whole, *disturbed):
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
    options.add_argument("--machines", type=int, choices=[1, 2], default=1)
    options.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    options.add_argument("--how", choices=["kill", "raise"], default="kill")
    options.add_argument("--program", type=Path)
    args = options.parse_args()
    if args.program:
        program(args.program, args.strategy)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = run(args.kills, Path(folder), args.seed, args.machines, args.strategy, args.how)
    print(report)
    raise SystemExit(0 if report.equal else 1)


if __name__ == "__main__":
    main()
