"""Equality of several processes and one with larger batches, with several optimizers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, Model
from easytorch.callbacks import BackupAndRestore, TerminateOnNaN
from tests.common_gan import LATENT, Pair, critic_loss, generator_loss, penalty
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import furthest, run_ranks
from tests.test_several_optimizers import Parts

GAN = {"critic": ("adam", {"lr": 2e-3}), "generator": ("sgd", {"lr": 0.05, "momentum": 0.5})}
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


def train(model_class, optimizers, count, size, *, strategy="auto", fit=None, norm=False, callbacks=(), **options):
    net = new_pair(norm) if optimizers is GAN else Parts().double()
    x, y = blobs(count)
    data = TensorDataset(x.double()) if optimizers is GAN else TensorDataset(x.double(), y)
    model = model_class(net, device="cpu").compile(
        optimizers,
        "cross_entropy" if model_class is Model else None,
        strategy=strategy() if callable(strategy) else strategy,
        **options,
    )
    torch.manual_seed(0)
    model.fit(DataLoader(data, size, shuffle=True), 2, verbose=0, callbacks=callbacks)
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
@pytest.mark.parametrize("count", [48, 33, 41, 2])
def test_ranks_without_a_batch_take_part_in_each_step(count):
    assert_equal_to_one(Steps, GAN, count, 8, clip_grad_norm=0.05, gradient_accumulation_steps=2)


@pytest.mark.distributed
@pytest.mark.parametrize("model_class", [Losses, Pairs])
@pytest.mark.parametrize("count", [48, 33])
def test_ranks_with_simultaneous_losses_equal_one_process(model_class, count):
    options = {} if model_class is Pairs else {"clip_grad_norm": 0.05}
    assert_equal_to_one(model_class, GAN, count, gradient_accumulation_steps=2, **options)


@pytest.mark.distributed
@pytest.mark.parametrize("model_class", [Penalty, Losses])
def test_ranks_skip_the_same_windows(model_class):
    assert_equal_to_one(model_class, GAN, update_every={"generator": 3}, scheduler={"generator": "cosine"})


@pytest.mark.distributed
@pytest.mark.parametrize("count", [48, 34])
def test_ranks_with_sync_batchnorm_and_steps_equal_one_process(count):
    sync = functools.partial(DataParallel, "cpu", sync_batchnorm=True)
    assert_equal_to_one(Steps, GAN, count, norm=True, many={"strategy": sync})


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("model_class", [Model, OneLoss])
def test_ranks_with_one_loss_and_a_dict_equal_one_process(strategy, model_class):
    assert_equal_to_one(model_class, PARTS, clip_grad_norm=0.1, many={"strategy": strategy}, scheduler="cosine")


class Unused(Steps):
    def critic_step(self, batch):
        return {"loss": self.module.critic[0](self.unpack(batch).x).square().mean()}


def _fails_for_unused(strategy):
    with pytest.raises(RuntimeError, match=r"'critic.3.weight', 'critic.3.bias' had no gradient"):
        train(Unused, GAN, 48, 8, strategy=strategy)


@pytest.mark.distributed
def test_ranks_with_unused_parameters_need_the_option():
    run_ranks(_fails_for_unused, "ddp")


def _resumed(model_class, optimizers, folder, step, strategy):
    options = {"update_every": {"generator": 2}} if optimizers is GAN else {}
    run = functools.partial(train, model_class, optimizers, 50, 8, strategy=strategy, **options)
    whole = run()
    with pytest.raises(SimulatedCrash):
        run(callbacks=[BackupAndRestore(folder, save_freq=1), CrashAfter(step)])
    resumed = run(callbacks=[BackupAndRestore(folder, save_freq=1)])
    assert whole[1] == resumed[1]
    assert furthest(whole[0], resumed[0]) == 0


@pytest.mark.distributed
@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize(
    ("model_class", "optimizers", "strategy"), [(Steps, GAN, "ddp"), (Losses, GAN, "ddp"), (Model, PARTS, "fsdp")]
)
def test_ranks_that_stop_end_the_same(model_class, optimizers, strategy, step, tmp_path):
    run_ranks(_resumed, model_class, optimizers, tmp_path, step, strategy)


class NotFinite(Steps):
    def critic_step(self, batch):
        outputs = super().critic_step(batch)
        is_bad = self.state.step == 1 and self.strategy.group.rank == 1
        return {"loss": outputs["loss"] * (float("nan") if is_bad else 1)}


def _stops_at_nan():
    with pytest.raises(FloatingPointError, match="not finite in update 2"):
        train(NotFinite, GAN, 48, 8, callbacks=[TerminateOnNaN(raise_error=True)])


@pytest.mark.distributed
def test_all_ranks_stop_when_the_loss_of_a_step_is_nan():
    run_ranks(_stops_at_nan)
