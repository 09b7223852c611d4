"""The best epoch in the message at the end of a fit."""

from __future__ import annotations

import re

import pytest

from easytorch import Every, Model
from easytorch.callbacks import EarlyStopping
from tests.loops import blobs, mlp

X, Y = blobs(40)
PAIR = (X[:20], Y[:20])
SETS = {"clean": PAIR, "noisy": (X[20:] + 1, Y[20:])}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"validation_data": SETS}, "val_clean_loss"),
        ({"validation_data": dict(reversed(SETS.items()))}, "val_noisy_loss"),
        ({"validation_data": SETS, "validation_freq": Every(updates=2)}, "val_clean_loss"),
        ({"validation_data": SETS, "callbacks": EarlyStopping("val_noisy_accuracy")}, "val_noisy_accuracy"),
        ({"validation_data": PAIR}, "val_loss"),
        ({"validation_split": 0.2}, "val_loss"),
        ({}, "loss"),
    ],
)
def test_the_message_names_a_validation_loss_if_there_is_one(options, name, capsys):
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", ["accuracy"], lr=0.1)
    model.fit(X, Y, epochs=3, verbose=2, **options)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Trained"))
    found = re.search(r"best (\w+) ([\d.]+%?) in epoch (\d)", line)
    assert found is not None
    assert found[1] == name


@pytest.mark.parametrize(("options", "text"), [({}, ""), ({"restore_best_weights": True}, ", weights restored")])
def test_the_message_says_that_weights_were_restored(options, text, capsys):
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    model.fit(X, Y, epochs=2, verbose=2, validation_split=0.2, callbacks=EarlyStopping(patience=1, **options))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Trained"))
    assert re.search(r" in epoch \d(.*)$", line)[1] == text
