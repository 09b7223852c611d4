"""Benchmarks: each command runs, and continues where it stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pages, report
from benchmarks.plan import AGAIN, CONTESTANTS, PLAN, choose_contestants

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


def read_results(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())


def test_pages_have_the_figures_of_the_results():
    for name, text in pages.render(read_results("peers"), read_results("start")).items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), f"{name}: run python -m benchmarks.pages"


def test_one_file_of_results_fills_all_pages():
    seconds = {"easytorch": 1.0, "raw": 2.0, "tuned": 1.5, "keras": 3.0, "lightning": 8.0, "ignite": 0.9}
    names = [name for name in CONTESTANTS if not name.endswith(AGAIN)]
    peers = read_results("peers")
    for workload in PLAN:
        cells = choose_contestants(workload, names, names)
        peers["rounds"][workload] = [
            {name: {"seconds": seconds.get(name.removesuffix(AGAIN), 2.5), "commit": "abc"} for name in cells}
        ]
    texts = pages.render(peers, read_results("start"))
    home = "0.12 times the time of Lightning and 0.33 times that of Keras"
    assert home in texts["README.md"]
    assert home in texts["docs/index.md"]
    assert "against nine libraries" in texts["README.md"]
    assert "Lightning 的 0.12 倍、Keras 的 0.33 倍" in texts["docs/zh/index.md"]
    assert "九个库" in texts["docs/zh/index.md"]
    speed, details = texts["docs/performance.md"], texts["docs/performance-details.md"]
    assert "trains 0.9 to 8.0 times as fast as with other libraries" in speed
    assert "the difference is at most 700%" in speed
    assert "import easytorch` takes 1.00 seconds" in speed
    assert "0.90 to 8.00 times](figures/speed.svg)" in speed
    assert re.search(r"^\| ignite +\| \*\*1.11\*\* \|", speed, re.M)
    assert "1.11 to 1.11 (ignite, LSTM)" in speed
    assert re.search(r"^\| LSTM, Adam +\| 0.50 +\| 0.75 +\|$", speed, re.M)
    assert re.search(r"^\| LSTM, Adam +\| 1.00 \| 0.50 +\| 0.75 +\| 1.00 to 1.00 +\| 1 +\|$", details, re.M)
    assert "MLP takes 1.1 ms, of the LSTM 10 ms" in details
    assert "commit abc" in details


def test_pages_refuse_results_of_a_quick_comparison():
    peers = read_results("peers")
    peers["conditions"]["size"] = "quick"
    with pytest.raises(SystemExit, match="Measure without it"):
        pages.render(peers, read_results("start"))
