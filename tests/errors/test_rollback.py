"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import EarlyStopping
from tests.errors.common import LATE, ByHand, X, Y, equal, everything, fit, no_batches, refused
from tests.loops import blob_loader, same_weights

# Wrong input loses nothing


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


def trained_model(net=None, **options):
    """Return a model that has been trained for an epoch."""
    model = Model(Normed() if net is None else net, device="cpu")
    model.compile(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "cross_entropy", metrics=["accuracy"], **options)
    fit(model, blob_loader())
    return model


WRONG_INPUT = {
    "labels out of range": lambda: ((X, Y + 1), {}),
    "a label out of range in a later batch": lambda: ((X, LATE), {"batch_size": 8, "shuffle": False}),
    "labels out of range in a list": lambda: (([(X, Y + 1)],), {}),
    "labels out of range in a Dataset": lambda: ((ByHand(X, Y + 1),), {}),
    "fractions as labels": lambda: ((X, Y + 0.5), {}),
    "several labels": lambda: ((X, torch.ones(len(X), 3).long()), {}),
    "no labels": lambda: ((X,), {}),
    "text labels": lambda: ((X, ["cat"] * 50), {}),
    "too few labels": lambda: ((X, Y[:9]), {}),
    "other features": lambda: ((X[:, :5], Y), {}),
    "integers": lambda: ((X.long(), Y), {}),
    "no samples": lambda: ((X[:0], Y[:0]), {}),
    "an empty generator": lambda: ((no_batches,), {}),
    "four elements": lambda: (([(X, Y, Y, Y)],), {}),
    "two inputs": lambda: (((X, X), Y), {}),
    "a batch of one": lambda: ((X[:1], Y[:1]), {}),
    "wrong validation features": lambda: ((X, Y), {"validation_data": (X[:, :5], Y)}),
    "wrong validation labels": lambda: ((X, Y), {"validation_data": (X, Y + 1)}),
    "a wrong validation label in a later batch": lambda: ((X, Y), {"validation_data": (X, LATE), "batch_size": 8}),
    "wrong validation data in a list": lambda: ((X, Y), {"validation_data": [(X[:, :5], Y)]}),
    "an unknown monitor": lambda: ((X, Y), {"callbacks": [EarlyStopping("los")]}),
    "a callback's class": lambda: ((X, Y), {"callbacks": [EarlyStopping]}),
    "an unknown verbose": lambda: ((X, Y), {"verbose": "atuo"}),
    "a wrong validation_freq": lambda: ((X, Y), {"validation_data": (X, Y), "validation_freq": 0}),
    "sample weights of another length": lambda: ((X, Y), {"sample_weight": torch.ones(9)}),
    "an unknown class_weight": lambda: ((X, Y), {"class_weight": "ballanced"}),
    "a wrong initial_epoch": lambda: ((X, Y), {"initial_epoch": 7}),
    "wrong labels from an initial_epoch": lambda: ((X, Y + 1), {"epochs": 9, "initial_epoch": 5}),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input_loses_nothing(case):
    model = trained_model()
    before = everything(model)
    data, options = WRONG_INPUT[case]()
    refused(lambda: fit(model, *data, **options))
    after = everything(model)
    assert [name for name in before if not equal(before[name], after[name])] == []


def test_wrong_input_loses_no_unsaved_buffer():
    model = trained_model(Counting())
    before = everything(model)
    refused(lambda: fit(model, ByHand(X, Y + 1)))
    assert equal(everything(model)["buffers"], before["buffers"])


def test_wrong_input_within_a_window_loses_nothing():
    model = trained_model(gradient_accumulation_steps=2)
    before = everything(model)
    refused(lambda: fit(model, [(X, Y), (X, Y + 1)]))
    after = everything(model)
    assert [name for name in before if not equal(before[name], after[name])] == []


def test_a_wrong_batch_in_train_on_batch_loses_nothing():
    model = trained_model()
    before = everything(model)
    refused(lambda: model.train_on_batch(X, Y + 1))
    after = everything(model)
    assert [name for name in before if not equal(before[name], after[name])] == []


def test_training_after_wrong_input_is_unchanged():
    torch.manual_seed(5)
    undisturbed = trained_model()
    torch.manual_seed(5)
    disturbed = trained_model()
    refused(lambda: fit(disturbed, X, Y + 1))
    for model in (undisturbed, disturbed):
        torch.manual_seed(3)
        fit(model, X, Y, epochs=2)
    assert same_weights(undisturbed.module, disturbed.module)


def test_wrong_input_does_not_replace_the_data_of_the_last_fit():
    model = trained_model()
    scores = model.evaluate(verbose=0)
    refused(lambda: fit(model, X[:20], Y[:20] + 1))
    assert model.evaluate(verbose=0) == scores
