"""Scalars that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easytorch._utils.pytree import are_instances, has_instance

Scalar = Tensor | float

# Groups of values with the same weight that are summed separately. More groups are summed as one weighted sum.
MAX_GROUPS = 4


class Mean:
    """A weighted mean of scalars, without host synchronization.

    Values wait in a list and are summed many at a time, in float64 where the device has it.

    Examples:
        >>> mean = Mean()
        >>> mean.add(0.5, 32)  # the mean of 32 samples
        >>> mean.add_sum(3.0, 4)  # the sum of 4 samples
        >>> mean.compute()
        0.5277777777777778
    """

    # Number of values that wait before they are summed.
    PENDING = 256

    def __init__(self) -> None:
        self.reset()

    def add(self, value: Scalar, weight: Scalar) -> None:
        """Add the mean ``value`` of ``weight`` samples; with weight 0 it is ignored, even if it is NaN.

        Args:
            value: The mean of some samples: a number, or a scalar tensor on any device.
            weight: The number of these samples.

        Examples:
            >>> mean = Mean()
            >>> mean.add(0.5, 32)
            >>> mean.compute()
            0.5
        """
        self._pending.append((value, weight, weight))
        if len(self._pending) >= self.PENDING:
            self.flush()

    def add_sum(self, total: Scalar, count: Scalar) -> None:
        """Add the sum ``total`` of ``count`` samples; both may be tensors on the device.

        Args:
            total: The sum of some samples.
            count: The number of these samples.

        Examples:
            >>> mean = Mean()
            >>> mean.add_sum(3.0, 4)
            >>> mean.compute()
            0.75
        """
        self._pending.append((total, 1, count))
        if len(self._pending) >= self.PENDING:
            self.flush()

    def compute(self) -> Scalar:
        """Return the mean of all samples since the last reset, NaN if there are none.

        Examples:
            >>> mean = Mean()
            >>> mean.add(0.5, 3)
            >>> mean.add(1.0, 1)
            >>> mean.compute()
            0.625
        """
        total, count = self._sums()
        return total / count if isinstance(count, Tensor) or count else float("nan")

    def counts_nothing(self) -> bool:
        """Return whether there are values, but the number of their samples is 0."""
        count = self._count
        if self._pending:
            count = count + sum_scalars([count for _, _, count in self._pending])
        return (bool(self._pending) or isinstance(count, Tensor)) and not count

    def reset(self) -> None:
        """Remove all values.

        Examples:
            >>> mean = Mean()
            >>> mean.add(0.5, 3)
            >>> mean.reset()
            >>> mean.compute()
            nan
        """
        self._total: Scalar = 0.0
        self._count: Scalar = 0
        # Each entry is a value, the factor to multiply it by, and the number of its samples.
        self._pending: list[tuple[Scalar, Scalar, Scalar]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint.

        It includes the waiting values, so that a resumed run rounds as an uninterrupted one.
        """
        return {"total": self._total, "count": self._count, "pending": list(self._pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        self._total, self._count = state["total"], state["count"]
        self._pending = [(value, factor, count) for value, factor, count in state["pending"]]

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Become the mean of all samples in the ``states`` of several means."""
        self.reset()
        for state in states:
            other = type(self)()
            other.load_state_dict(state)
            total, count = other._sums()
            self._total, self._count = self._total + total, self._count + count

    def flush(self) -> None:
        """Sum the waiting values."""
        self._total, self._count = self._sums()
        self._pending = []

    def _sums(self) -> tuple[Scalar, Scalar]:
        if not self._pending:
            return self._total, self._count
        values, factors, counts = zip(*self._pending, strict=True)
        total = self._total
        by_factor, weighted = _group_by_factor(values, factors)
        for factor, group in by_factor.items():
            total = total + sum_scalars(group) * factor
        if weighted:
            total = total + _weighted_sum(weighted)
        return total, self._count + sum_scalars(counts)


class Sum(Mean):
    """The sum of scalars, for a loss that is a sum over samples."""

    def add(self, value: Scalar, weight: Scalar) -> None:
        """Add ``value``, the sum of ``weight`` samples."""
        self.add_sum(value, weight)

    def compute(self) -> Scalar:
        """Return the sum of all values since the last reset."""
        return self._sums()[0]


class LazyLogs(Mapping[str, float]):
    """A mapping of names to floats that waits for the device only when it is read.

    Its values are those at the time of reading. Use ``dict(logs)`` to store them.

    Args:
        compute: Returns the current scalars by name.
        compute_one: Returns those that the value of a name needs, with this value among them; by default all.
    """

    def __init__(
        self,
        compute: Callable[[], Mapping[str, Scalar]],
        compute_one: Callable[[str], Mapping[str, Scalar]] | None = None,
    ) -> None:
        self._compute, self._compute_one = compute, compute_one or (lambda _: compute())

    def __getitem__(self, name: str) -> float:
        return to_floats(self._compute_one(name))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute())

    def __len__(self) -> int:
        return len(self._compute())

    def items(self) -> Any:
        """Return names and values of the same moment, with one transfer from each device."""
        return to_floats(self._compute()).items()

    def values(self) -> Any:
        """Return values of the same moment, with one transfer from each device."""
        return to_floats(self._compute()).values()

    def __repr__(self) -> str:
        return repr(to_floats(self._compute()))


def to_floats(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """Convert scalars to floats with one transfer from each device."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, {})[name] = value.detach().reshape(()).to(_widest(value.device))
    floats: dict[str, float] = {}
    for values in by_device.values():
        floats.update(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    return {name: floats[name] if name in floats else float(value) for name, value in scalars.items()}


def sum_scalars(values: Sequence[Scalar]) -> Scalar:
    """Return the sum of ``values``, tensors on their device in its widest float, numbers on the host."""
    if not has_instance(values, Tensor):
        return sum(values)
    tensors: Any = values if are_instances(values, Tensor) else [v for v in values if isinstance(v, Tensor)]
    total = torch.stack(tensors).sum(dtype=_widest(tensors[0].device))
    return total if len(tensors) == len(values) else total + sum(v for v in values if not isinstance(v, Tensor))


def _group_by_factor(
    values: Sequence[Scalar], factors: Sequence[Scalar]
) -> tuple[Mapping[float, Sequence[Scalar]], list[tuple[Scalar, Scalar]]]:
    """Return the values of each factor, without those of factor 0, and the other pairs of a value and a factor."""
    if not isinstance(factors[0], Tensor) and len(set(factors)) == 1:  # batches of one size are the usual case
        return ({factors[0]: values} if factors[0] else {}), []
    by_factor: dict[float, list[Scalar]] = {}
    weighted: list[tuple[Scalar, Scalar]] = []
    for value, factor in zip(values, factors, strict=True):
        if isinstance(factor, Tensor):
            weighted.append((value, factor))
        elif factor:
            by_factor.setdefault(factor, []).append(value)
    if len(by_factor) > MAX_GROUPS:
        weighted += [(value, factor) for factor, group in by_factor.items() for value in group]
        by_factor = {}
    return by_factor, weighted


def _weighted_sum(values: list[tuple[Scalar, Scalar]]) -> Tensor:
    """Return the sum of values times weights, without the values whose weight is 0."""
    tensor = next((part for pair in values for part in pair if isinstance(part, Tensor)), torch.zeros(()))
    numbers, weights = (_stack(column, tensor.device) for column in zip(*values, strict=True))
    return torch.where(weights == 0, 0.0, numbers * weights).sum()


def _stack(scalars: Sequence[Scalar], device: torch.device) -> Tensor:
    """Return ``scalars`` as one tensor on ``device``, in its widest float."""
    if all(isinstance(scalar, Tensor) for scalar in scalars):
        return torch.stack(list(scalars)).to(_widest(device))  # type: ignore[arg-type]  # all are tensors
    if not any(isinstance(scalar, Tensor) for scalar in scalars):
        return torch.tensor(scalars, dtype=_widest(device)).to(device, non_blocking=True)
    return torch.stack([torch.as_tensor(scalar, dtype=_widest(device), device=device) for scalar in scalars])


def _widest(device: torch.device) -> torch.dtype:
    # MPS has no float64.
    return torch.float32 if device.type == "mps" else torch.float64
