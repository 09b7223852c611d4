"""Detection of notebooks and interactive sessions."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Return whether the program runs in a Jupyter kernel."""
    return type(_get_shell()).__name__ == "ZMQInteractiveShell"


def is_interactive() -> bool:
    """Return whether a user types the next line: in Jupyter, IPython, a Python prompt, or after ``python -i script.py``."""
    return _get_shell() is not None or hasattr(sys, "ps1") or bool(sys.flags.inspect)


def _get_shell() -> Any:
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
