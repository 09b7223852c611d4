"""Messages in a terminal."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO


def print_message(text: str, stream: TextIO) -> None:
    """Print ``text`` on one line; a terminal gets lines that break between words."""
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    print(text, file=stream, flush=True)
