"""Frames and columns of polars and Arrow, compared with the same data as NumPy arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from easytorch import Model
from easytorch.data import split
from easytorch.reports import input_reader
from tests.loops import blobs, same_weights

INPUTS, LABELS = (part.numpy() for part in blobs(50))
NAMES = [f"c{i}" for i in range(8)]
POLARS = pl.DataFrame({name: INPUTS[:, i] for i, name in enumerate(NAMES)})
ARROW = pa.table({name: INPUTS[:, i] for i, name in enumerate(NAMES)})
# Inputs and targets
TABLES = {
    "polars": (POLARS, pl.Series("y", LABELS)),
    "polars, int8 labels": (POLARS, pl.Series("y", LABELS, dtype=pl.Int8)),
    "polars, frame of one target": (POLARS, pl.DataFrame({"y": LABELS})),
    "polars, rows of an Array": (pl.Series(INPUTS), pl.Series(LABELS)),
    "polars, text": (POLARS, pl.Series(LABELS).cast(pl.String)),
    "polars, categorical": (POLARS, pl.Series(LABELS).cast(pl.String).cast(pl.Categorical)),
    "Arrow": (ARROW, pa.chunked_array([LABELS[:20], LABELS[20:]])),
    "Arrow, record batch": (ARROW.to_batches()[0], pa.array(LABELS)),
    "Arrow, int32 labels": (ARROW, pa.array(LABELS, pa.int32())),
    "Arrow, fixed-size lists": (pa.FixedSizeListArray.from_arrays(pa.array(INPUTS.ravel()), 8), pa.array(LABELS)),
    "Arrow, text": (ARROW, pa.array(LABELS.astype(str))),
    "Arrow, dictionary": (ARROW, pa.array(LABELS.astype(str)).dictionary_encode()),
}


def make_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.01)


def fit(x, y=None, **options):
    model = make_model()
    options = {"epochs": 2, "batch_size": 8, "verbose": 0, **options}
    torch.manual_seed(1)
    return model, dict(model.fit(x, y, **options))


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_trains_like_arrays_bit_for_bit(kind):
    x, y = TABLES[kind]
    for options in ({}, {"validation_split": 0.2, "class_weight": {0: 2.0}}, {"shuffle": False}):
        model, history = fit(x, y, **options)
        # The split does not stratify floats.
        labels = pd.DataFrame({"y": LABELS}) if "one target" in kind else LABELS
        expected, expected_history = fit(INPUTS, labels, **options)
        assert same_weights(model.module, expected.module)
        assert history == expected_history
    assert np.array_equal(model.predict(x), expected.predict(INPUTS))
    assert dict(model.evaluate(x, y, verbose=0)) == dict(expected.evaluate(INPUTS, LABELS, verbose=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["polars", "Arrow"])
def test_every_verb_takes_a_table(kind):
    x, y = TABLES[kind]
    (model, _), (expected, _) = fit(x, y), fit(INPUTS, LABELS)
    assert np.array_equal(model.predict_classes(x), expected.predict_classes(INPUTS))
    assert np.array_equal(model.predict_on_batch(x), expected.predict_on_batch(INPUTS))
    assert torch.equal(model(x), expected(INPUTS))
    assert str(model.report(x, y, by="c0")) == str(expected.report(INPUTS, LABELS, by={"c0": INPUTS[:, 0]}))
    assert not model.check(x, y).warnings
    assert dict(model.test_on_batch(x, y)) == dict(expected.test_on_batch(INPUTS, LABELS))
    assert model.train_on_batch(x, y).loss == expected.train_on_batch(INPUTS, LABELS).loss
    weight = TABLES[kind][1]
    assert fit(x, y, sample_weight=weight)[1] == fit(INPUTS, LABELS, sample_weight=LABELS)[1]
    assert fit(x, y, validation_data=(x, y))[1] == fit(INPUTS, LABELS, validation_data=(INPUTS, LABELS))[1]
    parts = [part[3] for part in split(x, y)], [part[3] for part in split(INPUTS, LABELS)]
    assert all(torch.equal(a[0].float(), b[0]) and a[1] == b[1] for a, b in zip(*parts, strict=True))


@pytest.mark.parametrize("kind", ["polars", "Arrow"])
def test_the_script_of_a_table_gives_the_same_weights(kind):
    x, y = TABLES[kind]
    model, _ = fit(x, y, validation_data=(x, y))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    torch.manual_seed(1)
    exec(str(model.to_script()), {"net": net, "x": x, "y": y, "x_val": x, "y_val": y, "print": lambda *_, **__: None})
    assert same_weights(net, model.module)


@pytest.mark.parametrize("table", [POLARS, ARROW], ids=["polars", "Arrow"])
def test_columns_are_matched_by_name(table):
    model, _ = fit(table, LABELS)
    outputs = model.predict(table)
    assert model.columns == NAMES
    assert np.array_equal(model.predict(table.select(NAMES[::-1])), outputs)
    # A frame of another library has the same columns.
    assert np.array_equal(model.predict(pd.DataFrame(INPUTS, columns=NAMES)[NAMES[::-1]]), outputs)
    with pytest.raises(ValueError, match="lacks \\['c0'\\]"):
        model.predict(table.select(NAMES[1:]))


def test_an_enum_keeps_the_order_of_its_categories():
    labels = pl.Series(["b", "a"] * 25, dtype=pl.Enum(["b", "a", "c"]))
    assert fit(POLARS, labels)[0].class_names == ["b", "a", "c"]


def test_several_frames_are_inputs_by_name():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, left, right):
            return self.layer(left - 2 * right)

    def train(left, right, y):
        torch.manual_seed(0)
        model = Model(Towers(), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        model.fit({"left": left, "right": right}, y, epochs=2, verbose=0)
        return model.module

    expected = train(INPUTS, INPUTS, LABELS)
    assert same_weights(train(POLARS, ARROW, pl.Series(LABELS)), expected)


WRONG = {
    "lazy frame": (POLARS.lazy(), r"LazyFrame of polars.*x\.collect\(\)"),
    "expression": (pl.col("c0"), "Expr of polars.*frame.select"),
    "text column of polars": (POLARS.with_columns(t=pl.lit("q")), r"'t' \('q'\).*to_dummies\(\['t'\]\)"),
    "text column of Arrow": (ARROW.append_column("t", pa.array(["q"] * 50)), r"'t' \('q'\).*get_dummies"),
    "date of polars": (POLARS.with_columns(d=pl.date(2020, 1, 2)), r"'d' \(datetime.date\(2020, 1, 2\)\)"),
    "nulls of polars": (
        POLARS.with_columns(c2=pl.when(pl.int_range(50) > 5).then(pl.col("c2"))),
        r"nulls in the columns 'c2' \(6 rows\).*fill_null",
    ),
    "nulls of Arrow": (
        ARROW.append_column("n", pa.array([None, 1] * 25)),
        r"nulls in the columns 'n' \(25 rows\).*fill",
    ),
    "NaN of polars": (POLARS.with_columns(c2=float("nan")), r"not finite.*'c2' \(50 rows\).*fill_nan"),
    "list of polars": (pl.Series(INPUTS.tolist()), r"List\(Float64\).*list.to_array\(length\)"),
    "list of Arrow": (pa.array(INPUTS.tolist()), r"list<.*pyarrow.list_"),
    "nulls in a series": (pl.Series([None, 1.0] * 25), "polars has nulls in 25 of 50 rows.*fill_null"),
    "nulls in a column of Arrow": (pa.array([None, 1.0] * 25), "Arrow has nulls in 25 of 50 rows.*fill_null"),
    "times of Arrow": (pa.array([0] * 50, pa.timestamp("s")), "Arrow, received timestamp"),
    "reader of Arrow": (ARROW.to_reader(), r"RecordBatchReader.*x\.read_all\(\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_table_without_numbers_names_the_fix(kind):
    x, message = WRONG[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        fit(x, LABELS)
    if "NaN" not in kind and "reader" not in kind:
        with pytest.raises((ValueError, TypeError), match=message):
            make_model().predict(x)


def test_nulls_in_targets_are_errors():
    for y in (pl.Series([None, 1] * 25), pa.array([None, 1] * 25)):
        with pytest.raises(ValueError, match="nulls in 25 of 50 rows"):
            fit(INPUTS, y)
    with pytest.raises(ValueError, match="mix text"):
        fit(INPUTS, pl.Series([None, "a"] * 25))
    with pytest.raises(ValueError, match="different lengths"):
        fit(POLARS, pl.Series(LABELS[:40]))


def test_columns_of_one_name_are_read_by_position():
    twice = ARROW.rename_columns(["a", "a", *NAMES[2:]])
    for table in (twice, twice.to_batches()[0]):
        model, _ = fit(table, LABELS)
        assert same_weights(model.module, fit(INPUTS, LABELS)[0].module)
        assert np.array_equal(model.predict(table), model.predict(INPUTS))
    frame = twice.to_pandas().iloc[:, ::-1]
    for other in (frame, pa.Table.from_arrays(twice.columns[::-1], names=twice.column_names[::-1])):
        with pytest.raises(ValueError, match=r"another order.*'a' is the name of several"):
            model.predict(other)


def test_errors_in_sample_weights_name_the_argument():
    wrong = {
        "sample_weight: A column of polars has nulls in 25": pl.Series([None, 1.0] * 25),
        r"sample_weight: The frame has nulls in the columns 'w' \(25 rows\)": pl.DataFrame({"w": [None, 1.0] * 25}),
        "sample_weight: A column of Arrow has nulls": pa.array([None, 1.0] * 25),
        r"sparse matrix. Pass sample_weight.toarray\(\).ravel\(\)": sp.csr_array(np.ones((50, 1))),
    }
    for message, weights in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            fit(POLARS, LABELS, sample_weight=weights)
    with pytest.raises(TypeError, match="sparse matrix"):
        make_model().evaluate(POLARS, LABELS, sample_weight=sp.csr_array(np.ones((50, 1))))


@pytest.mark.slow
def test_no_library_of_tables_is_imported_for_arrays():
    program = """
import sys, numpy as np, torch, easytorch
model = easytorch.Model(torch.nn.Linear(3, 2)).compile("sgd", "cross_entropy")
x, y = np.zeros((8, 3), "float32"), np.zeros(8, "int64")
model.fit(x, y, validation_split=0.25, verbose=0)
model.predict(x), model.evaluate(x, y, verbose=0)
print(sorted({"polars", "pyarrow", "datasets", "webdataset", "torchdata", "pandas"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"


def test_a_report_never_reads_a_column_as_a_sample():
    assert all(input_reader(x) is None for x in (POLARS, ARROW, sp.csr_array(INPUTS)))
