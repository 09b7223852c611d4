"""Quickstart and first article example as programs, on real data if available."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.report import required_figures

ROOT = Path(__file__).parents[2]


def run(name, *options, folder, **environment):
    process = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MPLBACKEND": "Agg"} | environment,
    )
    assert process.returncode == 0, process.stderr
    printed = re.findall(r"^Result: (.+) = \S+$", process.stdout, re.MULTILINE)
    assert set(required_figures(Path(name).stem)) <= set(printed)  # the report compares them with the article
    return process.stdout


def mnist():
    """Return the folder with the MNIST files, or None. Tests download nothing."""
    for root in (os.environ.get("EASYTORCH_DATA"), ROOT / "data", ROOT.parent / "shared" / "data"):
        if root and (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
            return str(root)
    return None


needs_mnist = pytest.mark.skipif(mnist() is None, reason="MNIST is missing: run an example once, or set EASYTORCH_DATA")


@pytest.mark.slow
def test_quickstart_reaches_its_accuracy_and_reloads(tmp_path):
    out = run("quickstart.py", folder=tmp_path)
    accuracy = float(re.search(r"Test accuracy ([\d.]+)", out)[1])
    reloaded = float(re.search(r"measured again: ([\d.]+)", out)[1])
    assert accuracy >= 0.97
    assert reloaded == accuracy
    assert list(tmp_path.iterdir()) == []  # no file remains


@pytest.mark.slow
@needs_mnist
def test_seven_cells_learns_and_draws_its_figure(tmp_path):
    out = run("seven_cells.py", "--quick", "--plot", "digit.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    assert "109,386" in out
    assert float(re.findall(r"Test accuracy ([\d.]+)%", out)[1]) > 80
    assert (tmp_path / "digit.png").stat().st_size > 5000


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_has_fewer_than_100_lines(path):
    if path.stem != "report":  # the program that runs the others
        assert len(path.read_text().splitlines()) < 100
