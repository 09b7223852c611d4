"""Phrases to avoid, which codespell cannot find, since it compares single words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = {
    r"of (its|their|one's) own": "custom, private, further",
    r"of your own": "custom, your",
    r"go(es)? on": "continue",
    r"keeps? whole": "do not split",
}
FILES = [
    *(path for folder in ("easytorch", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")),
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
]


@pytest.mark.parametrize("phrase", PHRASES)
def test_code_and_docs_avoid_odd_phrases(phrase):
    pattern = re.compile(rf"\b{phrase}\b", re.I)
    texts = {path: path.read_text(encoding="utf-8") for path in FILES if path != Path(__file__)}
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for path, text in texts.items()
        for match in pattern.finditer(text)
    ]
    assert not found, f"Write {PHRASES[phrase]!r} instead of {found}"
