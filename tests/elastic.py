"""Random kills of one process of a ``torchrun``: ``python -m tests.elastic --kills 10``.

``torchrun`` restarts all processes after each kill. At the end, the weights must equal those of an uninterrupted run. Each start
has a time limit, because no process may hang. Options: two launchers, which stand for two machines (``--machines 2``), sharded
weights (``--strategy fsdp``), and an error instead of a signal (``--how raise``).
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
# Seconds for one start of all processes. A busy machine takes long to import torch.
LIMIT = 180.0


@dataclasses.dataclass
class Report:
    """The result of ``run``."""

    kills: int
    equal: bool
    seconds: float


class SlowUpdates(Callback):
    """Slow down every update, and raise an error when the file ``order`` exists."""

    def __init__(self, order: Path):
        self.order = order

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)
        if self.order.exists():
            self.order.unlink()
            raise RuntimeError("a failure on demand")


def program(folder: Path, strategy: str) -> None:
    """Train as a user would, without any code for restarts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    model = Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], strategy=strategy)
    rank = model.strategy.group.rank
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    backup = BackupAndRestore(folder / "run", save_freq=1, delete_checkpoint=False)
    model.fit(blob_loader(shuffle=True), 20, callbacks=[backup, SlowUpdates(folder / f"{rank}.fail")], verbose=0)
    model.save_weights(folder / "final.pt")


def start(folder: Path, restarts: int, machines: int = 1, strategy: str = "ddp") -> list[subprocess.Popen[bytes]]:
    """Start one launcher of two processes, or two launchers of one process each."""
    folder.mkdir()
    launcher_options = ["--standalone", "--nproc-per-node=2"]
    if machines == 2:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        launcher_options = ["--nnodes=2", "--nproc-per-node=1", "--local-addr=127.0.0.1"]
        launcher_options += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic"]
    # With two launchers, the rendezvous of torch may need another round: a restarted process connects to one that the other
    # launcher is about to stop, and fails with "Connection reset by peer". That counts as a restart.
    restarts += 2 * (machines - 1)
    run = [sys.executable, "-m", "torch.distributed.run", *launcher_options, f"--max-restarts={restarts}"]
    run += ["-m", "tests.elastic", "--program", str(folder), "--strategy", strategy]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if machines == 2:
        # The guide on distributed training recommends it.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with (folder / "errors").open("ab") as errors:
        return [
            subprocess.Popen(run, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            for _ in range(machines)
        ]


def stop_random_rank(folder: Path, rng: random.Random, after: int, how: str = "kill") -> int:
    """Stop one process some updates after the step ``after``, and return the step of its newest checkpoint."""
    deadline, target = time.monotonic() + LIMIT, after + rng.randint(1, 6)
    while (newest := last_step(folder)) < target:
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
    """Return the step of the newest checkpoint, or 0."""
    paths = rotation.list_checkpoints(folder / "run")
    return int(paths[0].stem.removeprefix("step-")) if paths else 0


def run(kills: int, folder: Path, seed: int = 0, machines: int = 1, strategy: str = "ddp", how: str = "kill") -> Report:
    """Stop one of two processes ``kills`` times in one run, and compare the weights with an uninterrupted run."""
    run_start, rng = time.monotonic(), random.Random(seed)
    uninterrupted = start(folder / "uninterrupted", 0, 1, strategy)
    interrupted = start(folder / "interrupted", kills, machines, strategy)
    try:
        step = 0
        for _ in range(kills):
            step = stop_random_rank(folder / "interrupted", rng, step, how)
        codes = [process.wait(LIMIT) for process in (*uninterrupted, *interrupted)]
    finally:
        for process in (*uninterrupted, *interrupted):
            if process.poll() is None:
                process.terminate()
                process.wait()
    if any(codes):
        raise RuntimeError((folder / "interrupted" / "errors").read_text()[-3000:])
    expected, weights = (files.read(folder / name / "final.pt") for name in ("uninterrupted", "interrupted"))
    equal = all(torch.equal(weights[name], value) for name, value in expected.items())
    return Report(kills, equal, time.monotonic() - run_start)


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
