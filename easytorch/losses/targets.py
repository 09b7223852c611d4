"""Targets in the shape and dtype that a loss takes, if their meaning is certain.

==================================  ====================================  =============================================
loss                                targets of the user                   targets of the loss
==================================  ====================================  =============================================
value by value (``mse``, ``bce``)   dimensions of size 1 more or fewer    the shape of the outputs
value by value                      integers, booleans                    floats
of classes (``cross_entropy``)      dimensions of size 1 more             ``[N, ...]``
of classes                          other integers, booleans, floats      int64, if they are whole numbers
``cross_entropy``                   one-hot integers or booleans          probabilities, as floats
other losses of classes             one-hot integers, booleans or floats  class numbers
==================================  ====================================  =============================================

Everything else stays as it is, and the checks of the loss report it. A custom loss gets the targets of the user.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import describe

# Losses whose targets are class numbers, and that take probabilities too.
PROBABILITY_LOSSES = (nn.CrossEntropyLoss,)
CLASS_LOSSES = (*PROBABILITY_LOSSES, nn.NLLLoss, nn.MultiMarginLoss)
# A label that is neither a class nor ignored, so that torch reports it.
NO_CLASS = torch.iinfo(torch.int32).min


class KnownValues:
    """What is known of the values of the targets in one pass.

    The values are checked once if all ``targets`` are known. Otherwise those of each batch on the CPU, and on an accelerator,
    which a check would wait for, those of the first batch.

    Args:
        targets: All targets of the data, or None if they are unknown.
    """

    def __init__(self, targets: Any = None) -> None:
        self._results: dict[Callable[[Tensor], bool], bool] = {}
        self._has_passed: set[Callable[[Tensor], bool]] = set()
        if isinstance(targets, Tensor) and targets.ndim and not targets.is_complex():
            if targets.is_floating_point():
                self._results[are_whole] = are_whole(targets)
            if targets.ndim > 1:
                self._results[are_one_hot] = are_one_hot(targets)

    def have(self, check: Callable[[Tensor], bool]) -> bool:
        """Return whether the result of ``check`` is known for all targets."""
        return check in self._results

    def pass_check(self, check: Callable[[Tensor], bool], y: Tensor) -> bool:
        """Return whether all targets pass ``check``; if they are unknown, whether those of the batch ``y`` do."""
        if check in self._results:
            return self._results[check]
        if not y.numel() or (y.device.type != "cpu" and check in self._has_passed):
            return True
        has_passed = check(y)
        if has_passed:
            self._has_passed.add(check)
        return has_passed


class TargetConverter:
    """The conversion of the targets of one loss; this one changes nothing.

    Attributes:
        known: What is known of the targets of the current pass.
    """

    known = KnownValues()

    def prepare(self) -> None:
        """Forget what the batches of earlier data have shown."""

    def inspect(self, targets: Any) -> KnownValues:
        """Return what the conversion must know of all ``targets`` of a pass, None if they are unknown."""
        return self.known

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return the targets ``y`` of the outputs ``y_pred`` as the loss takes them."""
        return y

    def as_labels(self, y: Tensor) -> Tensor | None:
        """Return ``y``, targets of the user, as labels if each of its values is one; None if they are others."""
        return None if y.is_floating_point() else y

    def class_numbers(self, targets: Sequence[Any]) -> list[Tensor | None]:
        """Return the ``targets`` of the batches of an update as class numbers, to count them before there are outputs.

        Returns:
            None for a batch of other targets.
        """
        return [self.as_labels(y) if isinstance(y, Tensor) else None for y in targets]


class ValueTargets(TargetConverter):
    """Targets of a loss that compares them with the outputs value by value."""

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` in the shape of ``y_pred``, as floats."""
        if y.shape == y_pred.shape and y.is_floating_point():
            return y
        if not _differ_by_ones(y.shape, y_pred.shape) or y.is_complex():
            return y
        y = y.reshape(y_pred.shape)
        return y if y.is_floating_point() else y.to(_float_dtype(y_pred))


class SignedTargets(ValueTargets):
    """Targets of a loss that expects -1 and 1, which booleans are not."""

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` in the shape of ``y_pred``, as floats."""
        return y if y.dtype == torch.bool else super().__call__(y_pred, y)


class ClassTargets(TargetConverter):
    """Targets of a loss that compares classes.

    Float class numbers must be whole, and integers ``[N, classes]`` one-hot.

    Args:
        takes_probabilities: Whether the loss takes probabilities ``[N, classes, ...]`` too.
        counts_depend_on_class: Whether samples count differently by their class: by a class weight, or since one is ignored.
    """

    def __init__(self, takes_probabilities: bool, counts_depend_on_class: bool = False) -> None:
        self.takes_probabilities, self.counts_depend_on_class = takes_probabilities, counts_depend_on_class
        self.prepare()

    def prepare(self) -> None:
        """Forget what the batches of earlier data have shown."""
        self.known = KnownValues()
        # Whether targets with this number of dimensions, floats or not, have one column per class.
        self._has_columns: dict[tuple[int, bool], bool] = {}
        # The kinds of targets that were counted as columns before the first outputs.
        self._counted_as_columns: set[tuple[int, bool]] = set()

    def inspect(self, targets: Any) -> KnownValues:
        """Return what the conversion must know of all ``targets`` of a pass, None if they are unknown."""
        return KnownValues(targets)

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` as class numbers ``[N, ...]``, or as probabilities in the shape of ``y_pred``.

        Raises:
            ValueError: If integers ``[N, classes]`` are not one-hot, or class numbers are not whole.
        """
        dimensions = y.ndim
        if y.dtype is torch.int64 and dimensions == y_pred.ndim - 1:  # by far the most frequent case
            if dimensions > 1:
                self._set_labels(y)
            return y
        if y_pred.ndim < 2 or y_pred.shape[1] == 1 or y.is_complex():
            return y
        if y.shape == y_pred.shape:
            self._has_columns[_kind(y)] = True
            return self._from_columns(y_pred, y)
        shape = torch.Size((len(y_pred), *y_pred.shape[2:]))
        if y.ndim < len(shape) or not _differ_by_ones(y.shape, shape):
            return y
        self._set_labels(y)
        return self._as_numbers(y.reshape(shape))

    def _set_labels(self, y: Tensor) -> None:
        """Record that targets of the kind of ``y`` are class numbers.

        Raises:
            ValueError: If they were counted as one-hot rows.
        """
        self._has_columns[_kind(y)] = False
        if _kind(y) in self._counted_as_columns:
            raise ValueError(
                f"The targets are {describe(y)}, class numbers for the outputs of the module, but all rows of the first update "
                "consist of zeros and a single 1, like one-hot rows, and were counted as such. Pass larger or shuffled batches."
            )

    def as_labels(self, y: Tensor) -> Tensor | None:
        """Return ``y``, targets of the user, as labels if each of its values is one; None if they are others."""
        if y.dtype is torch.int64:
            return y
        if y.is_complex() or (y.is_floating_point() and not self.known.pass_check(are_whole, y)):
            return None
        return y.long()

    def class_numbers(self, targets: Sequence[Any]) -> list[Tensor | None]:
        """Return the ``targets`` of the batches of an update as class numbers, to count them before there are outputs.

        Returns:
            None for a batch of other targets.
        """
        tensors = [y for y in targets if isinstance(y, Tensor) and not y.is_complex()]
        have_columns = {
            kind: self._may_have_columns([y for y in tensors if _kind(y) == kind]) for kind in set(map(_kind, tensors))
        }
        return [self._count_as(y, have_columns) if isinstance(y, Tensor) else None for y in targets]

    def _may_have_columns(self, targets: Sequence[Tensor]) -> bool:
        """Return whether ``targets`` of one kind have one column per class.

        Before the first outputs only the values show it. A few labels ``[N, ...]`` may consist of zeros and a single 1 by chance,
        so the values of all batches must agree.
        """
        is_known = self._has_columns.get(_kind(targets[0]))
        if is_known is not None:
            return is_known
        if not self.counts_depend_on_class and not targets[0].is_floating_point():
            # One-hot rows have equal counts, also if each of their values counts as a label.
            return False
        has_columns = len({y.shape[1:] for y in targets}) == 1 and all(map(_may_be_columns, targets))
        if not has_columns or not self.counts_depend_on_class:
            return has_columns
        if self.known.have(are_one_hot) and not self.known.pass_check(are_one_hot, targets[0]):
            return False
        self._counted_as_columns.add(_kind(targets[0]))
        return True

    def _count_as(self, y: Tensor, have_columns: Mapping[tuple[int, bool], bool]) -> Tensor | None:
        """Return ``y`` as class numbers; None if they are probabilities or no classes."""
        if not have_columns.get(_kind(y)):
            return self.as_labels(y)
        return None if self.takes_probabilities or not self.known.pass_check(are_one_hot, y) else _largest(y)

    def _from_columns(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return targets with one column per class as probabilities, or as class numbers if the loss takes only these."""
        if self.takes_probabilities and y.is_floating_point():
            return y
        if not self.known.pass_check(are_one_hot, y):
            numbers = f"class numbers, with shape {[len(y), *y.shape[2:]]}"
            kinds = f"{numbers}, one-hot rows, or probabilities as floats" if self.takes_probabilities else numbers
            raise ValueError(
                f"The targets are {describe(y)}, one column per class, but some rows are not one-hot: they do not consist of "
                f"zeros and a single 1. Pass {kinds}. If a sample may belong to several classes, use loss='bce_with_logits'."
            )
        return y.to(_float_dtype(y_pred)) if self.takes_probabilities else _largest(y)

    def _as_numbers(self, y: Tensor) -> Tensor:
        """Return class numbers of any dtype as int64."""
        if not y.is_floating_point():
            return y.long()
        if not self.known.pass_check(are_whole, y):
            fractions = y[y != y.round()]
            example = f" (for example {float(fractions[0]):.4g})" if len(fractions) else ""
            raise ValueError(
                f"The targets are not integers{example}, so they are not class indices. To predict a number, give the last layer "
                "one output and use loss='mse'."
            )
        labels = y.long()
        is_checked = y.device.type == "cpu" or self.known.have(are_whole)
        return labels if is_checked else torch.where(labels == y, labels, NO_CLASS)


def make_converter(
    family: type[Any], is_value_by_value: bool, is_signed: bool, ignore_index: int, has_class_weight: bool
) -> TargetConverter:
    """Return the conversion for a loss of torch.

    Args:
        family: The ``torch.nn`` class of the loss.
        is_value_by_value: Whether the loss compares each output with one target.
        is_signed: Whether the targets are -1 and 1.
        ignore_index: The label that the loss ignores. Torch cannot ignore one of the classes in probabilities.
        has_class_weight: Whether the loss has a weight for each class.
    """
    if is_value_by_value:
        return SignedTargets() if is_signed else ValueTargets()
    takes_probabilities = family in PROBABILITY_LOSSES and ignore_index < 0
    if family not in CLASS_LOSSES:
        return TargetConverter()
    depends_on_class = not takes_probabilities and (has_class_weight or ignore_index >= 0)
    return ClassTargets(takes_probabilities, depends_on_class)


def are_whole(y: Tensor) -> bool:
    """Return whether all values of ``y`` are whole numbers."""
    return bool((y == y.round()).all())


def are_one_hot(y: Tensor) -> bool:
    """Return whether ``y``, ``[N, classes, ...]``, has a single 1 among zeros in dimension 1."""
    if y.dtype == torch.bool:
        return bool((y.sum(1) == 1).all())
    return bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())


def are_distributions(y: Tensor) -> bool:
    """Return whether ``y``, ``[N, classes, ...]``, is one-hot or has probabilities in dimension 1."""
    if not y.is_floating_point():
        return are_one_hot(y)
    return bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())


# The shapes of a fit are few, and each batch asks for them.
@functools.lru_cache(maxsize=64)
def _differ_by_ones(first: torch.Size, second: torch.Size) -> bool:
    """Return whether two shapes are equal apart from dimensions of size 1 after the first dimension."""
    if not first or not second or first[0] != second[0]:
        return first == second
    return [size for size in first[1:] if size != 1] == [size for size in second[1:] if size != 1]


def _may_be_columns(y: Tensor) -> bool:
    """Return whether ``y`` may have one column per class, by its values."""
    return y.ndim > 1 and y.shape[1] > 1 and are_distributions(y)


def _kind(y: Tensor) -> tuple[int, bool]:
    """Return the number of dimensions of ``y``, and whether it has floats."""
    return y.ndim, y.is_floating_point()


def _float_dtype(y_pred: Tensor) -> torch.dtype:
    """Return the dtype that float targets of ``y_pred`` have."""
    if torch.is_autocast_enabled(y_pred.device.type):  # outputs have fewer bits than the targets then
        return torch.float32
    return y_pred.dtype if y_pred.is_floating_point() or y_pred.is_complex() else torch.get_default_dtype()


def _largest(y: Tensor) -> Tensor:
    return (y.to(torch.uint8) if y.dtype == torch.bool else y).argmax(1)
