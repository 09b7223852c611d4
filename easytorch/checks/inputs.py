"""Checks of the inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from easytorch.checks.base import Finding, check, error, info, warning
from easytorch.checks.probe import Probe
from easytorch.checks.samples import Samples, as_parts

# Layers of torch start with weights for inputs of mean 0 and standard deviation 1 (LeCun et al., Efficient BackProp, 1998, 4.3).
# Ten times larger values saturate a sigmoid and make the first losses as much larger.
LARGE_INPUT, TINY_INPUT = 10.0, 0.01
# Pixels of 8 bits that were not divided by 255.
LARGE_PIXEL = 20.0
# The share of columns that have their minimum in common, as the pixels of images have.
PIXEL_SHARE = 0.9
SHOWN_COLUMNS = 5
# Equal samples that are no chance.
MIN_EQUAL = 4


@check
def non_finite_data(probe: Probe) -> Iterator[Finding]:
    """Find inputs and targets that are NaN or infinite."""
    for title, samples in data_sets(probe):
        for kind, parts in (("inputs", samples.x), ("targets", samples.y)):
            for name, part in parts.items():
                if not part.is_floating_point() or bool(part.isfinite().all()):
                    continue
                bad = ~part.isfinite().flatten(1).all(1) if part.ndim > 1 else ~part.isfinite()
                where = f" of {name!r}" if name else ""
                if kind == "inputs" and part.ndim == 2:
                    columns = (~part.isfinite()).any(0).nonzero().flatten().tolist()
                    where = f" in {samples.column(name, columns[0])}"
                    where += f" and {len(columns) - 1} other column{'s' * (len(columns) > 2)}" * (len(columns) > 1)
                yield error(
                    f"{int(bad.sum()):,} of {len(part):,} samples of the {title} have {kind}{where} that are NaN or infinite.",
                    "Remove these samples, or fill the values with the mean of their column.",
                    int(bad.sum()),
                )


@check
def unscaled_images(probe: Probe) -> Iterator[Finding]:
    """Find images with values of 0 to 255 that the module does not scale itself."""
    for name, images in probe.train.images():
        if _is_scaled_inside(probe, LARGE_PIXEL) or not images.numel():
            continue
        low, high = (float(value) for value in images.float().aminmax())
        if low >= 0 and high > LARGE_PIXEL:
            yield warning(
                f"The images{_of(name)} have values of {low:.4g} to {high:.4g}.",
                "Scale them to about -1 to 1: transforms.ToTensor() and transforms.Normalize(mean, std), or (x / 255 - mean) / "
                "std.",
                high,
            )


@check
def unscaled_inputs(probe: Probe) -> Iterator[Finding]:
    """Find inputs that are much larger than 1 where they reach the first weights."""
    images = {name for name, _ in probe.train.images()}
    if images or _is_scaled_inside(probe, LARGE_INPUT):
        return
    for name, part in probe.train.x.items():
        if not part.is_floating_point() or part.ndim < 2 or not bool(part.isfinite().all()):
            continue
        size = root_mean_square(part)
        if size > LARGE_INPUT:
            largest = int(part.flatten(0, -2).double().square().mean(0).argmax())
            yield warning(
                f"The inputs{_of(name)} have a root mean square of {size:,.3g}; {probe.train.column(name, largest)} has the "
                f"largest values, up to {float(part[..., largest].abs().max()):,.4g}.",
                "Scale each column with the mean and the standard deviation of the training data: (x - x.mean(0)) / x.std(0).",
                size,
            )


@check
def tiny_inputs(probe: Probe) -> Iterator[Finding]:
    """Find inputs that are much smaller than 1, such as images that were scaled twice."""
    recording = probe.recording
    for name, part in probe.train.x.items():
        if not part.is_floating_point() or part.ndim < 2 or not bool(part.isfinite().all()):
            continue
        size = root_mean_square(part)
        reached = size if recording is None or recording.first_input is None else recording.first_input
        if 0 < size < TINY_INPUT and reached < TINY_INPUT:
            yield warning(
                f"The inputs{_of(name)} have a root mean square of only {size:.2g}.",
                "Check whether they were scaled twice. Scale them to a standard deviation of 1: (x - x.mean()) / x.std().",
                size,
            )


@check
def constant_columns(probe: Probe) -> Iterator[Finding]:
    """Find columns of a table with the same value in all samples."""
    for name, table in probe.train.tables():
        low, high = table.amin(0), table.amax(0)
        constant = (low == high).nonzero().flatten().tolist()
        if not constant or len(constant) == table.shape[1] or table.shape[1] == 1 or len(table) < 10:
            continue
        titles = [probe.train.column(name, column) for column in constant[:SHOWN_COLUMNS]]
        more = f" and {len(constant) - SHOWN_COLUMNS} more" if len(constant) > SHOWN_COLUMNS else ""
        message = f"Constant in all samples: {', '.join(titles)}{more}."
        if probe.train.columns is None and _are_pixels(low, constant):
            yield info(f"{len(constant)} of {table.shape[1]} pixels have the same value in all samples.", len(constant))
        else:
            yield warning(message, "Remove these columns, or check how they were read.", len(constant))


@check
def identical_samples(probe: Probe) -> Iterator[Finding]:
    """Find a data set whose samples are all the same, or the same within a batch."""
    in_batch = as_parts(probe.batch.x) if probe.batch is not None and probe.batch_size >= MIN_EQUAL else {}
    for parts, text in (
        (probe.train.x, f"all {probe.train.rows:,} samples that were read"),
        (in_batch, f"all {probe.batch_size:,} samples of the first batch"),
    ):
        several = [part for part in parts.values() if len(part) >= MIN_EQUAL]
        if several and all(bool((part == part[:1]).all()) for part in several):
            yield error(
                f"The inputs of {text} are the same.",
                "Check that __getitem__ uses its index, and that the inputs are not overwritten: return a copy of a buffer.",
            )
            return


def data_sets(probe: Probe) -> Iterator[tuple[str, Samples]]:
    """Yield the training data and each validation data set, with how to call it."""
    yield "training data", probe.train
    for name, samples in probe.validation.items():
        yield f"validation data{_of(name)}", samples


def root_mean_square(values: Tensor) -> float:
    """Return the root of the mean of the squares."""
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0


def _is_scaled_inside(probe: Probe, limit: float) -> bool:
    """Return whether the module scales its inputs before the first layer with weights."""
    recording = probe.recording
    return recording is not None and recording.first_input is not None and recording.first_input < limit


def _are_pixels(low: Tensor, constant: list[int]) -> bool:
    """Return whether columns may be pixels: almost all have one minimum, which is the value of the constant ones."""
    value = torch.mode(low).values
    return bool((low == value).double().mean() >= PIXEL_SHARE) and bool((low[constant] == value).all())


def _of(name: str) -> str:
    return f" {name!r}" if name else ""
