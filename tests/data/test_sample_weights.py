"""Weights of samples and classes have the same effect for each kind of data."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from easytorch import Model
from easytorch.callbacks import Callback
from easytorch.data import split, targets_of
from easytorch.data.batch import Batch
from easytorch.data.sample_weights import ClassWeight
from easytorch.data.seeded import seeded
from tests.data.common_inputs import ARRAYS, BATCHES, Rows, X, Y, compiled
from tests.loops import furthest, mlp, same_weights, twins

WEIGHTS = torch.linspace(0.0, 2.0, 50)
CLASS_WEIGHT = {0: 1.0, 1: 3.0}


def weighted_by_hand(net, weights):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        for i in range(0, 50, 8):
            rows = slice(i, i + 8)
            losses = nn.functional.cross_entropy(net(X[rows]), Y[rows], reduction="none")
            optimizer.zero_grad()
            # Multiplied by the weight, averaged over the number of samples.
            (losses * weights[rows]).mean().backward()
            optimizer.step()
    return net


def class_weights():
    return torch.tensor([1.0, 3.0, 1.0])[Y]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        ({"x": X, "y": Y},),
        (Rows(),),
        (DataLoader(Rows(), 8),),
        (DataLoader(TensorDataset(X, Y), 8, num_workers=1),),
    ],
    ids=["arrays", "dict", "dataset", "loader", "workers"],
)
def test_sample_weights_work_for(data, start):
    options = {} if isinstance(data[0], DataLoader) else ARRAYS
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS), twins(start)[1]
    compiled(net).fit(*data, epochs=2, sample_weight=WEIGHTS.numpy(), verbose=0, **options)
    assert furthest(net, by_hand) < 1e-6


def test_batches_of_three_parts_have_sample_weights(start):
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS), twins(start)[1]
    compiled(net).fit([(X[i : i + 8], Y[i : i + 8], WEIGHTS[i : i + 8]) for i in range(0, 50, 8)], 2, verbose=0)
    assert furthest(net, by_hand) < 1e-6


def test_weights_of_a_dict_and_sample_weight_multiply(start):
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS), twins(start)[1]
    data = {"x": X, "label": Y, "sample_weight": WEIGHTS.sqrt()}
    model = compiled(net)
    model.fit(data, epochs=2, sample_weight=WEIGHTS.sqrt().tolist(), verbose=0, **ARRAYS)
    assert furthest(net, by_hand) < 1e-6
    score = model.evaluate({"x": X, "label": Y}, sample_weight=WEIGHTS, verbose=0)["loss"]
    assert score == pytest.approx(model.evaluate(X, Y, sample_weight=WEIGHTS, verbose=0)["loss"])
    batch = {"x": X[:8], "label": Y[:8]}
    assert model.test_on_batch(batch, sample_weight=WEIGHTS[:8]) == model.test_on_batch(X[:8], Y[:8], WEIGHTS[:8])


@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.functional.cross_entropy, nn.CrossEntropyLoss()], ids=["name", "function", "module"]
)
@pytest.mark.parametrize("data", [(X, Y), (DataLoader(Rows(), 8),), (BATCHES,)], ids=["arrays", "loader", "batches"])
def test_class_weights_work_for(data, loss, start):
    options = ARRAYS if len(data) == 2 else {}
    by_hand, net = weighted_by_hand(twins(start)[1], class_weights()), twins(start)[1]
    model = Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), loss)
    model.fit(*data, epochs=2, class_weight=CLASS_WEIGHT, verbose=0, **options)
    assert furthest(net, by_hand) < 1e-6


@pytest.mark.parametrize("data", [(X, Y), (Rows(),), (DataLoader(Rows(), 8),)], ids=["arrays", "dataset", "loader"])
def test_balanced_weights_count_the_classes(data, start):
    counts = torch.bincount(Y)
    weights = (50 / (3 * counts))[Y]
    by_hand, net = weighted_by_hand(twins(start)[1], weights), twins(start)[1]
    options = {} if isinstance(data[0], DataLoader) else ARRAYS
    compiled(net).fit(*data, epochs=2, class_weight="balanced", verbose=0, **options)
    assert furthest(net, by_hand) < 1e-6


def test_balanced_works_with_sample_weight_and_a_split(start):
    options = {"sample_weight": WEIGHTS, "validation_split": 0.2, "shuffle": False, "verbose": 0}
    expected, net = twins(start)
    compiled(net).fit(Rows(), class_weight="balanced", callbacks=[(seen := Seen())], **options)
    trained = torch.ones(50, dtype=torch.bool)
    trained[seen.validated] = False
    counts = torch.bincount(Y[trained])
    compiled(expected).fit(Rows(), class_weight=(40 / (3 * counts)).tolist(), **options)
    assert furthest(net, expected) < 1e-6


def test_class_weights_may_be_a_series_in_any_order(start):
    expected, net = twins(start)
    series = 1 / pd.Series(Y.numpy()).value_counts()
    assert series.index.tolist() != [0, 1, 2]
    compiled(expected).fit(X, Y, class_weight=series.to_dict(), verbose=0, **ARRAYS)
    compiled(net).fit(X, Y, class_weight=series, verbose=0, **ARRAYS)
    assert same_weights(net, expected)


def test_class_weights_find_targets_by_elimination(start):
    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, features):
            return self.net(features)

    expected, net = twins(start)
    compiled(expected).fit(X, Y, class_weight=CLASS_WEIGHT, verbose=0, **ARRAYS)
    compiled(Named(net)).fit({"features": X, "kind": Y}, class_weight=CLASS_WEIGHT, verbose=0, **ARRAYS)
    assert same_weights(net, expected)


class Shifted(Rows):
    """A dataset whose attribute counts labels from 1, and whose samples count them from 0."""

    def __init__(self):
        super().__init__()
        self.targets = Y + 1


class Renumbered(Shifted):
    """A dataset with a target_transform, as in torchvision."""

    target_transform = staticmethod(lambda label: label - 1)


Renumbered.__module__ = "torchvision.datasets.mine"


@pytest.mark.parametrize("make", [Shifted, Renumbered])
@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}, {"class_weight": CLASS_WEIGHT}], ids=str)
def test_labels_come_from_samples_if_the_attribute_differs(make, options, start):
    expected, net = twins(start)
    compiled(expected).fit(Rows(), 2, shuffle=False, verbose=0, **options)
    compiled(net).fit(make(), 2, shuffle=False, verbose=0, **options)
    assert same_weights(net, expected)


class LowerLabels(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, y - 1


def test_tensor_dataset_subclass_may_change_labels(start):
    expected, net = twins(start)
    compiled(expected).fit(X, Y, epochs=2, shuffle=False, verbose=0)
    compiled(net).fit(LowerLabels(X, Y + 1), 2, shuffle=False, verbose=0)
    assert same_weights(net, expected)


def test_hugging_face_transform_is_applied(start):
    datasets = pytest.importorskip("datasets")

    def transform(rows):
        return {"input": [2 * torch.tensor(x) for x in rows["input"]], "label": [label - 1 for label in rows["label"]]}

    expected, net = twins(start)
    compiled(expected).fit(2 * X, Y, epochs=2, shuffle=False, verbose=0)
    rows = datasets.Dataset.from_dict({"input": X.tolist(), "label": (Y + 1).tolist()}).with_transform(transform)
    compiled(net).fit(rows, 2, shuffle=False, verbose=0)
    assert furthest(net, expected) < 1e-6


def test_hugging_face_stream_of_unknown_columns_trains(start):
    datasets = pytest.importorskip("datasets")

    def rows():
        for x, y in zip(X.tolist(), Y.tolist(), strict=True):
            yield {"input": x, "label": y}

    expected, net = twins(start)
    compiled(expected).fit(X, Y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    compiled(net).fit(datasets.IterableDataset.from_generator(rows), 2, batch_size=8, verbose=0)
    assert furthest(net, expected) < 1e-6


def test_targets_of_applies_the_target_transform():
    assert torch.equal(targets_of(Renumbered()), Y)
    renumbered = Renumbered()
    renumbered.target_transform = lambda label: f"class {label}"
    assert targets_of(renumbered) is None


def test_attribute_of_another_length_is_not_used_as_targets():
    rows = Rows()
    rows.labels = [0, 1, 2]
    assert targets_of(rows) is None
    first, second = split(rows, fraction=0.2)
    assert (len(first), len(second)) == (40, 10)


def test_empty_subset_is_reported_as_empty_data():
    with pytest.raises(ValueError, match="The data is empty"):
        compiled(mlp()).evaluate(DataLoader(Subset(TensorDataset(X, Y), [])), verbose=0)


@pytest.mark.parametrize("wrap", [lambda rows: rows, seeded], ids=["weighted", "weighted and seeded"])
def test_split_with_sample_weights_is_stratified(wrap):
    y = torch.tensor([0] * 90 + [1] * 10)
    rows = wrap(TensorDataset(torch.randn(100, 8), y))
    compiled(mlp()).fit(
        rows, validation_split=0.3, sample_weight=torch.ones(100), verbose=0, callbacks=[(seen := Seen())]
    )
    assert int(y[seen.validated].sum()) == 3


class Seen(Callback):
    """Records which samples are used for validation."""

    def on_train_end(self, logs=None):
        self.validated = torch.tensor(self.model.last_fit["validation"].dataset.indices)


def test_class_and_sample_weights_multiply(start):
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS * class_weights()), twins(start)[1]
    compiled(net).fit(X, Y, epochs=2, class_weight=CLASS_WEIGHT, sample_weight=WEIGHTS, verbose=0, **ARRAYS)
    assert furthest(net, by_hand) < 1e-6


class Tagger(nn.Module):
    """A module that predicts a class for each of four positions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 3)

    def forward(self, x):
        return self.net(x.reshape(len(x), 4, 2)).movedim(2, 1)


@pytest.mark.parametrize("rows", [4, 6], ids=["as many samples as positions", "more samples than positions"])
def test_sample_weight_multiplies_the_weights_of_positions(rows):
    net, x = Tagger(), X[:rows]
    y, weights = Y[: 4 * rows].reshape(rows, 4), torch.arange(float(rows))
    losses = nn.functional.cross_entropy(net(x), y, reduction="none") * torch.tensor([1.0, 3.0, 2.0])[y]
    expected = float((losses * weights[:, None]).mean().detach())
    model = compiled(net)
    history = model.fit(x, y, class_weight=[1.0, 3.0, 2.0], sample_weight=weights, verbose=0)
    assert history["loss"] == [pytest.approx(expected)]


SHAPES = {
    "a column": lambda: ((X, Y), {"sample_weight": WEIGHTS[:, None]}),
    "NumPy in batches": lambda: (([(X.numpy(), Y.numpy(), WEIGHTS.numpy())],), {}),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_sample_weights_multiply_class_weights_given_as(kind, start):
    data, options = SHAPES[kind]()
    net = twins(start)[1]
    losses = nn.functional.cross_entropy(net(X), Y, reduction="none")
    history = compiled(net).fit(
        *data, class_weight=CLASS_WEIGHT, verbose=0, **options, **({"batch_size": 50} if options else {})
    )
    assert history["loss"] == [pytest.approx(float((losses * class_weights() * WEIGHTS).mean().detach()))]


BOOLEANS = (Y == 1).numpy()


@pytest.mark.parametrize(
    "labels",
    [BOOLEANS, pd.Series(BOOLEANS), pd.Series(BOOLEANS, dtype="boolean"), list(BOOLEANS)],
    ids=["array", "series", "nullable series", "list"],
)
def test_booleans_are_classes(labels, start):
    expected, net = twins(start)
    compiled(expected).fit(X, (Y == 1).long(), verbose=0, **ARRAYS)
    compiled(net).fit(X, labels, verbose=0, **ARRAYS)
    assert same_weights(net, expected)


def test_boolean_mask_stays_boolean():
    seen = []

    def loss(y_pred, y):
        seen.append(y.dtype)
        return y_pred.square().mean()

    Model(mlp(), device="cpu").compile("sgd", loss).fit(X, (X > 0).numpy(), verbose=0)
    assert set(seen) == {torch.bool}


def test_only_weighted_metrics_use_weights():
    model = Model(mlp(), device="cpu").compile(None, "cross_entropy", ["accuracy"], weighted_metrics=["accuracy"])
    scores = model.evaluate(X, Y, sample_weight=WEIGHTS, verbose=0)
    hits = (model.module(X).argmax(1) == Y).double()
    assert scores["accuracy"] == pytest.approx(float(hits.mean()))
    assert scores["weighted_accuracy"] == pytest.approx(float((hits * WEIGHTS).sum() / WEIGHTS.sum()))


class Unknown(Dataset):
    """Samples whose targets are unknown before training."""

    def __init__(self, y):
        self.y = y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return torch.zeros(1), self.y[index]


LOOK_ONE_HOT = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 1]])


def weights_of(y, batch_size):
    loader = DataLoader(Unknown(y), batch_size)
    weigh = ClassWeight([1.0, 5.0], loader)
    return torch.cat([weigh(batch)[2] for batch in loader])


def test_class_weight_of_the_last_sample_has_the_layout_of_the_others():
    assert weights_of(LOOK_ONE_HOT, 2).tolist() == [[1, 5, 1], [5, 5, 1], [1, 1, 5]]


def test_class_weight_refuses_labels_after_a_batch_that_looks_one_hot():
    with pytest.raises(ValueError, match="cannot distinguish class numbers from one-hot rows"):
        weights_of(LOOK_ONE_HOT, 1)


def test_balanced_class_weight_of_batches_counts_one_layout():
    loader = DataLoader(Unknown(LOOK_ONE_HOT), 1)
    weigh = ClassWeight("balanced", loader, unpack=lambda batch: Batch(batch[0], batch[1]))
    torch.testing.assert_close(weigh.table, torch.tensor([9 / 10, 9 / 8]))
