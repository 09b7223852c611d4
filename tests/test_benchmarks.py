"""Benchmarks: each command runs, and continues where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[1]
TITLES = [
    "Tests marked gpu",
    "Same weights as the loop",
    "Waits for the device per step",
    "Peak memory",
    "Time of a step",
    "Data",
    "One process of a group",
]


def run_benchmark(folder: Path, *options: str) -> str:
    """Run the benchmark on the CPU and return its tables as Markdown."""
    files = ["--markdown", str(folder / "gpu.md"), "--json", str(folder / "gpu.json")]
    run_command("gpu", "--device", "cpu", "--quick", "--skip-tests", *files, *options)
    return (folder / "gpu.md").read_text() if (folder / "gpu.md").exists() else ""


def run_command(name: str, *options: str) -> str:
    """Run a benchmark, and return what it printed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu(tmp_path):
    markdown = run_benchmark(tmp_path)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [line.removeprefix("### ") for line in markdown.splitlines() if line.startswith("###")] == TITLES
    assert "| error" not in markdown
    assert {row[2] for row in results["Same weights as the loop"][1:]} == {"0.0e+00"}
    assert {row[2] for row in results["One process of a group"][1:]} == {"0.0e+00"}


@pytest.mark.slow
def test_gpu_benchmark_keeps_its_limit_of_time(tmp_path):
    printed = run_command("gpu", "--device", "cpu", "--quick", "--limit", "0")
    assert printed.count("Not measured") == len(TITLES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
def test_comparison_continues_an_incomplete_round(tmp_path):
    path = tmp_path / "results.json"
    options = ["--quick", "--only", "predict", "--peers", "tuned", "--rounds", "1", "--json", str(path)]
    run_command("peers", *options)
    results = json.loads(path.read_text())
    (cells,) = results["rounds"]["predict"]
    assert set(cells) == {"raw", "raw-again", "tuned", "easytorch"}
    assert cells["easytorch"]["check"] == pytest.approx(cells["raw"]["check"])
    del cells["tuned"]
    path.write_text(json.dumps(results))
    printed = run_command("peers", *options, "--markdown", str(tmp_path / "table.md"))
    (continued,) = json.loads(path.read_text())["rounds"]["predict"]
    assert continued == cells | {"tuned": continued["tuned"]}
    assert (tmp_path / "table.md").read_text().strip() in printed


def test_report_compares_rounds_of_one_commit():
    def cells(commit, **seconds):
        return {name: {"seconds": value, "commit": commit} for name, value in seconds.items()}

    rounds = [
        cells("a", raw=1.0, easytorch=9.0),
        cells("b", raw=1.0, easytorch=0.5),
        cells("b", raw=2.0, easytorch=1.0),
    ]
    (selected,) = report.select_rounds({"rounds": {"mlp": rounds}}).values()
    assert report.compute_ratios("mlp", selected)["easytorch"] == [0.5, 0.5]
    assert report.compare("easytorch", "raw", selected) == [0.5, 0.5]


@pytest.mark.slow
def test_growth_and_start_write_their_tables(tmp_path):
    files = ["--json", str(tmp_path / "results.json"), "--markdown", str(tmp_path / "table.md")]
    run_command("growth", "--only", "callbacks,samples", "--largest", "1000", "--rounds", "1", *files)
    points = json.loads((tmp_path / "results.json").read_text())["points"]
    assert {curve: set(counts) for curve, counts in points.items()} == {
        "callbacks": {"0", "1", "5", "20"},
        "samples": {"1000"},
    }
    options = ["--only", "resume,load", "--width", "64", "--epochs", "20", "--rounds", "1"]
    assert "resume, with a history of 20 epochs" in run_command("start", *options, *files)
