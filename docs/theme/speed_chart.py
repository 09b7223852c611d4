"""Chart of the page on speed: ``python docs/theme/speed_chart.py`` reads its tables and writes docs/figures/speed.svg."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
WORKLOADS = {"MLP, arrays": "MLP", "CNN": "CNN", "Transformer": "Transformer"}
TEXT, BAR, OURS = "#7d7d7d", "#7f9fb8", "#d4552f"


def read_tables() -> dict[str, dict[str, float]]:
    """Return our time divided by that of each library, for each workload."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| our time / theirs .*?(?=\n\n)", page, re.M | re.S)
    assert tables, "performance.md has no table of times"
    ratios: dict[str, dict[str, float]] = {}
    for table in tables:
        head, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for column, workload in list(enumerate(head))[1:]:
            ratios[workload] = {row[0]: float(row[column]) for row in rows if row[column]}
    return ratios


def draw() -> str:
    """Return the chart: the time of each library as a multiple of ours."""
    ratios = read_tables()
    parts, y = [], 8
    for name, title in WORKLOADS.items():
        times = {"easytorch": 1.0} | {library: 1 / ratio for library, ratio in ratios[name].items()}
        parts.append(f'<text x="4" y="{y + 14}" font-weight="bold">{title}</text>')
        y += 24
        scale = 210 / max(times.values())
        for library, multiple in sorted(times.items(), key=lambda item: item[1]):
            color = OURS if library == "easytorch" else BAR
            parts.append(f'<text x="96" y="{y + 13}" text-anchor="end">{library}</text>')
            parts.append(
                f'<rect x="104" y="{y + 2}" width="{scale * multiple:.1f}" height="14" rx="3" fill="{color}"/>'
            )
            parts.append(f'<text x="{110 + scale * multiple:.1f}" y="{y + 13}">{multiple:.2f}</text>')
            y += 20
        y += 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 {y}" role="img" '
        'aria-label="Training time of each library as a multiple of that of easytorch">\n'
        f'<style>text{{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:{TEXT}}}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def write() -> None:
    """Write the figure."""
    (DOCS / "figures/speed.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    write()
