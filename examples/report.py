"""Run every example in a process of its own, and write what it reaches beside what its article reaches.

    python -m examples.report [--quick] [--only NAME ...] [--seeds 0,1,2] [--out docs/results.md] [--plots FOLDER]

Each example prints lines ``Result: test accuracy = 0.9912``; ``EXAMPLES`` tells which of them its article knows. A run that is
finished is kept in the cache until the code or the options of the example change, so a report that was stopped goes on where it
was. The examples in ``ONE_SEED`` are run with the first seed only. With ``--quick`` every example is run once on little data,
and only the terminal is written to. The exit status is 1 if an example fails, or does not print what is asked of it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import math
import operator
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from easytorch.callbacks.progress import format_duration

FOLDER = Path(__file__).parent
COLUMNS = ("example", "article", "figure", "asked", "ours", "met", "time", "parameters", "lines")
ABOUT = functools.partial(math.isclose, abs_tol=0.03)
SIGNS = {"≥": operator.ge, "≤": operator.le, "=": operator.eq, "≈": ABOUT}
EXAMPLES = {  # the article, and its figures; where it has none, those of its program as it stands
    "quickstart": ["-"],
    "intro_cnn": ["000", "test accuracy ≥ 0.9906", "parameters = 42378"],
    "tensors_to_network": ["001", "neuron = 0.3030", "parameters = 850"],
    "datasets": ["001, part 2"],
    "tensor_shapes": ["001, part 3", "parameters = 62006"],
    "feature_maps": ["001, part 4", "test accuracy ≥ 0.9904", "test loss ≤ 0.0281"],
    "tune_with_optuna": ["001, part 5", "validation accuracy ≥ 0.9892"],
    "cross_validation": ["001, part 6", "mean test accuracy ≥ 0.9915"],
    "autoencoder": ["001, part 7", "test mse ≤ 0.02682"],
    "denoising": ["001, part 8", "test mse ≤ 0.02681"],
    "vae": ["001, part 9", "validation loss ≤ 31.01"],
    "skorch_peer": ["001, skorch", "test accuracy ≥ 0.9909", "cross-validated accuracy ≥ 0.987", "parameters = 92208"],
    "seven_cells": ["002", "test accuracy with sgd ≥ 0.857", "test accuracy with adam ≥ 0.97", "parameters = 109386"],
    "numpy_to_pytorch": ["003", "mse of torch with fit ≤ 0.0012", "f(4) ≈ 8.0"],
    "identify_the_digits": ["003", "training accuracy ≥ 0.8779", "validation accuracy ≥ 0.8675", "parameters = 397510"],
    "fashion_cnn": ["004", "test accuracy ≥ 0.8482", "test loss ≤ 0.4410", "parameters = 48884"],
    "batchnorm": ["004, sibling", "test accuracy without ≥ 0.9849", "test accuracy with ≥ 0.9939"],
    "regularization": [
        "004, sibling", "test accuracy plain ≥ 0.9858", "test accuracy dropout ≥ 0.9899", "test accuracy l1 ≥ 0.9881",
        "test accuracy l2 ≥ 0.9858", "parameters = 10790",
    ],
    "transfer_learning": ["004, sibling"],
    "gan": ["-"],
    "transformer_text": ["-"],
    "multi_input": ["-"],
    "huggingface_model": ["-"],
    "many_processes": ["-"],
}  # fmt: skip

BF16 = ["--precision", "bf16"]
OPTIONS = {
    "intro_cnn": BF16,
    "skorch_peer": BF16,
    "batchnorm": BF16,
    "regularization": BF16,
}  # of full runs, which take half an hour and more on a processor otherwise
ONE_SEED = {"tune_with_optuna", "cross_validation", "vae", "transformer_text"}  # with many trainings, or a long one


def asked(name: str) -> dict[str, tuple[str, str]]:
    """Return the sign and the number that is asked of each figure of an example."""
    return {figure: (sign, number) for figure, sign, number in (text.rsplit(" ", 2) for text in EXAMPLES[name][1:])}


def run(name: str, seed: int, quick: bool, cache: Path, plots: Path | None = None) -> dict[str, Any]:
    """Return ``results``, ``seconds`` and ``error`` of one run, from the cache if the example has not changed since."""
    path, kept = FOLDER / f"{name}.py", cache / f"{name}-{'quick' if quick else 'full'}-{seed}.json"
    options = ["--seed", str(seed), *(["--quick"] if quick else OPTIONS.get(name, []))]
    found, content = json.loads(kept.read_text()) if kept.exists() else {}, fingerprint(path.read_text(), options)
    if found.get("content") != content:
        if plots and '"--plot"' in path.read_text():
            options += ["--plot", str(plots.resolve() / f"{name.replace('_', '-')}.png")]
        found = {"content": content} | execute(path, options)
        if not found["error"]:
            cache.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_text(json.dumps(found, indent=1))
            kept.with_suffix(".tmp").replace(kept)
    missing = asked(name).keys() - found["results"].keys()
    if missing and not found["error"]:
        found["error"] = f"It did not print {', '.join(sorted(missing))}."
    return found


def fingerprint(source: str, options: list[str]) -> str:
    """Return a hash of what a program does: neither its comments nor its docstring change it."""
    tree = ast.parse(source)
    tree.body = tree.body[ast.get_docstring(tree) is not None :]
    return hashlib.sha256(json.dumps([ast.dump(tree), *options]).encode()).hexdigest()


def execute(path: Path, options: list[str]) -> dict[str, Any]:
    """Run a program with warnings as errors, in a folder that is thrown away."""
    environment = os.environ | {
        "EASYTORCH_DATA": str(Path(os.environ.get("EASYTORCH_DATA", "data")).resolve()),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
    }
    command, began = [sys.executable, "-W", "error", str(path), *options], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    results = dict(re.findall(r"^Result: (.+) = (\S+)$", done.stdout, re.M))
    error = done.stderr.strip() or f"It ended with the status {done.returncode}." if done.returncode else ""
    return {"results": results, "seconds": time.perf_counter() - began, "error": error}


def run_all(
    names: list[str], seeds: list[int], quick: bool, cache: Path, plots: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each example, one after the other, with a bar; the first seed draws the figures."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(names) * len(seeds))
        for i, name in enumerate(names):
            for seed in seeds[:1] if name in ONE_SEED else seeds:
                progress.update(task, description=f"{name}, seed {seed}", completed=i * len(seeds) + len(runs[name]))
                runs[name].append(found := run(name, seed, quick, cache, None if runs[name] else plots))
                line = found["error"].splitlines()[-1] if found["error"] else format_duration(found["seconds"])
                progress.console.print(f"{name}, seed {seed}: {line}", markup=False, highlight=False)
                if found["error"]:
                    break
        progress.update(task, completed=len(names) * len(seeds))
    return runs


def rows(name: str, runs: list[dict[str, Any]], quick: bool) -> list[tuple[str, ...]]:
    """Return the table's rows of one example: one for each figure, what holds for all of them in the first."""
    wanted, table = asked(name), []
    printed = {figure: [one["results"][figure] for one in runs] for figure in runs[0]["results"]}
    sizes = dict.fromkeys(
        f"{int(values[0]):,}" for figure, values in printed.items() if figure.startswith("parameters")
    )
    seconds = format_duration(statistics.mean(one["seconds"] for one in runs))
    lines = str(lines_of_code((FOLDER / f"{name}.py").read_text()))
    head, tail = (
        (f"`{' '.join([name, *OPTIONS.get(name, [])])}`", EXAMPLES[name][0]),
        (seconds, " / ".join(sizes), lines),
    )
    for figure, values in printed.items():
        if figure in wanted or not figure.startswith("parameters"):
            sign, number = wanted.get(figure, ("", ""))
            mean, spread = mean_and_spread(values)
            met = "" if quick or not sign else "yes" if SIGNS[sign](float(mean), float(number)) else "**no**"
            table.append((*head, figure, f"{sign} {number}", mean + spread, met, *tail))
            head, tail = ("", ""), ("", "", "")
    return table or [(*head, "", "", "", "", *tail)]


def mean_and_spread(values: list[str]) -> tuple[str, str]:
    """Return the mean with the decimals of ``values``, and the standard deviation of those that differ."""
    numbers, decimals = [float(value) for value in values], len(values[0].partition(".")[2])
    form = ".1e" if any("e" in value for value in values) else f".{decimals}f"
    spread = f" ± {statistics.stdev(numbers):{form}}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(numbers):{form}}", spread


def lines_of_code(source: str) -> int:
    """Return how many lines of ``source`` are neither empty nor comments nor its docstring."""
    body = source.split('"""', 2)[-1].splitlines()
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in body)


def page(table: list[tuple[str, ...]], seeds: list[int]) -> str:
    """Return the page with ``table``."""
    cores = {1: "One core", 2: "Two cores"}.get(torch.get_num_threads(), f"{torch.get_num_threads()} cores")
    place = "One accelerator" if torch.accelerator.is_available() else f"{cores} of a server CPU"
    heavy = ", ".join(f"`{name}`" for name in EXAMPLES if name in ONE_SEED)
    single = f"; of {heavy} seed {seeds[0]} alone" if heavy else ""
    body = "\n".join(f"| {' | '.join(row)} |" for row in [COLUMNS, ("---",) * len(COLUMNS), *table])
    return f"""# Results

Every example beside the article it reproduces, written by `python -m examples.report`.

- **asked**: the article's number; where the article has none, what its program reaches when it is run as it stands.
- **ours**: the mean over the seeds {", ".join(map(str, seeds))} ± the standard deviation{single}.
- **met**: whether that mean, as it is printed, reaches the number.
- **time**: a whole run of the example, from its start to its end, data and figures of comparison included, and whatever else the machine did meanwhile. {place}, torch {torch.__version__.partition("+")[0]}.
- **lines**: of code, without empty lines, comments and the docstring.

{body}
"""  # noqa: E501


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="run each example once, on little data; write no page")
    options.add_argument(
        "--out", type=Path, help="the page to write, docs/results.md; with --only none, unless it is named"
    )
    options.add_argument("--plots", type=Path, metavar="FOLDER", help="write the figures of those that run there")
    options.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    options.add_argument("--only", nargs="+", metavar="NAME", choices=list(EXAMPLES), help="run these examples alone")
    options.add_argument("--cache", type=Path, default=Path(".report"), help="the folder that keeps finished runs")
    args = options.parse_args(arguments)
    seeds = args.seeds[:1] if args.quick else args.seeds
    runs = run_all(args.only or list(EXAMPLES), seeds, args.quick, args.cache, args.plots)
    failed = {name: found["error"] for name, some in runs.items() for found in some if found["error"]}
    table = [row for name, some in runs.items() if name not in failed for row in rows(name, some, args.quick)]
    shown = Table(*COLUMNS)
    for row in table:
        shown.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(shown)
    for name, error in failed.items():
        console.print(f"\n{name} failed:\n{error}", markup=False, highlight=False)
    out = args.out or (None if args.only else Path("docs/results.md"))
    if out and not failed and not args.quick:
        out.write_text(page(table, args.seeds))
        console.print(f"Written: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
