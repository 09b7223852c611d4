"""Losses by name, and what is known about each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.registry import snake_case
from easytorch.losses.keras import KERAS

LAYERS = ("AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss")  # a layer and its loss in one
NAMES: dict[str, type[nn.Module]] = {
    snake_case(name.removesuffix("Loss")): getattr(nn, name)
    for name in dir(nn)
    if name.endswith("Loss") and name not in LAYERS
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
TABLE: dict[str, Any] = dict(sorted((NAMES | ALIASES | KERAS).items()))
# What turns a module's output into probabilities, and whether classes exclude each other.
ACTIVATIONS: dict[type[nn.Module], tuple[str, Callable[[Tensor], Tensor]]] = {
    nn.CrossEntropyLoss: ("multiclass", functools.partial(torch.softmax, dim=1)),
    nn.NLLLoss: ("multiclass", torch.exp),
    nn.MultiMarginLoss: ("multiclass", functools.partial(torch.softmax, dim=1)),
    nn.BCEWithLogitsLoss: ("binary", torch.sigmoid),
    nn.MultiLabelSoftMarginLoss: ("binary", torch.sigmoid),
    nn.BCELoss: ("binary", nn.Identity()),
}
NO_ACTIVATION: tuple[None, None] = (None, None)
FUNCTIONS: dict[Any, type[nn.Module]] = {
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
ELEMENTWISE = (
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
)
SIGNED_TARGET_LOSSES = (nn.HingeEmbeddingLoss, nn.SoftMarginLoss)  # torch takes -1 and 1 as whole numbers too


# Losses of torch that take something else than (y_pred, y); y_pred is then a tuple of the module's outputs. They are functions
# with a name, which can be pickled.


def _of_pair(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(*y_pred, y)


def _of_triplet(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(*y_pred)


def _gaussian_nll(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(y_pred[0], y, y_pred[1])


def _ctc(loss: nn.Module, y_pred: Any, y: Any) -> Any:
    return loss(y_pred[0], y[0], y_pred[1], y[1])


CALL_ADAPTERS: dict[type[nn.Module], Callable[[nn.Module, Any, Any], Tensor]] = {
    nn.CosineEmbeddingLoss: _of_pair,
    nn.MarginRankingLoss: _of_pair,
    nn.TripletMarginLoss: _of_triplet,
    nn.TripletMarginWithDistanceLoss: _of_triplet,
    nn.GaussianNLLLoss: _gaussian_nll,
    nn.CTCLoss: _ctc,
}
