"""Measurements before training: learning rate, batch size and speed."""

from easytorch.tuning.base import Measurement
from easytorch.tuning.learning_rates import LearningRates
from easytorch.tuning.sizes import BatchSizes
from easytorch.tuning.speed import Speeds

__all__ = ["BatchSizes", "LearningRates", "Measurement", "Speeds"]


def __dir__() -> list[str]:
    return __all__
