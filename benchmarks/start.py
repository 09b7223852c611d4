"""Start of a program and its files: easytorch next to plain torch.

    python -m benchmarks.start --pin 1 --json start.json --markdown start.md

``compile``, the first step, resume of a run with a long history, and saving and loading of a large model. Each is
measured in separate processes, in turns. With ``--pin`` the seconds of what only computes are CPU seconds; those of files
are wall-clock seconds.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import ROOT, get_processor, get_revision
from benchmarks.report import print_table

EPOCHS = 10_000
LAYERS = 12


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--task", help=argparse.SUPPRESS)  # of a process that this program starts
    options.add_argument("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)
    options.add_argument(
        "--only", type=lambda text: text.split(","), default=[*TASKS][1:], help=", ".join([*TASKS][1:])
    )
    options.add_argument("--rounds", type=int, default=5, help="measurements of each row")
    options.add_argument(
        "--width", type=int, default=4560, help="width of the 12 linear layers: 4560 for 1 GB of weights"
    )
    options.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the history")
    options.add_argument("--pin", type=int, metavar="CPU", help="run on this core only")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    options.add_argument("--markdown", type=Path, metavar="FILE", help="write the table in this file")
    args = options.parse_args()
    if args.pin is not None:
        os.sched_setaffinity(0, {args.pin})
    if args.task:
        name, who = args.task.split(":")
        print(json.dumps(TASKS[name][who](args)))
        return
    results = measure_all(args)
    print_results(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.markdown:
        with args.markdown.open("w") as file, contextlib.redirect_stdout(file):
            print_results(results)


def measure_all(args: Any) -> dict[str, Any]:
    """Return the median seconds of each task, with torch and with easytorch."""
    compileall.compile_dir(ROOT / "easytorch", quiet=1)  # like an installed package
    sizes = {
        "epochs": args.epochs,
        "gigabytes": 4 * LAYERS * args.width * (args.width + 1) / 1e9,
        "rounds": args.rounds,
    }
    results: dict[str, Any] = {"machine": get_processor(), "easytorch": get_revision(), **sizes, "seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for preparation in ("history", "weights"):
            run_task(f"prepare:{preparation}", args, folder)
        for name in args.only:
            seconds: dict[str, list[float]] = {who: [] for who in TASKS[name]}
            for _ in range(args.rounds):
                for who, measured in seconds.items():
                    measured.append(run_task(f"{name}:{who}", args, folder))
            results["seconds"][name] = {who: statistics.median(measured) for who, measured in seconds.items()}
            print(f"{name}: {results['seconds'][name]}", flush=True)
    return results


def run_task(task: str, args: Any, folder: str) -> float:
    """Return the seconds that a separate process measured."""
    command = [sys.executable, "-m", "benchmarks.start", "--task", task, "--folder", folder]
    command += ["--width", str(args.width), "--epochs", str(args.epochs)]
    command += [] if args.pin is None else ["--pin", str(args.pin)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{task} failed: {process.stderr[-2000:]}")
    return float(json.loads(process.stdout.splitlines()[-1]))


def print_results(results: dict[str, Any]) -> None:
    print(f"\n{results['machine']}; easytorch {results['easytorch']}.\n")
    print_table(make_rows(results))


def make_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table."""
    rows = [["", "plain torch, s", "easytorch, s", "difference, s"]]
    for name, seconds in results["seconds"].items():
        title = TITLES.get(name, name).format(**results)
        rows.append(
            [
                title,
                f"{seconds['torch']:.3f}",
                f"{seconds['easytorch']:.3f}",
                f"{seconds['easytorch'] - seconds['torch']:+.3f}",
            ]
        )
    return rows


# Tasks


def measure(run: Callable[[], Any], args: Any, *, waits: bool = False) -> float:
    """Return the seconds of ``run``; of a clock on the wall if it ``waits`` for a disk."""
    clock = time.perf_counter if waits or args.pin is None else time.process_time
    start = clock()
    run()
    return clock() - start


def make_module() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def compile_torch(args: Any) -> float:
    import torch

    module = make_module()

    def run() -> None:
        torch.optim.Adam(module.parameters(), fused=True)
        torch.nn.CrossEntropyLoss()

    return measure(run, args)


def compile_easytorch(args: Any) -> float:
    from easytorch import Model

    module = make_module()
    return measure(lambda: Model(module, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"]), args)


def step_with_torch(args: Any) -> float:
    import torch

    module, loss = make_module(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    x, y = torch.randn(64, 784), torch.randint(10, (64,))

    def run() -> None:
        for inputs, targets in torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64):
            loss(module(inputs), targets).backward()
            optimizer.step()

    return measure(run, args)


def step_with_easytorch(args: Any) -> float:
    import torch

    from easytorch import Model

    model = Model(make_module(), device="cpu").compile("adam", "cross_entropy")
    x, y = torch.randn(64, 784), torch.randint(10, (64,))
    return measure(lambda: model.fit(x, y, batch_size=64, verbose=0), args)


def make_run() -> tuple[Any, Any]:
    """Return a small model and its data."""
    import torch

    from easytorch import Model

    torch.manual_seed(0)
    model = Model(torch.nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    return model, [(torch.randn(4, 8), torch.randint(3, (4,)))]


def prepare_history(args: Any) -> float:
    """Stop a run in its last epoch but one, after which its checkpoint has a long history."""
    import torch

    from easytorch.callbacks import BackupAndRestore, Every, LambdaCallback

    def stop(epoch: int, logs: Any) -> None:
        if epoch == args.epochs - 1:
            raise KeyboardInterrupt

    model, data = make_run()
    backup = BackupAndRestore(args.folder / "run", Every(epochs=args.epochs - 1), minutes=None)
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(data, epochs=args.epochs, verbose=0, callbacks=[backup, LambdaCallback(on_epoch_begin=stop)])
    torch.save(
        {
            "module": model.module.state_dict(),
            "optimizer": model.optimizer.state_dict(),
            "history": {name: list(values) for name, values in model.history.items()},
        },
        args.folder / "run.torch.pt",
    )
    return 0.0


def resume_with_torch(args: Any) -> float:
    import torch

    module = torch.nn.Linear(8, 3)
    optimizer, loss = torch.optim.Adam(module.parameters(), fused=True), torch.nn.CrossEntropyLoss()
    x, y = torch.randn(4, 8), torch.randint(3, (4,))

    def run() -> None:
        state = torch.load(args.folder / "run.torch.pt")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        loss(module(x), y).backward()
        optimizer.step()
        torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(), "history": state["history"]},
                   args.folder / "again.torch.pt")  # fmt: skip

    return measure(run, args)


def resume_with_easytorch(args: Any) -> float:
    import shutil

    from easytorch.callbacks import BackupAndRestore

    model, data = make_run()
    shutil.copytree(args.folder / "run", args.folder / "again", dirs_exist_ok=True)
    backup = BackupAndRestore(args.folder / "again", minutes=None, delete_checkpoint=False)
    seconds = measure(lambda: model.fit(data, epochs=args.epochs, verbose=0, callbacks=[backup]), args)
    if len(model.history.epoch) != args.epochs:
        raise RuntimeError(f"expected a history of {args.epochs} epochs, received {len(model.history.epoch)}")
    shutil.rmtree(args.folder / "again")
    return seconds


def make_large(args: Any) -> Any:
    """Return a module of 12 square layers."""
    from torch import nn

    return nn.Sequential(*(nn.Linear(args.width, args.width) for _ in range(LAYERS)))


def make_large_model(args: Any) -> Any:
    from easytorch import Model

    return Model(make_large(args), device="cpu").compile("sgd", "mse")


def prepare_weights(args: Any) -> float:
    import torch

    model = make_large_model(args)
    model.save(args.folder / "large.pt")
    torch.save(model.module.state_dict(), args.folder / "large.torch.pt")
    return 0.0


def save_with_torch(args: Any) -> float:
    import torch

    module = make_large(args)
    return measure(lambda: torch.save(module.state_dict(), args.folder / "again.pt"), args, waits=True)


def save_with_easytorch(args: Any) -> float:
    model = make_large_model(args)
    return measure(lambda: model.save(args.folder / "again.pt"), args, waits=True)


def load_with_torch(args: Any) -> float:
    import torch

    module = make_large(args)
    return measure(lambda: module.load_state_dict(torch.load(args.folder / "large.torch.pt")), args, waits=True)


def load_with_easytorch(args: Any) -> float:
    model = make_large_model(args)
    return measure(lambda: model.load(args.folder / "large.pt"), args, waits=True)


def wait_with_easytorch(args: Any) -> float:
    """Return the time that training stands still for a checkpoint that is written in the background."""
    import torch

    from easytorch.callbacks import ModelCheckpoint

    class Timed(ModelCheckpoint):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            start = time.perf_counter()
            super().on_epoch_end(epoch, logs)
            waits.append(time.perf_counter() - start)

    waits: list[float] = []
    model, rows = make_large_model(args), torch.randn(8, args.width)
    # The first save allocates the memory of the copy. The second follows when the first has been written.
    callback = Timed(args.folder / "background.pt", save_weights_only=True, save_in_background=True)
    steps = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, rows), 8)
    model.fit(steps, epochs=3, verbose=0, callbacks=[callback, wait_between_epochs()])
    return statistics.median(waits[1:])


def wait_between_epochs() -> Any:
    """Return a callback that gives the thread time to write, as a long epoch would."""
    from easytorch.callbacks import LambdaCallback

    return LambdaCallback(on_epoch_begin=lambda epoch, logs: time.sleep(8.0 if epoch else 0.0))


TITLES = {
    "resume": "resume, with a history of {epochs:,} epochs",
    "save": "save, {gigabytes:.2f} GB",
    "load": "load, {gigabytes:.2f} GB",
    "checkpoint": "wait of training for a checkpoint, {gigabytes:.2f} GB",
}
TASKS: dict[str, dict[str, Callable[[Any], float]]] = {
    "prepare": {"history": prepare_history, "weights": prepare_weights},
    "compile": {"torch": compile_torch, "easytorch": compile_easytorch},
    "first step": {"torch": step_with_torch, "easytorch": step_with_easytorch},
    "resume": {"torch": resume_with_torch, "easytorch": resume_with_easytorch},
    "save": {"torch": save_with_torch, "easytorch": save_with_easytorch},
    "load": {"torch": load_with_torch, "easytorch": load_with_easytorch},
    "checkpoint": {"torch": save_with_torch, "easytorch": wait_with_easytorch},
}


if __name__ == "__main__":
    main()
