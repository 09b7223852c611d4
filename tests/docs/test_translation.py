"""Chinese pages: the same headings, code, figures, links, tables and lists as the English pages."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = (
    "callbacks", "checkpoints", "data", "interrupts", "losses", "metrics", "nan-and-gradients", "resume", "saving",
    "several-loaders", "troubleshooting", "weights",
)  # fmt: skip
REQUIRED = {
    "index.md",
    "get-started.md",
    "cheat-sheet.md",
    *(f"guides/{name}.md" for name in GUIDES),
    *(path.relative_to(DOCS).as_posix() for path in DOCS.glob("tutorials/*.md")),
}
PAGES = sorted(path.relative_to(DOCS / "zh").as_posix() for path in DOCS.glob("zh/**/*.md"))

FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$", re.M | re.S
)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


class Section(NamedTuple):
    """A heading and the text below it, without blocks of code.

    Args:
        level: The number of ``#``.
        anchor: The address of the heading in its page.
        text: The text up to the next heading.
    """

    level: int
    anchor: str
    text: str


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def sections(page: str) -> list[Section]:
    parts = re.split(r"^(#+) (.+)\n", FENCE.sub("", read(page)), flags=re.M)[1:]
    found: list[Section] = []
    anchors: Counter[str] = Counter()
    for marks, heading, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        explicit = re.search(r"\{#([\w-]+)\}", heading)
        words = re.sub(r"[^\w\s-]", "", LINK.sub(lambda link: link[0][1:].partition("]")[0], heading).lower()).strip()
        anchor = explicit[1] if explicit else re.sub(r"[-\s]+", "-", words)
        count = anchors[anchor]
        anchors[anchor] += 1
        found.append(Section(len(marks), f"{anchor}_{count}" if count and not explicit else anchor, text))
    return found


def links(page: str, text: str, images: bool) -> Counter[str]:
    """Return the targets of ``text``, relative to the pages of their language."""
    targets = []
    for mark, target in LINK.findall(text):
        if bool(mark) != images:
            continue
        path, hash_sign, anchor = target.partition("#")
        if path and not re.match(r"[a-z]+:", path):
            path = os.path.normpath(Path(page).parent / path).replace(os.sep, "/").removeprefix("zh/")
        targets.append(f"{path}{hash_sign}{anchor}")
    return Counter(targets)


def test_all_required_pages_are_in_chinese():
    assert sorted(REQUIRED) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_chinese_page_has_the_same_headings(page):
    english, chinese = sections(page), sections(f"zh/{page}")
    assert [section.level for section in chinese] == [section.level for section in english]
    # The address of the title is not linked to.
    assert [section.anchor for section in chinese][1:] == [section.anchor for section in english][1:]


@pytest.mark.parametrize("page", PAGES)
def test_chinese_page_has_the_same_code(page):
    """The programs of the Chinese page are then those that another test runs."""
    assert [match[0] for match in FENCE.finditer(read(f"zh/{page}"))] == [
        match[0] for match in FENCE.finditer(read(page))
    ]


@pytest.mark.parametrize("page", PAGES)
def test_chinese_page_has_the_same_figures_and_links(page):
    for english, chinese in zip(sections(page), sections(f"zh/{page}"), strict=True):
        for images in (True, False):
            assert links(f"zh/{page}", chinese.text, images) == links(page, english.text, images), english.anchor


@pytest.mark.parametrize("page", PAGES)
def test_chinese_page_has_the_same_tables_and_lists(page):
    for english, chinese in zip(sections(page), sections(f"zh/{page}"), strict=True):
        for kind in (r"^ *\|", r"^ *(?:-|\d+\.) ", r"^(?:===|\?\?\?|!!!)"):
            counts = [len(re.findall(kind, section.text, re.M)) for section in (english, chinese)]
            assert counts[0] == counts[1], f"{english.anchor}: lines that match {kind}"


@pytest.mark.parametrize("page", PAGES)
def test_chinese_page_names_the_same_code_inline(page):
    for english, chinese in zip(sections(page), sections(f"zh/{page}"), strict=True):
        names = [set(re.findall(r"`([^`\n]+)`", section.text)) for section in (english, chinese)]
        assert names[0] == names[1], english.anchor


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_chinese_page_stay_in_chinese(page):
    """They lead to the Chinese page if there is one."""
    for section in sections(f"zh/{page}"):
        for _, target in LINK.findall(section.text):
            path = os.path.normpath(Path("zh", page).parent / target.partition("#")[0]).replace(os.sep, "/")
            assert path not in REQUIRED, f"{target} leads to the English page"


HAN = r"[\u4e00-\u9fff]"


@pytest.mark.parametrize("page", PAGES)
def test_chinese_punctuation_is_full_width_with_spaces(page):
    """Spaces separate Chinese from Latin words, numbers and code."""
    text = re.sub(r"\]\([^)\s]+\)|\{[^}]*\}", "]", FENCE.sub("", read(f"zh/{page}")))
    faults = rf"{HAN}[,;:!?.](?![\w])|[,;!?]{HAN}|[A-Za-z0-9`%]{HAN}|{HAN}[A-Za-z0-9`]|\({HAN}"
    found = [text[max(0, match.start() - 8) : match.end() + 8] for match in re.finditer(faults, text)]
    assert not found


def titles(part: Any) -> list[str]:
    if isinstance(part, str):
        return []
    if isinstance(part, list):
        return [title for entry in part for title in titles(entry)]
    return [title for name, inner in part.items() for title in (name, *titles(inner))]


def test_navigation_has_a_chinese_title_for_each_entry():
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        """Loader that reads the tags of mkdocs as plain values."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", None))
    config = yaml.load(read("../mkdocs.yml"), Loader)
    i18n = next(plugin["i18n"] for plugin in config["plugins"] if "i18n" in plugin)
    chinese = next(language for language in i18n["languages"] if language["locale"] == "zh")["nav_translations"]
    names = {
        "Keras",
        "Lightning",
        "fastai",
        "skorch",
        "Hugging Face Trainer",
        "scikit-learn",
        "Model",
        "Strategy",
    }  # which are the same in Chinese
    assert set(titles(config["nav"])) - names == set(chinese)
