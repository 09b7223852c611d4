"""Cases of parametrized tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after_first(values: Iterable[Any]) -> list[Any]:
    """Mark all values but the first ``slow``, so that plain ``pytest`` runs one case of the test."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def slow_except(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Mark all values but ``fast`` as ``slow``."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
