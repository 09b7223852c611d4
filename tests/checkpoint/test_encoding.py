"""Containers of Python are read from a file as they were written."""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import numpy as np
import pytest
import torch

from easytorch.checkpoint import files
from easytorch.checkpoint.encoding import EncodingError, decode, encode

Step = namedtuple("Step", ("state", "action"))


@dataclasses.dataclass
class Item:
    index: int
    values: list


class RunsCode:
    def __init__(self):
        raise AssertionError("a class of the program must not be called")


VALUES = {
    "numbers": [1, 2**80, -1.5, True, None, "text", 3 + 4j, b"ab", b""],
    "numpy": [np.float32(1.5), np.int64(3), np.bool_(True)],
    "nested": [1, [2, (3, {"a": (4,)})], {}],
    "keys": {1: 2, (1, 2): "x", None: 3, "encoded": 4},
    "deque": deque(range(40), maxlen=50),
    "sets": [set("abc"), frozenset({1, 2})],
    "dicts": [OrderedDict(a=1), defaultdict(list, {"a": [1]}), Counter("aab")],
    "named tuples": [Step(i, None if i % 3 else i) for i in range(40)],
    "dataclasses": [Item(i, [i]) for i in range(30)],
    "rows": [{"reward": 0.5 * i, "index": i, "over": i % 2 == 0, "name": str(i)} for i in range(100)],
    "constants": [[True] * 40, [None] * 40, ["a"] * 40, [()] * 40],
    "many structures": [tuple(range(i)) for i in range(30)],
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_container_is_read_as_it_was_written(kind, tmp_path):
    value = VALUES[kind]
    files.write(tmp_path / "x.pt", {"value": encode(value)})
    found = decode(files.read(tmp_path / "x.pt")["value"])
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, (list, deque)):
        assert [type(item) for item in found] == [type(item) for item in value]
    assert getattr(found, "maxlen", None) == getattr(value, "maxlen", None)


def test_tensors_and_arrays_are_read_as_they_were_written(tmp_path):
    steps = [Step(torch.full((2,), float(i)), np.arange(3) + i) for i in range(20)]
    files.write(tmp_path / "x.pt", {"value": encode([*steps, torch.eye(2)])})
    *found, last = decode(files.read(tmp_path / "x.pt")["value"])
    for step, expected in zip(found, steps, strict=True):
        assert torch.equal(step.state, expected.state)
        assert np.array_equal(step.action, expected.action)
        assert step.action.dtype == expected.action.dtype
    assert torch.equal(last, torch.eye(2))
    found[0].state.add_(1)  # they share no memory
    assert torch.equal(found[1].state, steps[1].state)


def test_many_items_of_one_structure_are_a_few_tensors():
    encoded = encode(deque({"state": i, "reward": 0.5} for i in range(5_000)))
    assert [len(group) for group in encoded["columns"]] == [2]
    assert encoded["columns"][0][0].shape == (5_000,)


def test_a_named_tuple_of_a_function_is_found():
    Local = namedtuple("Local", "a b")  # as programs have it
    assert decode(encode([Local(1, 2)])) == [Local(1, 2)]


@pytest.mark.parametrize(
    "value", [object(), [lambda: 0], {"a": {object()}}, np.array([object()]), RunsCode.__new__(RunsCode)]
)
def test_what_a_file_cannot_hold_is_named(value):
    with pytest.raises(EncodingError):
        encode(value)


def test_a_deeply_nested_value_is_refused():
    value = []
    for _ in range(100):
        value = [value]
    with pytest.raises(EncodingError, match="nested deeper"):
        encode(value)


@pytest.mark.parametrize("kind", ["namedtuple", "dataclass"])
@pytest.mark.parametrize("name", ["RunsCode", "Missing", "pytest.main"])
def test_a_file_cannot_create_objects_of_other_classes(kind, name):
    entry = {"encoded": kind, "module": __name__, "class": name, "items": [1, 2]}
    with pytest.raises(ValueError, match="does not exist in this program"):
        decode(entry)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="unknown kind"):
        decode({"encoded": "lambda", "items": []})
