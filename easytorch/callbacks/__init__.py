"""Callbacks: objects that are told what happens while a model trains."""

from easytorch.callbacks.callback import Callback, CallbackList, LambdaCallback
from easytorch.callbacks.monitors import EarlyStopping, Monitor
from easytorch.callbacks.schedules import LRScheduler

__all__ = ["Callback", "CallbackList", "EarlyStopping", "LRScheduler", "LambdaCallback", "Monitor"]
