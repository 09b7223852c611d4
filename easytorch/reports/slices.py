"""Scores of parts of the samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats

from easytorch.reports.base import Array, Report, Row
from easytorch.reports.estimate import Estimate
from easytorch.reports.intervals import proportion

# A column of more different numbers is divided into quarters.
MAX_VALUES = 10
SIGNIFICANCE = 0.05


def measure_slices(report: Report, by: Mapping[str, Array]) -> list[Row]:
    """Return a row for each value of each column: samples, score, p-value, and whether it is significantly worse than the rest.

    Raises:
        ValueError: If a column has another length than the report.
    """
    scores = report.scores()
    rows: list[Row] = []
    for name, column in by.items():
        values = np.asarray(column)
        if values.ndim != 1 or len(values) != report.count:
            raise ValueError(
                f"by={name!r} expects one value per sample, {report.count}, received shape {list(values.shape)}."
            )
        values = values[report.indices]
        for label, members in _parts(values):
            row = {
                "column": name,
                "value": label,
                "samples": int(members.sum()),
                report.score_name: _score(report, scores[members]),
            }
            rows.append(row | {"p_value": _p_value(report, scores[members], scores[~members])})
    for row, p_value in zip(rows, _correct([row["p_value"] for row in rows]), strict=True):
        row["p_value"], row["is_worse"] = p_value, bool(p_value < SIGNIFICANCE)
    return sorted(rows, key=lambda row: row["p_value"])


def _parts(values: Array) -> Iterator[tuple[str, Array]]:
    """Yield name and members of each part of a column."""
    is_number = np.issubdtype(values.dtype, np.number)
    if is_number and len(np.unique(values)) > MAX_VALUES:
        edges = np.unique(np.nanquantile(values, [0, 0.25, 0.5, 0.75, 1]))
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            members = (values >= low) & ((values < high) if i < len(edges) - 2 else (values <= high))
            yield f"{low:.4g} to {high:.4g}", members
        if np.isnan(values.astype(float)).any():
            yield "missing", np.isnan(values.astype(float))
        return
    texts = values.astype(str)
    for text in np.unique(texts):
        yield str(text), texts == text


def _score(report: Report, scores: Array) -> Estimate:
    if scores.dtype == bool:
        return proportion(scores.sum(), len(scores))
    return report.bootstrap.of_samples(lambda weights: (weights @ scores / weights.sum(1))[:, None], len(scores))[0]


def _p_value(report: Report, inside: Array, outside: Array) -> float:
    """Return the probability of scores at least as bad inside of the part if it were like the rest."""
    if not len(inside) or not len(outside):
        return 1.0
    if inside.dtype == bool:
        table = [[inside.sum(), (~inside).sum()], [outside.sum(), (~outside).sum()]]
        return float(stats.fisher_exact(table, alternative="less").pvalue)
    worse = "less" if report.higher_is_better else "greater"
    return float(stats.mannwhitneyu(inside, outside, alternative=worse).pvalue)


def _correct(p_values: list[float]) -> list[float]:
    """Return p-values for all tests together. Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def read_columns(by: Any, x: Any, count: int) -> dict[str, Array]:
    """Return the columns of ``by``: a dict, a frame, a function of the inputs, a column of them by name, or an array.

    Raises:
        ValueError: If ``by`` names no column of ``x``.
    """
    if isinstance(by, Mapping):
        return {str(name): _column(name, value, x, count) for name, value in by.items()}
    if hasattr(by, "columns") and hasattr(by, "iloc"):
        return {str(name): by[name].to_numpy() for name in by.columns}
    if isinstance(by, (list, tuple)) and by and all(isinstance(name, str) for name in by) and len(by) != count:
        return {name: _column(name, name, x, count) for name in by}
    name = by if isinstance(by, str) else getattr(by, "__name__", getattr(by, "name", None) or "by")
    return {str(name): _column(name, by, x, count)}


def _column(name: Any, value: Any, x: Any, count: int) -> Array:
    if isinstance(value, str):
        try:
            value = x[value]
        except (KeyError, IndexError, TypeError):
            columns = list(getattr(x, "columns", x if isinstance(x, Mapping) else []))
            raise ValueError(
                f"by={value!r} is no column of x, which has {columns}. Pass by={{{value!r}: values}}."
            ) from None
    elif callable(value):
        value = value(x)
    if hasattr(value, "to_numpy"):
        return np.asarray(value.to_numpy())
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
