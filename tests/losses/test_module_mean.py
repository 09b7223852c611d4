"""Promise: a batch without labels that count adds nothing, also if the module computes the mean itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from easytorch import Model

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3
Y[8:16] = -100


class Masked(nn.Module):
    """Divides by the number of its labels, which makes gradients of NaN if there are none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        losses = functional.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        is_counted = (labels != -100).float()
        return {"loss": (losses * is_counted).sum() / is_counted.sum(), "logits": logits}


class CrossEntropy(Masked):
    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class LossAlone(CrossEntropy):
    def forward(self, x, labels=None):
        return {"loss": super().forward(x, labels)["loss"]}


def train(module_class, steps, rows):
    torch.manual_seed(0)
    model = Model(module_class(), device="cpu").compile("sgd", lr=0.1, gradient_accumulation_steps=steps)
    batches = [{"x": X[i : i + 8], "labels": Y[i : i + 8]} for i in rows]
    loss = model.fit(batches, verbose=0)["loss"]
    return loss, model.module.layer.weight


@pytest.mark.parametrize("module_class", [Masked, CrossEntropy, LossAlone])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_of_ignored_labels_adds_nothing(module_class, steps):
    loss, weight = train(module_class, steps, (0, 8, 16, 24))
    assert weight.isfinite().all()
    if steps == 1:  # otherwise the windows differ
        expected_loss, expected = train(module_class, 1, (0, 16, 24))
        assert loss == pytest.approx(expected_loss)
        assert torch.equal(weight, expected)
