"""Each kind of data trains a model to the same weights as a plain loader."""

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
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from easytorch import Model
from easytorch.data import targets_of
from easytorch.data.batch import batch_size, make_to_device
from tests.data.common_inputs import ARRAYS, BATCHES, Rows, X, Y, compiled
from tests.loops import blobs, furthest, mlp, same_weights, twins


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Unsized:
    """A loader without a length."""

    def __iter__(self):
        return iter(BATCHES)


@pytest.fixture(scope="module")
def reference(start):
    _, net = twins(start)
    compiled(net).fit(DataLoader(TensorDataset(X, Y), 8), 2, verbose=0)
    return net


def make_frame():
    return pd.DataFrame(X.numpy().astype("float64"), columns=[f"column {i}" for i in range(8)])


KINDS = {
    "DataLoader": (lambda: (DataLoader(TensorDataset(X, Y), 8),), {}),
    "Dataset": (lambda: (Rows(),), ARRAYS),
    "IterableDataset": (lambda: (Stream(),), {"batch_size": 8}),
    "Subset": (lambda: (Subset(Rows(), range(50)),), ARRAYS),
    "tensors": (lambda: (X, Y), ARRAYS),
    "tensors in a tuple": (lambda: ((X, Y),), ARRAYS),
    "NumPy": (lambda: (X.numpy(), Y.numpy()), ARRAYS),
    "NumPy of doubles and short integers": (lambda: (X.numpy().astype("float64"), Y.numpy()), ARRAYS),
    "lists of numbers": (lambda: (X.tolist(), Y.tolist()), ARRAYS),
    "NumPy of short labels": (lambda: (X.numpy(), Y.numpy().astype("int32")), ARRAYS),
    "list of NumPy numbers": (lambda: (X, list(Y.numpy())), ARRAYS),
    "a list of labels that are tensors": (lambda: (X, list(Y)), ARRAYS),
    "lists of rows": (lambda: (list(X), list(Y)), ARRAYS),
    "lists of NumPy rows": (lambda: (list(X.numpy()), list(Y.numpy().astype("int16"))), ARRAYS),
    "a list of rows and an array": (lambda: (list(X), Y.numpy()), ARRAYS),
    "frame and series of short labels": (lambda: (make_frame(), pd.Series(Y.numpy(), dtype="int8")), ARRAYS),
    "list of NumPy batches of short labels": (
        lambda: ([(x.numpy(), y.numpy().astype("int32")) for x, y in BATCHES],),
        {},
    ),
    "dict of arrays with short labels": (
        lambda: ({"input": X.numpy(), "label": Y.numpy().astype("int32")},),
        ARRAYS,
    ),
    "frame and nullable series": (
        lambda: (make_frame(), pd.Series(Y.numpy(), dtype="Int32")),
        ARRAYS,
    ),
    "frame and series": (lambda: (make_frame(), pd.Series(Y.numpy())), ARRAYS),
    "generator function": (lambda: (lambda: iter(BATCHES),), {}),
    "loader without a length": (lambda: (Unsized(),), {}),
    "DataLoader without a length": (lambda: (DataLoader(Stream(), 8),), {}),
    "list of batches": (lambda: (BATCHES,), {}),
    "list of NumPy batches": (lambda: ([(x.numpy(), y.numpy()) for x, y in BATCHES],), {}),
    "doubles in a loader": (lambda: (DataLoader(TensorDataset(X.double(), Y), 8),), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_trains_like_a_plain_loader(kind, start, reference):
    make, options = KINDS[kind]
    _, net = twins(start)
    compiled(net).fit(*make(), epochs=2, verbose=0, **options)
    assert same_weights(net, reference) if "doubles" not in kind else furthest(net, reference) < 1e-6


def test_generator_is_read_once_and_its_end_is_reported(start):
    _, once = twins(start)
    compiled(once).fit(BATCHES, 1, verbose=0)
    model = compiled(twins(start)[1])
    with pytest.warns(UserWarning, match=r"stops after epoch 1 of 3.*Pass the function"):
        history = model.fit(iter(BATCHES), 3, verbose=0)
    assert history.epoch == [0]
    assert same_weights(model.module, once)


@pytest.mark.parametrize(("batches", "epochs"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 3)])
def test_generator_is_read_up_to_its_last_batch(batches, epochs, start):
    data = DataLoader(TensorDataset(*blobs(batches * 4)), 4)
    ends = (
        contextlib.nullcontext()
        if batches > 5
        else pytest.warns(UserWarning, match=r"no more data.*Pass the function|had only 1 of steps_per_epoch=2 updates")
    )
    with ends:
        history = compiled(copy.deepcopy(start)).fit(iter(data), epochs=3, steps_per_epoch=2, verbose=0)
    assert len(history["loss"]) == epochs


def test_endless_generator_is_divided_into_epochs(start, reference):
    def forever():
        while True:
            yield from BATCHES

    _, net = twins(start)
    history = compiled(net).fit(forever(), epochs=2, steps_per_epoch=7, verbose=0)
    assert same_weights(net, reference)
    assert len(history["loss"]) == 2


def test_steps_per_epoch_continues_where_the_last_epoch_ended(start, reference):
    _, net = twins(start)
    history = compiled(net).fit(DataLoader(TensorDataset(X, Y), 8), epochs=7, steps_per_epoch=2, verbose=0)
    # 7 epochs of 2 updates are 2 passes over 7 batches.
    assert same_weights(net, reference)
    assert len(history["loss"]) == 7


class Sum(nn.Module):
    """Takes two inputs by name or by position."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, left, right):
        return self.net(torch.cat([left, right], dim=1))


class DictInput(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(torch.cat([inputs["left"], inputs["right"]], dim=1))


LEFT, RIGHT = X[:, :3], X[:, 3:]
SEVERAL = {
    "dict of arrays": (Sum, lambda: ({"left": LEFT.numpy(), "right": RIGHT.numpy()}, Y), ARRAYS),
    "dict of arrays for a module that takes the dict": (
        DictInput,
        lambda: ({"left": LEFT, "right": RIGHT}, Y),
        ARRAYS,
    ),
    "list of arrays": (Sum, lambda: ([LEFT, RIGHT], Y), ARRAYS),
    "tuple of arrays": (Sum, lambda: ((LEFT, RIGHT), Y), ARRAYS),
    "tuples in batches": (Sum, lambda: ([((x[:, :3], x[:, 3:]), y) for x, y in BATCHES],), {}),
    "batches that are dicts": (
        Sum,
        lambda: ([{"left": x[:, :3], "right": x[:, 3:], "y": y} for x, y in BATCHES],),
        {},
    ),
    "dicts whose target has another name": (
        Sum,
        lambda: ([{"right": x[:, 3:], "left": x[:, :3], "kind": y} for x, y in BATCHES],),
        {},
    ),
    "dict of lists": (Sum, lambda: ({"left": LEFT.tolist(), "right": RIGHT.tolist()}, Y.tolist()), ARRAYS),
    "a dict of all rows": (Sum, lambda: ({"left": LEFT, "right": RIGHT, "labels": Y},), ARRAYS),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_inputs_reach_the_arguments_of_forward(kind, start, reference):
    module, make, options = SEVERAL[kind]
    _, net = twins(start)
    compiled(module(net)).fit(*make(), epochs=2, verbose=0, **options)
    assert same_weights(net, reference)


def test_single_dict_entry_next_to_the_label_is_the_input(start, reference):
    _, net = twins(start)
    compiled(net).fit([{"image": x, "label": y} for x, y in BATCHES], 2, verbose=0)
    assert same_weights(net, reference)


def test_hugging_face_dataset_trains_without_conversion(start, reference):
    with warnings.catch_warnings():
        # The imports of the library warn.
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
        rows = datasets.Dataset.from_dict({"features": X.tolist(), "label": Y.tolist()})
    _, net = twins(start)
    compiled(net).fit(rows, epochs=2, verbose=0, **ARRAYS)
    assert furthest(net, reference) < 1e-6
    assert torch.equal(targets_of(rows), Y)


PREDICTED = {
    "nested lists": (mlp, X.tolist()),
    "nested lists of NumPy numbers": (mlp, [list(row) for row in X.numpy()]),
    "foreign byte order": (mlp, X.numpy().astype(">f4")),
    "long doubles": (mlp, X.numpy().astype(np.longdouble)),
    "a list of rows": (mlp, list(X)),
    "a list of NumPy rows": (mlp, list(X.numpy())),
    "a list of inputs": (lambda: Sum(mlp()), [LEFT, RIGHT]),
    "a list of inputs of NumPy": (lambda: Sum(mlp()), [LEFT.numpy(), RIGHT.numpy()]),
    "a tuple of inputs": (lambda: Sum(mlp()), (LEFT, RIGHT)),
    "a list of batches": (mlp, BATCHES),
    "a list of batches of inputs": (mlp, [x for x, _ in BATCHES]),
}


@pytest.mark.parametrize("kind", PREDICTED)
def test_predict_accepts_the_same_data_as_fit(kind):
    make, x = PREDICTED[kind]
    net = make()
    expected = (net.net if isinstance(net, Sum) else net)(X).detach().numpy()
    outputs = Model(net, device="cpu").predict(x, verbose=0)
    assert outputs.shape == expected.shape
    assert abs(outputs - expected).max() < 1e-6


def test_predict_on_batch_accepts_several_inputs():
    model = Model(Sum(mlp()), device="cpu")
    expected = model.predict((LEFT, RIGHT), verbose=0)
    assert (model.predict_on_batch([LEFT, RIGHT]) == expected).all()
    assert (model.predict_on_batch((LEFT, RIGHT)) == expected).all()


def test_predict_rejects_two_inputs_for_a_module_with_one():
    model = Model(mlp(), device="cpu")
    with pytest.raises(
        ValueError, match=r"The module takes one input, 'input', but .* a list of 2 arrays of one shape"
    ):
        model.predict([X, X], verbose=0)
    assert model.predict([(X,), (X,)], verbose=0).shape == (100, 3)


def test_predict_rejects_three_inputs_for_a_module_with_two():
    with pytest.raises(ValueError, match=r"The module takes 2 inputs, 'left', 'right', but .* a list of 3 arrays"):
        Model(Sum(mlp()), device="cpu").predict([LEFT, LEFT, LEFT], verbose=0)


class ReturnsLoss(nn.Module):
    """A module with labels as argument and the loss as output, as in Hugging Face transformers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, features, labels=None):
        logits = self.net(features)
        output = {"logits": logits}
        return output if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **output}


def test_module_may_return_its_loss(start, reference):
    _, net = twins(start)
    model = Model(ReturnsLoss(net), device="cpu")
    model.compile(lambda p: torch.optim.SGD(p, lr=0.1), metrics=["multiclass_accuracy"])
    history = model.fit({"features": X, "labels": Y}, epochs=2, verbose=0, **ARRAYS)
    assert same_weights(net, reference)
    assert history["multiclass_accuracy"][-1] > 0.3
    assert model.predict({"features": X}, verbose=0)["logits"].shape == (50, 3)


# Custom loaders and samplers


@pytest.mark.parametrize("order", [np.arange(50), torch.arange(50)], ids=["NumPy", "torch"])
def test_sampler_may_be_an_array(order, start, reference):
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
    """A loader with persistent workers and an endless sampler, as in timm."""

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


def test_loader_may_count_the_batches_of_a_custom_sampler(start, reference):
    _, net = twins(start)
    compiled(net).fit(MultiEpochs(TensorDataset(X, Y), 8), 2, verbose=0)
    assert same_weights(net, reference)


LABELED = range(10, 50)
PARTLY = TensorDataset(X, torch.cat([torch.full((10,), -1), Y[10:]]))


class PartlyCorrupt(Rows):
    def __getitem__(self, index):
        if index not in LABELED:
            raise OSError(f"sample {index} is corrupt")
        return super().__getitem__(index)


class Keyed(Dataset):
    """A dataset without a length and with text as keys."""

    def __getitem__(self, key):
        return X[int(key[1:])], Y[int(key[1:])]


def draw_labelled(dataset):
    return DataLoader(dataset, 8, sampler=SubsetRandomSampler(LABELED))


DRAWN = {
    "fit": lambda model: model.fit(draw_labelled(PARTLY), verbose=0),
    "evaluate": lambda model: model.evaluate(draw_labelled(PARTLY), verbose=0),
    "validation": lambda model: model.fit(X, Y, validation_data=draw_labelled(PartlyCorrupt()), verbose=0),
    "keys": lambda model: model.fit(X, Y, validation_data=DataLoader(Keyed(), 2, sampler=["k4", "k5"]), verbose=0),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_samples_that_are_never_drawn_are_never_loaded(kind):
    assert DRAWN[kind](compiled(mlp()))


@pytest.mark.parametrize("rng", [np.random.RandomState, lambda seed: random.SystemRandom()], ids=["seeded", "not"])
def test_validation_check_restores_the_generator_of_a_dataset(rng):
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


def test_validation_check_restores_the_generator_of_a_collate():
    drawn = []

    class Drawing:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __call__(self, samples):
            drawn.append(self.rng.random())
            return default_collate(samples)

    compiled(mlp()).fit(X, Y, validation_data=DataLoader(Rows(), 50, collate_fn=Drawing()), verbose=0)
    assert drawn[-1] == np.random.default_rng(0).random()


def test_packed_sequence_moves_to_the_device_as_in_torch():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 1).double(), torch.ones(2, 1).double()])
    placed, y = make_to_device(torch.device("meta"), torch.float32)((packed, torch.ones(2)))
    expected = packed.to("meta")
    assert placed.data.device == expected.data.device == y.device
    assert placed.batch_sizes.device == expected.batch_sizes.device
    assert placed.data.dtype == torch.float32


def detection(boxes):
    """Return a batch of object detection: a dict of targets for each image, with as many boxes as given."""
    return tuple(torch.zeros(3, 8, 8) for _ in boxes), tuple({"boxes": torch.zeros(count, 4)} for count in boxes)


@pytest.mark.parametrize("boxes", [[2, 2, 2, 2], [1, 4], [3]], ids=str)
def test_detection_batch_size_is_the_number_of_images(boxes):
    assert batch_size(detection(boxes)) == len(boxes)


@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_mean_over_detection_batches_counts_images():
    # Three images with loss 3, one with loss 1.
    class Counting(Model):
        def train_step(self, batch):
            return {"loss": 0 * self.module[0].weight.sum() + len(batch[0])}

    model = Counting(mlp(), device="cpu").compile("sgd")
    history = model.fit([detection([1, 1, 1]), detection([3])], verbose=0)
    assert history["loss"] == [2.5]


@pytest.mark.parametrize("part", ["x", "y", "sample_weight"])
def test_masked_values_are_refused(part):
    x, y, weight = np.random.default_rng(0).random((6, 4)).astype("float32"), np.arange(6) % 3, np.ones(6, "float32")
    arrays = {"x": x, "y": y, "sample_weight": weight}
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy")
    model.fit(**{**arrays, part: np.ma.masked_array(arrays[part])}, verbose=0)
    mask = np.zeros(arrays[part].shape, bool)
    mask[0] = True
    with pytest.raises(ValueError, match=r"masked values.*array\.filled\(value\)"):
        model.fit(**{**arrays, part: np.ma.masked_array(arrays[part], mask)}, verbose=0)
    if part == "x":
        with pytest.raises(ValueError, match="masked values"):
            model.predict(np.ma.masked_array(x, mask), verbose=0)
