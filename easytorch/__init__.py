"""easytorch: a Keras-style fit for any torch.nn.Module."""

from typing import Any

from easytorch import callbacks, data
from easytorch._utils.api_hints import PACKAGE, missing_attribute_error
from easytorch.distributed.launch import launch
from easytorch.errors import FileError, ResumeError
from easytorch.metrics.aggregation import Mean
from easytorch.metrics.base import Metric
from easytorch.model import Model
from easytorch.strategies.base import Strategy
from easytorch.strategies.ddp import DataParallel
from easytorch.strategies.fsdp import FullySharded
from easytorch.training.results import History, Scores

__version__ = "0.1.0"

__all__ = [
    "DataParallel",
    "FileError",
    "FullySharded",
    "History",
    "Mean",
    "Metric",
    "Model",
    "ResumeError",
    "Scores",
    "Strategy",
    "__version__",
    "callbacks",
    "data",
    "launch",
]


def __getattr__(name: str) -> Any:
    if name in callbacks.__all__:
        raise AttributeError(f"easytorch has no {name!r}. Here it is easytorch.callbacks.{name}.")
    raise missing_attribute_error("easytorch", name, PACKAGE, __all__)
