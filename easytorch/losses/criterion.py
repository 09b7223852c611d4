"""The loss as the loop uses it: one, several, or the module's own."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.api_hints import check_argument_order
from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean, find, get_name, quote_list
from easytorch._utils.warnings import warn
from easytorch.data.batch import Batch, from_numpy
from easytorch.losses.checks import (
    label_error,
    label_range,
    label_range_error,
    last_layer_warning,
    pairs_notice,
    shape_error,
    single_class_error,
    soft_target_warning,
)
from easytorch.losses.keras import KERAS
from easytorch.losses.names import (
    ACTIVATIONS,
    CALL_ADAPTERS,
    ELEMENTWISE,
    FUNCTIONS,
    NAMES,
    NO_ACTIVATION,
    SIGNED_TARGET_LOSSES,
    TABLE,
)


class Criterion:
    """What the loop needs of a loss, be it one, several or the module's own.

    Attributes:
        kind: ``"multiclass"``, ``"binary"`` or None, where the loss does not tell.
        family: The torch loss that it is, else ``type(None)``.
        ignored: The class that does not count, None where there is no such thing.
    """

    kind: str | None = None
    ignored: int | None = None
    family: type[Any] = type(None)

    def __call__(self, y_pred: Any, y: Any, sample_weight: Any = None) -> Tensor:
        """Return the scalar to optimize."""
        return self.terms(y_pred, y, sample_weight)["loss"]

    def term_names(self) -> list[str]:
        """Return the names of the terms beside ``"loss"``."""
        return []

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}`` and whatever else is worth a column in the logs."""
        return {"loss": self(y_pred, y, sample_weight)}

    def prepare(self, targets: Any) -> None:
        """Be ready for new data, whose ``targets`` are known as a whole or not; they are checked in the first batch."""

    def part(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return the predictions and targets that a metric measures, of one ``output`` where there are several."""
        return y_pred, y

    def weight(self, sample_weight: Any, output: str | None) -> Any:
        """Return the weights of the part that a metric measures."""
        return sample_weight

    def prediction(self, part: Any, output: str | None) -> Any:
        """Return what is compared with the targets in the part of ``output``, where that is not all of it."""
        return part

    def loss_weights(self, sizes: Sequence[int], batches: Iterable[Batch]) -> list[Any]:
        """Return what each batch of a window weighs, so that the window counts as one batch of all its samples.

        Args:
            sizes: The number of samples of each batch.
            batches: The parts of each batch, looked at only where they matter.
        """
        if len(sizes) == 1:
            return [1.0]
        divisors = self.normalizers(sizes, batches)
        if divisors is None:
            return [1.0] * len(sizes)
        total: Any = sum(divisors)
        if isinstance(total, Tensor):  # where no target counts the gradients are 0, and are not to be divided by it
            total = torch.where(total == 0, 1.0, total)
        return [divisor / total for divisor in divisors]

    def normalizers(self, sizes: Sequence[int], batches: Iterable[Batch]) -> Sequence[Any] | None:
        """Return what the loss of each batch is divided by: ``sizes`` themselves where it is samples; None of a sum."""
        return sizes

    def probabilities(self, y_pred: Any) -> Any:
        """Return the probabilities that the module's outputs stand for."""
        raise ValueError(
            f"The loss, {self!r}, does not tell how outputs become probabilities. Call predict() and apply your own "
            "activation, or compile with 'cross_entropy', 'nll', 'bce' or 'bce_with_logits'."
        )

    def classes(self, y_pred: Any) -> Any:
        """Return the most probable class of each sample, or 0 and 1 for each independent label."""
        probabilities = self.probabilities(y_pred)
        return probabilities.argmax(1) if self.kind == "multiclass" else (probabilities > 0.5).long()


def resolve_loss(loss: Any, weights: Any = None) -> Criterion:
    """Return the criterion for what the user passed to ``compile``.

    Args:
        loss: A name, a ``torch.nn`` loss, any ``f(y_pred, y)``, None when the module makes its own loss, or a list or
            dict of these, one for each output.
        weights: For several outputs, the weight of each: a list or dict like ``loss``; 1 for what is missing.

    Raises:
        ValueError: If a name is unknown, or weights do not fit the losses.
        TypeError: If it is none of these.
    """
    if isinstance(loss, (list, tuple, Mapping)):
        return MultiOutputLoss(loss, weights)
    if weights is not None:
        raise ValueError(
            f"loss_weights={weights!r} are for several outputs, but there is one loss, {loss!r}. Pass a list or dict of "
            "losses, or leave loss_weights out."
        )
    if loss is None:
        return ModuleLoss()
    return SingleLoss(loss)


class SingleLoss(Criterion):
    """One loss of one output.

    Without weights it is the very call the user would have written. With weights each sample's own loss is
    multiplied by its weight and averaged over the number of samples, as Keras does.
    """

    def __init__(self, loss: Any) -> None:
        self.function = _function(loss)
        check_argument_order("loss", get_name(self.function), self.function)
        self.family = self._family()
        self.activation: Callable[[Tensor], Tensor] | None
        self._keras = self.function in KERAS.values()
        self._own = not self._keras and self.family not in NAMES.values() and self.family not in FUNCTIONS.values()
        self._elementwise = self._keras or self.family in ELEMENTWISE
        self.kind, self.activation = ACTIVATIONS.get(self.family, NO_ACTIVATION)
        self.ignored: int = self._option("ignore_index", -100)
        self.reduction: str | None = self._option("reduction", None)
        # After the first batch nothing can be wrong with these that torch would not tell.
        self._sure = type(self.function) in (nn.CrossEntropyLoss, nn.NLLLoss) and self.function.reduction != "none"
        self._unchecked = True
        self._range: tuple[Any, Any] | None = None
        self._call = (
            functools.partial(CALL_ADAPTERS[self.family], self.function)
            if self.family in CALL_ADAPTERS
            else self.function
        )

    def _option(self, name: str, default: Any) -> Any:
        """Return an option of the loss, be it an attribute of a module or bound by ``functools.partial``."""
        if isinstance(self.function, functools.partial):
            return self.function.keywords.get(name, default)
        return getattr(self.function, name, default)

    def _family(self) -> type[Any]:
        base = self.function.func if isinstance(self.function, functools.partial) else self.function
        if isinstance(base, nn.Module):
            return next((cls for cls in type(base).__mro__ if cls in NAMES.values()), type(base))
        try:
            return FUNCTIONS.get(base, type(None))
        except TypeError:  # a callable object that cannot be hashed
            return type(None)

    def prepare(self, targets: Any) -> None:
        """Note the range of all labels, so that the first batch tells whether every one has an output."""
        self._unchecked = True
        self._range = None
        if isinstance(targets, Tensor) and targets.numel():
            if targets.dtype == torch.int64 and self.kind == "multiclass":
                self._range = label_range(targets, self.ignored)
            elif self.kind == "binary":
                self._range = (float(targets.min()), float(targets.max()))

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}``."""
        if self._sure and not self._unchecked and sample_weight is None:
            return {"loss": self._call(y_pred, y)}
        return {"loss": self(y_pred, y, sample_weight)}

    @property
    def summed(self) -> bool:
        """Whether the loss adds its samples up instead of averaging them."""
        return self.reduction == "sum"

    def __call__(self, y_pred: Any, y: Any, sample_weight: Any = None) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            y_pred: What the module returned.
            y: The targets.
            sample_weight: None, or one weight for each sample, or for each value of the unreduced loss.
        """
        if self._unchecked:
            self._check_first(y_pred, y)
            with pairs_notice(repr(self), y_pred, y) if self._own else contextlib.nullcontext():
                return self._value(y_pred, y, sample_weight)
        return self._value(y_pred, y, sample_weight)

    def _value(self, y_pred: Any, y: Any, sample_weight: Any) -> Tensor:
        compared = self.prediction(y_pred, None)
        if self._elementwise and isinstance(y, Tensor) and isinstance(compared, Tensor):
            self._check_shapes(compared, y)
        if sample_weight is not None:
            return self._weighted(y_pred, y, sample_weight)
        value = self._call(y_pred, y)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The loss, {self!r}, returned {describe(value)}, not a tensor. Let it return a scalar tensor, without "
                ".item() or float()."
            )
        if value.ndim and self._per_sample(value, y_pred):
            value = value.mean()
        return value

    def _per_sample(self, value: Tensor, y_pred: Any) -> bool:
        """Whether the loss returned one value for each sample, as Keras' losses do."""
        return len(value) == _rows(y_pred) and (value.ndim == 1 or self._keras)

    def normalizers(self, sizes: Sequence[int], batches: Iterable[Batch]) -> Sequence[Any] | None:
        """Return what the loss of each batch is divided by: ``sizes`` themselves where it is samples; None of a sum."""
        if self.summed:
            return None
        if self.family not in (nn.CrossEntropyLoss, nn.NLLLoss):
            return sizes
        try:
            counts = [self._count(batch) for batch in batches]
        except ValueError:  # batches that only the user's own step can take apart
            return sizes
        return sizes if any(count is None for count in counts) else counts

    def _count(self, batch: Batch) -> Any:
        """Return what the mean of cross-entropy divides by, None where the targets are no labels alone."""
        y, weight = batch.y, self._option("weight", None)
        y = from_numpy(y) if isinstance(y, np.ndarray) else y
        counted = isinstance(y, Tensor) and not y.is_floating_point() and batch.sample_weight is None
        if not counted:
            return None
        counts = y != self.ignored
        if weight is not None:
            counts = counts * weight.to(y.device)[torch.where(counts, y, 0).long()]
        return counts.sum(dtype=torch.float32 if y.device.type == "mps" else torch.float64)  # which MPS does not have

    def probabilities(self, y_pred: Any) -> Any:
        """Apply softmax, exp or sigmoid, whichever the loss implies."""
        if self.activation and not isinstance(y_pred, Tensor):
            raise ValueError(
                f"There is one loss, {self!r}, but the module returned {describe(y_pred)}. Let predict_step return the one of "
                "them that the loss is of, or name a loss for each: compile(..., loss=[...])."
            )
        return self.activation(y_pred) if self.activation else super().probabilities(y_pred)

    def __repr__(self) -> str:
        return repr(self.function) if isinstance(self.function, nn.Module) else get_name(self.function)

    def prediction(self, part: Any, output: str | None) -> Any:
        """Return what is compared with the targets: of a mean and a variance the mean."""
        return part[0] if self.family is nn.GaussianNLLLoss and isinstance(part, (list, tuple)) else part

    def _check_first(self, y_pred: Any, y: Any) -> None:
        self._unchecked = False
        compared = self.prediction(y_pred, None)
        if self._elementwise and isinstance(y, Tensor) and isinstance(compared, Tensor):
            self._check_shapes(compared, y)
        if self.kind == "binary" and isinstance(y, Tensor) and y.is_floating_point() and y.numel():
            low, high = self._range or (float(y.min()), float(y.max()))
            if low < 0 or high > 1:
                raise ValueError(
                    f"The targets go from {low:g} to {high:g}, but the loss, {self!r}, takes probabilities, 0 and 1 for two "
                    "classes. Turn labels -1 and 1 into (y + 1) / 2, labels 1 and 2 into y - 1."
                )
        if not isinstance(y, Tensor) or not isinstance(y_pred, Tensor):
            return
        if self.kind == "multiclass" and y_pred.ndim > 1:
            if (trouble := single_class_error(y_pred)) is not None:
                raise trouble
            self._check_classes(y_pred, y)
        for told in (last_layer_warning(self.family, y_pred), soft_target_warning(self.family, y_pred, y)):
            if told:
                warn(told)

    def _check_classes(self, y_pred: Tensor, y: Tensor) -> None:
        if y.ndim == 1 and y_pred.ndim > 2 and not y.is_floating_point():
            raise ValueError(
                f"The module's output has the shape {list(y_pred.shape)}, but for one label each the loss takes [N, classes]. "
                "Is an nn.Flatten() missing before the last layer?"
            )
        trouble = label_range_error(*self._range, y_pred.shape[1]) if self._range else None
        if y.device.type != "cpu":  # there a wrong label ends the process; on a CPU torch raises, and explain tells why
            trouble = trouble or label_error(y_pred, y, self.ignored)
        if trouble:
            raise trouble

    def _check_shapes(self, y_pred: Tensor, y: Tensor) -> None:
        whole = self._keras or self.family in SIGNED_TARGET_LOSSES
        if y_pred.shape == y.shape and (y.is_floating_point() or whole):
            return
        trouble = shape_error(repr(self), y_pred, y, floats=not whole)
        if trouble:
            raise trouble

    def _weighted(self, y_pred: Any, y: Any, sample_weight: Tensor) -> Tensor:
        values = self._unreduced(y_pred, y)
        if values.shape != sample_weight.shape and sample_weight.ndim <= 2 and sample_weight.numel() == len(values):
            if values.ndim > 1:  # a sample's own loss
                adds = self.reduction in ("sum", "batchmean")
                values = values.flatten(1).sum(1) if adds else values.flatten(1).mean(1)
            sample_weight = sample_weight.flatten()
        if values.shape != sample_weight.shape:
            raise ValueError(
                f"The sample weights have the shape {list(sample_weight.shape)}, but the loss of each sample has "
                f"{list(values.shape)}. Pass one weight for each sample."
            )
        values = values * sample_weight
        return values.sum() if self.summed else values.mean()

    def _unreduced(self, y_pred: Any, y: Any) -> Tensor:
        if isinstance(self.function, nn.Module) and hasattr(self.function, "reduction"):
            twin: Any = copy.copy(self.function)
            twin.reduction = "none"
            values: Tensor = (
                CALL_ADAPTERS[self.family](twin, y_pred, y) if self.family in CALL_ADAPTERS else twin(y_pred, y)
            )
        elif _takes_reduction(self.function):
            values = self.function(y_pred, y, reduction="none")
        else:
            values = self._call(y_pred, y)
        if self.family is nn.CTCLoss and self.reduction == "mean":  # which divides each by the length of its target
            values = values / torch.as_tensor(y[1], device=values.device).clamp(min=1)
        if values.ndim == 0:
            raise ValueError(
                f"Weights need the loss of each sample, but {get_name(self.function)!r} returns one number for the whole "
                "batch. Let it return one value for each sample, or leave the weights out."
            )
        return values


class MultiOutputLoss(Criterion):
    """A weighted sum of losses, one for each output of the module, each logged as ``<output>_loss``.

    Lists belong to tuples or lists of outputs, named ``output_1``, ``output_2``, ...; dicts belong to dicts of outputs.
    """

    def __init__(self, losses: Sequence[Any] | Mapping[str, Any], weights: Any = None) -> None:
        self.by_name = isinstance(losses, Mapping)
        named = losses if isinstance(losses, Mapping) else {f"output_{i + 1}": loss for i, loss in enumerate(losses)}
        self.losses = {name: SingleLoss(loss) for name, loss in named.items() if loss is not None}
        self.names = list(self.losses)  # an output without a loss needs no target in a dict
        self.outputs, self.count = list(named), len(named)
        self.weights = dict.fromkeys(self.names, 1.0) | self._named_weights(weights)

    def _named_weights(self, weights: Any) -> dict[str, float]:
        if isinstance(weights, Mapping):
            unknown = [name for name in weights if name not in self.names]
            if unknown:
                raise ValueError(
                    f"loss_weights name the output {unknown[0]!r}, which has no loss.{did_you_mean(unknown[0], self.names)} "
                    f"Pass weights for {quote_list(self.names)}."
                )
            return {name: float(weight) for name, weight in weights.items()}
        if weights is not None and (not hasattr(weights, "__len__") or len(weights) != self.count):
            raise ValueError(f"There are {self.count} outputs, but loss_weights={weights!r}. Pass one weight for each.")
        return {name: float(weight) for name, weight in zip(self.outputs, weights or (), strict=False)}

    def term_names(self) -> list[str]:
        """Return ``<output>_loss`` of every output."""
        return [f"{name}_loss" for name in self.losses]

    def prepare(self, targets: Any) -> None:
        """Let each loss be ready for its own targets."""
        parts = targets if isinstance(targets, Mapping) else dict.fromkeys(self.names[: len(self.names) == 1], targets)
        if isinstance(targets, (list, tuple)):
            parts = {f"output_{i + 1}": part for i, part in enumerate(targets)}
        for name, loss in self.losses.items():
            loss.prepare(parts.get(name))

    def normalizers(self, sizes: Sequence[int], batches: Iterable[Batch]) -> Sequence[Any] | None:
        """Return what the sum of the losses is divided by: nothing, where each of them is a sum itself.

        Raises:
            ValueError: If some are sums and others means, which have no divisor in common.
        """
        summed = [name for name, loss in self.losses.items() if loss.summed]
        if 0 < len(summed) < len(self.losses):
            raise ValueError(
                f"The losses of {quote_list(summed)} add their samples up and the others average them, so that several batches "
                "cannot count as one. Use one reduction for all, and loss_weights."
            )
        return None if summed else sizes

    def part(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return predictions and targets of ``output``, or all of both for a metric that was given for no output."""
        if output is None:
            return y_pred, y
        return self.parts(y_pred, "outputs")[output], self.parts(y, "targets")[output]

    def weight(self, sample_weight: Any, output: str | None) -> Any:
        """Return the weights of ``output``."""
        return sample_weight if output is None else self.parts(sample_weight, "sample weights")[output]

    def prediction(self, part: Any, output: str | None) -> Any:
        """Return what the loss of ``output`` compares with its targets."""
        return part if output is None else self.losses[output].prediction(part, None)

    def parts(self, tree: Any, what: str) -> dict[str, Any]:
        """Return the part of each output in ``tree``, which is the outputs, the targets or the weights."""
        if tree is None or isinstance(tree, Tensor):
            if tree is not None and what != "sample weights":  # which hold for all outputs
                self._check_single(tree, what)
            return dict.fromkeys(self.names, tree)
        fits = set(self.names) <= set(tree) if isinstance(tree, Mapping) else len(tree) == self.count
        if isinstance(tree, Mapping) != self.by_name or not fits:
            raise ValueError(
                f"The losses are for {quote_list(self.names)}, but the {what} are {describe(tree)}. Pass losses, outputs "
                "and targets all as dicts with the same keys, or all as lists or tuples of the same length."
            )
        if isinstance(tree, Mapping):
            return dict(tree)
        return {f"output_{i + 1}": part for i, part in enumerate(tree)}

    def _check_single(self, tensor: Tensor, what: str) -> None:
        """Refuse one tensor for several losses, which would all learn from it."""
        if self.count == 1 or (what == "targets" and len(self.names) == 1):
            return
        numbered = [f"y{i + 1}" for i in range(self.count)]
        by_name = ", ".join(f"{name!r}: {y}" for name, y in zip(self.outputs, numbered, strict=True))
        each = f"{{{by_name}}}" if self.by_name else f"({', '.join(numbered)})"
        if what == "targets":
            raise ValueError(
                f"There are {self.count} outputs with {len(self.names)} losses, but one target, {describe(tensor)}: pass {each}."
            )
        raise ValueError(
            f"There are losses for {self.count} outputs, but the module returned one, {describe(tensor)}. Let it return {each}, "
            "or name one loss."
        )

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": weighted sum, "<output>_loss": ...}``."""
        outputs, targets = self.parts(y_pred, "outputs"), self.parts(y, "targets")
        weights = self.parts(sample_weight, "sample weights")
        terms = {
            f"{name}_loss": loss(outputs[name], targets[name], weights[name]) for name, loss in self.losses.items()
        }
        total = sum(self.weights[name] * terms[f"{name}_loss"] for name in self.losses)
        return {"loss": total, **terms}  # type: ignore[dict-item]  # sum() may be 0, of no losses

    def probabilities(self, y_pred: Any) -> Any:
        """Return the probabilities of every output, in the outputs' own structure."""
        return self._each(y_pred, lambda loss, part: loss.probabilities(part))

    def classes(self, y_pred: Any) -> Any:
        """Return the classes of every output, in the outputs' own structure."""
        return self._each(y_pred, lambda loss, part: loss.classes(part))

    def _each(self, y_pred: Any, function: Callable[[SingleLoss, Any], Any]) -> Any:
        outputs = self.parts(y_pred, "outputs")
        done = {}
        for name, loss in self.losses.items():
            if loss.activation is None:
                raise ValueError(
                    f"The loss of {name!r}, {loss!r}, does not tell how outputs become probabilities. Call predict(), and apply "
                    "your own activations."
                )
            done[name] = function(loss, outputs[name])
        return done if self.by_name else tuple(done.values())

    def __repr__(self) -> str:
        return repr(self.losses)


class ModuleLoss(Criterion):
    """The loss that the module makes itself: its output is the loss, or carries it as ``loss``."""

    def __call__(self, y_pred: Any, y: Any = None, sample_weight: Any = None) -> Tensor:
        """Return the loss among the module's outputs."""
        loss = y_pred.get("loss") if isinstance(y_pred, Mapping) else getattr(y_pred, "loss", y_pred)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ValueError(
                f"No loss was named in compile(), and the module's output carries none: it is {describe(y_pred)}. "
                "Call compile(..., loss='cross_entropy'), or let the module return a scalar or a dict with 'loss'."
            )
        if sample_weight is not None:
            raise ValueError(
                "The module makes its own loss, so weights cannot be applied. Leave them out, or name a loss."
            )
        return loss

    def part(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return the predictions beside the loss, called ``logits`` in the field, and the targets."""
        logits = y_pred.get("logits") if isinstance(y_pred, Mapping) else getattr(y_pred, "logits", None)
        return y_pred if logits is None else logits, y

    def probabilities(self, y_pred: Any) -> Any:
        """Refuse: nobody said what the outputs mean."""
        raise ValueError(
            "No loss was named in compile(), so nobody knows how outputs become probabilities. Call compile() with a loss, such "
            "as 'cross_entropy', or predict(), and apply your own activation."
        )

    def __repr__(self) -> str:
        return "the module's own loss"


def _function(loss: Any) -> Any:
    """Return the function, or the module of torch, for what the user passed as one loss."""
    if isinstance(loss, str):
        if loss.strip().lower() in map(str.lower, vars(torch.optim)):
            raise ValueError(f"{loss!r} is an optimizer, which comes first: compile({loss!r}, 'cross_entropy').")
        found = find(
            "loss",
            loss.strip().removesuffix("Loss").removesuffix("_loss"),
            TABLE,
            otherwise="a torch.nn loss, or a function f(y_pred, y)",
            common=("cross_entropy", "bce_with_logits", "mse", "mae", "huber", "nll"),
            whole="easytorch.losses.TABLE",
        )
        return found() if isinstance(found, type) else found
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise TypeError(
            f"Expected a loss, received the class {loss.__name__}. Make an object of it: {loss.__name__}()."
        )
    if not callable(loss):
        raise TypeError(
            f"Expected a loss, received {loss!r}. Pass a name such as 'cross_entropy' or 'mse', a torch.nn loss, or "
            "a function f(y_pred, y)."
        )
    return loss


def _takes_reduction(function: Any) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions tell nothing about themselves
        return False


def _rows(y_pred: Any) -> int | None:
    return len(y_pred) if isinstance(y_pred, Tensor) and y_pred.ndim else None
