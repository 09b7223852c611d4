"""Errors in data name what is expected, what was received, and the fix."""

from __future__ import annotations

import operator
import re

import pandas
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tests.errors.common import LATE, ByHand, X, Y, compiled, fit, no_batches, refused
from tests.loops import blob_loader, mlp


@pytest.mark.parametrize("metrics", [(), ["accuracy"]], ids=["no metric", "accuracy"])
@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(), functional.cross_entropy])
def test_missing_targets_are_reported(loss, metrics):
    refused(lambda: fit(compiled(loss=loss, metrics=metrics), X), "targets", r"Pass \(x, y\)", kind=ValueError)


def test_missing_targets_of_a_regression_are_reported():
    refused(lambda: fit(compiled(loss="mse", metrics=["mae"]), X), "targets", r"Pass \(x, y\)", kind=ValueError)


@pytest.mark.parametrize(
    "data",
    [(X, Y[:40]), (X.numpy(), Y.numpy()[:40]), ((X, X[:40]), Y), ({"a": X, "b": X[:40]}, Y), (X, Y.tolist()[:40])],
    ids=["tensors", "arrays", "tuple of inputs", "dict of inputs", "list of labels"],
)
def test_different_lengths_are_reported_with_both_lengths(data):
    refused(lambda: fit(compiled(), *data), "40 and 50", r"\[40", r"\[50", "one row for each sample", kind=ValueError)


def test_sample_weights_of_another_length_are_reported():
    refused(lambda: fit(compiled(), X, Y, sample_weight=torch.ones(40)), "40", "50", kind=ValueError)
    refused(lambda: fit(compiled(), blob_loader(), sample_weight=torch.ones(40)), "40", "50", kind=ValueError)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ((X[:0], Y[:0]), "length 0"),
        ((TensorDataset(X[:0], Y[:0]),), "length 0"),
        (([],), "list"),
        ((no_batches,), "generator"),
        ((blob_loader(5, 8, drop_last=True),), "drop_last"),
        ((blob_loader(0, 8),), "empty"),
    ],
    ids=["arrays", "dataset", "list", "generator function", "drop_last", "loader"],
)
def test_empty_data_is_reported(data, hint):
    refused(lambda: fit(compiled(), *data), "data is empty", hint, kind=ValueError)


def test_exhausted_generator_is_reported():
    batches = iter([(X, Y)])
    list(batches)
    refused(lambda: fit(compiled(), batches), "data is empty", "only once", kind=ValueError)


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_empty_data_is_reported_by_evaluate_and_predict(verb):
    refused(lambda: getattr(compiled(), verb)(no_batches, verbose=0), "data is empty", kind=ValueError)


@pytest.mark.parametrize(
    ("data", "name"), [(None, "None"), (5.0, r"number 5\.0"), (mlp(), "module Sequential"), (b"text", "bytes")], ids=str
)
def test_unsupported_data_is_reported_with_what_is_supported(data, name):
    refused(lambda: fit(compiled(), data), "DataLoader", "tensors", name, kind=TypeError)


def test_text_columns_of_a_frame_are_named():
    frame = pandas.DataFrame({"height": [1.0, 2.0], "town": ["Rome", "Oslo"]})
    refused(lambda: fit(compiled(), frame, [0, 1]), r"'town' \('Rome' in row 0\)", "get_dummies", kind=TypeError)


def frame_with_target(name):
    return pandas.DataFrame(X.numpy(), columns=list("abcdefgh")).assign(**{name: Y.numpy()})


def test_a_frame_without_targets_is_reported():
    code = r"fit\(frame\.drop\(columns='{0}'\), frame\['{0}'\]\)"
    refused(lambda: fit(compiled(), frame_with_target("y")), "frame without targets", code.format("y"), kind=ValueError)
    refused(
        lambda: fit(compiled(), frame_with_target("price")), code.format("price") + " if the targets", kind=ValueError
    )


def test_a_frame_is_enough_if_a_custom_loss_needs_no_targets():
    x = frame_with_target("y")[list("abcdefgh")]
    assert "loss" in fit(compiled(loss=lambda y_pred, y: y_pred.square().mean()), x).history


@pytest.mark.parametrize(
    ("library", "code"),
    [("pandas", r"drop\(columns='y'\)"), ("polars", r"drop\('y'\)"), ("pyarrow", r"drop_columns\('y'\)")],
)
def test_the_name_of_a_column_is_no_target(library, code):
    convert = {"polars": "from_pandas", "pyarrow": "Table.from_pandas"}
    frame = frame_with_target("y")
    if library != "pandas":
        frame = operator.attrgetter(convert[library])(pytest.importorskip(library))(frame)
    parts = (r"name of a column, 'y'", rf"Pass y=frame\['y'\], and frame\.{code} as x")
    refused(lambda: fit(compiled(), frame, "y"), *parts, kind=TypeError)
    refused(lambda: compiled().evaluate(frame, "y"), *parts, kind=TypeError)


def test_the_name_of_a_column_is_no_sample_weight():
    def train():
        fit(compiled(), frame_with_target("w"), Y, sample_weight="w")

    refused(train, r"sample_weight=frame\['w'\]", r"frame\.drop\(columns='w'\) as x", kind=TypeError)


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")  # torch's note on its beta state
def test_sparse_tensors_of_torch_are_reported(layout):
    x = X.to_sparse(layout=getattr(torch, layout))
    parts = (f"x is a sparse tensor of torch, {layout}", "csr_array", r"x\.to_dense\(\)")
    refused(lambda: fit(compiled(), x, Y), *parts, kind=TypeError)
    refused(lambda: fit(compiled(), {"x": x}, Y), *parts, kind=TypeError)
    refused(lambda: compiled().evaluate(x, Y, verbose=0), *parts, kind=TypeError)
    refused(lambda: compiled().predict(x, verbose=0), *parts, kind=TypeError)
    refused(lambda: fit(compiled(), X, Y, validation_data=(x, Y)), "In validation_data: ", *parts, kind=TypeError)


def test_the_first_value_that_is_no_number_is_named():
    values = X.numpy().astype(object)
    values[3, 2] = "tall"
    place = "'tall' in row 3, column 2"
    refused(lambda: fit(compiled(), values, Y), place, kind=TypeError)
    refused(lambda: compiled().predict(values, verbose=0), place, kind=TypeError)
    refused(lambda: fit(compiled(), pandas.DataFrame(values), Y), r"these have other values: '2' \('tall' in row 3\)\.")


def test_text_as_inputs_is_reported():
    refused(lambda: fit(compiled(), pandas.Series(["cat", "dog"] * 25), Y), "Expected numbers", "'cat' in row 0")


def test_items_that_are_batches_are_explained():
    batches = ByHand(X[:48].unflatten(0, (6, 8)), Y[:48].unflatten(0, (6, 8)))
    refused(
        lambda: fit(compiled(), batches), r"item of the dataset is a batch, pass DataLoader\(dataset, batch_size=None\)"
    )


def test_batch_of_four_parts_is_reported():
    refused(lambda: fit(compiled(), [(X, Y, Y, Y)]), "one to three parts", "received 4 parts", r"\(\(x1, x2\), y\)")


@pytest.mark.parametrize(
    "argument", [{"y": Y}, {"batch_size": 8}, {"shuffle": True}], ids=lambda options: next(iter(options))
)
def test_argument_without_effect_on_a_loader_is_reported(argument):
    name = next(iter(argument))
    refused(lambda: fit(compiled(), blob_loader(), **argument), name, "DataLoader", f"leave {name} out")


@pytest.mark.parametrize("argument", [{"batch_size": 8}, {"shuffle": True}], ids=lambda options: next(iter(options)))
def test_argument_without_effect_on_batches_is_reported(argument):
    name = next(iter(argument))
    refused(lambda: fit(compiled(), [(X, Y)], **argument), name, "list", f"leave {name} out")


@pytest.mark.parametrize(
    "argument", [{"batch_size": 0}, {"batch_size": 2.5}, {"batch_size": True}, {"epochs": 0}, {"epochs": "3"}], ids=str
)
def test_invalid_counts_are_reported(argument):
    name, value = next(iter(argument.items()))
    refused(lambda: fit(compiled(), X, Y, **argument), f"{name} must be a ", re.escape(repr(value)))


def test_last_epoch_before_the_initial_epoch_is_reported():
    refused(lambda: fit(compiled(), X, Y, epochs=2, initial_epoch=2), "initial_epoch=2", "larger", "2")


# Validation data


BAD_VALIDATION = {
    "features": ((X[:, :5], Y), ("Linear", r"\[8, 8\] in training", r"\[8, 5\] in validation")),
    "features in a list of batches": ([(X[:, :5], Y)], ("Linear", "8", "5")),
    "features from a function": ((lambda: iter([(X[:, :5], Y)])), ("Linear", "8", "5")),
    "a label in the first batch": ((X, Y + 1), ("labels", "3")),
    "a label in a later batch": ((X, LATE), ("labels", "0 to 3", "3 outputs")),
    "labels of text": ((X, ["cat"] * 50), ("labels are text, such as 'cat'", "no class names")),
    "lengths": ((X, Y[:40]), ("40 and 50",)),
    "nodata in it": ((X[:0], Y[:0]), ("data is empty",)),
    "nodata in it after drop_last": (blob_loader(5, 8, drop_last=True), ("data is empty",)),
}


@pytest.mark.parametrize("case", BAD_VALIDATION)
def test_invalid_validation_data_is_reported_before_training(case):
    validation, parts = BAD_VALIDATION[case]
    model = compiled()
    refused(lambda: fit(model, X, Y, epochs=2, batch_size=8, validation_data=validation), *parts)
    assert model.state.step == 0


def test_validation_generator_for_two_epochs_is_reported():
    model = compiled()
    batches = (batch for batch in [(X, Y)])
    refused(lambda: fit(model, X, Y, epochs=2, validation_data=batches), "generator", "only once", "function")
    assert model.state.step == 0
