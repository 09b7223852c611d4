"""HTML tables for notebooks."""

from __future__ import annotations

from easytorch._utils.html_table import format_pairs, format_table


def test_numbers_do_not_break_and_sentences_do():
    rows = [{"name": "a", "value": "0.7 [0.6, 0.8]", "why": "short"}, {"name": "b", "value": "1", "why": 10 * "long "}]
    table = format_table(rows)
    assert '<td style="white-space:nowrap">0.7 [0.6, 0.8]</td>' in table
    # All cells of a column are alike.
    assert table.count("text-align:left;white-space:normal") == 2
    assert '<th style="text-align:left;white-space:pre">why</th>' in table


def test_columns_of_sentences_can_be_named():
    assert "white-space:normal" in format_table([{"": "info", "fix": ""}], sentences=("fix",))


def test_pairs_break_if_they_are_sentences():
    assert "white-space:normal" in format_pairs({"a": 10 * "long "}, "title")
    assert "white-space:normal" not in format_pairs({"a": "0.7 [0.6, 0.8]"}, "title")


def test_text_is_escaped():
    assert "<b>" not in format_table([{"<b>": "<b>"}], title="<b>") + format_pairs({"<b>": "<b>"}, "<b>")
