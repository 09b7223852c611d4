"""Combination of several loaders into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, IterableDataset

from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.data.arrays import is_arrays, is_map_style
from easytorch.data.batch import is_single_pass
from easytorch.data.combined import CombinedLoader
from easytorch.data.loader import as_loader, require_end

if TYPE_CHECKING:
    from easytorch.typing import DataLike


@hide_internal_frames
def combine(loaders: Mapping[str, DataLike] | Sequence[DataLike], mode: str = "longest") -> CombinedLoader:
    """Read several loaders at once: each batch has one batch of each loader.

    A batch is a dict with the names of ``loaders``, or a tuple if ``loaders`` is a list. A custom ``train_step(self, batch)``
    computes its loss. Each epoch starts a new pass of each loader.

    A mean of the history is weighted by the number of samples of the *first* loader; return the pair ``(sum, count)`` of a
    value to weight it in another way. With gradient accumulation or several processes, the batches must have samples in the
    same ratio, which ``DataLoader(..., drop_last=True)`` ensures; otherwise override ``batch_size(self, batch)``.

    Args:
        loaders: The loaders by name, or a list of them: each a ``DataLoader``, a list of batches, or a function that returns a
            generator of batches.
        mode: ``"longest"`` for one pass over the longest loader, in which a shorter one starts a new pass when it ends, in a new
            order if it shuffles; ``"shortest"`` to end with the shortest loader.

    Returns:
        A loader for ``fit``, ``validation_data`` and ``evaluate``, with a length if all loaders have one.

    Raises:
        ValueError: If there is no loader, two have the same name, ``mode`` is unknown, or a loader is a generator, which can be
            read only once.
        TypeError: If a loader does not return batches.

    Examples:
        >>> both = combine({"labeled": train_loader, "unlabeled": val_loader})
        >>> list(next(iter(both)))  # what train_step gets
        ['labeled', 'unlabeled']
    """
    if not isinstance(loaders, (Mapping, list, tuple)):
        raise TypeError(
            f"combine() expects a dict or a list of loaders, received {type(loaders).__name__}. "
            "Pass combine({'labeled': loader, 'unlabeled': other_loader})."
        )
    names = list(map(str, loaders if isinstance(loaders, Mapping) else range(len(loaders))))
    values = loaders.values() if isinstance(loaders, Mapping) else loaders
    if not names:
        raise ValueError("combine() received no loader. Pass combine({'labeled': loader, 'unlabeled': other_loader}).")
    if len(set(names)) < len(names):
        raise ValueError(f"combine() received several loaders with the same name: {names}. Give each another name.")
    parts = {name: _as_part(name, value) for name, value in zip(names, values, strict=True)}
    return CombinedLoader(parts, mode, isinstance(loaders, Mapping))


def _as_part(name: str, data: Any) -> Any:
    """Return one of the loaders as an iterable of batches that can be read many times."""
    if isinstance(data, CombinedLoader):
        raise TypeError(f"The loader {name!r} is a combined loader. Pass its loaders to one combine().")
    if isinstance(data, (Dataset, IterableDataset)) or (
        not isinstance(data, list) and (is_arrays(data, None) or is_map_style(data))
    ):
        raise TypeError(
            f"The loader {name!r} is a {type(data).__name__}, which contains samples instead of batches. Pass "
            "torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)."
        )
    part = as_loader(data)
    require_end(part, "the loader", None)
    if is_single_pass(part):
        raise ValueError(
            f"The loader {name!r} is a generator, which can be read only once. Pass the function that returns it (not its "
            "result), a list of batches or a DataLoader."
        )
    return part
