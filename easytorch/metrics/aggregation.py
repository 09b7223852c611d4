"""Scalars that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = Tensor | float


class Mean:
    """A mean weighted by samples, kept on the device.

    Adding a value costs the host next to nothing: values wait in a list and are summed many at a time, in float64
    where the device has it.
    """

    PENDING = 256  # values that wait before they are summed

    def __init__(self) -> None:
        self.reset()

    def add(self, value: Scalar, weight: float) -> None:
        """Count ``value``, the mean of ``weight`` samples."""
        self._pending.append((value, weight, weight))
        if len(self._pending) >= self.PENDING:
            self.flush()

    def add_sum(self, total: Scalar, count: Scalar) -> None:
        """Count ``total``, the sum of ``count`` samples; the count too may be a tensor on the device."""
        self._pending.append((total, 1, count))
        if len(self._pending) >= self.PENDING:
            self.flush()

    def compute(self) -> Scalar:
        """Return the mean so far; NaN of nothing."""
        total, count = self._sums()
        return total / count if isinstance(count, Tensor) or count else float("nan")

    def reset(self) -> None:
        """Forget everything."""
        self._total: Scalar = 0.0
        self._count: Scalar = 0
        self._pending: list[tuple[Scalar, float, Scalar]] = []  # value, what it is multiplied by, samples it stands for

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs, the waiting values as they are: adding goes on with the same roundings."""
        return {"total": self._total, "count": self._count, "pending": list(self._pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._total, self._count = state["total"], state["count"]
        self._pending = [(value, factor, count) for value, factor, count in state["pending"]]

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the ``states`` of several means, as the mean of all their samples."""
        self.reset()
        for state in states:
            other = Mean()
            other.load_state_dict(state)
            total, count = other._sums()
            self._total, self._count = self._total + total, self._count + count

    def flush(self) -> None:
        """Sum up what waits."""
        self._total, self._count = self._sums()
        self._pending = []

    def _sums(self) -> tuple[Scalar, Scalar]:
        total, count = self._total, self._count
        by_factor: dict[float, list[Scalar]] = {}
        for value, factor, samples in self._pending:
            by_factor.setdefault(factor, []).append(value)
            count = count + samples
        for factor, values in by_factor.items():
            total = total + add_up(values) * factor
        return total, count


class Logs(Mapping[str, float]):
    """A mapping of names to floats that computes nothing and waits for no device until it is read.

    During an epoch its values are those of the moment in which they are read; keep ``dict(logs)`` to keep them.
    """

    def __init__(self, compute: Callable[[], Mapping[str, Scalar]]) -> None:
        self._compute = compute

    def __getitem__(self, name: str) -> float:
        return read(self._compute())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute())

    def __len__(self) -> int:
        return len(self._compute())

    def items(self) -> Any:
        """Return names and values, all of one moment, with a single wait for the device."""
        return read(self._compute()).items()

    def values(self) -> Any:
        """Return the values, all of one moment, with a single wait for the device."""
        return read(self._compute()).values()

    def __repr__(self) -> str:
        return repr(read(self._compute()))


def read(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """Turn scalars into floats with one transfer from each device."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, {})[name] = value.detach().reshape(()).to(_widest(value.device))
    numbers: dict[str, float] = {}
    for values in by_device.values():
        numbers.update(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    return {name: numbers[name] if name in numbers else float(value) for name, value in scalars.items()}


def add_up(values: list[Scalar]) -> Scalar:
    """Sum scalars where they are, in the widest float of their device; plain numbers on the host."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    rest = sum(value for value in values if not isinstance(value, Tensor))
    return torch.stack(tensors).sum(dtype=_widest(tensors[0].device)) + rest if tensors else rest


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
