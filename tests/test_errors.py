"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import re

import numpy as np
import pandas
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from easytorch import FileError, Metric, Model, callbacks
from easytorch.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
from tests.loops import blob_loader, blobs, mlp, same_weights

X, Y = blobs()
LATE = Y.clone()
LATE[-1] = 3  # not a class of mlp(), and not in the first batch
BINARY = (Y == 0).float()


class ByHand(Dataset):
    """Samples whose targets can only be read one by one."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, left, right):
        return self.head(left + right)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Count(Metric):
    name = "count"

    def reset(self):
        self.n = 0

    def update(self, y_pred, y, sample_weight=None):
        self.n += len(y)

    def compute(self):
        return float(self.n)


def compiled(net=None, loss="cross_entropy", **options):
    return Model(mlp() if net is None else net, device="cpu").compile("sgd", loss, **options)


def fit(model, *data, **options):
    return model.fit(*data, **({"verbose": 0} | options))


def spoken(loss):
    return getattr(loss, "__name__", str(loss))


def refused(run, *parts, kind=(ValueError, TypeError)):
    """Check that ``run`` raises an error whose message has every one of ``parts``, and return the message."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    for part in parts:
        assert re.search(part, message), f"{part!r} is not in: {message}"
    return message


# Names


@pytest.mark.parametrize(
    ("run", "unknown", "near", "instead"),
    [
        (lambda: Model(mlp()).compile("adamm", "mse"), "Unknown optimizer 'adamm'", "adam", r"torch\.optim\.Optimizer"),
        (lambda: compiled(loss="cross_entropi"), "Unknown loss 'cross_entropi'", "cross_entropy", r"f\(y_pred, y\)"),
        (lambda: compiled(metrics=["acuracy"]), "Unknown metric 'acuracy'", "accuracy", r"f\(y_pred, y\)"),
        (lambda: fit(compiled(), X, Y, verbose="atuo"), "Unknown verbose 'atuo'", "auto", "0 .*1 .*2 "),
        (lambda: compiled().evaluate(X, Y, verbose="atuo"), "Unknown verbose 'atuo'", "auto", "0 .*1 .*2 "),
        (lambda: compiled().predict(X, verbose="atuo"), "Unknown verbose 'atuo'", "auto", "0 .*1 .*2 "),
        (lambda: Model(mlp(), device="cpuu"), "Unknown device 'cpuu'", "cpu", "Pass 'auto'"),
        (lambda: compiled(precision="bf61"), "Unknown precision 'bf61'", "bf16", "'fp32', 'bf16', 'fp16'"),
        (lambda: LambdaCallback(on_epoch_ends=print), "no hook 'on_epoch_ends'", "on_epoch_end", "on_train_begin"),
        (lambda: EarlyStopping(mode="maxx"), "Unknown mode 'maxx'", "max", "'min'"),
    ],
    ids=[
        "optimizer",
        "loss",
        "metric",
        "verbose in fit",
        "verbose in evaluate",
        "verbose in predict",
        "device",
        "precision",
        "hook",
        "mode",
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_and_what_else_may_be_passed(run, unknown, near, instead):
    refused(run, unknown, f"Did you mean '{near}'", instead, kind=ValueError)


@pytest.mark.parametrize("verbose", [3, -1, "loud", None])
def test_an_unknown_verbose_is_told_with_what_there_is(verbose):
    refused(lambda: fit(compiled(), X, Y, verbose=verbose), "Unknown verbose", "'auto'", kind=ValueError)


def test_a_precision_that_is_no_name_is_told_with_the_names():
    refused(lambda: compiled(precision=8), "precision", "8", "'fp32', 'bf16', 'fp16'")


@pytest.mark.parametrize(
    ("typed", "here"), [("mixed_bfloat16", "bf16"), ("float16", "fp16"), ("bf16-mixed", "bf16"), (16, "fp16")]
)
def test_a_precision_of_another_library_is_told_with_what_it_is_here(typed, here):
    refused(lambda: compiled(precision=typed), f"Here it is '{here}'", kind=ValueError)


def test_a_device_that_this_machine_lacks_is_told_with_those_it_has():
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    absent = next(name for name in ("xpu", "mps") if here is None or here.type != name)
    refused(lambda: Model(mlp(), device=absent), f"no device '{absent}'", "'auto'", "'cpu'", kind=ValueError)


def test_early_stopping_on_an_unknown_value_is_told_with_the_nearest():
    early = EarlyStopping("val_los")
    message = refused(
        lambda: fit(compiled(), X, Y, validation_split=0.2, callbacks=[early]), "'val_los'", kind=ValueError
    )
    assert "Did you mean 'val_loss'?" in message
    assert "'loss', 'val_loss', 'lr'" in message


def test_early_stopping_on_validation_without_validation_data_says_what_to_pass():
    refused(lambda: fit(compiled(), X, Y, callbacks=[EarlyStopping()]), "'val_loss'", "validation_data", "'loss'")


def test_early_stopping_on_a_value_of_unknown_direction_asks_for_the_mode():
    model = compiled(metrics=[Count()])
    refused(lambda: fit(model, X, Y, callbacks=[EarlyStopping("count")]), "'count'", "mode='min' or mode='max'")


def test_the_best_of_an_unknown_value_is_told_with_the_nearest():
    history = fit(compiled(), X, Y)
    refused(lambda: history.best("los"), "'los'", "Did you mean 'loss'", "'lr'", kind=KeyError)


def test_an_unknown_score_is_told_with_the_nearest():
    scores = compiled(metrics=["accuracy"]).evaluate(X, Y, verbose=0)
    refused(lambda: scores["acuracy"], "'acuracy'", "Did you mean 'accuracy'", kind=KeyError)
    refused(lambda: scores.acuracy, "'acuracy'", "Did you mean 'accuracy'", kind=AttributeError)


# The order of calls


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("fit", lambda model: model.fit(X, Y)),
        ("evaluate", lambda model: model.evaluate(X, Y)),
        ("train_on_batch", lambda model: model.train_on_batch(X, Y)),
        ("test_on_batch", lambda model: model.test_on_batch(X, Y)),
    ],
)
def test_training_and_measuring_before_compile_say_the_call_that_is_missing(verb, call):
    refused(lambda: call(Model(mlp())), rf"before {verb}\(\)", r"compile\('adam'", kind=RuntimeError)


def test_fit_without_an_optimizer_says_the_call_that_is_missing():
    model = Model(mlp()).compile(None, "cross_entropy")
    refused(lambda: model.fit(X, Y), "optimizer", r"compile\('adam'", kind=RuntimeError)


def test_evaluate_without_data_before_fit_asks_for_data():
    refused(lambda: compiled().evaluate(), "no data", r"evaluate\(x, y\)", kind=ValueError)


# Data


@pytest.mark.parametrize("metrics", [(), ["accuracy"]], ids=["no metric", "accuracy"])
@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(), functional.cross_entropy])
def test_missing_targets_are_asked_for(loss, metrics):
    refused(lambda: fit(compiled(loss=loss, metrics=metrics), X), "targets", r"Pass \(x, y\)", kind=ValueError)


def test_missing_targets_of_a_regression_are_asked_for():
    refused(lambda: fit(compiled(loss="mse", metrics=["mae"]), X), "targets", r"Pass \(x, y\)", kind=ValueError)


@pytest.mark.parametrize(
    "data",
    [(X, Y[:40]), (X.numpy(), Y.numpy()[:40]), ((X, X[:40]), Y), ({"a": X, "b": X[:40]}, Y), (X, Y.tolist()[:40])],
    ids=["tensors", "arrays", "tuple of inputs", "dict of inputs", "list of labels"],
)
def test_parts_of_other_lengths_are_told_with_both_lengths(data):
    refused(lambda: fit(compiled(), *data), "40 and 50", r"\[40", r"\[50", "one row for each sample", kind=ValueError)


def test_sample_weights_of_another_length_are_told_with_both_lengths():
    refused(lambda: fit(compiled(), X, Y, sample_weight=torch.ones(40)), "40", "50", kind=ValueError)
    refused(lambda: fit(compiled(), blob_loader(), sample_weight=torch.ones(40)), "40", "50", kind=ValueError)


def no_batches():
    yield from ()


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
def test_empty_data_is_refused(data, hint):
    refused(lambda: fit(compiled(), *data), "data is empty", hint, kind=ValueError)


def test_a_generator_that_was_read_before_is_refused():
    batches = iter([(X, Y)])
    list(batches)
    refused(lambda: fit(compiled(), batches), "data is empty", "read before", kind=ValueError)


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_empty_data_is_refused_when_measuring(verb):
    refused(lambda: getattr(compiled(), verb)(no_batches, verbose=0), "data is empty", kind=ValueError)


@pytest.mark.parametrize("thing", ["train.csv", None, 5.0, print.__name__.encode()], ids=str)
def test_what_is_no_data_is_refused_with_what_is(thing):
    refused(lambda: fit(compiled(), thing), "DataLoader", "tensors", type(thing).__name__, kind=TypeError)


@pytest.mark.parametrize("labels", [["cat", "dog"] * 25, np.array(["cat", "dog"] * 25)], ids=["list", "array"])
def test_text_labels_are_refused_with_the_tool_that_encodes_them(labels):
    refused(lambda: fit(compiled(), X, labels), "Expected numbers", "text", "LabelEncoder", kind=TypeError)


def test_text_columns_of_a_frame_are_named():
    frame = pandas.DataFrame({"height": [1.0, 2.0], "town": ["Rome", "Oslo"]})
    refused(lambda: fit(compiled(), frame, [0, 1]), "'town'", "not numbers", "get_dummies", kind=TypeError)


def test_a_series_of_text_is_refused():
    refused(lambda: fit(compiled(), X, pandas.Series(["cat", "dog"] * 25)), "Expected numbers", "text", kind=TypeError)


def test_a_batch_of_four_parts_is_told_what_a_batch_is():
    refused(lambda: fit(compiled(), [(X, Y, Y, Y)]), "one to three parts", "has 4", r"\(\(x1, x2\), y\)")


@pytest.mark.parametrize(
    "argument", [{"y": Y}, {"batch_size": 8}, {"shuffle": True}], ids=lambda given: next(iter(given))
)
def test_an_argument_that_means_nothing_for_a_loader_is_refused(argument):
    name = next(iter(argument))
    refused(lambda: fit(compiled(), blob_loader(), **argument), name, "DataLoader", f"leave {name} out")


@pytest.mark.parametrize("argument", [{"batch_size": 8}, {"shuffle": True}], ids=lambda given: next(iter(given)))
def test_an_argument_that_means_nothing_for_a_list_of_batches_is_refused(argument):
    name = next(iter(argument))
    refused(lambda: fit(compiled(), [(X, Y)], **argument), name, "list", f"leave {name} out")


@pytest.mark.parametrize("argument", [{"batch_size": 0}, {"batch_size": 2.5}, {"epochs": 0}, {"epochs": "3"}], ids=str)
def test_a_count_that_is_none_is_told(argument):
    name, value = next(iter(argument.items()))
    refused(lambda: fit(compiled(), X, Y, **argument), f"{name} must be a whole number", re.escape(repr(value)))


def test_a_last_epoch_before_the_initial_one_is_refused():
    refused(lambda: fit(compiled(), X, Y, epochs=2, initial_epoch=2), "initial_epoch=2", "larger", "2")


# Validation data, found out before the first update


BAD_VALIDATION = {
    "features": ((X[:, :5], Y), ("Linear", "8", "5")),
    "features in a list of batches": ([(X[:, :5], Y)], ("Linear", "8", "5")),
    "features from a function": ((lambda: iter([(X[:, :5], Y)])), ("Linear", "8", "5")),
    "a label in the first batch": ((X, Y + 1), ("labels", "3")),
    "a label in a later batch": ((X, LATE), ("labels", "0 to 3", "3 outputs")),
    "labels of text": ((X, ["cat"] * 50), ("Expected numbers", "text")),
    "lengths": ((X, Y[:40]), ("40 and 50",)),
    "nothing in it": ((X[:0], Y[:0]), ("data is empty",)),
    "nothing in it after drop_last": (blob_loader(5, 8, drop_last=True), ("data is empty",)),
}


@pytest.mark.parametrize("case", BAD_VALIDATION)
def test_bad_validation_data_is_found_before_the_first_update(case):
    validation, parts = BAD_VALIDATION[case]
    model = compiled()
    refused(lambda: fit(model, X, Y, epochs=2, batch_size=8, validation_data=validation), *parts)
    assert model.state.step == 0


def test_a_validation_generator_that_is_needed_twice_is_refused():
    model = compiled()
    batches = (batch for batch in [(X, Y)])
    refused(lambda: fit(model, X, Y, epochs=2, validation_data=batches), "generator", "only once", "function")
    assert model.state.step == 0


# Labels and losses


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (LATE, ("0 to 3", "3 outputs", "classes 0 to 2", "4 outputs")),
        (Y + 1, ("1 to 3", "3 outputs", "y - 1")),
        (Y - 1, ("-1 to 1", "3 outputs", "renumber")),
    ],
    ids=["one too many", "from one", "negative"],
)
@pytest.mark.parametrize(
    "data",
    [
        lambda y: (X, y),
        lambda y: (X.numpy(), y.numpy()),
        lambda y: (TensorDataset(X, y),),
        lambda y: (DataLoader(TensorDataset(X, y), 8),),
        lambda y: ([(X, y)],),
        lambda y: (ByHand(X, y),),
    ],
    ids=["tensors", "arrays", "TensorDataset", "DataLoader", "list of batches", "own Dataset"],
)
def test_labels_out_of_range_are_told_with_their_range_and_the_classes(data, labels, parts):
    model = compiled(metrics=["accuracy"])
    options = {"batch_size": 64} if isinstance(data(Y)[0], ByHand) else {}  # nobody can know its later labels
    refused(lambda: fit(model, *data(labels), **options), *parts, kind=ValueError)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), functional.cross_entropy, "nll"], ids=["object", "function", "nll"]
)
def test_labels_out_of_range_are_told_whatever_the_loss_was_given_as(loss):
    refused(lambda: fit(compiled(loss=loss), X, LATE), "0 to 3", "3 outputs", kind=ValueError)


@pytest.mark.parametrize(
    "data",
    [
        lambda: ((X, LATE), {"batch_size": 8}),
        lambda: ((TensorDataset(X, LATE),), {"batch_size": 8}),
        lambda: ((DataLoader(TensorDataset(X, LATE), 8),), {}),
    ],
    ids=["tensors", "TensorDataset", "DataLoader"],
)
def test_a_wrong_label_of_a_later_batch_is_found_before_the_first_update(data):
    model = compiled()
    arguments, options = data()
    refused(lambda: fit(model, *arguments, **({"shuffle": False} if options else {}), **options), "0 to 3", "3 outputs")
    assert model.state.step == 0


def test_a_wrong_label_of_a_later_batch_is_found_in_each_of_several_targets():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return {"left": self.left(x), "right": self.right(x)}

    model = compiled(Several(), {"left": "cross_entropy", "right": "cross_entropy"})
    refused(lambda: fit(model, X, {"left": Y, "right": LATE}, batch_size=8, shuffle=False), "0 to 3", "3 outputs")
    assert model.state.step == 0


@pytest.mark.parametrize("verb", ["evaluate", "test_on_batch", "train_on_batch"])
def test_labels_out_of_range_are_told_by_every_verb(verb):
    options = {"verbose": 0} if verb == "evaluate" else {}
    refused(lambda: getattr(compiled(), verb)(X, LATE, **options), "0 to 3", "3 outputs")


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (Y.float(), (r"float32 \[", "int64", r"y\.long\(\)")),
        (Y.int(), (r"int32 \[", "int64", r"y\.long\(\)")),
        (functional.one_hot(Y), (r"int64 \[\d+, 3\]", "one column for each class", r"argmax\(1\)")),
        (Y.unsqueeze(1), (r"int64 \[\d+, 1\]", "class numbers", r"squeeze\(1\)")),
    ],
    ids=["floats", "int32", "one-hot integers", "a column"],
)
@pytest.mark.parametrize("metrics", [(), ["accuracy"]], ids=["no metric", "accuracy"])
@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.CrossEntropyLoss(), functional.cross_entropy], ids=["name", "object", "function"]
)
def test_labels_that_cross_entropy_cannot_take_are_told_with_the_conversion(loss, metrics, labels, parts):
    refused(lambda: fit(compiled(loss=loss, metrics=metrics), X, labels), *parts)


@pytest.mark.parametrize("loss", ["mse", "mae", "bce_with_logits", nn.HuberLoss(), functional.mse_loss], ids=spoken)
def test_whole_numbers_for_a_loss_on_floats_are_told_with_the_conversion(loss):
    refused(
        lambda: fit(compiled(mlp(8, 1), loss), X, Y.unsqueeze(1)),
        r"int64 \[\d+, 1\]",
        "floats",
        r"y\.float\(\)",
        kind=TypeError,
    )


@pytest.mark.parametrize("metrics", [(), ["mae"]], ids=["no metric", "mae"])
@pytest.mark.parametrize("loss", ["mse", "mae", "bce_with_logits", functional.mse_loss, functional.l1_loss], ids=spoken)
def test_a_column_of_outputs_against_flat_targets_is_refused(loss, metrics):
    refused(
        lambda: fit(compiled(mlp(8, 1), loss, metrics=metrics), X, BINARY),
        r"\[32, 1\]",
        r"\[32\]",
        r"y\.unsqueeze\(1\)",
        kind=ValueError,
    )


@pytest.mark.parametrize("metrics", [(), ["mae"]], ids=["no metric", "mae"])
@pytest.mark.parametrize("loss", ["mse", "mae", "bce_with_logits", functional.mse_loss, functional.l1_loss], ids=spoken)
def test_flat_outputs_against_a_column_of_targets_are_refused(loss, metrics):
    net = nn.Sequential(mlp(8, 1), nn.Flatten(0))
    refused(
        lambda: fit(compiled(net, loss, metrics=metrics), X, BINARY.unsqueeze(1)),
        r"\[32\]",
        r"\[32, 1\]",
        r"y\.squeeze\(1\)",
        kind=ValueError,
    )


def test_outputs_that_are_no_probabilities_are_told_with_the_loss_on_logits():
    refused(
        lambda: fit(compiled(mlp(8, 1), "bce"), X, BINARY.unsqueeze(1)),
        "probabilities",
        "bce_with_logits",
        "Sigmoid",
        kind=ValueError,
    )


def test_several_outputs_for_one_loss_are_told_with_the_way_to_name_more():
    refused(lambda: fit(compiled(nn.LSTM(8, 3)), X, Y), "CrossEntropyLoss", r"float32 \[", "each output", "loss=")


def test_targets_in_a_dict_for_one_loss_are_told():
    refused(lambda: fit(compiled(), X, {"digit": Y}), "CrossEntropyLoss", "targets", r"'digit': int64")


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        (lambda y_pred, y: functional.cross_entropy(y_pred, y).item(), ("float", "not a tensor", "scalar")),
        (lambda y_pred, y: None, ("nothing", "not a tensor", "scalar")),
        (lambda y_pred, y: y_pred.mean(0), (r"float32 \[3\]", "not one number", r"mean\(\)")),
        (lambda y_pred, y: functional.cross_entropy(y_pred, y).detach(), ("no gradient", "detach")),
        (lambda y_pred, y: (y_pred.argmax(1) != y).float().mean(), ("no gradient", "argmax")),
    ],
    ids=["a number", "nothing", "a vector", "detached", "argmax"],
)
def test_a_loss_that_cannot_be_optimized_says_why(loss, parts):
    refused(lambda: fit(compiled(loss=loss), X, Y), *parts)


def test_a_step_that_returns_no_loss_says_what_to_return():
    class Silent(Model):
        def train_step(self, batch):
            return {"accuracy": 1.0}

    model = Silent(mlp(), device="cpu").compile("sgd", "cross_entropy")
    refused(lambda: fit(model, X, Y), "train_step", "'loss'", kind=(ValueError, TypeError, KeyError))


def test_a_module_without_a_loss_of_its_own_is_told_to_name_one():
    refused(lambda: fit(compiled(loss=None), X, Y), "No loss", r"float32 \[32, 3\]", "loss='cross_entropy'")


# Modules


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (nn.Flatten(), ("no parameters", "Flatten", r"nn\.ModuleList", "optimizer=None")),
        (mlp().requires_grad_(False), ("frozen", "requires_grad=False", "Unfreeze")),
        (nn.Sequential(nn.LazyLinear(3)), ("lazy", "no shape yet", r"net\(x")),
    ],
    ids=["without parameters", "all frozen", "lazy"],
)
def test_a_module_that_cannot_be_trained_says_why(net, parts):
    refused(lambda: compiled(net), *parts, kind=ValueError)


def test_a_module_that_was_frozen_after_compile_says_so():
    model = compiled()
    model.module.requires_grad_(False)
    refused(lambda: fit(model, X, Y), "no gradient", "frozen", kind=ValueError)


IMAGES = torch.randn(10, 1, 8, 8)


def convolutional(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(144, 3))


def embedding():
    return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("net", "x", "parts"),
    [
        (lambda: mlp(9), X, ("'0'", "Linear", "9 features", "received 8", "in_features=8")),
        (lambda: mlp(64), IMAGES, ("'0'", "Linear", "64 features", "received 8", r"nn\.Flatten")),
        (lambda: convolutional(3), IMAGES, ("'0'", "Conv2d", "3 channels", "received 1", "in_channels=1")),
        (lambda: convolutional(3), IMAGES.expand(-1, 3, -1, -1).movedim(1, -1), ("'0'", "Conv2d", "channels are last")),
        (lambda: convolutional(1), IMAGES.squeeze(1), ("'0'", "Conv2d", "4 dimensions", "received 3", "unsqueeze")),
        (Recurrent, torch.randn(10, 5, 3), ("'lstm'", "LSTM", "4 features", "received 3", "input_size=3")),
        (embedding, torch.full((10, 2), 8), ("'0'", "Embedding", "0 to 4", "to 8", "num_embeddings=9")),
        (embedding, torch.full((10, 2), -1), ("'0'", "Embedding", "down to -1", "rows count from 0", "Renumber")),
        (embedding, torch.randn(10, 2), ("'0'", "Embedding", "float32", "whole numbers", r"x\.long\(\)")),
        (lambda: nn.BatchNorm2d(8), X, ("BatchNorm2d", "got 2D", r"Use nn\.BatchNorm1d\(8\)")),
        (lambda: nn.BatchNorm1d(64), IMAGES, ("BatchNorm1d", "got 4D", r"Put nn\.Flatten\(\) before it")),
        (lambda: nn.BatchNorm1d(1), IMAGES, ("BatchNorm1d", "got 4D", r"Use nn\.BatchNorm2d\(1\)")),
        (lambda: mlp(1), X[:, 0], ("one", r"x\[:, None\]")),
        (mlp, X.mul(9).byte(), ("'0'", "Linear", "uint8", "float32", r"x\.float\(\)")),
        (mlp, X.mul(9).long(), ("'0'", "Linear", "int64", "float32", r"x\.float\(\)")),
        (lambda: convolutional(1), IMAGES.byte(), ("'0'", "Conv2d", "uint8", r"x\.float\(\)")),
    ],
    ids=[
        "Linear",
        "Linear on an image",
        "Conv2d channels",
        "Conv2d channels last",
        "Conv2d without a channel",
        "LSTM",
        "Embedding out of range",
        "Embedding of negative numbers",
        "Embedding of floats",
        "BatchNorm2d behind Flatten",
        "BatchNorm1d before Flatten",
        "BatchNorm1d of images",
        "Linear of single numbers",
        "Linear of uint8",
        "Linear of int64",
        "Conv2d of uint8",
    ],
)
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_layer_that_does_not_fit_its_input_is_named(verb, net, x, parts):
    run = {
        "fit": lambda: fit(compiled(net(), metrics=["accuracy"]), x, Y[: len(x)]),
        "predict": lambda: compiled(net()).predict(x, verbose=0),
    }
    refused(run[verb], *parts, kind=(ValueError, TypeError, IndexError))


def test_a_state_that_is_kept_from_batch_to_batch_is_told_to_be_detached():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head, self.state = nn.GRU(8, 4), nn.Linear(4, 3), None

        def forward(self, x):
            output, self.state = self.gru(x, self.state)
            return self.head(output)

    refused(lambda: fit(compiled(Keeping()), X, Y), "LSTM or GRU", r"state\.detach\(\)", kind=RuntimeError)


class Inner(nn.Module):
    """A module with one part, to be called by ``forward`` in a way of its own."""

    def __init__(self, part, call):
        super().__init__()
        self.part, self.call = part, call

    def forward(self, inputs):
        return self.call(self.part, inputs)


def test_a_call_inside_forward_that_fails_is_not_taken_for_that_of_forward():
    net = Inner(nn.Linear(8, 3), lambda part, inputs: part(inputs["a"], 3))
    with pytest.raises(TypeError, match=r"takes 2 positional arguments but 3 were given$"):
        fit(compiled(net), {"a": X}, Y)


def test_a_layer_of_floats_with_one_row_of_doubles_is_told_of_its_type_and_not_of_its_shape():
    net = Inner(nn.Linear(8, 3), lambda part, x: part(x[0].double()))
    told = refused(lambda: fit(compiled(net), X, Y), "'part'", "Linear", "float64", kind=(ValueError, RuntimeError))
    assert "rows of features" not in told


def test_a_convolution_of_doubles_that_its_padding_saves_is_not_told_of_its_kernel():
    net = Inner(nn.Conv2d(1, 4, 3, padding=1), lambda part, x: part(x.double()))
    told = refused(lambda: fit(compiled(net), torch.randn(50, 1, 2, 2), Y), "'part'", "Conv2d", "float64")
    assert "larger than what is left" not in told


def test_attention_of_another_width_is_named():
    net = Inner(nn.MultiheadAttention(6, 2), lambda part, x: part(x, x, x)[0])
    refused(lambda: fit(compiled(net), X, Y), "'part'", "MultiheadAttention", r"\[32, 8\]", "6")


def test_an_assertion_of_ones_own_stays_what_it_is():
    def call(part, x):
        assert x.shape[1] == 9, "nine features"

    with pytest.raises(AssertionError, match=r"^nine features"):
        fit(compiled(Inner(nn.Linear(9, 3), call)), X, Y)


def test_an_inner_layer_is_named_by_its_path():
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(5, 3)))
    refused(lambda: fit(compiled(net), X, Y), r"'1\.2'", "Linear", "5 features", "received 6")


def test_a_batch_of_one_sample_for_batchnorm_says_what_to_do():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    refused(lambda: fit(compiled(net), X[:9], Y[:9], batch_size=8), "'1'", "BatchNorm", "one sample", "drop_last")


@pytest.mark.parametrize(
    ("net", "x", "parts"),
    [
        (TwoInputs, X, ("TwoInputs", "'left', 'right'", r"float32 \[")),
        (TwoInputs, (X, X, X), ("TwoInputs", "'left', 'right'", r"float32 \[")),
        (TwoInputs, {"left": X, "write": X}, ("TwoInputs", "'left', 'right'", "'write'")),
        (mlp, (X, X), ("Sequential", "'input'", r"\(float32 \[")),
        (mlp, {"a": X, "b": X}, ("Sequential", "'input'", "'a': float32")),
    ],
    ids=["one of two", "three of two", "other names", "two of one", "a dict for one"],
)
def test_a_batch_that_forward_does_not_take_is_told_with_its_arguments(net, x, parts):
    refused(lambda: fit(compiled(net()), x, Y), *parts, kind=TypeError)


# Metrics and callbacks


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (torchmetrics.classification.MulticlassAccuracy(num_classes=2), "multiclass_accuracy"),
        (lambda y_pred, y: y_pred[:, 7].mean(), "<lambda>"),
        (lambda y_pred, y: {"a": 1}, "<lambda>"),
        ("r2", "r2"),
    ],
    ids=["torchmetrics", "function", "a dict", "a regression metric of classes"],
)
def test_a_metric_that_fails_is_named_with_what_it_was_given(metric, name):
    refused(
        lambda: fit(compiled(metrics=[metric]), X, Y),
        f"metric '{name}'",
        r"float32 \[32, 3\]",
        r"int64 \[32\]",
        "metrics=",
    )


def test_an_error_of_ones_own_metric_is_told_of_the_metric():
    class Own(Count):
        def update(self, outputs, y, sample_weight=None):
            raise RuntimeError("the metric's own error")

    told = refused(lambda: fit(compiled(metrics=[Own()]), X, Y), "metric 'count' failed", "the metric's own error")
    assert "train_step" not in told


def test_a_metric_that_fails_at_the_end_of_an_epoch_is_named():
    class Broken(Count):
        name = "broken"

        def compute(self):
            raise RuntimeError("a tensor of the wrong size")

    refused(lambda: fit(compiled(metrics=[Broken()]), X, Y), "metric 'broken'", "a tensor of the wrong size")


def test_a_metric_that_is_no_number_is_named():
    class Confused(Count):
        name = "confused"

        def compute(self):
            return torch.zeros(2, 2)

    refused(lambda: fit(compiled(metrics=[Confused()]), X, Y), "metric 'confused'", "number")


def test_accuracy_of_a_loss_that_does_not_tell_asks_for_the_kind():
    refused(lambda: compiled(loss="mse", metrics=["accuracy"]), "'accuracy'", "MSELoss", "'binary_accuracy'")


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda: Model(nn.Linear), "Linear"),
        (lambda: compiled(loss=nn.CrossEntropyLoss), "CrossEntropyLoss"),
        (lambda: compiled(metrics=[Count]), "Count"),
        (lambda: compiled(metrics=[torchmetrics.classification.MulticlassAccuracy]), "MulticlassAccuracy"),
        (lambda: fit(compiled(), X, Y, callbacks=[EarlyStopping]), "EarlyStopping"),
    ],
    ids=["module", "loss", "metric", "torchmetrics", "callback"],
)
def test_a_class_in_the_place_of_an_object_is_told_to_be_called(run, name):
    refused(run, "class", name, r"\(\)|called", kind=TypeError)


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        (lambda: Model(mlp()).compile(5, "mse"), ("optimizer", "5", "'adam'")),
        (lambda: compiled(loss=5), ("loss", "5", "'cross_entropy'")),
        (lambda: compiled(metrics=[5]), ("metric", "5", "'accuracy'")),
        (lambda: fit(compiled(), X, Y, callbacks=[5]), ("callback", "5", "LambdaCallback")),
        (lambda: fit(compiled(), X, Y, callbacks=EarlyStopping("loss")), ("callbacks", "list", "EarlyStopping")),
    ],
    ids=["optimizer", "loss", "metric", "callback", "callbacks without a list"],
)
def test_a_thing_of_another_kind_is_told_what_may_be_passed(run, parts):
    refused(run, *parts, kind=TypeError)


def test_an_optimizer_of_another_module_is_refused():
    other = torch.optim.SGD(mlp().parameters())
    refused(lambda: Model(mlp()).compile(other, "mse"), "4 of the optimizer's parameters", "do not belong", "Model")


def test_a_compile_that_fails_changes_nothing():
    model = compiled(metrics=["accuracy"])
    before = dict(vars(model))
    refused(lambda: model.compile("adam", "mse", metrics=["acuracy"]), "acuracy")
    refused(lambda: model.compile("adam", "mse", precision="fp61"), "fp61")
    refused(lambda: model.compile("adamm", "mse"), "adamm")
    assert vars(model) == before


# Bad input loses nothing


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


class Counting(Normed):
    """Counts its calls in a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def everything(model):
    """Return all that a fit may change, copied."""
    return copy.deepcopy(
        {
            "weights": model.module.state_dict(),
            "buffers": dict(model.module.named_buffers()),
            "optimizer": model.optimizer.state_dict(),
            "gradients": {name: p.grad for name, p in model.module.named_parameters()},
            "modes": {name: part.training for name, part in model.module.named_modules()},
            "history": model.history.history,
            "epochs": model.history.epoch,
            "state": model.state.state_dict(),
        }
    )


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def worn(net=None, **options):
    """Return a model that has been trained for an epoch."""
    model = Model(Normed() if net is None else net, device="cpu")
    model.compile(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "cross_entropy", metrics=["accuracy"], **options)
    fit(model, blob_loader())
    return model


BAD_INPUT = {
    "labels out of range": lambda: ((X, Y + 1), {}),
    "a late label out of range": lambda: ((X, LATE), {"batch_size": 8, "shuffle": False}),
    "labels out of range in a list": lambda: (([(X, Y + 1)],), {}),
    "labels out of range in a Dataset": lambda: ((ByHand(X, Y + 1),), {}),
    "float labels": lambda: ((X, Y.float()), {}),
    "a column of labels": lambda: ((X, Y.unsqueeze(1)), {}),
    "no labels": lambda: ((X,), {}),
    "text labels": lambda: ((X, ["cat"] * 50), {}),
    "too few labels": lambda: ((X, Y[:9]), {}),
    "other features": lambda: ((X[:, :5], Y), {}),
    "whole numbers": lambda: ((X.long(), Y), {}),
    "nothing": lambda: ((X[:0], Y[:0]), {}),
    "an empty generator": lambda: ((no_batches,), {}),
    "four parts": lambda: (([(X, Y, Y, Y)],), {}),
    "two inputs": lambda: (((X, X), Y), {}),
    "a batch of one": lambda: ((X[:1], Y[:1]), {}),
    "bad validation features": lambda: ((X, Y), {"validation_data": (X[:, :5], Y)}),
    "bad validation labels": lambda: ((X, Y), {"validation_data": (X, Y + 1)}),
    "a bad validation label in a later batch": lambda: ((X, Y), {"validation_data": (X, LATE), "batch_size": 8}),
    "bad validation in a list": lambda: ((X, Y), {"validation_data": [(X[:, :5], Y)]}),
    "an unknown monitor": lambda: ((X, Y), {"callbacks": [EarlyStopping("los")]}),
    "a callback's class": lambda: ((X, Y), {"callbacks": [EarlyStopping]}),
    "an unknown verbose": lambda: ((X, Y), {"verbose": "atuo"}),
    "a wrong validation_freq": lambda: ((X, Y), {"validation_data": (X, Y), "validation_freq": 0}),
    "sample weights of another length": lambda: ((X, Y), {"sample_weight": torch.ones(9)}),
    "an unknown class_weight": lambda: ((X, Y), {"class_weight": "ballanced"}),
    "a wrong initial_epoch": lambda: ((X, Y), {"initial_epoch": 7}),
    "bad labels from an initial_epoch": lambda: ((X, Y + 1), {"epochs": 9, "initial_epoch": 5}),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_loses_nothing(case):
    model = worn()
    before = everything(model)
    data, options = BAD_INPUT[case]()
    refused(lambda: fit(model, *data, **options))
    after = everything(model)
    assert [part for part in before if not equal(before[part], after[part])] == []


def test_bad_input_loses_no_buffer_that_is_not_saved():
    model = worn(Counting())
    before = everything(model)
    refused(lambda: fit(model, ByHand(X, Y + 1)))
    assert equal(everything(model)["buffers"], before["buffers"])


def test_bad_input_in_the_middle_of_a_window_loses_nothing():
    model = worn(gradient_accumulation_steps=2)
    before = everything(model)
    refused(lambda: fit(model, [(X, Y), (X, Y + 1)]))
    after = everything(model)
    assert [part for part in before if not equal(before[part], after[part])] == []


def test_a_bad_batch_for_train_on_batch_loses_nothing():
    model = worn()
    before = everything(model)
    refused(lambda: model.train_on_batch(X, Y + 1))
    after = everything(model)
    assert [part for part in before if not equal(before[part], after[part])] == []


def test_after_bad_input_the_model_trains_on_as_if_nothing_had_happened():
    torch.manual_seed(5)
    undisturbed = worn()
    torch.manual_seed(5)
    disturbed = worn()
    refused(lambda: fit(disturbed, X, Y + 1))
    for model in (undisturbed, disturbed):
        torch.manual_seed(3)
        fit(model, X, Y, epochs=2)
    assert same_weights(undisturbed.module, disturbed.module)


def test_bad_input_does_not_take_the_place_of_the_data_of_the_last_fit():
    model = worn()
    scores = model.evaluate(verbose=0)
    refused(lambda: fit(model, X[:20], Y[:20] + 1))
    assert model.evaluate(verbose=0) == scores


# Files


@pytest.fixture
def saved(tmp_path):
    model = compiled()
    fit(model, X, Y)
    return model, model.save(tmp_path / "good.pt")


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "nowhere" / "model.pt"
    refused(lambda: compiled().save(path), str(path), "no folder", "Make the folder", kind=FileNotFoundError)


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    refused(lambda: compiled().save(tmp_path), str(tmp_path), "is a folder", "another place", kind=IsADirectoryError)


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    path = tmp_path / "file" / "model.pt"
    refused(lambda: compiled().save(path), re.escape(str(path)), "Cannot write", kind=OSError)


@pytest.mark.parametrize(
    ("number", "reason", "cure"),
    [
        (errno.ENOSPC, "No space left", "bytes are free"),
        (errno.EROFS, "Read-only", "may write to"),
        (errno.EACCES, "Permission denied", "may write to"),
        (errno.EIO, "put error|Input/output", "another place"),
    ],
    ids=["full", "read-only", "forbidden", "broken"],
)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_refuses_is_told_with_the_reason(tmp_path, monkeypatch, function, number, reason, cure):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, refuse)
    path = tmp_path / "model.pt"
    refused(lambda: compiled().save(path), f"Cannot write '{path}'", reason, cure, kind=OSError)


@pytest.mark.parametrize("verb", ["load", "load_weights"])
def test_a_missing_file_is_named_with_the_nearest(saved, verb):
    model, path = saved
    refused(
        lambda: getattr(model, verb)(path.with_name("goood.pt")),
        "goood.pt",
        "Did you mean 'good.pt'",
        kind=FileNotFoundError,
    )


def not_models(folder):
    """Return files that are no model, by what is said about them."""
    files = {}
    for name, data in {
        "text": b"PyTorch model\n" * 99,
        "PK text": b"PK, said the postman\n" * 99,
        "zeros": bytes(9999),
    }.items():
        files[name] = folder / f"{name}.pt"
        files[name].write_bytes(data)
    files["pickle"] = folder / "pickle.pt"
    files["pickle"].write_bytes(pickle.dumps({"weight": [1.0]}))
    for name, content in {
        "a list": [1, 2],
        "a tensor": torch.ones(3),
        "a number": 3,
        "a model without parts": {"format": "easytorch", "version": 1},
        "a model without a version": {"format": "easytorch", "module": {}},
    }.items():
        files[name] = folder / f"{name}.pt"
        torch.save(content, files[name])
    return files


@pytest.mark.parametrize("verb", ["load", "load_weights"])
@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "PK text",
        "zeros",
        "pickle",
        "a list",
        "a tensor",
        "a number",
        "a model without parts",
        "a model without a version",
    ],
)
def test_a_file_that_is_not_a_model_is_named(tmp_path, kind, verb):
    path = not_models(tmp_path)[kind]
    model = compiled()
    before = everything(model)
    refused(lambda: getattr(model, verb)(path), re.escape(repr(str(path))), kind=FileError)
    assert equal(everything(model), before)


def test_an_empty_file_is_told_to_be_empty(tmp_path):
    path = tmp_path / "model.pt"
    path.touch()
    refused(lambda: compiled().load(path), "model.pt", "empty", "older copy", kind=FileError)


def test_a_folder_without_checkpoints_is_told(tmp_path):
    refused(lambda: compiled().load(tmp_path), str(tmp_path), "no checkpoint", "step-", kind=FileNotFoundError)


def test_weights_alone_are_no_saved_model(tmp_path):
    path = compiled().save_weights(tmp_path / "weights.pt")
    refused(lambda: compiled().load(path), "weights.pt", r"load_weights\(\)", kind=FileError)


def test_a_file_of_a_later_version_asks_for_an_upgrade(saved):
    model, path = saved
    torch.save(torch.load(path, weights_only=True) | {"version": 99}, path)
    refused(lambda: model.load(path), "99", "pip install --upgrade", kind=FileError)


@pytest.mark.parametrize("verb", ["load", "load_weights"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 1])
def test_a_file_that_was_cut_off_is_refused_and_changes_nothing(saved, share, verb):
    model, path = saved
    data, before = path.read_bytes(), everything(model)
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    refused(lambda: getattr(model, verb)(path), "good.pt", "cut off|damaged", "older copy|again", kind=FileError)
    assert equal(everything(model), before)


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_is_never_silently_wrong(saved, change):
    model, path = saved
    data, before = path.read_bytes(), everything(model)
    refusals = 0
    for position in range(change % 7, len(data), 17):
        damaged = bytearray(data)
        damaged[position] ^= change
        path.write_bytes(damaged)
        try:
            model.load(path)
        except FileError as error:
            assert "good.pt" in str(error)  # noqa: PT017
            refusals += 1
        assert equal(everything(model), before), position
    assert refusals > 50


def test_a_flipped_byte_in_the_directory_of_the_archive_is_never_silently_wrong(saved):
    model, path = saved
    data, before, wrong = path.read_bytes(), everything(model), []
    for position in range(data.index(b"PK\x01\x02"), len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10  # in the attributes it makes a folder of a file, which torch then does not read
        path.write_bytes(damaged)
        with contextlib.suppress(FileError):
            model.load(path)
        if not equal(everything(model), before):
            wrong.append(position)
            path.write_bytes(data)
            model.load(path)
    assert wrong == []


def test_a_flipped_byte_in_safetensors_is_never_silently_wrong(tmp_path):
    model = compiled()
    path = model.save_weights(tmp_path / "good.safetensors")
    data, before = path.read_bytes(), everything(model)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            model.load_weights(path)
        except FileError as error:
            assert "good.safetensors" in str(error)  # noqa: PT017
        assert equal(everything(model), before), position


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_safetensors_that_were_cut_off_are_refused(tmp_path, share):
    path = compiled().save_weights(tmp_path / "good.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(lambda: compiled().load_weights(path), "good.safetensors", "older copy", kind=FileError)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("verb", ["load", "load_weights"])
def test_a_file_with_objects_is_refused_and_runs_no_code(tmp_path, verb):
    torch.save({"weight": torch.ones(1), "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "model.pt")
    refused(
        lambda: getattr(compiled(), verb)(tmp_path / "model.pt"),
        "model.pt",
        "could run code",
        "weights_only",
        kind=FileError,
    )
    assert not (tmp_path / "exploded").exists()


def test_a_whole_pickled_module_is_refused_with_the_way_to_read_it(tmp_path):
    torch.save(mlp(), tmp_path / "net.pt")
    refused(lambda: compiled().load_weights(tmp_path / "net.pt"), "net.pt", "load_state_dict", kind=FileError)


class Named(nn.Module):
    def __init__(self, first="first", size=16):
        super().__init__()
        setattr(self, first, nn.Linear(8, size))
        self.last = nn.Linear(size, 3)

    def forward(self, x):
        return self.last(next(self.children())(x))


@pytest.mark.parametrize("verb", ["load", "load_weights"])
def test_a_file_of_another_module_is_told_in_a_table_with_the_nearest_names(tmp_path, verb):
    path = compiled(Named("frist")).save(tmp_path / "model.pt")
    model = compiled(Named("first"))
    before = everything(model)
    message = refused(lambda: getattr(model, verb)(path), "model.pt", "another module", kind=FileError)
    lines = message.splitlines()
    assert any(
        re.match(r"\s+missing in the file +first\.weight +\[16, 8\] +Did you mean 'frist\.weight'\?", s) for s in lines
    )
    assert any(
        re.match(r"\s+not in the module +frist\.weight +\[16, 8\] +Did you mean 'first\.weight'\?", s) for s in lines
    )
    assert not any("last" in line for line in lines)
    assert equal(everything(model), before)


def test_other_sizes_are_told_from_both_sides(tmp_path):
    path = compiled(Named(size=4)).save(tmp_path / "model.pt")
    model = compiled(Named(size=16))
    message = refused(lambda: model.load(path), "another module", kind=FileError)
    row = next(line for line in message.splitlines() if "first.weight" in line)
    assert re.search(r"another shape +first\.weight +\[4, 8\] in the file +\[16, 8\] in the module", row)


def test_a_table_of_hundreds_of_names_is_kept_short(tmp_path):
    path = compiled(mlp()).save(tmp_path / "model.pt")
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(200)))
    message = refused(lambda: compiled(deep).load(path), "another module", "more", kind=FileError)
    assert len(message.splitlines()) < 30


PREFIXES = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "an inner _orig_mod.": lambda name: name.replace(".", "._orig_mod.", 1),
    "module. and an inner _orig_mod.": lambda name: "module." + name.replace(".", "._orig_mod.", 1),
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    source, target = mlp(), mlp()
    torch.save({PREFIXES[prefix](name): value for name, value in source.state_dict().items()}, tmp_path / "weights.pt")
    compiled(target).load_weights(tmp_path / "weights.pt")
    assert same_weights(source, target)


# What only a fresh eye sees


def test_probabilities_before_cross_entropy_are_told():
    net = nn.Sequential(mlp(), nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"applies a softmax itself.*predict_proba"):
        fit(compiled(net), X, Y)


def test_a_loss_of_ones_own_that_would_broadcast_is_told():
    net = nn.Linear(8, 1)
    with pytest.warns(UserWarning, match=r"makes \[32, 32\] of .*\[32, 1\], and the targets, \[32\]"):
        fit(compiled(net, loss=lambda y_pred, y: ((y_pred - y) ** 2).mean()), X, X[:, 0])


@pytest.mark.parametrize("labels", [lambda y: y * 2 - 1, lambda y: y + 1], ids=["-1 and 1", "1 and 2"])
def test_labels_that_are_no_probabilities_are_refused(labels):
    y = labels((Y > 0).float())[:, None]
    refused(lambda: fit(compiled(nn.Linear(8, 1), loss="bce_with_logits"), X, y), "targets go from", "0 and 1", "y - 1")


@pytest.mark.parametrize(
    "value", [lambda loss: loss, lambda loss: None, lambda loss: (loss,)], ids=["tensor", "None", "tuple"]
)
def test_a_step_that_returns_no_dict_is_told(value):
    class Own(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            return value(nn.functional.cross_entropy(self(x), y))

    refused(lambda: fit(Own(mlp(), device="cpu").compile("sgd"), X, Y), "train_step returned", "'loss'", kind=TypeError)


def test_a_step_that_optimizes_itself_is_told():
    class Own(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            loss = nn.functional.cross_entropy(self(x), y)
            loss.backward()
            return {"loss": loss}

    refused(lambda: fit(Own(mlp(), device="cpu").compile("sgd"), X, Y), "Leave backward", "update", kind=RuntimeError)


def test_what_is_wrong_with_the_validation_data_is_said_of_it():
    refused(lambda: fit(compiled(), X, Y, validation_data=(X[:, :5], Y)), "On the validation data", "8 features")


def test_an_error_of_ones_own_in_the_validation_is_told_with_its_words():
    class PickyError(ValueError):
        def __init__(self, what, why):
            super().__init__(f"{what}: {why}")

    class Failing(nn.Linear):
        def forward(self, x):
            if not self.training:
                raise PickyError("this input", "I do not like it")
            return super().forward(x)

    model = compiled(Failing(8, 3))
    refused(
        lambda: fit(model, X, Y, validation_split=0.2),
        "which is tried first: this input: I do not like it",
    )


@pytest.mark.parametrize("given", [{"y": Y}, {"sample_weight": torch.ones(50)}, {"batch_size": 8}], ids=str)
def test_what_belongs_to_data_is_refused_where_the_data_of_the_last_fit_is_measured(given):
    model = compiled()
    fit(model, X, Y)
    refused(lambda: model.evaluate(verbose=0, **given), f"given {next(iter(given))} without data", kind=ValueError)


def test_outputs_without_a_row_for_each_sample_are_not_joined():
    model = Model(nn.LSTM(8, 4, batch_first=True), device="cpu")
    refused(lambda: model.predict(X.reshape(-1, 1, 8), verbose=0), "one row for each sample", "predict_step")


def test_a_missing_flatten_is_told():
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 3, 1), nn.Linear(4, 5))
    refused(lambda: fit(compiled(net), X, Y), r"\[N, classes\]", "Flatten")


def test_an_optimizer_in_the_place_of_the_loss_is_told():
    with pytest.raises(ValueError, match="'adam' is an optimizer, which comes first"):
        Model(mlp()).compile("cross_entropy", "adam")


def test_a_list_of_samples_is_told_from_a_list_of_batches():
    for samples in ([(X[i], int(Y[i])) for i in range(9)], [(X[i], Y[i]) for i in range(9)]):
        with pytest.raises(ValueError, match=r"this one holds samples: .* DataLoader\(samples, batch_size=32"):
            Model(mlp()).compile("sgd", "cross_entropy").fit(samples, 1, verbose=0)


def test_inputs_and_targets_in_a_list_are_told():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=r"looks like inputs and targets. Pass them as a tuple, \(x, y\)"):
        model.fit(X, Y, validation_data=[X, Y], verbose=0)


@pytest.mark.parametrize("shape", [(), (nn.Flatten(0),)])
def test_a_sigmoid_before_a_loss_that_has_one_is_told(shape):
    net = nn.Sequential(nn.Linear(X.shape[1], 1), nn.Sigmoid(), *shape)
    with pytest.warns(UserWarning, match="Leave the sigmoid out"):
        Model(net).compile("sgd", "bce_with_logits").fit(X, (Y > 0).float().reshape(-1, *[1] * (not shape)), verbose=0)


def test_logits_between_0_and_1_are_logits():
    net = nn.Linear(X.shape[1], 1)
    with torch.no_grad():
        net.weight.mul_(0.01)
        net.bias.fill_(0.5)
    Model(net).compile("sgd", "bce_with_logits").fit(X, (Y > 0).float()[:, None], verbose=0)


def test_the_weight_of_a_class_that_no_target_is_is_told():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    with pytest.warns(UserWarning, match="class_weight has a weight for class 7, which no target is"):
        model.fit(X, Y, class_weight={0: 2.0, 7: 3.0}, verbose=0)


@pytest.mark.parametrize(("spoil", "cause"), [(True, "first batch holds values"), (False, "A lower learning rate")])
def test_a_loss_that_is_no_number_is_told_once(spoil, cause):
    x = X.clone()
    x[:, 0] = float("nan") if spoil else x[:, 0]
    model = Model(mlp()).compile("sgd", "cross_entropy", lr=0.1 if spoil else 1e30)
    with pytest.warns(UserWarning, match=f"The loss of epoch 1 is nan. .*{cause}.* TerminateOnNaN") as told:
        model.fit(x, Y, epochs=3, verbose=0)
    assert len(told) == 1


# Weights, orders and counts that mean nothing for the data


def several_labels():
    return functional.one_hot(Y).float() + functional.one_hot((Y + 1) % 3).float()


@pytest.mark.parametrize("weights", [{0: 1.0, 1: 2.0}, "balanced"], ids=str)
@pytest.mark.parametrize("data", [lambda y: (X, y), lambda y: (ByHand(X, y),)], ids=["arrays", "own Dataset"])
@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "parts"),
    [
        ("mse", 1, X[:, :1], ("numbers such as",)),
        ("bce_with_logits", 3, several_labels(), ("several labels",)),
    ],
    ids=["regression", "several labels"],
)
def test_class_weights_where_there_are_no_classes_are_refused(loss, outputs, targets, parts, data, weights):
    model = compiled(mlp(8, outputs), loss)
    refused(
        lambda: fit(model, *data(targets), class_weight=weights),
        "class_weight",
        "sample_weight",
        *parts,
        kind=ValueError,
    )
    assert model.state.step == 0


@pytest.mark.parametrize(
    ("net", "loss", "targets"),
    [
        (lambda: mlp(8, 1), "bce_with_logits", BINARY[:, None]),
        (lambda: nn.Sequential(mlp(8, 1), nn.Flatten(0)), "bce_with_logits", BINARY),
        (mlp, "cross_entropy", functional.one_hot(Y).float()),
    ],
    ids=["a column of 0 and 1", "0 and 1", "one-hot rows"],
)
@pytest.mark.parametrize("weights", [{0: 1.0, 1: 2.0}, "balanced"], ids=str)
def test_classes_that_are_floats_may_be_weighted(net, loss, targets, weights):
    assert fit(compiled(net(), loss), X, targets, class_weight=weights)["loss"][0] > 0


def test_balanced_weights_of_negative_classes_are_refused():
    refused(lambda: fit(compiled(mlp(8, 1), "mse"), X, Y - 1, class_weight="balanced"), "begin at -1", kind=ValueError)


@pytest.mark.parametrize(
    "run",
    [
        lambda: fit(compiled(), X, Y, class_weight={0: -1.0}),
        lambda: fit(compiled(), X, Y, class_weight=[1.0, float("nan"), 1.0]),
        lambda: fit(compiled(), X, Y, sample_weight=-torch.ones(len(X))),
        lambda: fit(compiled(), (X, Y, -torch.ones(len(X)))),
        lambda: fit(compiled(), {"input": X, "label": Y, "sample_weight": -torch.ones(len(X))}),
        lambda: fit(compiled(), ByHand(X, Y), sample_weight=-np.ones(len(X))),
        lambda: compiled().evaluate(X, Y, sample_weight=-torch.ones(len(X)), verbose=0),
        lambda: compiled().train_on_batch(X, Y, -torch.ones(len(X))),
    ],
    ids=["class", "class without a number", "arrays", "tuple", "dict", "own Dataset", "evaluate", "train_on_batch"],
)
def test_negative_weights_are_refused(run):
    refused(run, "_weight must be 0 or more", kind=ValueError)


def test_one_number_is_no_class_weight():
    refused(lambda: fit(compiled(), X, Y, class_weight=2.0), "one weight for each class", kind=ValueError)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_shuffling_an_iterable_dataset_is_refused_with_the_way_to_do_it():
    refused(lambda: fit(compiled(), Endless(), shuffle=True), "Endless", "Shuffle inside it", kind=ValueError)


def test_an_iterable_dataset_may_be_told_not_to_be_shuffled():
    model = compiled()
    fit(model, Endless(), shuffle=False)
    assert model.state.step == 2


@pytest.mark.parametrize("shuffle", ["batch", 1], ids=str)
def test_shuffle_is_yes_or_no(shuffle):
    refused(lambda: fit(compiled(), X, Y, shuffle=shuffle), "True or False", repr(shuffle), kind=ValueError)


def test_a_share_in_the_place_of_the_validation_data_is_told():
    refused(lambda: fit(compiled(), X, Y, validation_data=0.2), r"Did you mean validation_split=0\.2", kind=ValueError)


def test_unequal_lengths_of_the_validation_data_are_said_of_it():
    refused(
        lambda: fit(compiled(), X, Y, validation_data=(X, Y[:9])), "In validation_data: ", "9 and 50", kind=ValueError
    )


@pytest.mark.parametrize(
    ("share", "cure"), [(20, r"20 % is 0\.2"), (-0.2, "0.2 is a fifth"), (True, "0.2 is")], ids=str
)
def test_a_validation_split_that_is_no_share_is_told(share, cure):
    refused(lambda: fit(compiled(), X, Y, validation_split=share), "validation_split", cure, kind=ValueError)


@pytest.mark.parametrize("data", [Endless(), DataLoader(Endless(), 8)], ids=["dataset", "loader"])
def test_an_iterable_dataset_is_not_split_but_asks_for_validation_data(data):
    message = refused(lambda: fit(compiled(), data, validation_split=0.2), "Pass validation_data", kind=ValueError)
    assert "data.split" not in message


@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_sparse_matrix_is_told_to_be_made_dense(verb):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed").csr_matrix(X.numpy())
    run = {"fit": lambda: fit(compiled(), sparse, Y), "predict": lambda: compiled().predict(sparse, verbose=0)}
    refused(run[verb], "csr_matrix", r"x\.toarray\(\)", kind=TypeError)


def test_a_whole_float_is_a_number_of_steps():
    model = compiled()
    options = {"steps_per_epoch": 6 / 2, "validation_data": (X, Y), "validation_steps": 4 / 2}
    fit(model, X, Y, batch_size=8, epochs=2, **options)
    assert model.state.step == 6
    assert model.evaluate(X, Y, steps=2.0, verbose=0)["loss"] > 0


def test_counts_may_be_numbers_of_numpy():
    model = compiled()
    fit(model, X, Y, batch_size=np.int64(10), epochs=np.int64(2), validation_data=(X, Y), validation_freq=np.int64(2))
    assert (model.state.step, len(model.history["val_loss"])) == (10, 1)


@pytest.mark.parametrize("value", [50 / 32, "3", True, float("nan"), float("inf"), 0], ids=str)
@pytest.mark.parametrize("name", ["steps_per_epoch", "validation_steps"])
def test_steps_that_are_no_count_are_told_with_their_name(name, value):
    options = {"validation_data": (X, Y), name: value}
    refused(lambda: fit(compiled(), X, Y, **options), f"{name} must be a whole number", "at least 1", kind=ValueError)


# Cures for what the user passed


GIVEN = {
    "NumPy": (lambda y: y, r'y\.astype\("{}"\)', r"y\[:, None\]"),
    "pandas": (pandas.Series, r'y\.astype\("{}"\)', r"y\.to_numpy\(\)\[:, None\]"),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize(
    "run",
    [
        lambda x, y: fit(compiled(), x, y),
        lambda x, y: fit(compiled(), (x, y)),
        lambda x, y: fit(compiled(), X, Y, validation_data=(x, y)),
        lambda x, y: compiled().evaluate(x, y, verbose=0),
        lambda x, y: compiled().train_on_batch(x, y),
    ],
    ids=["fit", "tuple", "validation data", "evaluate", "train_on_batch"],
)
def test_labels_of_another_kind_are_told_with_the_conversion_of_that_kind(run, kind):
    made, cast, _ = GIVEN[kind]
    labels = made(Y.numpy().astype("float32"))
    message = refused(lambda: run(X.numpy(), labels), cast.format("int64"), kind=TypeError)
    assert "long" not in message


@pytest.mark.parametrize("kind", GIVEN)
def test_values_of_another_kind_are_told_with_the_conversion_of_that_kind(kind):
    made, cast, column = GIVEN[kind]
    model = compiled(mlp(8, 1), "mse")
    refused(lambda: fit(model, X, made(Y.numpy())), cast.format("float32"), kind=TypeError)
    refused(lambda: fit(model, X, made(X[:, 0].numpy())), column, kind=ValueError)


def test_a_list_is_told_to_become_a_tensor():
    refused(lambda: fit(compiled(), X, Y.float().tolist()), r"torch\.tensor\(y\)\.long\(\)", kind=TypeError)
    refused(lambda: fit(compiled(mlp(1)), X[:, 0].tolist(), Y), r"torch\.tensor\(x\)\[:, None\]", kind=ValueError)


def test_labels_of_numpy_batches_are_told_with_the_conversion_of_numpy():
    batches = [(X.numpy(), Y.numpy().astype("float64"))]
    refused(lambda: fit(compiled(), batches), r'y\.astype\("int64"\)', kind=TypeError)


# One sample in the place of a batch


def network_on_images():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("net", "x", "cure"),
    [
        (mlp, X[0], r"x\[None\]"),
        (mlp, X[0].numpy(), r"x\[None\]"),
        (mlp, X[0].tolist(), r"\[x\]"),
        (mlp, pandas.Series(X[0].numpy()), r"x\.to_numpy\(\)\[None\]"),
        (network_on_images, IMAGES[0], r"x\[None\]"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGES[0, 0], r"x\[None\]"),
    ],
    ids=["tensor", "NumPy", "list", "series", "image with its channel", "image"],
)
@pytest.mark.parametrize("verb", ["predict", "predict_classes", "predict_proba"])
def test_one_sample_is_told_from_a_batch(verb, net, x, cure):
    model = compiled(net())
    refused(
        lambda: getattr(model, verb)(x, verbose=0), "looks like one sample", f"{cure} makes a batch", kind=ValueError
    )


def test_as_many_classes_as_features_do_not_hide_that_it_is_one_sample():
    refused(lambda: compiled(mlp(3, 3)).predict_classes(X[0, :3], verbose=0), "looks like one sample", kind=ValueError)


def test_one_sample_is_told_from_one_batch():
    refused(lambda: compiled().predict_on_batch(X[0]), r"looks like one sample: x\[None\]", kind=ValueError)


def test_single_numbers_are_told_to_become_a_column():
    refused(lambda: compiled(mlp(1)).predict(X[:, 0], verbose=0), r"pass x\[:, None\]", kind=ValueError)


def test_telling_one_sample_leaves_the_model_and_the_random_numbers_as_they_are():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model, before = compiled(net), copy.deepcopy(net.state_dict())
    numbers = torch.get_rng_state()
    refused(lambda: model.predict(X[0], verbose=0), "looks like one sample")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(part.training for part in net.modules())


def test_an_error_that_has_nothing_to_do_with_dimensions_stays_what_it_is():
    refused(lambda: compiled(loss="mse").predict_proba(X, verbose=0), "how outputs become probabilities")


# Samples of which no batch can be made


class Made(ByHand):
    """Samples that a function makes."""

    def __init__(self, make):
        super().__init__(X, Y)
        self.make = make

    def __getitem__(self, index):
        return self.make(index)


def image(index):
    return pytest.importorskip("PIL.Image", reason="Pillow is not installed").new("L", (8, 8)), int(Y[index])


def seldom(index):
    return None if index == 3 else (X[index], int(Y[index]))


def growing(index):
    return torch.zeros(index + 1), int(Y[index])


SAMPLES = {
    "an image": (image, TypeError, ("PIL image", r"transform=torchvision\.transforms\.ToTensor\(\)")),
    "None": (lambda index: None, TypeError, ("None", "__getitem__")),
    "None seldom": (seldom, TypeError, ("None", "__getitem__")),
    "None as the input": (lambda index: (None, 1), TypeError, ("None", "__getitem__")),
    "an object": (lambda index: (Count, 1), TypeError, ("an object of the type", "collate_fn")),
    "another length each": (growing, ValueError, (r"\[1\] and \[2\]", "collate_fn", "pad_sequence")),
    "lists of another length each": (
        lambda index: ([0.0] * (index + 1), 1),
        ValueError,
        ("differ in shape", "pad_sequence"),
    ),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_which_no_batch_can_be_made_are_told(kind, workers):
    make, error, parts = SAMPLES[kind]
    loader = DataLoader(Made(make), 8, num_workers=workers)
    refused(lambda: fit(compiled(), loader), *parts, kind=error)


@pytest.mark.parametrize(
    "run",
    [
        lambda data: fit(compiled(), X, Y, validation_data=data),
        lambda data: compiled().evaluate(data, verbose=0),
        lambda data: compiled().predict(data, verbose=0),
    ],
    ids=["validation data", "evaluate", "predict"],
)
def test_every_verb_tells_of_samples_of_which_no_batch_can_be_made(run):
    refused(lambda: run(Made(growing)), "differ in shape", "pad_sequence", kind=ValueError)


@pytest.mark.parametrize("net", [mlp, TwoInputs])
def test_a_dataset_that_returns_lists_of_numbers_is_told_to_return_tensors(net):
    data = Made(lambda index: (X[index].tolist(), int(Y[index])))
    refused(lambda: fit(compiled(net()), data), r"torch\.tensor\(x\) where its x is a list", kind=TypeError)


RAGGED = [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "rows", [RAGGED, np.array(RAGGED, dtype=object), pandas.Series(RAGGED)], ids=["list", "array", "series"]
)
def test_ragged_rows_are_told_to_be_padded(rows):
    message = refused(lambda: fit(compiled(), rows, [0, 1]), "differ", "pad_sequence")
    assert "Turn text" not in message


def test_rows_that_are_objects_are_told_to_be_stacked():
    rows = pandas.Series([[1.0, 2.0], [3.0, 4.0]])
    refused(lambda: fit(compiled(), rows, [0, 1]), r"np\.stack\(x\)", kind=TypeError)


# Modules that return something else than a tensor of all rows


class Ending(nn.Module):
    """A linear layer whose output something happens to."""

    def __init__(self, end, outputs=1):
        super().__init__()
        self.layer, self.end = nn.Linear(8, outputs), end

    def forward(self, x):
        return self.end(self.layer(x))


@pytest.mark.parametrize(
    "after", [nn.Linear(4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)], ids=lambda layer: type(layer).__name__
)
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_layer_behind_an_lstm_is_told_what_that_returns(after, verb):
    model, x = compiled(nn.Sequential(nn.LSTM(8, 4, batch_first=True), after)), X[:, None]
    run = {"fit": lambda: fit(model, x, Y), "predict": lambda: model.predict(x, verbose=0)}
    refused(run[verb], "Layer '1'", r"LSTM or GRU returns \(output, state\)", kind=TypeError)


def test_a_layer_behind_a_forward_without_return_is_told():
    net = nn.Sequential(Ending(lambda x: None), nn.Linear(1, 3))
    refused(lambda: fit(compiled(net), X, Y), "Layer '1'", "received nothing", "lack its return", kind=TypeError)


@pytest.mark.parametrize(("loss", "metrics"), [("cross_entropy", ()), ("cross_entropy", ["accuracy"]), ("mse", ())])
def test_a_forward_without_return_is_told(loss, metrics):
    model = compiled(Ending(lambda x: None), loss, metrics=metrics)
    refused(lambda: fit(model, X, Y), "returned None", "lack a return", kind=TypeError)
    refused(lambda: model.predict(X, verbose=0), "no outputs", "return", kind=TypeError)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"), [("mse", 1, X[:, 0]), ("bce_with_logits", 1, BINARY), ("cross_entropy", 3, Y)]
)
def test_a_squeeze_that_drops_the_dimension_of_a_batch_of_one_is_told(loss, outputs, y):
    model = compiled(Ending(torch.squeeze, outputs), loss)
    refused(
        lambda: fit(model, X[:33], y[:33]), "batch of one sample", r"squeeze\(1\)", "drop_last=True", kind=ValueError
    )


def test_a_squeeze_that_fails_on_the_validation_data_is_told():
    model = compiled(Ending(torch.squeeze), "mse")
    refused(lambda: fit(model, X[:32], X[:32, 0], validation_data=(X[:1], X[:1, 0])), r"squeeze\(1\)", kind=ValueError)


def test_a_squeeze_is_told_by_predict_too():
    refused(lambda: compiled(Ending(torch.squeeze)).predict(X[:33], verbose=0), r"batch of 1 ", r"squeeze\(1\)")


# What would train something else than it seems


class Hidden(nn.Module):
    """A network that keeps layers where torch does not see them."""

    def __init__(self, keep):
        super().__init__()
        self.layers, self.head = keep(nn.Linear(4, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (lambda layer: [layer], "Hidden.layers is a plain list of layers.*nn.ModuleList"),
        (lambda layer: (layer, None), "plain tuple"),
        (lambda layer: {"a": layer}, "plain dict.*nn.ModuleDict"),
    ],
    ids=["list", "tuple", "dict"],
)
def test_layers_that_torch_does_not_see_are_told(keep, told):
    with pytest.warns(UserWarning, match=told):
        Model(Hidden(keep))


@pytest.mark.parametrize("keep", [lambda layer: [layer.requires_grad_(False)], lambda layer: nn.ModuleList([layer])])
def test_layers_that_are_seen_or_frozen_are_not_told_of(keep):
    Model(Hidden(keep))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("training_step", r"Nobody calls Own\.training_step\. Here it is train_step\(self, batch\)"),
        ("configure_optimizers", r"Here it is compile\("),
        ("trainstep", r"Nobody calls Own\.trainstep.*Did you mean 'train_step'"),
    ],
)
def test_a_step_that_nobody_calls_is_told(name, told):
    with pytest.warns(UserWarning, match=told):
        type("Own", (Model,), {name: lambda self, batch: None})


def test_methods_of_ones_own_are_not_told_of():
    type(
        "Own",
        (Model,),
        {
            "compute_loss": lambda self, x: None,
            "reconstruct": lambda self, x: None,
            "_train_steps": lambda self: None,
            "decode": lambda self: None,
        },
    )


@pytest.mark.parametrize("step", [lambda self, x, y: None, lambda self: None, lambda self, batch, number: None])
def test_a_step_takes_the_batch_alone(step):
    with pytest.raises(TypeError, match=r"must take the batch alone: def train_step\(self, batch\)"):
        type("Own", (Model,), {"train_step": step})


def test_a_step_that_needs_gradients_is_told_to_have_another_for_evaluations():
    class Penalized(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            x = x.requires_grad_()
            loss = nn.functional.cross_entropy(self(x), y)
            return {"loss": loss + torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()}

    model = Penalized(mlp()).compile("adam", "cross_entropy")
    model.fit(X, Y, verbose=0)
    refused(lambda: model.evaluate(X, Y, verbose=0), "without gradients", "override test_step", kind=RuntimeError)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end", "on_train_begin", "on_batch_end"])
def test_a_hook_with_other_arguments_is_told_before_anything_is_trained(hook):
    net = mlp()
    before = net[0].weight.clone()
    own = type("Own", (Callback,), {hook: lambda self: None})()
    message = refused(
        lambda: fit(Model(net).compile("adam", "cross_entropy"), X, Y, callbacks=[own]), f"Own.{hook} takes"
    )
    assert f"def {hook}(self, " in message
    assert torch.equal(net[0].weight, before)


def test_a_function_for_a_hook_with_other_arguments_is_told_how_to_be_written():
    own = LambdaCallback(on_epoch_end=lambda logs: None)
    refused(
        lambda: fit(compiled(), X, Y, callbacks=[own]), r"is called with \(epoch, logs\)", "lambda epoch, logs: ..."
    )


def test_callbacks_of_other_libraries_and_slips_are_answered():
    refused(lambda: callbacks.EarlyStoping, "Did you mean 'EarlyStopping'", kind=AttributeError)
    refused(lambda: callbacks.SwapEMAWeights, r"Here it is EMA\(\)", kind=AttributeError)


def test_probabilities_of_several_outputs_need_to_be_said():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = mlp()

        def forward(self, x):
            return self.a(x), x

    model = Model(Two()).compile("adam", ["cross_entropy", "mse"])
    refused(lambda: model.predict_proba(X, verbose=0), "The loss of 'output_2', MSELoss", kind=ValueError)
    model.compile("adam", "cross_entropy")
    refused(lambda: model.predict_proba(X, verbose=0), "the module returned", "predict_step", kind=ValueError)
    refused(lambda: Model(mlp()).predict_proba(X, verbose=0), "No loss was named", r"Call compile\(\)", kind=ValueError)


def test_a_whole_model_is_not_named_like_weights(tmp_path):
    for run in (
        lambda: compiled().save(tmp_path / "best.safetensors"),
        lambda: ModelCheckpoint(tmp_path / "best.safetensors", save_best_only=True),
    ):
        refused(run, "best.safetensors", "best.pt", "save_weights", kind=ValueError)
    assert not list(tmp_path.iterdir())
    ModelCheckpoint(tmp_path / "best.safetensors", save_weights_only=True)


def test_an_optimizer_function_without_a_rate_is_told():
    net = mlp()
    make = lambda parameters: torch.optim.SGD(parameters, 0.1)  # noqa: E731  # as people write it
    refused(lambda: Model(net).compile(make, "cross_entropy", lr=0.1), "takes no lr", kind=ValueError)


def test_a_model_in_a_model_is_told():
    refused(lambda: Model(Model(mlp())), "It is a Model already", kind=TypeError)


def test_single_samples_in_the_place_of_batches_are_told():
    refused(lambda: fit(compiled(), zip(X.numpy(), Y.numpy(), strict=True)), "Is it a sample", r"fit\(x, y\)")


def test_a_dataset_without_a_length_is_told():
    class Unsized(Dataset):
        def __getitem__(self, index):
            return X[index], Y[index]

    refused(lambda: fit(compiled(), Unsized()), "Unsized has no length", "__len__", kind=TypeError)


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    refused(lambda: compiled().save(path), "no ordinary file", kind=OSError)
    assert path.is_fifo()


def test_losses_that_add_up_and_losses_that_average_cannot_be_accumulated():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.a(x), self.b(x)

    losses = ["cross_entropy", nn.CrossEntropyLoss(reduction="sum")]
    model = Model(Two()).compile("sgd", losses, gradient_accumulation_steps=2)
    refused(lambda: model.fit(X, (Y, Y), batch_size=8, verbose=0), "'output_2' add their samples up", kind=ValueError)
    Model(Two()).compile("sgd", losses).fit(X, (Y, Y), batch_size=8, verbose=0)


def test_a_folder_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(compiled(), X, Y, resume="~/run", callbacks=[ModelCheckpoint("~/best/{epoch}.pt")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "run"]
