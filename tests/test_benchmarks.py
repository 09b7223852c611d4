"""Benchmark for accelerators: the command runs without one, and keeps its limit of time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--skip-tests"]
    files = ["--markdown", str(folder / "gpu.md"), "--json", str(folder / "gpu.json")]
    subprocess.run([*command, *files, *options], cwd=ROOT, check=True, capture_output=True, timeout=300)
    return (folder / "gpu.md").read_text() if (folder / "gpu.md").exists() else ""


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
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--limit", "0"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
    assert printed.count("Not measured") == len(TITLES)
