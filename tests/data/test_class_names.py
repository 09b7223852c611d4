"""Labels that are text, and the names of classes."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import LabelEncoder
from torch import nn
from torch.utils.data import DataLoader, Dataset

from easytorch import Model, ResumeError
from easytorch.callbacks import EarlyStopping

torch.manual_seed(0)
X = torch.randn(24, 4)
LABELS = ["dog", "Cat", "bird", "dog"] * 6
NUMBERS = torch.from_numpy(LabelEncoder().fit_transform(LABELS))
YES = ["yes" if value > 0 else "no" for value in X[:, 0]]


def compiled(outputs=3, loss="cross_entropy", net=None, **options):
    torch.manual_seed(1)
    net = nn.Linear(4, outputs) if net is None else net()
    return Model(net, device="cpu").compile("sgd", loss, lr=0.5, **options)


def fit(model, *data, **options):
    return model.fit(*data, verbose=0, **({"shuffle": False} | options))


TEXTS = {
    "list": lambda labels: labels,
    "tuple": tuple,
    "rows": lambda labels: [[label] for label in labels],
    "array": np.array,
    "column": lambda labels: np.array(labels)[:, None],
    "bytes": lambda labels: np.array(labels, dtype="S"),
    "objects": lambda labels: np.array(labels, dtype=object),
    "series": pd.Series,
    "string series": lambda labels: pd.Series(labels, dtype="string"),
    "frame": lambda labels: pd.DataFrame({"kind": labels}),
    "index": pd.Index,
}


@pytest.mark.parametrize("text", TEXTS)
def test_training_is_that_of_the_numbers_of_scikit_learn(text):
    labels = TEXTS[text](LABELS)
    expected, model = compiled(metrics=["accuracy"]), compiled(metrics=["accuracy"])
    plain = fit(expected, X, NUMBERS, epochs=2, validation_data=(X, NUMBERS))
    history = fit(model, X, labels, epochs=2, validation_data=(X, labels))
    assert dict(history) == dict(plain)
    assert torch.equal(model.module.weight, expected.module.weight)
    assert model.class_names == list(LabelEncoder().fit(LABELS).classes_) == ["Cat", "bird", "dog"]
    assert dict(model.evaluate(X, labels, verbose=0)) == dict(expected.evaluate(X, NUMBERS, verbose=0))
    assert dict(model.test_on_batch(X, labels)) == dict(expected.test_on_batch(X, NUMBERS))
    assert dict(model.train_on_batch(X, labels)) == dict(expected.train_on_batch(X, NUMBERS))


@pytest.mark.parametrize("data", [(X, LABELS), {"input": X, "label": np.array(LABELS)}], ids=["tuple", "dict"])
def test_labels_may_be_a_part_of_the_data(data):
    model = compiled()
    fit(model, data, validation_data=data, validation_freq=1)
    assert model.class_names == ["Cat", "bird", "dog"]
    assert model.predict(data, verbose=0).shape == (24, 3)


def test_categories_keep_their_order():
    model = compiled()
    fit(model, X, pd.Series(pd.Categorical(LABELS, ["dog", "bird", "Cat"])))
    assert model.class_names == ["dog", "bird", "Cat"]
    other = compiled(4)
    fit(other, X, pd.Categorical(LABELS, ["dog", "bird", "Cat", "fish"]))
    assert other.class_names[-1] == "fish"


def test_numbers_and_booleans_have_no_names():
    for y in (NUMBERS, NUMBERS.numpy(), pd.Series(NUMBERS.numpy(), dtype="category"), NUMBERS > 0):
        model = compiled()
        fit(model, X, y)
        assert model.class_names is None
        assert model.predict_classes(X, verbose=0).dtype == np.int64


# Predictions


def test_predict_classes_returns_names_or_numbers():
    model = compiled()
    fit(model, X, LABELS, epochs=3)
    names, numbers = model.predict_classes(X, verbose=0), model.predict_classes(X, names=False, verbose=0)
    assert np.array_equal(names, LabelEncoder().fit(LABELS).inverse_transform(numbers))
    assert names.dtype.kind == "U"
    assert np.array_equal(numbers, model.predict(X, verbose=0).argmax(1))


@pytest.mark.parametrize("head", [(), (nn.Flatten(0),)], ids=["column", "flat"])
def test_a_binary_loss_has_two_names(head):
    model = compiled(loss="bce_with_logits", net=lambda: nn.Sequential(nn.Linear(4, 1), *head), metrics=["accuracy"])
    fit(model, X, YES, epochs=20, class_weight="balanced")
    predicted = model.predict_classes(X, verbose=0)
    assert model.class_names == ["no", "yes"]
    assert predicted.shape == (24,)
    assert model.evaluate(X, YES, verbose=0)["accuracy"] == pytest.approx((predicted == np.array(YES)).mean())
    probabilities = model.predict_proba(X, verbose=0).flatten()
    for threshold in (0.3, 0.9):
        expected = np.where(probabilities > threshold, "yes", "no")
        assert np.array_equal(model.predict_classes(X, threshold=threshold, verbose=0), expected)


def test_a_threshold_holds_for_each_of_several_labels():
    model = compiled(3, "bce_with_logits")
    probabilities = model.predict_proba(X, verbose=0)
    assert np.array_equal(model.predict_classes(X, verbose=0), probabilities > 0.5)
    assert np.array_equal(model.predict_classes(X, threshold=0.3, verbose=0), probabilities > 0.3)
    model.class_names = ["a", "b", "c"]  # of the labels, which may be true together
    assert np.array_equal(model.predict_classes(X, threshold=0.3, verbose=0), probabilities > 0.3)


@pytest.mark.parametrize("threshold", [1.5, -0.1, "high", True, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be a probability from 0 to 1"):
        compiled(1, "bce_with_logits").predict_classes(X, threshold=threshold, verbose=0)


def test_a_threshold_for_several_classes_is_refused():
    with pytest.raises(ValueError, match="threshold has no effect on the loss, CrossEntropyLoss"):
        compiled().predict_classes(X, threshold=0.3, verbose=0)


def test_names_may_be_set():
    model = compiled()
    fit(model, X, NUMBERS)
    model.class_names = np.array(["one", "two", "three"])
    assert set(model.predict_classes(X, verbose=0)) <= {"one", "two", "three"}
    model.class_names = ["one"]
    with pytest.raises(ValueError, match="has 1 names, but the module predicts class"):
        model.predict_classes(X, verbose=0)
    model.class_names = ["one", "one", "two"]
    with pytest.raises(ValueError, match="list of distinct texts"):
        model.predict_classes(X, verbose=0)


# Weights


def test_class_weights_go_by_name():
    losses = [
        fit(compiled(), X, y, class_weight=weights)["loss"]
        for y, weights in (
            (LABELS, {"dog": 2.0, "Cat": 0.5}),
            (LABELS, pd.Series({"dog": 2.0, "Cat": 0.5})),
            (LABELS, {2: 2.0, 0: 0.5}),
            (NUMBERS, {2: 2.0, 0: 0.5}),
        )
    ]
    assert losses[0] == losses[1] == losses[2] == losses[3]
    balanced = [fit(compiled(), X, y, class_weight="balanced")["loss"] for y in (LABELS, NUMBERS)]
    assert balanced[0] == balanced[1]


def test_a_weight_of_an_unknown_class_is_refused():
    with pytest.raises(
        ValueError, match=r"weight for 'dogs', which is no class\. Did you mean 'dog'\?.*'Cat', 'bird', 'dog'"
    ):
        fit(compiled(), X, LABELS, class_weight={"Cat": 1.0, "dogs": 2.0})


# Errors


@pytest.mark.parametrize(
    "run",
    [
        lambda model, y: fit(model, X, y),
        lambda model, y: fit(model, X, LABELS, validation_data=(X, y)),
        lambda model, y: model.evaluate(X, y, verbose=0),
        lambda model, y: model.train_on_batch(X, y),
        lambda model, y: model.test_on_batch((X, y)),
    ],
    ids=["fit", "validation data", "evaluate", "train_on_batch", "test_on_batch"],
)
def test_an_unknown_label_is_refused_by_its_name(run):
    model = compiled()
    fit(model, X, LABELS)
    with pytest.raises(ValueError, match=r"unknown classes: 'dgo'\. Did you mean 'dog'\?.*'Cat', 'bird', 'dog'"):
        run(model, [*LABELS[:-1], "dgo"])
    run(model, ["bird"] * 24)


def test_labels_need_names_before_they_are_evaluated():
    for run in (lambda m: m.evaluate(X, LABELS, verbose=0), lambda m: m.train_on_batch(X, LABELS)):
        with pytest.raises(ValueError, match=r"no class names. Call fit\(\)"):
            run(compiled())
    model = compiled()
    model.class_names = ["dog", "bird", "Cat"]
    assert model.train_on_batch(X, LABELS)["loss"] > 0


@pytest.mark.parametrize(
    ("outputs", "loss", "labels", "message"),
    [
        (
            5,
            "cross_entropy",
            LABELS,
            "3 classes, 'Cat', 'bird', 'dog', but the module has 5 outputs. Give the last layer 3",
        ),
        (2, "cross_entropy", LABELS, "3 classes, 'Cat', 'bird', 'dog', but the module has 2 outputs"),
        (1, "bce_with_logits", LABELS, "is for two classes, but the labels have 3 classes, 'Cat', 'bird', 'dog'"),
        (2, "bce_with_logits", YES, "2 outputs per sample, but the targets have one integer per sample"),
        (1, "mse", LABELS, "text, but the loss, MSELoss.., compares numbers"),
        (3, "cross_entropy", [*LABELS[:-1], None], "mix text, 'dog' in row 0, with other values, None in row 23"),
        (
            3,
            "cross_entropy",
            pd.Series([*LABELS[:-1], None]),
            "'dog' in row 0, with other values, (nan|None) in row 23",
        ),
        (3, "cross_entropy", [5, *LABELS[1:]], "mix text, 'Cat' in row 1, with other values, 5 in row 0"),
        (3, "cross_entropy", [["dog", "Cat"]] * 24, "text for 24 outputs, but there is one loss"),
        (3, "cross_entropy", np.array([["dog", "Cat"]] * 24), r"one name per sample, received text of shape \[24, 2\]"),
        (3, "cross_entropy", LABELS[:-1], "different lengths"),
    ],
)
def test_labels_that_do_not_suit_the_model_are_refused(outputs, loss, labels, message):
    model = compiled(outputs, loss)
    with pytest.raises((ValueError, TypeError), match=message):
        fit(model, X, labels)
    assert model.class_names is None  # so that the next labels may have other names
    assert model.state.step == 0


def test_the_rows_of_a_series_of_text_are_compared_with_the_inputs():
    frame = pd.DataFrame(X.numpy())
    with pytest.raises(ValueError, match="same labels in another order"):
        fit(compiled(), frame, pd.Series(LABELS).sample(frac=1, random_state=0))
    with pytest.raises(ValueError, match="same labels in another order"):
        compiled().train_on_batch(frame, pd.Series(NUMBERS.numpy()).sample(frac=1, random_state=0))


# Several outputs


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.kind, self.yes = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        return {"kind": self.kind(x), "yes": self.yes(x)}


class HeadsInTuple(Heads):
    def forward(self, x):
        return tuple(super().forward(x).values())


def test_each_output_has_its_names():
    losses = {"kind": "cross_entropy", "yes": "bce_with_logits"}
    model = compiled(loss=losses, net=Heads)
    fit(model, X, {"kind": LABELS, "yes": YES}, validation_data=(X, {"kind": LABELS, "yes": YES}))
    assert model.class_names == {"kind": ["Cat", "bird", "dog"], "yes": ["no", "yes"]}
    named = model.predict_classes(X, threshold=0.0, verbose=0)
    assert set(named["kind"]) <= set(LABELS)
    assert list(named["yes"]) == ["yes"] * 24
    assert model.predict_classes(X, names=False, verbose=0)["yes"].shape == (24, 1)
    in_tuple = compiled(loss=list(losses.values()), net=HeadsInTuple)
    fit(in_tuple, X, (LABELS, (X[:, 0] > 0).long()))
    assert in_tuple.class_names == {"output_1": ["Cat", "bird", "dog"]}
    kinds, yes = in_tuple.predict_classes(X, verbose=0)
    assert (kinds.dtype.kind, yes.dtype) == ("U", np.int64)


# Loaders


class Texts(Dataset):
    classes = ("Cat", "bird", "dog")

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return X[index], LABELS[index]


@pytest.mark.parametrize(
    "data",
    [lambda: Texts(), lambda: DataLoader(Texts(), 6), lambda: [(X[:9], LABELS[:9]), (X[9:], tuple(LABELS[9:]))]],
    ids=["dataset", "loader", "batches"],
)
def test_text_in_batches_needs_the_names(data):
    model = compiled(metrics=["accuracy"], gradient_accumulation_steps=2)
    options = {"verbose": 0}
    with pytest.raises(ValueError, match=r"targets of a batch are text.*set model\.class_names = \[\.\.\.\]"):
        model.fit(data(), **options)
    assert model.predict(data(), verbose=0).shape == (24, 3)
    model.class_names = Texts.classes
    model.fit(data(), class_weight={"dog": 2.0}, **options)
    expected = model.evaluate(X, NUMBERS, verbose=0)
    assert dict(model.evaluate(data(), verbose=0)) == pytest.approx(dict(expected))


def test_class_names_of_a_dataset_are_not_taken():
    class Numbers(Texts):
        def __getitem__(self, index):
            return X[index], NUMBERS[index]

    model = compiled()
    model.fit(Numbers(), verbose=0)
    assert model.class_names is None


# Files


def test_names_are_saved_and_loaded(tmp_path):
    model = compiled()
    fit(model, X, LABELS)
    path = model.save(tmp_path / "model.pt")
    loaded = Model(nn.Linear(4, 3), device="cpu").load(path)
    assert loaded.class_names == model.class_names
    assert np.array_equal(loaded.predict_classes(X, verbose=0), model.predict_classes(X, verbose=0))
    assert copy.deepcopy(model).class_names == model.class_names


def test_columns_are_saved_and_loaded(tmp_path):
    frame = pd.DataFrame(X.numpy(), columns=list("abcd"))
    model = compiled()
    fit(model, frame, LABELS)
    loaded = Model(nn.Linear(4, 3), device="cpu").load(model.save(tmp_path / "model.pt"))
    reordered = frame[list("dcba")]
    assert np.array_equal(loaded.predict(reordered, verbose=0), model.predict(frame, verbose=0))
    assert loaded.test_on_batch(reordered, LABELS)["loss"] == model.test_on_batch(frame, LABELS)["loss"]
    assert np.array_equal(loaded.predict_on_batch(reordered), model.predict(frame, verbose=0))


def test_a_later_fit_keeps_the_order_of_columns(tmp_path):
    frame = pd.DataFrame(X.numpy(), columns=list("abcd"))
    expected, model = compiled(), compiled()
    for data in (frame, frame):
        fit(expected, data, LABELS)
    for data in (frame, frame[list("dcba")]):
        fit(model, data, LABELS)
    assert torch.equal(model.module.weight, expected.module.weight)
    fit(compiled(), frame, LABELS, resume=tmp_path)
    with pytest.raises(ResumeError, match=r"columns of inputs \['a', 'b', 'c', 'd'\].*\['d', 'c', 'b', 'a'\]"):
        fit(compiled(), frame[list("dcba")], LABELS, epochs=2, resume=tmp_path)


def test_names_are_those_of_the_run_that_is_resumed(tmp_path):
    folder = tmp_path / "run"
    fit(compiled(), X, LABELS, epochs=1, resume=folder)
    resumed = compiled()
    fit(resumed, X, LABELS, epochs=2, resume=folder)
    expected = compiled()
    fit(expected, X, LABELS, epochs=2)
    assert torch.equal(resumed.module.weight, expected.module.weight)
    assert resumed.class_names == ["Cat", "bird", "dog"]
    others = compiled()
    with pytest.raises(ResumeError, match=r"had the classes \['Cat', 'bird', 'dog'\].*has \['Cat', 'bird', 'cow'\]"):
        fit(others, X, [label.replace("dog", "cow") for label in LABELS], epochs=3, resume=folder)
    assert others.class_names is None


def test_the_same_names_are_used_after_another_compile():
    model = compiled()
    fit(model, X, LABELS, callbacks=[EarlyStopping("loss")])
    model.compile("adam", "cross_entropy")
    fit(model, X, ["bird"] * 24)
    assert model.class_names == ["Cat", "bird", "dog"]
    model.class_names = None
    fit(model, X, [label.lower() for label in LABELS])
    assert model.class_names == ["bird", "cat", "dog"]
