"""The step of a measurement that is running."""

from __future__ import annotations

import sys
from types import TracebackType

from easytorch._utils.notebook import in_notebook
from easytorch.callbacks.progress import check_verbose


class StepDisplay:
    """Displays the step that is running: on one line of a terminal or notebook that disappears, or as plain lines elsewhere.

    Args:
        title: What is running, such as ``"find_lr"``.
        verbose: 0 displays nothing, 2 plain lines everywhere.
        is_main: Whether this process displays anything; of several, rank 0 does.

    Raises:
        ValueError: If ``verbose`` is anything else than 0, 1, 2 or ``"auto"``.

    Examples:
        >>> with StepDisplay("find_lr", "auto") as display:
        ...     display.show("range test")
    """

    def __init__(self, title: str, verbose: int | str, is_main: bool = True) -> None:
        check_verbose(verbose)
        self.title = title
        self._is_shown = is_main and verbose != 0
        self._is_rewritten = verbose != 2 and (sys.stdout.isatty() or in_notebook())
        self._width = 0

    def show(self, text: str) -> None:
        """Display ``text`` as the step that is running."""
        if self._is_shown:
            self._write(f"{self.title}: {text}")

    def _write(self, line: str) -> None:
        if self._is_rewritten:
            line = line[:79]  # a line that wraps cannot be replaced
            print(f"\r{line.ljust(self._width)}", end="", flush=True)
            self._width = len(line)
        else:
            print(line, flush=True)

    def __enter__(self) -> StepDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Remove the line of a terminal or notebook."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", flush=True)
            self._width = 0
