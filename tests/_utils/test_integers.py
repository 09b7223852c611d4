"""One check for all integer arguments."""

from __future__ import annotations

import numpy as np
import pytest

from easytorch._utils.integers import optional_positive_int, positive_int


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.uint8(3), np.float32(3)], ids=repr)
def test_integers_and_integral_floats_are_accepted(value):
    number = positive_int("epochs", value)
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize(
    "value",
    [0, -1, 0.5, True, np.True_, "3", None, float("nan"), float("inf"), 2**63, 10**400, 3j, [3]],
    ids=lambda value: repr(value)[:10],
)
def test_other_values_are_refused_with_the_argument_name(value):
    with pytest.raises(ValueError, match=r"^epochs must be a positive integer, received "):
        positive_int("epochs", value)


def test_a_fraction_gets_a_hint_to_the_next_integer():
    with pytest.raises(ValueError, match=r"^epochs must be a positive integer, received 2\.5\. Use epochs=3\.$"):
        positive_int("epochs", 2.5)


def test_none_passes_through_the_optional_check():
    assert optional_positive_int("steps", None) is None
    assert optional_positive_int("steps", 2.0) == 2
    with pytest.raises(ValueError, match="steps must be a positive integer, received 0"):
        optional_positive_int("steps", 0)
