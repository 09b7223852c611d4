"""Promise: the numbers of a report are those of scikit-learn and torchmetrics, and their intervals cover 95%."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from sklearn.datasets import load_diabetes, load_digits
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.intervals import CASES, draw_numbers, measure_case, normal
from easytorch.reports import Estimate, make_report
from easytorch.reports.base import find_largest
from easytorch.reports.classification import Ranking, measure_areas
from easytorch.reports.comparison import _compare_shares
from easytorch.reports.intervals import (
    Bootstrap,
    Scale,
    f1_score,
    mean_of_parts,
    normal_intervals,
    proportion,
    proportion_of_clusters,
    quantile,
)


def logits(classes: int, count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs with ties, and labels that they predict better than chance."""
    generator = np.random.default_rng(seed)
    y = generator.integers(classes, size=count)
    outputs = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[y]
    return outputs.round(1).astype("float32"), y


def values(estimates) -> list[float]:
    return [estimate.value for estimate in estimates]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_class_scores_are_those_of_scikit_learn(classes):
    outputs, y = logits(classes)
    report = make_report(outputs, y, "cross_entropy", bootstrap=0)
    p = torch.tensor(outputs).double().softmax(1).numpy()
    predicted = outputs.argmax(1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(y, predicted)
    rows = report.tables["classes"]
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(values(row[name] for row in rows), expected)
    assert [row["support"] for row in rows] == support.tolist()
    truth = np.eye(classes)[y]
    expected = {
        "accuracy": metrics.accuracy_score(y, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "f1 (macro)": metrics.f1_score(y, predicted, average="macro"),
        "roc_auc (macro)": metrics.roc_auc_score(truth, p, average="macro"),
        "average_precision (macro)": metrics.average_precision_score(truth, p, average="macro"),
        "log_loss": metrics.log_loss(y, p),
        "brier_score": ((p - truth) ** 2).sum(1).mean() if classes > 2 else metrics.brier_score_loss(y, p[:, 1]),
        "calibration_error": float(multiclass_calibration_error(torch.tensor(p), torch.tensor(y), classes, n_bins=15)),
    }
    assert {name: estimate.value for name, estimate in report.summary.items()} == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(report.confusion, metrics.confusion_matrix(y, predicted))
    losses = torch.nn.functional.cross_entropy(torch.tensor(outputs), torch.tensor(y), reduction="none").numpy()
    assert [row["index"] for row in report.tables["worst"]] == np.argsort(-losses, kind="stable")[:10].tolist()


@pytest.mark.parametrize("has_ties", [True, False])
def test_weighted_areas_are_those_of_scikit_learn(has_ties):
    outputs, y = logits(2)
    scores = outputs[:, 1] if has_ties else outputs[:, 1] + np.arange(300) * 1e-5
    weights = next(Bootstrap(20, seed=1).weights(300))
    auc, average = Ranking(scores, y == 1).areas(weights.T)
    for i in range(20):
        assert auc[i] == pytest.approx(metrics.roc_auc_score(y, scores, sample_weight=weights[i]))
        assert average[i] == pytest.approx(metrics.average_precision_score(y, scores, sample_weight=weights[i]))


def test_binary_outputs_have_thresholds_of_scikit_learn():
    outputs, y = logits(2)
    scores = outputs[:, 1] - outputs[:, 0]
    report = make_report(scores[:, None], y[:, None].astype("float32"), "bce_with_logits", bootstrap=0)
    best = report.tables["thresholds"][0]
    p = report.probabilities[:, 1]
    assert metrics.f1_score(y, p >= best["threshold"]) == pytest.approx(best["value"])
    assert all(metrics.f1_score(y, p >= cut) <= best["value"] + 1e-12 for cut in np.unique(p))
    lower = make_report(scores[:, None], y[:, None].astype("float32"), "bce_with_logits", threshold=0.2, bootstrap=0)
    assert lower.summary["accuracy"].value == metrics.accuracy_score(y, p > 0.2)


@pytest.mark.parametrize(
    "scores", [[-2, -1, 0, 1, 2, 3], [0] * 6, [3, 2, 1, 0, -1, -2]], ids=["right", "equal", "wrong"]
)
def test_best_thresholds_reach_their_value(scores):
    outputs, y = torch.tensor(scores).float(), torch.tensor([0.0, 0, 1, 0, 1, 1])
    f1, youden = make_report(outputs, y, "bce_with_logits", bootstrap=0).tables["thresholds"]
    p = outputs.double().sigmoid().numpy()
    assert metrics.f1_score(y, p > f1["threshold"]) == pytest.approx(f1["value"])
    recall = metrics.recall_score(y, p > youden["threshold"], average=None)
    assert recall.sum() - 1 == pytest.approx(youden["value"])
    make_report(outputs, y, "bce_with_logits", threshold=youden["threshold"], bootstrap=0)


def test_equal_targets_have_no_r2():
    report = make_report(torch.arange(20.0), torch.full((20,), 0.1), "mse", bootstrap=50)
    assert np.isnan(report.summary["r2"]).all()


@pytest.mark.slow
def test_reports_on_many_classes_need_little_memory():
    outputs, y = torch.randn(50, 2000), torch.arange(50)
    outputs[:25, :25] += 10 * torch.eye(25)  # half of the classes are right
    tracemalloc.start()
    report = make_report(outputs, y, bootstrap=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6  # the 100 confusion matrices have 3.2 GB
    assert report.summary["f1 (macro)"].low <= report.summary["f1 (macro)"].value


def test_multilabel_scores_are_those_of_scikit_learn():
    outputs, _ = logits(4, seed=2)
    y = (outputs + np.random.default_rng(3).normal(size=outputs.shape) > 0.5).astype("float32")
    report = make_report(outputs, y, "bce_with_logits", bootstrap=0)
    predicted = outputs > 0
    assert report.summary["exact_match"].value == metrics.accuracy_score(y, predicted)
    assert report.summary["f1 (macro)"].value == pytest.approx(metrics.f1_score(y, predicted, average="macro"))
    assert report.summary["roc_auc (macro)"].value == pytest.approx(metrics.roc_auc_score(y, outputs))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(y, predicted)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(values(row[name] for row in report.tables["labels"]), expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_scores_are_those_of_scikit_learn(outputs):
    y = np.random.default_rng(0).normal(1000, 5, size=(200, outputs))
    predicted = y + np.random.default_rng(1).normal(1, 2, size=y.shape)
    report = make_report(predicted, y, "mse", bootstrap=0)
    assert report.summary["mae"].value == pytest.approx(metrics.mean_absolute_error(y, predicted))
    assert report.summary["rmse"].value == pytest.approx(metrics.mean_squared_error(y, predicted) ** 0.5)
    assert report.summary["r2"].value == pytest.approx(metrics.r2_score(y, predicted))
    assert report.summary["bias"].value == pytest.approx((predicted - y).mean())


def test_ignored_labels_are_left_out_with_their_indices():
    outputs, y = logits(3)
    y[::3] = -100
    report = make_report(outputs, y, "cross_entropy", bootstrap=0)
    counted = y != -100
    assert len(report) == counted.sum()
    assert report.summary["accuracy"].value == metrics.accuracy_score(y[counted], outputs[counted].argmax(1))
    assert all(y[row["index"]] != -100 for row in report.tables["worst"])
    report.add_slices({"first half": np.arange(300) < 150})
    assert sum(row["samples"] for row in report.tables["slices"]) == counted.sum()


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (3, 10), (1, 1000), (999, 1000), (50_000, 100_000)])
def test_intervals_of_shares_are_those_of_scipy(count, total):
    expected = stats.binomtest(count, total).proportion_ci(method="wilson")
    np.testing.assert_allclose(proportion(count, total)[1:], expected, rtol=1e-9)
    clusters = proportion_of_clusters(np.repeat([1, 0], [count, total - count]), np.ones(total))
    if 0 < count < total and total >= 1000:  # clusters of one member
        np.testing.assert_allclose(clusters, proportion(count, total), rtol=0.01)


def test_the_largest_values_come_in_the_order_of_a_stable_sort():
    values = np.random.default_rng(0).integers(6, size=50).astype(float)
    for count in (1, 10, 50, 60):
        expected = np.argsort(-values, kind="stable")[:count]
        np.testing.assert_array_equal(find_largest(values, count), expected)
    assert find_largest(np.array([1, np.nan, 2]), 2).tolist() == [2, 0]


def coverage(draw, truth: float, repeats: int = 1000) -> float:
    """Return the share of intervals that contain ``truth``."""
    estimates = [draw(seed) for seed in range(repeats)]
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


# The standard deviation of a coverage over 1,000 repeats is 0.7%. Quantiles of 200 samples cover a little more than 95%.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "quantile", "difference"])
def test_intervals_cover_95_percent(kind):
    def draw(seed: int):
        generator = np.random.default_rng(seed)
        if kind == "share":
            return proportion(generator.binomial(200, 0.9), 200)
        if kind == "quantile":
            return quantile(generator.exponential(size=200), 0.9)
        right = generator.random((2, 200)) < [[0.9], [0.8]]
        return _compare_shares(*right)[0]

    truth = {"share": 0.9, "quantile": np.log(10), "difference": 0.1}[kind]
    assert 0.93 <= coverage(draw, truth) <= 0.975


# The worst cases of ``python -m benchmarks.intervals``. The standard deviation over 300 repeats is 1.3%, so a number that covers
# 95% is within 3 of them. Intervals of high quantiles, and of shares of few samples, may cover more.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "size"), [("two classes, prevalence 0.1", 100), ("labels", 50), ("numbers, exponential errors", 200)]
)
def test_every_number_of_a_report_is_covered(case, size):
    coverages = measure_case(*CASES[case], [size], 300, bootstrap=200, truth_samples=200_000)
    assert min(coverage for (coverage,) in coverages.values()) >= 0.91, coverages


def test_few_squared_errors_get_a_note():
    outputs, y = draw_numbers(normal)(np.random.default_rng(0), 100)
    assert not make_report(outputs, y, "mse", bootstrap=20).notes
    report = make_report(outputs[:99], y[:99], "mse", bootstrap=20)
    assert "Too few samples for exact intervals of rmse and r2" in str(report)
    assert report.notes[0] in report._repr_html_()
    assert report.to_dict()["notes"] == report.notes


def test_a_mean_of_equal_parts_has_their_interval():
    part, draws = Estimate(0.6, 0.5, 0.8), np.random.default_rng(0).normal(size=(500, 1))
    np.testing.assert_allclose(mean_of_parts([part] * 3, draws.repeat(3, axis=1)), part)
    independent = mean_of_parts([part] * 100, np.random.default_rng(0).normal(size=(5000, 100)))
    assert independent.high - independent.low == pytest.approx(0.03, rel=0.1)
    # A class without a right prediction has equal draws, but an interval.
    assert mean_of_parts([part, Estimate(0.0, 0.0, 0.4)], draws * [1, 0]).high == pytest.approx(0.3 + 0.05**0.5)
    assert mean_of_parts([part, Estimate(float("nan"))], draws * [1, np.nan]) == pytest.approx(part)


def test_f1_has_the_wilson_interval_of_its_share():
    estimate = f1_score(6, 8, 10)
    low, high = stats.binomtest(6, 12).proportion_ci(method="wilson")
    assert estimate == pytest.approx((2 * 6 / 18, 2 * low / (1 + low), 2 * high / (1 + high)))


@pytest.mark.slow
@pytest.mark.parametrize(("share", "distance"), [(0.4, 1.5), (0.1, 1.5), (0.4, 3.0)])
def test_areas_of_one_class_are_covered(share, distance):
    def draw(seed: int, count: int):
        generator = np.random.default_rng(seed)
        y = generator.random(count) < share
        return Ranking(generator.normal(size=count) + distance * y, y)

    def measure(ranking):
        return lambda weights: np.column_stack(ranking.areas(np.ascontiguousarray(weights.T)))

    truth = measure(draw(0, 400_000))(np.ones((1, 400_000)))[0]
    rankings = [draw(seed, 300) for seed in range(1, 301)]
    found = [measure_areas([ranking], Bootstrap(150, 0), 300) for ranking in rankings]
    for i in range(2):
        # The standard deviation over 300 repeats is 1.3%.
        assert 0.92 <= np.mean([each[i].low <= truth[i] <= each[i].high for each in found]) <= 0.985


def test_a_share_of_1_has_no_interval():
    draws = np.array([[1.0, 1.0, np.nan], [1.0, 0.98, np.nan]])
    estimates = normal_intervals(np.array([1.0, 0.99, np.nan]), draws, [Scale.SHARE] * 3, 100)
    assert estimates[0].value == 1
    assert 0 < estimates[1].low < 0.99 < estimates[1].high < 1
    assert np.isnan([estimates[0].low, estimates[0].high, estimates[2].low]).all()


@pytest.mark.parametrize(("scale", "low", "high"), [(Scale.POSITIVE, 0, np.inf), (Scale.UP_TO_1, -np.inf, 1)])
def test_intervals_keep_to_the_range_of_their_scale(scale, low, high):
    for draws in ([0.02, 0.9, 0.1], [0.0, 1.0, 0.1]):
        estimate = normal_intervals(np.array([0.5]), np.array([draws]).T, [scale], 20)[0]
        assert low <= estimate.low < 0.5 < estimate.high <= high


def test_few_values_do_not_bound_a_high_quantile():
    values = np.arange(1.0, 51)
    assert quantile(values, 0.99).high == np.inf
    assert quantile(values, 0.5) == (25.5, 18, 33)
    assert quantile(values[:4], 0.5).low == 0


def test_the_calibration_error_has_no_interval():
    assert np.isnan(make_report(*logits(3), bootstrap=50).summary["calibration_error"].low)


FASHION = Path(os.environ.get("EASYTORCH_DATA", "data")) / "FashionMNIST" / "raw"


@pytest.mark.skipif(
    not (FASHION / "t10k-images-idx3-ubyte").exists(), reason="Fashion-MNIST is missing: set EASYTORCH_DATA"
)
def test_fashion_mnist_agrees_with_scikit_learn():
    images = np.frombuffer((FASHION / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 784)
    y = np.frombuffer((FASHION / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8).astype(int)
    x = images[:, ::7] / np.float32(255)
    weights = np.linalg.lstsq(x[:2000], 8 * np.eye(10)[y[:2000]], rcond=None)[0]
    outputs = x @ weights
    logits = torch.tensor(outputs).double()
    p = logits.softmax(1).numpy()
    report = make_report(outputs, y, "cross_entropy", bootstrap=0)
    expected = metrics.classification_report(y, outputs.argmax(1), output_dict=True)
    for row in report.tables["classes"]:
        for name in ("precision", "recall"):
            assert row[name].value == pytest.approx(expected[row["class"]][name])
        assert row["f1"].value == pytest.approx(expected[row["class"]]["f1-score"])
    assert report.summary["roc_auc (macro)"].value == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr"))
    # The log loss of scikit-learn clips probabilities at 2.2e-16.
    log_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y)).item()
    assert report.summary["log_loss"].value == pytest.approx(log_loss)


def test_digits_and_diabetes_agree_with_the_report_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression, Ridge

    digits = load_digits()
    classifier = LogisticRegression(max_iter=50, tol=1e-2).fit(digits.data[:900] / 16, digits.target[:900])
    outputs = classifier.decision_function(digits.data[900:] / 16)
    report = make_report(outputs, digits.target[900:], "cross_entropy", bootstrap=20)
    expected = metrics.classification_report(digits.target[900:], outputs.argmax(1), output_dict=True)
    for row in report.tables["classes"]:
        assert row["f1"].value == pytest.approx(expected[row["class"]]["f1-score"])
        assert row["f1"].low <= row["f1"].value <= row["f1"].high
    data = load_diabetes()
    predicted = Ridge().fit(data.data[:300], data.target[:300]).predict(data.data[300:])
    report = make_report(predicted, data.target[300:], "mse", bootstrap=20)
    assert report.summary["r2"].value == pytest.approx(metrics.r2_score(data.target[300:], predicted))


def test_two_samples_have_no_impossible_intervals():
    classes = make_report(np.array([[2.0, 0, 0], [0, 1, 0]]), np.array([0, 2]), "cross_entropy")
    assert classes.summary["brier_score"].high <= 2
    errors = make_report(np.array([[1.0], [2.0]]), np.array([[1.2], [0.5]]), "mse")
    assert np.isnan(errors.summary["r2"].low)
    for row in errors.tables["absolute error"]:
        assert row["error"].low <= row["error"].value <= row["error"].high
