"""Checks of numeric arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def positive_int(name: str, value: Any) -> int:
    """Return the argument ``name`` as a Python int.

    Raises:
        ValueError: If ``value`` is not an integer of at least 1. Integral floats such as 3.0 are accepted, booleans are not.
    """
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or value != value or value < 1 or value != math.floor(min(value, 2**62)):
        fix = f" Use {math.ceil(value)}." if is_number and 1 < value < 2**62 else ""
        raise ValueError(f"{name} must be a positive integer, received {value!r}.{fix}")
    return int(value)


def optional_positive_int(name: str, value: Any) -> int | None:
    """Return the argument ``name`` as a Python int; None stays None. See ``positive_int``."""
    return None if value is None else positive_int(name, value)


def optional_positive_number(name: str, value: Any) -> float | None:
    """Return the argument ``name``, a number above 0 or None.

    Raises:
        ValueError: If ``value`` is neither.
    """
    if value is not None and (isinstance(value, (str, bool)) or not value > 0):
        raise ValueError(f"{name} must be a number above 0 or None, received {value!r}.")
    return value
