"""Custom losses with more arguments, in two processes."""

from __future__ import annotations

import functools

import pytest
import torch

from easytorch import Model
from tests.loops import mlp
from tests.losses.test_loss_arguments import LOGITS, X, Y, distillation, r_drop
from tests.many import furthest, run_ranks

pytestmark = pytest.mark.distributed


def program(loss, size, strategy="auto"):
    torch.manual_seed(0)
    model = Model(mlp().double(), device="cpu").compile("sgd", loss, lr=0.1, strategy=strategy)
    data = {"x": X.double(), "y": Y, "teacher_logits": LOGITS.double()} if loss is distillation else (X.double(), Y)
    model.fit(data, epochs=2, batch_size=size, shuffle=False, verbose=0)
    return model.state_dict()["module"], model.history["loss"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("loss", [distillation, r_drop])
def test_two_ranks_equal_one_process_with_twice_the_batch(loss, strategy):
    weights, losses = program(loss, 16)
    for rank_weights, rank_losses in run_ranks(functools.partial(program, loss, 8, strategy)):
        assert furthest(weights, rank_weights) < 1e-10
        assert rank_losses == pytest.approx(losses, rel=1e-10)
