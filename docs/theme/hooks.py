"""Hooks of mkdocs: version, index of error messages, descriptions, llms.txt, notebooks, and links to the other language."""

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
import notebooks  # noqa: E402

PAGES: dict[str, dict[str, str]] = {}  # the line of each English page in llms.txt, by section and URL
SUMMARY: list[str] = []  # the description of the site in the first language, which is English


def on_config(config: Any) -> Any:
    """Read the version without an import of easytorch, which would import torch."""
    source = (ROOT / "easytorch/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', source, re.M)
    assert version, "easytorch/__init__.py has no __version__"
    config.extra["version_label"] = f"v{version[1]}"
    SUMMARY.append(config.site_description.strip())
    return config


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Write the index of error messages in place of its marker."""
    if error_index.MARKER not in markdown:
        return markdown
    return markdown.replace(error_index.MARKER, error_index.render())


def on_page_content(content: str, page: Any, config: Any, **context: Any) -> str:
    """Describe a page without a description by its first paragraph, and link the notebook of a tutorial."""
    if "description" not in page.meta:
        paragraph = re.search(r"<p>(.+?)</p>", content, re.S)
        text = html.unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else page.title
        page.meta["description"] = textwrap.shorten(text, 160, placeholder=" ...").replace('"', "'")
    if not page.url.startswith("zh/"):
        section = page.ancestors[-1].title if page.ancestors else "Start"
        PAGES.setdefault(section, {})[page.url or "./"] = (
            f"[{page.title}]({page.url or './'}): {page.meta['description']}"
        )
    notebook = notebooks.file_of(page.file.src_uri)
    if not notebook:
        return content
    language = "zh" if page.file.src_uri.startswith("zh/") else "en"
    return content.replace("</h1>", "</h1>\n" + notebooks.links(notebook, page.url, config.repo_url, language), 1)


def on_post_build(config: Any) -> None:
    """Write the notebooks, and llms.txt, a list of all English pages for language models, see https://llmstxt.org."""
    notebooks.write_all(Path(config.site_dir), config.site_url, config.repo_url)
    lines = [f"# {config.site_name}", "", f"> {SUMMARY[0]}"]
    for section, pages in PAGES.items():
        lines += ["", f"## {section}", "", *(f"- {page}" for page in pages.values())]
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def on_post_page(output: str, **context: Any) -> str:
    """Hide the links to the other language from the theme, which would request a sitemap next to each of them.

    It looks for this attribute without spaces. HTML allows them. The switcher leads to the same page without the theme's help.
    """
    return output.replace('<link rel="alternate" href=', '<link rel="alternate " href=')
