"""Several data sets by name, each of which is evaluated by itself.

What a dict means where data is evaluated, in ``validation_data`` and ``evaluate``. The first row that matches decides.

=====================================================================  ==============================================
values of the dict                                                     meaning
=====================================================================  ==============================================
arrays or numbers, with a ``DataLoader``, a ``Dataset``, a function    error: columns and data sets
arrays or numbers, with or without tuples, lists and dicts             columns of one data set
a ``DataLoader``, a ``Dataset``, a function or other data among them   several data sets
tuples, lists and dicts, and a key is a column                         columns of one data set
tuples ``(x, y)`` and lists of batches                                 several data sets
tuples, lists and dicts                                                error: columns or data sets
=====================================================================  ==============================================

A key is a column if it is an argument of ``forward``, a key of the training data, ``sample_weight``, or a usual name of targets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from easytorch._utils.forward_signature import LABEL_KEYS
from easytorch._utils.pytree import leaves
from easytorch._utils.registry import quote_list
from easytorch.data.arrays import is_array
from easytorch.data.batch import WEIGHT_KEY

COLUMN, STRUCTURE, DATA_SET = "column", "structure", "data set"


class DataSets(dict[str, Any]):
    """Data sets by name."""

    def convert(self, function: Callable[[Any], Any], argument: str) -> DataSets:
        """Return the results of ``function`` for each data set; an error names the data set.

        Args:
            function: Is called with each data set.
            argument: The name of the argument that contains the data sets.

        Raises:
            ValueError, TypeError: If ``function`` raises one.
        """
        return DataSets({name: self._call(function, name, argument) for name in self})

    def _call(self, function: Callable[[Any], Any], name: str, argument: str) -> Any:
        try:
            return function(self[name])
        except (ValueError, TypeError) as error:
            # A subclass may need other arguments.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"In {argument}[{name!r}]: {str(error).removeprefix(f'In {argument}: ')}") from error


def as_data_sets(data: Any, argument: str, inputs: Collection[str], x: Any = None) -> Any:
    """Return ``data``, as ``DataSets`` if it is a dict of several data sets; see the table of the module.

    Args:
        data: Data of any kind.
        argument: The name of the argument, for messages.
        inputs: The arguments of ``forward``.
        x: The training data.

    Raises:
        ValueError: If the dict may have two meanings, or a name is invalid.
    """
    if not isinstance(data, Mapping) or isinstance(data, DataSets) or not data:
        return data
    kinds = {key: _find_kind(value) for key, value in data.items()}
    missing = next((key for key, value in data.items() if value is None), None)
    if missing is not None and set(kinds.values()) != {COLUMN}:
        raise ValueError(f"{argument}[{missing!r}] is None. Pass data, or leave out the key.")
    if COLUMN in kinds.values():
        _check_all_are_columns(data, kinds, argument)
        return data
    if DATA_SET not in kinds.values():
        columns = {*inputs, *LABEL_KEYS, WEIGHT_KEY, *(x if isinstance(x, Mapping) else ())}
        if not columns.isdisjoint(data):
            return data
        _check_all_are_sequences(data, argument)
    for name in data:
        _check_name(name, argument)
    return DataSets(data)


def by_name(data: Any) -> Mapping[str, Any]:
    """Return the data sets of ``data`` by name; the only one has an empty name."""
    if data is None:
        return {}
    return data if isinstance(data, DataSets) else {"": data}


def merge_by_name(values: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the values of all data sets in one dict: ``clean_loss``, ...; the values themselves if there is one data set.

    Args:
        values: The values of each data set; the only one has an empty name.
    """
    if list(values) == [""]:
        return values[""]
    return {f"{name}_{key}": value for name, part in values.items() for key, value in part.items()}


def _find_kind(value: Any) -> str:
    if is_array(value) or value is None or isinstance(value, (str, int, float, np.generic)):
        return COLUMN
    if (
        isinstance(value, list)
        and value
        and all(isinstance(leaf, (int, float, str, np.generic)) for leaf in leaves(value))
    ):
        return COLUMN
    return STRUCTURE if isinstance(value, (tuple, list, Mapping)) else DATA_SET


def _check_all_are_columns(data: Mapping[Any, Any], kinds: Mapping[Any, str], argument: str) -> None:
    data_set = next((key for key, kind in kinds.items() if kind == DATA_SET), None)
    if data_set is None:
        return
    column = next(key for key, kind in kinds.items() if kind == COLUMN)
    raise ValueError(
        f"{argument} mixes columns and data sets: {column!r} is {_describe(data[column])}, and {data_set!r} is "
        f"{_describe(data[data_set])}. To evaluate several data sets, pass each as a DataLoader, a Dataset or a tuple (x, y)."
    )


def _check_all_are_sequences(data: Mapping[Any, Any], argument: str) -> None:
    unclear = next((key for key, value in data.items() if isinstance(value, Mapping)), None)
    if unclear is not None:
        raise ValueError(
            f"{argument} is a dict with the keys {quote_list(map(str, data))}, and {unclear!r} is a dict. These may be columns "
            "of one data set or several data sets. For several data sets, pass each as a DataLoader, a Dataset or a tuple "
            "(x, y); for one, pass a DataLoader or a Dataset."
        )


def _check_name(name: Any, argument: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(
            f"The names of data sets in {argument} must consist of letters, digits and underscores, since they are part of "
            f"names in the logs, received {name!r}. Pass {argument}={{'clean': ...}}."
        )


def _describe(value: Any) -> str:
    return f"a {type(value).__name__}"
