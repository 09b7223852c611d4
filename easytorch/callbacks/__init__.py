"""Callbacks: objects that are told what happens while a model trains."""

from easytorch.callbacks.averaging import EMA, SWA, Averaging
from easytorch.callbacks.callback import Callback, CallbackList, LambdaCallback
from easytorch.callbacks.checkpoint import BackupAndRestore, ModelCheckpoint
from easytorch.callbacks.loggers import CSVLogger, TensorBoard
from easytorch.callbacks.monitors import EarlyStopping, Monitor
from easytorch.callbacks.nan import TerminateOnNaN
from easytorch.callbacks.pruning import OptunaPruning
from easytorch.callbacks.schedules import LearningRateScheduler, LRScheduler, ReduceLROnPlateau, Schedule

__all__ = [
    "Averaging",
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EMA",
    "EarlyStopping",
    "LRScheduler",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "Monitor",
    "OptunaPruning",
    "ReduceLROnPlateau",
    "SWA",
    "Schedule",
    "TensorBoard",
    "TerminateOnNaN",
]
