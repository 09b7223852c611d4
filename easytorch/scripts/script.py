"""The text of a program, for a terminal, a file and a notebook."""

from __future__ import annotations

import html
import os
from pathlib import Path


class Script(str):
    """A program as a ``str``, which prints as the program.

    Examples:
        >>> script = model.to_script()
        >>> print(script)
        >>> script.save("train.py")
    """

    __slots__ = ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the program to a file, and return its path.

        Args:
            path: The file.

        Raises:
            OSError: If the file cannot be written.

        Examples:
            >>> path = model.to_script(x, y, epochs=2).save("train.py")
        """
        path = Path(path)
        path.write_text(self, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the program for a notebook."""
        return f'<pre class="easytorch">{html.escape(self)}</pre>'
