"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from tests.errors.common import BINARY, LATE, ByHand, X, Y, compiled, fit, refused
from tests.loops import mlp


def loss_id(loss):
    return getattr(loss, "__name__", str(loss))


# Labels and losses


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (LATE, ("0 to 3", "3 outputs", "classes 0 to 2", "4 outputs")),
        (Y + 1, ("1 to 3", "3 outputs", "y - 1")),
        (Y - 1, ("-1 to 1", "3 outputs", "Renumber")),
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
    ids=["tensors", "arrays", "TensorDataset", "DataLoader", "list of batches", "custom Dataset"],
)
def test_label_range_error_shows_range_and_classes(data, labels, parts):
    model = compiled(metrics=["accuracy"])
    options = {"batch_size": 64} if isinstance(data(Y)[0], ByHand) else {}  # its later labels are unknown
    refused(lambda: fit(model, *data(labels), **options), *parts, kind=ValueError)


def test_the_void_label_of_segmentation_is_recognized():
    y = torch.zeros(4, 8, 8, dtype=torch.int64)
    y[0, 0] = 255
    images = torch.rand(4, 3, 8, 8)
    parts = "0 to 255", "256 outputs", r"CrossEntropyLoss\(ignore_index=255\)"
    refused(lambda: fit(compiled(nn.Conv2d(3, 3, 1)), images, y), *parts, kind=ValueError)
    fit(compiled(nn.Conv2d(3, 3, 1), loss=nn.CrossEntropyLoss(ignore_index=255)), images, y)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), functional.cross_entropy, "nll"], ids=["object", "function", "nll"]
)
def test_label_range_is_checked_for_every_form_of_loss(loss):
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
def test_wrong_label_in_a_later_batch_raises_before_training(data):
    model = compiled()
    arguments, options = data()
    refused(lambda: fit(model, *arguments, **({"shuffle": False} if options else {}), **options), "0 to 3", "3 outputs")
    assert model.state.step == 0


def test_wrong_label_in_any_output_raises_before_training():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return {"left": self.left(x), "right": self.right(x)}

    model = compiled(TwoHeads(), {"left": "cross_entropy", "right": "cross_entropy"})
    refused(lambda: fit(model, X, {"left": Y, "right": LATE}, batch_size=8, shuffle=False), "0 to 3", "3 outputs")
    assert model.state.step == 0


@pytest.mark.parametrize("method", ["evaluate", "test_on_batch", "train_on_batch"])
def test_label_range_is_checked_by_every_method(method):
    options = {"verbose": 0} if method == "evaluate" else {}
    refused(lambda: getattr(compiled(), method)(X, LATE, **options), "0 to 3", "3 outputs")


class OwnCrossEntropy(nn.CrossEntropyLoss):
    def forward(self, y_pred, y):
        return super().forward(y_pred, y)


class OwnError(nn.MSELoss):
    def forward(self, y_pred, y):
        return super().forward(y_pred, y)


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (Y.float(), (r"float32 \[", "int64", r"y\.long\(\)")),
        (Y.int(), (r"int32 \[", "int64", r"y\.long\(\)")),
        (functional.one_hot(Y), (r"int64 \[\d+, 3\]", "one column per class", r"argmax\(1\)")),
        (Y.unsqueeze(1), (r"int64 \[\d+, 1\]", "class indices", r"squeeze\(1\)")),
    ],
    ids=["floats", "int32", "one-hot integers", "a column"],
)
@pytest.mark.parametrize("metrics", [(), ["accuracy"]], ids=["no metric", "accuracy"])
def test_wrong_labels_for_a_subclass_show_the_conversion(metrics, labels, parts):
    refused(lambda: fit(compiled(loss=OwnCrossEntropy(), metrics=metrics), X, labels), *parts)


@pytest.mark.parametrize(
    ("targets", "parts", "kind"),
    [
        (Y.unsqueeze(1), (r"int64 \[\d+, 1\]", "floats", r"y\.float\(\)"), TypeError),
        (BINARY, (r"\[32, 1\]", r"\[32\]", r"y\.unsqueeze\(1\)"), ValueError),
    ],
    ids=["integers", "flat"],
)
@pytest.mark.parametrize("metrics", [(), ["mae"]], ids=["no metric", "mae"])
def test_wrong_targets_for_a_subclass_show_the_conversion(metrics, targets, parts, kind):
    refused(lambda: fit(compiled(mlp(8, 1), OwnError(), metrics=metrics), X, targets), *parts, kind=kind)


def test_logits_for_bce_suggest_bce_with_logits():
    refused(
        lambda: fit(compiled(mlp(8, 1), "bce"), X, BINARY.unsqueeze(1)),
        "probabilities",
        "bce_with_logits",
        "Sigmoid",
        kind=ValueError,
    )


def test_several_outputs_for_one_loss_suggest_one_loss_each():
    refused(lambda: fit(compiled(nn.LSTM(8, 3)), X, Y), "CrossEntropyLoss", r"float32 \[", "each output", "loss=")


def test_dict_of_targets_for_one_loss_raises():
    refused(lambda: fit(compiled(), X, {"digit": Y}), "CrossEntropyLoss", "targets", r"'digit': int64")


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        (lambda y_pred, y: functional.cross_entropy(y_pred, y).item(), ("float", "not a tensor", "scalar")),
        (lambda y_pred, y: None, ("nothing", "not a tensor", "scalar", "missing return")),
        (lambda y_pred, y: np.square(y_pred).mean(), ("calls a function of NumPy", "torch.mean for np.mean")),
        (lambda y_pred, y: np.mean(y_pred.softmax(1)), ("calls a function of NumPy", "torch.mean for np.mean")),
        (lambda y_pred, y: y_pred.mean(0), (r"float32 \[3\]", "not one number", r"mean\(\)")),
        (lambda y_pred, y: functional.cross_entropy(y_pred, y).detach(), ("no gradient", "detach")),
        (lambda y_pred, y: (y_pred.argmax(1) != y).float().mean(), ("no gradient", "argmax")),
    ],
    ids=["a number", "nothing", "NumPy", "NumPy with an axis", "a vector", "detached", "argmax"],
)
def test_loss_that_cannot_be_optimized_raises(loss, parts):
    refused(lambda: fit(compiled(loss=loss), X, Y), *parts)


@pytest.mark.parametrize("loss", [1.0, None, (1.0, 2), (torch.ones(()), 1, 2), {}], ids=repr)
def test_loss_of_a_step_that_is_no_tensor_raises(loss):
    class Wrong(Model):
        def train_step(self, batch):
            return {"loss": loss}

    model = Wrong(mlp(), device="cpu").compile("sgd", "cross_entropy")
    refused(lambda: fit(model, X, Y), "loss of a training step", "not a tensor", "item", kind=TypeError)


def test_step_without_loss_error_shows_what_to_return():
    class Silent(Model):
        def train_step(self, batch):
            return {"accuracy": 1.0}

    model = Silent(mlp(), device="cpu").compile("sgd", "cross_entropy")
    refused(lambda: fit(model, X, Y), "train_step", "'loss'", kind=(ValueError, TypeError, KeyError))


def test_module_without_loss_suggests_a_loss():
    refused(lambda: fit(compiled(loss=None), X, Y), "contains no loss", r"float32 \[32, 3\]", "loss='cross_entropy'")


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda loss: loss.item(), r"Remove \.item\(\)"),
        (lambda loss: None, "Add the missing return"),
        (lambda loss: {"loss": loss}, r"Return the sum of its terms.*train_step"),
        (lambda loss: [loss, 4], r"tuple \(sum, count\)"),
        (lambda loss: (loss, 4, 0), r"tuple \(sum, count\)"),
    ],
    ids=["float", "None", "dict", "list", "triple"],
)
def test_a_loss_that_returns_no_tensor_names_its_fix(make, fix):
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", lambda p, t: make(nn.functional.cross_entropy(p, t)))
    with pytest.raises(TypeError, match=fix):
        model.fit(torch.randn(6, 4), torch.arange(6) % 3, verbose=0)
