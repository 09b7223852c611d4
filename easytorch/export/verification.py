"""Comparison of an exported program with predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easytorch._utils.pytree import leaves

if TYPE_CHECKING:
    from easytorch.export.formats import Runner
    from easytorch.export.inputs import Inputs
    from easytorch.model import Model

# Largest difference, relative to the largest value of an output, by the precision in which predict computes.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}
MAX_CAUSE = 400  # characters of an error of the runtime


def compare_with_predict(
    model: Model, inputs: Inputs, load: Callable[[], Runner], probabilities: bool, tolerance: float | None
) -> None:
    """Raise a ``RuntimeError`` if the program does not return what ``predict`` or ``predict_proba`` returns.

    The program runs with one sample, three samples, and other sizes of the further dynamic dimensions.
    """
    limit = TOLERANCES.get(model.strategy.precision, 1e-4) if tolerance is None else tolerance
    run: Runner | None = None
    for each in (inputs.with_rows(3), inputs.with_rows(1), inputs.with_rows(3).with_other_sizes()):
        expected = list(leaves(predict(model, each, probabilities)))
        try:
            run = run or load()
            received = run(each)
        # Runtimes have many kinds of errors.
        except Exception as error:
            cause = str(error).strip()[:MAX_CAUSE]
            raise RuntimeError(
                f"The exported program does not run with inputs of shape {_shapes(each)}. No file was written. Use sizes of the "
                f"input in forward, such as x.shape[0], and types that the format has. The cause: {cause}"
            ) from error
        _compare(expected, received, limit, _shapes(each))


def predict(model: Model, inputs: Inputs, probabilities: bool) -> Any:
    """Return the outputs of ``predict``, or of ``predict_proba``."""
    method = model.predict_proba if probabilities else model.predict
    return method([(inputs.tree,)], verbose=0)


def _compare(expected: list[Any], received: list[Any], limit: float, shapes: str) -> None:
    received = [value for value in received if isinstance(value, Tensor)]
    arrays = [torch.as_tensor(value) for value in expected if hasattr(value, "shape")]
    if len(arrays) != len(received):
        raise RuntimeError(
            f"The exported program returns {len(received)} tensors, and predict() {len(arrays)}. Return only tensors from "
            "forward, and each tensor once."
        )
    for i, (right, value) in enumerate(zip(arrays, received, strict=True)):
        difference = _difference(right, value)
        if not difference <= limit:
            raise RuntimeError(
                f"Output {i} of the exported program differs from predict() by {difference:.3g} of its largest value, for inputs "
                f"of shape {shapes}; {limit:g} is allowed. No file was written. The forward of the module must not draw random "
                "numbers in eval mode, nor keep a state. If the difference is acceptable, pass tolerance=."
            )


def _difference(expected: Tensor, received: Tensor) -> float:
    """Return the largest difference relative to the largest absolute value; infinite for other shapes or other NaN."""
    if expected.shape != received.shape:
        return float("inf")
    right, value = expected.double(), received.detach().double()
    is_same = (right == value) | (right.isnan() & value.isnan())
    if is_same.all():
        return 0.0
    finite = right[right.isfinite()].abs()
    scale = max(float(finite.max()) if len(finite) else 0.0, 1e-3)
    difference = float(torch.where(is_same, 0.0, (right - value).abs()).max())
    return float("inf") if difference != difference else difference / scale


def _shapes(inputs: Inputs) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in inputs.tensors() if isinstance(tensor, Tensor))
