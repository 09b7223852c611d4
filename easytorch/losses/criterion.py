"""Losses as the training loop calls them, with what each mean is divided by.

``SingleLoss`` is one loss, ``MultiOutputLoss`` one per output. ``module_loss.ModuleLoss`` is the loss that the module returns.

What a mean is divided by is its count: the number of samples, of counted labels, or the sum of their class weights. Training,
gradient accumulation, several ranks and every reported loss weight a batch by this count.
"""

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
from easytorch._utils.registry import did_you_mean, find, get_name, quote_list, spellings
from easytorch._utils.warnings import warn
from easytorch.data.batch import Batch, Window, divide, from_numpy
from easytorch.data.batch_objects import check_targets_count, is_batch_object
from easytorch.data.class_names import count_names, name_classes, names_of
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
from easytorch.losses.keras import KERAS
from easytorch.losses.loss_arguments import LossArguments
from easytorch.losses.modules import LossModules, move_arguments
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

# What each term of a loss is divided by, None for a sum. A term that is missing is a mean over samples.
Counts = Mapping[str, Any]
# For several lists of counts, one count per batch: each count divided by the total of its list over all ranks. None for a sum.
Share = Callable[[list[Sequence[Any] | None]], list[list[Any]]]


class Criterion:
    """The interface between the training loop and a loss.

    Attributes:
        kind: ``"multiclass"``, ``"binary"``, or None if unknown.
        family: The ``torch.nn`` class of the loss, else ``type(None)``.
        ignore_index: The label that the loss ignores, None if it has no such label.
        ignored_label: The same, if the mean is certainly over all other labels.
        may_ignore: Whether the data of the current pass may have such labels.
        entries: The entries of batches that a custom loss takes by the names of its parameters.
        modules: The losses that have parameters or buffers, which are trained, saved, and in eval mode with the module.
    """

    kind: str | None = None
    family: type[Any] = type(None)
    ignore_index: int | None = None
    ignored_label: int | None = None
    may_ignore = True
    modules = LossModules()
    # Entries of batches that are arguments of a custom loss, and no inputs.
    entries: frozenset[str] = frozenset()
    # The labels of the last batch, and how many of them are ignored.
    _counted_labels: Tensor | None = None
    _ignored: Any = 0
    # The sample weights of the last batch, and the labels of the last sum, for ``why_zero``.
    _last_weight: Any = None
    _last_labels: Tensor | None = None

    def __call__(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> Tensor:
        """Return the scalar to optimize."""
        return self.terms(y_pred, y, sample_weight, batch)["loss"]

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}``, and more scalars to log; ``batch`` is for a custom loss that takes more arguments."""
        return {"loss": self(y_pred, y, sample_weight)}

    def bind(self, model: Any) -> None:
        """Let custom losses that take ``model``, ``module`` or ``x`` use ``model``."""

    def inputs(self, x: Any, y: Any, batch: Any) -> Any:
        """Return what the module gets in a step: the inputs ``x``, with the targets ``y`` if the module computes the loss.

        Raises:
            ValueError: If ``batch`` is an object, of whose targets only some count.
        """
        if type(batch) not in (tuple, list) and is_batch_object(batch):
            check_targets_count(batch, self.entries, self.ignored_label)
        return x

    def term_names(self) -> list[str]:
        """Return the names of the terms other than ``"loss"``."""
        return []

    def prepare(self, targets: Any, class_names: Any = None) -> None:
        """Prepare for new data.

        Args:
            targets: All targets of the data, or None if they are unknown. The first batch is checked against them.
            class_names: The names of the classes, by output if there are several, or None. There must be one output for each.
        """

    def check_text_labels(self, class_names: Any) -> None:
        """Raise a ``ValueError`` if the loss cannot use labels that were text, with these ``class_names``."""

    def name_classes(self, classes: Any, class_names: Any) -> Any:
        """Return the name of each class that ``classes`` returned, as NumPy arrays."""
        return name_classes(classes, names_of(class_names, None), self.kind == "binary")

    def functions(self) -> list[Any]:
        """Return what the user passed as loss, or for each output: modules and functions."""
        return []

    def to(self, device: torch.device) -> None:
        """Move the tensors of the losses to ``device``."""

    def convert_targets(self, y_pred: Any, y: Any) -> Any:
        """Return the targets ``y`` as the loss takes them, if only their shape or dtype has to change; see ``targets``."""
        return y

    def select(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return the predictions and targets of ``output``, all of them if it is None."""
        return y_pred, y

    def select_weight(self, sample_weight: Any, output: str | None) -> Any:
        """Return the sample weights of ``output``, all of them if it is None."""
        return sample_weight

    def compared_prediction(self, y_pred: Any, output: str | None) -> Any:
        """Return the part of the predictions of ``output`` that the loss compares with the targets."""
        return y_pred

    def ignored_count(self, y: Tensor) -> Any:
        """Return the number of labels in ``y`` that are ignored: an integer on the CPU, a tensor on an accelerator."""
        if y is self._counted_labels:  # metrics and the loss ask for the same batch
            return self._ignored
        if not self.may_ignore or self.ignore_index is None or y.is_floating_point() or y.is_complex():
            return 0
        if y.is_cpu:
            # NumPy takes half of the time of torch for a small batch.
            self._ignored = np.count_nonzero(y.numpy() == self.ignore_index)
        else:
            self._ignored = (y == self.ignore_index).count_nonzero()
        self._counted_labels = y
        return self._ignored

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which holds no data."""
        return {**vars(self), "_counted_labels": None, "_ignored": 0, "_last_weight": None, "_last_labels": None}

    def take_counts(self) -> Counts:
        """Return what each term of the last call was divided by, and forget it."""
        return {}

    def why_zero(self, term: str) -> str | None:
        """Return why ``term`` of the last batch is 0 although it has samples, and the fix; None if all is well."""
        return None

    def batch_weights(self, window: Window, share: Share) -> Iterable[Any]:
        """Return the factor of each batch's loss, so that the batches of a window count as one batch.

        The counts are read from the targets, before the forward pass.

        Args:
            window: The batches.
            share: Divides the counts of batches by their totals.
        """
        return share([window.sizes])[0]

    def knowing(self, targets: Any) -> contextlib.AbstractContextManager[None]:
        """Measure data with these ``targets`` inside; None if they are unknown. Labels are not counted if all of them count."""
        return contextlib.nullcontext()

    def sum_of_terms(self, terms: Mapping[str, Any]) -> Any:
        """Return the loss that the terms of the outputs add up to, None if it is not their sum."""
        return None

    def probabilities(self, y_pred: Any) -> Any:
        """Return the probabilities that the outputs ``y_pred`` represent."""
        raise ValueError(
            f"easytorch cannot convert outputs to probabilities for the loss, {self!r}. Call predict() and apply an "
            "activation, or compile with 'cross_entropy', 'nll', 'bce' or 'bce_with_logits'."
        )

    def classes(
        self, y_pred: Any, threshold: float | None = None, *, observe: Callable[[Tensor], Any] = lambda _: None
    ) -> Any:
        """Return the most probable class of each sample, or for each independent label 1 above ``threshold``, by default 0.5.

        Args:
            y_pred: The outputs.
            threshold: The probability above which a label is 1.
            observe: Is called with the probabilities, those of NaN outputs included, of which the classes show nothing.

        Raises:
            ValueError: If ``threshold`` is no probability, or has no effect.
        """
        probabilities = self.probabilities(y_pred)
        observe(probabilities)
        if self.kind != "multiclass":
            return (probabilities > (0.5 if threshold is None else _check_threshold(threshold))).long()
        if threshold is not None:
            raise ValueError(
                f"threshold has no effect on the loss, {self!r}, whose prediction is the class with the largest output. Leave it "
                "out, or compare predict_proba() with it. It is for 'bce' and 'bce_with_logits'."
            )
        return probabilities.argmax(1)


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


class MultiOutputLoss(Criterion):
    """A weighted sum of losses, one per output of the module.

    Each loss is logged as ``<output>_loss``. A list of losses is for outputs in a list or tuple, which are named
    ``output_1``, ``output_2``, and so on. A dict of losses is for outputs in a dict.

    Args:
        losses: One loss per output. None excludes an output.
        weights: The weight of each loss, in the same order or by the same keys. A missing weight is 1.
    """

    def __init__(self, losses: Sequence[Any] | Mapping[str, Any], weights: Any = None) -> None:
        self.by_name = isinstance(losses, Mapping)
        loss_of_output = losses if isinstance(losses, Mapping) else _number_outputs(losses)
        self.losses = {name: SingleLoss(loss) for name, loss in loss_of_output.items() if loss is not None}
        self.names = list(self.losses)
        self.outputs, self.count = list(loss_of_output), len(loss_of_output)
        self.weights = dict.fromkeys(self.names, 1.0) | self._weights_by_name(weights)
        # The factor of each output in the current batch of a window, and whether there is such a window.
        self._factors: dict[str, Any] = {}
        self._is_shared = False
        self.entries = frozenset().union(*(loss.entries for loss in self.losses.values()))

    def bind(self, model: Any) -> None:
        """Let custom losses that take ``model``, ``module`` or ``x`` use ``model``."""
        for loss in self.losses.values():
            loss.bind(model)

    def _weights_by_name(self, weights: Any) -> dict[str, float]:
        if isinstance(weights, Mapping):
            unknown = [name for name in weights if name not in self.names]
            if unknown:
                raise ValueError(
                    f"loss_weights has a weight for the output {unknown[0]!r}, which has no loss."
                    f"{did_you_mean(unknown[0], self.names)} Pass weights for {quote_list(self.names)}."
                )
            return {name: float(weight) for name, weight in weights.items()}
        if weights is not None and (not hasattr(weights, "__len__") or len(weights) != self.count):
            raise ValueError(
                f"loss_weights expects {self.count} weights, received loss_weights={weights!r}. Pass one weight per output."
            )
        return {name: float(weight) for name, weight in zip(self.outputs, weights or (), strict=False)}

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": weighted sum, "<output>_loss": ...}``."""
        outputs, targets = self.by_output(y_pred, "outputs"), self.by_output(y, "targets")
        if sample_weight is not None:
            check_is_weight(sample_weight)
        weights = self.by_output(sample_weight, "sample weights")
        terms: dict[str, Any] = {}
        for name, loss in self.losses.items():
            terms[f"{name}_loss"] = loss(outputs[name], targets[name], weights[name], batch)
            if self._is_shared and loss.returns_count:
                raise ValueError(
                    f"The loss of {name!r}, {loss!r}, returns (sum, count). With several outputs, gradient accumulation and "
                    "several processes need the count before the forward pass. Use a loss by name, or return one value per "
                    "sample."
                )
        scaled = {f"{name}_loss": self._scale_gradient(name, terms[f"{name}_loss"]) for name in self.losses}
        return {"loss": self.sum_of_terms(scaled), **terms}

    def _scale_gradient(self, name: str, term: Tensor) -> Tensor:
        """Return ``term``, with its gradient multiplied by the factor of this output in the current batch."""
        factor = self._factors.get(name, 1.0)
        if not isinstance(factor, Tensor) and factor == 1.0:
            return term
        extra: Tensor = term * (factor - 1.0)
        return term + (extra - extra.detach())

    def sum_of_terms(self, terms: Mapping[str, Any]) -> Any:
        """Return the weighted sum of ``<output>_loss``, None if one is missing."""
        if not all(f"{name}_loss" in terms for name in self.losses):
            return None
        return sum(self.weights[name] * terms[f"{name}_loss"] for name in self.losses)

    def term_names(self) -> list[str]:
        """Return ``<output>_loss`` of every output with a loss."""
        return [f"{name}_loss" for name in self.losses]

    def prepare(self, targets: Any, class_names: Any = None) -> None:
        """Prepare each loss for the targets of its output."""
        by_name = self._by_name(targets)
        for name, loss in self.losses.items():
            loss.prepare(by_name.get(name), self._names_of(class_names, name))

    def check_text_labels(self, class_names: Any) -> None:
        """Raise a ``ValueError`` if a loss cannot use labels that were text, with these ``class_names``."""
        for name, loss in self.losses.items():
            loss.check_text_labels(self._names_of(class_names, name))

    def name_classes(self, classes: Any, class_names: Any) -> Any:
        """Return the name of each class that ``classes`` returned, as NumPy arrays."""
        named = {
            name: self.losses[name].name_classes(value, self._names_of(class_names, name))
            for name, value in (classes if self.by_name else dict(zip(self.names, classes, strict=True))).items()
        }
        return named if self.by_name else tuple(named.values())

    def _names_of(self, class_names: Any, name: str) -> list[str] | None:
        """Return the names of the classes of the output ``name``."""
        is_certain = isinstance(class_names, Mapping) or len(self.names) == 1
        return names_of(class_names, name) if is_certain else None

    def functions(self) -> list[Any]:
        """Return the loss of each output."""
        return [function for loss in self.losses.values() for function in loss.functions()]

    def to(self, device: torch.device) -> None:
        """Move the tensors of each loss to ``device``."""
        for loss in self.losses.values():
            loss.to(device)

    def _by_name(self, tree: Any) -> Mapping[str, Any]:
        """Return outputs or targets by name of their output; none if they belong to no output."""
        if isinstance(tree, Mapping):
            return tree
        if isinstance(tree, (list, tuple)):
            return _number_outputs(tree)
        return {self.names[0]: tree} if len(self.names) == 1 else {}

    def convert_targets(self, y_pred: Any, y: Any) -> Any:
        """Return the targets ``y`` as the losses take them, in the same structure."""
        outputs, targets = self._by_name(y_pred), self._by_name(y)
        converted = {
            name: loss.convert_targets(outputs[name], targets[name])
            for name, loss in self.losses.items()
            if name in outputs and name in targets
        }
        if all(converted[name] is targets[name] for name in converted):
            return y
        if not isinstance(y, (Mapping, list, tuple)):
            return converted[self.names[0]]
        by_name = {**targets, **converted}
        return by_name if isinstance(y, Mapping) else list(by_name.values())

    def take_counts(self) -> Counts:
        """Return what each ``<output>_loss`` of the last call was divided by, and forget it."""
        return {
            f"{name}_{key}": count for name, loss in self.losses.items() for key, count in loss.take_counts().items()
        }

    def why_zero(self, term: str) -> str | None:
        """Return why ``<output>_loss`` of the last batch is 0 although it has samples, and the fix; None if all is well."""
        loss = self.losses.get(term.removesuffix("_loss"))
        return None if loss is None else loss.why_zero("loss")

    def batch_weights(self, window: Window, share: Share) -> Iterator[Any]:
        """Yield the share of each batch in the samples; meanwhile ``terms`` gives the gradient of each term its own share."""
        targets = [self._by_name(batch.y) for batch in unpacked(window)]
        columns = [loss.window_counts(window, [y.get(name) for y in targets]) for name, loss in self.losses.items()]
        by_samples, *by_term = share([window.sizes, *columns])
        self._is_shared = True
        try:
            for i, weight in enumerate(by_samples):
                is_empty = not isinstance(weight, Tensor) and not weight
                factors = [0.0 if is_empty else share[i] / weight for share in by_term]
                self._factors = dict(zip(self.losses, factors, strict=True))
                yield weight
        finally:
            self._factors, self._is_shared = {}, False

    @contextlib.contextmanager
    def knowing(self, targets: Any) -> Iterator[None]:
        """Measure data with these ``targets`` inside; None if they are unknown. Labels are not counted if all of them count."""
        by_name = self._by_name(targets)
        with contextlib.ExitStack() as stack:
            for name, loss in self.losses.items():
                stack.enter_context(loss.knowing(by_name.get(name)))
            yield

    def select(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return the predictions and targets of ``output``, all of them if it is None."""
        if output is None:
            return y_pred, y
        return self.by_output(y_pred, "outputs")[output], self.by_output(y, "targets")[output]

    def select_weight(self, sample_weight: Any, output: str | None) -> Any:
        """Return the sample weights of ``output``, all of them if it is None."""
        return sample_weight if output is None else self.by_output(sample_weight, "sample weights")[output]

    def compared_prediction(self, y_pred: Any, output: str | None) -> Any:
        """Return the part of the predictions of ``output`` that its loss compares with the targets."""
        return y_pred if output is None else self.losses[output].compared_prediction(y_pred, None)

    def by_output(self, tree: Any, content: str) -> dict[str, Any]:
        """Return the values of each output in ``tree``.

        Args:
            tree: A dict, list or tuple with one entry per output; one tensor or None for all outputs.
            content: ``"outputs"``, ``"targets"`` or ``"sample weights"``, for the message.

        Raises:
            ValueError: If the structure does not match the losses, or if one tensor cannot be for all outputs.
        """
        if tree is None or isinstance(tree, Tensor):
            # One weight per sample is valid for all outputs. One tensor of outputs or targets is not.
            if tree is not None and content != "sample weights":
                self._check_single(tree, content)
            return dict.fromkeys(self.names, tree)
        fits = set(self.names) <= set(tree) if isinstance(tree, Mapping) else len(tree) == self.count
        if isinstance(tree, Mapping) != self.by_name or not fits:
            raise ValueError(
                f"The losses are for {quote_list(self.names)}, but the {content} are {describe(tree)}. Pass losses, outputs "
                "and targets as dicts with the same keys, or as lists or tuples of the same length."
            )
        return dict(tree) if isinstance(tree, Mapping) else _number_outputs(tree)

    def _check_single(self, tensor: Tensor, content: str) -> None:
        """Raise an error if ``tensor`` would be used for several losses."""
        if self.count == 1 or (content == "targets" and len(self.names) == 1):
            return
        variables = [f"y{i + 1}" for i in range(self.count)]
        items = ", ".join(f"{name!r}: {y}" for name, y in zip(self.outputs, variables, strict=True))
        structure = f"{{{items}}}" if self.by_name else f"({', '.join(variables)})"
        if content == "targets":
            raise ValueError(
                f"There are {self.count} outputs with {len(self.names)} losses, but one target, {describe(tensor)}. Pass "
                f"targets {structure}."
            )
        raise ValueError(
            f"There are losses for {self.count} outputs, but the module returned one, {describe(tensor)}. Return {structure} "
            "from the module, or pass one loss."
        )

    def probabilities(self, y_pred: Any) -> Any:
        """Return the probabilities of every output, in the structure of the outputs."""
        return self._map_outputs(y_pred, SingleLoss.probabilities)

    def classes(
        self, y_pred: Any, threshold: float | None = None, *, observe: Callable[[Tensor], Any] = lambda _: None
    ) -> Any:
        """Return the classes of every output, in the structure of the outputs; ``threshold`` is for those with a binary loss."""
        has_effect = any(loss.kind == "binary" for loss in self.losses.values())

        def find_classes(loss: SingleLoss, output: Any) -> Any:
            limit = None if has_effect and loss.kind != "binary" else threshold
            return loss.classes(output, limit, observe=observe)

        return self._map_outputs(y_pred, find_classes)

    def _map_outputs(self, y_pred: Any, function: Callable[[SingleLoss, Any], Any]) -> Any:
        outputs, results = self.by_output(y_pred, "outputs"), {}
        for name, loss in self.losses.items():
            if loss.activation is None:
                raise ValueError(
                    f"easytorch cannot convert the output {name!r} to probabilities, because its loss, {loss!r}, implies no "
                    "activation. Call predict() and apply an activation."
                )
            results[name] = function(loss, outputs[name])
        return results if self.by_name else tuple(results.values())

    def __repr__(self) -> str:
        return repr(self.losses)


def _find_only_output(y_pred: Any, are_logits: bool) -> Any:
    """Return the only entry of outputs, or the logits that the models of transformers name so; else ``y_pred``."""
    if are_logits and isinstance(logits := get_logits(y_pred), Tensor):
        return logits
    if isinstance(y_pred, (Mapping, list, tuple)) and len(y_pred) == 1:
        (output,) = y_pred.values() if isinstance(y_pred, Mapping) else y_pred
        return output if isinstance(output, Tensor) else y_pred
    return y_pred


def get_logits(y_pred: Any) -> Any:
    """Return the entry or attribute ``logits`` of outputs; None without one."""
    return y_pred.get("logits") if isinstance(y_pred, Mapping) else getattr(y_pred, "logits", None)


def unpacked(window: Window) -> list[Batch]:
    """Return the parts of each batch, none if only a custom ``train_step`` can unpack them."""
    try:
        return list(window.unpacked())
    except ValueError:
        return [Batch(None)] * len(window)


def counts_or_sizes(counts: Iterable[Any], window: Window) -> list[Any]:
    """Return the counts of the batches, and the number of samples where they are None."""
    return [size if count is None else count for count, size in zip(counts, window.sizes, strict=True)]


def _check_threshold(threshold: Any) -> float:
    is_number = isinstance(threshold, (int, float, np.number)) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability from 0 to 1, received {threshold!r}. The default is 0.5.")
    return float(threshold)


def _zero_loss(y_pred: Tensor) -> Tensor:
    """Return 0, with a gradient of 0 for ``y_pred``, whatever its values."""
    return y_pred.flatten()[:0].sum()


def _row_counts(*trees: Any) -> set[int]:
    """Return the number of rows of each tensor in ``trees``."""
    return {len(leaf) for tree in trees for leaf in leaves(tree) if isinstance(leaf, Tensor) and leaf.ndim}


def _number_outputs(values: Iterable[Any]) -> dict[str, Any]:
    """Return ``{"output_1": first, "output_2": second, ...}``."""
    return {f"output_{i}": value for i, value in enumerate(values, 1)}


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
