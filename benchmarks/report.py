"""Tables of the results, and the figure of the documentation."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.plan import AGAIN, CONTESTANTS, LIBRARIES, PLAN

# Largest relative difference between the check of a contestant and that of the plain loop
TOLERANCE = 0.15


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def compute_ratios(workload: str, rounds: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the ratios of each contestant to the plain loop in all rounds, or the seconds of imports."""
    values: dict[str, list[float]] = {}
    for results in rounds:
        for name in results:
            if workload == "import" and CONTESTANTS[name].modules:
                values.setdefault(name, []).append(results[name]["seconds"])
            elif workload != "import" and "raw" in results:
                values.setdefault(name, []).append(results[name]["seconds"] / results["raw"]["seconds"])
    return {name: values[name] for name in CONTESTANTS if name in values}


def compute_medians(rounds: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return the median of the value ``key`` for each contestant."""
    names = {name for results in rounds for name in results}
    return {
        name: statistics.median(results[name][key] for results in rounds if key in results.get(name, ()))
        for name in names
    }


def select_rounds(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the rounds of every measured workload, in the order of the plan; only those of its last commit."""
    selected = {}
    for name in PLAN:
        rounds = [cells for cells in results["rounds"].get(name, []) if cells]
        rounds = [cells for cells in rounds if find_commit(cells) == find_commit(rounds[-1])]
        if compute_ratios(name, rounds):
            selected[name] = rounds
    return selected


def find_commit(cells: dict[str, Any]) -> str:
    """Return the commit of a round."""
    return str(next(iter(cells.values()))["commit"])


def compare(first: str, second: str, rounds: list[dict[str, Any]]) -> list[float]:
    """Return the time of one contestant divided by that of another one, in each round that has both."""
    pairs = [(cells[first], cells[second]) for cells in rounds if first in cells and second in cells]
    return [one["seconds"] / other["seconds"] for one, other in pairs]


def print_report(results: dict[str, Any]) -> None:
    """Print the conditions, a table of all medians, one compared with the libraries, and a table for each workload."""
    conditions = results["conditions"]
    rounds_by_name = select_rounds(results)
    commits = dict.fromkeys(find_commit(rounds[0]) for rounds in rounds_by_name.values())
    print(f"\n{conditions['machine']}; threads: {conditions['threads']}; size: {conditions['size']}.")
    print(
        f"easytorch {', '.join(commits)}, " + ", ".join(f"{key} {v}" for key, v in conditions["versions"].items()) + "."
    )
    print(f"Real data: {', '.join(conditions['real data']) or 'none, random numbers'}.")
    if rounds_by_name:
        print_medians(rounds_by_name)
        print_against_libraries(rounds_by_name)
    for workload, rounds in rounds_by_name.items():
        print_workload(workload, rounds, results["failed"].get(workload, {}))


def print_against_libraries(rounds_by_name: dict[str, list[dict[str, Any]]]) -> None:
    """Print our time divided by that of each library, and the range of the library next to itself where it was measured."""
    if not find_libraries(rounds_by_name):
        return
    print("\nMedians; larger than 1.00 in bold. Ranges: the same library twice in each round, which is the noise.")
    for rows in compare_with_libraries(rounds_by_name, controls=True):
        print()
        print_table(rows)


def compare_with_libraries(
    rounds_by_name: dict[str, list[dict[str, Any]]], controls: bool = False
) -> list[list[list[str]]]:
    """Return the rows of two tables with our time divided by that of each library: of training, and of the rest.

    The libraries are the rows, so that the tables fit a page.

    Args:
        rounds_by_name: The rounds of each workload.
        controls: Add the range of each library next to itself, where it was measured twice.
    """
    tables = []
    for is_fit in (True, False):
        names = [name for name in rounds_by_name if (PLAN[name].verb == "fit") == is_fit]
        rows = [["our time / theirs", *(PLAN[name].label for name in names)]]
        for library in find_libraries({name: rounds_by_name[name] for name in names}):
            medians = [compare_medians("easytorch", library, rounds_by_name[name]) for name in names]
            cells = ["" if median is None else f"{median:.2f}" for median in medians]
            rows.append(
                [CONTESTANTS[library].title, *(f"**{cell}**" if cell and float(cell) > 1 else cell for cell in cells)]
            )
            ranges = [compare(f"{library}{AGAIN}", library, rounds_by_name[name]) for name in names]
            if controls and any(ranges):
                cells = [f"{min(values):.2f} - {max(values):.2f}" if values else "" for values in ranges]
                rows.append([f"{CONTESTANTS[library].title} next to itself", *cells])
        tables.append(rows)
    return [rows for rows in tables if len(rows) > 1]


def find_libraries(rounds_by_name: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the libraries that were measured."""
    return [name for name in LIBRARIES if any(name in cells for rounds in rounds_by_name.values() for cells in rounds)]


def compare_medians(first: str, second: str, rounds: list[dict[str, Any]]) -> float | None:
    """Return the median of ``compare``, or None without a round that has both."""
    ratios = compare(first, second, rounds)
    return statistics.median(ratios) if ratios else None


def print_workload(workload: str, rounds: list[dict[str, Any]], failed: dict[str, str]) -> None:
    seconds, peaks = compute_medians(rounds, "seconds"), compute_medians(rounds, "peak_mb")
    checks = compute_medians(rounds, "check")
    plural = "s" * (len(rounds) > 1)
    print(
        f"\n{PLAN[workload].title} ({len(rounds)} round{plural} at {find_commit(rounds[0])}; goal {PLAN[workload].goal:.2f})\n"
    )
    rows = [["", "median", "quartiles", "seconds", "peak MB", "check", ""]]
    for name, values in compute_ratios(workload, rounds).items():
        low, middle, high = quartiles(values)
        differs = "raw" in checks and abs(checks[name] - checks["raw"]) > TOLERANCE * abs(checks["raw"])
        check = "" if workload == "import" else f"{checks[name]:.4f}"
        note = "different result from the plain loop" if differs else ""
        spread = f"{low:.2f} - {high:.2f}"
        rows.append(
            [
                CONTESTANTS[name].title,
                f"{middle:.2f}",
                spread,
                f"{seconds[name]:.3g}",
                f"{peaks[name]:.0f}",
                check,
                note,
            ]
        )
    rows += [[CONTESTANTS[name].title, "-", "", "", "", "", error[:80]] for name, error in failed.items()]
    print_table(rows)


def print_medians(rounds_by_name: dict[str, list[dict[str, Any]]]) -> None:
    """Print a table of the medians with one row per workload."""
    names = [
        name
        for name in CONTESTANTS
        if any(name in compute_ratios(workload, rounds) for workload, rounds in rounds_by_name.items())
    ]
    names = [name for name in names if name != "raw" and (name == f"raw{AGAIN}" or not name.endswith(AGAIN))]
    rows = [["", "goal", *(CONTESTANTS[name].title for name in names)]]
    for workload, rounds in rounds_by_name.items():
        ratios = compute_ratios(workload, rounds)
        cells = [f"{statistics.median(ratios[name]):.2f}" if name in ratios else "-" for name in names]
        rows.append([workload, f"{PLAN[workload].goal:.2f}", *cells])
    print("\nMedian ratios to the plain loop (lower is faster), imports in seconds in addition to torch\n")
    print_table(rows)


def print_table(rows: list[list[str]]) -> None:
    """Print ``rows`` as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for index, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def draw_figure(results: dict[str, Any], path: Path) -> None:
    """Draw a panel for each workload, with the median as a dot and the quartiles as a line.

    The panels are in one column, so that they are readable on a phone, in colors for light and dark pages.
    """
    import matplotlib
    from matplotlib.figure import Figure

    gray, accent, blue = "#808080", "#e64a19", "#5c85d6"
    panels = [
        (PLAN[name].title, without_controls(compute_ratios(name, rounds)), 1.0 if name != "import" else None)
        for name, rounds in select_rounds(results).items()
    ]
    if rounds := select_rounds(results).get("mlp"):
        peaks = {name: [cells[name]["peak_mb"] for cells in rounds if name in cells] for name in CONTESTANTS}
        title = "Peak memory of the first workload, MB"
        panels.append((title, without_controls({name: values for name, values in peaks.items() if values}), None))
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "easytorch", "font.family": "sans-serif", "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), gray),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        heights = [2 + len(values_by_name) for _, values_by_name, _ in panels]
        figure = Figure(figsize=(3.75, 0.17 * sum(heights)), layout="constrained")
        for (title, values_by_name, reference), axes in zip(
            panels,
            figure.subplots(len(panels), gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0],
            strict=True,
        ):
            for row, (name, values) in enumerate(values_by_name.items()):
                low, middle, high = quartiles(values)
                color = {"easytorch": accent, "raw": gray}.get(name, blue)
                axes.plot([low, high], [row, row], color=color, linewidth=2.5, alpha=0.5, solid_capstyle="round")
                axes.plot([middle], [row], "o", color=color, markersize=5.5)
                axes.annotate(
                    f"{middle:.0f}" if middle >= 100 else f"{middle:.2f}",
                    (high, row), (6, 0), textcoords="offset points", va="center", color=gray, fontsize=8,
                )  # fmt: skip
            if reference is not None:
                axes.axvline(reference, color=gray, linewidth=0.8, linestyle=":")
            axes.set_yticks(range(len(values_by_name)), [CONTESTANTS[name].title for name in values_by_name])
            axes.set_title(title, fontsize=9, loc="left", x=-0.38)
            axes.set_xlim(0, 1.2 * max(quartiles(values)[2] for values in values_by_name.values()))
            axes.invert_yaxis()
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(length=0)
        figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"\nFigure written to {path}")


def without_controls(values_by_name: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the values without those of the control contestants, except that of the plain loop."""
    return {name: v for name, v in values_by_name.items() if name == f"raw{AGAIN}" or not name.endswith(AGAIN)}
