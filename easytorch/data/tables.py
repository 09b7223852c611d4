"""Frames and columns of pandas, polars, Arrow and Hugging Face datasets, without an import of these libraries.

A frame has columns with names. A series is one column. pandas converts its own values; this module does it for the others.
"""

from __future__ import annotations

import zlib
from typing import Any, NoReturn

import numpy as np

from easytorch._utils.forward_signature import LABEL_KEYS

# Columns with wrong values that a message names.
MAX_FOUND = 10

Array = np.ndarray[Any, Any]


def library_of(value: Any) -> str:
    """Return the name of the library that defines the class of ``value``."""
    return type(value).__module__.partition(".")[0]


def is_frame(x: Any) -> bool:
    """Return whether ``x`` is a frame of pandas or polars, or a ``Table`` or ``RecordBatch`` of Arrow."""
    # A LazyFrame of polars has columns, and warns when it is asked for them.
    if library_of(x) == "pyarrow":
        return hasattr(x, "column_names") and hasattr(x, "num_rows")
    return hasattr(x, "to_numpy") and hasattr(x, "columns")


def is_series(x: Any) -> bool:
    """Return whether ``x`` is a series of pandas or polars, or a column of Arrow or of a Hugging Face dataset."""
    return (hasattr(x, "to_numpy") and hasattr(x, "__len__") and not is_frame(x)) or _is_dataset_column(x)


def _is_dataset_column(x: Any) -> bool:
    return library_of(x) == "datasets" and type(x).__name__ == "Column"


def is_pandas(x: Any) -> bool:
    """Return whether ``x`` is a frame or a series of pandas, whose rows have labels."""
    return hasattr(x, "to_numpy") and hasattr(x, "iloc")


def get_names(frame: Any) -> list[Any]:
    """Return the names of the columns of a frame."""
    return list(frame.column_names if library_of(frame) == "pyarrow" else frame.columns)


def select_columns(frame: Any, names: list[Any]) -> Any:
    """Return a frame with the columns ``names``, in this order."""
    return frame.select(names) if library_of(frame) == "pyarrow" else frame[names]


def get_column(frame: Any, name: Any) -> Any:
    """Return one column of a frame."""
    return frame.column(name) if library_of(frame) == "pyarrow" else frame[name]


def get_columns(frame: Any) -> list[Any]:
    """Return all columns of a frame of polars or Arrow, of which those of Arrow may have the same name."""
    return list(frame.columns if library_of(frame) == "pyarrow" else frame.get_columns())


def as_array(value: Any) -> Any:
    """Return a frame or series of polars, Arrow or Hugging Face as an array; anything else, such as a frame of pandas, as it is.

    The columns of a frame become float64, as those of pandas do.

    Raises:
        TypeError: If a column has no numbers.
        ValueError: If a value is null.
    """
    if _is_dataset_column(value):
        return _without_none(value[:])
    if library_of(value) not in READERS or not (is_frame(value) or is_series(value)):
        return value
    return _read_frame(value) if is_frame(value) else _read_series(value)


def _without_none(values: Any) -> Any:
    """Return ``values``, a column of a Hugging Face dataset; raise a ``ValueError`` if a row has None."""
    row = next((row for row, value in enumerate(values) if has_none(value)), None) if isinstance(values, list) else None
    if row is not None:
        raise ValueError(
            f"A column of a Hugging Face dataset has None in row {row}, {values[row]!r}. Drop the rows from the dataset first: "
            "dataset.filter(lambda row: row[name] is not None), or None not in row[name] for a column of lists."
        )
    return values


def has_none(value: Any) -> bool:
    """Return whether ``value`` is None, or a list with None, nested or not."""
    if not isinstance(value, list):
        return value is None
    return None in value or (bool(value) and isinstance(value[0], list) and any(map(has_none, value)))


def as_labels_array(value: Any) -> Any:
    """Return a column of text of polars, Arrow or Hugging Face as an array of objects; anything else as it is."""
    if _is_dataset_column(value):
        return value[:]
    if library_of(value) not in READERS:
        return value
    if is_frame(value) and len(get_names(value)) == 1:
        value = get_column(value, get_names(value)[0])
    if not is_series(value) or READERS[library_of(value)].kind(value) != "text":
        return value
    return np.array(READERS[library_of(value)].as_list(value), dtype=object)


def reads(value: Any) -> bool:
    """Return whether ``as_array`` reads ``value``."""
    return library_of(value) in READERS or _is_dataset_column(value)


def find_categories(column: Any) -> Any:
    """Return the categories of a column in the order that the user gave them, or None."""
    dtype = getattr(column, "dtype", None)
    # A Categorical of polars has the categories of all columns.
    if library_of(column) == "polars" and type(dtype).__name__ != "Enum":
        return None
    return getattr(dtype, "categories", None)


def as_values(column: Any) -> Array:
    """Return the values of a column of any kind, with None or NaN where there is none."""
    if library_of(column) == "pyarrow":
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.asarray(column[:] if _is_dataset_column(column) else column.to_numpy())


def row_checksum(dataset: Any) -> int | None:
    """Return a checksum of the first and the last row of a Hugging Face dataset as it is stored; None for other datasets."""
    if library_of(dataset) != "datasets" or not hasattr(dataset, "with_format") or not hasattr(dataset, "__getitem__"):
        return None
    rows = dataset.with_format("arrow")[[0, len(dataset) - 1]]
    return zlib.crc32(repr(rows.to_pylist()).encode())


def has_shuffle_buffer(dataset: Any) -> bool:
    """Return whether ``dataset`` is a stream of Hugging Face with a shuffle buffer, whose content is not part of its state."""
    if library_of(dataset) != "datasets":
        return False
    stage = getattr(dataset, "_ex_iterable", None)
    while stage is not None and getattr(stage, "buffer_size", 0) < 2:
        stage = getattr(stage, "ex_iterable", None)
    return stage is not None


def refuse_column_names(x: Any, **arguments: Any) -> None:
    """Raise a ``TypeError`` if one of ``arguments`` is the name of a column of the frame ``x`` instead of its values."""
    for name, value in arguments.items():
        if isinstance(value, str) and is_frame(x) and value in get_names(x):
            rest, column = _split_off(x, value)
            raise TypeError(
                f"{name} must have the values for each row, received the name of a column, {value!r}. Pass {name}={column}, and "
                f"{rest} as x."
            )


def refuse_no_targets(frame: Any) -> NoReturn:
    """Raise the ``ValueError`` of a ``frame`` that ``fit`` received without targets."""
    names = get_names(frame)
    name = next((name for name in names if str(name).lower() in LABEL_KEYS), None)
    rest, column = _split_off(frame, (names or ["target"])[-1] if name is None else name)
    condition = f" if the targets are in {column}" if name is None else ""
    raise ValueError(
        f"fit() received a frame without targets. Pass fit({rest}, {column}){condition}. To reconstruct the inputs, pass "
        "fit(frame, frame)."
    )


def _split_off(frame: Any, name: Any) -> tuple[str, str]:
    """Return the code for a frame without the column ``name``, and that for the column."""
    drop = {"polars": "drop({!r})", "pyarrow": "drop_columns({!r})"}.get(library_of(frame), "drop(columns={!r})")
    return f"frame.{drop.format(name)}", f"frame[{name!r}]"


def refuse_unread(name: str, value: Any) -> None:
    """Raise a ``TypeError`` if ``value`` must be read or selected first: a lazy frame, a reader, or a dict of splits."""
    kind = (library_of(value), type(value).__name__)
    if kind in UNREAD:
        raise TypeError(f"Expected data in {name}, received {kind[1]} of {kind[0]}. {UNREAD[kind].format(name=name)}")
    if kind in SPLITS:
        splits = list(value)
        raise TypeError(
            f"Expected one data set in {name}, but {kind[1]} has the splits {splits}. Pass one of them, for example "
            f"dataset[{(splits or ['train'])[0]!r}]."
        )


# What holds no values yet, and how to read it.
UNREAD = {
    ("polars", "LazyFrame"): "Run its query: {name}.collect().",
    ("polars", "Expr"): "Select it from a frame: frame.select({name}).",
    ("pyarrow", "RecordBatchReader"): "Read it: {name}.read_all().",
    ("scipy", "dok_array"): "Convert it: {name}.tocsr().",
    ("scipy", "dok_matrix"): "Convert it: {name}.tocsr().",
    ("datasets", "IterableColumn"): "Pass the whole stream, whose columns go to the arguments of forward by name.",
}
SPLITS = {("datasets", "DatasetDict"), ("datasets", "IterableDatasetDict")}


# What the values of a column are, by the dtype of polars.
POLARS_KINDS = {
    "Boolean": "numbers", "Null": "numbers", "Array": "rows", "List": "lists",
    "String": "text", "Categorical": "text", "Enum": "text",
}  # fmt: skip


class _Polars:
    name = "polars"
    encode = "frame.to_dummies({names}) for text, or pl.col(name).to_physical() for the numbers of categories"
    fill = "frame.fill_null(strategy='mean')"
    fill_series = "series.fill_null(0)"
    to_rows = "series.list.to_array(length), or pad the rows to one length"

    @staticmethod
    def kind(column: Any) -> str:
        if column.dtype.is_numeric():
            return "numbers"
        return POLARS_KINDS.get(str(column.dtype).partition("(")[0], "others")

    @staticmethod
    def count_nulls(column: Any) -> int:
        return int(column.null_count())

    @staticmethod
    def numbers(column: Any) -> Array:
        is_decimal = str(column.dtype).startswith("Decimal")
        return np.asarray((column.cast(float) if is_decimal else column).to_numpy())

    @staticmethod
    def rows(column: Any) -> Array:
        return np.asarray(column.to_numpy())

    @staticmethod
    def as_list(column: Any) -> list[Any]:
        return list(column.to_list())


class _Arrow:
    name = "Arrow"
    encode = (
        "pandas.get_dummies(table.to_pandas()) for text, or column.dictionary_encode() for the numbers of categories"
    )
    fill = "pyarrow.compute.fill_null(table['{name}'], 0)"
    fill_series = "pyarrow.compute.fill_null(column, 0)"
    to_rows = "column.cast(pyarrow.list_(pyarrow.float32(), length)), or pad the rows to one length"

    @staticmethod
    def kind(column: Any) -> str:
        import pyarrow

        types, dtype = pyarrow.types, column.type
        if types.is_dictionary(dtype):
            dtype = dtype.value_type
            return "text" if types.is_string(dtype) or types.is_large_string(dtype) else "others"
        if any(test(dtype) for test in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)):
            return "numbers"
        if types.is_null(dtype):
            return "numbers"
        if types.is_fixed_size_list(dtype):
            return "rows"
        if types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype):
            return "text"
        return "lists" if types.is_list(dtype) or types.is_large_list(dtype) else "others"

    @staticmethod
    def count_nulls(column: Any) -> int:
        return int(column.null_count)

    @staticmethod
    def numbers(column: Any) -> Array:
        import pyarrow

        column = column.cast("float64") if pyarrow.types.is_decimal(column.type) else column
        return np.asarray(column.to_numpy(zero_copy_only=False))

    @staticmethod
    def rows(column: Any) -> Array:
        column = column.combine_chunks() if hasattr(column, "chunks") else column
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values).reshape(len(column), -1)

    @staticmethod
    def as_list(column: Any) -> list[Any]:
        return list(column.to_pylist())


READERS: dict[str, Any] = {"polars": _Polars, "pyarrow": _Arrow}


def _read_frame(frame: Any) -> Array:
    reader, names = READERS[library_of(frame)], get_names(frame)
    columns = get_columns(frame)
    others = [(name, column) for name, column in zip(names, columns, strict=True) if reader.kind(column) != "numbers"]
    if others:
        _refuse_others(reader, others)
    counts = [(name, reader.count_nulls(column)) for name, column in zip(names, columns, strict=True)]
    found = [f"{name!r} ({count} rows)" for name, count in counts if count]
    if found:
        first = next(name for name, count in counts if count)
        raise ValueError(
            f"The frame has nulls in the columns {_list(found)}. Fill them, for example with {reader.fill.format(name=first)}, "
            "or drop the rows, in the targets too."
        )
    values = np.empty((len(columns[0]) if columns else 0, len(columns)))
    for i, column in enumerate(columns):
        values[:, i] = reader.numbers(column)
    return values


def _refuse_others(reader: Any, others: list[tuple[str, Any]]) -> NoReturn:
    def show(name: str, column: Any) -> str:
        value = next((value for value in reader.as_list(column[:100]) if value is not None), None)
        return f"{name!r} ({value!r})"

    found = [show(name, column) for name, column in others]
    encode = reader.encode.format(names=[name for name, _ in others][:MAX_FOUND])
    raise TypeError(
        f"Expected numbers in the columns of the frame, but these have other values: {_list(found)}. Drop them, or encode them: "
        f"{encode}. Rows of numbers, such as embeddings, are a separate input: fit({{'tabular': frame, 'text': column}}, y)."
    )


def _read_series(column: Any) -> Array:
    reader = READERS[library_of(column)]
    kind = reader.kind(column)
    if kind in ("lists", "others"):
        fix = reader.to_rows if kind == "lists" else "numbers, for example a date as days since the first one"
        raise TypeError(f"Expected numbers in a column of {reader.name}, received {_dtype(column)}. Convert it: {fix}.")
    count = reader.count_nulls(column)
    if count:
        raise ValueError(
            f"A column of {reader.name} has nulls in {count} of {len(column)} rows. Fill them, for example with "
            f"{reader.fill_series}, or drop the rows, in the other columns too."
        )
    if kind == "text":
        return np.array(reader.as_list(column), dtype=object)
    values: Array = reader.rows(column) if kind == "rows" else reader.numbers(column)
    return values


def _dtype(column: Any) -> str:
    return str(getattr(column, "dtype", None) or column.type)


def _list(found: list[str]) -> str:
    more = f" and {len(found) - MAX_FOUND} more" if len(found) > MAX_FOUND else ""
    return f"{', '.join(found[:MAX_FOUND])}{more}"
