"""Losses by name, with the properties of each torch loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.registry import snake_case
from easytorch.losses.keras import KERAS

# Each of these modules is a layer with parameters and a loss in one, so no name stands for it.
LAYERS_WITH_LOSS = ("AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss")
TORCH_LOSSES: dict[str, type[nn.Module]] = {
    snake_case(name.removesuffix("Loss")): getattr(nn, name)
    for name in dir(nn)
    if name.endswith("Loss") and name not in LAYERS_WITH_LOSS
}
ALIASES: dict[str, type[nn.Module]] = {
    "ce": nn.CrossEntropyLoss,
    "crossentropy": nn.CrossEntropyLoss,
    "categorical_crossentropy": nn.CrossEntropyLoss,
    "sparse_categorical_crossentropy": nn.CrossEntropyLoss,
    "binary_crossentropy": nn.BCELoss,
    "binary_cross_entropy": nn.BCELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
    "mae": nn.L1Loss,
    "mean_absolute_error": nn.L1Loss,
    "mean_squared_error": nn.MSELoss,
    "negative_log_likelihood": nn.NLLLoss,
}
TABLE: dict[str, Any] = dict(sorted((TORCH_LOSSES | ALIASES | KERAS).items()))

# The kind of classification, and the function that turns the module's outputs into probabilities.
ACTIVATIONS: dict[type[nn.Module], tuple[str, Callable[[Tensor], Tensor]]] = {
    nn.CrossEntropyLoss: ("multiclass", functools.partial(torch.softmax, dim=1)),
    nn.NLLLoss: ("multiclass", torch.exp),
    nn.MultiMarginLoss: ("multiclass", functools.partial(torch.softmax, dim=1)),
    nn.BCEWithLogitsLoss: ("binary", torch.sigmoid),
    nn.MultiLabelSoftMarginLoss: ("binary", torch.sigmoid),
    nn.BCELoss: ("binary", nn.Identity()),
}
NO_ACTIVATION: tuple[None, None] = (None, None)

# The torch module with the same definition as each function of torch.nn.functional.
FUNCTION_FAMILIES: dict[Any, type[nn.Module]] = {
    nn.functional.cross_entropy: nn.CrossEntropyLoss,
    nn.functional.nll_loss: nn.NLLLoss,
    nn.functional.multi_margin_loss: nn.MultiMarginLoss,
    nn.functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    nn.functional.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    nn.functional.binary_cross_entropy: nn.BCELoss,
    nn.functional.mse_loss: nn.MSELoss,
    nn.functional.l1_loss: nn.L1Loss,
    nn.functional.smooth_l1_loss: nn.SmoothL1Loss,
    nn.functional.huber_loss: nn.HuberLoss,
    nn.functional.poisson_nll_loss: nn.PoissonNLLLoss,
}

# Losses that compare outputs and targets value by value, so both need the same shape.
ELEMENTWISE_LOSSES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.GaussianNLLLoss,
    nn.HingeEmbeddingLoss,
    nn.KLDivLoss,
    nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)
# Losses whose targets are -1 and 1. Torch takes integers as well as floats.
SIGNED_TARGET_LOSSES = (nn.HingeEmbeddingLoss, nn.SoftMarginLoss)
# The same for losses of two outputs. For any other target, the first one is 0 without an error.
PAIR_LOSSES = (nn.CosineEmbeddingLoss, nn.MarginRankingLoss)


# The adapters are module-level functions because functions with a name can be pickled.


def _call_pair_loss(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(*y_pred, y)


def _call_triplet_loss(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(*y_pred)


def _call_gaussian_nll(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(y_pred[0], y, y_pred[1])


def _call_ctc(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(y_pred[0], y[0], y_pred[1], y[1])


# The tensors that the module must return, in a tuple. One tensor would be taken apart along the batch.
OUTPUT_PARTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.CosineEmbeddingLoss: ("first", "second"),
    nn.MarginRankingLoss: ("first", "second"),
    nn.TripletMarginLoss: ("anchor", "positive", "negative"),
    nn.TripletMarginWithDistanceLoss: ("anchor", "positive", "negative"),
    nn.GaussianNLLLoss: ("mean", "variance"),
    nn.CTCLoss: ("log_probabilities", "input_lengths"),
}

# Calls of the torch losses that do not take (y_pred, y). For them, y_pred is a tuple of the module's outputs.
CALL_ADAPTERS: dict[type[nn.Module], Callable[[nn.Module, Any, Any], Tensor]] = {
    nn.CosineEmbeddingLoss: _call_pair_loss,
    nn.MarginRankingLoss: _call_pair_loss,
    nn.TripletMarginLoss: _call_triplet_loss,
    nn.TripletMarginWithDistanceLoss: _call_triplet_loss,
    nn.GaussianNLLLoss: _call_gaussian_nll,
    nn.CTCLoss: _call_ctc,
}
