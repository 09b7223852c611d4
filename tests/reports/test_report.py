"""Promise: ``model.report`` works on all data, and its tables, pictures, slices and comparisons are right."""

from __future__ import annotations

import pickle

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from easytorch import Model
from easytorch.reports import make_report
from easytorch.reports.slices import read_columns

torch.manual_seed(0)
X, Y = torch.randn(120, 1, 6, 6), torch.arange(120) % 3


WITH_NAN = torch.ones(4, 3)
WITH_NAN[2, 1] = float("nan")


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


class Reversed(Sampler):
    def __iter__(self):
        return reversed(range(120))

    def __len__(self):
        return 120


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": Reversed()}])
@pytest.mark.parametrize("by", [{"sex": np.arange(120) % 2}, np.arange(120) % 2, lambda x: np.arange(120) % 2])
def test_slices_of_data_in_another_order_are_refused(options, by):
    loader = DataLoader(TensorDataset(X, Y), 7, **options)
    with pytest.raises(ValueError, match=r"by= has one value per sample.*shuffle=False"):
        compiled().report(loader, by=by, verbose=0)
    ordered = DataLoader(TensorDataset(X, Y), 7)
    assert compiled().report(ordered, by=by, bootstrap=0, verbose=0).tables["slices"]


def test_a_shuffled_report_shows_no_inputs_of_other_samples():
    loader = DataLoader(TensorDataset(X, Y), 7, shuffle=True)
    with pytest.warns(UserWarning, match="another order"):
        report = compiled().report(loader, bootstrap=0, verbose=0)
    assert report.get_input is None


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
        ("cross_entropy", torch.randn(4, 3, 5, 5), torch.zeros(4, 5, 6, dtype=torch.long), r"labels \[samples, ...\]"),
        ("cross_entropy", torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), "0 to 3, but there are 3 classes"),
        ("cross_entropy", torch.randn(4, 3), torch.tensor([0, 1]), "one target for each of 4"),
        ("mse", torch.randn(0, 1), torch.randn(0, 1), "at least one sample"),
        (nn.CTCLoss(), torch.randn(4, 3), torch.randn(4, 3), "no report for the loss"),
        ("poisson_nll", torch.randn(4, 3), torch.ones(4, 3), "no report for the loss"),
        ("hinge", torch.randn(4, 3), torch.ones(4, 3), "no report for the loss"),
        ("cross_entropy", torch.randn(4, 3), torch.full((4,), -100), "all 4 labels are -100"),
        ("cross_entropy", WITH_NAN, torch.tensor([0, 1, 2, 0]), "outputs of 1 of 4 samples have NaN.*indices: 2"),
        ("bce_with_logits", WITH_NAN, torch.ones(4, 3), "outputs of 1 of 4 samples have NaN.*indices: 2"),
        ("mse", WITH_NAN, torch.ones(4, 3), "outputs of 1 of 4 samples have NaN.*indices: 2"),
        ("mse", torch.ones(4, 3), WITH_NAN, "targets of 1 of 4 samples have NaN.*indices: 2"),
        ("cross_entropy", torch.randn(4, 3), WITH_NAN, "targets of 1 of 4 samples have NaN.*indices: 2"),
        ("bce_with_logits", torch.randn(4), WITH_NAN[:, 1], "targets of 1 of 4 samples have NaN.*indices: 2"),
        ("bce", WITH_NAN, torch.ones(4, 3), "outputs of 1 of 4 samples have NaN.*indices: 2"),
        ("bce", torch.full((4,), 1.5), torch.ones(4), "outputs go from 1.5 to 1.5.*pass 'bce_with_logits'"),
        ("nll", torch.ones(4, 3), torch.tensor([0, 1, 2, 0]), "index 0 sum to 8.15.*pass 'cross_entropy'"),
        ("bce_with_logits", torch.randn(4, 3, 5), torch.ones(4, 3, 5), "Pass one label at a time"),
        ("cross_entropy", torch.randn(3, 3), ["a", "b", "c"], "The labels are text. Pass class_names"),
    ],
    ids=["pixels", "range", "lengths", "empty", "other loss", "log rates", "signs", "ignored", "NaN", "NaN labels",
         "NaN numbers", "NaN targets", "NaN soft labels", "NaN two classes", "NaN probabilities", "no probabilities",
         "no logarithms", "label maps", "text"],
)  # fmt: skip
def test_what_has_no_report_is_refused(loss, outputs, y, message):
    with pytest.raises(ValueError, match=message):
        make_report(outputs, y, loss, bootstrap=0)


@pytest.mark.parametrize(
    ("loss", "outputs", "y", "count"),
    [
        ("cross_entropy", torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 3),
        ("bce_with_logits", torch.randn(4, 3), torch.eye(4)[:, :3], 3),
        ("bce_with_logits", torch.randn(4), torch.tensor([0.0, 1, 0, 1]), 2),
    ],
    ids=["classes", "labels", "two classes"],
)
def test_a_wrong_number_of_class_names_is_refused(loss, outputs, y, count):
    for names in (count - 1, count + 1):
        with pytest.raises(ValueError, match=f"class_names expects {count} names.*received {names}"):
            make_report(outputs, y, loss, class_names=list("abcd")[:names], bootstrap=0)
    assert make_report(outputs, y, loss, class_names=list("abcd")[:count], bootstrap=0).names == list("abcd")[:count]


def test_text_and_lists_are_reported_as_numbers():
    outputs = torch.randn(20, 3)
    y = torch.arange(20) % 3
    expected = make_report(outputs, y, bootstrap=0).summary
    assert make_report(outputs.tolist(), y.tolist(), bootstrap=0).summary == expected
    names = ["zebra", "ape", "cat"]
    text = [names[i] for i in y]
    assert make_report(outputs, text, class_names=names, bootstrap=0).summary == expected
    model = compiled()
    model.class_names = names
    _, targets = model.predict((X, [names[i] for i in Y]), targets=True, verbose=0)
    np.testing.assert_array_equal(targets, Y)


DAYS = pandas.date_range("2024-01-01", periods=40)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (np.array([1.0, np.nan] * 20), {"1.0": 20, "missing": 20}),
        (["a", None] * 20, {"a": 20, "missing": 20}),
        ([None, *range(39)], {"0 to 9.5": 10, "9.5 to 19": 9, "19 to 28.5": 10, "28.5 to 38": 10, "missing": 1}),
        (np.r_[-np.inf, np.arange(38), np.inf], {"-inf to 9.25": 11, "9.25 to 18.5": 9, "18.5 to 27.75": 9, "27.75 to inf": 11}),
        (DAYS, {"2024-01-01 to 2024-01-10": 10}),
        (pandas.Series([True, None] * 20, dtype="boolean"), {"True": 20, "missing": 20}),
        (pandas.Categorical(["u", None] * 20), {"u": 20, "missing": 20}),
        (pandas.to_timedelta(range(40), unit="h"), {"0:00:00 to 9:45:00": 10}),
        (torch.arange(40).bfloat16(), {"0 to 9.75": 10}),
    ],
    ids=["NaN", "None", "None in numbers", "infinite", "dates", "nullable", "categories", "durations", "bfloat16"],
)  # fmt: skip
def test_each_sample_is_in_one_slice_of_any_column(column, values):
    report = make_report(torch.randn(40, 3), torch.arange(40) % 3, bootstrap=0)
    report.add_slices(read_columns({"c": column}, None, 40))
    counts = {row["value"]: row["samples"] for row in report.tables["slices"]}
    assert counts | values == counts
    assert sum(counts.values()) == 40


def test_a_column_with_a_value_per_sample_is_refused():
    report = make_report(torch.randn(2000), torch.randn(2000), "mse", bootstrap=0)
    with pytest.raises(ValueError, match="2000 different values"):
        report.add_slices({"id": np.arange(2000).astype(str)})


def test_batches_in_another_order_get_a_warning():
    batches = [list(range(60, 120)), list(range(60))]
    with pytest.warns(UserWarning, match="another order"):
        compiled().report(DataLoader(TensorDataset(X, Y), batch_sampler=batches), bootstrap=0, verbose=0)
    compiled().report(DataLoader(TensorDataset(X, Y), batch_sampler=batches[::-1]), bootstrap=0, verbose=0)


def test_an_equal_difference_for_all_samples_is_significant():
    near, far = (make_report(torch.full((9,), value), torch.zeros(9), "mse", bootstrap=0) for value in (1.0, 2.0))
    assert near.compare(far).better == "first"
    assert near.compare(far).difference == (-1, -1, -1)
    assert near.compare(near).better is None


def test_reports_can_be_pickled_and_compared():
    report = compiled().report(TensorDataset(X, Y), bootstrap=0, verbose=0)
    copied = pickle.loads(pickle.dumps(report))
    assert str(copied) == str(report)
    assert copied.compare(report).p_value == 1


def test_reports_of_one_class_and_bfloat16_are_drawn(tmp_path):
    report = make_report(torch.randn(20, 1), torch.zeros(20), "bce_with_logits", bootstrap=0)
    report.get_input = torch.rand(20, 1, 8, 8).bfloat16().__getitem__
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").exists()


def test_streamed_datasets_have_reports(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return zip(X, Y, strict=True)

        def __len__(self):
            return len(X)

    report = compiled().report(DataLoader(Stream(), 32), bootstrap=0, verbose=0)
    assert report.to_dict() == compiled().report(X, Y, bootstrap=0, verbose=0).to_dict()
    report.plot(tmp_path / "report.png")


def test_reports_on_other_samples_are_not_compared():
    outputs = torch.randn(6, 2)
    first, second = (torch.tensor(y) for y in ([0, 0, -100, 1, 1, 1], [0, -100, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="targets of the reports differ"):
        make_report(outputs, first, bootstrap=0).compare(make_report(outputs, second, bootstrap=0))
