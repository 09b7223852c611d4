"""Examples of parts 3 to 9 of article 001."""

from __future__ import annotations

import re

import pytest

from tests.examples.test_articles_first import mnist, needs_mnist, run


def results(out):
    return {name: float(value) for name, value in re.findall(r"^Result: (.+) = (\S+)$", out, re.MULTILINE)}


def has_only_figure(tmp_path):
    """Return whether the figure is the only written file."""
    return [path.name for path in tmp_path.iterdir()] == ["figure.png"] and (
        tmp_path / "figure.png"
    ).stat().st_size > 20000


@pytest.mark.slow
def test_shapes_are_traced_and_errors_name_the_layer(tmp_path):
    out = run("tensor_shapes.py", "--quick", folder=tmp_path)
    assert "[6, 28, 28] -> [6, 14, 14] -> [16, 10, 10] -> [16, 5, 5] -> [400] -> [120] -> [84] -> [10]" in out
    assert "[8, 15, 15] -> [16, 7, 7] -> [784] -> [2] -> [784] -> [16, 7, 7] -> [8, 15, 15] -> [3, 32, 32]" in out
    assert re.search(r"Layer 'hidden1'.*expects 576 features, received 400", out)
    assert results(out) == {"parameters": 62006, "autoencoder parameters": 6693}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_mnist
def test_feature_maps_come_from_a_trained_network(tmp_path):
    out = run("feature_maps.py", "--quick", "--plot", "figure.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    assert "Label 9, prediction 9" in out
    assert "filters [16, 1, 5, 5], maps [16, 28, 28]" in out
    assert "filters [32, 16, 5, 5], maps [32, 14, 14]" in out
    assert results(out)["test accuracy"] > 0.88
    assert has_only_figure(tmp_path)


@pytest.mark.slow
@needs_mnist
def test_the_best_optuna_trial_trains_a_final_model(tmp_path):
    out = run("tune_with_optuna.py", "--quick", folder=tmp_path, EASYTORCH_DATA=mnist())
    shares = [float(share) for share in re.findall(r"([\d.]+)%$", out, re.MULTILINE)]
    assert len(shares) == 6
    assert abs(sum(shares) - 100) < 0.5
    assert results(out).keys() == {"validation accuracy", "test accuracy"}
    assert min(results(out).values()) > 0.4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_mnist
def test_cross_validation_reports_folds_and_final_epoch(tmp_path):
    out = run("cross_validation.py", "--quick", folder=tmp_path, EASYTORCH_DATA=mnist())
    folds = [float(accuracy) for accuracy in re.findall(r"^ +\d .* ([\d.]+)%$", out, re.MULTILINE)]
    assert len(folds) == 2
    assert results(out)["mean test accuracy"] == round(sum(folds) / 200, 4)
    assert results(out)["mean test accuracy"] > 0.7
    assert float(re.search(r"as the article has it: ([\d.]+)%", out)[1]) < sum(folds) / 2


@pytest.mark.slow
@needs_mnist
def test_autoencoder_is_better_than_the_mean_image(tmp_path):
    out = run("autoencoder.py", "--quick", "--plot", "figure.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    losses = [float(loss) for loss in re.findall(r"val_loss ([\d.]+)", out)]
    assert losses == sorted(losses, reverse=True)
    assert results(out)["test mse"] < 0.09
    assert 0.5 < results(out)["variance explained by two components"] <= 1
    assert has_only_figure(tmp_path)


@pytest.mark.slow
@needs_mnist
def test_denoising_reduces_the_error(tmp_path):
    out = run("denoising.py", "--quick", "--plot", "figure.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    assert "squared error of the noise was 0.04" in out
    assert results(out)["test mse"] < 0.07
    assert has_only_figure(tmp_path)


@pytest.mark.slow
@needs_mnist
def test_vae_loss_is_the_sum_of_error_and_kl(tmp_path):
    out = run("vae.py", "--quick", "--plot", "figure.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    terms = re.findall(r"val_loss ([\d.]+)  val_error ([\d.]+)  val_kl ([\d.]+)", out)
    assert len(terms) == 8
    for loss, error, kl in terms:
        assert abs(float(loss) - float(error) - float(kl)) < 0.001
    assert results(out)["test loss"] < 80
    assert has_only_figure(tmp_path)
