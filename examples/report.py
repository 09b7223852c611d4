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
import itertools
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
COLUMNS = ("example", "article", "figure", "required", "result", "reached", "time", "parameters", "lines")
ABOUT = functools.partial(math.isclose, abs_tol=0.03)
SIGNS = {"≥": operator.ge, "≤": operator.le, "=": operator.eq, "≈": ABOUT}
# The article and its figures. If the article has none, they are the results of its original program.
EXAMPLES = {
    "quickstart": ["-"],
    "intro_cnn": ["Seif", "test accuracy ≥ 0.9906", "parameters = 42378"],
    "tensors_to_network": ["Anello", "neuron = 0.3030", "parameters = 850"],
    "datasets": ["Anello"],
    "tensor_shapes": ["Anello", "parameters = 62006"],
    "feature_maps": ["Anello", "test accuracy ≥ 0.9904", "test loss ≤ 0.0281"],
    "tune_with_optuna": ["Anello", "validation accuracy ≥ 0.9892"],
    "cross_validation": ["Anello", "mean test accuracy ≥ 0.9915"],
    "autoencoder": ["Anello", "test mse ≤ 0.02682"],
    "denoising": ["Anello", "test mse ≤ 0.02681"],
    "vae": ["Anello", "validation loss ≤ 31.01"],
    "skorch_peer": ["Anello", "test accuracy ≥ 0.9909", "cross-validated accuracy ≥ 0.987", "parameters = 92208"],
    "seven_cells": ["Patel", "test accuracy with sgd ≥ 0.857", "test accuracy with adam ≥ 0.97", "parameters = 109386"],
    "numpy_to_pytorch": ["Shaikh", "mse of torch with fit ≤ 0.0012", "f(4) ≈ 8.0"],
    "identify_the_digits": ["Shaikh", "training accuracy ≥ 0.8779", "validation accuracy ≥ 0.8675", "parameters = 397510"],
    "fashion_cnn": ["Mahajan", "test accuracy ≥ 0.8482", "test loss ≤ 0.4410", "parameters = 48884"],
    "batchnorm": ["Mahajan", "test accuracy without ≥ 0.9849", "test accuracy with ≥ 0.9939"],
    "regularization": [
        "Mahajan", "test accuracy plain ≥ 0.9858", "test accuracy dropout ≥ 0.9899", "test accuracy l1 ≥ 0.9881",
        "test accuracy l2 ≥ 0.9858", "parameters = 10790",
    ],
    "transfer_learning": ["Mahajan"],
    "gan": ["-"],
    "wgan_gp": ["-"],
    "actor_critic": ["-"],
    "adversarial": ["-"],
    "transformer_text": ["-"],
    "multi_input": ["-"],
    "huggingface_model": ["-"],
    "many_processes": ["-"],
    "tabular": ["-"],
    "image_folder": ["-"],
    "text_classification": ["-"],
    "time_series": ["-"],
    "ray_train": ["-"],
    "ray_tune": ["-"],
}  # fmt: skip

# The pages of the tutorials. The others are linked to their source.
PAGES = {
    "intro_cnn": "Train a convolutional network", "tensors_to_network": "Tensors, gradients, layers",
    "datasets": "Imbalanced classes", "tensor_shapes": "Find layer sizes", "feature_maps": "Visualize filters",
    "tune_with_optuna": "Tune with Optuna", "cross_validation": "k-fold cross-validation", "autoencoder": "Autoencoder",
    "denoising": "Denoise images", "vae": "Variational autoencoder", "seven_cells": "Train a digit classifier",
    "numpy_to_pytorch": "From NumPy to PyTorch", "fashion_cnn": "Classify clothing images",
    "tabular": "Table data", "image_folder": "Folder of images", "text_classification": "Text classification",
    "time_series": "Time series",
}  # fmt: skip
SOURCE = "https://github.com/easytorch-fit/easytorch/blob/main/examples"

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
    """Return the Markdown page with ``table``: the figures that the article has, and all figures without an article."""
    cores = {1: "one core", 2: "two cores"}.get(torch.get_num_threads(), f"{torch.get_num_threads()} cores")
    device = "one accelerator" if torch.accelerator.is_available() else f"{cores} of a server CPU"
    return format_page(table, seeds, f"{device}, torch {torch.__version__.partition('+')[0]}")


def format_page(table: list[tuple[str, ...]], seeds: list[int], machine: str) -> str:
    with_article, without = [], []
    name = article = seconds = parameters = ""
    for head, source, figure, required, result, _, time_cell, size, _ in table:
        if head:
            name, article, seconds, parameters = head.strip("`"), source, time_cell, size
        reference = required.lstrip("".join(SIGNS)).strip()
        if figure.endswith("parameters") and not reference:
            continue
        key = name.split()[0]
        file = "table" if key == "tabular" else key.replace("_", "-")
        page = f"tutorials/{file}.md" if key in PAGES else f"{SOURCE}/{key}.py"
        # Spaces that do not break keep a number and its deviation in one line.
        measured = as_percent(figure, result).replace(" ± ", "\u00a0±\u00a0")
        cells = [f"[{PAGES.get(key, key)}]({page})", figure, as_percent(figure, reference), measured]
        if reference:
            with_article.append([cells[0], article, *cells[1:], seconds])
        elif article == "-" and figure:
            without.append([cells[0], figure, cells[3], parameters, seconds])
    for rows_of_table in (with_article, without):
        for previous, row in reversed(list(itertools.pairwise(rows_of_table))):
            if previous[0] == row[0]:
                row[0] = row[-1] = ""
    heavy = ", ".join(PAGES.get(name, name) for name in EXAMPLES if name in ONE_SEED)
    exception = f"; one seed for: {heavy}" if heavy else ""
    return f"""---
description: "Results of every tutorial program, compared with the article that it follows: accuracy, loss and time."
---

# Tutorial results

Most [tutorials](tutorials/index.md) follow an article.
These tables compare the results of their programs with the numbers of the articles.

| | |
|---|---|
| hardware and version | {machine} |
| results | mean ± standard deviation over the seeds {", ".join(map(str, seeds))}{exception} |
| times | a whole run, with data and figures |

## Tutorials

{format_table(["tutorial", "article", "result", "in the article", "easytorch", "time"], with_article)}

If an article has no number, the table shows the result of its original program.

## Programs without an article

{format_table(["program", "result", "easytorch", "parameters", "time"], without)}

`python -m examples.report` runs all programs and writes this page.
"""


def format_table(head: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def as_percent(figure: str, text: str) -> str:
    """Return the text of a share, such as an accuracy, in percent, and large integers with commas."""
    if text.isdigit():
        return f"{int(text):,}"
    if not text or not re.search("accuracy|found|read as asked", figure):
        return text
    values = [f"{100 * float(value):.{max(len(value.partition('.')[2]) - 2, 0)}f}" for value in text.split(" ± ")]
    return " ± ".join(values) + "%"


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
