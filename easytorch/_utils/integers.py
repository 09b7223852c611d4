"""Checks of numbers and flags among the arguments."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

# The first integer that does not fit in an int64.
LIMIT = 2**63


def positive_int(name: str, value: Any) -> int:
    """Return ``value`` as a positive ``int``.

    Args:
        name: The name of the argument, for the message.
        value: A Python or NumPy integer, or a float with an integral value such as 3.0; a bool is refused.

    Raises:
        ValueError: If ``value`` is not a positive integer.

    Examples:
        >>> positive_int("epochs", 3.0)
        3
    """
    return _check_int(name, value, minimum=1, expected="a positive integer")


def optional_positive_int(name: str, value: Any) -> int | None:
    """Return ``value`` as a positive ``int``, or None if it is None; see ``positive_int``."""
    return None if value is None else positive_int(name, value)


def non_negative_int(name: str, value: Any) -> int:
    """Return ``value`` as an ``int`` of at least 0; see ``positive_int``."""
    return _check_int(name, value, minimum=0, expected="a non-negative integer")


def _check_int(name: str, value: Any, *, minimum: int, expected: str) -> int:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    is_in_range = is_number and minimum <= value < LIMIT
    if is_in_range and value == int(value):
        return int(value)
    fix = f" Use {name}={math.ceil(value) if is_in_range else minimum}."
    if isinstance(value, str) and value.strip().isdecimal():
        fix = f" Use {name}={int(value)}, without quotes."
    raise ValueError(f"{name} must be {expected}, received {value!r}.{fix}")


def boolean(name: str, value: Any) -> bool:
    """Return ``value`` as a ``bool``.

    Raises:
        TypeError: If it is neither a bool nor the number 0 or 1. The text ``"no"`` would count as True.
    """
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    # A path or a name may be meant for the next argument.
    other = " Pass other arguments by name." if isinstance(value, (str, os.PathLike)) else ""
    raise TypeError(f"{name} must be True or False, received {value!r}. Use {name}=True or {name}=False.{other}")


def optional_boolean(name: str, value: Any) -> bool | None:
    """Return ``value`` as a ``bool``, or None.

    Raises:
        TypeError: If it is neither; see ``boolean``.
    """
    return None if value is None else boolean(name, value)


def optional_positive_number(name: str, value: Any) -> float | None:
    """Return ``value``, a number above 0 or None.

    Raises:
        ValueError: If ``value`` is neither.
    """
    if value is not None and (isinstance(value, (str, bool)) or not value > 0):
        raise ValueError(f"{name} must be a number above 0 or None, received {value!r}. Use {name}=1.0.")
    number: float | None = value
    return number
