"""Notebooks and interactive sessions: detection, and outputs of cells."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any


def in_notebook() -> bool:
    """Return whether the program runs in a Jupyter kernel, also in one of another vendor, such as Colab."""
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(_get_shell()).__mro__)


def is_interactive() -> bool:
    """Return whether a user types the next line: in Jupyter, IPython, a Python prompt, or after ``python -i script.py``."""
    return _get_shell() is not None or hasattr(sys, "ps1") or bool(sys.flags.inspect)


class Output:
    """An output of the running cell, whose content can be replaced."""

    def __init__(self) -> None:
        self.handle: Any = None

    @property
    def is_shown(self) -> bool:
        """Whether the notebook has the output."""
        return self.handle is not None

    def show(self, page: str, text: str = "") -> None:
        """Show the HTML ``page``; frontends without HTML show ``text``."""
        self.show_value({"text/html": page, "text/plain": text}, raw=True)

    def show_value(self, value: Any, **options: Any) -> None:
        """Show ``value`` as IPython does; ``options`` are those of ``IPython.display.display``."""
        from IPython.display import display

        show: Any = display
        if self.handle is None:
            self.handle = show(value, display_id=True, **options)
        else:
            self.handle.update(value, **options)


class ShownNumbers:
    """Numbers that outputs of the running cell show, so that a value of the cell does not repeat them."""

    def __init__(self) -> None:
        self._cell: int | None = None
        self._entries: list[tuple[Callable[[], object], Output]] = []

    def add(self, numbers: object, output: Output) -> None:
        """Record that ``output``, of the running cell, shows ``numbers``."""
        self._start_cell()
        self._entries.append((_refer_to(numbers), output))

    def contain(self, numbers: object) -> bool:
        """Return whether an output of the running cell shows ``numbers``."""
        return bool(self._find(numbers))

    def remove(self, numbers: object) -> None:
        """Delete the content of the outputs of the running cell that show ``numbers``."""
        for output in self._find(numbers):
            output.show("")
        self._entries = [entry for entry in self._entries if entry[0]() is not numbers]

    def _find(self, numbers: object) -> list[Output]:
        self._start_cell()
        return [output for refer, output in self._entries if refer() is numbers]

    def _start_cell(self) -> None:
        cell = getattr(_get_shell(), "execution_count", None)
        if cell != self._cell:
            self._cell, self._entries = cell, []


def _refer_to(numbers: object) -> Callable[[], object]:
    """Return a function that returns ``numbers``, without holding an object that may hold a model."""
    try:
        return weakref.ref(numbers)
    except TypeError:  # a dict
        return lambda: numbers


SHOWN_NUMBERS = ShownNumbers()


def _get_shell() -> Any:
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
