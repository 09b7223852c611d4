"""Types of the arguments of public functions.

Use them to annotate your functions that pass arguments on to a ``Model``:

    from easytorch.typing import LossLike, OptimizerLike

    def train(net: nn.Module, optimizer: OptimizerLike = "adam", loss: LossLike = "cross_entropy") -> easytorch.History: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler
from torch.utils.data import DataLoader, Dataset

from easytorch.callbacks.base import Callback
from easytorch.callbacks.every import Every
from easytorch.callbacks.lr_schedulers import LRScheduler
from easytorch.metrics.base import Metric
from easytorch.strategies.base import Strategy

__all__ = [
    "ArrayLike",
    "CallbackLike",
    "ClassWeightLike",
    "DataLike",
    "DatasetLike",
    "DeviceLike",
    "FitOptions",
    "LossLike",
    "MetricLike",
    "OptimizerLike",
    "OptimizerOptions",
    "PathLike",
    "SampleWeightLike",
    "SchedulerLike",
    "StrategyLike",
    "SupportsArray",
    "SupportsItems",
    "TargetLike",
    "ValidationDataLike",
]


def __dir__() -> list[str]:
    return __all__


class SupportsArray(Protocol):
    """An object that NumPy can convert, such as a pandas frame or series."""

    def __array__(self) -> np.ndarray[Any, Any]:
        """Return the values as an array."""


class SupportsItems(Protocol):
    """A dataset: samples by number."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one sample."""


ArrayLike: TypeAlias = Tensor | np.ndarray[Any, Any] | SupportsArray
"""A tensor, a NumPy array, or what NumPy can convert, with one entry per sample."""

DataLike: TypeAlias = (
    DataLoader[Any]
    | Dataset[Any]
    | ArrayLike
    | SupportsItems
    | Mapping[str, Any]
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
)
"""Inputs, with or without targets: a ``DataLoader``, a ``Dataset``, arrays, frames, dicts or tuples of these, a list of batches,
a generator, or a function that returns one."""

DatasetLike: TypeAlias = Dataset[Any] | SupportsItems | Sequence[Any]
"""A ``Dataset``, a list of samples, or any object with samples by number."""

TargetLike: TypeAlias = ArrayLike | Sequence[Any] | Mapping[str, Any]
"""Targets for inputs that contain none: one array, or for several outputs a dict, list or tuple of arrays."""

ValidationDataLike: TypeAlias = DataLike
"""Data to evaluate after epochs: any data, ``(x, y)`` or ``(x, y, sample_weight)``; or a dict of several data sets by name."""

SampleWeightLike: TypeAlias = ArrayLike | Sequence[Any] | Mapping[str, Any]
"""One weight per sample; for several outputs a dict, list or tuple of these."""

ClassWeightLike: TypeAlias = str | Mapping[Any, Any] | Sequence[float] | ArrayLike
"""``"balanced"``, ``{class: weight}``, or one weight per class; for several outputs a dict of these."""

OptimizerLike: TypeAlias = str | Optimizer | Callable[..., Optimizer] | Mapping[str, Any]
"""A name, an optimizer, or a class or function that creates one from parameters; or a dict of these and of pairs ``(optimizer,
options)`` by the name of the part of the module."""

LossLike: TypeAlias = (
    str | nn.Module | Callable[..., Any] | Sequence["LossLike | None"] | Mapping[str, "LossLike | None"]
)
"""A name, a loss of ``torch.nn``, or a function ``f(y_pred, y)``; for several outputs a list or dict of these."""

MetricLike: TypeAlias = (
    str | Metric | nn.Module | Callable[..., Any] | Sequence["MetricLike"] | Mapping[str, "MetricLike"]
)
"""A name, a ``Metric``, a metric of torchmetrics, or a function ``f(y_pred, y)``; a list of these, and for several outputs a
list or dict of lists."""

SchedulerLike: TypeAlias = str | TorchScheduler | LRScheduler | Callable[[Optimizer], Any]
"""A name, a scheduler of torch, a function that creates one from the optimizer, or the callback ``LRScheduler``."""

StrategyLike: TypeAlias = str | Strategy
"""A name, or a ``Strategy``."""

CallbackLike: TypeAlias = Callback | Iterable[Callback]
"""Callbacks, in any iterable."""

DeviceLike: TypeAlias = str | torch.device
"""A name such as ``"auto"``, ``"cpu"`` or ``"cuda:1"``, or a device."""

PathLike: TypeAlias = str | os.PathLike[str]
"""The path of a file or a folder."""


class OptimizerOptions(TypedDict, total=False):
    """Options of the optimizers of torch; each optimizer takes some of them.

    For options of other optimizers, a type checker needs a ``functools.partial`` of the optimizer class.
    """

    adaptive: bool
    adjust_lr_fn: str | None
    alpha: float
    amsgrad: bool
    base: str | type[Optimizer]
    beta2_decay: float
    betas: tuple[float, float]
    capturable: bool
    centered: bool
    d: float
    dampening: float
    decoupled_weight_decay: bool
    differentiable: bool
    eps: float | tuple[float | None, float]
    etas: tuple[float, float]
    foreach: bool | None
    fused: bool | None
    history_size: int
    initial_accumulator_value: float
    lambd: float
    line_search_fn: str | None
    lr_decay: float
    max_eval: int | None
    max_iter: int
    maximize: bool
    momentum: float
    momentum_decay: float
    nesterov: bool
    ns_coefficients: tuple[float, float, float]
    ns_steps: int
    rho: float
    step_sizes: tuple[float, float]
    t0: float
    tolerance_change: float
    tolerance_grad: float
    weight_decay: float


class FitOptions(TypedDict, total=False):
    """Arguments of ``Model.fit`` other than the data, for ``Model.to_script`` and ``Model.explain``."""

    epochs: int
    batch_size: int | None
    validation_data: ValidationDataLike | None
    validation_split: float
    validation_freq: int | Collection[int] | Every
    validation_steps: int | None
    steps_per_epoch: int | None
    class_weight: ClassWeightLike | None
    sample_weight: SampleWeightLike | None
    shuffle: bool | None
    initial_epoch: int | None
    callbacks: CallbackLike
    resume: PathLike | None
    on_interrupt: str
    dry_run: bool
    verbose: int | str
