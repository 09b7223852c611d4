"""Report of a check: findings as a table, a frame, a dict or a picture."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easytorch._utils.html_table import format_table, scrolling, stacked
from easytorch.checks.base import SEVERITIES, Finding

# Characters of a line of text, at most and at least.
MAX_WIDTH, MIN_WIDTH = 110, 60
# Parts of the picture, by name.
Panels = Mapping[str, Callable[[Any], None]]


class CheckReport(Sequence[Finding]):
    """What ``Model.check`` has found: a sequence of findings, the most severe first.

    Attributes:
        findings: All findings.
        title: What was checked.

    Examples:
        >>> report = model.check(x, y)
        >>> messages = [finding.message for finding in report.problems]
        >>> "constant_columns" in report
        False
    """

    def __init__(self, findings: Sequence[Finding], title: str, panels: Panels) -> None:
        self.findings = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
        self.title = title
        self._panels = dict(panels)

    @property
    def problems(self) -> list[Finding]:
        """The errors and the warnings: ``assert not model.check(x, y).problems``."""
        return [finding for finding in self.findings if finding.is_problem]

    @property
    def errors(self) -> list[Finding]:
        """What cannot work."""
        return self._select("error")

    @property
    def warnings(self) -> list[Finding]:
        """What makes the result worse."""
        return self._select("warning")

    @property
    def facts(self) -> list[Finding]:
        """What is no problem, such as times and memory."""
        return self._select("info")

    def _select(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    # A sequence of findings, whose names are known too

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __contains__(self, name: object) -> bool:
        return any(name in (finding, finding.name) for finding in self.findings)

    def __getitem__(self, key: Any) -> Any:
        """Return the finding with a number or a name."""
        if not isinstance(key, str):
            return self.findings[key]
        found = next((finding for finding in self.findings if finding.name == key), None)
        if found is None:
            names = ", ".join(dict.fromkeys(finding.name for finding in self.findings))
            raise KeyError(f"There is no finding {key!r}. The names are {names}.")
        return found

    # Output

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values: a list of rows for each severity.

        Examples:
            >>> report = model.check(x, y)
            >>> findings = report.to_dict()
        """
        return {severity: [_row(finding) for finding in self._select(severity)] for severity in SEVERITIES}

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each finding.

        Raises:
            ImportError: If pandas is not installed.

        Examples:
            >>> report = model.check(x, y)
            >>> frame = report.to_frame()
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install pandas") from error
        columns = ["severity", "name", "message", "fix", "value"]
        rows = [{"severity": finding.severity, **_row(finding)} for finding in self.findings]
        return pandas.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        width = max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))
        indent = 2 + max((len(finding.severity) for finding in self.findings), default=0)
        lines = [f"{self.title}: {self._count()}"]
        for finding in self.findings:
            name = f"{finding.name}: " * finding.is_problem
            text = f"{name}{finding.message}"
            lines += _wrap(text, finding.severity.ljust(indent), indent, width)
            lines += _wrap(f"Fix: {finding.fix}", " " * indent, indent, width) if finding.fix else []
        return "\n".join(lines)

    __repr__ = __str__

    def _count(self) -> str:
        counts = [(len(self.errors), "error"), (len(self.warnings), "warning")]
        parts = [f"{count} {name}{'s' * (count != 1)}" for count, name in counts if count]
        return " and ".join(parts) or "no problems"

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        rows = [{"": finding.severity, "finding": finding.message, "fix": finding.fix} for finding in self.findings]
        table = format_table(rows, title=f"{self.title}: {self._count()}", sentences=("finding", "fix"))
        return scrolling(stacked(table))

    def plot(self, path: str | Path | None = None, show: bool | None = None) -> Any:
        """Draw gradients and updates by layer and the losses of the trial, and return the matplotlib figure.

        Args:
            path: File to write the figure to; None writes no file.
            show: Whether the notebook or ``plt.show()`` shows the figure; by default yes, except in a script with ``path``.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no step could be tried, so that there is nothing to draw.

        Examples:
            >>> report = model.check(x, y)
            >>> figure = report.plot(path="check.png", show=False)
        """
        if not self._panels:
            raise ValueError("There is nothing to draw, because no training step could be tried. Fix the errors first.")
        try:
            from easytorch.training import curves
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        return curves.draw_panels(list(self._panels.items()), path, show)


def _row(finding: Finding) -> dict[str, Any]:
    return {"name": finding.name, "message": finding.message, "fix": finding.fix, "value": finding.value}


def _wrap(text: str, first: str, indent: int, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * indent, break_long_words=False)
