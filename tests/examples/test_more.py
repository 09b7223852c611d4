"""Examples of companion notebooks and of other uses of fit."""

from __future__ import annotations

import re

import pytest

from tests.examples.test_articles_first import mnist, needs_mnist, run

pytestmark = pytest.mark.slow


def results(out):
    return {name: float(value) for name, value in re.findall(r"^Result: (.+) = (\S+)$", out, re.M)}


@needs_mnist
def test_confusion_matrix_counts_every_test_image_once(tmp_path):
    out = run("skorch_peer.py", "--quick", "--plot", "confusion.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    figures = results(out)
    matrix = [[int(count) for count in re.findall(r"\d+", row)] for row in re.findall(r"^ ?\[+([\d ]+)\]+$", out, re.M)]
    assert sum(map(sum, matrix)) == 1000
    assert sum(matrix[i][i] for i in range(10)) / 1000 == figures["test accuracy"] > 0.6
    folds = [float(value) for value in re.findall(r"^Fold \d of 5: ([\d.]+)", out, re.M)]
    assert sum(folds) / 5 == pytest.approx(figures["cross-validated accuracy"], abs=1e-4)
    assert figures["parameters"] == 92_208
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]  # the checkpoint was temporary


@needs_mnist
def test_batch_normalization_learns_faster(tmp_path):
    out = run("batchnorm.py", "--quick", "--plot", "both.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    figures = results(out)
    assert figures["test accuracy with"] > max(figures["test accuracy without"], 0.8)
    assert (figures["parameters without"], figures["parameters with"]) == (48_884, 49_320)
    assert (tmp_path / "both.png").stat().st_size > 5000


@needs_mnist
def test_both_penalties_reduce_the_weights(tmp_path):
    out = run("regularization.py", "--quick", "--plot", "four.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    figures = results(out)
    size = {name: figures[f"sum of absolute weights {name}"] for name in ("plain", "l1", "l2")}
    assert size["l1"] < size["plain"]
    assert size["l2"] < size["plain"]
    assert all(figures[f"test accuracy {name}"] > 0.5 for name in ("plain", "l1", "l2"))
    assert figures["parameters"] == 10_790
    assert (tmp_path / "four.png").stat().st_size > 5000


@needs_mnist
def test_a_frozen_backbone_is_transferred(tmp_path):
    out = run("transfer_learning.py", "--quick", "--plot", "both.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    figures = results(out)
    assert figures["test accuracy frozen"] > 0.8
    assert (figures["parameters"], figures["parameters trained"]) == (182_138, 150_282)
    assert (tmp_path / "both.png").stat().st_size > 5000


@needs_mnist
def test_gan_draws_the_requested_digits(tmp_path):
    out = run("gan.py", "--quick", "--plot", "digits.png", folder=tmp_path, EASYTORCH_DATA=mnist())
    assert results(out)["digits read as asked"] > 0.2  # by chance it would be a tenth
    assert "critic_loss" in out
    assert "generator_loss" in out
    assert (tmp_path / "digits.png").stat().st_size > 5000


def test_wasserstein_gan_finds_all_gaussians(tmp_path):
    out = run("wgan_gp.py", "--quick", "--plot", "ring.png", folder=tmp_path)
    figures = results(out)
    assert figures["samples close to a Gaussian"] > 0.2
    assert figures["share of the rarest Gaussian"] > 0.005
    assert "critic_distance" in out
    assert (tmp_path / "ring.png").stat().st_size > 5000


def test_actor_critic_balances_the_pole(tmp_path):
    out = run("actor_critic.py", "--quick", "--plot", "return.png", folder=tmp_path)
    figures = results(out)
    assert figures["steps before training"] < 40
    assert figures["steps after training"] > 120
    assert "actor_loss" in out
    assert (tmp_path / "return.png").stat().st_size > 5000


def test_a_discriminator_carries_labels_to_another_domain(tmp_path):
    figures = results(run("adversarial.py", "--quick", "--plot", "domains.png", folder=tmp_path))
    alone, against = (figures[f"accuracy without labels {name}"] for name in ("alone", "against the discriminator"))
    assert against > alone + 0.05
    assert (tmp_path / "domains.png").stat().st_size > 5000


def test_transformer_is_better_than_pair_counts(tmp_path):
    figures = results(out := run("transformer_text.py", "--quick", "--plot", "text.png", folder=tmp_path))
    assert figures["bits per letter"] < figures["bits per letter by counting pairs"] < 4
    assert "\nThe function " in out
    assert (tmp_path / "text.png").stat().st_size > 5000


def test_named_outputs_have_separate_metrics(tmp_path):
    out = run("multi_input.py", "--quick", "--plot", "losses.png", folder=tmp_path)
    figures = results(out)
    assert "loss, malignant_loss, worst_loss, malignant_accuracy, worst_mae, val_loss" in out
    assert figures["test accuracy malignant"] > 0.9
    assert figures["mean absolute error worst"] < figures["mean absolute error by the means alone"]
    assert (tmp_path / "losses.png").stat().st_size > 5000


def test_a_module_can_compute_its_loss(tmp_path):
    out = run("huggingface_model.py", "--quick", "--plot", "losses.png", folder=tmp_path)
    assert results(out)["test accuracy"] > 0.85
    assert (tmp_path / "losses.png").stat().st_size > 5000


def test_one_process_and_two_train_the_same_network(tmp_path):
    figures = results(run("many_processes.py", "--quick", folder=tmp_path))
    assert figures["test accuracy"] == figures["test accuracy of two"] > 0.7
    assert figures["largest relative difference of weights"] < 1e-9
