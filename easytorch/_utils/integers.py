"""Checks of integer arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def whole(name: str, value: Any) -> int | None:
    """Return the count ``value`` of the argument ``name`` as an int, also where it is 3.0; None stays None."""
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or value != value or value < 1 or value != math.floor(min(value, 2**62)):
        cure = f" Use {math.ceil(value)}." if is_number and 1 < value < 2**62 else ""
        raise ValueError(f"{name} must be a whole number and at least 1, received {value!r}.{cure}")
    return int(value)


def positive_int(name: str, value: Any) -> int:
    """Return ``value`` as an int.

    Args:
        name: Name of the argument, for the message.
        value: An int, a NumPy integer or a float without a fraction.

    Raises:
        ValueError: If it is anything else, a bool included, or below 1.
    """
    return _checked_int(name, value, 1, "a positive integer")


def optional_positive_int(name: str, value: Any) -> int | None:
    """Return ``value`` as ``positive_int`` does; None stays None."""
    return None if value is None else positive_int(name, value)


def non_negative_int(name: str, value: Any) -> int:
    """Return ``value`` as an int, as ``positive_int`` does; 0 is accepted."""
    return _checked_int(name, value, 0, "a non-negative integer")


def _checked_int(name: str, value: Any, lowest: int, expected: str) -> int:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < lowest or value != math.floor(value):
        raise ValueError(f"{name} must be {expected}, received {value!r}.")
    return int(value)
