"""The criterion for the loss argument of ``compile``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from easytorch.losses.criterion import Criterion
from easytorch.losses.module_loss import ModuleLoss
from easytorch.losses.modules import LossModules
from easytorch.losses.multi_output_loss import MultiOutputLoss
from easytorch.losses.single_loss import SingleLoss


def resolve_loss(loss: Any, weights: Any = None, module: nn.Module | None = None) -> Criterion:
    """Return the criterion for the ``loss`` argument of ``compile``.

    Args:
        loss: A name, a ``torch.nn`` loss, a function ``f(y_pred, y)``, or None if the module returns its own loss. For
            several outputs, a list or dict of these, one per output.
        weights: For several outputs, the weight of each: a list or dict like ``loss``. A missing weight is 1.
        module: The module, whose own loss is used if ``loss`` is None.

    Raises:
        ValueError: If a name is unknown, or the weights do not match the losses.
        TypeError: If ``loss`` has another type.
    """
    criterion = _make_criterion(loss, weights, module)
    criterion.modules = LossModules(criterion.functions(), module)
    return criterion


def _make_criterion(loss: Any, weights: Any, module: nn.Module | None) -> Criterion:
    if isinstance(loss, (list, tuple, Mapping)):
        return MultiOutputLoss(loss, weights)
    if weights is not None:
        raise ValueError(
            f"loss_weights expects several losses, received loss_weights={weights!r} for one loss, {loss!r}. Pass a list or "
            "dict of losses, or leave loss_weights out."
        )
    return ModuleLoss(_is_causal(module)) if loss is None else SingleLoss(loss)


def _is_causal(module: Any) -> bool:
    """Return whether ``module`` is a causal language model of transformers, perhaps with adapters of peft.

    It compares the output at each token with the label of the next one.
    """
    if callable(getattr(module, "get_base_model", None)):
        module = module.get_base_model()
    kind = getattr(module, "loss_type", None)
    if kind is not None:
        return bool(kind == "ForCausalLM")
    # The classes whose name contains no kind of loss, such as GPT2LMHeadModel, have this loss if they use loss_function.
    code = getattr(inspect.unwrap(module.forward), "__code__", None) if isinstance(module, nn.Module) else None
    return code is not None and hasattr(type(module), "loss_function") and "loss_function" in code.co_names
