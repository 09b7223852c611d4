"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader

from tests.errors.common import ByHand, Count, TwoInputs, X, Y, compiled, fit, refused
from tests.loops import mlp

# Samples that do not fit into a batch


class GeneratedDataset(ByHand):
    """Samples from a function."""

    def __init__(self, create):
        super().__init__(X, Y)
        self.create = create

    def __getitem__(self, index):
        return self.create(index)


def image(index):
    return pytest.importorskip("PIL.Image", reason="Pillow is not installed").new("L", (8, 8)), int(Y[index])


def none_at_index_3(index):
    return None if index == 3 else (X[index], int(Y[index]))


def growing(index):
    return torch.zeros(index + 1), int(Y[index])


SAMPLES = {
    "an image": (image, TypeError, ("PIL image", r"transform=torchvision\.transforms\.ToTensor\(\)")),
    "None": (lambda index: None, TypeError, ("None", "__getitem__")),
    "None at one index": (none_at_index_3, TypeError, ("None", "__getitem__")),
    "None as the input": (lambda index: (None, 1), TypeError, ("None", "__getitem__")),
    "an object": (lambda index: (Count, 1), TypeError, ("an object of type", "collate_fn")),
    "different lengths": (growing, ValueError, (r"\[1\] and \[2\]", "collate_fn", "pad_sequence")),
    "batches": (
        lambda index: (torch.zeros(10 - 3 * (index == 7), 4), torch.zeros(10 - 3 * (index == 7))),
        ValueError,
        (r"differ in shape|is a batch already, of 10 samples, and the last of 7",),
    ),
    "lists of different lengths": (
        lambda index: ([0.0] * (index + 1), 1),
        ValueError,
        ("differ in shape", "pad_sequence"),
    ),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_do_not_fit_into_a_batch_are_explained(kind, workers):
    create, error, fragments = SAMPLES[kind]
    loader = DataLoader(GeneratedDataset(create), 8, num_workers=workers)
    refused(lambda: fit(compiled(), loader), *fragments, kind=error)


@pytest.mark.parametrize(
    "run",
    [
        lambda data: fit(compiled(), X, Y, validation_data=data),
        lambda data: compiled().evaluate(data, verbose=0),
        lambda data: compiled().predict(data, verbose=0),
    ],
    ids=["validation data", "evaluate", "predict"],
)
def test_every_method_explains_samples_that_differ_in_shape(run):
    refused(lambda: run(GeneratedDataset(growing)), "differ in shape", "pad_sequence", kind=ValueError)


@pytest.mark.parametrize("net", [mlp, TwoInputs])
def test_lists_of_numbers_in_a_dataset_get_torch_tensor(net):
    data = GeneratedDataset(lambda index: (X[index].tolist(), int(Y[index])))
    refused(lambda: fit(compiled(net()), data), r"torch\.tensor\(x\) for a list of numbers", kind=TypeError)


RAGGED = [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "rows", [RAGGED, np.array(RAGGED, dtype=object), pandas.Series(RAGGED)], ids=["list", "array", "series"]
)
def test_ragged_rows_get_padding_as_the_fix(rows):
    message = refused(lambda: fit(compiled(), rows, [0, 1]), "differ", "pad_sequence")
    assert "Turn text" not in message


def test_rows_of_objects_get_stacking_as_the_fix():
    rows = pandas.Series([[1.0, 2.0], [3.0, 4.0]])
    refused(lambda: fit(compiled(), rows, [0, 1]), r"np\.stack\(x\)", kind=TypeError)
