"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import EarlyStopping
from tests.errors.common import LATE, ByHand, X, Y, equal, everything, fit, no_batches, refused
from tests.loops import blob_loader, same_weights

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
