"""Memory and time of the training."""

from __future__ import annotations

from collections.abc import Iterator

from easytorch.checks.base import Finding, check, info
from easytorch.checks.probe import Probe
from easytorch.training.summary import estimate_memory, format_bytes


@check
def memory(probe: Probe) -> Iterator[Finding]:
    """Report the memory for weights, gradients, optimizer state and activations."""
    sizes = memory_by_part(probe)
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    yield info(f"Memory for a batch: {format_bytes(sum(sizes.values()))} ({parts}).", sum(sizes.values()))


@check
def time_of_a_step(probe: Probe) -> Iterator[Finding]:
    """Report the time of an update, of the wait for its data, and of an epoch."""
    if probe.failure is not None:
        return
    total = probe.step_seconds + probe.data_seconds
    text = f"An update takes {_format_seconds(probe.step_seconds)}, and its data {_format_seconds(probe.data_seconds)}"
    if probe.steps:
        text += f": about {_format_seconds(total * probe.steps)} for an epoch of {probe.steps:,} update{'s' * (probe.steps != 1)}"
    waits = probe.data_seconds > probe.step_seconds and probe.data_seconds > 0.01
    yield info(f"{text}.", total, probe.data_advice if waits else "")


def memory_by_part(probe: Probe) -> dict[str, int]:
    """Return the bytes of each part; parts of unknown size are missing."""
    model = probe.model
    sizes = estimate_memory(model.module, model.optimizer, model.strategy.gradient_copies)
    known = {name: size for name, size in sizes.items() if size is not None}
    return known | ({} if probe.recording is None else {"activations": probe.recording.saved_bytes})


def _format_seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
