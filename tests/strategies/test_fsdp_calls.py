"""Calls between and around fits: sharded weights behave as those of DDP."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from torch import nn

from easytorch import DataParallel, FullySharded, Model
from easytorch.callbacks import EMA, SWA
from easytorch.errors import RankError
from tests.loops import blobs
from tests.many import furthest, run_ranks

X, Y = blobs(24)
X = X.double()
HELD_OUT = (X[:7], Y[:7])


def make_net():
    torch.manual_seed(1)
    block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), block, nn.Linear(16, 3)).double()


def make_strategy(name, **options):
    return FullySharded("cpu", unit=100, **options) if name == "fsdp" else DataParallel("cpu", **options)


def make_model(name, model_class=Model, optimizer="adam", **options):
    model = model_class(make_net(), device="cpu")
    return model.compile(optimizer, "cross_entropy", strategy=make_strategy(name), **options)


def fit(model, **options):
    model.fit(X, Y, **({"batch_size": 4, "verbose": 0} | options))


def weights_of(model):
    return {k: v.clone() for k, v in model.strategy.checkpoints.gather(model.module.state_dict()).items()}


def summaries_between_fits(name):
    model = make_model(name)
    model.summary(X[:2])
    fit(model)
    model.summary()
    model.evaluate(*HELD_OUT, verbose=0)
    model.summary()
    fit(model)
    return [], model


def calls_outside_of_a_step(name):
    model = make_model(name)
    results = [model(X[:4]).sum().item()]
    fit(model, validation_data=HELD_OUT)
    results.append(model(X[:4]).sum().item())
    model.compile("sgd", "cross_entropy", strategy=make_strategy(name))
    fit(model)
    return results, model


def gradients_outside_of_a_fit(name):
    model = make_model(name)
    inputs = X[:4].clone().requires_grad_(True)
    model(inputs).sum().backward()
    result = inputs.grad.sum().item()
    model.strategy.run(lambda batch: model(batch).sum(), X[:4])  # no backward pass follows
    model.compile("adam", "cross_entropy", strategy=make_strategy(name))
    model.module.zero_grad()
    fit(model)
    return [result], model


def optimizer_with_state(name):
    model = Model(make_net(), device="cpu")
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1, momentum=0.9)
    model.compile(optimizer, "cross_entropy", strategy="ddp")
    fit(model)
    model.compile(optimizer, "cross_entropy", strategy=make_strategy(name))
    fit(model)
    return [], model


class GradientInEvaluation(Model):
    def test_step(self, batch):
        x = self.unpack(batch).x
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(x).sum(), x)
        return {"loss": gradient.square().mean().detach()}


def gradient_in_evaluation(name):
    model = make_model(name, GradientInEvaluation)
    fit(model, validation_data=HELD_OUT, epochs=2)
    return [*model.history["val_loss"], model.evaluate(*HELD_OUT, verbose=0).loss], model


def clipping_and_accumulation(name):
    model = make_model(name, clip_grad_norm=0.1, gradient_accumulation_steps=3)
    model.evaluate(*HELD_OUT, verbose=0)
    fit(model, validation_data=HELD_OUT)
    fit(model, epochs=2)
    return [], model


def a_second_model_of_the_module(name):
    first = make_model(name)
    fit(first, validation_data=HELD_OUT)
    model = Model(first.module, device="cpu").compile("sgd", "cross_entropy", strategy=make_strategy(name))
    fit(model)
    return [], model


def a_file_loaded_into_a_new_model(name):
    first = make_model(name)
    fit(first, validation_data=HELD_OUT)
    path = first.strategy.group.broadcast(tempfile.mktemp(suffix=".pt"))
    first.save(path)
    model = make_model(name).load(path)
    result = model.evaluate(*HELD_OUT, verbose=0).loss
    fit(model)
    return [result], model


def an_optimizer_with_options(name):
    model = Model(make_net(), device="cpu")
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.compile(torch.optim.SGD, loss, lr=0.1, momentum=0.9, nesterov=True, strategy=make_strategy(name))
    fit(model)
    model.optimizer.lr *= 0.5
    fit(model)
    path = model.strategy.group.broadcast(tempfile.mktemp(suffix=".pt"))
    model.save(path)
    model.evaluate(*HELD_OUT, verbose=0)  # the file is complete when the ranks meet again
    loaded = Model(make_net(), device="cpu").load(path)
    assert loaded.optimizer.defaults == model.optimizer.defaults
    assert loaded.optimizer.lr == 0.05
    return [loaded.evaluate(*HELD_OUT, verbose=0).loss], model


class Centered(nn.Module):
    """Subtracts a moving mean of the inputs, which each rank would compute from its own batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.register_buffer("center", torch.zeros(8, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.center.lerp_(x.detach().mean(0), 0.5)
        return self.net(x - self.center)


def a_buffer_that_the_forward_pass_changes(name):
    model = Model(Centered(), device="cpu").compile("adam", "cross_entropy", strategy=make_strategy(name))
    fit(model, epochs=2)
    model.compile("sgd", "cross_entropy", strategy=make_strategy(name), gradient_accumulation_steps=2)
    fit(model, epochs=2)
    return model.history["loss"], model


def a_refused_average(name):
    model = make_model(name)
    for average in (EMA(0.9), SWA(0)) if name == "fsdp" else ():
        with pytest.raises(ValueError, match="Use strategy='ddp'"):
            fit(model, callbacks=[average], validation_data=HELD_OUT)
        model.evaluate(*HELD_OUT, verbose=0)
    fit(model)
    return [], model


PROGRAMS = (
    summaries_between_fits,
    calls_outside_of_a_step,
    gradients_outside_of_a_fit,
    optimizer_with_state,
    gradient_in_evaluation,
    clipping_and_accumulation,
    a_second_model_of_the_module,
    a_file_loaded_into_a_new_model,
    an_optimizer_with_options,
    a_buffer_that_the_forward_pass_changes,
    a_refused_average,
)


def run_programs(name):
    records = []
    for program in PROGRAMS:
        torch.manual_seed(0)
        results, model = program(name)
        records.append((results, weights_of(model)))
    return records


@pytest.mark.slow
@pytest.mark.distributed
def test_calls_around_fits_give_the_results_of_ddp(capsys):
    for rank_expected, rank_sharded in zip(
        run_ranks(run_programs, "ddp"), run_ranks(run_programs, "fsdp"), strict=True
    ):
        for program, expected, sharded in zip(PROGRAMS, rank_expected, rank_sharded, strict=True):
            assert sharded[0] == pytest.approx(expected[0], rel=1e-9), program.__name__
            assert furthest(sharded[1], expected[1]) < 1e-10, program.__name__


def refusals():
    messages = []
    model = Model(make_net(), device="cpu")
    early = torch.optim.SGD(model.module.parameters(), lr=0.1)
    model.compile("adam", "cross_entropy", strategy=make_strategy("fsdp"))
    for optimizer, strategy in (
        (early, make_strategy("fsdp")),
        ("adam", "ddp"),
        ("adam", "one"),
        ("adam", make_strategy("fsdp", sync_batchnorm=True)),
    ):
        with pytest.raises(ValueError) as error:
            model.compile(optimizer, "cross_entropy", strategy=strategy)
        messages.append(str(error.value))
    fit(model)  # the model is unchanged
    return messages


def test_what_cannot_follow_sharding_is_refused():
    for early, ddp, single, batchnorm in run_ranks(refusals):
        assert "create the optimizer from model.module.parameters() now" in early
        assert "was sharded by strategy='fsdp', and no other strategy can use its shards" in ddp
        assert single == ddp
        assert "sync_batchnorm=True cannot replace the BatchNorm layers" in batchnorm


class UnequalCalls(nn.Module):
    """Calls its second block on rank 0 only."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks[0](x)
        return self.head(self.blocks[1](x) if os.environ["RANK"] == "0" else x)


def _fit_unequal():
    model = Model(UnequalCalls().double(), device="cpu")
    model.compile("sgd", "cross_entropy", strategy=FullySharded("cpu", unit=50, timeout=4))
    with pytest.raises(
        RankError, match=r"waited 4 seconds.*must call the same blocks.*find_unused_parameters"
    ) as caught:
        fit(model)
    return str(caught.value)


@pytest.mark.distributed
@pytest.mark.slow
def test_unequal_numbers_of_blocks_end_with_their_names():
    first, second = run_ranks(_fit_unequal)
    assert "rank 0 had called the blocks 'blocks.0', 'blocks.1';" in first
    assert "rank 1 had called the blocks 'blocks.0';" in second
