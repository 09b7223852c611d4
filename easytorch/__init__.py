"""A Keras-style fit for any ``torch.nn.Module``.

The public API is ``__all__`` of ``easytorch``, ``easytorch.callbacks``, ``easytorch.data`` and ``easytorch.typing``, and the
tables ``easytorch.losses.TABLE``, ``easytorch.metrics.NAMES`` and ``easytorch.optimizers.TABLE``. Everything else may change
without notice.
"""

from typing import Any

from easytorch import callbacks, data, typing
from easytorch._utils.api_hints import PACKAGE_HINTS, missing_attribute_error
from easytorch._utils.seeding import set_seed
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

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "DataParallel",
    "EpochMetric",
    "FileError",
    "FullySharded",
    "History",
    "Mean",
    "Metric",
    "Model",
    "RankError",
    "ResumeError",
    "Scores",
    "Strategy",
    "__version__",
    "callbacks",
    "data",
    "launch",
    "set_seed",
    "typing",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in callbacks.__all__:
        raise AttributeError(f"easytorch has no {name!r}. Use easytorch.callbacks.{name}.")
    raise missing_attribute_error("easytorch", name, PACKAGE_HINTS, __all__)
