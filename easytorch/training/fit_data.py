"""The data of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easytorch.data.arrays import column_names, keep_column_order
from easytorch.data.class_names import ClassNames
from easytorch.data.data_sets import as_data_sets
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.data.loader import make_fit_data
from easytorch.data.tables import is_frame, refuse_column_names, refuse_no_targets
from easytorch.distributed.process_group import SingleProcess
from easytorch.losses.single_loss import SingleLoss
from easytorch.training.evaluation import TARGET_METHODS
from easytorch.training.fit_record import FitRecord, record_fit

if TYPE_CHECKING:
    from easytorch.model import Model


@dataclasses.dataclass(frozen=True)
class FitData:
    """The data of a fit as the loop reads it, and as it was passed.

    Attributes:
        train: The windows of the training data.
        validation: The batches of the validation data, ``DataSets`` of these, or None.
        columns: The columns of a frame; None for other data.
        class_names: The names of the classes; None without.
        text_labels: The names that labels had, which were text; None otherwise.
        arguments: The arguments of ``fit`` that are about data, with numbers in place of text.
    """

    train: EpochIterator
    validation: Any
    columns: list[Any] | None
    class_names: Any
    text_labels: Any
    arguments: dict[str, Any]

    @classmethod
    def of(
        cls,
        model: Model,
        x: Any,
        y: Any,
        *,
        validation_data: Any,
        class_weight: Any,
        group: SingleProcess | None = None,
        **arguments: Any,
    ) -> FitData:
        """Return the data for ``model``; ``arguments`` are the others of ``make_fit_data`` that a user passes.

        Labels that are text become numbers, and the columns of a frame get the order of the last fit.

        Args:
            model: The model, whose attributes stay as they are.
            x, y, validation_data, class_weight: See ``Model.fit``.
            group: The processes that train together; by default those of the model.
            arguments: The further arguments of ``Model.fit`` that are about data, all of them.

        Raises:
            TypeError: If the kind of data is not supported.
            ValueError: If the data or an argument is invalid.
        """
        refuse_column_names(x, y=y, sample_weight=arguments.get("sample_weight"))
        _check_has_targets(model, x, y)
        labels = ClassNames(model.class_names)
        x, y = labels.learn(keep_column_order(x, model.columns), y)
        validation_data = labels.encode_validation(
            as_data_sets(validation_data, "validation_data", model.signature.names, x)
        )
        model.loss.check_text_labels(labels.found)
        arguments |= {"validation_data": validation_data, "class_weight": labels.number_keys(class_weight)}
        train, validation = make_fit_data(
            x, y, window_size=model.gradient_accumulation_steps, group=model.strategy.group if group is None else group,
            unpack=model.unpack, count_samples=model.batch_size, ignore_index=model.loss.ignore_index,
            pins=model.strategy.pins_batches, **arguments,
        )  # fmt: skip
        arguments |= {"x": x, "y": y}
        return cls(train, validation, column_names(x), labels.names, labels.found, arguments)

    def record(
        self, model: Model, initial_epoch: int | None, validation_freq: Any, callbacks: Sequence[Any]
    ) -> FitRecord:
        """Return the record of a fit of ``model`` on this data."""
        return record_fit(
            model, text_labels=self.text_labels, initial_epoch=initial_epoch, validation_freq=validation_freq,
            callbacks=callbacks, **self.arguments,
        )  # fmt: skip


def _check_has_targets(model: Model, x: Any, y: Any) -> None:
    """Raise a ``ValueError`` if ``x`` is a frame without targets ``y``, which the loss certainly needs."""
    needs_targets = isinstance(model.loss, SingleLoss) and not model.loss.is_custom
    if y is None and is_frame(x) and needs_targets and not any(map(model.overrides, TARGET_METHODS)):
        refuse_no_targets(x)
