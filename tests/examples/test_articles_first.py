"""The examples run as a reader would run them, on real data where it is at hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name, *options, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MPLBACKEND": "Agg"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mnist():
    """Return the folder with the MNIST files, where somebody has them: tests load nothing from the network."""
    for root in (os.environ.get("EASYTORCH_DATA"), ROOT / "data", ROOT.parent / "shared" / "data"):
        if root and (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
            return str(root)
    return None


needs_mnist = pytest.mark.skipif(mnist() is None, reason="no MNIST here: run an example once, or set EASYTORCH_DATA")


@pytest.mark.slow
def test_the_quickstart_reads_the_digits(tmp_path):
    out = run("quickstart.py", folder=tmp_path)
    accuracy = float(re.search(r"Test accuracy ([\d.]+)", out)[1])
    again = float(re.search(r"measured again: ([\d.]+)", out)[1])
    assert accuracy >= 0.97
    assert again == accuracy
    assert list(tmp_path.iterdir()) == []  # nothing is written that nobody asked for


@needs_mnist
def test_seven_cells_learns_and_draws_its_figure(tmp_path):
    out = run("seven_cells.py", "--quick", "--plot", "digit.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    assert "109,386" in out
    assert float(re.findall(r"Test accuracy ([\d.]+)%", out)[1]) > 80
    assert (tmp_path / "digit.png").stat().st_size > 5000


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_read_on_less_than_a_hundred_lines(path):
    if path.stem != "report":  # the tool that runs the others
        assert len(path.read_text().splitlines()) < 100
