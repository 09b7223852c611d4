"""Number of samples in a batch of any number of parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.data.batch import batch_size


def rows(*shape):
    return torch.zeros(*shape)


class TestSize:
    @pytest.mark.parametrize(
        ("batch", "size"),
        [
            ((rows(4, 8), rows(4)), 4),
            ((rows(7, 4), rows(4)), 4),  # time-major inputs
            ((rows(4, 8), rows(4, 3), rows(4, 1)), 4),
            ((rows(4, 8), rows(4), None), 4),
            ((rows(30), rows(4), rows(4)), 4),  # tokens, labels, offsets
            ((rows(4, 8), rows(4), rows(4), rows(4), rows(4)), 4),
            ([rows(4, 8), (rows(4), rows(4, 2)), rows(4)], 4),
            (([rows(3, 5, 5)] * 4, [{"boxes": rows(2, 4)}] * 4, rows(4)), 4),
            ({"text": rows(30), "offsets": rows(4), "label": rows(4)}, 4),
            ({"x": rows(7, 4, 2), "mask": rows(7, 4), "label": rows(4)}, 4),  # time-major
            ({"x": rows(7, 3), "label": rows(4)}, 4),
        ],
    )
    def test_parts_that_agree_have_the_size(self, batch, size):
        assert batch_size(batch) == size

    @pytest.mark.parametrize(
        "batch",
        [
            (rows(2, 8), rows(30), rows(2), rows(2)),  # CTC with concatenated labels
            (rows(7, 4), rows(7, 4), rows(4)),  # time-major tokens and tags, and lengths
            (rows(4, 8), rows(4), rows(3)),
            (rows(4, 8), rows(4), rows(4), rows(3)),
            {"inputs": rows(2, 9, 8), "labels": rows(30), "input_lengths": rows(2), "label_lengths": rows(2)},
        ],
    )
    def test_parts_that_disagree_ask_for_batch_size(self, batch):
        with pytest.raises(ValueError, match=r"override batch_size\(self, batch\)"):
            batch_size(batch)


class Speech(Model):
    """Batches of utterances with concatenated labels."""

    def train_step(self, batch):
        inputs, _, _, _ = batch
        return {"loss": self(inputs).square().mean(), "n": torch.tensor(float(len(inputs)))}


class SizedSpeech(Speech):
    def batch_size(self, batch):
        return len(batch[0])


UTTERANCES = [(torch.ones(n, 8), rows(labels), rows(n), rows(n)) for n, labels in ((2, 30), (6, 10))]


def test_concatenated_labels_are_not_taken_for_samples():
    with pytest.raises(ValueError, match="batch_size"):
        Speech(nn.Linear(8, 1)).compile("sgd").fit(UTTERANCES, verbose=0)


def test_a_custom_batch_size_weights_the_means():
    history = SizedSpeech(nn.Linear(8, 1)).compile("sgd").fit(UTTERANCES, verbose=0)
    assert history["n"] == [5.0]
