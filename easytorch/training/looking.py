"""What a model reports about itself."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils.api_hints import ATTRIBUTE_HINTS, check_assignment, check_steps, missing_attribute_error
from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.internal import is_internal
from easytorch.callbacks.base import CallbackList
from easytorch.data.batch import Batch
from easytorch.data.loader import one_batch
from easytorch.data.predictions import inputs
from easytorch.losses.criterion import Criterion
from easytorch.metrics.collection import MetricCollection
from easytorch.strategies.base import Strategy
from easytorch.training.results import History
from easytorch.training.summary import estimate_memory, format_memory, summarize


class Looking:
    """The part of ``Model`` that tells about it."""

    module: torch.nn.Module
    device: torch.device
    signature: ForwardSignature
    strategy: Strategy
    optimizer: torch.optim.Optimizer | None
    loss: Criterion
    metrics: MetricCollection
    callbacks: CallbackList
    last_fit: dict[str, Any]
    _history: History
    _compiled: dict[str, Any] | None
    lacks_compile: bool

    if not TYPE_CHECKING:  # which is to know what there is

        def __getattr__(self, name: str) -> Any:
            if "module" not in vars(self):
                raise AttributeError(
                    f"{type(self).__name__} has no {name!r}: its __init__ does not call super().__init__(module), or not first."
                )
            raise missing_attribute_error(f"A {type(self).__name__}", name, ATTRIBUTE_HINTS, dir(type(self)))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not is_internal(cls):
            check_steps(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module" and "module" in vars(self):
            raise AttributeError(
                "A model keeps its module. Put the new one into a model of its own: Model(net).compile(...)."
            )
        if name == "loss" and not isinstance(value, Criterion):
            raise TypeError(f"The loss is chosen by compile(optimizer, loss), received {value!r} as model.loss.")
        if self._is_plain:
            check_assignment(name)
        super().__setattr__(name, value)

    @property
    def _is_plain(self) -> bool:
        return is_internal(type(self))

    @property
    def history(self) -> History:
        """The numbers of every epoch, over all fits."""
        return self._history.of(self)  # type: ignore[arg-type]  # which is a Model

    def summary(self, x: Any = None, **options: Any) -> Any:
        """Print the table of layers, by torchinfo, and what training holds in memory; return the table's statistics.

        Args:
            x: Inputs, for the shapes; by default those of the last fit. Without any the table has no shapes.
            options: Passed on to ``torchinfo.summary``.
        """
        batch = self.last_fit.get("example") if x is None else one_batch(inputs(x, self.signature))
        x = None if batch is None else self.unpack(self.strategy.to_device(batch)).x
        table = summarize(self.module, x, self.device, **options)
        print(table)
        if self.optimizer is not None:
            sizes = estimate_memory(self.module, self.optimizer, self.strategy.gradient_copies)
            print(textwrap.fill(format_memory(sizes), 80))
        return table

    def unpack(self, batch: Any) -> Batch:
        """Split a batch; see ``Model.unpack``."""
        raise NotImplementedError(f"{type(self).__name__} must define unpack()")

    def log_names(self) -> list[str]:
        """Return the names that the logs of the fit that runs will have, those aside that ``may_log_more``."""
        names = ["loss", *self.loss.term_names(), *self.metrics.names]
        return [*names, *(f"val_{name}" for name in names if self.callbacks.params["validated"]), "lr"]

    def logs_are_open(self) -> bool:
        """Whether a step, or a callback, of the user's own may add to the logs."""
        return self.overrides("train_step") or self.overrides("update") or self.callbacks.has_user_callbacks()

    def overrides(self, method: str) -> bool:
        """Whether ``method`` was overridden by the user."""
        return not is_internal(getattr(type(self), method))

    def _require_compiled(self, verb: str) -> None:
        """Raise a ``RuntimeError`` if ``compile`` was not called before ``verb``."""
        if self._compiled is None:
            again = (
                " The model that was loaded was compiled with objects or functions, which no file holds; load it after compile() "
                "to have its optimizer too."
            )
            raise RuntimeError(
                f"Call compile() before {verb}(): model.compile('adam', 'cross_entropy').{again if self.lacks_compile else ''}"
            )

    def _require_optimizer(self, verb: str) -> torch.optim.Optimizer:
        """Return the optimizer, or raise a ``RuntimeError`` if there is none for ``verb``."""
        self._require_compiled(verb)
        if self.optimizer is None:
            raise RuntimeError(
                f"{verb}() needs an optimizer, but compile() was given none: model.compile('adam', ...)."
            )
        return self.optimizer

    def _fitted_data(self, **given: Any) -> tuple[str, Any]:
        """Return the data of the last fit, in words and as batches, if nothing was ``given`` that belongs to other data."""
        alone = next((name for name, value in given.items() if value is not None), None)
        if alone is not None:
            raise ValueError(f"evaluate() was given {alone} without data. Pass evaluate(x, y), or leave {alone} out.")
        for name in ("validation", "training"):
            if self.last_fit.get(name) is not None:
                return f"the {name} data of the last fit", self.last_fit[name]
        raise ValueError(
            "evaluate() was given no data, and there was no fit whose data it could use; files and copies hold none. Pass "
            "evaluate(x, y)."
        )
