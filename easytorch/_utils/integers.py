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
