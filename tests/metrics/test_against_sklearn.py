"""Every metric name gives the value of scikit-learn, SciPy or NumPy over all data, for any batch size, or is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import metrics as sk
from torch import nn

from easytorch import Model
from easytorch.metrics import NAMES
from tests.cases import slow_except

pytest.importorskip("torchmetrics")

SAMPLES, CLASSES = 120, 4
BATCH_SIZES = (7, 32, SAMPLES)


def calibration_error(hits, confidence):
    bins = np.minimum((confidence * 15).astype(int), 14)
    shares = [
        (bins == i).mean() * abs(hits[bins == i].mean() - confidence[bins == i].mean())
        for i in range(15)
        if (bins == i).any()
    ]
    return sum(shares)


def rates(y, predicted, classes, average="macro"):
    """Return recall, specificity, precision and negative predictive value, averaged over the classes that occur."""
    values, weights = [], []
    for c in classes:
        tp, fp = ((predicted == c) & (y == c)).sum(), ((predicted == c) & (y != c)).sum()
        fn, tn = ((predicted != c) & (y == c)).sum(), ((predicted != c) & (y != c)).sum()
        if tp + fp + fn == 0:
            continue
        values.append([tp, tp + fn, tn, tn + fp, tp, tp + fp, tn, tn + fn])
        weights.append((y == c).sum() if average == "weighted" else 1)
    table = np.array(values, float)
    if average == "micro":
        table, weights = table.sum(0, keepdims=True), [1]
    ratios = np.divide(table[:, ::2], table[:, 1::2], out=np.zeros((len(table), 4)), where=table[:, 1::2] > 0)
    return np.average(ratios, axis=0, weights=weights)


def binary_value(name, p, y):
    predicted, y = (p > 0.5).astype(int), y.astype(int)
    base, _, average = name.rpartition("_")
    if average in ("macro", "micro", "weighted"):
        return multiclass_value(name, np.stack([1 - p, p], 1), y)
    name = base if average == "binary" else name
    return {
        "accuracy": lambda: (predicted == y).mean(),
        "auroc": lambda: sk.roc_auc_score(y, p),
        "average_precision": lambda: sk.average_precision_score(y, p),
        "calibration_error": lambda: calibration_error(y, p),
        "cohen_kappa": lambda: sk.cohen_kappa_score(y, predicted),
        "f1": lambda: sk.f1_score(y, predicted),
        "hamming_distance": lambda: sk.hamming_loss(y, predicted),
        "iou": lambda: sk.jaccard_score(y, predicted),
        "matthews_corrcoef": lambda: sk.matthews_corrcoef(y, predicted),
        "negative_predictive_value": lambda: sk.precision_score(y, predicted, pos_label=0),
        "precision": lambda: sk.precision_score(y, predicted),
        "recall": lambda: sk.recall_score(y, predicted),
        "specificity": lambda: sk.recall_score(y, predicted, pos_label=0),
    }[name]()


def multiclass_value(name, p, y):
    """Return the value for probabilities ``[M, classes]`` and labels ``[M]``, none of them ignored."""
    predicted, classes = p.argmax(1), range(p.shape[1])
    base, _, average = name.rpartition("_")
    if average == "binary":
        return binary_value(base, p[:, 1], y)
    if average in ("macro", "micro", "weighted"):
        name = base
    else:
        average = "macro"
    options = {"average": average, "zero_division": 0}
    return {
        "accuracy": lambda: (predicted == y).mean(),
        "top_2_accuracy": lambda: (np.argsort(-p, 1)[:, :2] == y[:, None]).any(1).mean(),
        "auroc": lambda: np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in classes if (y == c).any()]),
        "average_precision": lambda: np.mean(
            [sk.average_precision_score(y == c, p[:, c]) for c in classes if (y == c).any()]
        ),
        "calibration_error": lambda: calibration_error(predicted == y, p.max(1)),
        "cohen_kappa": lambda: sk.cohen_kappa_score(y, predicted),
        "f1": lambda: sk.f1_score(y, predicted, **options),
        "hamming_distance": lambda: 1 - rates(y, predicted, classes)[0],
        "iou": lambda: sk.jaccard_score(y, predicted, **options),
        "matthews_corrcoef": lambda: sk.matthews_corrcoef(y, predicted),
        "negative_predictive_value": lambda: rates(y, predicted, classes, average)[3],
        "precision": lambda: sk.precision_score(y, predicted, **options),
        "recall": lambda: sk.recall_score(y, predicted, **options),
        "specificity": lambda: rates(y, predicted, classes, average)[1],
    }[name]()


def multilabel_value(name, p, y):
    """Return the mean over labels, which are dimension 1."""
    if name == "accuracy":
        return ((p > 0.5) == y).mean()
    base, _, average = name.rpartition("_")
    p, y = np.moveaxis(p, 1, -1).reshape(-1, p.shape[1]), np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]).astype(int)
    if average == "micro":
        return binary_value(base, p.flatten(), y.flatten())
    weights = y.sum(0) if average == "weighted" else None
    name = base if average in ("macro", "weighted") else name
    if name == "exact_match":
        return ((p > 0.5) == y).all(1).mean()
    if name in ("cohen_kappa", "calibration_error"):
        raise KeyError(name)
    if name == "matthews_corrcoef":
        return binary_value(name, p.flatten(), y.flatten())
    return np.average([binary_value(name, p[:, i], y[:, i]) for i in range(p.shape[1])], weights=weights)


ALIASES = {
    "acc": "accuracy", "auc": "auroc", "f1_score": "f1", "jaccard_index": "iou", "r2_score": "r2",
    "mean_absolute_error": "mae", "mean_squared_error": "mse", "root_mean_squared_error": "rmse",
    "mean_absolute_percentage_error": "mape", "mean_squared_logarithmic_error": "msle",
    "categorical_accuracy": "multiclass_accuracy", "sparse_categorical_accuracy": "multiclass_accuracy",
    "top_k_categorical_accuracy": "top_5_accuracy", "sparse_top_k_categorical_accuracy": "top_5_accuracy",
    "kld": "kl_divergence", "log_cosh_error": "log_cosh", "mean_squared_log_error": "msle",
}  # fmt: skip


def canonical(name):
    for alias, target in ALIASES.items():
        if name == alias or name.startswith(f"{alias}_"):
            return name.replace(alias, target, 1)
    return name


def softmax(logits):
    return torch.softmax(torch.as_tensor(logits), 1).numpy()


def make_kind(kind):
    """Return the loss, the outputs, the targets, and a function of a name that gives the right value."""
    rng = np.random.default_rng(3)

    def outputs(*shape):
        return rng.normal(size=(SAMPLES, *shape)).astype("float32")

    def labels(*shape, classes=CLASSES):
        y = rng.integers(classes, size=(SAMPLES, *shape))
        y[:classes].flat[: min(classes, y[:classes].size)] = np.arange(classes)[: y[:classes].size]
        return y

    def yes(*shape):
        return (rng.random((SAMPLES, *shape)) < 0.4).astype("float32")

    if kind.startswith("binary"):
        shape = {"binary [N, 1]": (1,), "binary [N, T, 1]": (5, 1), "binary [N, H, W]": (3, 5)}.get(kind)
        shape = shape or {"binary [N, H, W, 1]": (3, 5, 1), "binary [N, 1, H, W]": (1, 3, 5)}[kind]
        x, y = outputs(*shape), yes(*shape)
        p = torch.sigmoid(torch.as_tensor(x)).numpy()
        return "bce_with_logits", x, y, lambda name: binary_value(name, p.flatten(), y.flatten())
    if kind.startswith("multilabel"):
        shape = (3,) if kind == "multilabel [N, L]" else (3, 2, 4)
        x, y = outputs(*shape), yes(*shape)
        p = torch.sigmoid(torch.as_tensor(x)).numpy()
        return "bce_with_logits", x, y, lambda name: multilabel_value(name, p, y)
    if kind.startswith("regression"):
        shape = {"regression [N, 1]": (1,), "regression [N, T]": (3,), "regression [N, T, 1]": (3, 1)}[kind]
        y = outputs(*shape)
        x = (y + 0.5 * outputs(*shape)).astype("float32")
        return "mse", x, y, lambda name: regression_value(name, x, y)
    classes = 2 if kind == "two classes" else CLASSES
    shape = {"multiclass [N, T]": (6,), "multiclass [N, H, W]": (2, 3), "ignored [N, T]": (6,)}.get(kind, ())
    x, y = outputs(classes, *shape), labels(*shape, classes=classes)
    loss = nn.CrossEntropyLoss()
    if kind.startswith("ignored"):
        index = {"ignored -1": -1, "ignored -100": -100, "ignored 255": 255, "ignored class 2": 2}.get(kind, -1)
        y = np.where(rng.random(y.shape) < 0.4, index, y)
        loss = nn.CrossEntropyLoss(ignore_index=index)
        y[:7] = index  # a whole batch
    else:
        index = None
    p = np.moveaxis(softmax(x), 1, -1).reshape(-1, classes)
    counts = y.flatten() != index
    p, flat = p[counts], y.flatten()[counts]

    def value(name):
        if name == "exact_match":
            if not shape:
                return multiclass_value("accuracy", p, flat)
            hits = (softmax(x).argmax(1) == y) | (y == index)
            return hits.reshape(SAMPLES, -1).all(1).mean()
        if name == "binary_accuracy" and kind == "one-hot":
            return ((p > 0.5) == np.eye(CLASSES)[flat]).mean()
        return multiclass_value(name, p, flat)

    if kind == "one-hot":
        y = np.eye(CLASSES, dtype="float32")[y]
    return loss, x, y, value


def regression_value(name, x, y):
    signs = 2 * y - 1 if ((y == 0) | (y == 1)).all() else y
    per_value = {
        "mae": abs(x - y),
        "mse": (x - y) ** 2,
        "mape": 100 * abs((y - x) / np.maximum(abs(y), 1e-7)),
        "msle": (np.log1p(np.maximum(y, 1e-7)) - np.log1p(np.maximum(x, 1e-7))) ** 2,
        "log_cosh": np.log(np.cosh(x - y)),
        "hinge": np.maximum(1 - signs * x, 0),
        "squared_hinge": np.maximum(1 - signs * x, 0) ** 2,
        "symmetric_mean_absolute_percentage_error": 2 * abs(x - y) / np.maximum(abs(x) + abs(y), 1.17e-6),
    }
    if name in per_value:
        return per_value[name].mean()
    if name == "rmse":
        return np.sqrt(((x - y) ** 2).mean())
    x, y = (a.reshape(len(a), -1) if a.ndim == 2 and a.shape[1] > 1 else a.reshape(-1, 1) for a in (x, y))
    columns = list(zip(x.T.astype(float), y.T.astype(float), strict=True))
    by_column = {
        "pearson_corrcoef": lambda a, b: scipy.stats.pearsonr(a, b)[0],
        "spearman_corrcoef": lambda a, b: scipy.stats.spearmanr(a, b)[0],
        "kendall_corrcoef": lambda a, b: scipy.stats.kendalltau(a, b)[0],
        "concordance_corrcoef": lambda a, b: (
            2 * np.cov(a, b)[0, 1] / (a.var(ddof=1) + b.var(ddof=1) + (a.mean() - b.mean()) ** 2)
        ),
    }
    if name in by_column:
        return [by_column[name](a, b) for a, b in columns]
    if name == "cosine_similarity" and len(columns) > 1:
        return np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))
    if name not in ("r2", "explained_variance", "relative_squared_error", "cosine_similarity"):
        raise KeyError(name)
    return {
        "r2": lambda: sk.r2_score(y, x),
        "explained_variance": lambda: sk.explained_variance_score(y, x),
        "relative_squared_error": lambda: np.mean(
            [((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum() for a, b in columns]
        ),
    }[name]()


KINDS = (
    "binary [N, 1]", "binary [N, T, 1]", "binary [N, H, W]", "binary [N, H, W, 1]", "binary [N, 1, H, W]",
    "multilabel [N, L]", "multilabel [N, L, H, W]",
    "multiclass [N]", "two classes", "one-hot", "multiclass [N, T]", "multiclass [N, H, W]",
    "ignored -1", "ignored -100", "ignored 255", "ignored class 2", "ignored [N, T]",
    "regression [N, 1]", "regression [N, T]", "regression [N, T, 1]",
)  # fmt: skip
# The value of these is an expectation of the targets of a kind that no other kind has.
OTHER_TARGETS = ("kl_divergence", "kld", "poisson")


def measure(loss, x, y, name, batch_size):
    model = Model(nn.Identity(), device="cpu").compile(None, loss, metrics=[name])
    scores = model.evaluate(torch.as_tensor(x), torch.as_tensor(y), batch_size=batch_size, verbose=0)
    values = [value for key, value in scores.items() if key != "loss"]
    return values[0] if len(values) == 1 else values


@pytest.mark.parametrize(
    "kind", slow_except(KINDS, "multiclass [N]", "binary [N, 1]", "multilabel [N, L]", "ignored -100")
)
def test_every_name_equals_a_reference_or_is_refused(kind):
    loss, x, y, reference = make_kind(kind)
    refused = {}
    for name in [*NAMES, "top_2_accuracy"]:
        if name in OTHER_TARGETS:
            continue
        key = canonical(name)
        is_multiclass = not kind.startswith(("binary", "multilabel", "regression"))
        key = key.replace("multiclass_accuracy", "accuracy") if is_multiclass else key
        key = key.replace("binary_accuracy", "accuracy") if kind.startswith(("binary", "multilabel")) else key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                measured = [measure(loss, x, y, name, size) for size in BATCH_SIZES]
            except ValueError as error:
                refused[name] = str(error)
                continue
            try:
                expected = 1.0 if key == "top_5_accuracy" and is_multiclass else reference(key)
            except KeyError:
                try:  # of the outputs themselves
                    expected = regression_value(key, x, y)
                except (KeyError, ValueError):
                    pytest.fail(f"{name} gave {measured} for {kind}, which has no such value")
        assert np.allclose(measured, expected, atol=2e-5, rtol=2e-5, equal_nan=True), (name, measured, expected)
    for name, message in refused.items():
        assert name in message or "labels" in message, message
