"""Optimizers that need a closure: LBFGS, SAM and custom ones."""

from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import Freeze, LambdaCallback, TerminateOnNaN
from easytorch.optimizers import SAM
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs, furthest, mlp, same_weights, twins

X, Y = blobs(50)
NUMBERS = X.sum(1, keepdim=True).sin()
OPTIONS = {"max_iter": 5, "line_search_fn": "strong_wolfe"}


class OuterSAM(torch.optim.Optimizer):
    """SAM as in the package of David Samuel: gradients first, then ``step(closure)``."""

    def __init__(self, parameters, rho=0.1, lr=0.1):
        super().__init__(parameters, {"rho": rho, "lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm(2) for p in parameters]).norm(2)
        for p in parameters:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "SAM requires a closure"
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.base_optimizer.param_groups = self.param_groups


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, **OPTIONS)


def sam(parameters):
    return SAM(parameters, base="sgd", rho=0.1, lr=0.1, momentum=0.9)


MAKERS = {"lbfgs": lbfgs, "sam": sam, "object of another library": OuterSAM}


def hand_loop(net, optimizer, batches, loss_function, *, gradients_first=False, clip=None):
    """Train like the documentation of torch.optim: ``optimizer.step(closure)``."""

    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_function(net(x), y)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            return loss

        if gradients_first:
            closure()
        optimizer.step(closure)


def split(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("form", ["name", "class", "object"])
def test_lbfgs_equals_a_hand_written_loop_bit_for_bit(form):
    net, plain = twins(mlp(8, 1))
    made = {"name": "lbfgs", "class": torch.optim.LBFGS, "object": lbfgs(net.parameters())}[form]
    model = Model(net, device="cpu").compile(made, "mse", **({} if form == "object" else OPTIONS))
    model.fit(X, NUMBERS, epochs=3, batch_size=25, shuffle=False, verbose=0)
    hand_loop(plain, lbfgs(plain.parameters()), split(X, NUMBERS, 25) * 3, F.mse_loss)
    assert same_weights(net, plain)


def test_lbfgs_needs_no_more_evaluations_than_torch():
    net, plain = twins(mlp(8, 1))
    calls = {"fit": 0, "plain": 0}
    net.register_forward_hook(lambda *_: calls.update(fit=calls["fit"] + 1))
    plain.register_forward_hook(lambda *_: calls.update(plain=calls["plain"] + 1))
    Model(net, device="cpu").compile("lbfgs", "mse").fit(X, NUMBERS, batch_size=50, verbose=0, shuffle=False)
    hand_loop(plain, torch.optim.LBFGS(plain.parameters()), [(X, NUMBERS)], F.mse_loss)
    assert calls["fit"] == calls["plain"] > 5


def test_a_sam_object_equals_a_hand_written_loop():
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile(OuterSAM(net.parameters()), "cross_entropy", clip_grad_norm=0.5)
    model.fit(X, Y, epochs=3, batch_size=25, shuffle=False, verbose=0)
    batches, optimizer = split(X, Y, 25) * 3, OuterSAM(plain.parameters())
    hand_loop(plain, optimizer, batches, F.cross_entropy, gradients_first=True, clip=0.5)
    assert same_weights(net, plain)


class Sharp(torch.optim.SGD):
    """Declares by its attribute that its optional closure is needed, and calls it first."""

    needs_closure = True

    def step(self, closure=None):
        with torch.enable_grad():
            self.seen = [closure().item(), closure().item()]
        return super().step()


def test_an_optimizer_may_declare_that_it_needs_a_closure():
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile(Sharp(net.parameters(), 0.1), "cross_entropy")
    model.train_on_batch(X, Y)
    assert model.optimizer.seen == [F.cross_entropy(plain(X), Y).item()] * 2
    hand_loop(plain, Sharp(plain.parameters(), 0.1), [(X, Y)], F.cross_entropy)
    assert same_weights(net, plain)


def plain_sam(net, batches, *, rho, adaptive, **options):
    """SAM and ASAM in the words of the papers, with SGD."""
    optimizer = torch.optim.SGD(net.parameters(), **options)
    for x, y in batches:
        F.cross_entropy(net(x), y).backward()
        with torch.no_grad():
            weights = [p.clone() for p in net.parameters()]
            factors = [p.abs() if adaptive else torch.ones_like(p) for p in net.parameters()]
            scaled = [f * p.grad for f, p in zip(factors, net.parameters(), strict=True)]
            norm = torch.stack([s.norm(2) for s in scaled]).norm(2)
            for p, factor, s in zip(net.parameters(), factors, scaled, strict=True):
                p.add_(factor * s * (rho / (norm + 1e-12)))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        with torch.no_grad():
            for p, weight in zip(net.parameters(), weights, strict=True):
                p.copy_(weight)
        optimizer.step()
        optimizer.zero_grad()


SAM_OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (1.0, True)])
def test_sam_by_name_equals_the_paper_bit_for_bit(rho, adaptive):
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile("sam", "cross_entropy", rho=rho, adaptive=adaptive, **SAM_OPTIONS)
    model.fit(X, Y, epochs=3, batch_size=25, shuffle=False, verbose=0)
    plain_sam(plain, split(X, Y, 25) * 3, rho=rho, adaptive=adaptive, **SAM_OPTIONS)
    assert same_weights(net, plain)


def test_sam_with_a_radius_of_0_is_its_base_optimizer():
    net, plain = twins(mlp())
    for each, name, options in ((net, "sam", {"base": "adamw", "rho": 0.0}), (plain, "adamw", {"fused": False})):
        model = Model(each, device="cpu").compile(name, "cross_entropy", lr=0.01, **options)
        model.fit(X, Y, epochs=3, batch_size=25, shuffle=False, verbose=0)
    assert same_weights(net, plain)


def test_sam_restores_the_weights_after_an_error():
    net, plain = twins(mlp())
    optimizer = SAM(net.parameters(), lr=0.1)
    calls = []

    def closure():
        calls.append(1)
        F.cross_entropy(net(X), Y).backward()
        if len(calls) == 2:
            raise KeyboardInterrupt
        return torch.tensor(0.0)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert same_weights(net, plain)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_sam_shares_the_state_with_its_base(make_copy):
    model = Model(mlp(), device="cpu").compile("sam", "cross_entropy", **SAM_OPTIONS)
    model.train_on_batch(X, Y)
    twin = make_copy(model)
    assert twin.optimizer.base.state is twin.optimizer.state
    assert twin.optimizer.base.param_groups is twin.optimizer.param_groups
    assert twin.optimizer.state[twin.module[0].weight]["momentum_buffer"] is not None
    for each in (model, twin):
        each.train_on_batch(X, Y)
    assert same_weights(model.module, twin.module)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rho": -1}, ValueError, "rho must be a number of at least 0, received -1"),
        ({"base": "lbfgs"}, ValueError, "base must be an optimizer that needs no closure.*received 'lbfgs'"),
        ({"base": "sdg"}, ValueError, "Did you mean 'sgd'"),
        ({"betas": (0.9, 0.99)}, ValueError, r"'betas', which torch\.optim\.SGD does not have.*momentum"),
        ({"momentum": -1}, ValueError, r"SAM cannot be used with .*momentum=-1: Invalid momentum"),
    ],
)
def test_a_wrong_option_of_sam_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Model(mlp(), device="cpu").compile("sam", "cross_entropy", lr=0.1, **options)


class OptionalSAM(torch.optim.SGD):
    """Needs a closure that its signature does not require."""

    def step(self, closure=None):
        assert closure is not None, "requires closure"
        return super().step(closure)


def test_an_optional_closure_that_is_needed_gets_the_fix():
    model = Model(mlp(), device="cpu").compile(OptionalSAM, "cross_entropy")
    with pytest.raises(RuntimeError, match=r"OptionalSAM.step\(\) needs a closure.*optimizer\.needs_closure = True"):
        model.train_on_batch(X, Y)
    model.optimizer.needs_closure = True
    net, plain = twins(model.module)
    model.train_on_batch(X, Y)
    hand_loop(plain, torch.optim.SGD(plain.parameters()), [(X, Y)], F.cross_entropy)
    assert same_weights(net, plain)


def test_train_on_batch_runs_a_closure():
    net, plain = twins(mlp(8, 1))
    scores = Model(net, device="cpu").compile("lbfgs", "mse", **OPTIONS).train_on_batch(X, NUMBERS)
    assert scores["loss"] == F.mse_loss(plain(X), NUMBERS).item()
    hand_loop(plain, lbfgs(plain.parameters()), [(X, NUMBERS)], F.mse_loss)
    assert same_weights(net, plain)


@pytest.mark.parametrize("name", MAKERS)
def test_a_window_equals_one_large_batch_with_a_closure(name):
    def train(size, steps):
        torch.manual_seed(0)
        net = mlp().double()
        model = Model(net, device="cpu").compile(
            MAKERS[name](net.parameters()), "cross_entropy", gradient_accumulation_steps=steps
        )
        targets = torch.where(torch.arange(50) % 7 == 0, -100, Y)  # batches with unequal counts of labels
        history = model.fit(X.double(), targets, epochs=2, batch_size=size, shuffle=False, verbose=0)
        return net, history["loss"]

    (net, loss), (window_net, window_loss) = train(50, 1), train(20, 3)
    assert furthest(net, window_net) < 1e-6
    assert window_loss == pytest.approx(loss, rel=1e-6)


def count_loss(y_pred, y):
    return F.cross_entropy(y_pred, y, reduction="sum"), len(y)


def test_a_loss_with_its_count_is_divided_in_each_evaluation():
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile("lbfgs", count_loss, **OPTIONS)
    model.fit(X, Y, epochs=2, batch_size=50, shuffle=False, verbose=0)
    hand_loop(plain, lbfgs(plain.parameters()), [(X, Y)] * 2, F.cross_entropy)
    assert furthest(net, plain) < 1e-4


def test_clipping_and_hooks_run_in_each_evaluation():
    net, plain = twins(mlp())
    norms = []
    hook = LambdaCallback(on_before_optimizer_step=lambda: norms.append(net[0].weight.grad.norm().item()))
    model = Model(net, device="cpu").compile("lbfgs", "cross_entropy", clip_grad_norm=0.05, **OPTIONS)
    model.fit(X, Y, batch_size=50, shuffle=False, callbacks=[hook], verbose=0)
    hand_loop(plain, lbfgs(plain.parameters()), [(X, Y)], F.cross_entropy, clip=0.05)
    assert same_weights(net, plain)
    assert len(norms) > 3


def noisy():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))


def test_evaluations_of_one_update_have_the_same_dropout():
    seen = []
    net = noisy()
    net[2].register_forward_hook(lambda _, __, output: seen.append(output.detach() == 0))
    model = Model(net, device="cpu").compile("lbfgs", "cross_entropy", **OPTIONS)
    model.train_on_batch(X, Y)
    first, count = seen[0], len(seen)
    assert count > 3
    assert all(torch.equal(mask, first) for mask in seen)
    model.train_on_batch(X, Y)
    assert not torch.equal(seen[count], first)


def test_an_update_changes_batchnorm_once():
    net, plain = twins(noisy())
    torch.manual_seed(5)
    Model(net, device="cpu").compile("lbfgs", "cross_entropy", **OPTIONS).train_on_batch(X, Y)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    plain(X)
    assert net[1].num_batches_tracked == 1
    assert torch.equal(net[1].running_mean, plain[1].running_mean)
    assert torch.equal(state, torch.get_rng_state())


def test_metrics_measure_the_weights_before_the_update():
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile("lbfgs", "cross_entropy", ["accuracy"], **OPTIONS)
    history = model.fit(X, Y, batch_size=50, shuffle=False, verbose=0)
    assert history["loss"] == [F.cross_entropy(plain(X), Y).item()]
    assert history["accuracy"] == [pytest.approx((plain(X).argmax(1) == Y).float().mean().item())]
    assert not same_weights(net, plain)


@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_that_is_not_finite_changes_no_weight(name):
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile(MAKERS[name](net.parameters()), "cross_entropy")
    with pytest.warns(UserWarning, match="The loss is not finite in update 1"):
        model.fit([(X * float("nan"), Y)], callbacks=[TerminateOnNaN()], verbose=0)
    assert same_weights(net, plain)


def program(name, folder, *callbacks, steps=1):
    torch.manual_seed(0)
    net = noisy()
    model = Model(net, device="cpu").compile(
        MAKERS[name](net.parameters()),
        "cross_entropy",
        ["accuracy"],
        gradient_accumulation_steps=steps,
        scheduler="cosine",
    )
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True)
    try:
        model.fit(loader, 2, resume=folder, callbacks=[*callbacks], verbose=0)
    except SimulatedCrash:
        return None
    return model


RESUMED = [
    pytest.param("lbfgs", [3]),
    *(pytest.param(name, range(1, 9), marks=pytest.mark.slow, id=f"{name}, each update") for name in MAKERS),
]


@pytest.mark.parametrize(("name", "steps"), RESUMED)
def test_a_run_with_a_closure_resumes_after_any_update(name, steps, tmp_path, monkeypatch):
    monkeypatch.setattr("easytorch.callbacks.backup.BackupAndRestore.at", every_update)
    whole = program(name, tmp_path / "whole", steps=2)
    for step in steps:
        folder = tmp_path / str(step)
        assert program(name, folder, CrashAfter(step), steps=2) is None
        resumed = program(name, folder, steps=2)
        assert same_weights(whole.module, resumed.module)
        assert whole.history.history == resumed.history.history


def every_update(folder):
    from easytorch.callbacks import BackupAndRestore

    return [BackupAndRestore(folder, save_freq=1)]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("name", "options"), [("lbfgs", OPTIONS), ("sam", {"base": "adam", "rho": 0.1, "lr": 0.01})])
def test_a_saved_model_trains_on_as_before(name, options, compiled, tmp_path):
    net = mlp(8, 1)
    model = Model(net, device="cpu").compile(name, "mse", **options)
    model.fit(X, NUMBERS, epochs=2, batch_size=50, shuffle=False, verbose=0)
    other = Model(mlp(8, 1), device="cpu")
    if compiled:
        other.compile(name, "mse", **options)
    other.load(model.save(tmp_path / "model.pt"))
    for each in (model, other, twin := copy.deepcopy(model)):
        each.fit(X, NUMBERS, epochs=2, batch_size=50, shuffle=False, verbose=0)
    assert same_weights(net, other.module)
    assert same_weights(net, twin.module)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch itself warns while it compiles
def test_a_compiled_module_is_close_to_the_eager_one():
    nets = twins(mlp(8, 1).double())
    for net, jit_compile in zip(nets, (True, False), strict=True):
        model = Model(net, device="cpu").compile("lbfgs", "mse", jit_compile=jit_compile, **OPTIONS)
        model.fit(X.double(), NUMBERS.double(), epochs=2, batch_size=25, shuffle=False, verbose=0)
    assert furthest(*nets) < 1e-6


def test_lbfgs_runs_in_half_precision():
    net, plain = twins(mlp())
    Model(net, device="cpu").compile("lbfgs", "cross_entropy", precision="bf16", **OPTIONS).train_on_batch(X, Y)

    def half(x):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(x)

    hand_loop(half, lbfgs(plain.parameters()), [(X, Y)], lambda y_pred, y: F.cross_entropy(y_pred.float(), y))
    assert same_weights(net, plain)


def test_a_closure_with_scaled_losses_is_refused(monkeypatch):
    monkeypatch.setattr("easytorch.strategies.base.check_precision", lambda *_: None)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    before = model.optimizer
    with pytest.raises(ValueError, match=r"LBFGS evaluates the loss several times.*precision='bf16'"):
        model.compile("lbfgs", "cross_entropy", precision="fp16")
    assert model.optimizer is before

    class Own(Model):
        def update(self, window):
            raise NotImplementedError

    assert Own(mlp(), device="cpu").compile("lbfgs", "cross_entropy", precision="fp16").strategy.scales_loss


def test_a_custom_update_with_its_own_closure_still_works():
    class Quasi(Model):
        def update(self, window):
            (batch,) = window

            def closure():
                self.optimizer.zero_grad()
                loss = self.strategy.run(self.train_step, batch)["loss"]
                self.strategy.backward(loss)
                return loss

            self.metrics.record({"loss": self.optimizer.step(closure)}, self.batch_size(batch))

    nets = twins(mlp(8, 1))
    for kind, net in zip((Quasi, Model), nets, strict=True):
        kind(net, device="cpu").compile("lbfgs", "mse", **OPTIONS).fit(
            X, NUMBERS, epochs=2, batch_size=25, shuffle=False, verbose=0
        )
    assert same_weights(*nets)


# With frozen layers


def new_parts():
    torch.manual_seed(1)
    net = nn.Sequential()
    net.add_module("backbone", nn.Linear(8, 16))
    net.add_module("activation", nn.Tanh())
    net.add_module("head", nn.Linear(16, 3))
    return net


def train_parts_by_hand(make, until, epochs):
    net = new_parts()
    optimizer = make(net.parameters())
    for epoch in range(epochs):
        net.backbone.requires_grad_(epoch >= until)
        for x, y in zip(X[:48].split(16), Y[:48].split(16), strict=True):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    return net


@pytest.mark.parametrize("options", [{"lr": 0.5, "max_iter": 4}, OPTIONS])
@pytest.mark.parametrize("until", [1, 4])
def test_lbfgs_with_frozen_layers_equals_a_plain_loop(until, options):
    def make(parameters):
        return torch.optim.LBFGS(parameters, **options)

    net = new_parts()
    model = Model(net, device="cpu").compile(make, "cross_entropy")
    for _ in range(2):  # epochs are counted over both fits
        freeze = Freeze("backbone", until=until)
        model.fit(X[:48], Y[:48], batch_size=16, epochs=3, shuffle=False, callbacks=freeze, verbose=0)
    assert same_weights(net, train_parts_by_hand(make, until, 6))


def test_lbfgs_gets_no_parameters_after_its_first_step():
    net = new_parts()
    net.backbone.requires_grad_(False)
    model = Model(net, device="cpu").compile(torch.optim.LBFGS(net.head.parameters()), "cross_entropy")
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"would add 'backbone.weight' to LBFGS.*model.compile\('lbfgs', ...\)"):
        model.fit(X, Y, callbacks=Freeze("backbone", until=2), verbose=0)
    model.compile(torch.optim.LBFGS(net.head.parameters()), "cross_entropy")
    model.fit(X, Y, epochs=2, callbacks=Freeze("backbone", until=2), verbose=0)
