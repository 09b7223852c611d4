"""Equality of several processes and one with larger batches, with several optimizers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, FullySharded, Model
from easytorch.callbacks import BackupAndRestore, Freeze, TerminateOnNaN
from easytorch.strategies import base
from tests.common_gan import LATENT, Pair, critic_loss, generator_loss, penalty
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import furthest, run_ranks
from tests.test_several_optimizers import Parts

GAN = {"critic": ("adam", {"lr": 2e-3}), "generator": ("sgd", {"lr": 0.05, "momentum": 0.5})}
# The generator and the critic are blocks, whose weights are gathered separately.
SHARDED = functools.partial(FullySharded, "cpu", unit=50)
STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", pytest.param(SHARDED, id="fsdp")])
SGD = {"critic": "sgd", "generator": "sgd"}
PARTS = {"backbone": ("sgd", {"lr": 0.01, "momentum": 0.9}), "*": ("adam", {"lr": 1e-3})}


class Steps(Model):
    """Draws nothing, so that ranks and one process see the same numbers."""

    def critic_step(self, batch):
        x = self.unpack(batch).x
        return {"loss": critic_loss(self.module, x, self(x[:, :LATENT]))}

    def generator_step(self, batch):
        return {"loss": generator_loss(self.module, self(self.unpack(batch).x[:, :LATENT]))}


class Losses(Model):
    def train_step(self, batch):
        x = self.unpack(batch).x
        fakes = self(x[:, :LATENT])
        return {"generator_loss": generator_loss(self.module, fakes), "critic_loss": critic_loss(self.module, x, fakes)}


class Pairs(Losses):
    """Returns sums and counts."""

    def train_step(self, batch):
        x = self.unpack(batch).x
        fakes, is_real = self(x[:, :LATENT]), (x[:, 0] > 0).double()
        wrong = functional.softplus(self.module.critic(fakes.detach()))[:, 0]
        return {
            "generator_loss": (functional.softplus(-self.module.critic(fakes)).sum(), len(x)),
            "critic_loss": ((wrong * is_real).sum(), is_real.sum()),
        }


class Penalty(Steps):
    def critic_step(self, batch):
        x = self.unpack(batch).x
        return {"loss": super().critic_step(batch)["loss"] + penalty(self.module, x, x.flip(1), 0.5)}


class OneLoss(Model):
    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": functional.cross_entropy(self(x), y)}


def new_pair(norm=False):
    pair = Pair()
    pair.critic[2] = nn.Identity()
    if not norm:
        pair.generator[1] = nn.Identity()
    return pair.double()


def as_list(callbacks):
    return callbacks if isinstance(callbacks, list) else [callbacks]


def train(
    model_class,
    optimizers,
    count,
    size,
    *,
    strategy="auto",
    fit=None,
    norm=False,
    callbacks=(),
    freeze=list,
    dtype=torch.float64,
    **options,
):
    net = (Parts() if optimizers is PARTS else new_pair(norm)).to(dtype)
    x, y = blobs(count)
    data = TensorDataset(x.to(dtype), y) if optimizers is PARTS else TensorDataset(x.to(dtype))
    model = model_class(net, device="cpu").compile(
        optimizers,
        "cross_entropy" if model_class is Model else None,
        strategy=strategy() if callable(strategy) else strategy,
        **options,
    )
    torch.manual_seed(0)
    model.fit(DataLoader(data, size, shuffle=True), 2, verbose=0, callbacks=[*callbacks, *as_list(freeze())])
    weights = model.strategy.checkpoints.gather(net.state_dict())
    return {name: value.clone() for name, value in weights.items()}, dict(model.history.history)


def assert_equal_to_one(model_class, optimizers, count=50, size=8, many=None, **options):
    reference, history = train(model_class, optimizers, count, size * 2, **options)
    function = functools.partial(train, **options, **(many or {}))
    for weights, logs in run_ranks(function, model_class, optimizers, count, size):
        assert furthest(reference, weights) < 1e-10
        assert logs.keys() == history.keys()
        for name in history:
            assert logs[name] == pytest.approx(history[name], rel=1e-10)


def test_ranks_with_a_step_for_each_optimizer_equal_one_process():
    assert_equal_to_one(Steps, GAN)


@pytest.mark.distributed
@STRATEGIES
@pytest.mark.parametrize("count", [48, 33, 41, 2])
def test_ranks_without_a_batch_take_part_in_each_step(count, strategy):
    options = {"clip_grad_norm": 0.05, "gradient_accumulation_steps": 2}
    assert_equal_to_one(Steps, GAN, count, 8, many={"strategy": strategy}, **options)


@pytest.mark.distributed
@STRATEGIES
@pytest.mark.parametrize("model_class", [Losses, Pairs])
@pytest.mark.parametrize("count", [48, 33])
def test_ranks_with_simultaneous_losses_equal_one_process(model_class, count, strategy):
    options = {} if model_class is Pairs else {"clip_grad_norm": 0.05}
    assert_equal_to_one(model_class, GAN, count, many={"strategy": strategy}, gradient_accumulation_steps=2, **options)


@pytest.mark.distributed
@STRATEGIES
@pytest.mark.parametrize("model_class", [Penalty, Losses])
def test_ranks_skip_the_same_windows(model_class, strategy):
    options = {"update_every": {"generator": 3}, "scheduler": {"generator": "cosine"}}
    assert_equal_to_one(model_class, GAN, many={"strategy": strategy}, **options)


@pytest.mark.distributed
@STRATEGIES
@pytest.mark.parametrize("model_class", [Model, OneLoss])
def test_ranks_skip_windows_of_one_loss(model_class, strategy):
    options = {"update_every": {"backbone": 2}, "gradient_accumulation_steps": 3}
    assert_equal_to_one(model_class, PARTS, many={"strategy": strategy}, **options)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [DataParallel, SHARDED])
@pytest.mark.parametrize("count", [48, 34])
def test_ranks_with_sync_batchnorm_and_steps_equal_one_process(count, kind):
    sync = functools.partial(kind, **{"device": "cpu"} if kind is DataParallel else {}, sync_batchnorm=True)
    assert_equal_to_one(Steps, GAN, count, norm=True, many={"strategy": sync})


@pytest.mark.distributed
@STRATEGIES
@pytest.mark.parametrize("model_class", [Steps, Losses])
def test_ranks_freeze_the_part_of_one_optimizer(model_class, strategy):
    freeze = functools.partial(Freeze, "generator", until=1)
    assert_equal_to_one(model_class, GAN, many={"strategy": strategy}, freeze=freeze)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("model_class", [Model, OneLoss])
def test_ranks_with_one_loss_and_a_dict_equal_one_process(strategy, model_class):
    assert_equal_to_one(model_class, PARTS, clip_grad_norm=0.1, many={"strategy": strategy}, scheduler="cosine")


def _train_in_bf16(strategy, model_class):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "check_precision", lambda device, dtype: None)
        return train(
            model_class, SGD, 40, 8, strategy=functools.partial(strategy, precision="bf16"), dtype=torch.float32
        )


@pytest.mark.distributed
@pytest.mark.parametrize("model_class", [Steps, Losses])
def test_fsdp_in_bf16_equals_ddp_with_several_losses(model_class):
    first = run_ranks(_train_in_bf16, functools.partial(DataParallel, "cpu"), model_class)
    second = run_ranks(_train_in_bf16, SHARDED, model_class)
    assert furthest(first[0][0], second[0][0]) < 1e-6


class OwnGradient(Steps):
    """Computes gradients of parameters."""

    def critic_step(self, batch):
        outputs = super().critic_step(batch)
        gradients = torch.autograd.grad(outputs["loss"], list(self.module.critic.parameters()), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        return outputs


def _refuses_gradients_of_shards():
    with pytest.raises(RuntimeError, match=r"use strategy='ddp', or gather all\s+weights together"):
        train(OwnGradient, GAN, 48, 8, strategy=SHARDED)


@pytest.mark.distributed
def test_gradients_of_parameters_in_a_step_name_the_unit():
    assert_equal_to_one(OwnGradient, GAN, many={"strategy": functools.partial(FullySharded, "cpu", unit=10**12)})
    run_ranks(_refuses_gradients_of_shards)


class OneLossWithPenalty(Model):
    """Computes the penalty first, in the middle or last, which is the reverse of the order in the backward pass."""

    position = 0

    def train_step(self, batch):
        x = self.unpack(batch).x
        fakes = self(x[:, :LATENT])
        parts = [
            lambda: critic_loss(self.module, x, fakes),
            lambda: self.module.critic(x).detach().mean(),
            lambda: generator_loss(self.module, fakes),
        ]
        parts.insert(self.position, lambda: penalty(self.module, x, x.flip(1), 0.5))
        return {"loss": sum(part() for part in parts)}


class PenaltySecond(OneLossWithPenalty):
    position = 1


class PenaltyThird(OneLossWithPenalty):
    position = 2


class PenaltyLast(OneLossWithPenalty):
    position = 3


@pytest.mark.distributed
@pytest.mark.parametrize("model_class", [OneLossWithPenalty, PenaltySecond, PenaltyThird, PenaltyLast])
def test_fsdp_with_a_second_derivative_equals_one_process(model_class):
    options = {"gradient_accumulation_steps": 2, "clip_grad_norm": 0.1}
    assert_equal_to_one(model_class, GAN, many={"strategy": SHARDED}, **options)


class Unused(Steps):
    def critic_step(self, batch):
        return {"loss": self.module.critic[0](self.unpack(batch).x).square().mean()}


def _fails_for_unused(strategy):
    with pytest.raises(RuntimeError, match=r"'critic.3.weight', 'critic.3.bias' had no gradient"):
        train(Unused, GAN, 48, 8, strategy=strategy)


@pytest.mark.distributed
def test_ranks_with_unused_parameters_need_the_option():
    run_ranks(_fails_for_unused, "ddp")


def _resumed(model_class, optimizers, folder, strategy, steps):
    options = {"update_every": {"generator": 2}} if optimizers is GAN else {}
    run = functools.partial(train, model_class, optimizers, 50, 8, strategy=strategy, **options)
    whole = run()
    for step in steps:
        with pytest.raises(SimulatedCrash):
            run(callbacks=[BackupAndRestore(folder / str(step), save_freq=1), CrashAfter(step)])
        resumed = run(callbacks=[BackupAndRestore(folder / str(step), save_freq=1)])
        assert whole[1] == resumed[1]
        assert furthest(whole[0], resumed[0]) == 0


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "optimizers", "strategy", "steps"),
    [
        (Steps, GAN, "ddp", range(1, 8)),
        (Losses, GAN, "ddp", (3, 4)),
        (Penalty, GAN, SHARDED, range(1, 8)),
        (Losses, GAN, SHARDED, (2, 3, 4)),
        (Model, PARTS, SHARDED, (1, 6)),
    ],
)
def test_ranks_that_stop_after_an_update_end_the_same(model_class, optimizers, strategy, steps, tmp_path):
    run_ranks(_resumed, model_class, optimizers, tmp_path, strategy, steps, timeout=300)


class NotFinite(Steps):
    def critic_step(self, batch):
        outputs = super().critic_step(batch)
        is_bad = self.state.step == 1 and self.strategy.group.rank == 1
        return {"loss": outputs["loss"] * (float("nan") if is_bad else 1)}


class NotFiniteLosses(Losses):
    def train_step(self, batch):
        outputs = super().train_step(batch)
        is_bad = self.state.step == 1 and self.strategy.group.rank == 1
        return outputs | {"critic_loss": outputs["critic_loss"] * (float("nan") if is_bad else 1)}


def _stops_at_nan(model_class, strategy):
    with pytest.raises(FloatingPointError, match="not finite in update 2"):
        train(model_class, GAN, 48, 8, strategy=strategy, callbacks=[TerminateOnNaN(raise_error=True)])


@pytest.mark.distributed
@STRATEGIES
@pytest.mark.parametrize("model_class", [NotFinite, NotFiniteLosses])
def test_all_ranks_stop_when_the_loss_of_a_step_is_nan(model_class, strategy):
    run_ranks(_stops_at_nan, model_class, strategy)


class StopsOnRank(Steps):
    def critic_step(self, batch):
        self.stop_training |= self.state.step == 2 and self.strategy.group.rank == 1
        return super().critic_step(batch)


def _count_updates(strategy):
    net = new_pair()
    model = StopsOnRank(net, device="cpu").compile(GAN, strategy=strategy() if callable(strategy) else strategy)
    model.fit(DataLoader(TensorDataset(blobs(80)[0].double()), 8), verbose=0)
    return model.state.step


@pytest.mark.distributed
@STRATEGIES
def test_all_ranks_stop_after_the_same_update_of_steps(strategy):
    assert run_ranks(_count_updates, strategy) == [4, 4]
