"""Each row of the table in easytorch.data.arrays."""

from __future__ import annotations

import pytest
import torch

from easytorch._utils.forward_signature import ForwardSignature
from easytorch.data.arrays import (
    as_predict_data,
    check_batches,
    is_arrays,
    is_sample_list,
    stack_samples,
    unpack_tuple,
)

X, Y = torch.randn(6, 4), torch.arange(6)
ONE, TWO = ForwardSignature(("x",)), ForwardSignature(("left", "right"), positional=2, required=2)


@pytest.mark.parametrize("length", [2, 3])
def test_tuple_of_two_or_three_is_inputs_targets_and_weights(length):
    parts = (X, Y, torch.ones(6))[:length]
    assert unpack_tuple(parts, None, None) == (*parts, *[None] * (3 - length))


@pytest.mark.parametrize("x", [(X,), (X, X, X, X), {"x": X, "y": Y}, X], ids=["one", "four", "dict", "tensor"])
def test_other_tuples_and_dicts_of_arrays_are_arrays(x):
    assert unpack_tuple(x, None, None) == (x, None, None)
    assert is_arrays(x, None)


def test_list_is_batches_without_targets_and_arrays_with_targets():
    assert not is_arrays([X, X], None)
    assert is_arrays([X, X], Y)


@pytest.mark.parametrize("y", [Y, list(Y), Y.tolist()], ids=["tensor", "list of tensors", "list of numbers"])
def test_list_of_as_many_arrays_as_targets_is_samples(y):
    stacked, targets = stack_samples(list(X), y)
    assert torch.equal(stacked, X)
    assert targets is y


def test_list_of_arrays_as_long_as_the_targets_is_several_inputs():
    inputs = [X, X]
    assert stack_samples(inputs, Y)[0] is inputs


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "The data is empty"), ([(X[0], 1), (X[1], 0)], "list of samples"), ([X, Y], "looks like inputs and targets")],
    ids=["empty", "samples", "inputs and targets"],
)
def test_list_without_batches_is_reported(batches, message):
    with pytest.raises(ValueError, match=message):
        check_batches(batches)


def test_list_of_batches_is_accepted():
    check_batches([(X, Y), (X, Y)])
    check_batches([X, X])


INPUTS = [(X, X)]
PREDICTED = {
    "tuple of inputs": ((X, X), TWO, lambda data: data[0][0] is X),
    "inputs and targets for one argument": ((X, Y), ONE, lambda data: data[0] is X),
    "numbers": ([[1.0, 2.0], [3.0, 4.0]], ONE, lambda data: data.shape == (2, 2)),
    "batches of inputs": (INPUTS, TWO, lambda data: data[0][0][1] is X),
    "list of inputs": ([X, X], TWO, lambda data: data[0][1] is X),
    "samples": (list(X), ONE, lambda data: torch.equal(data, X)),
    "batches": ([X, X[:2]], ONE, lambda data: data[1].shape == (2, 4)),
}


@pytest.mark.parametrize("kind", PREDICTED)
def test_predict_reads_containers_by_the_arguments_of_forward(kind):
    x, signature, is_expected = PREDICTED[kind]
    assert is_expected(as_predict_data(x, signature))


def test_predict_reports_a_list_that_may_be_inputs_or_batches():
    with pytest.raises(ValueError, match=r"one input, 'x', but .* a list of 2 arrays of one shape"):
        as_predict_data([X, X], ONE)


@pytest.mark.parametrize(
    ("data", "expected"), [(list(X), True), ([(X[0], 1), (X[1], 0)], True), ([X, Y], False), ((X, Y), False)]
)
def test_split_reads_a_list_as_samples_unless_it_is_a_few_arrays(data, expected):
    assert is_sample_list(data) is expected
