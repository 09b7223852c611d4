"""Checks of the order of the samples, and of samples in two data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from easytorch.checks.base import Finding, check, error, info, warning
from easytorch.checks.labels import MAX_CLASSES, MIN_SAMPLES
from easytorch.checks.probe import Probe
from easytorch.checks.samples import Samples

# Standard deviations below the expected number of runs: 1 of 30,000 random orders.
FEW_RUNS = -4.0
# The rank correlation of sorted numbers with their position.
SORTED_CORRELATION = 0.95
# Shares of the validation samples that are in the training data: a few, and most.
SOME_SHARED, MOST_SHARED = 0.01, 0.5
# Columns that decide whether rows are equal by chance.
MAX_COLUMNS = 256
# Equal samples that are no chance, if only a part of the training data was read.
MIN_HITS = 3


@check
def sorted_samples(probe: Probe) -> Iterator[Finding]:
    """Find training data that is read in an order which is sorted by its targets."""
    for name, y in probe.train.in_order.items():
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim != 1 or len(y) < MIN_SAMPLES or y.is_complex():
            continue
        kind = None
        if not y.is_floating_point() or len(torch.unique(y)) <= 2:
            kind = "labels" if _has_few_runs(y) else None
        elif abs(_rank_correlation(y)) > SORTED_CORRELATION:
            kind = "targets"
        if kind is not None:
            yield error(
                f"The training data is not shuffled, and its {kind}{f' {name!r}' * bool(name)} are sorted: a batch has only a "
                "few of them.",
                "Shuffle it: DataLoader(..., shuffle=True), or fit(x, y, shuffle=True).",
            )


@check
def shared_samples(probe: Probe) -> Iterator[Finding]:
    """Find validation samples that are training samples too."""
    for name, samples in probe.validation.items():
        share, expected = _shared(probe.train, samples)
        # A table of few different values has equal rows without a mistake.
        if share <= SOME_SHARED + 2 * expected:
            if share:
                yield info(f"{share:.1%} of the validation samples that were compared are in the training data.", share)
            continue
        message = (
            f"{share:.1%} of the samples of the validation data{f' {name!r}' * bool(name)} are in the training data."
        )
        fix = "Split the data once, before it is used: train, val = easytorch.data.split(dataset, 0.2). Remove duplicates first."
        yield (error if share > MOST_SHARED else warning)(message, fix, share)


def _has_few_runs(labels: Tensor) -> bool:
    """Return whether equal labels stand together, by the runs test.

    Source: A. Wald and J. Wolfowitz, On a test whether two samples are from the same population, 1940; for several classes
    F. Barton and F. David, Multiple runs, 1957.
    """
    n = len(labels)
    counts = torch.unique(labels, return_counts=True)[1].double()
    if len(counts) < 2 or len(counts) > max(MAX_CLASSES, n // 2):
        return False
    squares, cubes = float(counts.square().sum()), float(counts.pow(3).sum())
    runs = 1 + int((labels[1:] != labels[:-1]).sum())
    mean = (n * (n + 1) - squares) / n
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    return variance > 0 and (runs - mean) / math.sqrt(variance) < FEW_RUNS and runs < mean / 2


def _rank_correlation(values: Tensor) -> float:
    """Return the correlation of the ranks of ``values`` with their position, after Spearman."""
    ranks = values.argsort().argsort().double()
    positions = torch.arange(len(values), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([ranks, positions]))[0, 1])


def _shared(train: Samples, val: Samples) -> tuple[float, float]:
    """Return the share of validation samples in the training data, and the share that chance explains."""
    if train.dataset is not None and train.dataset is val.dataset:
        if val.indices is None or train.indices is None:
            return 1.0, 0.0
        return float(torch.isin(val.indices, train.indices).double().mean()), 0.0
    names = train.x.keys() & val.x.keys()
    if not names or any(train.x[name].shape[1:] != val.x[name].shape[1:] for name in names) or not val.rows:
        return 0.0, 0.0
    # A part of the samples was read, of which only some can be found again.
    coverage = train.rows / (train.count or train.rows)
    first, second = (_hash_rows([samples.x[name] for name in sorted(names)]) for samples in (train, val))
    hits = int(torch.isin(second, first).sum())
    share = hits / len(second) if coverage == 1 or hits >= MIN_HITS else 0.0
    _, counts = torch.unique(first, return_counts=True)
    repeated = float(counts[counts > 1].sum() / len(first))
    expected = min(repeated, _chance_of_equal_rows([train.x[name] for name in names]))
    return min(share / max(coverage, 1e-9), 1.0), expected


def _chance_of_equal_rows(parts: list[Tensor]) -> float:
    """Return about the probability that a further row equals one of these by chance; 0 for images and many numbers.

    Two rows are equal with the product of the probabilities for their columns, if these are independent. Columns depend on each
    other, so the root of the product is taken.
    """
    count, logarithm = min(map(len, parts)), 0.0
    for part in parts:
        for column in part[:count].reshape(count, -1)[:, :MAX_COLUMNS].T:
            counts = torch.unique(column, return_counts=True)[1].double()
            logarithm += math.log(float((counts / count).square().sum()))
    return 1 - math.exp(-count * math.exp(logarithm / 2))


def _hash_rows(parts: list[Tensor]) -> Tensor:
    """Return a number for the values of each sample, the same for equal samples."""
    total = torch.zeros(min(map(len, parts)), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        rows = part[: len(total)].flatten(1) if part.ndim > 1 else part[: len(total), None]
        factors = torch.randint(2**62, (rows.shape[1],), generator=generator)
        for start in range(0, len(rows), 1024):
            # 0.0 and -0.0 are equal numbers with other bits.
            values = (rows[start : start + 1024].float() + 0.0).contiguous().view(torch.int32)
            total[start : start + 1024] += (values.long() * factors).sum(1)
    return total
