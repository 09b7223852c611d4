"""Text labels as class numbers, and class numbers as names.

``Model.class_names`` is a list with the name of each class number, a dict of such lists by output, or None. Names are sorted as
``sklearn.preprocessing.LabelEncoder`` sorts them; the categories of a pandas categorical keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from easytorch._utils.forward_signature import LABEL_KEYS
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch.data.data_sets import DataSets
from easytorch.data.tables import as_labels_array, find_categories, reads

# Names in a message.
MAX_NAMES = 8
SET_NAMES = "set model.class_names = [...], with the name of each class"


class ClassNames:
    """The names of the classes in one call of a model.

    Args:
        names: The names that the model has: a list, a dict of lists by output, or None.

    Attributes:
        names: The names, with those that ``learn`` has found.
        found: The names of the outputs whose labels were text in this call, None if no label was text.

    Raises:
        ValueError: If ``names`` are no distinct texts.
    """

    def __init__(self, names: Any) -> None:
        self.names = read_names(names)
        self.found: Any = None

    def learn(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        """Return inputs and targets with class numbers instead of text, whose names are learned if the model has none."""
        return self._encode_data(x, y, learns=True)

    def encode(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        """Return inputs and targets with class numbers instead of text.

        Raises:
            ValueError: If a label is unknown.
        """
        return self._encode_data(x, y, learns=False)

    def encode_validation(self, data: Any) -> Any:
        """Return ``validation_data`` with class numbers instead of text."""
        if isinstance(data, DataSets):
            return data.convert(self.encode_validation, "validation_data")
        try:
            return self.encode(data)[0]
        except ValueError as error:
            raise ValueError(f"In validation_data: {error}") from error

    def number_keys(self, class_weight: Any) -> Any:
        """Return ``{class: weight}`` with class numbers instead of names."""
        weights = class_weight.to_dict() if hasattr(class_weight, "to_dict") else class_weight
        if not isinstance(weights, Mapping) or not isinstance(self.names, list):
            return class_weight
        if not any(key in self.names for key in weights):  # they are class numbers
            return class_weight
        unknown = [key for key in weights if key not in self.names]
        if unknown:
            raise ValueError(
                f"class_weight has a weight for {unknown[0]!r}, which is no class.{did_you_mean(unknown[0], self.names)} The "
                f"classes are {quote_list(self.names, MAX_NAMES)}."
            )
        return {self.names.index(key): weight for key, weight in weights.items()}

    def _encode_data(self, x: Any, y: Any, learns: bool) -> tuple[Any, Any]:
        if y is not None:
            return x, self._encode_targets(y, learns)
        if isinstance(x, tuple) and len(x) in (2, 3) and not hasattr(x, "_fields"):
            return (x[0], self._encode_targets(x[1], learns), *x[2:]), None
        key = _find_text_key(x)
        return (x if key is None else {**x, key: self._encode_targets(x[key], learns)}), None

    def _encode_targets(self, y: Any, learns: bool) -> Any:
        if is_text(y):
            return self._encode_labels(y, None, learns)
        if isinstance(y, Mapping):
            return {key: self._encode_labels(part, key, learns) if is_text(part) else part for key, part in y.items()}
        if isinstance(y, (list, tuple)) and any(not isinstance(part, str) and is_text(part) for part in y):
            outputs = ((f"output_{i}", part) for i, part in enumerate(y, 1))
            return type(y)([self._encode_labels(part, key, learns) if is_text(part) else part for key, part in outputs])
        return y

    def _encode_labels(self, labels: Any, output: str | None, learns: bool) -> Any:
        """Return the class number of each of ``labels``, the targets of ``output``, None if there is only one."""
        if hasattr(labels, "columns") and hasattr(labels, "iloc") and len(labels.columns) == 1:
            labels = labels.iloc[:, 0]
        values, categories = _read_labels(labels)
        names = names_of(self.names, output)
        if names is None and not learns:
            raise ValueError(
                f"The labels are text, such as {str(values[0])!r}, but the model has no class names. Call fit() with such labels "
                f"first, or {SET_NAMES}."
            )
        if names is None:
            names = categories or sorted(set(values))
            self.names = names if output is None else {**(self.names or {}), output: names}
        self.found = names if output is None else {**(self.found or {}), output: names}
        numbers = _number_labels(values, names)
        # The rows of a series are compared with those of the inputs.
        return type(labels)(numbers, index=labels.index) if hasattr(labels, "iloc") else numbers


def read_names(names: Any) -> Any:
    """Return ``names``, which a user may have set, as a list, as a dict of lists by output, or as None.

    Raises:
        ValueError: If they are no distinct texts.
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        return {output: read_names(part) for output, part in names.items()}
    listed = [] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if not listed or not all(isinstance(name, str) for name in listed) or len(set(listed)) < len(listed):
        raise ValueError(
            f"model.class_names must be a list of distinct texts, received {names!r}. Set one name for each class number, such "
            "as ['cat', 'dog']."
        )
    return [str(name) for name in listed]


def names_of(names: list[str] | Mapping[Any, list[str]] | None, output: str | None) -> list[str] | None:
    """Return the names of the classes of ``output``, of the only one if it is None; None if there are none."""
    if not isinstance(names, Mapping):
        return names
    if output is None and len(names) == 1:
        output = next(iter(names))
    return names.get(output)


def name_classes(classes: Any, names: list[str] | None, is_binary: bool) -> Any:
    """Return an array with the name of each class number.

    Args:
        classes: Class numbers, ``[N, ...]``.
        names: The name of each class; None for class numbers as they are.
        is_binary: Whether each number is 0 or 1 for one label. Several labels of a sample have no names; of one, ``[N, 1]``, the
            names are ``[N]``.

    Raises:
        ValueError: If a class has no name.
    """
    if names is None or not isinstance(classes, np.ndarray):
        return classes
    if is_binary:
        if len(names) != 2 or (classes.ndim == 2 and classes.shape[1] > 1):
            return classes
        classes = classes[:, 0] if classes.ndim == 2 else classes
    if classes.size and int(classes.max()) >= len(names):
        raise ValueError(
            f"model.class_names has {len(names)} names, but the module predicts class {int(classes.max())}. Set one name for "
            "each output, or pass names=False for class numbers."
        )
    return np.asarray(names)[classes]


def count_names(names: Sequence[str]) -> str:
    """Return the number of ``names``, and the names, for a message."""
    return f"{len(names)} class{'es' * (len(names) != 1)}, {quote_list(names, MAX_NAMES)}"


def number_batch(labels: Any, names: Any) -> Any:
    """Return the class numbers of ``labels``, text in a batch of a loader; anything else, or unknown labels, as they are."""
    only = names_of(names, None)
    if only is None or not is_text(labels):
        return labels
    values, _ = _read_labels(labels)
    return _number_labels(values, only) if set(values) <= set(only) else labels


def without_text_targets(x: Any) -> Any:
    """Return the data of ``predict`` without targets that are text."""
    if isinstance(x, tuple) and len(x) in (2, 3) and is_text(x[1]):
        return x[0]
    key = _find_text_key(x)
    return x if key is None else {name: value for name, value in x.items() if name != key}


def is_text(labels: Any) -> bool:
    """Return whether ``labels`` is a list, an array, a series or a frame of text, at least in part."""
    if isinstance(labels, (list, tuple)):
        labels = labels[:1] and [labels[0][0]] if _is_column(labels) else labels
        return any(isinstance(label, str) for label in labels)
    labels = as_labels_array(labels)
    if isinstance(labels, list):
        return is_text(labels)
    if not isinstance(labels, np.ndarray):
        if reads(labels) or not hasattr(labels, "to_numpy"):
            return False
        dtypes = labels.dtypes if hasattr(labels, "columns") else [labels.dtype]
        if {getattr(dtype, "kind", "O") for dtype in dtypes} <= set("biufcmM"):
            return False
        labels = np.asarray(labels.to_numpy())
    return labels.dtype.kind in "US" or (
        labels.dtype.kind == "O" and any(isinstance(label, (str, bytes)) for label in labels.flat)
    )


def _is_column(labels: Sequence[Any]) -> bool:
    """Return whether ``labels`` are rows with one label each."""
    return all(isinstance(row, (list, tuple)) and len(row) == 1 for row in labels)


def _find_text_key(x: Any) -> str | None:
    """Return the key of the targets in a dict of columns if they are text."""
    if not isinstance(x, Mapping):
        return None
    key = next((key for key in LABEL_KEYS if key in x), None)
    return key if key is not None and is_text(x[key]) else None


def _read_labels(labels: Any) -> tuple[list[str], list[str] | None]:
    """Return the labels, ``[N]``, and the categories if they are categorical."""
    categories = find_categories(labels)
    labels = as_labels_array(labels)
    if hasattr(labels, "to_numpy"):
        labels = labels.to_numpy()
    values = labels if isinstance(labels, np.ndarray) else np.array(labels, dtype=object)
    if values.dtype.kind == "S":
        values = values.astype("U")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(
            f"Text labels must be one name per sample, received text of shape {list(values.shape)}. Pass one column. For several "
            "labels per sample, pass zeros and ones [N, labels], and use loss='bce_with_logits'."
        )
    listed = values.tolist()
    others = [(row, label) for row, label in enumerate(listed) if not isinstance(label, str)]
    if others:
        row, label = others[0]
        text = next((f"{label!r} in row {row}" for row, label in enumerate(listed) if isinstance(label, str)), "none")
        raise ValueError(
            f"The labels mix text, {text}, with other values, {label!r} in row {row}. Pass one name in each row, and drop rows "
            "without a label."
        )
    if categories is None or not all(isinstance(category, str) for category in categories):
        return listed, None
    return listed, list(categories)


def _number_labels(labels: Sequence[str], names: Sequence[str]) -> np.ndarray[Any, Any]:
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(labels) - set(numbers))
    if unknown:
        raise ValueError(
            f"The labels have unknown classes: {quote_list(unknown, MAX_NAMES)}.{did_you_mean(unknown[0], names)} The model has "
            f"{quote_list(names, MAX_NAMES)}. Pass labels of these, or set model.class_names = None before fit() to learn others."
        )
    return np.fromiter((numbers[label] for label in labels), dtype=np.int64, count=len(labels))
