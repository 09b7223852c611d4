"""Panels of the picture of a check."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from easytorch.checks.cost import memory_by_part
from easytorch.checks.probe import Probe

# Layers with a label at the axis.
MAX_LABELS = 12


def make_panels(probe: Probe) -> dict[str, Callable[[Any], None]]:
    """Return a function that draws each part of the picture, by its title."""
    panels: dict[str, Callable[[Any], None]] = {}
    rows = {name: row for name, row in probe.rows.items() if row.gradient is not None}
    if rows:
        panels["gradient norm by layer"] = _bars({name: row.gradient or 0.0 for name, row in rows.items()})
        ratios = {name: row.ratio for name, row in rows.items() if math.isfinite(row.ratio)}
        panels["update / weights by layer"] = _bars(ratios, line=1e-3)
    if probe.recording is not None and probe.recording.scales:
        panels["standard deviation of outputs"] = _bars(probe.recording.scales)
    curves = {"your optimizer": probe.curve, "Adam on one batch": probe.fit_curve}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if curves:
        panels["loss of one batch"] = _lines(curves)
    if panels:
        sizes = memory_by_part(probe)
        power = min(max(int(math.log10(max([*sizes.values(), 1]))) // 3, 1), 3)
        unit = {1: "KB", 2: "MB", 3: "GB"}[power]
        panels[f"memory in {unit}"] = _bars({name: size / 1000**power for name, size in sizes.items()}, is_log=False)
    return panels


def _bars(values: dict[str, float], line: float | None = None, is_log: bool = True) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.barh(range(len(values)), list(values.values()))
        step = -(-len(values) // MAX_LABELS)
        names = list(values)[::step]
        axes.set_yticks(range(0, len(values), step), names, fontsize=7)
        axes.invert_yaxis()
        if is_log and any(value > 0 for value in values.values()):
            axes.set_xscale("log")
        if line is not None:
            axes.axvline(line, linestyle="--", color="gray", linewidth=1)

    return draw


def _lines(curves: dict[str, list[float]]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            axes.plot(curve, marker=".", label=name)
        if all(value > 0 for curve in curves.values() for value in curve):
            axes.set_yscale("log")
        axes.set_xlabel("update")
        axes.legend()

    return draw
