"""The interface of all reports: text, HTML, frames, dicts and pictures."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from easytorch._utils.html_table import escape_text, format_pairs, format_table, scrolling
from easytorch._utils.pytree import to_numpy
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch._utils.text_table import align, format_rows, format_value
from easytorch.reports.estimate import Estimate

if TYPE_CHECKING:
    from easytorch.reports.intervals import Bootstrap

Array = np.ndarray[Any, Any]
Row = dict[str, Any]

# Samples with the highest loss that a report lists.
WORST = 10
# Rows of a table in the text of a report.
SHOWN_ROWS = 12


class Report(abc.ABC):
    """What the predictions of a model are worth. Every number is an ``Estimate`` with a 95% interval.

    Attributes:
        summary: The numbers over all samples, by name.
        tables: Further tables by name, each a list of rows.
        losses: The loss of each sample, ``[N]``.
        y: The targets.
        predicted: The predictions that are compared with them.
        indices: The index of each sample in the data, where some have no label that counts.
        notes: Sentences on numbers whose interval may be wrong.

    Examples:
        >>> report = model.report(x_test, y_test)
        >>> report.summary["accuracy"].low
        >>> report.to_frame("classes")
        >>> report.plot(path="report.png")
    """

    title: ClassVar[str]
    # The value that slices and comparisons are about, and whether a higher one is better.
    score_name: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __init__(
        self, y: Array, predicted: Array, losses: Array | None, bootstrap: Bootstrap, indices: Array | None = None
    ) -> None:
        if not len(y):
            raise ValueError("A report needs at least one sample, received none. Pass data that is not empty.")
        self.y, self.predicted, self.losses, self.bootstrap = y, predicted, losses, bootstrap
        self.indices = np.arange(len(y)) if indices is None else indices
        self.summary: dict[str, Estimate] = {}
        self.tables: dict[str, list[Row]] = {}
        self.notes: list[str] = []
        # How much each sample counts: the number of its positions, if each has several.
        self.weights: Array | None = None
        self.count = len(y)  # samples of the data, also those without a label that counts
        self.get_input: Callable[[int], Any] | None = None  # the input of a sample, if it can be read again

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which holds no inputs."""
        return vars(self) | {"get_input": None}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    @property
    def size(self) -> str:
        """The number of samples, as text."""
        return f"{len(self):,} samples"

    @abc.abstractmethod
    def scores(self) -> Array:
        """Return the contribution of each sample to ``score_name``, ``[N]``."""

    def score(self, members: Array) -> Estimate:
        """Return the score of the samples ``members``, ``[N]`` of booleans."""
        from easytorch.reports.intervals import Scale, proportion

        scores = self.scores()[members]
        if scores.dtype == bool:
            return proportion(scores.sum(), len(scores))
        return self.bootstrap.of_means(scores[:, None], [Scale.POSITIVE])[0]

    @abc.abstractmethod
    def worst_rows(self, indices: Array) -> list[Row]:
        """Return the rows of the table of worst samples."""

    def image_title(self, i: int) -> str:
        """Return the text above the input of sample ``i``: its index in the data."""
        return str(self.indices[i])

    @abc.abstractmethod
    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return title and drawing function of each panel of the picture."""

    def add_worst(self) -> None:
        """Add the table of the samples with the highest loss."""
        if self.losses is not None:
            self.tables["worst"] = self.worst_rows(find_largest(self.losses, WORST))

    # Output

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values: estimates are dicts with ``value``, ``low`` and ``high``.

        Examples:
            >>> report = model.report(x, y, verbose=0)
            >>> accuracy = report.to_dict()["summary"]["accuracy"]["value"]
        """
        tables = {
            name: [{key: _plain(value) for key, value in row.items()} for row in rows]
            for name, rows in self.tables.items()
        }
        return {
            "samples": len(self),
            "summary": {name: _plain(value) for name, value in self.summary.items()},
            "notes": list(self.notes),
            **tables,
        }

    def to_frame(self, table: str = "summary") -> Any:
        """Return a table as a pandas frame; an estimate becomes the columns ``name``, ``name_low`` and ``name_high``.

        Args:
            table: ``"summary"``, or a name in ``tables``.

        Raises:
            KeyError: If there is no such table.
            ImportError: If pandas is not installed.

        Examples:
            >>> report = model.report(x, y, verbose=0)
            >>> frame = report.to_frame("classes")
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install pandas") from error
        if table == "summary":
            return pandas.DataFrame(
                [estimate._asdict() for estimate in self.summary.values()],
                index=pandas.Index(self.summary, name="name"),
            )
        return pandas.DataFrame([_flatten(row) for row in self._table(table)])

    def _table(self, name: str) -> list[Row]:
        if name not in self.tables:
            known = ["summary", *self.tables]
            raise KeyError(f"The report has no table {name!r}.{did_you_mean(name, known)} It has {quote_list(known)}.")
        return self.tables[name]

    def __str__(self) -> str:
        lines = [f"{self.title}, {self.size}, 95% intervals in brackets", ""]
        lines += align([[name, str(estimate)] for name, estimate in self.summary.items()])
        lines += ["", *self.notes] if self.notes else []
        for name, rows in self.tables.items():
            if rows:
                lines += ["", name, *format_rows(rows[:SHOWN_ROWS])]
            if len(rows) > SHOWN_ROWS:
                lines.append(f"... {len(rows) - SHOWN_ROWS} more rows: report.to_frame({name!r})")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the tables for a notebook."""
        parts = [
            format_pairs({name: str(estimate) for name, estimate in self.summary.items()}, f"{self.title}, {self.size}")
        ]
        parts += [f"<div>{escape_text(note)}</div>" for note in self.notes]
        for name, rows in self.tables.items():
            shown = [{key: format_value(value) for key, value in row.items()} for row in rows[:SHOWN_ROWS]]
            parts.append(format_table(shown, title=name) if shown else "")
        return scrolling("<br>".join(filter(None, parts)))

    def plot(self, path: str | Path | None = None, show: bool | None = None) -> Any:
        """Draw the report, and return the matplotlib figure.

        Args:
            path: File to write the figure to; None writes no file.
            show: Whether the notebook or ``plt.show()`` shows the figure; by default yes, except in a script with ``path``.

        Raises:
            ImportError: If matplotlib is not installed.

        Examples:
            >>> report = model.report(x, y, verbose=0)
            >>> figure = report.plot(path="report.png", show=False)
        """
        try:
            from easytorch.training import curves
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        return curves.draw_panels([*self.panels(), *self._image_panels()], path, show)

    def _image_panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return a panel with the images of the samples with the highest loss, if the inputs are images."""
        if self.get_input is None or self.losses is None:
            return []
        worst = find_largest(self.losses, 9)
        images = [_as_image(self.get_input(int(self.indices[i]))) for i in worst]
        if any(image is None for image in images):
            return []
        return [("highest loss", lambda axes: _draw_grid(axes, images, [self.image_title(int(i)) for i in worst]))]

    # Slices and comparison

    def add_slices(self, by: Mapping[str, Array]) -> None:
        """Add a table with the score of each value of each column, and whether it is significantly worse than the rest.

        The p-values are of one-sided tests: Fisher's exact test for shares, the Mann-Whitney U test for other scores. They are
        corrected for the number of slices after S. Holm, 1979.

        Args:
            by: Columns of one value per sample, by name. Numbers of more than ten values are divided into quarters.
        """
        from easytorch.reports import slices

        self.tables["slices"] = slices.measure_slices(self, by)

    def compare(self, other: Report) -> Comparison:
        """Return whether the model of this report is better than that of ``other``, on the same samples.

        Args:
            other: The report of another model on the same samples.

        Raises:
            TypeError: If ``other`` is a report of another kind.
            ValueError: If its targets differ.

        Examples:
            >>> print(model.report(x, y).compare(old_model.report(x, y)))
        """
        from easytorch.reports import comparison

        return comparison.compare_reports(self, other)


class Comparison:
    """The difference between two models on the same samples.

    Attributes:
        name: The score that is compared.
        first: The score of the first report.
        second: The score of the second report.
        difference: First minus second, with its 95% interval.
        p_value: Probability of a difference at least as large if both models were equally good.
        test: The statistical test.
        higher_is_better: Whether a higher score is better.

    Examples:
        >>> report = model.report(x, y, verbose=0)
        >>> comparison = report.compare(report)
        >>> comparison.is_significant
        False
    """

    def __init__(
        self,
        name: str,
        first: float,
        second: float,
        difference: Estimate,
        p_value: float,
        test: str,
        higher_is_better: bool,
    ) -> None:
        self.name, self.first, self.second, self.difference = name, first, second, difference
        self.p_value, self.test, self.higher_is_better = p_value, test, higher_is_better

    @property
    def is_significant(self) -> bool:
        """Whether the p-value is below 0.05."""
        return self.p_value < 0.05

    @property
    def better(self) -> str | None:
        """``"first"`` or ``"second"`` if one of them is significantly better, otherwise None."""
        if not self.is_significant:
            return None
        return "first" if (self.difference.value > 0) == self.higher_is_better else "second"

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values.

        Examples:
            >>> report = model.report(x, y, verbose=0)
            >>> comparison = report.compare(report)
            >>> numbers = comparison.to_dict()
        """
        return {"name": self.name, "first": self.first, "second": self.second, "difference": _plain(self.difference),
                "p_value": self.p_value, "test": self.test, "better": self.better}  # fmt: skip

    def __repr__(self) -> str:
        verdict = "No significant difference" if self.better is None else f"The {self.better} model is better"
        return (
            f"{verdict}: {self.name} {self.first:.4g} and {self.second:.4g}, difference {self.difference}, "
            f"p = {self.p_value:.3g} ({self.test})"
        )


def find_largest(values: Array, count: int) -> Array:
    """Return the indices of the ``count`` largest values, the largest first, equal ones in their order, and NaN last."""
    values = np.where(np.isnan(values), -np.inf, values)
    candidates = np.arange(len(values))
    if count < len(values):
        candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {key: float(part) for key, part in value._asdict().items()}
    return value.item() if isinstance(value, np.generic) else value


def _flatten(row: Row) -> Row:
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            flat[name] = value
    return flat


def _as_image(sample: Any) -> Array | None:
    """Return a sample ``[1 or 3, height, width]``, or ``[height, width]``, as an image with values in [0, 1]; otherwise None."""
    array = np.asarray(to_numpy(sample), dtype=float) if hasattr(sample, "shape") else None
    if array is not None and array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1).squeeze()
    if array is None or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)) or min(array.shape[:2]) < 4:
        return None
    low, high = array.min(), array.max()
    image: Array = (array - low) / (high - low if high > low else 1)
    return image


def _draw_grid(axes: Any, images: Sequence[Any], titles: Sequence[str]) -> None:
    axes.set_axis_off()
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        cell = axes.inset_axes([(i % 3) / 3, 1 - (i // 3 + 1) / 3, 0.31, 0.27])
        cell.imshow(image, cmap="gray")
        cell.set_axis_off()
        cell.set_title(title, fontsize=7, pad=1)
