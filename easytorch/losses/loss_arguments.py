"""Arguments of a custom loss or metric beyond predictions and targets, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch.data.batch_objects import is_batch_object

# What each name stands for. Any other name is an entry of a batch that is a dict.
NAMES = ("x", "model", "module", "sample_weight", "batch")
METRIC_NAMES = ("x", "model", "module", "batch")


class LossArguments:
    """The parameters of a custom loss or metric after ``(y_pred, y)``, and their values for a batch.

    A parameter without a default is required. One whose default is None gets its value if there is one. Any other default is a
    setting of the loss, and stays.

    Args:
        title: The loss or metric, for messages.
        call: How a custom step calls it with a batch, for messages.
        required: Names of the parameters without a default.
        optional: Names of the parameters whose default is None.
        known: The names that are no entries of a batch, for messages.

    Attributes:
        model: The model, which ``compile`` sets.
        entries: The names that are entries of a batch.
        takes_weight: Whether the loss applies sample weights itself.
    """

    def __init__(
        self, title: str, call: str, required: list[str], optional: list[str], *, known: Sequence[str] = NAMES
    ) -> None:
        self.known = known
        self.title, self.call, self.required, self.names = title, call, required, [*required, *optional]
        self.entries = frozenset(self.names) - frozenset(NAMES)
        self.takes_weight = "sample_weight" in self.names
        self.model: Any = None

    @staticmethod
    def of(title: str, function: Any) -> LossArguments | None:
        """Return the arguments of a loss that is a function or a module; None if it takes predictions and targets only.

        Raises:
            TypeError: If it takes fewer arguments.
        """
        signature = _find_signature(function)
        if signature is None:
            return None
        parameters = list(signature.parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(positional) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
            raise TypeError(
                f"The loss, {title}, is called with (y_pred, y), but takes {signature}. Write def loss(y_pred, y): ..."
            )
        others = _find_further(signature)
        required = [p.name for p in others if p.default is p.empty]
        optional = [p.name for p in others if p.default is None]
        call = "self.loss(y_pred, y, batch=batch)"
        return LossArguments(f"loss, {title}", call, required, optional) if required or optional else None

    @staticmethod
    def of_metric(title: str, function: Any) -> LossArguments | None:
        """Return the required arguments of a metric; None if it takes predictions and targets only.

        A parameter with a default is a setting of the metric.
        """
        signature = _find_signature(function)
        others = [] if signature is None else _find_further(signature)
        required = [p.name for p in others if p.default is p.empty]
        if "sample_weight" in required:
            raise TypeError(
                f"The metric {title!r} has the parameter 'sample_weight', but easytorch applies the weights. Return one value "
                f"per sample without it, and pass weighted_metrics=[{title}]. For other uses, subclass easytorch.Metric."
            )
        call = "self.metrics.update(y_pred, y, batch=batch)"
        return LossArguments(f"metric, {title!r}", call, required, [], known=METRIC_NAMES) if required else None

    def values(self, batch: Any, sample_weight: Any) -> dict[str, Any]:
        """Return the value of each parameter that has one.

        Args:
            batch: The batch on the device, a dict or an object with attributes; None if a custom step passes none.
            sample_weight: Its sample weights, or None.

        Raises:
            TypeError: If a required parameter has no value.
        """
        known: dict[str, Any] = dict(_find_entries(batch)) if self.entries else {}
        if is_batch_object(batch):
            known |= {name: getattr(batch, name) for name in self.entries if hasattr(batch, name)}
        if self.model is not None:
            known |= {"model": self.model, "module": self.model.module}
            if batch is not None and "x" in self.names:
                known["x"] = self.model.unpack(batch).x
        if batch is not None:
            known["batch"] = batch
        if sample_weight is not None or "sample_weight" in self.required:
            known["sample_weight"] = sample_weight
        for name in self.required:
            if name not in known:
                raise self._missing_error(name, batch)
        return {name: known[name] for name in self.names if name in known}

    def _missing_error(self, name: str, batch: Any) -> TypeError:
        subject = f"The {self.title}, has the parameter {name!r}"
        if batch is None:
            return TypeError(
                f"{subject}, and this call of the {self.title.partition(',')[0]} passes no batch. Pass it in a custom step: "
                f"{self.call}."
            )
        names = [*self.known, *_find_entries(batch)]
        fix = f'batches that are dicts: {{"x": x, "y": y, {name!r}: ...}}'
        return TypeError(
            f"{subject}, which is none of {quote_list(self.known)}, and no entry of the batch, {describe(batch)}."
            f"{did_you_mean(name, names)} Pass {fix}, or set it: functools.partial(function, {name}=...)."
        )


def takes_argument(function: Any, name: str) -> bool:
    """Return whether a loss or a metric has the parameter ``name``."""
    signature = _find_signature(function)
    return signature is not None and name in signature.parameters


def _find_signature(function: Any) -> inspect.Signature | None:
    """Return the signature of a function or of a module's ``forward``; None for a built-in function."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def _find_further(signature: inspect.Signature) -> list[inspect.Parameter]:
    """Return the parameters after the first two that can be passed by name."""
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p for p in positional[2:] if p.kind == p.POSITIONAL_OR_KEYWORD]
    return [*others, *(p for p in parameters if p.kind == p.KEYWORD_ONLY)]


def _find_entries(batch: Any) -> Mapping[str, Any]:
    """Return the entries of a batch that is a dict, or has a dict of inputs; otherwise an empty dict."""
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    return first if isinstance(first, Mapping) else {}
