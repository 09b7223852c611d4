"""Optimizers that need a closure, in two processes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import LambdaCallback
from tests.distributed.test_ddp import rows
from tests.loops import mlp
from tests.many import furthest, run_ranks
from tests.test_closures import MAKERS, noisy

pytestmark = pytest.mark.distributed


def program(name, count, size, steps=1, loss="cross_entropy", stop_at=None, make=mlp, strategy="auto"):
    torch.manual_seed(0)
    net = make().double()
    x, y = rows(count)
    options = {"gradient_accumulation_steps": steps, "clip_grad_norm": 1.0, "strategy": strategy}
    model = Model(net, device="cpu").compile(MAKERS[name](net.parameters()), loss, **options)

    def stop(batch, logs):
        model.stop_training = model.strategy.group.is_main and model.state.step == stop_at

    callback = LambdaCallback(on_train_batch_end=stop)
    model.fit(x.double(), y, epochs=3, batch_size=size, shuffle=False, callbacks=[callback], verbose=0)
    return model.state_dict()["module"], model.state.step, model.history["loss"]


def count_loss(y_pred, y):
    return nn.functional.cross_entropy(y_pred, y, reduction="sum"), len(y)


@pytest.mark.parametrize(
    ("name", "count", "steps", "loss"),
    [
        ("lbfgs", 48, 1, "cross_entropy"),
        ("lbfgs", 41, 1, "cross_entropy"),
        ("lbfgs", 50, 2, "cross_entropy"),
        ("lbfgs", 50, 2, count_loss),
        ("sam", 50, 2, "cross_entropy"),
        ("object of another library", 50, 1, "cross_entropy"),
    ],
)
def test_two_ranks_with_a_closure_equal_one_process(name, count, steps, loss):
    run = functools.partial(program, name, count, loss=loss)
    weights, updates, losses = run(16 * steps)
    for rank_weights, rank_updates, rank_losses in run_ranks(run, 8, steps):
        assert furthest(weights, rank_weights) < 1e-6
        assert rank_updates == updates
        assert rank_losses == pytest.approx(losses, rel=1e-6)


def test_ranks_stay_equal_with_dropout_and_batchnorm():
    first, second = run_ranks(functools.partial(program, "lbfgs", 50, 8, make=noisy))
    assert furthest(first[0], second[0]) == 0
    assert first[2] == second[2]


def test_a_stop_of_one_rank_ends_all_after_the_same_update():
    results = run_ranks(functools.partial(program, "lbfgs", 48, 8, stop_at=4))
    assert [updates for _, updates, _ in results] == [5, 5]  # the request travels with the gradients of the next update


def refused():
    with pytest.raises(ValueError, match=r"LBFGS evaluates the loss several times.*strategy='ddp'"):
        Model(mlp(), device="cpu").compile("lbfgs", "cross_entropy", strategy="fsdp")


def test_fsdp_with_a_closure_is_refused():
    run_ranks(refused)


def test_sam_with_sharded_weights_equals_one_process():
    weights, updates, losses = program("sam", 50, 32)
    for rank_weights, rank_updates, rank_losses in run_ranks(
        functools.partial(program, "sam", 50, 8, 2, strategy="fsdp")
    ):
        assert furthest(weights, rank_weights) < 1e-6
        assert rank_updates == updates
        assert rank_losses == pytest.approx(losses, rel=1e-6)
