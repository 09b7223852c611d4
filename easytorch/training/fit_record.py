"""Record of the arguments of a fit, as plain values."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from easytorch._utils.internal import is_internal
from easytorch._utils.registry import get_name
from easytorch.callbacks.advice import AdviseOnSlowData
from easytorch.callbacks.base import HOOKS, Callback, has_hook
from easytorch.callbacks.every import Every
from easytorch.callbacks.lr_schedulers import LearningRateScheduler, Schedule
from easytorch.callbacks.progress import LineDisplay
from easytorch.data.arrays import is_array, is_arrays, is_map_style, unpack_tuple
from easytorch.data.combined import CombinedLoader
from easytorch.data.data_sets import DataSets
from easytorch.data.loader import is_keras_sequence
from easytorch.data.sparse import is_sparse
from easytorch.data.tables import is_frame, is_series, library_of, reads

if TYPE_CHECKING:
    from easytorch.model import Model


@dataclasses.dataclass(frozen=True)
class ArrayForm:
    """What is known of one array without its values.

    Attributes:
        kind: ``"tensor"``, ``"array"``, ``"sparse"``, ``"frame"``, ``"series"``, ``"list"``, ``"text"`` or ``"several"``.
            A frame or series of another library than pandas has its name: ``"polars frame"``.
        dtype: The name of the dtype, such as ``"float32"``; empty if it has none.
        shape: The shape, as far as it is known.
        package: The library of the array, if it is a frame or a series of another one than pandas.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    package: str = ""


@dataclasses.dataclass(frozen=True)
class DataForm:
    """How data was passed.

    Attributes:
        kind: ``"arrays"``, ``"loader"``, ``"dataset"``, ``"batches"`` (an iterable of batches), or another word for messages.
        x, y, sample_weight: The arrays, None for each that was not passed.
        type_name: The name of the class of the data.
    """

    kind: str
    x: ArrayForm | None = None
    y: ArrayForm | None = None
    sample_weight: ArrayForm | None = None
    type_name: str = ""


@dataclasses.dataclass(frozen=True)
class CallbackRecord:
    """A callback without its object.

    Attributes:
        name: The name of its class.
        is_internal: Whether the class is one of this package.
        hooks: The hooks that it defines.
        options: The arguments of its constructor that are plain values.
        function: The name of the function that it calls, if it has one.
        takes_rate: Whether this function is called with the epoch and the current learning rate.
    """

    name: str
    is_internal: bool
    hooks: tuple[str, ...]
    options: Mapping[str, Any]
    function: str = ""
    takes_rate: bool = False


@dataclasses.dataclass(frozen=True)
class FitRecord:
    """Arguments of a fit as plain values, and the state of the optimizer at its start; see ``Model.fit``.

    Attributes:
        x: The training data.
        validation: The validation data; None without.
        rates: The learning rate of each parameter group.
        continues: Whether the optimizer or a schedule had a state, of earlier updates.
        first_epoch: Number of epochs before.
        class_names: The names of the classes, if the labels were text.
        trainable: The names of the parameters that the program trains, before callbacks freeze any.
    """

    x: DataForm
    validation: DataForm | None
    epochs: int
    first_epoch: int
    batch_size: int | None
    shuffle: bool | None
    steps_per_epoch: int | None
    validation_split: float
    validation_freq: Any
    validation_steps: int | None
    class_weight: Any
    class_names: tuple[str, ...]
    callbacks: tuple[CallbackRecord, ...]
    rates: tuple[float, ...]
    continues: bool
    trainable: tuple[str, ...]


def record_fit(
    model: Model,
    x: Any,
    y: Any,
    *,
    text_labels: Any,
    epochs: int,
    initial_epoch: int | None,
    sample_weight: Any,
    class_weight: Any,
    validation_data: Any,
    validation_freq: Any,
    callbacks: Sequence[Any],
    **options: Any,
) -> FitRecord:
    """Return the record of a fit of ``model`` with these arguments, whose labels were text if there are ``text_labels``."""
    optimizer, named = model.require_optimizer("fit"), model.module.named_parameters()
    first = model.state.epoch if initial_epoch is None else initial_epoch
    validation = (
        None if validation_data is None else _data_form(*unpack_tuple(validation_data, None, None), text_labels)
    )
    return FitRecord(
        x=_data_form(*unpack_tuple(x, y, sample_weight), text_labels),
        validation=validation,
        epochs=epochs if initial_epoch is None else epochs - initial_epoch,
        first_epoch=first,
        class_names=tuple(map(str, text_labels)) if isinstance(text_labels, list) else (),
        class_weight=_as_plain_weights(class_weight),
        validation_freq=validation_freq
        if isinstance(validation_freq, (numbers.Integral, Every))
        else _as_list(validation_freq),
        callbacks=tuple(record_callback(callback) for callback in callbacks if _is_of_user(callback, model)),
        rates=tuple(float(group["lr"]) for group in optimizer.param_groups),
        continues=_has_state(model),
        trainable=tuple(name for name, parameter in named if parameter.requires_grad),
        **options,
    )


def record_callback(callback: Any) -> CallbackRecord:
    """Return the record of a callback, or of anything else that was passed as one."""
    if not isinstance(callback, Callback):
        return CallbackRecord(type(callback).__name__, False, (), {})
    functions = (getattr(callback, name, None) for name in ("schedule", "scheduler"))
    function = next((get_name(f) for f in functions if inspect.isfunction(f) or isinstance(f, type)), "")
    return CallbackRecord(
        name=type(callback).__name__,
        is_internal=is_internal(type(callback)),
        hooks=tuple(hook for hook in HOOKS if has_hook(callback, hook)),
        options=dict(_plain_options(callback)),
        function=function,
        takes_rate=isinstance(callback, LearningRateScheduler) and not callback.sets_rate,
    )


def _plain_options(callback: Callback) -> Iterator[tuple[str, Any]]:
    """Yield each argument of the constructor that the callback stores as a plain value under its name."""
    cls, path = type(callback), getattr(callback, "path", None)
    # For a class without a constructor, inspect.signature compiles the text of that of ``object``.
    has_constructor = inspect.isfunction(inspect.getattr_static(cls, "__init__"))
    for name in inspect.signature(cls).parameters if has_constructor else ():
        value = getattr(callback, name, None)
        if name == "filepath" and hasattr(callback, "filename"):
            yield name, callback.filename.text
        elif name in ("backup_dir", "log_dir") and hasattr(callback, "folder"):
            yield name, str(callback.folder)
        elif name in ("filename", "path") and path is not None:
            yield name, str(path)
        elif value is None or isinstance(value, (numbers.Real, str, Every)):
            yield name, value


def _has_state(model: Model) -> bool:
    """Return whether the optimizer or a schedule of ``model`` continues from earlier updates."""
    optimizer = model.require_optimizer("fit")
    has_values = any(map(_has_stepped, optimizer.state.values()))
    schedulers = (schedule.scheduler for schedule in model.schedules if not isinstance(schedule, Schedule))
    return has_values or any(getattr(scheduler, "last_epoch", 0) > 0 for scheduler in schedulers)


def _has_stepped(state: Any) -> bool:
    """Return whether the state of one parameter is that of a step; Adagrad has a state before the first."""
    step = state.get("step") if isinstance(state, Mapping) else None
    return bool(state) if step is None else float(step) > 0


def _is_of_user(callback: Any, model: Model) -> bool:
    """Return whether the user has passed ``callback`` to fit: it is neither a schedule of compile nor progress output."""
    is_schedule = any(callback is schedule for schedule in model.schedules)
    return not is_schedule and not isinstance(callback, (LineDisplay, AdviseOnSlowData))


def _data_form(x: Any, y: Any, sample_weight: Any, text_labels: Any) -> DataForm:
    """Return how ``x`` and ``y`` are data; their labels were text if there are ``text_labels``."""
    if is_arrays(x, y):
        inputs, targets, weights = (None if part is None else _array_form(part) for part in (x, y, sample_weight))
        if text_labels is not None and targets is not None:
            targets = dataclasses.replace(targets, kind="text")
        return DataForm("arrays", inputs, targets, weights)
    weight = None if sample_weight is None else _array_form(sample_weight)
    return DataForm(_kind_of(x), sample_weight=weight, type_name="" if x is None else type(x).__name__)


# The first kind whose test the data passes.
KINDS: dict[str, Callable[[Any], bool]] = {
    "nothing": lambda x: x is None,
    "several data sets": lambda x: isinstance(x, DataSets),
    "combined loaders": lambda x: isinstance(x, CombinedLoader),
    "loader": lambda x: isinstance(x, DataLoader),
    "stream": lambda x: isinstance(x, IterableDataset),
    "sequence": is_keras_sequence,
    "dataset": lambda x: isinstance(x, Dataset),
    "dataset of another library": is_map_style,
    "generator": lambda x: isinstance(x, Iterator),
    "batches": lambda x: hasattr(x, "__iter__"),
    "function": callable,
}


def _kind_of(x: Any) -> str:
    return next((kind for kind, test in KINDS.items() if test(x)), "data")


def _array_form(value: Any) -> ArrayForm:
    if isinstance(value, (Mapping, tuple)) or (isinstance(value, list) and any(map(is_array, value))):
        return ArrayForm("several")
    if not is_array(value):
        return ArrayForm("list", shape=np.shape(value) if isinstance(value, list) else ())
    kind = "tensor" if isinstance(value, Tensor) else "sparse" if is_sparse(value) else "array"
    if is_frame(value) or is_series(value):
        kind = "frame" if is_frame(value) else "series"
        kind = f"{library_of(value)} {kind}" if reads(value) else kind
    dtype = "" if reads(value) else str(getattr(value, "dtype", "")).removeprefix("torch.")
    shape = tuple(getattr(value, "shape", None) or (len(value),))
    return ArrayForm(kind, dtype, shape, library_of(value) if reads(value) else "")


def _as_plain_weights(weights: Any) -> Any:
    """Return ``class_weight`` as a dict, a list or text."""
    weights = weights.to_dict() if hasattr(weights, "to_dict") else weights
    return weights.tolist() if hasattr(weights, "tolist") else weights


def _as_list(values: Any) -> list[Any]:
    return sorted(values) if isinstance(values, (set, frozenset)) else list(values)
