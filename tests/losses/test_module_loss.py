"""The loss that a module returns in a tuple."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from easytorch import Model
from tests.loops import blobs, furthest, same_weights, twins

X, Y = blobs(48)


class Classifier(nn.Module):
    """Returns what an old model of transformers returns: a tuple with the loss if there are labels."""

    def __init__(self, form="loss first"):
        super().__init__()
        self.layer, self.form = nn.Linear(8, 3), form

    def forward(self, features, labels=None):
        logits = self.layer(features)
        if labels is None:
            return (logits,)
        loss = F.cross_entropy(logits, labels)
        forms = {
            "loss first": (loss, logits),
            "list": [loss, logits],
            "loss last": (logits, loss),
            "loss alone": (loss,),
            "with a cache": (loss, logits, ((features, features),)),
            "dict": {"loss": loss, "logits": logits},
            "two scalars": (loss, logits, logits.mean()),
            "no scalar": (logits, logits),
        }
        return forms[self.form]


def train(form, labels=Y, metrics=("multiclass_accuracy",), **options):
    torch.manual_seed(0)
    net = Classifier(form)
    model = Model(net, device="cpu").compile("sgd", lr=0.1, metrics=[*metrics], **options)
    data = {"features": X, "labels": labels}
    model.fit(data, epochs=2, batch_size=16, shuffle=False, validation_data=data, verbose=0)
    return model


@pytest.mark.parametrize("form", ["loss first", "list", "loss last", "with a cache"])
def test_a_scalar_in_a_tuple_is_the_loss(form):
    model, expected = train(form), train("dict")
    assert same_weights(model.module, expected.module)
    assert model.history.history == expected.history.history
    assert "val_multiclass_accuracy" in model.history


def test_a_tuple_of_the_loss_alone_is_trained():
    model, expected = train("loss alone", metrics=()), train("dict", metrics=())
    assert same_weights(model.module, expected.module)
    assert model.history.history == expected.history.history


def test_a_loss_in_a_tuple_equals_a_hand_written_loop():
    net, plain = twins(Classifier())
    model = Model(net, device="cpu").compile("sgd", lr=0.1)
    model.fit({"features": X, "labels": Y}, epochs=2, batch_size=16, shuffle=False, verbose=0)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(2):
        for x, y in zip(X.split(16), Y.split(16), strict=True):
            plain(x, y)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same_weights(net, plain)


def test_batches_are_weighted_by_their_labels():
    labels = torch.where(torch.arange(48) % 5 < 2, -100, Y)
    labels[:8] = -100
    torch.manual_seed(0)
    whole = Model(Classifier(), device="cpu").compile("sgd", lr=0.1)
    whole.fit([{"features": X, "labels": labels}], epochs=2, verbose=0)
    assert furthest(train("loss first", labels, gradient_accumulation_steps=3).module, whole.module) < 1e-6


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("two scalars", r"2 scalars that may be the loss.*\{'loss': loss, 'logits': logits\}"),
        ("no scalar", "contains no loss.*a tuple with one scalar"),
    ],
)
def test_a_tuple_without_one_certain_loss_gets_the_fix(form, message):
    with pytest.raises(ValueError, match=message):
        train(form, metrics=())
