"""Figures of speed in the documentation, from the files of the measurements.

    python -m benchmarks.pages

Reads ``peers.json`` and ``start.json`` in ``benchmarks/results``, and writes all places that quote them: the tables and
sentences of the pages on performance, those of README and the home pages in both languages, and the figures. Tables are
between ``<!-- name -->`` and ``<!-- end of name -->``. What needs the libraries stays as it is if ``peers.json`` has none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import statistics
from typing import Any

from benchmarks import report
from benchmarks.peers import ROOT
from benchmarks.plan import AGAIN, CONTESTANTS, PLAN

RESULTS = ROOT / "benchmarks/results"
SMALL, LARGE = ("mlp", "mlp-arrays"), ("cnn", "transformer")
NUMBERS = {8: ("eight", "八"), 9: ("nine", "九"), 10: ("ten", "十")}
CLAIM_PAGES = ("README.md", "docs/index.md", "docs/zh/index.md")
STEP_PAGES = ("docs/performance.md", "docs/performance-details.md")
BATCH = 64


def main() -> None:
    peers, start = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("peers", "start"))
    for name, text in render(peers, start).items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"Written: {name}")
    if find_libraries(peers):
        report.draw_figure(peers, ROOT / "docs/figures/peers.svg")
    load_speed_chart().write()


def render(peers: dict[str, Any], start: dict[str, Any]) -> dict[str, str]:
    """Return the text of each file that quotes a measurement.

    Args:
        peers: The results of ``python -m benchmarks.peers``.
        start: The results of ``python -m benchmarks.start``.
    """
    if peers["conditions"]["size"] != "full":
        raise SystemExit("These results are of --quick, which is not precise. Measure without it.")
    names = dict.fromkeys([*CLAIM_PAGES, *STEP_PAGES])
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    rounds_by_name = report.select_rounds(peers)
    speed, details = STEP_PAGES
    texts[speed] = fill(texts[speed], "loops", loops(rounds_by_name, peers["conditions"]))
    texts[speed] = replace(texts[speed], r"`import easytorch` takes \S+ seconds", import_sentence(rounds_by_name))
    texts[details] = fill(texts[details], "goals", goals(rounds_by_name, start))
    texts[details] = fill(texts[details], "start", start_table(start))
    texts[details] = fill(texts[details], "conditions", describe_conditions(rounds_by_name, peers["conditions"]))
    steps = {name: f"{step_milliseconds(rounds_by_name[name], name):.2g}" for name in ("mlp", "lstm", *LARGE)}
    texts[speed] = replace(
        texts[speed],
        r"a step of the MLP takes \S+ ms, of the Transformer \S+ ms, and of the CNN \S+ ms",
        f"a step of the MLP takes {steps['mlp']} ms, of the Transformer {steps['transformer']} ms, "
        f"and of the CNN {steps['cnn']} ms",
    )
    texts[details] = replace(
        texts[details],
        r"A step of the MLP takes \S+ ms, of the LSTM \S+ ms, of the Transformer \S+ ms, and of the CNN \S+ ms",
        f"A step of the MLP takes {steps['mlp']} ms, of the LSTM {steps['lstm']} ms, "
        f"of the Transformer {steps['transformer']} ms, and of the CNN {steps['cnn']} ms",
    )
    if libraries := find_libraries(peers):
        texts[speed] = fill(texts[speed], "summary", summary(rounds_by_name, libraries))
        texts[speed] = fill(texts[speed], "conditions", library_conditions(rounds_by_name, peers["conditions"]))
        texts[speed] = fill(texts[speed], "libraries", library_tables(rounds_by_name))
        for name in CLAIM_PAGES:
            texts[name] = write_claims(texts[name], rounds_by_name, len(libraries))
    return texts


def find_libraries(peers: dict[str, Any]) -> list[str]:
    """Return the libraries that the file has results of."""
    return report.find_libraries(report.select_rounds(peers))


def fill(text: str, name: str, content: str) -> str:
    """Replace what is between the comments ``<!-- name -->`` and ``<!-- end of name -->``."""
    pattern = rf"(?<=^<!-- {name} -->\n\n).*?(?=\n\n<!-- end of {name} -->$)"
    filled, count = re.subn(pattern, lambda _: content.strip("\n"), text, flags=re.M | re.S)
    if count != 1:
        raise ValueError(f"Expected one part {name!r} between comments, found {count}.")
    return filled


def replace(text: str, pattern: str, sentence: str) -> str:
    """Replace the one match of ``pattern``."""
    replaced, count = re.subn(pattern, lambda _: sentence, text)
    if count != 1:
        raise ValueError(f"Expected one match of {pattern!r}, found {count}.")
    return replaced


# Parts


def loops(rounds_by_name: dict[str, list[dict[str, Any]]], conditions: dict[str, Any]) -> str:
    """Return the table of easytorch and the tuned loop, as ratios to the plain loop."""
    rows = [["workload", "easytorch", "tuned loop"]]
    for name, rounds in rounds_by_name.items():
        if name != "import":
            ratios = report.compute_ratios(name, rounds)
            rows.append(
                [PLAN[name].title, *(f"{statistics.median(ratios[who]):.2f}" for who in ("easytorch", "tuned"))]
            )
    return f"{table(rows)}\n\n{describe_conditions(rounds_by_name, conditions)}"


def goals(rounds_by_name: dict[str, list[dict[str, Any]]], start: dict[str, Any]) -> str:
    """Return the table of the goals, with the range of the plain loop next to itself."""
    rows = [["workload", "goal", "easytorch", "tuned loop", "plain loop again", "rounds"]]
    for name, rounds in rounds_by_name.items():
        ratios, goal = report.compute_ratios(name, rounds), PLAN[name].goal
        ours = statistics.median(ratios["easytorch"])
        again = ratios.get(f"raw{AGAIN}", [])
        # A goal of 1.00 is that of the plain loop, within the noise of the plain loop.
        limit = max(goal, *again) if goal == 1.0 else goal
        verdict = " (missed)" if ours > limit + 0.005 else " (within noise)" if ours > goal + 0.005 else ""
        cells = [PLAN[name].title, f"{goal:.2f}", f"{ours:.2f}{verdict}"]
        if again:
            cells += [f"{statistics.median(ratios['tuned']):.2f}", f"{min(again):.2f} to {max(again):.2f}"]
        else:
            cells += ["", ""]
        rows.append([*cells, str(len(rounds))])
    wait = start["seconds"]["checkpoint"]
    share = wait["easytorch"] / wait["torch"]
    row = ["Checkpoint of 1 GB, wait of training / `torch.save`", "0.25", f"{share:.2f}" + " (missed)" * (share > 0.25)]
    return table([*rows, [*row, "", "", str(start.get("rounds", ""))]])


def start_table(start: dict[str, Any]) -> str:
    """Return the table of ``python -m benchmarks.start``."""
    from benchmarks.start import make_rows

    return table(make_rows(start))


def import_sentence(rounds_by_name: dict[str, list[dict[str, Any]]]) -> str:
    seconds = statistics.median(report.compute_ratios("import", rounds_by_name["import"])["easytorch"])
    return f"`import easytorch` takes {seconds:.2f} seconds"


def describe_conditions(rounds_by_name: dict[str, list[dict[str, Any]]], conditions: dict[str, Any]) -> str:
    """Return a line with rounds, hardware, versions and commits."""
    counts = sorted({len(rounds) for rounds in rounds_by_name.values()})
    number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    commits = dict.fromkeys(report.find_commit(rounds[0]) for rounds in rounds_by_name.values())
    versions = conditions["versions"]
    return (
        f"Medians of {number} rounds on {conditions['machine']} (threads: {conditions['threads']}): "
        f"torch {versions['torch']}, Python {versions['Python']}, easytorch at commit {', '.join(commits)}."
    )


def library_conditions(rounds_by_name: dict[str, list[dict[str, Any]]], conditions: dict[str, Any]) -> str:
    """Return the table of hardware, versions and noise."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    commits = dict.fromkeys(report.find_commit(rounds[0]) for rounds in rounds_by_name.values())
    again = [
        statistics.median(ratios[f"raw{AGAIN}"])
        for name, rounds in rounds_by_name.items()
        if f"raw{AGAIN}" in (ratios := report.compute_ratios(name, rounds))
    ]
    counts = sorted({len(rounds) for rounds in rounds_by_name.values()})
    number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    rows = [
        ["condition", "value"],
        ["hardware", f"{conditions['machine']}; threads: {conditions['threads']}; no GPU measurements yet"],
        ["versions", f"{versions}; Keras on the torch backend; easytorch at commit {', '.join(commits)}"],
        ["noise", f"medians of {number} rounds; the plain loop next to itself takes {min(again):.2f} to "
                  f"{max(again):.2f} times its time"],
    ]  # fmt: skip
    return table(rows)


def summary(rounds_by_name: dict[str, list[dict[str, Any]]], libraries: list[str]) -> str:
    """Return the sentences and the chart above the tables."""
    small, large, arrays = (
        [
            1 / ratio
            for name in names
            for library in libraries
            if (ratio := report.compare_medians("easytorch", library, rounds_by_name.get(name, [])))
        ]
        for names in (SMALL, LARGE, ("mlp-arrays",))
    )
    difference = max(abs(1 - multiple) for multiple in large)
    return (
        f"A small model with data in memory trains {min(small):.1f} to {max(small):.1f} times as fast as with other "
        f"libraries.\nFor the CNN and the Transformer below, the difference is at most {difference:.0%}.\n"
        "To speed up your program, see [Speed up training](guides/speed.md).\n\n"
        f"![Bars: for an MLP from {min(arrays):.2f} times to {max(arrays):.2f} times the time of easytorch; for a CNN and "
        f"a Transformer from {min(large):.2f} to {max(large):.2f} times](figures/speed.svg){{ .chart }}"
    )


def library_tables(rounds_by_name: dict[str, list[dict[str, Any]]]) -> str:
    """Return the tables of all libraries, and the ranges of values above 1."""
    tables = report.compare_with_libraries(rounds_by_name)
    above = []
    for name, rounds in rounds_by_name.items():
        for library in report.find_libraries({name: rounds}):
            ratios = report.compare("easytorch", library, rounds)
            if float(f"{statistics.median(ratios):.2f}") > 1:
                where = f"{CONTESTANTS[library].title}, {PLAN[name].label}"
                above.append(f"{min(ratios):.2f} to {max(ratios):.2f} ({where})")
    text = "\n\n".join(map(table, tables))
    return text + (f"\n\nValues above 1 are bold. Their single rounds: {'; '.join(above)}." if above else "")


def write_claims(text: str, rounds_by_name: dict[str, list[dict[str, Any]]], count: int) -> str:
    """Return a home page with the times of an MLP in other libraries, and the number of the libraries."""
    lightning, keras = (
        f"{report.compare_medians('easytorch', library, rounds_by_name['mlp']):.2f}"
        for library in ("lightning", "keras")
    )
    if "Lightning 的" in text:
        text = replace(
            text, r"Lightning 的 \S+ 倍、Keras 的 \S+ 倍", f"Lightning 的 {lightning} 倍、Keras 的 {keras} 倍"
        )
        return replace(text, r"与.个库的速度对比", f"与{NUMBERS[count][1]}个库的速度对比")
    text = replace(
        text,
        r"\S+ times the time of Lightning and \S+ times that of Keras",
        f"{lightning} times the time of Lightning and {keras} times that of Keras",
    )
    return replace(text, r"against \w+ libraries", f"against {NUMBERS[count][0]} libraries")


def step_milliseconds(rounds: list[dict[str, Any]], name: str) -> float:
    """Return the time of a step of easytorch."""
    steps = PLAN[name].passes * -(-PLAN[name].samples // BATCH)
    return 1000 * statistics.median(cells["easytorch"]["seconds"] for cells in rounds if "easytorch" in cells) / steps


def table(rows: list[list[str]]) -> str:
    """Return ``rows`` as a Markdown table."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        report.print_table(rows)
    return printed.getvalue().strip("\n")


def load_speed_chart() -> Any:
    """Return the program that draws the table of the page; its folder is no package."""
    spec = importlib.util.spec_from_file_location("speed_chart", ROOT / "docs/theme/speed_chart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
