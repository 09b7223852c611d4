"""What the training loop asks of a loss, and what its means are divided by.

``single_loss.SingleLoss`` is one loss, ``multi_output_loss.MultiOutputLoss`` one per output, and ``module_loss.ModuleLoss`` the
loss that the module returns.

What a mean is divided by is its count: the number of samples, of counted labels, or the sum of their class weights. Training,
gradient accumulation, several ranks and every reported loss weight a batch by this count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch.data.batch import Batch, Window
from easytorch.data.batch_objects import check_targets_count, is_batch_object
from easytorch.data.class_names import name_classes, names_of
from easytorch.losses.modules import LossModules

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
