"""Promise: a report counts every pixel or token once, and its intervals are about samples."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from easytorch import Model
from easytorch.reports import make_report
from easytorch.reports.intervals import Bootstrap, Scale, proportion_of_clusters
from tests.reports.test_numbers import coverage

IGNORED = -100


def maps(samples: int = 40, classes: int = 3, size: int = 6, seed: int = 0):
    """Return outputs ``[N, classes, size, size]`` and labels that they predict better than chance, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (samples, size, size), generator=generator)
    outputs = torch.randn(samples, classes, size, size, generator=generator)
    outputs += nn.functional.one_hot(y, classes).movedim(-1, 1) * 1.5
    y[:, 0, : size // 2] = IGNORED
    return outputs, y


def flat(outputs: torch.Tensor, y: torch.Tensor):
    """Return the outputs and labels of all positions that count."""
    return outputs.movedim(1, -1)[y != IGNORED], y[y != IGNORED]


def test_scores_of_pixels_are_those_of_scikit_learn():
    outputs, y = maps()
    report = make_report(outputs, y, "cross_entropy", bootstrap=0)
    rows, labels = flat(outputs, y)
    p, predicted = rows.double().softmax(1), rows.argmax(1)
    whole = make_report(rows, labels, "cross_entropy", bootstrap=0)
    shared = ("accuracy", "balanced_accuracy", "f1 (macro)", "log_loss", "brier_score", "calibration_error")
    for name in shared:
        assert report.summary[name].value == pytest.approx(whole.summary[name].value), name
    assert report.summary["accuracy"].value == metrics.accuracy_score(labels, predicted)
    assert report.summary["iou (macro)"].value == pytest.approx(
        metrics.jaccard_score(labels, predicted, average="macro")
    )
    assert report.summary["log_loss"].value == pytest.approx(metrics.log_loss(labels, p))
    iou = metrics.jaccard_score(labels, predicted, average=None)
    np.testing.assert_allclose([row["iou"].value for row in report.tables["classes"]], iou)
    np.testing.assert_array_equal(report.confusion, metrics.confusion_matrix(labels, predicted))
    assert report.size == f"{len(labels):,} positions of 40 samples"


def test_large_maps_are_read_in_parts(monkeypatch):
    outputs, y = maps()
    expected = make_report(outputs, y, bootstrap=20).to_dict()
    monkeypatch.setattr("easytorch.reports.positions.CHUNK", 500)
    monkeypatch.setattr("easytorch.reports.build.VALUES", 500)
    parts = make_report(outputs, y, bootstrap=20).to_dict()
    assert str(parts) == str(expected)


def test_losses_are_means_over_the_labels_of_a_sample():
    outputs, y = maps()
    report = make_report(outputs, y, bootstrap=0)
    expected = [nn.functional.cross_entropy(outputs[i : i + 1], y[i : i + 1]).item() for i in range(40)]
    np.testing.assert_allclose(report.losses, expected, rtol=1e-5)
    assert report.tables["worst"][0]["index"] == int(np.argmax(expected))
    error = report.tables["confident_errors"][0]
    row, column = map(int, error["position"].split(", "))
    assert str(int(y[error["index"], row, column])) == error["true"]
    assert outputs[error["index"], :, row, column].argmax() == int(error["predicted"])


def test_samples_without_labels_are_left_out():
    outputs, y = maps()
    y[::2] = IGNORED
    report = make_report(outputs, y, bootstrap=20)
    assert len(report) == 20
    assert report.indices.tolist() == list(range(1, 40, 2))
    report.add_slices({"half": np.arange(40) < 20})
    assert [row["samples"] for row in report.tables["slices"]] == [10, 10]
    with pytest.raises(ValueError, match="all labels are -100"):
        make_report(outputs, torch.full_like(y, IGNORED), bootstrap=0)
    outputs[3, 1, 5, 5] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 40 samples have NaN.*indices: 3"):
        make_report(outputs, y, bootstrap=0)


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_masks_of_one_channel_are_two_classes(threshold):
    outputs = torch.randn(30, 1, 5, 5)
    y = (outputs + torch.randn(outputs.shape) > 0).float()
    report = make_report(outputs, y, "bce_with_logits", threshold=threshold, bootstrap=0)
    predicted = (outputs.sigmoid() > (threshold or 0.5)).flatten().long()
    assert report.summary["accuracy"].value == metrics.accuracy_score(y.flatten(), predicted)
    assert report.tables["classes"][1]["iou"].value == pytest.approx(metrics.jaccard_score(y.flatten(), predicted))
    with pytest.raises(ValueError, match="Pass one label at a time"):
        make_report(outputs.expand(-1, 2, -1, -1), y.expand(-1, 2, -1, -1), "bce_with_logits", bootstrap=0)


def test_segmentation_models_have_reports(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(24, 1, 8, 8)
    y = (x[:, 0] > 0.5).long()
    model = Model(nn.Conv2d(1, 2, 1), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.1)
    model.class_names = ["dark", "bright"]
    model.fit(x, y, epochs=3, verbose=0)
    report = model.report(x, y, bootstrap=50, by={"first": np.arange(24) < 12}, verbose=0)
    assert report.summary["accuracy"].value == pytest.approx(model.evaluate(x, y, verbose=0)["accuracy"])
    assert "bright" in str(report)
    figure = report.plot(tmp_path / "report.png")
    assert [axes.get_title() for axes in figure.axes][-1] == "highest loss"
    saved, targets = model.predict((x, y), targets=True, to=tmp_path / "maps.npy", verbose=0)
    assert make_report(saved, targets, bootstrap=50).summary == report.summary


def test_positions_are_compared_over_samples():
    outputs, y = maps()
    y[5:9] = IGNORED
    worse = outputs.clone()
    worse[:20] = torch.randn_like(worse[:20])
    first, second = make_report(outputs, y, bootstrap=0), make_report(worse, y, bootstrap=0)
    result = first.compare(second)
    expected = first.summary["accuracy"].value - second.summary["accuracy"].value
    assert result.difference.value == pytest.approx(expected)
    assert result.better == "first"
    assert first.compare(first).better is None


def test_tokens_of_many_classes_are_reported():
    outputs, y = torch.randn(8, 3000, 5), torch.randint(3000, (8, 5))
    report = make_report(outputs, y, bootstrap=20)
    assert report.confusion is None
    assert sum(row["support"] for row in report.tables["classes"]) == 40


def test_one_sample_has_no_intervals():
    outputs, y = maps(samples=1)
    assert all(np.isnan(estimate.low) for estimate in make_report(outputs, y, bootstrap=20).summary.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "bootstrap"])
def test_intervals_of_dependent_positions_cover_95_percent(kind):
    def draw(seed: int):
        generator = np.random.default_rng(seed)
        totals = generator.integers(20, 60, size=60)
        counts = generator.binomial(totals, generator.beta(8, 2, size=60)).astype(float)
        if kind == "share":
            return proportion_of_clusters(counts, totals)
        return Bootstrap(400, seed).of_samples(lambda w: (w @ counts / (w @ totals))[:, None], 60, [Scale.SHARE])[0]

    assert 0.93 <= coverage(draw, 0.8) <= 0.97


class Tokens(nn.Module):
    """A module that returns its loss and logits, as those of transformers."""

    loss_type: str | None = None

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(4, classes)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        output = OrderedDict(logits=logits)
        if labels is not None and labels.is_floating_point():
            output = OrderedDict(loss=nn.functional.mse_loss(logits.squeeze(-1), labels), logits=logits)
        elif labels is not None and self.loss_type == "ForCausalLM":
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, -2), labels[:, 1:].flatten())
            output = OrderedDict(loss=loss, logits=logits)
        elif labels is not None:
            output = OrderedDict(
                loss=nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()), logits=logits
            )
        return output


@pytest.mark.parametrize("is_causal", [False, True])
def test_modules_with_a_loss_have_reports(is_causal):
    torch.manual_seed(0)
    module = Tokens()
    module.loss_type = "ForCausalLM" if is_causal else None
    model = Model(module, device="cpu").compile("adam")
    x, labels = torch.randn(20, 6, 4), torch.randint(3, (20, 6))
    labels[:, 4:] = IGNORED
    data = {"x": x, "labels": labels}
    report = model.report(data, bootstrap=0, verbose=0)
    loss = model.evaluate(data, verbose=0)["loss"]
    assert report.summary["log_loss"].value == pytest.approx(loss, rel=1e-5)
    assert len(report.y) == 20 * (3 if is_causal else 4)


def test_modules_with_a_loss_report_samples_and_numbers():
    model = Model(Tokens(), device="cpu").compile("adam")
    report = model.report({"x": torch.randn(20, 4), "labels": torch.arange(20) % 3}, bootstrap=0, verbose=0)
    assert report.title == "Classification"
    numbers = Model(Tokens(1), device="cpu").compile("adam")
    report = numbers.report({"x": torch.randn(20, 4), "labels": torch.randn(20)}, bootstrap=0, verbose=0)
    assert report.title == "Regression"
    with pytest.raises(ValueError, match="may be numbers \\('mse'\\) or labels"):
        numbers.report({"x": torch.randn(20, 4), "labels": torch.ones(20)}, bootstrap=0, verbose=0)


def test_outputs_without_a_loss_have_no_report():
    with pytest.raises(ValueError, match="no report without a loss"):
        Model(nn.Linear(4, 3), device="cpu").report(torch.randn(9, 4), torch.arange(9) % 3, verbose=0)


def test_modules_that_return_only_a_loss_have_no_report():
    outputs = {"loss": np.ones(3)}
    with pytest.raises(ValueError, match="no single array of logits"):
        make_report(outputs, torch.arange(9) % 3, None, bootstrap=0)
