"""Conversion of user data to batches."""

from easytorch.data.arrays import ArrayDataset
from easytorch.data.batch import Batch, batch_size
from easytorch.data.combine import combine
from easytorch.data.in_memory import in_memory
from easytorch.data.loader import as_loader
from easytorch.data.seeded import seeded
from easytorch.data.splits import all_targets, split, targets_of
from easytorch.data.unpacking import unpack

__all__ = [
    "ArrayDataset",
    "Batch",
    "all_targets",
    "as_loader",
    "batch_size",
    "combine",
    "in_memory",
    "seeded",
    "split",
    "targets_of",
    "unpack",
]


def __dir__() -> list[str]:
    return __all__
