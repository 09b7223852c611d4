"""Hooks of mkdocs: the version in the header."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    """Read the version without an import of easytorch, which would import torch."""
    source = (ROOT / "easytorch/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', source, re.M)
    assert version, "easytorch/__init__.py has no __version__"
    config.extra["version_label"] = f"v{version[1]}"
    return config
