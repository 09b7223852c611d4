"""Detection of a notebook."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Return whether the program runs in a Jupyter kernel."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return type(get_shell()).__name__ == "ZMQInteractiveShell"
