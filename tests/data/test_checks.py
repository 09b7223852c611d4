"""Data that cannot be what it is taken for is an error or a warning, before a number is wrong."""

from __future__ import annotations

import itertools
import re
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
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from easytorch import Model
from easytorch.callbacks import LambdaCallback
from easytorch.data import split
from easytorch.data.batch import unpack
from easytorch.data.sample_weights import ClassWeight

torch.manual_seed(0)
X, Y = torch.randn(24, 4), torch.arange(24) % 3
NUMBERS = X.sum(1, keepdim=True)


def classifier(**options):
    return Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", **options)


class Rows(Dataset):
    def __init__(self, third):
        self.third = third

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return X[i], Y[i], self.third(i)


# The third part of a batch

THIRDS = {
    "text": (lambda i: f"image{i}.png", "has no numbers"),
    "dict": (lambda i: {"path": "a"}, "has no numbers"),
    "list of text": (lambda i: ["a", "b"], "has no numbers"),
    "index": (lambda i: i, r"whole numbers, such as indices.*weights\.float\(\)"),
}


USES = {
    "fit": lambda model, data: model.fit(data, verbose=0),
    "evaluate": lambda model, data: model.evaluate(data, verbose=0),
    "validation_data": lambda model, data: model.fit(X, Y, validation_data=data, verbose=0),
}


@pytest.mark.parametrize("name", THIRDS)
@pytest.mark.parametrize("method", USES)
@pytest.mark.parametrize("weighted_metrics", [[], ["accuracy"]], ids=["", "weighted"])
def test_a_third_part_that_is_no_weight_is_refused(name, method, weighted_metrics):
    third, message = THIRDS[name]
    model = classifier(weighted_metrics=weighted_metrics)
    with pytest.raises(TypeError, match=rf"\(x, y, sample_weight\), but the third part.*{message}"):
        USES[method](model, DataLoader(Rows(third), 8))
    assert model.state.step == 0


def test_a_third_part_reaches_a_custom_step_and_does_not_disturb_predict():
    seen = []

    class Paths(Model):
        def train_step(self, batch):
            x, y, paths = batch
            seen.extend(paths)
            return {"loss": self.loss(self(x), y)}

    data = DataLoader(Rows(THIRDS["text"][0]), 8)
    Paths(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy").fit(data, verbose=0)
    assert seen[:2] == ["image0.png", "image1.png"]
    assert classifier().predict(data, verbose=0).shape == (24, 3)


def test_floats_masks_and_explicit_whole_numbers_are_weights():
    expected = classifier().evaluate(X, Y, sample_weight=(Y > 0).float(), verbose=0)
    for weight in ((Y > 0).long(), (Y > 0).numpy().astype(int).tolist(), (Y > 0)):
        model = classifier()
        torch.manual_seed(1)
        nn.init.ones_(model.module.weight)
        first = model.evaluate(X, Y, sample_weight=weight, verbose=0)["loss"]
        assert first == pytest.approx(model.evaluate(X, Y, sample_weight=(Y > 0).float(), verbose=0)["loss"])
    assert expected["loss"] > 0
    with pytest.raises(ValueError, match="different lengths"):
        classifier().fit(X, Y, sample_weight=[], verbose=0)


# Class weights


def test_class_weights_of_integer_one_hot_rows_are_those_of_the_class():
    rows = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    for y in (rows, rows.bool(), rows.float()):
        weigh = ClassWeight({0: 1.0, 1: 2.0, 2: 3.0}, DataLoader(TensorDataset(torch.ones(4, 2), y), 4))
        assert weigh((torch.ones(4, 2), y))[2].tolist() == [1, 2, 1, 3]


def test_class_weights_of_tokens_of_zero_and_one_stay_weights_of_values():
    tokens = torch.tensor([[0, 1, 1], [1, 0, 1]])
    weigh = ClassWeight({0: 1.0, 1: 5.0}, DataLoader(TensorDataset(torch.ones(2, 3), tokens), 2))
    assert weigh((torch.ones(2, 3), tokens))[2].tolist() == [[1, 5, 5], [5, 1, 5]]


@pytest.mark.parametrize("keys", [[0.0, 1.0], ["0", "1"], [np.float32(0), np.int64(1)]])
def test_keys_of_class_weight_may_be_whole_floats_or_text(keys):
    weigh = ClassWeight(dict(zip(keys, [1.0, 2.0], strict=True)), DataLoader(TensorDataset(X, Y % 2), 8))
    assert weigh((X[:2], torch.tensor([0, 1])))[2].tolist() == [1, 2]
    with pytest.raises(ValueError, match="class numbers as keys"):
        ClassWeight({0.5: 1.0}, DataLoader(TensorDataset(X, Y), 8))


@pytest.mark.parametrize("ignored", [255, -1, 0])
def test_balanced_weights_do_not_count_ignored_classes(ignored):
    shift = 1 if ignored == 0 else 0
    y = torch.tensor([0, 0, 0, 0, 1, 1]) + shift
    y = torch.cat([y, torch.full((3,), ignored)])
    weigh = ClassWeight("balanced", DataLoader(TensorDataset(torch.ones(9, 2), y), 9), unpack, ignored)
    weights = weigh((torch.ones(9, 2), y))[2]
    assert weights[:6].tolist() == pytest.approx([6 / 8] * 4 + [6 / 4] * 2)
    model = classifier().compile("sgd", nn.CrossEntropyLoss(ignore_index=ignored))
    model.fit(X[:9], y, class_weight="balanced", verbose=0)


@pytest.mark.parametrize("weights", [[{0: 1.0}, {1: 2.0}], {"a": {0: 1.0}}, "balanced"])
def test_class_weights_of_several_targets_name_sample_weight(weights):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            return self.a(x), self.a(x)

    model = Model(Two(), device="cpu").compile("sgd", ["cross_entropy", "cross_entropy"])
    with pytest.raises(ValueError, match=r"class_weight needs one tensor.*sample_weight"):
        model.fit(X, (Y, Y), class_weight=weights, verbose=0)


# Structures


def test_a_list_of_data_sets_is_refused():
    data = TensorDataset(X, Y)
    with pytest.raises(TypeError, match=r"list of 2 data sets is not a data set.*ConcatDataset"):
        classifier().fit(data, validation_data=[data, data], verbose=0)
    with pytest.raises(TypeError, match="list of 2 data sets"):
        classifier().fit([DataLoader(data), DataLoader(data)], verbose=0)


class Coordinates(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, y):
        return self.layer(torch.stack([x, y], 1))


def test_an_entry_that_forward_demands_is_an_input():
    x, y = torch.rand(24), torch.rand(24)
    data = {"x": x, "y": y, "u": (2 * x + 3 * y + 5)[:, None]}
    model = Model(Coordinates(), device="cpu").compile("sgd", "mse")
    expected = nn.functional.mse_loss(model.module(x, y), data["u"]).item()
    assert float(model.evaluate(data, verbose=0)) == pytest.approx(expected, rel=1e-5)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask=None):
        return self.layer(x) if mask is None else self.layer(x) * mask[:, None]


def test_predict_warns_if_targets_may_be_an_optional_argument():
    model = Model(Masked(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.warns(UserWarning, match=r"as its optional argument 'mask'. If it contains targets.*predict\(x\)"):
        model.predict((X, Y.float()), verbose=0)


class Star(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, *x):
        return self.layer(torch.cat(x, 1))


class OneList(Star):
    def forward(self, inputs):
        first, second = inputs
        return self.layer(torch.cat([first, second], 1))


class TwoArguments(Star):
    def forward(self, left, right):
        return self.layer(torch.cat([left, right], 1))


@pytest.mark.parametrize("make", [Star, OneList, TwoArguments])
@pytest.mark.parametrize("first", ["fit", "evaluate", "train_on_batch"])
def test_predict_takes_the_inputs_that_fit_takes(make, first):
    inputs = [X, X + 1] if make is OneList else (X, X + 1)
    model = Model(make(), device="cpu").compile("sgd", "cross_entropy")
    getattr(model, first)(inputs, Y, **({} if first == "train_on_batch" else {"verbose": 0}))
    expected = model.module(*((inputs,) if make is OneList else inputs)).detach().numpy()
    assert np.allclose(model.predict(inputs, verbose=0), expected)
    assert np.allclose(model.predict_on_batch(inputs), expected)


def test_predict_takes_batches_of_several_inputs_from_a_generator_and_a_loader():
    model = Model(TwoArguments(), device="cpu").compile("sgd", "cross_entropy")
    expected = model.module(X, X + 1).detach().numpy()
    batches = [(X[:12], X[:12] + 1), (X[12:], X[12:] + 1)]
    for data in (batches, iter(batches), lambda: iter(batches), DataLoader(TensorDataset(X, X + 1), 8)):
        assert np.allclose(model.predict(data, verbose=0), expected)


class Sequence:
    """Whole batches behind __getitem__, as in Keras."""

    ends = 0

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[8 * i : 8 * i + 8].numpy(), Y[8 * i : 8 * i + 8].numpy()

    def on_epoch_end(self):
        self.ends += 1


def test_a_keras_sequence_holds_batches():
    data, model = Sequence(), classifier()
    expected = model.evaluate(X, Y, verbose=0)
    assert list(model.evaluate(data, verbose=0)) == pytest.approx(list(expected))
    model.fit(data, epochs=3, validation_data=Sequence(), verbose=0)
    assert model.state.step == 9
    assert data.ends == 2
    assert model.predict(data, verbose=0).shape == (24, 3)


@pytest.mark.parametrize(
    "sampler", [WeightedRandomSampler([1.0] * 24, 30), SubsetRandomSampler(range(12)), [3, 1, 2], range(0, 24, 2)]
)
def test_predict_warns_of_samplers_that_change_order_or_number(sampler):
    with pytest.warns(UserWarning, match="another order than the samples of the dataset, or another number"):
        classifier().predict(DataLoader(TensorDataset(X, Y), 8, sampler=sampler), verbose=0)


def test_predict_does_not_warn_of_a_sampler_in_order():
    assert classifier().predict(DataLoader(TensorDataset(X, Y), 8, sampler=list(range(24))), verbose=0).shape == (24, 3)


# Frames

FRAME = pd.DataFrame(X.numpy(), columns=["a", "b", "c", "d"])


WEIGHTS = pd.Series(torch.linspace(0.5, 2, 24).numpy())
ROWS_IN_ANOTHER_ORDER = {
    "fit, weights": lambda model, x, y: model.fit(x, y, sample_weight=WEIGHTS[::-1], verbose=0),
    "fit, weights in a tuple": lambda model, x, y: model.fit((x, y, WEIGHTS[::-1]), verbose=0),
    "evaluate, weights": lambda model, x, y: model.evaluate(x, y, sample_weight=WEIGHTS[::-1], verbose=0),
    "two inputs": lambda model, x, y: model.fit({"a": x, "b": x[::-1]}, y, verbose=0),
    "inputs in a tuple": lambda model, x, y: model.fit((x, x), y[::-1], verbose=0),
    "text labels": lambda model, x, y: model.fit(x, y.map(str)[::-1], verbose=0),
    "validation": lambda model, x, y: model.fit(x, y, validation_data=(x, y[::-1]), verbose=0),
    "split": lambda model, x, y: split(x, y[::-1]),
    "one batch": lambda model, x, y: model.train_on_batch(x, y, sample_weight=WEIGHTS[::-1]),
    "report": lambda model, x, y: model.report(x, y, by=y[::-1], verbose=0),
    "report, dict": lambda model, x, y: model.report(x, y, by={"group": y[::-1]}, verbose=0),
}


@pytest.mark.parametrize("call", ROWS_IN_ANOTHER_ORDER.values(), ids=list(ROWS_IN_ANOTHER_ORDER))
def test_all_frames_of_a_call_need_the_same_row_order(call):
    with pytest.raises(ValueError, match="same labels in another order"):
        call(classifier(), FRAME, pd.Series(Y.numpy()))


def test_weights_with_the_labels_of_the_rows_are_accepted():
    model = classifier()
    scores = model.evaluate(FRAME, pd.Series(Y.numpy()), sample_weight=WEIGHTS, verbose=0)
    assert scores == model.evaluate(X, Y, sample_weight=WEIGHTS.to_numpy(), verbose=0)


def test_rows_of_frames_in_another_order_are_refused():
    y = pd.Series(Y.numpy())
    with pytest.raises(ValueError, match=r"same labels in another order.*Use y.loc\[x.index\]"):
        classifier().fit(FRAME.sample(frac=1, random_state=0), y, verbose=0)
    filtered = FRAME[FRAME.a > 0]
    classifier().fit(filtered, y[filtered.index], verbose=0)


def test_columns_get_the_order_of_fit_or_are_refused():
    model = classifier()
    model.fit(FRAME, Y, epochs=2, verbose=0)
    expected, scores = model.predict(FRAME, verbose=0), model.evaluate(FRAME, Y, verbose=0)
    mixed = FRAME[["d", "b", "a", "c"]]
    assert np.array_equal(model.predict(mixed, verbose=0), expected)
    assert model.evaluate(mixed, Y, verbose=0) == scores
    assert model.evaluate((mixed, Y), verbose=0) == scores
    history = model.fit(FRAME, Y, validation_data=(mixed, Y), verbose=0)
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(FRAME, Y, verbose=0)["loss"])
    with pytest.raises(ValueError, match=r"lacks \['a'\] and has the unknown columns \['z'\]"):
        model.predict(FRAME.rename(columns={"a": "z"}), verbose=0)


# Values that are not finite


def test_values_that_are_not_finite_in_memory_are_an_error_before_training():
    frame = FRAME.copy()
    frame.loc[[3, 5], "b"] = np.nan
    frame.loc[7, "d"] = np.inf
    model = classifier()
    before = model.module.weight.detach().clone()
    with pytest.raises(ValueError, match=re.escape("columns 'b' (2 rows), 'd' (1 rows). Fill them")):
        model.fit(frame, Y, verbose=0)
    with pytest.raises(ValueError, match="In validation_data: The inputs have values"):
        model.fit(FRAME, Y, validation_data=(frame, Y), verbose=0)
    bad = NUMBERS.clone()
    bad[17] = float("nan")
    with pytest.raises(ValueError, match="The targets have values that are not finite"):
        Model(nn.Linear(4, 1)).compile("sgd", "mse").fit(X, bad, verbose=0)
    images = torch.rand(6, 1, 4, 4)
    images[2, 0, 1, 1] = float("inf")
    with pytest.raises(ValueError, match="1 of 6 rows, the first one is row 2"):
        Model(nn.Flatten()).compile(None, "mse").evaluate(images, images.flatten(1), verbose=0) and Model(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        ).compile("sgd", "cross_entropy").fit(images, torch.arange(6) % 3, verbose=0)
    assert model.state.step == 0
    assert torch.equal(model.module.weight, before)


BAD = X.clone()
BAD[13, 2] = float("nan")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DataLoader(TensorDataset(BAD, Y), 8, shuffle=True), "sample 13"),
        (lambda: [(BAD[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)], "batch 1"),
        (lambda: lambda: iter([(BAD[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]), "batch 1"),
    ],
    ids=["loader", "list", "function"],
)
def test_a_bad_value_of_a_loader_is_named_before_any_other_cause(make, name):
    with pytest.warns(UserWarning, match=f"The inputs of {name} of the data have values that are not finite") as caught:
        classifier().fit(make(), verbose=0)
    assert "learning rate" not in str(caught[0].message)


# Length


def batches():
    for i in (0, 8, 16):
        yield X[i : i + 8], Y[i : i + 8]


def test_a_validation_generator_that_runs_dry_is_reported_and_training_continues():
    data = itertools.islice(itertools.cycle(batches()), 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = classifier().fit(X, Y, epochs=4, validation_data=data, validation_steps=2, verbose=0)
    messages = [str(warning.message) for warning in caught]
    assert len(history["loss"]) == 4
    assert len(history["val_loss"]) == 3
    assert any("ended after 1 of 2 batches" in message for message in messages)
    assert any("no validation after epoch 4" in message for message in messages)


def test_steps_beyond_the_data_are_reported():
    with pytest.warns(UserWarning, match="ended after 3 of 6 batches"):
        classifier().evaluate(batches(), steps=6, verbose=0)
    with pytest.warns(UserWarning, match="had only 3 of steps_per_epoch=6 updates"):
        classifier().fit(batches(), steps_per_epoch=6, verbose=0)


@pytest.mark.parametrize("make", [itertools.cycle, itertools.repeat])
def test_an_endless_iterator_needs_steps(make):
    data = make([(X, Y)]) if make is itertools.cycle else make((X, Y))
    with pytest.raises(ValueError, match=rf"itertools.{make.__name__}, never ends.*steps_per_epoch=1000"):
        classifier().fit(data, verbose=0)
    with pytest.raises(ValueError, match=r"never ends.*validation_steps"):
        classifier().fit(X, Y, validation_data=make([(X, Y)]), verbose=0)
    classifier().fit(data, steps_per_epoch=2, verbose=0)


BATCH = (X[:8], Y[:8])
ENDLESS = {
    "cycle": lambda: itertools.cycle([BATCH]),
    "map": lambda: map(tuple, itertools.repeat(list(BATCH))),
    "zip": lambda: zip(itertools.repeat(BATCH[0]), itertools.cycle([BATCH[1]])),
    "filter": lambda: filter(None, itertools.repeat(BATCH)),
    "generator expression": lambda: (BATCH for _ in itertools.count()),
    "nested": lambda: (batch for _, batch in enumerate(itertools.repeat(BATCH))),
}
ENDING = {
    "repeat": lambda: itertools.repeat(BATCH, 2),
    "zip": lambda: zip(itertools.repeat(BATCH[0]), [BATCH[1]] * 2),
    "map": lambda: map(lambda batch, _: batch, itertools.cycle([BATCH]), range(2)),
    "islice": lambda: itertools.islice(itertools.cycle([BATCH]), 2),
    "generator": lambda: (BATCH for _ in range(2)),
}


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_endless_iterators_are_found_without_reading(make):
    for data in (make(), make):  # an iterator, and a function that returns one
        with pytest.raises(ValueError, match=r"itertools\.\w+, never ends.*steps_per_epoch=1000"):
            classifier().fit(data, verbose=0)
        with pytest.raises(ValueError, match=r"never ends.*: steps=1000"):
            classifier().evaluate(data, verbose=0)
        assert classifier().fit(data, steps_per_epoch=2, verbose=0).epoch == [0]
    with pytest.raises(ValueError, match=r"never ends.*validation_steps=1000"):
        classifier().fit(X, Y, validation_data=make, verbose=0)
    with pytest.raises(ValueError, match=r"never ends.*: steps=1000"):
        classifier().predict(make, verbose=0)


@pytest.mark.parametrize("make", ENDING.values(), ids=ENDING)
def test_iterators_that_end_are_read_to_their_end(make):
    model = classifier()
    model.fit(make, epochs=2, validation_data=make, verbose=0)
    model.fit(make(), verbose=0)
    assert model.state.step == 6


class Ends(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        if i >= 16:
            next(iter(()))
        return X[i], Y[i]


def test_a_stop_iteration_in_getitem_is_reported():
    with pytest.warns(UserWarning, match=r"had 2 updates.*promises 3, so samples are missing. A StopIteration in"):
        classifier().fit(DataLoader(Ends(), 8), verbose=0)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))

    def __len__(self):
        return 24


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_stream_that_every_worker_repeats_is_reported():
    with pytest.warns(UserWarning, match="had 6 updates.*promises 3.*once per worker.*get_worker_info"):
        classifier().fit(DataLoader(Stream(), 8, num_workers=2), verbose=0)


class StreamWithoutLength(IterableDataset):
    """Yields all samples in each worker, or those of the worker."""

    def __init__(self, is_divided):
        self.is_divided = is_divided

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if self.is_divided else (0, 1)
        return iter([(X[i], Y[i]) for i in range(first, len(X), step)])


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_repeated_stream_without_a_length_is_reported(method):
    model = classifier()
    loader = DataLoader(StreamWithoutLength(False), 4, num_workers=2)
    with pytest.warns(UserWarning, match=r"first batches of two workers are equal.*used 2 times.*get_worker_info"):
        getattr(model, method)(loader, verbose=0)


def test_a_divided_or_constant_stream_is_not_reported():
    classifier().fit(DataLoader(StreamWithoutLength(True), 4, num_workers=2), verbose=0)

    class Constant(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(4), torch.tensor(0))] * 8)

    classifier().fit(DataLoader(Constant(), 4, num_workers=2), verbose=0)


class OwnIterator:
    """A loader with a length that is its own iterator."""

    def __init__(self, ends=True):
        self.ends, self.starts = ends, 0

    def __len__(self):
        return 3

    def __iter__(self):
        self.i = 0
        self.starts += 1
        return self

    def __next__(self):
        self.i += 1
        if self.i > 50 or (self.ends and self.i > 3):
            raise StopIteration
        return X[:8], Y[:8]


@pytest.mark.parametrize("ends", [True, False])
def test_a_loader_that_is_its_own_iterator_has_its_length(ends):
    model = classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(OwnIterator(ends), epochs=2, validation_data=OwnIterator(ends), verbose=0)
    assert model.state.step == 6


def test_a_stop_iteration_is_reported_with_steps_per_epoch():
    with pytest.warns(UserWarning, match=r"had 2 updates.*promises 3, so samples are missing"):
        classifier().fit(DataLoader(Ends(), 8), steps_per_epoch=3, verbose=0)


def test_a_stop_iteration_in_an_evaluation_is_reported():
    with pytest.warns(UserWarning, match=r"values are of 2 batches.*promises 3, so samples are missing"):
        classifier().evaluate(DataLoader(Ends(), 8), verbose=0)


class Shifting(DataLoader):
    """Changes the batches that it yields."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield x + 100, y


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_split": 0.25}, r"Cannot split a Shifting, which overrides DataLoader.__iter__.*data.split"),
        (
            {"sample_weight": torch.ones(24)},
            r"sample_weight has no effect on a Shifting.*yield \(x, y, sample_weight\)",
        ),
    ],
    ids=["split", "weight"],
)
def test_a_loader_that_changes_batches_is_not_replaced(options, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(Shifting(TensorDataset(X[:24], Y[:24]), 8), **options, verbose=0)


class PlainLoader(DataLoader):
    """Changes nothing."""


def test_a_subclass_without_changes_can_be_split_and_weighted():
    loader = PlainLoader(TensorDataset(X[:24], Y[:24]), 8)
    classifier().fit(loader, validation_split=0.25, sample_weight=torch.ones(24), verbose=0)


class EpochRows(Dataset):
    """Returns the epoch, in memory of this process or shared with the workers."""

    def __init__(self, shared):
        self.epoch = torch.zeros((), dtype=torch.int64)
        if shared:
            self.epoch.share_memory_()

    def __len__(self):
        return 16

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def __getitem__(self, i):
        return X[i] * 0 + float(self.epoch), Y[i]


@pytest.mark.parametrize("shared", [True, False])
def test_set_epoch_reaches_persistent_workers(shared, recwarn):
    seen = []
    model = classifier()
    record = LambdaCallback(on_train_batch_begin=lambda *_: seen.append(float(model.train_data.window[0][0][0, 0])))
    loader = DataLoader(EpochRows(shared), 16, num_workers=1, persistent_workers=True)
    model.fit(loader, epochs=3, callbacks=[record], verbose=0)
    assert seen == [0.0, 1.0, 2.0]
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == (not shared)
    assert all("EpochRows.set_epoch reaches a worker only when it starts" in message for message in messages)
