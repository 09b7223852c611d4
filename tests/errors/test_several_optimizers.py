"""Errors of programs with several optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from tests.common_gan import OPTIMIZERS, LossGAN, Pair, StepGAN, loader
from tests.loops import blob_loader
from tests.test_several_optimizers import Parts

ADAM = torch.optim.Adam
DICTS = {
    "no key": ({"head": "adam"}, r"No optimizer is named for the parameter 'backbone.0.weight' and 5 more.*'backbone': 'adam'"),
    "two keys": ({"head": "adam", "*.bias": "sgd", "*": "sgd"}, r"'head' and '\*.bias' both match the parameter 'head.bias'"),
    "no match": ({"heed": "adam", "*": "sgd"}, r"'heed' matches no parameter.*Did you mean 'head'.*'backbone', 'neck'"),
    "nothing left": ({"*": "sgd", "backbone": "sgd", "neck": "sgd", "head": "sgd"}, r"'\*' matches no .*All parameters have"),
    "empty": ({}, "needs names of submodules as keys"),
    "None": ({"head": None, "*": "sgd"}, "'head' is None. Leave out the key"),
    "three": ({"head": ("adam", 0.1, 0.2), "*": "sgd"}, r"or a pair, received .* Use {'head': \('adamw', {'lr': 1e-5}\)}"),
    "unknown": ({"head": "adem", "*": "sgd"}, "Did you mean 'adam'"),
    "option": ({"head": ("adam", {"momentum": 0.9}), "*": "sgd"}, "momentum"),
    "rate": ({"head": ("adam", {"lr": -1.0}), "*": "sgd"}, "lr must be a number of at least 0"),
    "number": ({"head": 3, "*": "sgd"}, "Expected an optimizer, received 3"),
}  # fmt: skip


@pytest.mark.parametrize(("optimizers", "message"), DICTS.values(), ids=DICTS)
def test_a_bad_dict_is_refused_before_training(optimizers, message):
    model = Model(Parts(), device="cpu").compile("adam", "cross_entropy")
    before = model.optimizer
    with pytest.raises((ValueError, TypeError), match=message):
        model.compile(optimizers, "cross_entropy")
    assert model.optimizer is before


OPTIONS = {
    "option": ({"weight_decay": 0.1}, r"could belong to any of .*{'backbone': \('adam', {'weight_decay': 0.1}\)"),
    "name": ({"update_every": {"heads": 2}}, "'heads', which is no optimizer.*Did you mean 'head'"),
    "zero": ({"update_every": {"head": 0}}, r"update_every\['head'\] must be a positive integer"),
    "number": ({"update_every": 5}, "update_every must be a dict"),
    "all": ({"update_every": {"head": 2, "backbone": 2, "*": 2}}, "leaves windows in which no optimizer updates"),
    "scheduler": ({"scheduler": {"heads": "cosine"}}, "scheduler has 'heads', which is no optimizer"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_bad_options_of_several_optimizers_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Model(Parts(), device="cpu").compile({"backbone": "sgd", "head": "adam", "*": "sgd"}, "mse", **options)


def test_options_for_several_need_several_optimizers():
    model = Model(Parts(), device="cpu")
    with pytest.raises(ValueError, match=r"update_every=.* needs a dict of optimizers"):
        model.compile("adam", "mse", update_every={"head": 2})
    with pytest.raises(ValueError, match=r"scheduler has 'head', .*There is one optimizer"):
        model.compile("adam", "mse", scheduler={"head": "cosine"})


def test_an_object_with_parameters_of_another_key_is_refused():
    net = Parts()
    with pytest.raises(ValueError, match=r"'head' has the parameter 'backbone\.0\.weight' of 'backbone'"):
        Model(net, device="cpu").compile({"head": ADAM(net.parameters()), "backbone": "sgd", "*": "sgd"}, "mse")
    with pytest.raises(TypeError, match=r"have no effect on the optimizer 'head'.*\(torch.optim.Adam, {'lr': 1}\)"):
        Model(net, device="cpu").compile({"head": (ADAM(net.head.parameters()), {"lr": 1}), "*": "sgd"}, "mse")
    with pytest.raises(ValueError, match=r"lr=0.1 has no effect"):
        Model(net, device="cpu").compile({"head": ADAM(net.head.parameters()), "*": ("sgd", {"lr": 1})}, "mse", lr=0.1)
    both = ADAM(net.head.parameters())
    with pytest.raises(ValueError, match="have the same optimizer object"):
        Model(net, device="cpu").compile({"head": both, "*": both}, "mse")


def test_tied_weights_with_two_optimizers_are_refused():
    net = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    net["b"].weight = net["a"].weight
    with pytest.raises(ValueError, match=r"match the parameter 'b.weight', the same tensor as 'a.weight'"):
        Model(net, device="cpu").compile({"a": "adam", "b": "adam"})


def test_a_missing_step_or_a_second_train_step_is_refused():
    class Half(Model):
        def critic_step(self, batch): ...

    class Both(StepGAN):
        def train_step(self, batch): ...

    with pytest.raises(ValueError, match=r"Half has 'critic_step', but no step for the optimizer 'generator'"):
        Half(Pair(), device="cpu").compile(OPTIMIZERS)
    with pytest.raises(
        ValueError, match=r"no method can be the step of the optimizer '\*'. Use the name of a submodule"
    ):
        Half(Pair(), device="cpu").compile({"critic": "adam", "*": "adam"})
    with pytest.raises(ValueError, match="Both has train_step and 'critic_step', 'generator_step'"):
        Both(Pair(), device="cpu").compile(OPTIMIZERS)


def test_a_step_without_a_loss_is_refused():
    class NoLoss(StepGAN):
        def critic_step(self, batch):
            return {"critic_loss": super().critic_step(batch)["loss"]}

    class OneLoss(LossGAN):
        def train_step(self, batch):
            return {"critic_loss": super().train_step(batch)["critic_loss"]}

    with pytest.raises(TypeError, match=r"critic_step returned .* has no 'loss'"):
        NoLoss(Pair(), device="cpu").compile(OPTIMIZERS).fit(loader(), 1, verbose=0)
    with pytest.raises(TypeError, match=r"train_step returned .*no 'generator_loss'.*'critic_loss', 'generator_loss'"):
        OneLoss(Pair(), device="cpu").compile(OPTIMIZERS).fit(loader(), 1, verbose=0)


def test_an_unnamed_parameter_cannot_be_unfrozen():
    from easytorch.callbacks import Freeze

    net = Parts()
    net.backbone.requires_grad_(False)
    model = Model(net, device="cpu").compile({"head": "adam", "neck": "adam"}, "cross_entropy")
    with pytest.raises(ValueError, match=r"No optimizer is named for 'backbone.0.weight'.*'backbone': 'adam'"):
        model.fit(blob_loader(), 2, callbacks=[Freeze("backbone", until=1)], verbose=0)


def test_a_member_that_needs_a_closure_is_refused():
    model = Model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), device="cpu")
    with pytest.raises(ValueError, match="LBFGS, evaluates the loss several times"):
        model.compile({"0": "adam", "1": "lbfgs"}, "mse")
