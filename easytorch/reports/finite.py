"""The check for values that no report can measure."""

from __future__ import annotations

from typing import Any

import numpy as np

from easytorch._utils.text_table import join_numbers

FIXES = {
    "outputs": "Check these inputs and the weights of the module for such values, or leave out these samples.",
    "targets": "Correct these targets, or leave out these samples.",
}


def check_finite(what: str, is_finite: Any) -> None:
    """Raise a ``ValueError`` with the samples that have a value which is not finite.

    Args:
        what: Outputs or targets.
        is_finite: Whether each value is finite, ``[N, ...]`` of booleans.
    """
    count = len(is_finite)
    indices = np.flatnonzero(~np.asarray(is_finite).reshape(count, -1).all(1)).tolist()
    if indices:
        raise ValueError(
            f"The {what} of {len(indices)} of {count} samples have NaN or infinite values. Their indices: "
            f"{join_numbers(indices)}. A report on them would have no meaning. {FIXES[what]}"
        )
