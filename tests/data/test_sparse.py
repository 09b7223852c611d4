"""Sparse matrices of SciPy, compared with the same data as dense arrays."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.callbacks import BackupAndRestore
from easytorch.data import in_memory, split
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs, same_weights

LABELS = blobs(50)[1].numpy()
DENSE = np.where(np.random.default_rng(0).random((50, 8)) < 0.3, blobs(50)[0].numpy(), 0)
FORMATS = {name: getattr(sp, f"{name}_array")(DENSE) for name in ("csr", "csc", "coo", "lil", "bsr", "dia")}
FORMATS |= {"csr matrix": sp.csr_matrix(DENSE), "float64": sp.csr_array(DENSE.astype("float64"))}


def make_model(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.01, **options)


def fit(x, y=LABELS, compiled=None, **options):
    model = make_model(**(compiled or {}))
    options = {"epochs": 2, "batch_size": 8, "verbose": 0, **options}
    torch.manual_seed(1)
    return model, dict(model.fit(x, y, **options))


def same(first, second):
    return same_weights(first[0].module, second[0].module) and first[1] == second[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sparse_matrix_trains_like_an_array(kind):
    result, expected = fit(FORMATS[kind]), fit(DENSE)
    assert same(result, expected)
    assert np.array_equal(result[0].predict(FORMATS[kind]), expected[0].predict(DENSE))


OPTIONS = {
    "in order": {"shuffle": False},
    "validation split": {"validation_split": 0.2},
    "validation data": {"validation_data": (FORMATS["csr"], LABELS)},
    "class weights": {"class_weight": {0: 2.0, 2: 0.5}},
    "balanced": {"class_weight": "balanced"},
    "sample weights": {"sample_weight": np.linspace(0, 2, 50)},
    "accumulation": {"compiled": {"gradient_accumulation_steps": 3}},
    "steps": {"steps_per_epoch": 3},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_of_fit_work_with_sparse_inputs(kind):
    dense = OPTIONS[kind] | ({"validation_data": (DENSE, LABELS)} if kind == "validation data" else {})
    assert same(fit(FORMATS["csr"], **OPTIONS[kind]), fit(DENSE, **dense))


@pytest.mark.slow
def test_every_verb_takes_a_sparse_matrix():
    x = FORMATS["csr"]
    (model, _), (expected, _) = fit((x, LABELS), None), fit(DENSE)
    assert dict(model.evaluate(x, LABELS, verbose=0)) == dict(expected.evaluate(DENSE, LABELS, verbose=0))
    assert np.array_equal(model.predict((x, LABELS)), expected.predict(DENSE))
    assert np.array_equal(model.predict_on_batch(x), expected.predict_on_batch(DENSE))
    assert torch.equal(model(x), expected(DENSE))
    assert str(model.report(x, LABELS)) == str(expected.report(DENSE, LABELS))
    assert not model.check(x, LABELS).warnings
    assert str(model.find_lr(x, LABELS)) == str(expected.find_lr(DENSE, LABELS))
    assert model.train_on_batch(x, LABELS).loss == expected.train_on_batch(DENSE, LABELS).loss


def test_a_sparse_matrix_is_one_of_several_inputs():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, left, right):
            return self.layer(left - 2 * right)

    def train(left, right):
        torch.manual_seed(0)
        model = Model(Towers(), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        model.fit({"left": left, "right": right}, LABELS, epochs=2, verbose=0)
        return model

    model, expected = train(FORMATS["csr"], DENSE), train(DENSE, DENSE)
    assert same_weights(model.module, expected.module)
    assert np.array_equal(model.predict((FORMATS["csr"], DENSE)), expected.predict((DENSE, DENSE)))


def test_sparse_targets_are_several_labels():
    labels = (np.random.default_rng(1).random((50, 3)) < 0.3).astype("float32")

    def train(y):
        torch.manual_seed(0)
        model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "bce_with_logits", metrics=["accuracy"], lr=0.1)
        history = model.fit(DENSE, y, epochs=2, validation_split=0.2, verbose=0)
        return model, dict(history)

    assert same(train(sp.csr_array(labels)), train(labels))


def test_a_split_stays_sparse():
    parts, expected = split(FORMATS["csr"], LABELS), split(DENSE, LABELS)
    for part, other in zip(parts, expected, strict=True):
        assert not part.dataset.is_dense
        assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(part, other, strict=True))
    result = fit(parts[0], None, validation_data=parts[1])
    assert same(result, fit(expected[0], None, validation_data=expected[1]))
    assert len(in_memory(parts[0], verbose=0)) == 40
    batch = next(iter(DataLoader(parts[0], 5)))
    assert torch.equal(batch[0], next(iter(DataLoader(expected[0], 5)))[0])


def test_a_run_over_sparse_data_is_resumed_exactly(tmp_path):
    def run(folder, *callbacks):
        return fit(
            FORMATS["csr"], callbacks=[BackupAndRestore(folder, save_freq=1, delete_checkpoint=False), *callbacks]
        )

    expected = run(tmp_path / "a")
    with pytest.raises(SimulatedCrash):
        run(tmp_path / "b", CrashAfter(9))
    assert same_weights(run(tmp_path / "b")[0].module, expected[0].module)


def test_the_script_of_a_sparse_matrix_gives_the_same_weights():
    model, _ = fit(FORMATS["csr"])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    torch.manual_seed(1)
    exec(str(model.to_script()), {"net": net, "x": FORMATS["csr"], "y": LABELS, "print": lambda *_, **__: None})
    assert same_weights(net, model.module)


def test_a_sparse_matrix_never_becomes_dense_as_a_whole():
    rows, columns = 1000, 10_000  # 80 MB as float64
    x = sp.random_array((rows, columns), density=0.001, format="csr", rng=np.random.default_rng(0))
    y = np.arange(rows) % 3
    model = Model(nn.Linear(columns, 3), device="cpu").compile("sgd", "cross_entropy")
    tracemalloc.start()
    try:
        model.fit(x, y, validation_split=0.1, class_weight="balanced", verbose=0)
        model.predict(x)
        model.evaluate(x, y, verbose=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6


def test_values_that_are_not_finite_are_an_error():
    x = FORMATS["csr"].copy()
    x.data[3] = np.nan
    row = int(np.searchsorted(x.indptr, 3, side="right")) - 1
    with pytest.raises(ValueError, match=f"not finite.*1 of 50 rows, the first one is row {row}"):
        fit(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (sp.csr_array(DENSE)[:40], "different lengths"),
        (sp.coo_array(DENSE[0]), r"one row for each sample, received the shape \[8\]"),
        (sp.csr_array((50, 8), dtype=complex), "complex128"),
        (sp.dok_array(DENSE), r"dok_array of scipy.*x\.tocsr\(\)"),
        (sp.csr_array((50, 9)), "expects 8 features, received 9"),
    ],
    ids=["rows", "one dimension", "complex", "dict of keys", "columns"],
)
def test_an_unsuitable_sparse_matrix_names_the_fix(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(x)
