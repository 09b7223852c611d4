"""One fit for every kind of data: each kind trains a model to the very weights that a plain loader gives."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

import easytorch
from easytorch import Model
from easytorch.callbacks import Callback
from easytorch.data import split, targets_of
from easytorch.data.batch import batch_size, make_to_device
from easytorch.data.fast_loaders import TensorBatches, as_tensor_batches
from easytorch.data.seeded import seeded
from tests.loops import blobs, furthest, mlp, same_weights, twins

X, Y = blobs(50)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)]


class Rows(Dataset):
    """A dataset that nobody can look into."""

    def __init__(self, *columns):
        self.columns = columns or (X, Y)

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Unsized:
    """A loader without a length."""

    def __iter__(self):
        return iter(BATCHES)


def compiled(net):
    return Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy")


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return mlp()


@pytest.fixture(scope="module")
def reference(start):
    _, net = twins(start)
    compiled(net).fit(DataLoader(TensorDataset(X, Y), 8), 2, verbose=0)
    return net


def frame():
    return pd.DataFrame(X.numpy().astype("float64"), columns=[f"column {i}" for i in range(8)])


ARRAYS = {"batch_size": 8, "shuffle": False}
KINDS = {
    "17 DataLoader": (lambda: (DataLoader(TensorDataset(X, Y), 8),), {}),
    "18 Dataset": (lambda: (Rows(),), ARRAYS),
    "18 IterableDataset": (lambda: (Stream(),), {"batch_size": 8}),
    "18 Subset": (lambda: (Subset(Rows(), range(50)),), ARRAYS),
    "19 tensors": (lambda: (X, Y), ARRAYS),
    "19 tensors in a tuple": (lambda: ((X, Y),), ARRAYS),
    "20 NumPy": (lambda: (X.numpy(), Y.numpy()), ARRAYS),
    "20 NumPy of doubles and short integers": (lambda: (X.numpy().astype("float64"), Y.numpy()), ARRAYS),
    "20 lists of numbers": (lambda: (X.tolist(), Y.tolist()), ARRAYS),
    "20 NumPy of short labels": (lambda: (X.numpy(), Y.numpy().astype("int32")), ARRAYS),
    "20 a list of NumPy's numbers": (lambda: (X, list(Y.numpy())), ARRAYS),
    "20 a list of labels that are tensors": (lambda: (X, list(Y)), ARRAYS),
    "20 lists of rows": (lambda: (list(X), list(Y)), ARRAYS),
    "20 lists of NumPy's rows": (lambda: (list(X.numpy()), list(Y.numpy().astype("int16"))), ARRAYS),
    "20 a list of rows and an array": (lambda: (list(X), Y.numpy()), ARRAYS),
    "21 frame and series of short labels": (lambda: (frame(), pd.Series(Y.numpy(), dtype="int8")), ARRAYS),
    "28 list of NumPy batches of short labels": (
        lambda: ([(x.numpy(), y.numpy().astype("int32")) for x, y in BATCHES],),
        {},
    ),
    "24 dict of arrays with short labels": (
        lambda: ({"input": X.numpy(), "label": Y.numpy().astype("int32")},),
        ARRAYS,
    ),
    "21 frame and series of labels that may miss some": (
        lambda: (frame(), pd.Series(Y.numpy(), dtype="Int32")),
        ARRAYS,
    ),
    "21 frame and series": (lambda: (frame(), pd.Series(Y.numpy())), ARRAYS),
    "26 generator function": (lambda: (lambda: iter(BATCHES),), {}),
    "27 loader without a length": (lambda: (Unsized(),), {}),
    "27 DataLoader without a length": (lambda: (DataLoader(Stream(), 8),), {}),
    "28 list of batches": (lambda: (BATCHES,), {}),
    "28 list of NumPy batches": (lambda: ([(x.numpy(), y.numpy()) for x, y in BATCHES],), {}),
    "32 doubles in a loader": (lambda: (DataLoader(TensorDataset(X.double(), Y), 8),), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_trains_like_a_plain_loader(kind, start, reference):
    make, options = KINDS[kind]
    _, net = twins(start)
    compiled(net).fit(*make(), epochs=2, verbose=0, **options)
    assert same_weights(net, reference) if "doubles" not in kind else furthest(net, reference) < 1e-6


def test_26_a_generator_is_read_once_and_training_says_where_it_stopped(start):
    _, once = twins(start)
    compiled(once).fit(BATCHES, 1, verbose=0)
    model = compiled(twins(start)[1])
    with pytest.warns(UserWarning, match=r"ran out in epoch 1 of 3.*Pass the function"):
        history = model.fit(iter(BATCHES), 3, verbose=0)
    assert history.epoch == [0]
    assert same_weights(model.module, once)


@pytest.mark.parametrize(("batches", "epochs"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 3)])
def test_a_generator_is_read_up_to_its_last_batch_wherever_that_is(batches, epochs, start):
    data = DataLoader(TensorDataset(*blobs(batches * 4)), 4)
    ends = contextlib.nullcontext() if batches > 4 else pytest.warns(UserWarning, match=r"ran out.*Pass the function")
    with ends:
        history = compiled(copy.deepcopy(start)).fit(iter(data), epochs=3, steps_per_epoch=2, verbose=0)
    assert len(history["loss"]) == epochs


def test_26_a_generator_without_end_is_cut_into_epochs(start, reference):
    def forever():
        while True:
            yield from BATCHES

    _, net = twins(start)
    history = compiled(net).fit(forever(), epochs=2, steps_per_epoch=7, verbose=0)
    assert same_weights(net, reference)
    assert len(history["loss"]) == 2


def test_steps_per_epoch_goes_on_where_the_last_epoch_stopped(start, reference):
    _, net = twins(start)
    history = compiled(net).fit(DataLoader(TensorDataset(X, Y), 8), epochs=7, steps_per_epoch=2, verbose=0)
    assert same_weights(net, reference)  # 7 epochs of 2 updates are 2 passes over 7 batches
    assert len(history["loss"]) == 7


class Sum(nn.Module):
    """Takes two inputs by name or by position."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, left, right):
        return self.net(torch.cat([left, right], dim=1))


class WholeDict(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(torch.cat([inputs["left"], inputs["right"]], dim=1))


LEFT, RIGHT = X[:, :3], X[:, 3:]
SEVERAL = {
    "22 dict of arrays": (Sum, lambda: ({"left": LEFT.numpy(), "right": RIGHT.numpy()}, Y), ARRAYS),
    "22 dict of arrays for a module that takes the dict": (
        WholeDict,
        lambda: ({"left": LEFT, "right": RIGHT}, Y),
        ARRAYS,
    ),
    "23 list of arrays": (Sum, lambda: ([LEFT, RIGHT], Y), ARRAYS),
    "23 tuple of arrays": (Sum, lambda: ((LEFT, RIGHT), Y), ARRAYS),
    "23 tuples in batches": (Sum, lambda: ([((x[:, :3], x[:, 3:]), y) for x, y in BATCHES],), {}),
    "24 batches that are dicts": (
        Sum,
        lambda: ([{"left": x[:, :3], "right": x[:, 3:], "y": y} for x, y in BATCHES],),
        {},
    ),
    "24 dicts whose target has another name": (
        Sum,
        lambda: ([{"right": x[:, 3:], "left": x[:, :3], "kind": y} for x, y in BATCHES],),
        {},
    ),
    "22 dict of lists": (Sum, lambda: ({"left": LEFT.tolist(), "right": RIGHT.tolist()}, Y.tolist()), ARRAYS),
    "24 a dict of all rows": (Sum, lambda: ({"left": LEFT, "right": RIGHT, "labels": Y},), ARRAYS),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_inputs_reach_the_arguments_of_forward(kind, start, reference):
    module, make, options = SEVERAL[kind]
    _, net = twins(start)
    compiled(module(net)).fit(*make(), epochs=2, verbose=0, **options)
    assert same_weights(net, reference)


def test_24_one_unnamed_input_beside_the_label_is_the_input(start, reference):
    _, net = twins(start)
    compiled(net).fit([{"image": x, "label": y} for x, y in BATCHES], 2, verbose=0)
    assert same_weights(net, reference)


def test_29_a_hugging_face_dataset_trains_as_it_is(start, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own imports
        datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
        rows = datasets.Dataset.from_dict({"features": X.tolist(), "label": Y.tolist()})
    _, net = twins(start)
    compiled(net).fit(rows, epochs=2, verbose=0, **ARRAYS)
    assert furthest(net, reference) < 1e-6
    assert torch.equal(targets_of(rows), Y)


PREDICTED = {
    "nested lists": (mlp, X.tolist()),
    "lists of NumPy's numbers": (mlp, [list(row) for row in X.numpy()]),
    "the byte order of another machine": (mlp, X.numpy().astype(">f4")),
    "long doubles": (mlp, X.numpy().astype(np.longdouble)),
    "a list of rows": (mlp, list(X)),
    "a list of NumPy's rows": (mlp, list(X.numpy())),
    "a list of inputs": (lambda: Sum(mlp()), [LEFT, RIGHT]),
    "a list of inputs of NumPy": (lambda: Sum(mlp()), [LEFT.numpy(), RIGHT.numpy()]),
    "a tuple of inputs": (lambda: Sum(mlp()), (LEFT, RIGHT)),
    "a list of batches": (mlp, BATCHES),
    "a list of batches of inputs": (mlp, [x for x, _ in BATCHES]),
}


@pytest.mark.parametrize("kind", PREDICTED)
def test_predict_takes_what_fit_takes(kind):
    make, x = PREDICTED[kind]
    net = make()
    expected = (net.net if isinstance(net, Sum) else net)(X).detach().numpy()
    outputs = Model(net, device="cpu").predict(x, verbose=0)
    assert outputs.shape == expected.shape
    assert abs(outputs - expected).max() < 1e-6


def test_one_batch_of_several_inputs_is_predicted():
    model = Model(Sum(mlp()), device="cpu")
    expected = model.predict((LEFT, RIGHT), verbose=0)
    assert (model.predict_on_batch([LEFT, RIGHT]) == expected).all()
    assert (model.predict_on_batch((LEFT, RIGHT)) == expected).all()


def test_predict_refuses_several_inputs_for_a_module_with_one():
    model = Model(mlp(), device="cpu")
    with pytest.raises(
        ValueError, match=r"The module takes one input, 'input', but .* a list of 2 arrays of one shape"
    ):
        model.predict([X, X], verbose=0)
    assert model.predict([(X,), (X,)], verbose=0).shape == (100, 3)


def test_predict_refuses_three_inputs_for_a_module_with_two():
    with pytest.raises(ValueError, match=r"The module takes 2 inputs, 'left', 'right', but .* a list of 3 arrays"):
        Model(Sum(mlp()), device="cpu").predict([LEFT, LEFT, LEFT], verbose=0)


class MakesItsOwnLoss(nn.Module):
    """As the models of Hugging Face do: labels among the arguments, the loss among the outputs."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, features, labels=None):
        logits = self.net(features)
        output = {"logits": logits}
        return output if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **output}


def test_a_module_may_make_its_own_loss(start, reference):
    _, net = twins(start)
    model = Model(MakesItsOwnLoss(net), device="cpu")
    model.compile(lambda p: torch.optim.SGD(p, lr=0.1), metrics=["multiclass_accuracy"])
    history = model.fit({"features": X, "labels": Y}, epochs=2, verbose=0, **ARRAYS)
    assert same_weights(net, reference)
    assert history["multiclass_accuracy"][-1] > 0.3
    assert model.predict({"features": X}, verbose=0)["logits"].shape == (50, 3)


# Loaders and samplers that decide themselves what is drawn


@pytest.mark.parametrize("order", [np.arange(50), torch.arange(50)], ids=["NumPy", "torch"])
def test_a_sampler_may_be_an_array(order, start, reference):
    _, net = twins(start)
    compiled(net).fit(DataLoader(TensorDataset(X, Y), 8, sampler=order), 2, verbose=0)
    assert same_weights(net, reference)


class Repeat:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from self.sampler


class MultiEpochs(DataLoader):
    """Keeps its workers by a sampler without end, as in timm."""

    def __init__(self, *args):
        super().__init__(*args)
        self._DataLoader__initialized = False
        self.batch_sampler = Repeat(self.batch_sampler)
        self._DataLoader__initialized = True
        self.iterator = super().__iter__()

    def __len__(self):
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iterator)


def test_a_loader_may_count_the_batches_of_its_own_sampler(start, reference):
    _, net = twins(start)
    compiled(net).fit(MultiEpochs(TensorDataset(X, Y), 8), 2, verbose=0)
    assert same_weights(net, reference)


LABELLED = range(10, 50)
PARTLY = TensorDataset(X, torch.cat([torch.full((10,), -1), Y[10:]]))


class PartlyCorrupt(Rows):
    def __getitem__(self, index):
        if index not in LABELLED:
            raise OSError(f"sample {index} is corrupt")
        return super().__getitem__(index)


class Keyed(Dataset):
    """Has no length, and keys of its own."""

    def __getitem__(self, key):
        return X[int(key[1:])], Y[int(key[1:])]


def some(dataset):
    return DataLoader(dataset, 8, sampler=SubsetRandomSampler(LABELLED))


DRAWN = {
    "training on some": lambda model: model.fit(some(PARTLY), verbose=0),
    "measuring some": lambda model: model.evaluate(some(PARTLY), verbose=0),
    "validating on some": lambda model: model.fit(X, Y, validation_data=some(PartlyCorrupt()), verbose=0),
    "keys": lambda model: model.fit(X, Y, validation_data=DataLoader(Keyed(), 2, sampler=["k4", "k5"]), verbose=0),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_samples_that_a_sampler_never_draws_are_never_looked_at(kind):
    assert DRAWN[kind](compiled(mlp()))


@pytest.mark.parametrize("rng", [np.random.RandomState, lambda seed: random.SystemRandom()], ids=["seeded", "not"])
def test_trying_out_the_validation_data_leaves_its_generator_alone(rng):
    drawn = []

    class Drawing(Rows):
        def __init__(self):
            super().__init__(X[:4], Y[:4])
            self.rng = rng(0)

        def __getitem__(self, index):
            drawn.append(self.rng.random())
            return super().__getitem__(index)

    compiled(mlp()).fit(X, Y, validation_data=DataLoader(Drawing(), 4), verbose=0)
    assert rng is not np.random.RandomState or drawn[-4:] == np.random.RandomState(0).random(4).tolist()


def test_trying_out_the_validation_data_leaves_the_generator_of_its_collation_alone():
    drawn = []

    class Drawing:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __call__(self, samples):
            drawn.append(self.rng.random())
            return default_collate(samples)

    compiled(mlp()).fit(X, Y, validation_data=DataLoader(Rows(), 50, collate_fn=Drawing()), verbose=0)
    assert drawn[-1] == np.random.default_rng(0).random()


def test_a_packed_sequence_goes_to_the_device_as_torch_sends_it():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 1).double(), torch.ones(2, 1).double()])
    placed, y = make_to_device(torch.device("meta"), torch.float32)((packed, torch.ones(2)))
    expected = packed.to("meta")
    assert placed.data.device == expected.data.device == y.device
    assert placed.batch_sizes.device == expected.batch_sizes.device
    assert placed.data.dtype == torch.float32


def detection(boxes):
    """Return a batch as detection has them: a dict of targets for each image, with so many boxes."""
    return tuple(torch.zeros(3, 8, 8) for _ in boxes), tuple({"boxes": torch.zeros(count, 4)} for count in boxes)


@pytest.mark.parametrize("boxes", [[2, 2, 2, 2], [1, 4], [3]], ids=str)
def test_a_batch_of_images_with_boxes_has_as_many_samples_as_images(boxes):
    assert batch_size(detection(boxes)) == len(boxes)


def test_the_mean_over_batches_of_detection_counts_images():
    class Counting(Model):
        def train_step(self, batch):
            return {"loss": 0 * self.module[0].weight.sum() + len(batch[0])}

    model = Counting(mlp(), device="cpu").compile("sgd")
    history = model.fit([detection([1, 1, 1]), detection([3])], verbose=0)
    assert history["loss"] == [2.5]  # three images of 3, one of 1


# Weights, peers.md rows 43 and 44: the same for every kind of data

WEIGHTS = torch.linspace(0.0, 2.0, 50)
CLASS_WEIGHT = {0: 1.0, 1: 3.0}


def weighted_by_hand(net, weights):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        for i in range(0, 50, 8):
            rows = slice(i, i + 8)
            losses = nn.functional.cross_entropy(net(X[rows]), Y[rows], reduction="none")
            optimizer.zero_grad()
            (losses * weights[rows]).mean().backward()  # multiplied by the weight, averaged over the count
            optimizer.step()
    return net


def class_weights():
    return torch.tensor([1.0, 3.0, 1.0])[Y]


@pytest.mark.parametrize(
    "data",
    [(X, Y), (Rows(),), (DataLoader(Rows(), 8),), (DataLoader(TensorDataset(X, Y), 8, num_workers=1),)],
    ids=["arrays", "dataset", "loader", "workers"],
)
def test_sample_weights_work_for(data, start):
    options = {} if isinstance(data[0], DataLoader) else ARRAYS
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS), twins(start)[1]
    compiled(net).fit(*data, epochs=2, sample_weight=WEIGHTS.numpy(), verbose=0, **options)
    assert furthest(net, by_hand) < 1e-6


def test_25_triplets_carry_sample_weights(start):
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS), twins(start)[1]
    compiled(net).fit([(X[i : i + 8], Y[i : i + 8], WEIGHTS[i : i + 8]) for i in range(0, 50, 8)], 2, verbose=0)
    assert furthest(net, by_hand) < 1e-6


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


def test_balanced_weights_count_the_classes_beside_weights_of_samples_and_a_split(start):
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


def test_class_weights_find_targets_under_a_name_that_is_no_input(start):
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
    """Has an attribute with the labels from 1 on; its samples bring them from 0 on."""

    def __init__(self):
        super().__init__()
        self.targets = Y + 1


class Renumbered(Shifted):
    """Does so as torchvision's datasets do."""

    target_transform = staticmethod(lambda label: label - 1)


Renumbered.__module__ = "torchvision.datasets.mine"


@pytest.mark.parametrize("make", [Shifted, Renumbered])
@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}, {"class_weight": CLASS_WEIGHT}], ids=str)
def test_labels_that_a_dataset_changes_are_those_that_its_samples_bring(make, options, start):
    expected, net = twins(start)
    compiled(expected).fit(Rows(), 2, shuffle=False, verbose=0, **options)
    compiled(net).fit(make(), 2, shuffle=False, verbose=0, **options)
    assert same_weights(net, expected)


class LowerLabels(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, y - 1


def test_labels_that_a_kind_of_tensor_dataset_changes_are_its_own(start):
    expected, net = twins(start)
    compiled(expected).fit(X, Y, epochs=2, shuffle=False, verbose=0)
    compiled(net).fit(LowerLabels(X, Y + 1), 2, shuffle=False, verbose=0)
    assert same_weights(net, expected)


def test_the_transform_of_a_hugging_face_dataset_is_applied(start):
    datasets = pytest.importorskip("datasets")

    def transform(rows):
        return {"input": [2 * torch.tensor(x) for x in rows["input"]], "label": [label - 1 for label in rows["label"]]}

    expected, net = twins(start)
    compiled(expected).fit(2 * X, Y, epochs=2, shuffle=False, verbose=0)
    rows = datasets.Dataset.from_dict({"input": X.tolist(), "label": (Y + 1).tolist()}).with_transform(transform)
    compiled(net).fit(rows, 2, shuffle=False, verbose=0)
    assert furthest(net, expected) < 1e-6


def test_a_hugging_face_stream_of_unknown_columns_is_trained_on(start):
    datasets = pytest.importorskip("datasets")

    def rows():
        for x, y in zip(X.tolist(), Y.tolist(), strict=True):
            yield {"input": x, "label": y}

    expected, net = twins(start)
    compiled(expected).fit(X, Y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    compiled(net).fit(datasets.IterableDataset.from_generator(rows), 2, batch_size=8, verbose=0)
    assert furthest(net, expected) < 1e-6


def test_labels_that_a_transform_makes_are_told_as_it_makes_them():
    assert torch.equal(targets_of(Renumbered()), Y)
    renumbered = Renumbered()
    renumbered.target_transform = lambda label: f"class {label}"
    assert targets_of(renumbered) is None


def test_an_attribute_that_has_not_one_label_for_each_sample_is_none_of_the_targets():
    rows = Rows()
    rows.labels = [0, 1, 2]
    assert targets_of(rows) is None
    first, second = split(rows, fraction=0.2)
    assert (len(first), len(second)) == (40, 10)


def test_an_empty_part_of_a_dataset_is_told_as_such():
    with pytest.raises(ValueError, match="The data is empty"):
        compiled(mlp()).evaluate(DataLoader(Subset(TensorDataset(X, Y), [])), verbose=0)


@pytest.mark.parametrize("wrap", [lambda rows: rows, seeded], ids=["weighted", "weighted and seeded"])
def test_a_split_of_samples_with_weights_gives_every_class_its_share(wrap):
    y = torch.tensor([0] * 90 + [1] * 10)
    rows = wrap(TensorDataset(torch.randn(100, 8), y))
    compiled(mlp()).fit(
        rows, validation_split=0.3, sample_weight=torch.ones(100), verbose=0, callbacks=[(seen := Seen())]
    )
    assert int(y[seen.validated].sum()) == 3


class Seen(Callback):
    """Notes which samples are validated on."""

    def on_train_end(self, logs=None):
        self.validated = torch.tensor(self.model.last_fit["validation"].dataset.indices)


def test_class_and_sample_weights_multiply(start):
    by_hand, net = weighted_by_hand(twins(start)[1], WEIGHTS * class_weights()), twins(start)[1]
    compiled(net).fit(X, Y, epochs=2, class_weight=CLASS_WEIGHT, sample_weight=WEIGHTS, verbose=0, **ARRAYS)
    assert furthest(net, by_hand) < 1e-6


class Tagger(nn.Module):
    """Finds a class for each of four places."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 3)

    def forward(self, x):
        return self.net(x.reshape(len(x), 4, 2)).movedim(2, 1)


@pytest.mark.parametrize("rows", [4, 6], ids=["as many samples as places", "more samples than places"])
def test_the_weight_of_a_sample_multiplies_those_of_its_places(rows):
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
def test_weights_of_samples_multiply_those_of_classes_also_as(kind, start):
    data, options = SHAPES[kind]()
    net = twins(start)[1]
    losses = nn.functional.cross_entropy(net(X), Y, reduction="none")
    history = compiled(net).fit(
        *data, class_weight=CLASS_WEIGHT, verbose=0, **options, **({"batch_size": 50} if options else {})
    )
    assert history["loss"] == [pytest.approx(float((losses * class_weights() * WEIGHTS).mean().detach()))]


TRUTHS = (Y == 1).numpy()


@pytest.mark.parametrize(
    "labels",
    [TRUTHS, pd.Series(TRUTHS), pd.Series(TRUTHS, dtype="boolean"), list(TRUTHS)],
    ids=["array", "series", "series that may miss some", "list"],
)
def test_true_and_false_are_classes(labels, start):
    expected, net = twins(start)
    compiled(expected).fit(X, (Y == 1).long(), verbose=0, **ARRAYS)
    compiled(net).fit(X, labels, verbose=0, **ARRAYS)
    assert same_weights(net, expected)


def test_a_mask_of_true_and_false_stays_one():
    seen = []

    def loss(y_pred, y):
        seen.append(y.dtype)
        return y_pred.square().mean()

    Model(mlp(), device="cpu").compile("sgd", loss).fit(X, (X > 0).numpy(), verbose=0)
    assert set(seen) == {torch.bool}


def test_metrics_take_no_weights_unless_asked():
    model = Model(mlp(), device="cpu").compile(None, "cross_entropy", ["accuracy"], weighted_metrics=["accuracy"])
    scores = model.evaluate(X, Y, sample_weight=WEIGHTS, verbose=0)
    hits = (model.module(X).argmax(1) == Y).double()
    assert scores["accuracy"] == pytest.approx(float(hits.mean()))
    assert scores["weighted_accuracy"] == pytest.approx(float((hits * WEIGHTS).sum() / WEIGHTS.sum()))


# Splits, rows 36 and 37


@pytest.mark.parametrize(
    "data",
    [(X, Y), (TensorDataset(X, Y),), (DataLoader(TensorDataset(X, Y), 8, shuffle=True),), (DataLoader(Rows(), 8),)],
    ids=["arrays", "dataset", "shuffled loader", "loader in order"],
)
def test_validation_split_works_for(data):
    seen = []
    model = compiled(mlp())
    callback = easytorch.callbacks.LambdaCallback(on_test_begin=lambda logs: seen.append(dict(model.callbacks.params)))
    history = model.fit(*data, epochs=1, validation_split=0.2, callbacks=[callback], verbose=0)
    assert "val_loss" in history
    assert seen[0]["test_steps"] * model.state.step > 0


def test_a_split_gives_each_class_its_share_and_is_the_same_every_time():
    y = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    torch.manual_seed(1)
    train, test = split(torch.randn(100, 2), y, fraction=0.2)
    torch.manual_seed(2)
    _, again = split(torch.randn(100, 2), y, fraction=0.2)
    assert torch.bincount(targets_of(test)).tolist() == [16, 3, 1]
    assert len(train) == 80
    assert test.indices == again.indices
    assert not set(train.indices) & set(test.indices)


@pytest.mark.parametrize(
    "arrays", [tuple, lambda pair: tuple(part.numpy() for part in pair)], ids=["tensors", "arrays"]
)
def test_a_split_of_arrays_is_two_datasets_to_train_and_to_measure_on(arrays, start):
    pair = blobs(40)
    train, test = split(*arrays(pair), fraction=0.25)
    net = copy.deepcopy(start)
    model = compiled(net)
    model.fit(train, batch_size=8, shuffle=False, verbose=0)
    again = copy.deepcopy(start)
    plain = torch.utils.data.TensorDataset(*pair)
    compiled(again).fit(Subset(plain, train.indices), batch_size=8, shuffle=False, verbose=0)
    assert same_weights(net, again)
    assert [list(part.shape) for part in next(iter(DataLoader(test, 4)))] == [[4, *pair[0].shape[1:]], [4]]
    assert model.predict(test, verbose=0).shape[0] == 10
    assert len(easytorch.data.in_memory(test, verbose=False)[0]) == 2


def test_rows_in_a_dataset_make_the_batches_of_torch_be_they_sliced_or_not():
    x, y = blobs(12)
    for tree in ((x, y), {"x": x, "y": (y, x)}, x):
        loader = DataLoader(easytorch.data.ArrayDataset(tree), 5)
        assert isinstance(as_tensor_batches(loader), TensorBatches)
        for ours, torchs in zip(as_tensor_batches(loader), loader, strict=True):
            assert str(ours) == str(torchs)


@pytest.mark.parametrize("y", [X.clone(), Y], ids=["targets shaped as the inputs", "labels"])
def test_the_parts_of_split_arrays_go_into_a_plain_loader(y):
    train, test = split(X, y, 0.2)
    for part in (train, test):
        batch = next(iter(DataLoader(part, len(part))))
        assert not isinstance(batch, torch.Tensor)
        inputs, targets = batch
        assert torch.equal(inputs, X[part.indices])
        assert torch.equal(targets, y[part.indices])


def test_the_parts_of_split_arrays_are_trained_and_validated_on():
    train, test = split(X, Y, 0.2)
    assert "val_loss" in compiled(mlp()).fit(train, validation_data=test, verbose=0)


def test_a_column_of_labels_is_split_with_a_share_of_each_class():
    y = torch.tensor([0] * 98 + [1] * 2)[:, None]
    _, expected = split(TensorDataset(torch.randn(100, 2), y[:, 0]), 0.5)
    _, test = split(TensorDataset(torch.randn(100, 2), y), 0.5)
    assert test.indices == expected.indices
    assert int(y[test.indices].sum()) == 1


def test_a_share_may_be_a_number_of_numpy():
    assert [len(part) for part in split(X, Y.numpy(), np.float32(0.2))] == [40, 10]


def test_a_loader_that_draws_only_some_samples_is_not_split():
    rows = TensorDataset(X, Y)
    loader = DataLoader(rows, 8, sampler=RandomSampler(rows, num_samples=10))
    with pytest.raises(ValueError, match="validation_split cannot split this DataLoader: it has a sampler"):
        compiled(mlp()).fit(loader, validation_split=0.2, verbose=0)


def test_wrong_targets_of_a_split_are_told_in_the_terms_of_what_was_given():
    with pytest.raises(TypeError, match=r'y\.astype\("int64"\)'):
        compiled(mlp()).fit(X.numpy(), Y.numpy().astype("float32"), validation_split=0.2, verbose=0)


def test_a_split_touches_no_random_generator():
    before = torch.get_rng_state()
    split(X, Y, fraction=0.3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_with_a_sampler_of_its_own_is_not_split():
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 50, 50)
    with pytest.raises(ValueError, match=r"sampler.*easytorch\.data\.split"):
        compiled(mlp()).fit(DataLoader(Rows(), 8, sampler=sampler), validation_split=0.2, verbose=0)


def pairs():
    return [(x, int(y)) for x, y in zip(X, Y, strict=True)]


SAMPLES = {
    "pairs": pairs,
    "pairs of tensors": lambda: list(zip(X, Y, strict=True)),
    "dicts": lambda: [{"input": x, "label": y} for x, y in pairs()],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_loader_of_a_list_of_samples_is_split_and_weighed_as_one_of_a_dataset(kind, start):
    expected, net = twins(start)
    options = {"epochs": 2, "validation_split": 0.2, "class_weight": "balanced", "verbose": 0}
    one = compiled(expected).fit(DataLoader(TensorDataset(X, Y), 8), **options)
    other = compiled(net).fit(DataLoader(SAMPLES[kind](), 8), **options)
    assert one["val_loss"] == other["val_loss"]
    assert same_weights(net, expected)


def test_a_list_of_samples_is_split_with_a_share_of_each_class():
    _, expected = split(TensorDataset(X, Y), 0.3)
    train, test = split(pairs(), 0.3)
    assert test.indices == expected.indices
    assert torch.equal(targets_of(train), torch.tensor([y for _, y in train]))


def test_a_list_of_rows_without_targets_is_split():
    train, test = split(list(X), 0.2)
    assert (len(train), len(test)) == (40, 10)


@pytest.mark.parametrize("share", [20, 1.5])
def test_a_share_that_is_none_is_told_also_in_the_second_place(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, received {share}"):
        split(pairs(), share)


def test_labels_that_are_text_or_ragged_are_no_targets_at_hand():
    assert targets_of([(X[0], "cat"), (X[1], "dog")]) is None
    assert targets_of([(X[0], torch.zeros(2)), (X[1], torch.zeros(3))]) is None
    assert targets_of([(1, 2, 3, 4)]) is None
    assert targets_of(list(X)) is None


# Several outputs


class TwoHeads(nn.Module):
    def __init__(self, named):
        super().__init__()
        self.kind, self.size, self.named = nn.Linear(8, 3), nn.Linear(8, 1), named

    def forward(self, x):
        kind, size = self.kind(x), self.size(x)
        return {"kind": kind, "size": size} if self.named else (kind, size)


class Crossed(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.kind, self.size = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, left, right):
        return self.kind(left), self.size(right)


@pytest.mark.parametrize("kind", [list, tuple])
def test_two_inputs_and_two_targets_are_not_taken_for_two_samples(kind):
    model = Model(Crossed(), device="cpu").compile("sgd", ["cross_entropy", "mse"])
    model.fit([X, X], kind([Y, X[:, :1]]), verbose=0)
    model.fit([X[:2], X[:2]], kind([Y[:2], X[:2, :1]]), verbose=0)
    assert model.state.step == 3


@pytest.mark.parametrize("named", [True, False])
def test_each_output_has_its_loss_weight_and_metrics(named):
    size = X[:, :1] * 2
    names = ("kind", "size") if named else ("output_1", "output_2")

    def pack(kind, size):
        return {"kind": kind, "size": size} if named else [kind, size]

    model = Model(TwoHeads(named), device="cpu").compile(
        "sgd", pack("cross_entropy", "mse"), metrics=pack(["accuracy"], ["mae"]), loss_weights=pack(1.0, 0.5)
    )
    targets = pack(Y, size) if named else (Y, size)
    model.fit(X, targets, epochs=1, verbose=0)
    scores = model.evaluate(X, targets, verbose=0)
    assert scores.keys() == ["loss", f"{names[0]}_loss", f"{names[1]}_loss", f"{names[0]}_accuracy", f"{names[1]}_mae"]
    assert scores["loss"] == pytest.approx(scores[f"{names[0]}_loss"] + 0.5 * scores[f"{names[1]}_loss"], rel=1e-5)
    assert len(model.predict(X, verbose=0)) == 2
