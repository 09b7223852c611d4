"""Hooks of mkdocs: version, index of error messages, descriptions, and links to the other language."""

from __future__ import annotations

import html
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import error_index  # noqa: E402  # the folder of hooks is no package


def on_config(config: Any) -> Any:
    """Read the version without an import of easytorch, which would import torch."""
    source = (ROOT / "easytorch/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', source, re.M)
    assert version, "easytorch/__init__.py has no __version__"
    config.extra["version_label"] = f"v{version[1]}"
    return config


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Write the index of error messages in place of its marker."""
    if error_index.MARKER not in markdown:
        return markdown
    return markdown.replace(error_index.MARKER, error_index.render())


def on_page_content(content: str, page: Any, **context: Any) -> None:
    """Describe a page without a description by its first paragraph."""
    if "description" not in page.meta:
        paragraph = re.search(r"<p>(.+?)</p>", content, re.S)
        text = html.unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else page.title
        page.meta["description"] = textwrap.shorten(text, 160, placeholder=" ...").replace('"', "'")


def on_post_page(output: str, **context: Any) -> str:
    """Hide the links to the other language from the theme, which would request a sitemap next to each of them.

    It looks for this attribute without spaces. HTML allows them. The switcher leads to the same page without the theme's help.
    """
    return output.replace('<link rel="alternate" href=', '<link rel="alternate " href=')
