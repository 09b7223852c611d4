"""Scores of parts of the samples."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from easytorch._utils.pytree import to_numpy
from easytorch.data.tables import as_values, get_column, get_names, is_frame, is_series
from easytorch.reports.base import Array, Report, Row

# A column of more different numbers is divided into quarters.
MAX_VALUES = 10
SIGNIFICANCE = 0.05
# Different texts of a column.
MAX_SLICES = 1000
MICROSECONDS_PER_DAY = 86_400_000_000


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
                f"by={name!r} expects one value per sample, {report.count}, received shape {list(values.shape)}. Pass a column "
                "of the data that was reported on."
            )
        values = values[report.indices]
        for label, members in _parts(name, values):
            row = {
                "column": name,
                "value": label,
                "samples": int(members.sum()),
                report.score_name: report.score(members),
            }
            rows.append(row | {"p_value": _p_value(report, scores[members], scores[~members])})
    for row, p_value in zip(rows, _correct([row["p_value"] for row in rows]), strict=True):
        row["p_value"], row["is_worse"] = p_value, bool(p_value < SIGNIFICANCE)
    return sorted(rows, key=lambda row: row["p_value"])


def _parts(name: str, column: Array) -> Iterator[tuple[str, Array]]:
    """Yield name and members of each part of a column, at the end those without a value.

    Raises:
        ValueError: If there are too many different texts.
    """
    values, is_missing = _read_values(column)
    present = np.flatnonzero(~is_missing)

    def members(is_member: Array) -> Array:
        mask = np.zeros(len(column), dtype=bool)
        mask[present[is_member]] = True
        return mask

    if values.dtype.kind in "iufmM" and len(np.unique(values)) > MAX_VALUES:
        numbers, show = _as_numbers(values)
        inner = np.quantile(numbers[np.isfinite(numbers)], [0.25, 0.5, 0.75])
        edges = np.unique([numbers.min(), *inner, numbers.max()])
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            is_last = i == len(edges) - 2
            part = (numbers >= low) & ((numbers <= high) if is_last else (numbers < high))
            yield f"{show(low)} to {show(high)}", members(part)
    else:
        distinct, positions = np.unique(values, return_inverse=True)
        if len(distinct) > MAX_SLICES:
            raise ValueError(
                f"by={name!r} has {len(distinct)} different values, but a slice needs several samples. Pass a column of groups."
            )
        for i, value in enumerate(distinct):
            yield str(value), members(positions == i)
    if is_missing.any():
        yield "missing", is_missing


def _read_values(column: Array) -> tuple[Array, Array]:
    """Return the values that are not missing, as numbers, times or text, and which are missing."""
    if column.dtype.kind != "O":
        is_missing = column != column  # NaN and NaT
        present = column[~is_missing]
        return (present if column.dtype.kind in "iufmM" else present.astype(str)), is_missing
    missing = (
        value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value) for value in column
    )
    is_missing = np.fromiter(missing, dtype=bool, count=len(column))
    listed = column[~is_missing].tolist()
    if listed and all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in listed):
        return np.array(listed), is_missing
    if listed and all(isinstance(value, datetime.date) for value in listed):
        times = [value.replace(tzinfo=None) if isinstance(value, datetime.datetime) else value for value in listed]
        return np.array(times, dtype="datetime64[us]"), is_missing
    return np.array([str(value) for value in listed], dtype=str), is_missing


def _as_numbers(values: Array) -> tuple[Array, Callable[[float], str]]:
    """Return numbers in the order of ``values``, and a function that shows such a number as one of them."""
    if values.dtype.kind == "M":
        numbers = values.astype("datetime64[us]").astype(np.int64)
        unit: Any = "D" if np.ptp(numbers) > MAX_VALUES * MICROSECONDS_PER_DAY else "s"
        return numbers.astype(float), lambda x: str(np.datetime_as_string(np.datetime64(int(x), "us"), unit=unit))
    if values.dtype.kind == "m":
        numbers = values.astype("timedelta64[us]").astype(np.int64).astype(float)
        return numbers, lambda x: str(datetime.timedelta(microseconds=int(x)))
    return values.astype(float), lambda x: f"{x:.4g}"


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
    if is_frame(by):
        return {str(name): as_values(get_column(by, name)) for name in get_names(by)}
    if isinstance(by, (list, tuple)) and by and all(isinstance(name, str) for name in by) and len(by) != count:
        return {name: _column(name, name, x, count) for name in by}
    name = by if isinstance(by, str) else getattr(by, "__name__", getattr(by, "name", None) or "by")
    return {str(name): _column(name, by, x, count)}


def _column(name: Any, value: Any, x: Any, count: int) -> Array:
    if isinstance(value, str):
        source: Any = {} if isinstance(x, Tensor) else x
        try:
            value = source[value]
        except (KeyError, IndexError, TypeError):
            columns = get_names(x) if is_frame(x) else list(x) if isinstance(x, Mapping) else []
            raise ValueError(
                f"by={value!r} is no column of x, which has {columns}. Pass by={{{value!r}: values}}."
            ) from None
    elif callable(value):
        value = value(x)
    if is_series(value):
        return as_values(value)
    return np.asarray(to_numpy(value))
