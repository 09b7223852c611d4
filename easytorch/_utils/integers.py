"""Checks of integer arguments."""

from __future__ import annotations

import math
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
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    is_in_range = is_number and 1 <= value < LIMIT
    if is_in_range and value == int(value):
        return int(value)
    fix = f" Use {name}={math.ceil(value)}." if is_in_range else ""
    raise ValueError(f"{name} must be a positive integer, received {value!r}.{fix}")


def optional_positive_int(name: str, value: Any) -> int | None:
    """Return ``value`` as a positive ``int``, or None if it is None; see ``positive_int``."""
    return None if value is None else positive_int(name, value)


# The former name, until every caller has changed.
whole = optional_positive_int
