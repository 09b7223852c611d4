"""Chart of the page on speed: ``python docs/theme/speed_chart.py`` reads its table and writes docs/figures/speed.svg."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROWS = {"MLP, Adam, arrays": "MLP", "CNN": "CNN", "Transformer": "Transformer"}
TEXT, BAR, OURS = "#7d7d7d", "#7f9fb8", "#d4552f"


def read_table() -> tuple[list[str], dict[str, list[float]]]:
    """Return the libraries, and for each row our time divided by theirs."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    table = re.search(r"^\| our time / theirs \|.*?(?=\n\n)", page, re.M | re.S)
    assert table, "performance.md has no table of times"
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
    return cells[0][1:], {row[0]: [float(cell) if cell else 0 for cell in row[1:]] for row in cells[2:]}


def draw() -> str:
    """Return the chart: the time of each library as a multiple of ours."""
    libraries, table = read_table()
    parts, y = [], 8
    for name, title in ROWS.items():
        times = {"easytorch": 1.0} | {library: 1 / ratio for library, ratio in zip(libraries, table[name], strict=True)}
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


if __name__ == "__main__":
    (DOCS / "figures/speed.svg").write_text(draw(), encoding="utf-8")
