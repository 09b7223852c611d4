"""A Keras-style fit for any ``torch.nn.Module``.

The public API is ``__all__`` of ``easytorch``, ``easytorch.callbacks``, ``easytorch.checks``, ``easytorch.data``,
``easytorch.integrations.sklearn``, ``easytorch.reports``, ``easytorch.scripts``, ``easytorch.tuning`` and
``easytorch.typing``, and the tables ``easytorch.losses.TABLE``, ``easytorch.metrics.NAMES`` and
``easytorch.optimizers.TABLE``. Everything else may change without notice.
"""

import importlib
from typing import TYPE_CHECKING, Any

from easytorch import callbacks, data
from easytorch._utils.api_errors import missing_name_error
from easytorch._utils.api_hints import PACKAGE_HINTS
from easytorch._utils.seeding import set_seed
from easytorch._utils.tracebacks import hide_internal_frames, show_internal_frames
from easytorch.callbacks import (
    EMA,
    SWA,
    Averaging,
    BackupAndRestore,
    Callback,
    CallbackList,
    CSVLogger,
    EarlyStopping,
    Every,
    Freeze,
    LambdaCallback,
    LearningRateScheduler,
    LivePlot,
    LRScheduler,
    MLflowLogger,
    ModelCheckpoint,
    Monitor,
    OptunaPruning,
    RayReport,
    ReduceLROnPlateau,
    Schedule,
    SlurmRequeue,
    SplitOnOutOfMemory,
    StopAfter,
    TensorBoard,
    TerminateOnNaN,
    Tracker,
    TrackioLogger,
    WandbLogger,
)
from easytorch.data.batch import Batch
from easytorch.distributed.launch import launch
from easytorch.errors import FileError, RankError, ResumeError
from easytorch.metrics.aggregation import Mean
from easytorch.metrics.base import Metric
from easytorch.metrics.epoch import EpochMetric
from easytorch.model import Model
from easytorch.strategies.base import Strategy
from easytorch.strategies.ddp import DataParallel
from easytorch.strategies.fsdp import FullySharded
from easytorch.training.results import History, Scores

if TYPE_CHECKING:
    from easytorch import checks, reports, scripts, tuning, typing

__version__ = "0.1.0"

__all__ = [
    "Averaging",
    "BackupAndRestore",
    "Batch",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "DataParallel",
    "EMA",
    "EarlyStopping",
    "EpochMetric",
    "Every",
    "FileError",
    "Freeze",
    "FullySharded",
    "History",
    "LRScheduler",
    "LambdaCallback",
    "LearningRateScheduler",
    "LivePlot",
    "MLflowLogger",
    "Mean",
    "Metric",
    "Model",
    "ModelCheckpoint",
    "Monitor",
    "OptunaPruning",
    "RankError",
    "RayReport",
    "ReduceLROnPlateau",
    "ResumeError",
    "SWA",
    "Schedule",
    "Scores",
    "SlurmRequeue",
    "SplitOnOutOfMemory",
    "StopAfter",
    "Strategy",
    "TensorBoard",
    "TerminateOnNaN",
    "Tracker",
    "TrackioLogger",
    "WandbLogger",
    "__version__",
    "callbacks",
    "checks",
    "data",
    "launch",
    "reports",
    "scripts",
    "set_seed",
    "show_internal_frames",
    "tuning",
    "typing",
]

# Packages that training does not need are imported at their first use.
LAZY_PACKAGES = ("checks", "reports", "scripts", "tuning", "typing")


def __dir__() -> list[str]:
    return __all__


@hide_internal_frames
def __getattr__(name: str) -> Any:
    if name in LAZY_PACKAGES:
        return importlib.import_module(f"easytorch.{name}")
    raise missing_name_error("easytorch", name, PACKAGE_HINTS, __all__)
