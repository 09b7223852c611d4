"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader

from tests.errors.common import ByHand, Count, TwoInputs, X, Y, compiled, fit, refused
from tests.loops import mlp

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
