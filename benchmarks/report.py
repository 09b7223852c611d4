"""What was measured, as tables for people and as the figure of the documentation."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.plan import CONTESTANTS, PLAN

FAR = 0.15  # how far a contestant's check may be from the plain loop's, relatively, before it is pointed at


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(workload: str, rounds: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return each contestant's time over the plain loop's, round by round; of imports, the seconds."""
    found: dict[str, list[float]] = {}
    for one in rounds:
        for name in one:
            if workload == "import" and CONTESTANTS[name].modules:
                found.setdefault(name, []).append(one[name]["seconds"])
            elif workload != "import" and "raw" in one:
                found.setdefault(name, []).append(one[name]["seconds"] / one["raw"]["seconds"])
    return {name: found[name] for name in CONTESTANTS if name in found}


def medians(rounds: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return each contestant's median of what it measured as ``key``."""
    names = {name for one in rounds for name in one}
    return {
        name: statistics.median(one[name][key] for one in rounds if name in one and key in one[name]) for name in names
    }


def measured(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the rounds of every workload that has any, in the order of the plan."""
    found = {name: results["rounds"].get(name, []) for name in PLAN}
    return {name: rounds for name, rounds in found.items() if ratios(name, rounds)}


def write(results: dict[str, Any]) -> None:
    """Print a table for each workload, then one of all medians."""
    where = results["conditions"]
    print(f"\n{where['machine']}; threads: {where['threads']}; size: {where['size']}")
    print(", ".join(f"{name} {version}" for name, version in where["versions"].items()))
    print(f"Real data: {', '.join(where['real data']) or 'none, random numbers'}")
    shown = measured(results)
    for workload, rounds in shown.items():
        one_table(workload, rounds, results["failed"].get(workload, {}))
    if shown:
        all_medians(shown)


def one_table(workload: str, rounds: list[dict[str, Any]], failed: dict[str, str]) -> None:
    seconds, peaks = medians(rounds, "seconds"), medians(rounds, "peak_mb")
    checks = medians(rounds, "check")
    print(f"\n{PLAN[workload].title} ({len(rounds)} round{'s' * (len(rounds) > 1)}; goal {PLAN[workload].goal:.2f})\n")
    rows = [["", "median", "quartiles", "seconds", "peak MB", "check", ""]]
    for name, values in ratios(workload, rounds).items():
        low, middle, high = quartiles(values)
        far = "raw" in checks and abs(checks[name] - checks["raw"]) > FAR * abs(checks["raw"])
        check = "" if workload == "import" else f"{checks[name]:.4f}"
        note = "another result than the plain loop" if far else ""
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
    rows += [[CONTESTANTS[name].title, "-", "", "", "", "", why[:80]] for name, why in failed.items()]
    table(rows)


def all_medians(shown: dict[str, list[dict[str, Any]]]) -> None:
    """Print medians alone: a row for each workload."""
    names = [name for name in CONTESTANTS if any(name in ratios(workload, shown[workload]) for workload in shown)]
    names = [name for name in names if name != "raw"]
    rows = [["", "goal", *(CONTESTANTS[name].title for name in names)]]
    for workload, rounds in shown.items():
        found = ratios(workload, rounds)
        cells = [f"{statistics.median(found[name]):.2f}" if name in found else "-" for name in names]
        rows.append([workload, f"{PLAN[workload].goal:.2f}", *cells])
    print("\nMedians of the ratio to the plain loop, less is faster; imports in seconds on top of torch\n")
    table(rows)


def table(rows: list[list[str]]) -> None:
    """Print ``rows`` as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if not i:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw a panel for each workload: the median as a dot, the quartiles as a line. Readable on light and dark."""
    import matplotlib
    from matplotlib.figure import Figure

    grey, ours, others = "#808080", "#e64a19", "#5c85d6"
    panels = [
        (PLAN[name].title, ratios(name, rounds), 1.0 if name != "import" else None)
        for name, rounds in measured(results).items()
    ]
    if rounds := results["rounds"].get("mlp"):
        peaks = {name: [one[name]["peak_mb"] for one in rounds if name in one] for name in CONTESTANTS}
        panels.append(("Peak memory of the first, MB", {name: found for name, found in peaks.items() if found}, None))
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "easytorch", "font.family": "sans-serif", "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey),
    }  # fmt: skip
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.7 * columns, 2.7 * lines), layout="constrained")
        for place, (title, found, one) in enumerate(panels):
            axes = figure.add_subplot(lines, columns, place + 1)
            for row, (name, values) in enumerate(found.items()):
                low, middle, high = quartiles(values)
                colour = {"easytorch": ours, "raw": grey}.get(name, others)
                axes.plot([low, high], [row, row], color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="round")
                axes.plot([middle], [row], "o", color=colour, markersize=5.5)
                axes.annotate(
                    f"{middle:.0f}" if middle >= 100 else f"{middle:.2f}",
                    (high, row), (6, 0), textcoords="offset points", va="center", color=grey, fontsize=8,
                )  # fmt: skip
            if one is not None:
                axes.axvline(one, color=grey, linewidth=0.8, linestyle=":")
            axes.set_yticks(range(len(found)), [CONTESTANTS[name].title for name in found])
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlim(0, 1.2 * max(quartiles(values)[2] for values in found.values()))
            axes.invert_yaxis()
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(length=0)
        figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"\n{path} drawn")
