"""Report of the examples: runs, cache, results, and failures."""

from __future__ import annotations

import json

import pytest

from examples import report
from tests.examples.test_articles_first import ROOT

CODE = """'''Print the required results.'''
import argparse

options = argparse.ArgumentParser()
options.add_argument("--quick", action="store_true")
options.add_argument("--seed", type=int)
args = options.parse_args()

# A comment is not a line of code
print(f"Result: accuracy = {0.9 + 0.01 * args.seed:.3f}")
print("Result: parameters = 1234")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with one example, ``small``, whose article reaches 0.91."""
    (tmp_path / "small.py").write_text(CODE.replace("'''", '"""'))
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "EXAMPLES", {"small": ["007", "accuracy ≥ 0.91"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_is_in_the_table():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "report"}
    assert files == set(report.EXAMPLES)


def test_page_shows_the_mean_over_seeds_and_the_reference(folder):
    assert report.main(["--out", "results.md"]) == 0
    page = (folder / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| [small]("))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1:5] == ["007", "accuracy", "91%", "91.0\u00a0±\u00a01.0%"]
    assert str(folder) not in page


@pytest.mark.parametrize(
    ("sign", "target", "reached"), [("≥", 0.911, "**no**"), ("≤", 0.91, "yes"), ("=", 0.91, "yes"), ("≈", 0.93, "yes")]
)
def test_a_number_is_reached_in_the_better_direction(folder, monkeypatch, sign, target, reached):
    monkeypatch.setitem(report.EXAMPLES, "small", ["007", f"accuracy {sign} {target}"])
    runs = report.run_all(["small"], [0, 1, 2], False, folder / "cache")
    assert [row[report.COLUMNS.index("reached")] for row in report.rows("small", runs["small"], False)] == [reached]


def test_finished_runs_are_cached_until_the_example_changes(folder, capsys):
    report.main(["--out", "results.md", "--seeds", "0"])
    (folder / "small.py").write_text((folder / "small.py").read_text().replace("0.9 +", "0.8 +"))
    cache_file = folder / ".report" / "small-full-0.json"
    assert "0.900" in cache_file.read_text()
    report.main(["--out", "results.md", "--seeds", "0"])
    assert "0.800" in cache_file.read_text()

    before = cache_file.stat().st_mtime_ns
    report.main(["--out", "results.md", "--seeds", "0,1"])
    assert cache_file.stat().st_mtime_ns == before  # only the second seed was run
    assert (folder / ".report" / "small-full-1.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "reruns"),
    [
        ("# A comment", "# Another comment", False),
        ("Print the required results.", "Prints a number.", False),
        ("print(f", "print( f", False),
        ("Result: accuracy =", "Result: accuracy = 0.5\\nResult: accuracy =", True),
    ],
    ids=["comment", "docstring", "spaces", "text"],
)
def test_only_code_changes_invalidate_a_finished_run(folder, old, new, reruns):
    source, cache_file = (folder / "small.py").read_text(), folder / ".report" / "small-full-0.json"
    report.main(["--out", "results.md", "--seeds", "0"])
    before = json.loads(cache_file.read_text())
    assert old in source
    (folder / "small.py").write_text(source.replace(old, new))
    report.main(["--out", "results.md", "--seeds", "0"])
    assert (json.loads(cache_file.read_text())["content"] != before["content"]) == reruns


def test_other_options_invalidate_a_finished_run(folder, monkeypatch):
    report.main(["--out", "results.md", "--seeds", "0"])
    monkeypatch.setitem(report.OPTIONS, "small", ["--seed", "1"])
    report.main(["--out", "results.md", "--seeds", "0"])
    assert "| 91.0% |" in (folder / "results.md").read_text()


def test_a_long_example_runs_with_one_seed(folder, monkeypatch):
    monkeypatch.setattr(report, "ONE_SEED", {"small"})
    report.main(["--out", "results.md"])
    assert [path.name for path in (folder / ".report").iterdir()] == ["small-full-0.json"]
    page = (folder / "results.md").read_text()
    assert "| 90.0% |" in page
    assert "one seed for: small" in page


def test_quick_writes_no_page(folder, capsys):
    assert report.main(["--quick"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".report", "small.py"]
    assert "0.900" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [["--quick"], ["--out", "results.md"]])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('it failed')", "it failed"),
        ("import warnings; warnings.warn('it is old')", "it is old"),
        ("print('Result: loss = 1')", "did not print accuracy"),
    ],
)
def test_a_failure_is_reported_without_a_page(folder, capsys, mode, code, message):
    (folder / "small.py").write_text(code)
    assert report.main(mode) == 1
    assert message in capsys.readouterr().out
    assert not (folder / "results.md").exists()
