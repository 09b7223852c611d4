"""Accuracy of example programs with the learning rate of find_lr, compared with the best rate of a grid.

    python -m benchmarks.learning_rates [--seeds 3] [--only quickstart,fashion_cnn] [--json FILE]

Each program of ``examples/`` runs up to a call of ``fit``, with ``--quick`` and a seed. Then its model is trained with each rate
of a grid, and with the suggestions of ``find_lr()`` and ``find_lr(runs=0)``. The table has the mean accuracy over the
seeds, on the test data of the program. A grid that is chosen by this accuracy is an upper bound.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

import easytorch

EXAMPLES = Path(__file__).parents[1] / "examples"
ADAM = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SGD = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


class Program(NamedTuple):
    """An example.

    Args:
        rates: The rates of the grid.
        fit: Which call of ``fit`` is measured, from 0.
        metric: The name of the accuracy.
        test: Returns the test data, given the globals of the program; None for the validation data of ``fit``.
        arguments: The arguments of the program.
    """

    rates: tuple[float, ...] = ADAM
    fit: int = 0
    metric: str = "accuracy"
    test: Callable[[dict[str, Any]], Any] | None = None
    arguments: tuple[str, ...] = ("--quick",)


PROGRAMS = {
    "quickstart": Program(test=lambda names: (names["x_test"], names["y_test"]), arguments=()),
    "tensors_to_network": Program(fit=1, test=lambda names: names["test"]),
    "identify_the_digits": Program(),
    "multi_input": Program(metric="malignant_accuracy"),
    "batchnorm": Program(rates=SGD, fit=1),
    "fashion_cnn": Program(rates=SGD),
}


class Captured(BaseException):
    """Ends a program at a call of ``fit``."""


def capture(name: str, seed: int) -> tuple[easytorch.Model, tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Run an example up to a call of ``fit``; return the model, the arguments of ``fit``, and the globals."""
    program, calls = PROGRAMS[name], []

    def record(model: easytorch.Model, *args: Any, **options: Any) -> Any:
        calls.append((model, args, options))
        if len(calls) > program.fit:
            raise Captured
        return {"val_accuracy": [0.0]}

    source = (EXAMPLES / f"{name}.py").read_text().replace("torch.manual_seed(0)", f"torch.manual_seed({seed})")
    names: dict[str, Any] = {"__name__": "__main__", "__doc__": name}
    arguments = [*program.arguments, *(["--seed", str(seed)] if "--seed" in source else [])]
    with (
        contextlib.suppress(Captured),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.object(easytorch.Model, "fit", record),
        mock.patch.object(easytorch.Model, "evaluate", return_value={}),
    ):
        exec(compile(source, name, "exec"), names)
    return (*calls[-1], names)


def train(name: str, seed: int, rate: float) -> float:
    """Return the accuracy of an example that is trained with ``rate``."""
    program = PROGRAMS[name]
    model, args, options, names = capture(name, seed)
    model.optimizer.lr = rate
    torch.manual_seed(seed)
    history = model.fit(*args, **{**options, "verbose": 0})
    if program.test is None:
        return history[f"val_{program.metric}"][-1]
    return model.evaluate(*program.test(names), verbose=0)[program.metric]


def suggest(name: str, seed: int, runs: int) -> float:
    """Return the rate that ``find_lr`` suggests for an example."""
    model, args, options, _ = capture(name, seed)
    torch.manual_seed(100 + seed)
    return model.find_lr(*args[:2], runs=runs, batch_size=options.get("batch_size"), verbose=0).suggestion


def measure(name: str, seeds: int) -> dict[str, Any]:
    """Return the rates and the accuracies of an example for each seed."""
    grid = {rate: [train(name, seed, rate) for seed in range(seeds)] for rate in PROGRAMS[name].rates}
    rates = {runs: [suggest(name, seed, runs) for seed in range(seeds)] for runs in (6, 0)}
    found = {runs: [train(name, seed, rate) for seed, rate in enumerate(rates[runs])] for runs in rates}
    return {"grid": grid, "rates": rates, "found": found}


def describe(name: str, result: dict[str, Any]) -> str:
    """Return a row of the table in Markdown."""
    means = {rate: statistics.mean(scores) for rate, scores in result["grid"].items()}
    tuned = max(means, key=lambda rate: means[rate])
    cells = [f"`{name}`", f"{float(tuned):g}", f"{means[tuned]:.1%}"]
    for runs in result["found"]:
        rate, score = statistics.median(result["rates"][runs]), statistics.mean(result["found"][runs])
        cells += [f"{rate:.2g}", f"{100 * (score - means[tuned]):+.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", type=lambda text: text.split(","), default=list(PROGRAMS))
    options.add_argument("--json", metavar="FILE", help="write all numbers to a file")
    args = options.parse_args()
    results = {}
    print("| program | best rate of the grid | accuracy | `find_lr` | points | `find_lr`, `runs=0` | points |")
    print("|---|---|---|---|---|---|---|")
    for name in args.only:
        results[name] = measure(name, args.seeds)
        print(describe(name, results[name]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
