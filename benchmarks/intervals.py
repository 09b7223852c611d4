"""Coverage of the intervals of ``model.report``, by simulation.

    python -m benchmarks.intervals [--sizes 50 100 200 1000] [--repeats 400] [--only "numbers, t5"] [--markdown FILE]

Each case draws outputs and targets from a known distribution, makes the report, and counts how often an interval contains
the true value: the value of the same measure for a million samples.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from easytorch.reports import Estimate, Report, make_report

Array = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]

TRUTH_SAMPLES = 1_000_000
LOW, HIGH = 0.93, 0.97


def draw_classes(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Return logits of three classes, and labels."""
    y = generator.choice(3, size=count, p=[0.5, 0.3, 0.2])
    return generator.normal(size=(count, 3)) + 1.5 * np.eye(3)[y], y


def draw_two_classes(prevalence: float) -> Draw:
    """Return a function that draws logits of the positive class, and labels."""

    def draw(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        y = (generator.random(count) < prevalence).astype(float)
        # The logits of two normal distributions with a distance of 1.5, calibrated.
        scores = generator.normal(size=count) + 1.5 * y
        return 1.5 * scores - 1.5**2 / 2 + math.log(prevalence / (1 - prevalence)), y

    return draw


def draw_labels(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Return logits of four independent labels, and the labels."""
    y = (generator.random((count, 4)) < [0.5, 0.4, 0.3, 0.2]).astype(float)
    return 1.5 * (generator.normal(size=y.shape) + 1.5 * y - 0.75), y


def draw_numbers(errors: Callable[[np.random.Generator, Any], Array], outputs: int = 1) -> Draw:
    """Return a function that draws predictions and targets, whose difference is ``errors``."""

    def draw(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        predicted = generator.normal(size=(count, outputs))
        return predicted, predicted + 0.5 * errors(generator, predicted.shape)

    return draw


def normal(generator: np.random.Generator, shape: Any) -> Array:
    return generator.normal(size=shape)


def t5(generator: np.random.Generator, shape: Any) -> Array:
    return generator.standard_t(5, size=shape) / math.sqrt(5 / 3)


def exponential(generator: np.random.Generator, shape: Any) -> Array:
    return generator.exponential(size=shape) - 1


CASES: dict[str, tuple[Draw, str]] = {
    "three classes": (draw_classes, "cross_entropy"),
    "two classes, prevalence 0.4": (draw_two_classes(0.4), "bce_with_logits"),
    "two classes, prevalence 0.1": (draw_two_classes(0.1), "bce_with_logits"),
    "labels": (draw_labels, "bce_with_logits"),
    "numbers, normal errors": (draw_numbers(normal), "mse"),
    "numbers, t5 errors": (draw_numbers(t5), "mse"),
    "numbers, exponential errors": (draw_numbers(exponential), "mse"),
    "three outputs, t5 errors": (draw_numbers(t5, outputs=3), "mse"),
}


def read_estimates(report: Report) -> dict[str, Estimate]:
    """Return the numbers of the summary, of the last class or label, and the quantiles of the error."""
    found = {name: value for name, value in report.summary.items() if name != "calibration_error"}
    for table in ("classes", "labels"):
        if table in report.tables:
            row = report.tables[table][-1]
            found |= {f"{name} of one": value for name, value in row.items() if isinstance(value, Estimate)}
    for row in report.tables.get("absolute error", []):
        found[f"{row['quantile']:.0%} quantile of the error"] = row["error"]
    return found


def measure_case(
    draw: Draw, loss: str, sizes: list[int], repeats: int, *, bootstrap: int = 1000, truth_samples: int = TRUTH_SAMPLES
) -> dict[str, list[float]]:
    """Return the coverage of each measure for each number of samples. Reports without the interval do not count.

    Args:
        draw: Draws outputs and targets.
        loss: The loss of the report.
        sizes: Numbers of samples.
        repeats: Reports of each size.
        bootstrap: Draws of each report.
        truth_samples: Samples for the true values.
    """
    truth = read_estimates(make_report(*draw(np.random.default_rng(0), truth_samples), loss, bootstrap=0))
    coverage: dict[str, list[float]] = {name: [] for name in truth}
    for size in sizes:
        hits: dict[str, list[bool]] = {name: [] for name in truth}
        for seed in range(1, repeats + 1):
            outputs, y = draw(np.random.default_rng([seed, size]), size)
            for name, estimate in read_estimates(make_report(outputs, y, loss, bootstrap=bootstrap, seed=seed)).items():
                if not math.isnan(estimate.low):
                    hits[name].append(estimate.low <= truth[name].value <= estimate.high)
        for name, values in hits.items():
            coverage[name].append(float(np.mean(values)) if values else math.nan)
    return coverage


def format_table(results: dict[str, dict[str, list[float]]], sizes: list[int]) -> str:
    """Return the results as a table in Markdown, with coverages outside of 93 to 97% in bold."""
    lines = [
        "| data | measure | " + " | ".join(f"n = {size:,}" for size in sizes) + " |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for case, rows in results.items():
        for name, values in rows.items():
            shown = [f"{100 * x:.1f}%" if LOW <= x <= HIGH else f"**{100 * x:.1f}%**" for x in values]
            lines.append(f"| {case} | {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 1000], help="numbers of samples")
    options.add_argument("--repeats", type=int, default=400, help="reports of each size")
    options.add_argument("--only", choices=list(CASES), nargs="+", help="measure only these cases")
    options.add_argument("--markdown", type=Path, help="file for the table")
    args = options.parse_args()
    results = {}
    for name in args.only or CASES:
        results[name] = measure_case(*CASES[name], args.sizes, args.repeats)
        print(format_table({name: results[name]}, args.sizes), flush=True)
    if args.markdown:
        args.markdown.write_text(format_table(results, args.sizes) + "\n")


if __name__ == "__main__":
    main()
