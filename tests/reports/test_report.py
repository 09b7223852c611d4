"""Promise: ``model.report`` works on all data, and its tables, pictures, slices and comparisons are right."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.reports import make_report

torch.manual_seed(0)
X, Y = torch.randn(120, 1, 6, 6), torch.arange(120) % 3


def compiled(loss="cross_entropy", outputs=3, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, outputs))
    return Model(net, device="cpu").compile("adam", loss, **options)


@pytest.mark.parametrize(
    "data",
    [(X, Y), ((X, Y),), (X.numpy(), Y.numpy()), (DataLoader(TensorDataset(X, Y), 7),), (TensorDataset(X, Y),)],
    ids=["tensors", "tuple", "NumPy", "loader", "dataset"],
)
def test_reports_of_all_kinds_of_data_are_equal(data):
    model = compiled()
    report = model.report(*data, bootstrap=50, verbose=0)
    batch_size = 7 if isinstance(data[0], DataLoader) else 32  # which decides the last digits of the outputs
    outputs = model.predict(X, batch_size=batch_size, verbose=0)
    assert report.to_dict() == make_report(outputs, Y, bootstrap=50).to_dict()
    assert report.summary["accuracy"].value == (model.predict_classes(X, verbose=0) == Y.numpy()).mean()


def test_predict_returns_outputs_with_their_targets(tmp_path):
    model = compiled()
    loader = DataLoader(TensorDataset(X, Y), 7, shuffle=True)
    with pytest.warns(UserWarning, match="another order"):
        outputs, targets = model.predict(loader, targets=True, verbose=0)
    expected = model.predict(X, verbose=0)
    order = [int(np.abs(expected - row).sum(1).argmin()) for row in outputs]
    assert sorted(order) == list(range(120))
    np.testing.assert_array_equal(targets, Y[order])
    saved, labels = model.predict((X, Y), targets=True, to=tmp_path / "outputs.npy", verbose=0)
    np.testing.assert_array_equal(saved, expected)
    np.testing.assert_array_equal(labels, Y)
    assert make_report(saved, labels, bootstrap=0).summary == model.report(X, Y, bootstrap=0, verbose=0).summary


def test_data_without_targets_is_refused():
    with pytest.raises(ValueError, match="needs data with targets"):
        compiled().predict(X, targets=True, verbose=0)


def test_names_of_classes_appear_in_the_report():
    model = compiled()
    names = np.array(["cat", "dog", "fox"])[Y]
    model.fit(X, names, verbose=0)
    report = model.report(X, names, bootstrap=0, verbose=0)
    assert [row["class"] for row in report.tables["classes"]] == ["cat", "dog", "fox"]
    assert "fox" in str(report)
    assert "fox" in report._repr_html_()


def test_a_report_leaves_no_trace():
    model = compiled()
    model.fit(X, Y, verbose=0)
    weights, rng = [p.clone() for p in model.module.parameters()], torch.get_rng_state()
    model.report(X, Y, bootstrap=20, verbose=0)
    assert all(map(torch.equal, weights, model.module.parameters()))
    assert torch.equal(rng, torch.get_rng_state())
    assert model.module.training
    assert len(model.history["loss"]) == 1


def test_frames_and_dicts_have_values_and_bounds():
    report = compiled().report(X, Y, bootstrap=20, verbose=0)
    frame = report.to_frame()
    assert frame.loc["accuracy", "low"] <= frame.loc["accuracy", "value"] <= frame.loc["accuracy", "high"]
    assert {"class", "f1", "f1_low", "f1_high", "support"} <= set(report.to_frame("classes"))
    assert report.to_dict()["summary"]["accuracy"]["value"] == report.summary["accuracy"].value
    with pytest.raises(KeyError, match="It has 'summary', 'classes'"):
        report.to_frame("metrics")


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        ("cross_entropy", 3, Y),
        ("bce_with_logits", 1, (Y > 0).float()),
        ("bce_with_logits", 3, torch.eye(3)[Y]),
        ("mse", 1, Y.float()),
    ],
    ids=["classes", "two classes", "labels", "numbers"],
)
def test_each_report_is_drawn(loss, outputs, y, tmp_path):
    report = compiled(loss, outputs).report(X, y, bootstrap=20, verbose=0)
    figure = report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert "highest loss" in [axes.get_title() for axes in figure.axes]


def test_slices_find_the_part_that_is_worse():
    y = np.arange(400) % 2
    wrong = (np.arange(400) < 100) & (np.arange(400) % 3 == 0)
    outputs = np.eye(2)[np.where(wrong, 1 - y, y)]
    report = make_report(outputs, y, bootstrap=0)
    report.add_slices({"part": np.where(np.arange(400) < 100, "old", "new"), "parity": y})
    rows = {row["value"]: row for row in report.tables["slices"]}
    assert [value for value, row in rows.items() if row["is_worse"]] == ["old"]
    table = [[100 - wrong.sum(), wrong.sum()], [300, 0]]
    # Holm: the smallest of four p-values is multiplied by four.
    assert rows["old"]["p_value"] == pytest.approx(4 * stats.fisher_exact(table, alternative="less").pvalue)


def test_slices_are_columns_of_a_frame_or_functions():
    frame = pandas.DataFrame({"age": np.arange(120.0), "sex": ["f", "m"] * 60})
    net = nn.Linear(1, 3)
    model = Model(net, device="cpu").compile("adam", "cross_entropy")
    inputs = frame[["age"]]
    report = model.report(inputs, Y, by={"young": lambda x: x["age"] < 50, "sex": frame["sex"]}, bootstrap=0, verbose=0)
    assert {(row["column"], row["value"]): row["samples"] for row in report.tables["slices"]} == {
        ("young", "True"): 50, ("young", "False"): 70, ("sex", "f"): 60, ("sex", "m"): 60,
    }  # fmt: skip
    quarters = model.report(inputs, Y, by="age", bootstrap=0, verbose=0).tables["slices"]
    assert [row["samples"] for row in quarters] == [30] * 4
    with pytest.raises(ValueError, match="no column of x"):
        model.report(inputs, Y, by="size", bootstrap=0, verbose=0)


def test_comparison_is_the_test_of_mcnemar():
    y = np.arange(300) % 3
    first, second = np.eye(3)[y], np.eye(3)[y]
    first[:4] = np.roll(first[:4], 1, axis=1)
    second[10:30] = np.roll(second[10:30], 1, axis=1)
    result = make_report(first, y, bootstrap=0).compare(make_report(second, y, bootstrap=0))
    assert result.p_value == pytest.approx(stats.binomtest(20, 24).pvalue)
    assert result.better == "first"
    assert result.difference.value == pytest.approx(16 / 300)
    assert result.difference.low < 16 / 300 < result.difference.high
    with pytest.raises(ValueError, match="same data"):
        make_report(first, y, bootstrap=0).compare(make_report(first[:200], y[:200], bootstrap=0))


def test_regressions_are_compared_by_the_paired_t_test():
    generator = np.random.default_rng(0)
    y = generator.normal(size=100)
    first, second = y + generator.normal(0, 0.5, 100), y + generator.normal(0, 1.5, 100)
    result = make_report(first, y, "mse", bootstrap=0).compare(make_report(second, y, "mse", bootstrap=0))
    assert result.p_value == pytest.approx(stats.ttest_rel(abs(first - y), abs(second - y)).pvalue)
    assert result.better == "first"


def test_several_losses_need_the_name_of_an_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 4)

        def forward(self, x):
            out = self.layer(x.flatten(1))
            return {"kind": out[:, :3], "size": out[:, 3:]}

    model = Model(Net(), device="cpu").compile("adam", {"kind": "cross_entropy", "size": "mse"})
    y = {"kind": Y, "size": Y[:, None].float()}
    with pytest.raises(ValueError, match="Pass output="):
        model.report(X, y, bootstrap=0, verbose=0)
    assert model.report(X, y, output="kind", bootstrap=0, verbose=0).title == "Classification"
    assert model.report(X, y, output="size", bootstrap=0, verbose=0).title == "Regression"


@pytest.mark.parametrize(
    ("loss", "outputs", "y", "message"),
    [
        ("cross_entropy", torch.randn(4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long), "one label per sample"),
        ("cross_entropy", torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), "0 to 3, but there are 3 classes"),
        ("cross_entropy", torch.randn(4, 3), torch.tensor([0, 1]), "one target for each of 4"),
        ("mse", torch.randn(0, 1), torch.randn(0, 1), "at least one sample"),
        (nn.CTCLoss(), torch.randn(4, 3), torch.randn(4, 3), "no report for the loss"),
    ],
    ids=["pixels", "range", "lengths", "empty", "other loss"],
)
def test_what_has_no_report_is_refused(loss, outputs, y, message):
    with pytest.raises(ValueError, match=message):
        make_report(outputs, y, loss, bootstrap=0)
