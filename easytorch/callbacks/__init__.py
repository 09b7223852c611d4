"""Callbacks: objects with hooks that run during training."""

from typing import Any

from easytorch._utils.api_errors import missing_name_error
from easytorch._utils.api_hints import CALLBACK_HINTS
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.callbacks.averaging import EMA, SWA, Averaging
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback, CallbackList, LambdaCallback
from easytorch.callbacks.checkpoint import ModelCheckpoint
from easytorch.callbacks.early_stopping import EarlyStopping, Monitor
from easytorch.callbacks.every import Every
from easytorch.callbacks.freeze import Freeze
from easytorch.callbacks.gradients import GradientStatistics
from easytorch.callbacks.live_plot import LivePlot
from easytorch.callbacks.loggers import CSVLogger
from easytorch.callbacks.lr_schedulers import LearningRateScheduler, LRScheduler, ReduceLROnPlateau, Schedule
from easytorch.callbacks.mlflow_logger import MLflowLogger
from easytorch.callbacks.nan import TerminateOnNaN
from easytorch.callbacks.optuna import OptunaPruning
from easytorch.callbacks.out_of_memory import SplitOnOutOfMemory
from easytorch.callbacks.ray import RayReport
from easytorch.callbacks.slurm import SlurmRequeue
from easytorch.callbacks.stop_after import StopAfter
from easytorch.callbacks.tensorboard import TensorBoard
from easytorch.callbacks.tracker import Tracker
from easytorch.callbacks.trackio_logger import TrackioLogger
from easytorch.callbacks.wandb_logger import WandbLogger

__all__ = [
    "Averaging",
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EMA",
    "EarlyStopping",
    "Every",
    "Freeze",
    "GradientStatistics",
    "LRScheduler",
    "LambdaCallback",
    "LearningRateScheduler",
    "LivePlot",
    "MLflowLogger",
    "ModelCheckpoint",
    "Monitor",
    "OptunaPruning",
    "RayReport",
    "ReduceLROnPlateau",
    "SWA",
    "Schedule",
    "SlurmRequeue",
    "SplitOnOutOfMemory",
    "StopAfter",
    "TensorBoard",
    "TerminateOnNaN",
    "Tracker",
    "TrackioLogger",
    "WandbLogger",
]


def __dir__() -> list[str]:
    return __all__


@hide_internal_frames
def __getattr__(name: str) -> Any:
    raise missing_name_error("easytorch.callbacks", name, CALLBACK_HINTS, __all__)
