"""Random kills of a training process: ``python -m tests.chaos --kills 200``.

All processes are forked from a process that has torch loaded, so that 200 of them take seconds. Each of them runs the same
program from its first line. It knows of the other processes only the files in the folder. At the end, the weights must equal
those of an uninterrupted run, and no file may be damaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easytorch import Every, FileError, Model
from easytorch.callbacks import EMA, BackupAndRestore, Callback, EarlyStopping, ModelCheckpoint
from easytorch.checkpoint import files, rotation
from tests.common_gan import OPTIMIZERS, Pair, PenaltyGAN, loader
from tests.loops import blob_loader

EPOCHS = 12
Program = Callable[[Path | None], dict[str, torch.Tensor]]


@dataclasses.dataclass
class Report:
    """The counts of ``run``."""

    kills: int
    runs: int
    damaged: int
    stray: int
    equal: bool
    seconds: float


def program(folder: Path | None, in_background: bool = False) -> dict[str, torch.Tensor]:
    """Train with a backup in ``folder``, and return the weights.

    In the background, the best model and the newest two are written too, by the same thread.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3))
    model = Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "cross_entropy")
    backup: list[Callback] = []
    if folder is not None:
        options = {"save_in_background": in_background}
        backup.append(BackupAndRestore(folder, save_freq=3, delete_checkpoint=False, **options))
    if folder is not None and in_background:
        newest = ModelCheckpoint(str(folder / "model-{epoch}.pt"), keep=2, **options)
        best = ModelCheckpoint(str(folder / "best.pt"), "loss", save_best_only=True, **options)
        backup += [newest, best]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(blob_loader(shuffle=True), EPOCHS, callbacks=[EMA(0.9), *backup], verbose=0)
    return net.state_dict()


def frequent_program(folder: Path | None) -> dict[str, torch.Tensor]:
    """Validate on two data sets after every second update, and return the weights and the validation losses."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3))
    model = Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "cross_entropy")
    callbacks: list[Callback] = [EMA(0.9), EarlyStopping("val_shuffled_loss", patience=99, restore_best_weights=True)]
    if folder is not None:
        callbacks.append(BackupAndRestore(folder, save_freq=3, delete_checkpoint=False))
    data_sets = {"shuffled": blob_loader(shuffle=True), "in_order": blob_loader()}
    options: dict[str, Any] = {"validation_data": data_sets, "validation_freq": Every(updates=2)}
    model.fit(blob_loader(shuffle=True), EPOCHS, callbacks=callbacks, verbose=0, **options)
    losses = [row["val_shuffled_loss"] for row in model.history.validations]
    return {**net.state_dict(), "validations": torch.tensor(losses, dtype=torch.float64)}


def gan_program(folder: Path | None) -> dict[str, torch.Tensor]:
    """Train a GAN, with a step for each of two optimizers, with a backup in ``folder``, and return the weights."""
    torch.set_num_threads(1)
    pair = Pair()
    options = {"update_every": {"generator": 3}, "scheduler": {"generator": "cosine"}}
    model = PenaltyGAN(pair, device="cpu").compile(OPTIMIZERS, **options)
    backup = [] if folder is None else [BackupAndRestore(folder, save_freq=2, delete_checkpoint=False)]
    torch.manual_seed(0)
    model.fit(loader(shuffle=True), EPOCHS, callbacks=[EMA(0.9), *backup], verbose=0)
    return pair.state_dict()


PROGRAMS = {
    "classifier": program,
    "background": functools.partial(program, in_background=True),
    "gan": gan_program,
    "frequent": frequent_program,
}


def fork_program(folder: Path, program: Program) -> int:
    """Run ``program`` in a forked process, and return the process id."""
    process = os.fork()
    if process:
        return process
    # Hide hundreds of lines "Stopping after this update".
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        files.write(folder / "final.pt", program(folder))
        os._exit(0)
    except SystemExit as exit_error:
        os._exit(int(exit_error.code or 0))
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)


def run(
    kills: int,
    folder: Path,
    seed: int = 0,
    signals: tuple[int, ...] = (signal.SIGKILL,),
    program: Program = program,
) -> Report:
    """Kill a process ``kills`` times, in as many runs as needed, and compare each result with an uninterrupted run."""
    run_start, rng = time.monotonic(), random.Random(seed)
    expected = program(None)
    program_start = time.monotonic()
    program(Path(tempfile.mkdtemp(dir=folder)))
    length = time.monotonic() - program_start
    report = Report(0, 0, 0, 0, True, 0.0)
    while report.kills < kills:
        report.runs += 1
        run_folder = folder / f"run-{report.runs}"
        run_folder.mkdir()
        while True:
            process = fork_program(run_folder, program)
            deadline = time.monotonic() + rng.uniform(0, 0.8 * length)
            while time.monotonic() < deadline and os.waitpid(process, os.WNOHANG)[0] == 0:
                time.sleep(0.0005)
            try:
                os.kill(process, rng.choice(signals))
                status = os.waitpid(process, 0)[1]
            except (ProcessLookupError, ChildProcessError):  # it has exited already
                break
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 and (run_folder / "final.pt").exists():
                break
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 130, 143):
                raise RuntimeError(f"a run failed with status {os.WEXITSTATUS(status)}")
            report.kills += 1
            for path in [
                *rotation.list_checkpoints(run_folder),
                *run_folder.glob("model-*.pt"),
                *run_folder.glob("best.pt"),
            ]:
                try:
                    files.read_model(path)
                except FileError:
                    report.damaged += 1
        report.stray += len(list(run_folder.glob(".step-*")))
        if program is PROGRAMS["background"]:
            names = sorted(path.name for path in run_folder.glob("model-*.pt"))
            report.stray += names != [f"model-{epoch}.pt" for epoch in (EPOCHS - 1, EPOCHS)]
            report.damaged += not (run_folder / "best.pt").exists()
        weights = files.read(run_folder / "final.pt")
        report.equal &= all(torch.equal(weights[name], value) for name, value in expected.items())
    report.seconds = time.monotonic() - run_start
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--signal", choices=["SIGKILL", "SIGTERM", "SIGINT"], default="SIGKILL")
    options.add_argument("--program", choices=PROGRAMS, default="classifier")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(args.kills, Path(folder), args.seed, (getattr(signal, args.signal),), PROGRAMS[args.program])
    print(report)
    raise SystemExit(0 if report.equal and not report.damaged else 1)


if __name__ == "__main__":
    main()
