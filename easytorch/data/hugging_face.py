"""Rows of a Hugging Face dataset that have no value, without an import of the library."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import leaves
from easytorch.data.arrays import has_custom_transform
from easytorch.data.tables import has_none, library_of

# Rows that are converted together in the search for None.
ROWS = 1000
# Columns that a message names.
MAX_FOUND = 5


class Nulls(NamedTuple):
    """The rows of a column that are None, or have None in a list.

    Attributes:
        first: The number of the first row.
        rows: The number of rows.
        is_row: Whether the first row is None, and not a value in its list.
    """

    first: int
    rows: int
    is_row: bool


def find_dataset(data: Any) -> Any:
    """Return the Hugging Face dataset or stream whose samples ``data`` has, perhaps a subset of them; None for other data."""
    while data is not None and library_of(data) != "datasets":
        data = vars(data).get("dataset") if hasattr(data, "__dict__") else None
    return data if hasattr(data, "with_format") else None


def has_rows(dataset: Any) -> bool:
    """Return whether ``dataset`` is a Hugging Face dataset whose rows have an index."""
    # A dict of splits has a dict of tables.
    return library_of(dataset) == "datasets" and hasattr(getattr(dataset, "data", None), "table")


def refuse_nulls(dataset: Any, unpack: Callable[[Any], Any]) -> None:
    """Raise a ``ValueError`` if a column that ``unpack`` takes has None, of which torch would make NaN.

    Args:
        dataset: Data of any kind; only Hugging Face datasets without a custom transform are checked.
        unpack: Splits a batch into inputs, targets and weights. If it is custom, the used columns are unknown.
    """
    if not has_rows(dataset) or has_custom_transform(dataset) or not is_internal(unpack):
        return
    used = set(leaves(tuple(unpack({name: name for name in dataset.column_names}))))
    nulls = find_nulls(dataset, used)
    if nulls:
        raise ValueError(
            f"The dataset has None in the columns {describe_nulls(nulls)}. {null_fixes(nulls)} If the module handles NaN, pass "
            "DataLoader(dataset.with_format('torch'), batch_size=32), which is not checked."
        )


def find_nulls(dataset: Any, names: Collection[str] | None = None) -> dict[str, Nulls]:
    """Return which of the columns ``names``, all by default, have None, also inside of lists."""
    # The stored table has rows that a filter has removed. Its counts of nulls are known without a pass over the values.
    stored = dataset.data.table
    suspects = [
        name
        for name in dataset.column_names
        if (names is None or name in names) and any(map(_count_nulls, stored.column(name).chunks))
    ]
    found: dict[str, Nulls] = {}
    for row, name, value in _rows_with_null(dataset, suspects):
        first, count, is_row = found.get(name, Nulls(row, 0, value is None))
        found[name] = Nulls(first, count + 1, is_row)
    return found


def _rows_with_null(dataset: Any, names: list[str]) -> Iterator[tuple[int, str, Any]]:
    if not names:
        return
    rows = dataset.select_columns(names).with_format("arrow")
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        for name in names:
            if any(map(_count_nulls, part.column(name).chunks)):
                values = enumerate(part.column(name).to_pylist(), start)
                yield from ((row, name, value) for row, value in values if has_none(value))


def _count_nulls(array: Any) -> int:
    """Return the number of nulls in an array of Arrow, and in its lists."""
    array = getattr(array, "storage", array)  # of an extension type, such as Array2D
    inner = array.flatten() if hasattr(array, "value_lengths") or hasattr(array.type, "list_size") else None
    return int(array.null_count) + (0 if inner is None else _count_nulls(inner))


def describe_nulls(nulls: dict[str, Nulls]) -> str:
    """Return the columns and rows with None."""
    return ", ".join(
        f"{name!r} (row {first}{f' and {count - 1} more' if count > 1 else ''})"
        for name, (first, count, _) in list(nulls.items())[:MAX_FOUND]
    )


def null_fixes(nulls: dict[str, Nulls]) -> str:
    """Return how to remove None from the first column."""
    name, (*_, is_row) = next(iter(nulls.items()))
    test = f"row[{name!r}] is not None" if is_row else f"None not in row[{name!r}]"
    return (
        f"Drop the rows, dataset.filter(lambda row: {test}), or fill them with dataset.map(...). If the column is not needed, "
        f"dataset.remove_columns([{name!r}])."
    )


def is_plain(dataset: Any) -> bool:
    """Return whether the rows of a Hugging Face dataset or stream are Python objects, as they are without a format."""
    format_ = getattr(dataset, "format", None)
    if isinstance(format_, dict):
        return format_.get("type") is None
    formatting = getattr(dataset, "_formatting", None)  # of a stream
    return getattr(formatting, "format_type", None) is None
