"""Parts of a batch outside of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from easytorch._utils.forward_signature import ForwardSignature
from easytorch.data import batch as batch_functions
from easytorch.data.batch import Batch


def unpack(batch: Any, module: nn.Module | None = None) -> Batch:
    """Split a batch into inputs, targets and sample weights, as the loop does; a missing part is None.

    In a step, use ``self.unpack(batch)``. It knows the module, entries that belong to the loss, and labels that are text.

    Args:
        batch: ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``; or a dict. The entry ``labels`` (``label``, ``targets``,
            ``target``, ``y``) of a dict is the target, ``sample_weight`` has the weights, and all others are inputs.
        module: The module that takes the inputs. The entries of a dict that have the names of its arguments are the inputs.

    Returns:
        A ``Batch(x, y, sample_weight)``.

    Raises:
        ValueError: If a tuple has more than three parts.

    Examples:
        >>> x, y, sample_weight = easytorch.data.unpack((images, labels))
        >>> sample_weight is None
        True
    """
    return batch_functions.unpack(batch, None if module is None else ForwardSignature.of(module))
