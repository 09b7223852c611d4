"""Hooks of mkdocs: version, index of error messages, descriptions, llms.txt, notebooks, search, links to the other language."""

from __future__ import annotations

import html
import json
import posixpath
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import error_index  # noqa: E402  # the folder of hooks is no package
import keywords  # noqa: E402
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


@event_priority(-101)  # after the plugin for languages, which writes the search index again
def on_post_build(config: Any) -> None:
    """Write the notebooks, one search index per language, and llms.txt, a list of the English pages for language models."""
    site = Path(config.site_dir)
    notebooks.write_all(site, config.site_url, config.repo_url)
    _divide_search_index(site)
    lines = [f"# {config.site_name}", "", f"> {SUMMARY[0]}"]  # see https://llmstxt.org
    for section, pages in PAGES.items():
        lines += ["", f"## {section}", "", *(f"- {page}" for page in pages.values())]
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _divide_search_index(site: Path) -> None:
    """Search each language in its pages. Pages without a translation are found in English, and stay in the Chinese site."""
    file = site / "search/search_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    english = [entry for entry in index["docs"] if not entry["location"].startswith("zh/")]
    if not english:
        return  # the build of one language; that of all languages calls the hook again
    pages = {path.relative_to(ROOT / "docs/zh").as_posix() for path in (ROOT / "docs/zh").rglob("*.md")}
    translated = {re.sub(r"(^|(?<=/))index\.md$", "", page).replace(".md", "/") for page in pages}
    chinese = []
    for entry in index["docs"]:
        location = entry["location"].removeprefix("zh/")
        if (location.partition("#")[0] in translated) == entry["location"].startswith("zh/"):
            chinese.append(entry | {"location": location})
    # Single characters such as 不 are stop words, and are parts of words.
    languages = {"": (english, "en", {"lang": ["en"]}), "zh": (chinese, "zh", {"pipeline": []})}
    for folder, (entries, language, settings) in languages.items():
        (site / folder / "search").mkdir(parents=True, exist_ok=True)
        config = index["config"] | settings
        config["fields"] |= {"keywords": config["fields"]["title"]}
        text = json.dumps({"config": config, "docs": _add_keywords(entries, language)})
        (site / folder / "search/search_index.json").write_text(text, encoding="utf-8")


def _add_keywords(entries: list[dict[str, Any]], language: str) -> list[dict[str, Any]]:
    """Add the words that a page is also found by, which the search does not show."""
    pages = {re.sub(r"(^|/)index\.md$|\.md$", "/", page): words for page, words in keywords.KEYWORDS.items()}
    missing = pages.keys() - {entry["location"] for entry in entries}
    if missing:
        raise ValueError(f"keywords.py lists pages that do not exist: {sorted(missing)}")
    return [
        entry | {"keywords": pages[entry["location"]][language == "zh"]} if entry["location"] in pages else entry
        for entry in entries
    ]


def on_post_page(output: str, page: Any, **context: Any) -> str:
    """Hide the links to the other language from the theme, which would request a sitemap next to each of them.

    It looks for this attribute without spaces. HTML allows them. The switcher leads to the same page without the theme's help.

    Chinese pages search from the folder ``zh``. The theme uses ``base`` for nothing else.
    """
    output = output.replace('<link rel="alternate" href=', '<link rel="alternate " href=')
    if not page.url.startswith("zh/"):
        return output
    output, count = re.subn(r'"base": "(?:\.\./)*\.\."', f'"base": "{posixpath.relpath("zh", page.url)}"', output)
    if count != 1:
        raise ValueError(f"{page.url} has {count} settings of the theme; expected 1.")
    return output


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Write the page for missing addresses once, in English; each language would overwrite it."""
    return "" if template_name == "404.html" and str(config.theme["language"]) != "en" else output
