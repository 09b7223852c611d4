"""Parameters and buffers of a loss in several processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from tests.losses.test_loss_modules import Arc, Centered, linear, sgd
from tests.many import furthest, run_ranks

X = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 10


class OtherInit(Arc):
    """Has other weights on each rank, which DDP replaces by those of rank 0."""

    def __init__(self):
        super().__init__()
        if torch.distributed.is_initialized():
            self.weight.data += torch.distributed.get_rank()


def train(kind, processes, accumulation=1):
    net, loss = linear(), kind()
    strategy = "ddp" if processes > 1 else "one"
    model = Model(net, device="cpu").compile(sgd, loss, strategy=strategy, gradient_accumulation_steps=accumulation)
    size = 24 // processes // accumulation
    model.fit(X, Y, batch_size=size, shuffle=False, epochs=2, validation_data=(X, Y), verbose=0)
    return net.state_dict(), loss.state_dict(), dict(model.history)


@pytest.mark.distributed
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", [Arc, OtherInit])
def test_two_processes_train_a_loss_as_one(kind, accumulation):
    ranks, one = run_ranks(train, kind, 2, accumulation), train(Arc, 1)
    for rank in ranks:
        assert furthest(rank[0], one[0]) < 1e-5
        assert furthest(rank[1], one[1]) < 1e-5
        assert rank[2]["val_loss"] == pytest.approx(one[2]["val_loss"], rel=1e-4)


@pytest.mark.distributed
def test_all_ranks_end_with_the_same_moving_mean():
    first, second = run_ranks(train, Centered, 2)
    assert furthest(first[1], second[1]) == 0.0
    assert furthest(first[0], second[0]) == 0.0


def compile_sharded():
    messages = []
    for loss in (Arc(), Centered()):
        model = Model(nn.Linear(8, 8), device="cpu")
        try:
            model.compile(sgd, loss, strategy="fsdp")
            model.fit(X, Y, validation_data=(X, Y), verbose=0)
            messages.append("trained")
        except ValueError as error:
            messages.append(str(error))
    return messages


@pytest.mark.distributed
def test_fsdp_refuses_a_loss_with_trainable_parameters():
    for refused, trained in run_ranks(compile_sharded):
        assert "does not train the parameters of a loss" in refused
        assert "net.criterion = loss" in refused
        assert trained == "trained"
