"""One loss of one output."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.api_errors import check_argument_order
from easytorch._utils.pytree import describe, leaves
from easytorch._utils.registry import find, get_name, spellings
from easytorch._utils.warnings import warn
from easytorch.data.batch import Window, divide, from_numpy
from easytorch.data.class_names import count_names, names_of
from easytorch.data.sample_weights import IGNORE_INDEX, align_weights, check_is_weight
from easytorch.losses.checks import (
    FirstBatchCheck,
    broadcast_warning,
    check_shapes,
    check_shapes_and_targets,
    label_range,
    no_check,
    warn_if_labels_are_ignored,
)
from easytorch.losses.criterion import Counts, Criterion, Share, counts_or_sizes, get_logits, unpacked
from easytorch.losses.keras import KERAS
from easytorch.losses.loss_arguments import LossArguments
from easytorch.losses.modules import move_arguments
from easytorch.losses.names import (
    ACTIVATIONS,
    CALL_ADAPTERS,
    ELEMENTWISE_LOSSES,
    FUNCTION_FAMILIES,
    NO_ACTIVATION,
    SIGNED_TARGET_LOSSES,
    TABLE,
    TORCH_LOSSES,
)
from easytorch.losses.targets import TargetConverter, make_converter


class SingleLoss(Criterion):
    """One loss of one output.

    Without sample weights, it calls the loss as the user would.
    With sample weights, it multiplies the loss of each value by its weight and divides by the same count as without weights.

    Attributes:
        returns_count: Whether the function has returned a pair, (sum, count).
    """

    returns_count = False

    def __init__(self, loss: Any) -> None:
        self.function = _resolve_function(loss)
        check_argument_order("loss", get_name(self.function), self.function)
        self.family = _family(self.function)
        self.activation: Callable[[Tensor], Tensor] | None
        self.kind, self.activation = ACTIVATIONS.get(self.family, NO_ACTIVATION)
        self.ignore_index: int = self._option("ignore_index", IGNORE_INDEX)
        self.ignored_label = self.ignore_index if self.family in (nn.CrossEntropyLoss, nn.NLLLoss) else None
        self.reduction: str | None = self._option("reduction", None)
        self.is_keras = any(self.function is function for function in KERAS.values())
        self.is_elementwise = self.is_keras or self.family in ELEMENTWISE_LOSSES
        is_signed = self.family in SIGNED_TARGET_LOSSES
        self.takes_integers = self.is_keras or is_signed
        self._has_class_weight = self._option("weight", None) is not None
        self.targets = TargetConverter()
        if self._is_defined_by_library():
            self.targets = make_converter(
                self.family, self.is_elementwise, is_signed, self.ignore_index, self._has_class_weight
            )
        has_arguments = not self._is_defined_by_library() and self.family not in CALL_ADAPTERS
        self.arguments = LossArguments.of(repr(self), self.function) if has_arguments else None
        self.entries = frozenset() if self.arguments is None else self.arguments.entries
        self._given: dict[str, Any] = {}  # the values of these arguments in the current call
        self._call = self._adapted(self.function)
        self._counts: Counts = {}
        self.prepare(None)

    def bind(self, model: Any) -> None:
        """Let the loss use ``model``, if it is custom and takes it."""
        if self.arguments is not None:
            self.arguments.model = model

    def functions(self) -> list[Any]:
        """Return the loss that the user passed."""
        return [self.function]

    def to(self, device: torch.device) -> None:
        """Move the tensors of the loss to ``device``."""
        self.function = move_arguments(self.function, device)
        self._call = self._adapted(self.function)

    def _option(self, name: str, default: Any) -> Any:
        """Return an option of the loss: an attribute of a module, or a keyword of ``functools.partial``."""
        if isinstance(self.function, functools.partial):
            return self.function.keywords.get(name, default)
        return getattr(self.function, name, default)

    def _adapted(self, function: Any) -> Any:
        """Return ``function`` as a callable of ``(y_pred, y)``."""
        adapter = CALL_ADAPTERS.get(self.family)
        function = functools.partial(function, **self._given) if self._given else function
        return function if adapter is None else functools.partial(adapter, function)

    @property
    def is_custom(self) -> bool:
        """Whether the loss is neither one of torch nor one of easytorch."""
        is_torch = self.family in TORCH_LOSSES.values() or self.family in FUNCTION_FAMILIES.values()
        return not self.is_keras and not is_torch

    def _is_defined_by_library(self) -> bool:
        """Return whether torch or this package defines how the loss is computed, and not a subclass of the user."""
        overrides = isinstance(self.function, nn.Module) and type(self.function).forward is not self.family.forward
        return not self.is_custom and not overrides

    @property
    def takes_one_output(self) -> bool:
        """Whether the loss certainly compares one tensor of outputs with the targets."""
        return not self.is_custom and self.family not in CALL_ADAPTERS

    @property
    def counts_labels(self) -> bool:
        """Whether the mean is over the labels that count, instead of over samples."""
        is_over_labels = self.family in (nn.CrossEntropyLoss, nn.NLLLoss)
        return is_over_labels and (self.may_ignore or self._has_class_weight)

    @property
    def is_sum(self) -> bool:
        """Whether the loss is a sum over samples instead of a mean."""
        return self.reduction == "sum"

    def prepare(self, targets: Any, class_names: Any = None) -> None:
        """Check the next batch, and the range of all ``targets`` and the number of ``class_names`` with it."""
        self.class_names = names_of(class_names, None)
        self.targets.prepare()
        self.check: Callable[[SingleLoss, Any, Any], None] = FirstBatchCheck(self._target_range(targets))
        self._unchecked_call: Callable[[Any, Any], Tensor] | None = None

    def _target_range(self, targets: Any) -> tuple[Any, Any] | None:
        if not isinstance(targets, Tensor) or not targets.ndim or not targets.numel() or targets.is_complex():
            return None
        if self.kind == "multiclass":
            may_be_probabilities = targets.is_floating_point() and targets.numel() != len(targets)
            labels = None if may_be_probabilities else self.targets.as_labels(targets)
            return None if labels is None else label_range(labels, self.ignore_index)
        return (float(targets.min()), float(targets.max())) if self.kind == "binary" else None

    def check_text_labels(self, class_names: Any) -> None:
        """Raise a ``ValueError`` if the loss cannot use labels that were text, with these ``class_names``."""
        if isinstance(class_names, Mapping) and len(class_names) > 1:
            raise ValueError(
                f"The labels are text for {len(class_names)} outputs, but there is one loss, {self!r}. Pass one name per sample, "
                "or one loss per output: loss=[...] or loss={...}."
            )
        names = names_of(class_names, None)
        if names is None:
            return
        if self.is_elementwise and self.kind is None:
            raise ValueError(
                f"The labels are text, but the loss, {self!r}, compares numbers. Use loss='cross_entropy', or pass numbers."
            )
        if self.kind == "binary" and len(names) != 2:
            raise ValueError(
                f"The loss, {self!r}, is for two classes, but the labels have {count_names(names)}. Use loss='cross_entropy', "
                f"and give the last layer {len(names)} outputs."
            )

    def end_first_batch(self) -> None:
        """Replace the checks of the first batch by those of every batch."""
        is_unknown = isinstance(self.check, FirstBatchCheck) and self.check.target_range is None
        self.check = check_shapes if self.is_elementwise else no_check
        # BCELoss checks its targets itself.
        if self.kind == "binary" and self.family is not nn.BCELoss and is_unknown:
            self.check = check_shapes_and_targets
        is_plain = type(self.function) in (nn.CrossEntropyLoss, nn.NLLLoss) and not self._has_class_weight
        if is_plain and self.reduction == "mean":
            # Torch reports whatever is wrong with later batches, and the value is always a scalar.
            self._unchecked_call = self.function

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> dict[str, Any]:
        """Return ``{"loss": scalar}``; ``{"loss": (sum, count)}`` if the function returns such a pair."""
        if self.arguments is not None:
            return {"loss": self._with_arguments(y_pred, y, sample_weight, batch)}
        if not isinstance(y_pred, Tensor) or not isinstance(y, Tensor):
            return {"loss": self._reduced(*self._convert(y_pred, y), sample_weight)}
        y = self.targets(y_pred, y)
        if sample_weight is None and self._unchecked_call is not None and y.numel():
            if not self.may_ignore:
                self._counts = {}
                return {"loss": self._unchecked_call(y_pred, y)}
            # On an accelerator, a check for a mean over nothing would wait for the count.
            if y.is_cpu and not self.ignored_count(y):
                self._counts = {} if y.is_floating_point() else {"loss": y.numel()}
                return {"loss": self._unchecked_call(y_pred, y)}
        return {"loss": self._reduced(y_pred, y, sample_weight)}

    def __call__(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            y_pred: Outputs of the module.
            y: Targets.
            sample_weight: None, or one weight per sample, or one per value of the unreduced loss.
            batch: The batch, for a custom loss that takes more arguments.
        """
        value: Any
        if self.arguments is None:
            y_pred, y = self._convert(y_pred, y)
            value = self._reduced(y_pred, y, sample_weight)
        else:
            value = self._with_arguments(y_pred, y, sample_weight, batch)
        if isinstance(value, tuple):
            total, count = value
            self._counts, value = {"loss": count}, divide(total, count)
        loss: Tensor = value
        return loss

    def _with_arguments(self, y_pred: Any, y: Any, sample_weight: Any, batch: Any) -> Any:
        """Return the loss of a function with more arguments: a scalar, or a pair ``(sum, count)``."""
        assert self.arguments is not None
        self._given = self.arguments.values(batch, sample_weight)
        self._call = self._adapted(self.function)
        try:
            return self._reduced(*self._convert(y_pred, y), None if self.arguments.takes_weight else sample_weight)
        finally:  # so that the batch is not held
            self._given = {}
            self._call = self._adapted(self.function)

    def _convert(self, y_pred: Any, y: Any) -> tuple[Any, Any]:
        """Return the outputs and targets as the loss takes them."""
        y = self.convert_targets(y_pred, y)
        return (self.compared_prediction(y_pred, None) if self.takes_one_output else y_pred), y

    def convert_targets(self, y_pred: Any, y: Any) -> Any:
        """Return the targets ``y`` as the loss takes them, if only their shape or dtype has to change; see ``targets``."""
        if isinstance(y_pred, Tensor) and isinstance(y, Tensor):
            return self.targets(y_pred, y)
        prediction = self.compared_prediction(y_pred, None)
        if isinstance(y, Mapping) and isinstance(y_pred, Mapping) and len(y) == 1 and self.takes_one_output:
            y = next((y[key] for key in y if y_pred.get(key) is prediction), y)
        return self.targets(prediction, y) if isinstance(y, Tensor) and isinstance(prediction, Tensor) else y

    def _reduced(self, y_pred: Any, y: Any, sample_weight: Any) -> Any:
        """Return the loss as a scalar, or the pair ``(sum, count)`` of a custom function."""
        self._counts = {}
        if isinstance(y_pred, Tensor) and not y_pred.numel():
            # The mean of an empty batch would be NaN.
            self._counts = {"loss": None if self.is_sum else 0}
            return y_pred.sum()
        is_first = isinstance(self.check, FirstBatchCheck)
        self.check(self, y_pred, y)
        if sample_weight is not None:
            check_is_weight(sample_weight)
            value = self._weighted(y_pred, y, sample_weight)
            self._check_broadcast(is_first, value, y_pred, y)
            return value
        value = self._call(y_pred, y)
        if isinstance(value, tuple) and len(value) == 2 and self.is_custom:
            self.returns_count = True
            self._check_broadcast(is_first, value[0], y_pred, y)
            return value
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The loss, {self!r}, must return a scalar tensor, but it returned {describe(value)}, not a tensor. "
                f"{_fix_of_result(value)}."
            )
        self._check_broadcast(is_first, value, y_pred, y)
        if is_first and self.is_custom and not value.ndim:
            warn_if_labels_are_ignored(repr(self), y)
        return self._mean(value, y_pred, y) if value.ndim else self._count_labels(value, y_pred, y)

    def _check_broadcast(self, is_first: bool, value: Any, y_pred: Any, y: Any) -> None:
        message = broadcast_warning(repr(self), value, y_pred, y) if is_first and self.is_custom else None
        if message is not None:
            warn(message)

    def _count_labels(self, value: Tensor, y_pred: Any, y: Any) -> Tensor:
        """Return ``value``, a scalar, and record its count; 0 instead of NaN if no label counts."""
        if self.is_sum:
            self._counts, self._last_labels = {"loss": None}, y
            return value
        count = self.label_count(y)
        if count is None:
            return value
        self._counts = {"loss": count}
        if isinstance(count, Tensor) and count.device.type != "cpu":
            return torch.where(count > 0, value, 0.0)
        return value if count else _zero_loss(y_pred)

    def _mean(self, values: Tensor, y_pred: Any, y: Any) -> Tensor:
        """Return the mean of a loss that was not reduced, such as one value per sample."""
        count = self.label_count(y)
        if count is not None:
            self._counts = {"loss": count}
            return divide(values.sum(), count)
        if values.numel() == 1:
            return values.reshape(())
        return values.mean() if len(values) in _row_counts(y_pred, y) else values

    def _weighted(self, y_pred: Any, y: Any, sample_weight: Tensor) -> Tensor:
        values = self.unreduced(y_pred, y)
        weights = align_weights(sample_weight, values)
        if weights is None:
            raise ValueError(
                f"sample_weight expects one weight per sample, shape {list(values.shape)}, received shape "
                f"{list(sample_weight.shape)}. Pass one weight per sample."
            )
        total = (values * weights).sum()
        self._last_weight = weights
        if self.is_sum:
            self._counts = {"loss": None}
            return total
        count = self.label_count(y)
        if count is None:
            return total / (len(values) if self.reduction == "batchmean" else values.numel())
        self._counts = {"loss": count}
        return divide(total, count)

    def unreduced(self, y_pred: Any, y: Any) -> Tensor:
        """Return the loss of each value or sample.

        Raises:
            ValueError: If the loss returns one number for the batch, or a pair of a sum and a count.
        """
        values: Tensor
        if isinstance(self.function, nn.Module) and hasattr(self.function, "reduction"):
            unreduced: Any = copy.copy(self.function)
            unreduced.reduction = "none"
            values = self._adapted(unreduced)(y_pred, y)
        elif _takes_reduction(self.function):
            values = self.function(y_pred, y, reduction="none", **self._given)
        else:
            values = self._call(y_pred, y)
        if self.family is nn.CTCLoss and self.reduction == "mean":
            # The mean of CTCLoss divides the loss of each sample by the length of its target.
            values = values / torch.as_tensor(y[1], device=values.device).clamp(min=1)
        if not isinstance(values, Tensor) or values.ndim == 0:
            received = (
                "one number"
                if isinstance(values, Tensor)
                else "(sum, count)"
                if isinstance(values, tuple)
                else describe(values)
            )
            raise ValueError(
                f"Sample weights and reports need one loss per sample, but {get_name(self.function)!r} returns {received} for "
                "the batch. Return one value per sample from it, or leave the weights out."
            )
        return values

    def take_counts(self) -> Counts:
        """Return what the last call was divided by, and forget it."""
        counts, self._counts, self._counted_labels = self._counts, {}, None
        return counts

    def why_zero(self, term: str) -> str | None:
        """Return why the loss of the last batch is 0 although it has samples, and the fix; None if all is well."""
        if term != "loss":
            return None
        weight, labels, self._last_weight, self._last_labels = self._last_weight, self._last_labels, None, None
        if weight is not None and weight.numel() and not weight.any():
            return "every sample weight is 0. Check sample_weight, class_weight, or the third part of the batches."
        if isinstance(labels, Tensor) and 0 < labels.numel() == self.ignored_count(labels):
            return "every label is ignored. Check the targets and the ignore_index of the loss."
        return None

    def batch_weights(self, window: Window, share: Share) -> Iterable[Any]:
        """Return the factor of each batch's loss, so that the batches of a window count as one batch."""
        return share([self.window_counts(window, [batch.y for batch in unpacked(window)])])[0]

    def window_counts(self, window: Window, targets: Sequence[Any]) -> Sequence[Any] | None:
        """Return what the loss of each batch is divided by, None for a sum.

        Args:
            window: The batches.
            targets: The targets of each batch.

        Returns:
            The object ``window.sizes`` if the loss is a mean over samples.
        """
        if self.is_sum:
            return None
        if not self.counts_labels:
            return window.sizes
        tensors = [from_numpy(y) if isinstance(y, np.ndarray) else y for y in targets]
        return counts_or_sizes(map(self.label_count, self.targets.class_numbers(tensors)), window)

    @contextlib.contextmanager
    def knowing(self, targets: Any) -> Iterator[None]:
        """Measure data with these ``targets`` inside; None if they are unknown. Labels are not counted if all of them count."""
        previous, previous_values = self.may_ignore, self.targets.known
        self._counted_labels, self.targets.known = None, self.targets.inspect(targets)
        if isinstance(targets, Tensor) and targets.numel():
            self.may_ignore = bool((targets == self.ignore_index).any())
        else:
            self.may_ignore = True
        try:
            yield
        finally:
            self.may_ignore, self.targets.known = previous, previous_values

    def label_count(self, y: Any) -> Any:
        """Return the divisor of the mean of cross-entropy, a number or a tensor; None for a mean over samples.

        It is the number of labels that are not ignored, or the sum of their class weights.
        """
        if not self.counts_labels:
            return None
        if not isinstance(y, Tensor) or y.is_floating_point():
            return None
        if not self._has_class_weight:
            return y.numel() - self.ignored_count(y)
        is_counted = y != self.ignore_index
        weights = is_counted * self._option("weight", None).to(y.device)[torch.where(is_counted, y, 0).long()]
        # MPS has no float64.
        return weights.sum(dtype=torch.float32 if y.device.type == "mps" else torch.float64)

    def compared_prediction(self, y_pred: Any, output: str | None) -> Any:
        """Return the mean if the outputs are a mean and a variance, and the one tensor among the outputs if that is certain."""
        if isinstance(y_pred, Tensor):
            return y_pred
        if self.family is nn.GaussianNLLLoss and isinstance(y_pred, (list, tuple)):
            return y_pred[0]
        return _find_only_output(y_pred, self.kind is not None) if self.takes_one_output else y_pred

    def probabilities(self, y_pred: Any) -> Any:
        """Apply the softmax, exp or sigmoid that the loss implies."""
        if self.activation is None:
            return super().probabilities(y_pred)
        y_pred = self.compared_prediction(y_pred, None)
        if not isinstance(y_pred, Tensor):
            raise ValueError(
                f"The loss, {self!r}, expects one tensor, but the module returned {describe(y_pred)}. Return the output that "
                "belongs to the loss from predict_step, or pass one loss per output: compile(..., loss=[...])."
            )
        return self.activation(y_pred)

    def __repr__(self) -> str:
        return repr(self.function) if isinstance(self.function, nn.Module) else get_name(self.function)


def _fix_of_result(value: Any) -> str:
    """Return what to change in a custom loss that returns ``value``, which is no tensor."""
    if value is None:
        return "Add the missing return statement to it"
    if isinstance(value, (Mapping, list, tuple)):
        return "Return the sum of its terms, or a tuple (sum, count). To log each term, return a dict from train_step"
    return "Remove .item() or float() from it"


def _find_only_output(y_pred: Any, are_logits: bool) -> Any:
    """Return the only entry of outputs, or the logits that the models of transformers name so; else ``y_pred``."""
    if are_logits and isinstance(logits := get_logits(y_pred), Tensor):
        return logits
    if isinstance(y_pred, (Mapping, list, tuple)) and len(y_pred) == 1:
        (output,) = y_pred.values() if isinstance(y_pred, Mapping) else y_pred
        return output if isinstance(output, Tensor) else y_pred
    return y_pred


def _zero_loss(y_pred: Tensor) -> Tensor:
    """Return 0, with a gradient of 0 for ``y_pred``, whatever its values."""
    return y_pred.flatten()[:0].sum()


def _row_counts(*trees: Any) -> set[int]:
    """Return the number of rows of each tensor in ``trees``."""
    return {len(leaf) for tree in trees for leaf in leaves(tree) if isinstance(leaf, Tensor) and leaf.ndim}


def _resolve_function(loss: Any) -> Any:
    """Return the function or torch module for one loss that the user passed."""
    if isinstance(loss, str):
        return _find_by_name(loss)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise TypeError(
            f"loss expects an object, received the class {loss.__name__}. Create the object: loss={loss.__name__}()."
        )
    if not callable(loss):
        raise TypeError(
            f"Expected a loss, received {loss!r}. Pass a name such as 'cross_entropy' or 'mse', a torch.nn loss, or "
            "a function f(y_pred, y)."
        )
    return loss


def _find_by_name(name: str) -> Any:
    if name.strip().lower() in map(str.lower, vars(torch.optim)):
        raise ValueError(
            f"loss expects a loss, received {name!r}, which is an optimizer. The optimizer comes first: "
            f"compile({name!r}, 'cross_entropy')."
        )
    short_name = name.strip().removesuffix("Loss").removesuffix("_loss")
    loss = find(
        "loss",
        short_name if set(spellings(short_name)) & set(TABLE) else name,
        TABLE,
        otherwise="a torch.nn loss, or a function f(y_pred, y)",
        common=("cross_entropy", "bce_with_logits", "mse", "mae", "huber", "nll"),
        full_list="easytorch.losses.TABLE",
    )
    return loss() if isinstance(loss, type) else loss


def _family(function: Any) -> type[Any]:
    """Return the ``torch.nn`` class with the definition of ``function``, else ``type(None)`` or its own class."""
    base = function.func if isinstance(function, functools.partial) else function
    if isinstance(base, nn.Module):
        return next((cls for cls in type(base).__mro__ if cls in TORCH_LOSSES.values()), type(base))
    # Compare by identity, because a callable object may not be hashable.
    return next((cls for torch_function, cls in FUNCTION_FAMILIES.items() if torch_function is base), type(None))


def _takes_reduction(function: Any) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Built-in functions have no signature.
        return False
