"""Examples of the articles 000 to 004, including part 2 of 001."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.test_articles_first import ROOT, mnist, needs_mnist, run

pytestmark = pytest.mark.slow

HAS_FASHION = mnist() and (Path(mnist()) / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").exists()


def results(out):
    return {name: float(value) for name, value in re.findall(r"^Result: (.+) = (\S+)$", out, re.MULTILINE)}


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def intro_cnn(tmp_path_factory):
    """Return the output of a run of intro_cnn.py that is saved, and its folder."""
    folder = tmp_path_factory.mktemp("intro_cnn")
    return run("intro_cnn.py", "--quick", "--resume", "run", folder=folder, EASYTORCH_DATA=mnist()), folder


@needs_mnist
def test_shared_convolution_is_counted_once_and_loaded(intro_cnn):
    out, folder = intro_cnn
    assert out.count("(recursive)") == 4
    assert results(out)["parameters"] == 42378
    assert results(out)["test accuracy"] > 0.15
    assert results(out)["test accuracy after loading"] == results(out)["test accuracy"]
    assert file_names(folder) == ["run"]


@needs_mnist
def test_a_finished_run_resumes_with_the_same_result(intro_cnn):
    out, folder = intro_cnn
    again = run("intro_cnn.py", "--quick", "--resume", "run", folder=folder, EASYTORCH_DATA=mnist())
    assert results(again) == results(out)


def test_a_network_without_relu_does_not_learn(tmp_path):
    out = run("tensors_to_network.py", "--quick", "--plot", "figure.png", folder=tmp_path)
    assert "[1, 4, 12]" in out
    assert results(out)["neuron"] == 0.303
    assert results(out)["parameters"] == 850
    assert abs(results(out)["test loss without relu"] - 2.303) < 0.02
    assert results(out)["test accuracy with relu"] > 0.6
    assert (tmp_path / "figure.png").stat().st_size > 20000


def test_numpy_and_torch_have_the_same_losses(tmp_path):
    out = run("numpy_to_pytorch.py", "--quick", "--plot", "figure.png", folder=tmp_path)
    assert results(out)["mse of numpy"] == results(out)["mse of torch by hand corrected"]
    assert results(out)["mse of numpy"] == pytest.approx(results(out)["mse of torch with fit"], abs=2e-6)
    assert results(out)["mse of numpy"] < 0.05
    assert abs(results(out)["f(4)"] - 8) <= 0.03
    assert (tmp_path / "figure.png").stat().st_size > 20000


@needs_mnist
def test_predictions_are_written_to_a_csv_file(tmp_path):
    out = run(
        "identify_the_digits.py", "--quick", "--submission", "answers.csv", folder=tmp_path, EASYTORCH_DATA=mnist()
    )
    assert "3,430 images to learn from, 1,470 held back" in out
    assert results(out)["parameters"] == 397510
    assert results(out)["validation accuracy"] > 0.85
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000
    assert rows[999]["filename"] == "999.png"
    assert {row["label"] for row in rows} == set("0123456789")
    assert file_names(tmp_path) == ["answers.csv"]


@pytest.mark.skipif(not HAS_FASHION, reason="Fashion-MNIST is missing: run fashion_cnn.py once, or set EASYTORCH_DATA")
def test_last_receptive_field_covers_the_image(tmp_path):
    out = run("fashion_cnn.py", "--quick", "--plot", "figure.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    assert "Ankle boot, Pullover, Trouser, Trouser, Shirt, Trouser" in out
    assert re.findall(r"(\d+) x \1$", out, re.MULTILINE) == ["3", "5", "7", "8", "8", "12", "16", "16", "28"]
    assert "1.11 MB forth and back, 0.19 MB of parameters, 1.30 MB in all" in out
    assert results(out)["parameters"] == 48884
    assert results(out)["test accuracy"] > 0.4
    assert (tmp_path / "figure.png").stat().st_size > 20000


@needs_mnist
def test_sampling_and_weights_raise_the_recall(tmp_path):
    out = run("datasets.py", "--quick", folder=tmp_path, EASYTORCH_DATA=mnist())
    recalls = {name.removeprefix("eights found "): recall for name, recall in results(out).items()}
    assert recalls["sampled"] > recalls["as it is"]
    assert recalls["weighted"] > recalls["as it is"]
    assert recalls["weighted sample by sample"] == recalls["weighted"]
    assert file_names(tmp_path) == []


ARTICLES = ("intro_cnn", "seven_cells", "fashion_cnn", "tensors_to_network", "numpy_to_pytorch")


@pytest.mark.parametrize("name", ARTICLES)
def test_the_script_in_the_tutorial_is_what_the_example_prints(name, tmp_path):
    needs_data = name in ("intro_cnn", "seven_cells", "fashion_cnn")
    if needs_data and not (HAS_FASHION if name == "fashion_cnn" else mnist()):
        pytest.skip("the images are missing: run the example once, or set EASYTORCH_DATA")
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), "--script"]
    environment = os.environ | ({"EASYTORCH_DATA": mnist()} if needs_data else {})
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    quoted = (ROOT / "docs" / "tutorials" / "scripts" / f"{name}.txt").read_text(encoding="utf-8")
    assert result.stdout.endswith(f"\n{quoted}\n")
    assert list(tmp_path.iterdir()) == []
