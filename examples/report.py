"""Results of all examples, compared with the results of their articles.

    python -m examples.report [--quick] [--only NAME ...] [--seeds 0,1,2] [--out docs/results.md] [--plots FOLDER]

Each example runs in a separate process and prints lines such as ``Result: test accuracy = 0.9912``. ``EXAMPLES`` contains the
figures of its article. The cache stores each finished run until the code or the options of the example change, so a
report continues after a stop. The examples in ``ONE_SEED`` run with the first seed only. With ``--quick`` every example runs
once on little data, and no page is written. The exit status is 1 if an example fails or does not print a required figure.
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
# The article and its figures. If the article has none, they are the results of its original program.
EXAMPLES = {
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
    "wgan_gp": ["-"],
    "actor_critic": ["-"],
    "adversarial": ["-"],
    "transformer_text": ["-"],
    "multi_input": ["-"],
    "huggingface_model": ["-"],
    "many_processes": ["-"],
    "ray_train": ["-"],
    "ray_tune": ["-"],
}  # fmt: skip

BF16 = ["--precision", "bf16"]
# Options of full runs, which otherwise take half an hour or more on a CPU
OPTIONS = {
    "intro_cnn": BF16,
    "skorch_peer": BF16,
    "batchnorm": BF16,
    "regularization": BF16,
}
# Examples with many trainings or a long one
ONE_SEED = {"tune_with_optuna", "cross_validation", "vae", "transformer_text"}


def required_figures(name: str) -> dict[str, tuple[str, str]]:
    """Return the sign and the number that each figure of an example requires."""
    return {figure: (sign, number) for figure, sign, number in (text.rsplit(" ", 2) for text in EXAMPLES[name][1:])}


def run(name: str, seed: int, quick: bool, cache: Path, plots: Path | None = None) -> dict[str, Any]:
    """Return ``results``, ``seconds`` and ``error`` of one run, from the cache if the example has not changed."""
    path, cache_file = FOLDER / f"{name}.py", cache / f"{name}-{'quick' if quick else 'full'}-{seed}.json"
    options = ["--seed", str(seed), *(["--quick"] if quick else OPTIONS.get(name, []))]
    result, content = (
        json.loads(cache_file.read_text()) if cache_file.exists() else {},
        fingerprint(path.read_text(), options),
    )
    if result.get("content") != content:
        if plots and '"--plot"' in path.read_text():
            options += ["--plot", str(plots.resolve() / f"{name.replace('_', '-')}.png")]
        result = {"content": content} | execute(path, options)
        if not result["error"]:
            cache.mkdir(parents=True, exist_ok=True)
            cache_file.with_suffix(".tmp").write_text(json.dumps(result, indent=1))
            cache_file.with_suffix(".tmp").replace(cache_file)
    missing = required_figures(name).keys() - result["results"].keys()
    if missing and not result["error"]:
        result["error"] = f"The example did not print {', '.join(sorted(missing))}."
    return result


def fingerprint(source: str, options: list[str]) -> str:
    """Return a hash of the code and the options. Comments and the docstring do not change it."""
    tree = ast.parse(source)
    tree.body = tree.body[ast.get_docstring(tree) is not None :]
    return hashlib.sha256(json.dumps([ast.dump(tree), *options]).encode()).hexdigest()


def execute(path: Path, options: list[str]) -> dict[str, Any]:
    """Run a program with warnings as errors, in a temporary folder."""
    environment = os.environ | {
        "EASYTORCH_DATA": str(Path(os.environ.get("EASYTORCH_DATA", "data")).resolve()),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
    }
    command, start = [sys.executable, "-W", "error", str(path), *options], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    results = dict(re.findall(r"^Result: (.+) = (\S+)$", process.stdout, re.M))
    error = (
        process.stderr.strip() or f"The example exited with status {process.returncode}." if process.returncode else ""
    )
    return {"results": results, "seconds": time.perf_counter() - start, "error": error}


def run_all(
    names: list[str], seeds: list[int], quick: bool, cache: Path, plots: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Run the examples one after the other with a progress bar. The first seed draws the figures."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(names) * len(seeds))
        for i, name in enumerate(names):
            for seed in seeds[:1] if name in ONE_SEED else seeds:
                progress.update(task, description=f"{name}, seed {seed}", completed=i * len(seeds) + len(runs[name]))
                runs[name].append(result := run(name, seed, quick, cache, None if runs[name] else plots))
                line = result["error"].splitlines()[-1] if result["error"] else format_duration(result["seconds"])
                progress.console.print(f"{name}, seed {seed}: {line}", markup=False, highlight=False)
                if result["error"]:
                    break
        progress.update(task, completed=len(names) * len(seeds))
    return runs


def rows(name: str, runs: list[dict[str, Any]], quick: bool) -> list[tuple[str, ...]]:
    """Return the rows of one example, one per figure. The first row contains the values of the example."""
    required, table = required_figures(name), []
    values_by_figure = {figure: [result["results"][figure] for result in runs] for figure in runs[0]["results"]}
    sizes = dict.fromkeys(
        f"{int(values[0]):,}" for figure, values in values_by_figure.items() if figure.startswith("parameters")
    )
    seconds = format_duration(statistics.mean(result["seconds"] for result in runs))
    lines = str(lines_of_code((FOLDER / f"{name}.py").read_text()))
    head, tail = (
        (f"`{' '.join([name, *OPTIONS.get(name, [])])}`", EXAMPLES[name][0]),
        (seconds, " / ".join(sizes), lines),
    )
    for figure, values in values_by_figure.items():
        if figure in required or not figure.startswith("parameters"):
            sign, number = required.get(figure, ("", ""))
            mean, spread = mean_and_spread(values)
            met = "" if quick or not sign else "yes" if SIGNS[sign](float(mean), float(number)) else "**no**"
            table.append((*head, figure, f"{sign} {number}", mean + spread, met, *tail))
            head, tail = ("", ""), ("", "", "")
    return table or [(*head, "", "", "", "", *tail)]


def mean_and_spread(values: list[str]) -> tuple[str, str]:
    """Return the mean with the decimals of ``values``, and their standard deviation if they differ."""
    numbers, decimals = [float(value) for value in values], len(values[0].partition(".")[2])
    form = ".1e" if any("e" in value for value in values) else f".{decimals}f"
    spread = f" ± {statistics.stdev(numbers):{form}}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(numbers):{form}}", spread


def lines_of_code(source: str) -> int:
    """Return the number of lines of ``source`` without empty lines, comments, and the docstring."""
    body = source.split('"""', 2)[-1].splitlines()
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in body)


def render_page(table: list[tuple[str, ...]], seeds: list[int]) -> str:
    """Return the Markdown page with ``table``."""
    cores = {1: "One core", 2: "Two cores"}.get(torch.get_num_threads(), f"{torch.get_num_threads()} cores")
    device = "One accelerator" if torch.accelerator.is_available() else f"{cores} of a server CPU"
    heavy = ", ".join(f"`{name}`" for name in EXAMPLES if name in ONE_SEED)
    exception = f"; only seed {seeds[0]} for {heavy}" if heavy else ""
    body = "\n".join(f"| {' | '.join(row)} |" for row in [COLUMNS, ("---",) * len(COLUMNS), *table])
    return f"""# Results

Results of every example compared with its article, written by `python -m examples.report`.

- **asked**: the number of the article. If the article has none, it is the result of its original program.
- **ours**: the mean over the seeds {", ".join(map(str, seeds))} ± the standard deviation{exception}.
- **met**: whether the printed mean reaches the number.
- **time**: the duration of a complete run of the example, including data and figures. Other programs may have run at the same time. {device}, torch {torch.__version__.partition("+")[0]}.
- **lines**: lines of code without empty lines, comments, and the docstring.

{body}
"""  # noqa: E501  # lines of Markdown


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="run each example once on little data and write no page")
    options.add_argument("--out", type=Path, help="output page (default: docs/results.md, or no page with --only)")
    options.add_argument("--plots", type=Path, metavar="FOLDER", help="write the figures to this folder")
    options.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    options.add_argument("--only", nargs="+", metavar="NAME", choices=list(EXAMPLES), help="run only these examples")
    options.add_argument("--cache", type=Path, default=Path(".report"), help="folder with the finished runs")
    args = options.parse_args(arguments)
    seeds = args.seeds[:1] if args.quick else args.seeds
    runs = run_all(args.only or list(EXAMPLES), seeds, args.quick, args.cache, args.plots)
    failed = {name: run["error"] for name, results in runs.items() for run in results if run["error"]}
    table = [row for name, results in runs.items() if name not in failed for row in rows(name, results, args.quick)]
    console_table = Table(*COLUMNS)
    for row in table:
        console_table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(console_table)
    for name, error in failed.items():
        console.print(f"\n{name} failed:\n{error}", markup=False, highlight=False)
    out = args.out or (None if args.only else Path("docs/results.md"))
    if out and not failed and not args.quick:
        out.write_text(render_page(table, args.seeds))
        console.print(f"Page written to {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
