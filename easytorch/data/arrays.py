"""Arrays as one dataset, and the meaning of lists, tuples and dicts as data.

The first row that matches decides. "Array" stands for a tensor, a NumPy array, a sparse matrix, a frame or a series.

==================  ====================================================  ==============================================
call                ``x``                                                 meaning
==================  ====================================================  ==============================================
``fit(x)``          tuple of two or three                                 ``(x, y)`` or ``(x, y, sample_weight)``
``fit(x)``          another tuple of arrays                               several inputs
``fit(x)``          dict of arrays                                        columns: inputs and targets by name
``fit(x)``          list of pairs with one number as target               error: samples, not batches
``fit(x)``          list of two arrays with equal rows, unequal ndim      error: ``(x, y)``, not batches
``fit(x)``          another list                                          batches
``fit(x, y)``       list of numbers, nested or not                        one array
``fit(x, y)``       list of arrays of one shape, one for each target      samples, the rows of one array
``fit(x, y)``       another list, tuple or dict                           several inputs
``predict(x)``      tuple of arrays, at most one for each argument        several inputs
``predict(x)``      list of arrays that the module took as one input      the one input
``predict(x)``      list of numbers, nested or not                        one array
``predict(x)``      list of tuples, one array for each argument           batches of several inputs
``predict(x)``      list of arrays, one for each argument                 several inputs
``predict(x)``      list of 1-D float arrays of one length                samples, the rows of one array
``predict(x)``      list of other arrays of one shape                     error: inputs, samples or batches
``predict(x)``      another list                                          batches
``split(x)``        list of more than three, or not of arrays             samples
``split(x)``        another list, tuple or dict                           several inputs, or ``(x, y)``
==================  ====================================================  ==============================================

``evaluate`` reads data as ``fit`` does. The arguments are those of the module's ``forward`` that have no default.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch._utils.warnings import warn
from easytorch.data.batch import NUMBERS, PAD_HINT, from_numpy, unpack
from easytorch.data.sparse import SparseRows, as_dense, has_sparse, is_sparse
from easytorch.data.tables import as_array, get_names, is_frame, is_pandas, is_series, library_of, select_columns

if TYPE_CHECKING:
    from easytorch.typing import TargetLike

# Columns of a table whose names are reported; a row of more values is no row of a table.
MAX_COLUMNS = 1000
# A longer list has rows, not inputs.
MAX_INPUTS = 64
# Columns with wrong values that a message names.
MAX_FOUND = 10
COLLATE_DETECTION = (
    "A detector takes a list of images and a list of dicts. Pass DataLoader(samples, batch_size=2, collate_fn=lambda batch: "
    "tuple(zip(*batch)))."
)


class ArrayDataset(Dataset[Any]):
    """A dataset of tensors in any nesting; a sample has one row of each tensor.

    Args:
        tree: Tensors, arrays or frames of equal length, in dicts, lists and tuples.

    Attributes:
        tree: The same as tensors; a sparse matrix as ``SparseRows``, whose rows become dense when they are loaded.

    Raises:
        ValueError: If the lengths differ.
        TypeError: If a value is not numeric.

    Examples:
        >>> dataset = ArrayDataset((x, y))
        >>> inputs, target = dataset[0]
    """

    def __init__(self, tree: TargetLike) -> None:
        self.tree = as_tensors(tree)
        lengths = sorted({len(leaf) for leaf in leaves(self.tree) if isinstance(leaf, (Tensor, SparseRows))})
        if len(lengths) > 1:
            raise ValueError(
                "Inputs, targets and weights have different lengths: expected one row for each sample in all of them, "
                f"received {' and '.join(map(str, lengths))} rows in {describe(self.tree)}. Pass x, y and "
                "sample_weight with one row per sample."
            )
        self.size = lengths[0] if lengths else 0
        self.is_dense = not has_sparse(leaves(self.tree))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return map_leaves(lambda leaf: None if leaf is None else leaf[index], self.tree)


class BatchedArrayDataset(ArrayDataset):
    """An ``ArrayDataset`` that returns all rows of a batch at once; needs ``collate_fn=as_batch``."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the rows at ``indices`` as a batch; a ``DataLoader`` calls this method if it exists."""
        rows = torch.as_tensor(indices)
        return map_leaves(lambda leaf: None if leaf is None else leaf[rows.to(leaf.device)], self.tree)


class WrapperDataset(Dataset[Any]):
    """A dataset of this package around a dataset of the user, with the same samples.

    Args:
        dataset: The dataset of the user.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)


def as_batch(rows: Any) -> Any:
    """Return ``rows`` unchanged: ``BatchedArrayDataset`` returns batches already."""
    return rows


def load_samples(dataset: Any, indices: Sequence[Any]) -> Any:
    """Return the samples at ``indices``, with one call if ``dataset`` has ``__getitems__``."""
    load_together = getattr(dataset, "__getitems__", None)
    return load_together(indices) if load_together else [dataset[index] for index in indices]


def as_tensors(tree: Any) -> Any:
    """Return ``tree`` with each array, frame and list of numbers as a tensor."""
    tensor = _list_as_tensor(tree) if isinstance(tree, list) and tree else None
    if tensor is not None:
        return tensor
    if isinstance(tree, Mapping):
        return {key: as_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(as_tensors(value) for value in tree)
    return map_leaves(as_tensor, tree)


def _list_as_tensor(items: list[Any]) -> Tensor | None:
    """Return a list of numbers, nested or not, as a tensor; None for other lists."""
    if all(isinstance(leaf, (int, float, str, np.generic)) for leaf in leaves(items)):
        return from_numpy(_list_values(items))
    # list(y) of a tensor y
    if all(isinstance(item, Tensor) and not item.ndim for item in items):
        return torch.stack(items)
    return None


def as_tensor(leaf: Any) -> Any:
    """Return an array, frame, series or list of numbers as a tensor; a frame's columns become floats."""
    if leaf is None:
        return None
    if is_sparse(leaf):
        return SparseRows(leaf)
    tensor = leaf if isinstance(leaf, Tensor) else _convert(as_array(leaf))
    if tensor.ndim == 0:
        raise ValueError(
            f"Expected one row for each sample, received the single number {tensor.item()}. Pass an array, for example "
            f"[{tensor.item()}]."
        )
    return tensor


# How to read a file, by the end of its name.
READERS = {
    (".csv", ".tsv", ".txt"): "frame = pandas.read_csv({path!r}), then fit(frame[columns], frame['target'])",
    (".parquet",): "frame = pandas.read_parquet({path!r}), then fit(frame[columns], frame['target'])",
    (".xlsx", ".xls"): "frame = pandas.read_excel({path!r}), then fit(frame[columns], frame['target'])",
    (".json", ".jsonl"): "frame = pandas.read_json({path!r}), then fit(frame[columns], frame['target'])",
    (".npy", ".npz"): "x = numpy.load({path!r})",
    (".pt", ".pth"): "x = torch.load({path!r}) for tensors; for a model Model(net).load({path!r})",
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"): (
        "image = PIL.Image.open({path!r}), then x = torchvision.transforms.functional.to_tensor(image)[None], a batch of one"
    ),
}
READ_FOLDER = "dataset = torchvision.datasets.ImageFolder({path!r}, transform) for images, one folder per class"
CONVERT_IMAGE = (
    "x = torchvision.transforms.functional.to_tensor(image)[None], a batch of one, in the size of the training images"
)


def check_is_read(name: str, value: Any) -> None:
    """Raise a ``TypeError`` if ``value`` is the name of a file, or an image that is not an array yet."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if is_image(first):
        raise TypeError(f"Expected numbers in {name}, received a PIL image. Convert it: {CONVERT_IMAGE}.")
    if isinstance(value, (str, Path)):
        suffix = Path(value).suffix.lower()
        reader = next((reader for suffixes, reader in READERS.items() if suffix in suffixes), READ_FOLDER)
        raise TypeError(
            f"Expected data in {name}, received the name {str(value)!r}. Read it: {reader.format(path=str(value))}."
        )


def is_image(value: Any) -> bool:
    """Return whether ``value`` is an image of PIL."""
    return any(cls.__module__.partition(".")[0] == "PIL" for cls in type(value).__mro__)


def _convert(leaf: Any) -> Tensor:
    check_is_read("the data", leaf)
    if isinstance(leaf, Tensor):  # a column of a Hugging Face dataset
        return leaf
    if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy"):
        return from_numpy(_frame_values(leaf))
    if hasattr(leaf, "to_numpy"):
        return from_numpy(leaf.to_numpy())
    if isinstance(leaf, np.ndarray):
        return from_numpy(leaf)
    if isinstance(leaf, (Sequence, float, int)) and not isinstance(leaf, str):
        return from_numpy(_list_values(leaf))
    raise TypeError(
        f"Expected numbers, received {leaf!r} of type {type(leaf).__name__}. Pass tensors, arrays or frames, for example "
        "fit(torch.tensor(x), torch.tensor(y))."
    )


def _frame_values(frame: Any) -> np.ndarray[Any, Any]:
    found = [
        f"{str(name)!r} ({value!r} in row {row})"
        for name, dtype, column in zip(frame.columns, frame.dtypes, map(np.asarray, _columns_of(frame)), strict=True)
        if getattr(dtype, "kind", "O") not in "biuf"
        for row, value in itertools.islice(_find_others(column), 1)
    ]
    if found:
        more = f" and {len(found) - MAX_FOUND} more" if len(found) > MAX_FOUND else ""
        raise TypeError(
            f"Expected numbers in the columns of the frame, but these have other values: {', '.join(found[:MAX_FOUND])}{more}. "
            "Drop them, or encode them with pandas.get_dummies(frame)."
        )
    return np.asarray(frame.to_numpy(dtype="float64", na_value=np.nan))


def _columns_of(frame: Any) -> Iterator[Any]:
    return (frame.iloc[:, i] for i in range(frame.shape[1]))


def _find_others(column: np.ndarray[Any, Any]) -> Iterator[tuple[int, Any]]:
    """Yield the row and the value of whatever is neither a number nor missing."""
    values = enumerate(column.tolist())
    return ((row, value) for row, value in values if not isinstance(value, NUMBERS) and not _is_missing(value))


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType"


def _list_values(numbers: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(numbers)
    # NumPy reports an "inhomogeneous shape".
    except ValueError as error:
        raise ValueError(f"The rows of a list have different lengths: expected equal lengths. {PAD_HINT}") from error


def is_array(leaf: Any) -> bool:
    """Return whether ``leaf`` is a tensor, an array, a sparse matrix, a frame or a series."""
    return isinstance(leaf, (Tensor, np.ndarray)) or is_frame(leaf) or is_series(leaf) or is_sparse(leaf)


def is_map_style(x: Any) -> bool:
    """Return whether ``x`` is a dataset, of torch or another library, whose samples have an index."""
    if isinstance(x, Dataset):
        return True
    return hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, (list, tuple, Mapping, str, bytes))


def as_torch_samples(dataset: Any) -> Any:
    """Return a Hugging Face dataset with tensors as samples, unless a transform makes them; anything else as it is.

    Without a format its samples have lists of numbers, of which ``default_collate`` makes a list of tensors.
    """
    if library_of(dataset) != "datasets" or not hasattr(dataset, "with_format") or has_custom_transform(dataset):
        return dataset
    return dataset.with_format("torch")


def has_custom_transform(dataset: Any) -> bool:
    """Return whether ``dataset`` is a Hugging Face dataset with a user function as transform (``with_transform``)."""
    format_ = getattr(dataset, "format", None)
    return isinstance(format_, Mapping) and format_.get("type") == "custom"


# fit and evaluate


def unpack_tuple(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Return inputs, targets and sample weights, which may be one tuple in ``x``."""
    if not isinstance(x, tuple) or y is not None or len(x) not in (2, 3) or hasattr(x, "_fields"):
        return x, y, sample_weight
    inputs, targets, *weights = x
    return inputs, targets, weights[0] if weights and sample_weight is None else sample_weight


def is_arrays(x: Any, y: Any) -> bool:
    """Return whether ``x``, with or without targets ``y``, holds all rows, not batches."""
    if isinstance(x, Mapping):
        # A dict of lists of numbers needs targets.
        numbers = () if y is None else (int, float, np.generic)
        return all(is_array(leaf) or isinstance(leaf, numbers) for leaf in leaves(x))
    if isinstance(x, (list, tuple)):
        return y is not None or (isinstance(x, tuple) and len(x) > 0 and all(map(is_array, leaves(x))))
    return is_array(x)


def check_rows(**parts: Any) -> None:
    """Raise a ``ValueError`` if two frames have the same row labels in another order."""
    frames = [(name, frame) for name, part in parts.items() for frame in _find_frames(part)]
    for name, frame in frames[1:]:
        first_name, first = frames[0]
        if (
            len(frame) == len(first)
            and not frame.index.equals(first.index)
            and frame.index.sort_values().equals(first.index.sort_values())
        ):
            first_name, name = (
                (first_name, name) if first_name != name else (f"a frame of {name}", f"another frame of {name}")
            )
            raise ValueError(
                f"The rows of {first_name} and {name} have the same labels in another order, and rows are matched by "
                f"position. Use {name}.loc[{first_name}.index], or reset_index(drop=True) in both if the positions match."
            )


def _find_frames(part: Any) -> Iterator[Any]:
    """Yield the frames and series of pandas in ``part``; long lists are rows, not inputs."""
    if is_pandas(part):
        yield part
    elif isinstance(part, Mapping) or (isinstance(part, (list, tuple)) and len(part) <= MAX_INPUTS):
        for inner in part.values() if isinstance(part, Mapping) else part:
            yield from _find_frames(inner)


def column_names(x: Any) -> list[Any] | None:
    """Return the column names of the inputs ``x``, or of the inputs in ``(x, y)``; None if they are not a frame."""
    x = x[0] if isinstance(x, tuple) and x else x
    return get_names(x) if is_frame(x) else None


def match_columns(x: Any, names: list[Any] | None) -> Any:
    """Return ``x``, or ``(x, y)``, with the columns of a frame in the order of ``names``, those of ``fit``.

    Raises:
        ValueError: If a column is missing, or there is another one.
    """
    columns = column_names(x)
    if names is None or columns is None or columns == names:
        return x
    if isinstance(x, tuple):
        return (match_columns(x[0], names), *x[1:])
    missing, unknown = [name for name in names if name not in columns], [name for name in columns if name not in names]
    if missing or unknown:
        parts = [f"lacks {missing[:5]}" * bool(missing), f"has the unknown columns {unknown[:5]}" * bool(unknown)]
        raise ValueError(f"The frame {' and '.join(filter(None, parts))}. Pass the columns of fit(): {names[:20]}.")
    twice = next((name for name in columns if columns.count(name) > 1 or names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"The columns of the frame have another order than in fit(), and {twice!r} is the name of several. Pass the columns "
            f"in the order of fit(), {names[:20]}, or give each a different name."
        )
    return select_columns(x, names)


def keep_column_order(x: Any, names: list[Any] | None) -> Any:
    """Return ``x``, or ``(x, y)``, with a frame that has the columns ``names`` of an earlier fit in their order."""
    columns = column_names(x)
    is_same = columns is not None and names is not None and len(columns) == len(names) and set(columns) == set(names)
    return match_columns(x, names) if is_same else x


def check_finite(tree: Any, columns: list[Any] | None) -> None:
    """Raise a ``ValueError`` if inputs, targets or weights of arrays in memory have NaN or infinite values.

    Args:
        tree: The arrays as tensors.
        columns: Names of the columns of the inputs, if they were a frame.
    """
    batch = unpack(tree) if isinstance(tree, (tuple, list)) else None
    parts = (
        {"data": tree}
        if batch is None
        else {"inputs": batch.x, "targets": batch.y, "sample weights": batch.sample_weight}
    )
    for name, part in parts.items():
        for leaf in leaves(part):
            if isinstance(leaf, SparseRows):
                leaf = leaf.sums_of_rows()
            if (
                not isinstance(leaf, Tensor)
                or not (leaf.is_floating_point() or leaf.is_complex())
                or leaf.isfinite().all()
            ):
                continue
            where = _describe_rows(leaf, columns if name == "inputs" else None)
            raise ValueError(
                f"The {name} have values that are not finite (NaN or infinity): {where}. Fill them, for example with "
                "frame.fillna(frame.median()) of pandas or frame.fill_nan(0) of polars, or drop the rows. If the module handles "
                "them, pass DataLoader(TensorDataset(x, y), batch_size=32), which is not checked."
            )


def _describe_rows(values: Tensor, columns: list[Any] | None) -> str:
    bad = ~values.isfinite()
    if values.ndim != 2 or values.shape[1] > MAX_COLUMNS:
        rows = bad.flatten(1).any(1) if values.ndim > 1 else bad
        return f"{int(rows.sum())} of {len(values)} rows, the first one is row {int(rows.int().argmax())}"
    names = columns or [f"{i}" for i in range(values.shape[1])]
    counts = bad.sum(0).tolist()
    found = [f"{str(name)!r} ({count} rows)" for name, count in zip(names, counts, strict=True) if count]
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return f"columns {', '.join(found[:10])}{more}"


def stack_samples(x: Any, y: Any) -> tuple[Any, Any]:
    """Return lists of samples ``x`` and targets ``y`` as one array each; anything else unchanged."""
    if not _may_be_samples(x, y):
        return x, y
    if isinstance(y, list) and any(np.ndim(target) for target in y):
        # Several targets have one row for each sample, so their length is that of the inputs.
        return (_stack(x), _stack(y)) if _have_one_shape(y) and len(x[0]) != len(y[0]) else (x, y)
    # Several inputs have one row for each sample, so their length is that of y.
    return (x, y) if len(x[0]) == len(y) else (_stack(x), y)


def _may_be_samples(x: Any, y: Any) -> bool:
    """Return whether ``x`` is a list of arrays of one shape, as many as there are targets."""
    if not isinstance(x, list) or len(x) < 2 or not _have_one_shape(x):
        return False
    return (is_array(y) or isinstance(y, list)) and not is_sparse(y) and len(y) == len(x)


def _have_one_shape(arrays: list[Any]) -> bool:
    """Return whether ``arrays`` are arrays of one shape, with at least one dimension."""
    if not all(isinstance(array, (Tensor, np.ndarray)) and array.ndim for array in arrays):
        return False
    return len({tuple(array.shape) for array in arrays}) == 1


def _stack(arrays: list[Any]) -> Any:
    return torch.stack(arrays) if all(isinstance(array, Tensor) for array in arrays) else np.stack(arrays)


def check_batches(batches: Sequence[Any]) -> None:
    """Raise a ``ValueError`` if a list without targets is empty, or does not hold batches."""
    if not len(batches):
        raise ValueError(
            "The data is empty: expected a list of batches, received a list of length 0. Check how it was created."
        )
    if is_detection_sample(batches[0]):
        raise ValueError(
            f"Expected a list of batches, received a list of samples: {describe(batches[0])}. {COLLATE_DETECTION}"
        )
    if _is_sample(batches[0]):
        raise ValueError(
            f"Expected a list of batches, received a list of samples: its first item is {describe(batches[0])}. Pass "
            "DataLoader(samples, batch_size=32, shuffle=True)."
        )
    if _are_inputs_and_targets(batches):
        raise ValueError(
            f"Expected a list of batches, but [{describe(batches[0])}, {describe(batches[1])}] looks like inputs and targets. "
            "Pass them as a tuple, (x, y)."
        )


def is_detection_sample(item: Any) -> bool:
    """Return whether ``item`` is one image with a dict of its boxes."""
    if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[1], Mapping):
        return False
    return "boxes" in item[1] and isinstance(item[0], (Tensor, np.ndarray)) and item[0].ndim <= 3


def _is_sample(item: Any) -> bool:
    """Return whether ``item`` is one sample with one number as target."""
    numbers = (int, float, np.generic, Tensor)
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], numbers)):
        return False
    x, y = item
    return not np.ndim(y) and (not isinstance(y, Tensor) or np.ndim(x) < 2)


def _are_inputs_and_targets(batches: Sequence[Any]) -> bool:
    if len(batches) != 2 or not all(map(is_array, batches)):
        return False
    inputs, targets = map(np.shape, batches)
    return inputs[:1] == targets[:1] and len(inputs) != len(targets)


# predict


def arrays_to_device(x: Any, to_device: Callable[[Any], Any]) -> Any:
    """Return inputs ``x`` with NumPy arrays and frames as tensors on the device; inputs without any are unchanged."""
    if isinstance(x, Tensor) or not any(is_array(leaf) and not isinstance(leaf, Tensor) for leaf in leaves(x)):
        return x
    return to_device(copy_arrays(as_dense(map_leaves(lambda leaf: as_tensor(leaf) if is_array(leaf) else leaf, x)), x))


def copy_arrays(batch: Any, source: Any) -> Any:
    """Return ``batch`` without memory of the arrays and frames in ``source``, which a module may change in place.

    Tensors in ``source`` stay as they are: torch gives a module the tensor itself.
    """
    passed = {id(leaf) for leaf in leaves(source) if isinstance(leaf, Tensor)}
    return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and id(leaf) not in passed else leaf, batch)


def as_predict_data(x: Any, signature: ForwardSignature, list_length: int = 0) -> Any:
    """Return ``x`` as data without targets: as many arrays as the module takes are inputs.

    Args:
        x: The data that ``predict`` received.
        signature: The arguments of the module.
        list_length: The length of the list that the module took as its only input before, 0 if it took none.

    Raises:
        ValueError: If a list may mean inputs, samples or batches.
    """
    if is_input_list(x, list_length):
        return (x,)
    if isinstance(x, list):
        return _read_list(x, signature)
    if isinstance(x, tuple) and 1 < len(x) <= signature.positional and all(map(is_array, x)):
        _warn_if_optional(x, signature)
        return (x,)
    return x


def is_input_list(x: Any, length: int) -> bool:
    """Return whether ``x`` is a list of ``length`` arrays, which the module takes as one input."""
    return isinstance(x, list) and len(x) == length > 0 and all(map(is_array, x))


def _warn_if_optional(x: tuple[Any, ...], signature: ForwardSignature) -> None:
    """Warn if a tuple, which may be ``(x, y)``, is passed to an optional argument."""
    if signature.required < len(x) <= len(signature.names):
        warn(
            f"predict() passes the {len(x)} arrays of the tuple to the module as inputs, the last one as its optional argument "
            f"{signature.names[len(x) - 1]!r}. If it contains targets, pass only the inputs: predict(x)."
        )


def _read_list(x: list[Any], signature: ForwardSignature) -> Any:
    if isinstance(next(leaves(x), None), (int, float, np.generic)):
        return as_tensors(x)
    if signature.required > 1 and all(_are_arrays(batch, signature.required) for batch in x):
        return [(tuple(batch),) for batch in x]
    return _read_arrays(x, signature) if len(x) > 1 and all(map(is_array, x)) else x


def _are_arrays(batch: Any, count: int) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == count and all(map(is_array, batch))


def _read_arrays(arrays: list[Any], signature: ForwardSignature) -> Any:
    if signature.required == len(arrays):
        return (arrays,)
    if len({np.shape(array) for array in arrays}) > 1:
        return arrays
    # A batch of single integers is common, a batch of single floats is not: 1-D floats are the features of one sample.
    tensors = [as_tensor(array) for array in arrays]
    if all(tensor.ndim == 1 and tensor.is_floating_point() for tensor in tensors):
        return torch.stack(tensors)
    count = "one input" if len(signature.names) == 1 else f"{len(signature.names) or 'any number of'} inputs"
    raise ValueError(
        f"The module takes {', '.join([count, *map(repr, signature.names)])}, but predict() received a list of {len(arrays)} "
        f"arrays of one shape, {describe(arrays)}. Pass several inputs as a tuple, a list that is one input as "
        "predict((x,)), samples as one array, torch.stack(x), and batches as [(x1,), (x2,), ...]."
    )


# split


def is_sample_list(data: Any) -> bool:
    """Return whether ``data``, without targets, is a list of samples; a few arrays are inputs and targets."""
    return isinstance(data, list) and (len(data) > 3 or not all(map(is_array, data)))
