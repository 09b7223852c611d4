"""Examples of the tutorials that are named by their task."""

from __future__ import annotations

import re
import sys

import pytest

from tests.examples.test_articles_first import ROOT, run

pytestmark = pytest.mark.slow
RESULT = re.compile(r"^Result: (.+) = (\S+)$", re.M)


def results(out):
    return {name: float(value) for name, value in RESULT.findall(out)}


def quoted(page):
    """Return the results that a page quotes, of the full program."""
    return results((ROOT / "docs" / "tutorials" / f"{page}.md").read_text(encoding="utf-8"))


def test_a_table_with_missing_values_beats_a_linear_model(tmp_path):
    figures = results(run("tabular.py", folder=tmp_path))
    assert figures == pytest.approx(quoted("table"), abs=0.03)
    assert figures["test accuracy"] > figures["test accuracy of logistic regression"] + 0.02


def test_a_folder_of_images_is_learned_without_a_download(tmp_path):
    out = run("image_folder.py", "--quick", folder=tmp_path)
    losses = [float(loss) for loss in re.findall(r"  loss ([\d.]+)", out)]
    assert losses[-1] < losses[0]
    assert results(out).keys() == quoted("image-folder").keys()
    assert re.search(r"^\w+/\d+\.png is predicted as (circle|square|triangle)$", out, re.M)
    assert not list(tmp_path.iterdir())


def test_the_head_learns_alone_with_pretrained_weights(monkeypatch, capsys):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    original = models.resnet18
    # The weights of ImageNet, without the download
    monkeypatch.setattr(models, "resnet18", lambda weights: original())
    monkeypatch.setattr(sys, "argv", ["image_folder.py", "--quick", "--pretrained"])
    source = (
        (ROOT / "examples" / "image_folder.py").read_text(encoding="utf-8").replace("size = 224 if", "size = 32 if")
    )
    namespace = {"__name__": "__main__", "__doc__": "An example."}
    exec(compile(source, "image_folder.py", "exec"), namespace)
    assert namespace["model"].history.epoch[-1] == 5
    assert "Result: validation accuracy" in capsys.readouterr().out


def test_a_transformer_learns_what_word_counts_cannot(tmp_path):
    out = run("text_classification.py", folder=tmp_path)
    figures = results(out)
    assert figures == pytest.approx(quoted("text-classification"), abs=0.06)
    assert figures["validation accuracy of the transformer"] > 0.95
    assert "The music was really good: positive" in out
    assert "The music was not really good: negative" in out


def test_a_forecast_beats_the_last_week(tmp_path):
    figures = results(run("time_series.py", "--plot", "forecast.png", folder=tmp_path))
    assert figures == pytest.approx(quoted("time-series"), rel=0.05)
    assert figures["test mae"] < 0.7 * figures["test mae of the last week"]
    assert (tmp_path / "forecast.png").stat().st_size > 5000
