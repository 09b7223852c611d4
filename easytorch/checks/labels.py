"""Checks of the targets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from easytorch.checks.base import Finding, check, error, info, warning
from easytorch.checks.inputs import root_mean_square
from easytorch.checks.probe import Head, Probe, losses_by_name
from easytorch.losses.single_loss import SingleLoss

# A constant prediction of the most frequent class is then right in nine of ten samples.
MAJORITY = 0.9
# Samples below which shares and correlations mean little.
MIN_SAMPLES = 20
# A column with such a correlation is the target, up to rounding.
PERFECT_CORRELATION = 0.9999
# The same for a step of a series, up to rounding of 32 bits.
EXACT_CORRELATION = 1 - 1e-10
# Values of a sample above which they are not compared with the targets.
MAX_WIDTH = 20_000
# Losses that compare values by their difference.
DISTANCES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
LARGE_TARGET = 100.0
MAX_CLASSES = 100


@check
def constant_targets(probe: Probe) -> Iterator[Finding]:
    """Find targets that are the same for all samples."""
    for name, y in probe.train.labels.items():
        if len(y) >= 2 and y.numel() and bool((y == y[:1]).all()) and bool((y == y.flatten()[0]).all()):
            yield error(
                f"The targets{_of(name)} of all {len(y):,} samples are {float(y.flatten()[0]):.4g}.",
                "Check how the labels were read. There is nothing to learn.",
            )


@check
def unbalanced_labels(probe: Probe) -> Iterator[Finding]:
    """Find classes with most of the samples, unless samples or classes have weights."""
    for name, labels in class_labels(probe):
        classes, counts = torch.unique(labels, return_counts=True)
        share = float(counts.max() / counts.sum())
        if len(labels) < MIN_SAMPLES or len(classes) < 2 or share < MAJORITY:
            continue
        largest, rarest = int(classes[counts.argmax()]), int(classes[counts.argmin()])
        message = (
            f"{share:.1%} of the labels{_of(name)} are class {largest}, and class {rarest} has {int(counts.min()):,} samples. An "
            f"accuracy of {share:.1%} would mean nothing."
        )
        fix = "Pass class_weight='balanced' to fit(), and measure metrics=['auroc', 'f1'] or model.report()."
        if probe.train.is_weighted or _has_class_weights(probe):
            yield info(message, share)
        else:
            yield warning(message, fix, share)


@check
def unused_outputs(probe: Probe) -> Iterator[Finding]:
    """Report outputs for classes that no label has."""
    for head in probe.heads:
        if head.loss is None or head.loss.kind != "multiclass" or head.labels is None or head.y_pred.ndim < 2:
            continue
        if head.labels.is_floating_point() or not head.labels.numel() or len(head.labels) < MIN_SAMPLES:
            continue
        labels = torch.unique(head.labels[head.labels != head.loss.ignore_index])
        outputs = head.y_pred.shape[1]
        if 0 < len(labels) < outputs:
            yield info(
                f"{outputs - len(labels)} of {outputs} classes have no sample.",
                outputs - len(labels),
                "Check the labels, or give the last layer one output for each class.",
            )


@check
def leaking_column(probe: Probe) -> Iterator[Finding]:
    """Find a column of the inputs that is the target, or a multiple of it; also a step of a series."""
    columns = [(name, table, PERFECT_CORRELATION) for name, table in probe.train.tables()]
    # Neighbors in a smooth series have almost the same value.
    columns += [(name, part.flatten(1), EXACT_CORRELATION) for name, part in probe.train.series()]
    for name, table, limit in columns:
        rows, width = table.shape
        if rows < MIN_SAMPLES or not 2 <= width <= MAX_WIDTH:
            continue
        for target, y in probe.train.y.items():
            for value in _target_columns(y, rows, width):
                correlation = correlate(table, value)
                column = int(correlation.argmax())
                if float(correlation[column]) > limit:
                    label = f" {target!r}" if target else ""
                    yield error(
                        f"The {_title(probe, name, column)} of the inputs has a correlation of "
                        f"{float(correlation[column]):.5f} with the target{label}: the answer is among the inputs.",
                        "Remove it from the inputs.",
                        float(correlation[column]),
                    )
                    return


@check
def unscaled_targets(probe: Probe) -> Iterator[Finding]:
    """Find targets of a regression that are much larger than 1."""
    for head in probe.heads:
        if not _is_distance(head) or head.y is None or not bool(head.y.isfinite().all()):
            continue
        size = root_mean_square(head.y)
        if size > LARGE_TARGET:
            yield warning(
                f"The targets{_of(head.name)} have a root mean square of {size:,.4g}, but the outputs start near 0.",
                "Scale them with the mean and the standard deviation of the training data: (y - y.mean()) / y.std().",
                size,
            )


def class_labels(probe: Probe) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the class numbers of each target that has one class per sample."""
    losses = losses_by_name(probe.model.loss) if probe.is_standard else {}
    for name, y in probe.train.labels.items():
        loss = losses.get(name) or losses.get(f"output_{name}") or (losses.get("") if len(losses) == 1 else None)
        labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if labels.ndim != 1 or not _are_classes(labels, loss):
            continue
        labels = labels.long()
        ignored = None if loss is None else loss.ignore_index
        labels = labels if ignored is None else labels[labels != ignored]
        if len(labels) and len(torch.unique(labels)) <= MAX_CLASSES:
            yield name, labels


def _has_class_weights(probe: Probe) -> bool:
    """Return whether a loss has weights for classes."""
    return any(
        getattr(function, name, None) is not None
        for function in probe.model.loss.functions()
        for name in ("weight", "pos_weight")
    )


def _are_classes(labels: Tensor, loss: SingleLoss | None) -> bool:
    if labels.is_complex() or (loss is not None and loss.kind is None):
        return False
    return not labels.is_floating_point() or bool(((labels == 0) | (labels == 1)).all())


def _target_columns(y: Tensor, rows: int, width: int) -> Iterator[Tensor]:
    """Yield the columns of numbers, and an indicator for each class; nothing if the target is the input."""
    y = y[:, None] if y.ndim == 1 else y
    if len(y) != rows or y.ndim != 2 or y.shape[1] == width or y.is_complex():
        return
    for column in y.double().T[:MAX_CLASSES]:
        yield column
        classes = torch.unique(column)
        if 2 < len(classes) <= MAX_CLASSES and not y.is_floating_point():
            yield from ((column == each).double() for each in classes)


def _title(probe: Probe, name: str, index: int) -> str:
    """Return how to call a column of a table, or a value of a series."""
    part = probe.train.x[name]
    if part.ndim == 2:
        return probe.train.column(name, index)
    step, column = divmod(index, part.shape[2])
    return f"column {column} in step {step}{f' of {name!r}' * bool(name)}"


def correlate(table: Tensor, value: Tensor) -> Tensor:
    """Return the absolute correlation of each column of ``table`` with ``value``; 0 for constants."""
    x = table.double() - table.double().mean(0)
    y = value.double() - value.double().mean()
    scale = x.norm(dim=0) * y.norm()
    return torch.where(scale > 0, (x.T @ y) / torch.where(scale > 0, scale, 1.0), 0.0).abs()


def _is_distance(head: Head) -> bool:
    return head.loss is not None and head.loss.family in DISTANCES


def _of(name: str) -> str:
    return f" {name!r}" if name else ""
