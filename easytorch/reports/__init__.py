"""Reports on the predictions of a model: numbers with intervals, curves, the worst samples, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from easytorch.data.arrays import check_rows
from easytorch.data.batch import unpack
from easytorch.data.class_names import ClassNames
from easytorch.data.predictions import find_shuffling_sampler
from easytorch.data.sparse import is_sparse
from easytorch.data.tables import is_frame
from easytorch.reports.base import Comparison, Report
from easytorch.reports.build import make_report
from easytorch.reports.estimate import Estimate

if TYPE_CHECKING:
    from easytorch.model import Model

__all__ = ["Comparison", "Estimate", "Report", "make_report"]


def __dir__() -> list[str]:
    return __all__


def report_on(
    model: Model,
    x: Any,
    y: Any,
    *,
    by: Any,
    output: str | None,
    threshold: float | None,
    batch_size: int | None,
    bootstrap: int,
    seed: int,
    verbose: int | str,
) -> Report:
    """Return the report of ``Model.report``."""
    sampler = find_shuffling_sampler(x)
    if by is not None and sampler is not None:
        raise ValueError(
            f"by= has one value per sample, in the order of the dataset, and the {type(sampler).__name__} of this DataLoader "
            "draws another order. Pass a DataLoader with shuffle=False, or the dataset itself."
        )
    inputs, labels = ClassNames(model.class_names).encode(x, y)
    data = inputs if labels is None else (inputs, labels)
    outputs, targets = model.predict(data, targets=True, batch_size=batch_size, verbose=verbose)
    report = make_report(
        outputs, targets, model.loss, class_names=model.class_names, output=output, threshold=threshold, bootstrap=bootstrap,
        seed=seed,
    )  # fmt: skip
    report.get_input = input_reader(x) if sampler is None else None
    if by is not None:
        from easytorch.reports.slices import read_columns

        check_rows(x=x, y=y, by=by)
        report.add_slices(read_columns(by, x, report.count))
    return report


def input_reader(x: Any) -> Callable[[int], Any] | None:
    """Return a function that returns the input of a sample by its index, or None if the data has no index."""
    if isinstance(x, DataLoader):
        x = x.dataset
    if isinstance(x, (Tensor, np.ndarray)):
        return x.__getitem__
    if isinstance(x, (tuple, list)) and x and isinstance(x[0], (Tensor, np.ndarray)):
        first: Any = x[0]
        return first.__getitem__ if isinstance(x, tuple) else None
    if isinstance(x, IterableDataset):
        return None
    if (
        hasattr(x, "__getitem__")
        and hasattr(x, "__len__")
        and not isinstance(x, (Mapping, list, tuple))
        and not is_frame(x)  # an index of Arrow is that of a column
        and not is_sparse(x)
    ):
        return lambda index: unpack(x[index]).x if isinstance(x[index], (tuple, list)) else x[index]
    return None
