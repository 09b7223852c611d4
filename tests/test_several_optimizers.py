"""Several optimizers: parameter groups, a loss for each optimizer, a step for each optimizer."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import (
    EMA,
    BackupAndRestore,
    Callback,
    EarlyStopping,
    Freeze,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from easytorch.optimizer_group import OptimizerGroup
from tests.common_gan import (
    LATENT,
    OPTIMIZERS,
    LossGAN,
    Pair,
    PenaltyGAN,
    StepGAN,
    critic_loss,
    generator_loss,
    loader,
    penalty,
    plain_optimizers,
)
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blob_loader, blobs, furthest, same_weights, twins
from tests.test_no_sync import ReadCounter


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16))
        self.neck, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.neck(torch.tanh(self.backbone(x)))))


PARTS = {
    "backbone": ("sgd", {"lr": 0.01, "momentum": 0.9}),
    "head": "adam",
    "*": lambda p, lr: torch.optim.RMSprop(p, lr),
}


def plain(net, rate=1e-3):
    return [
        torch.optim.SGD(net.backbone.parameters(), lr=0.01, momentum=0.9),
        torch.optim.Adam(net.head.parameters(), lr=rate, fused=True),
        torch.optim.RMSprop(net.neck.parameters(), lr=rate),
    ]


def crash_and_resume(make, fit, step, folder):
    """Crash after ``step`` updates, resume in a new model, and return it."""
    model = make()
    with pytest.raises(SimulatedCrash):
        fit(model, [BackupAndRestore(folder, save_freq=1), CrashAfter(step)])
    model = make()
    fit(model, [BackupAndRestore(folder, save_freq=1)])
    return model


# One loss


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_dict_of_optimizers_equals_a_plain_loop(clip):
    by_model, by_hand = twins(Parts())
    model = Model(by_model, device="cpu").compile(PARTS, "cross_entropy", lr=1e-3, clip_grad_norm=clip)
    history = model.fit(blob_loader(), 2, verbose=0)
    optimizers = plain(by_hand)
    for _ in range(2):
        for x, y in blob_loader():
            functional.cross_entropy(by_hand(x), y).backward()
            if clip:
                nn.utils.clip_grad_norm_([p for o in optimizers for p in o.param_groups[0]["params"]], clip)
            for optimizer in optimizers:
                optimizer.step()
            by_hand.zero_grad()
    assert same_weights(by_model, by_hand)
    assert list(history) == ["loss", "lr_backbone", "lr_head", "lr_*"]


def test_accumulation_with_a_dict_equals_large_batches():
    by_window, by_batch = twins(Parts())
    Model(by_window, device="cpu").compile(PARTS, "cross_entropy", lr=1e-3, gradient_accumulation_steps=3).fit(
        DataLoader(TensorDataset(*blobs(50)), 4), 2, verbose=0
    )
    Model(by_batch, device="cpu").compile(PARTS, "cross_entropy", lr=1e-3).fit(
        DataLoader(TensorDataset(*blobs(50)), 12), 2, verbose=0
    )
    assert furthest(by_window, by_batch) < 1e-5


def test_bf16_with_several_optimizers_equals_a_plain_loop():
    by_model, by_hand = twins(Parts())
    Model(by_model, device="cpu").compile(PARTS, "cross_entropy", lr=1e-3, precision="bf16").fit(
        blob_loader(), 2, verbose=0
    )
    optimizers = plain(by_hand)
    for _ in range(2):
        for x, y in blob_loader():
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(by_hand(x), y)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            by_hand.zero_grad()
    assert same_weights(by_model, by_hand)


def test_fp16_scales_unscales_and_steps_each_optimizer(monkeypatch):
    monkeypatch.setattr("easytorch.strategies.base.check_precision", lambda *_: None)  # it is slow on a CPU
    by_model, by_hand = twins(Parts())
    model = Model(by_model, device="cpu").compile(PARTS, "cross_entropy", lr=1e-3, precision="fp16", clip_grad_norm=1.0)
    model.fit(blob_loader(), 2, verbose=0)
    optimizers, scaler = plain(by_hand), torch.amp.GradScaler("cpu")
    for _ in range(2):
        for x, y in blob_loader():
            with torch.autocast("cpu", torch.float16):
                loss = functional.cross_entropy(by_hand(x), y)
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for o in optimizers for p in o.param_groups[0]["params"]], 1.0)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            by_hand.zero_grad()
    assert same_weights(by_model, by_hand)
    assert model.strategy.scaler.state_dict() == scaler.state_dict()


def test_the_optimizer_is_a_mapping_and_an_optimizer():
    net = Parts()
    critic = torch.optim.Adam(net.head.parameters(), lr=0.5)
    model = Model(net, device="cpu").compile({"head": critic, "*": "sgd"}, "cross_entropy", lr=0.1)
    group = model.optimizer
    assert isinstance(group, torch.optim.Optimizer)
    assert group["head"] is critic
    assert list(group) == ["head", "*"]
    assert [g["name"] for g in group.param_groups] == ["head", "*"]
    assert group.param_groups[0] is critic.param_groups[0]
    group["head"].lr = 0.25
    assert [g["lr"] for g in group.param_groups] == [0.25, 0.1]
    group.lr = 0.5
    assert [g["lr"] for g in group.param_groups] == [0.5, 0.5]
    with pytest.raises(KeyError, match="no optimizer 'heads'"):
        group["heads"]


def test_patterns_match_as_in_freeze():
    net = Parts()
    rates = {"backbone.[0-1]": ("sgd", {"lr": 0.1}), "backbone.2.bias": ("sgd", {"lr": 0.2}), "*": ("sgd", {"lr": 0.3})}
    group = Model(net, device="cpu").compile(rates, "cross_entropy").optimizer
    expected = [list(net.backbone[0].parameters()), [net.backbone[2].bias]]
    assert [[*map(id, g["params"])] for g in group.param_groups[:2]] == [[*map(id, part)] for part in expected]
    assert sum(len(g["params"]) for g in group.param_groups) == len(list(net.parameters()))


def test_parameters_of_the_loss_can_have_an_optimizer():
    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, y_pred, y):
            return functional.cross_entropy(y_pred * self.scale, y)

    loss = Temperature()
    parts = {"loss": ("sgd", {"lr": 1.0}), "*": "sgd"}
    model = Model(Parts(), device="cpu").compile(parts, loss, lr=0.01)
    model.fit(blob_loader(), 1, verbose=0)
    assert model.optimizer["loss"].param_groups[0]["params"][0] is loss.scale
    assert float(loss.scale.detach()) != 1


def test_one_scheduler_sets_the_rates_of_all_optimizers():
    by_model, by_hand = twins(Parts())
    make = functools.partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    history = (
        Model(by_model, device="cpu")
        .compile(PARTS, "cross_entropy", lr=1e-3, scheduler=make)
        .fit(blob_loader(), 3, verbose=0)
    )
    optimizers = plain(by_hand)
    schedulers = [make(optimizer) for optimizer in optimizers]
    for _ in range(3):
        for x, y in blob_loader():
            functional.cross_entropy(by_hand(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
            by_hand.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
    assert same_weights(by_model, by_hand)
    assert history["lr_head"] == [1e-3, 5e-4, 2.5e-4]


@pytest.mark.parametrize("name", ["cosine", "warmup_cosine", "one_cycle"])
def test_a_named_schedule_fits_all_or_one_of_the_optimizers(name):
    parts = {"backbone": ("adam", {"lr": 0.1}), "*": ("adam", {"lr": 0.01})}
    runs = {}
    for kind, scheduler in {"all": name, "each": {"*": name, "backbone": name}, "one": {"*": name}}.items():
        model = Model(Parts(), device="cpu").compile(parts, "cross_entropy", scheduler=scheduler)
        runs[kind] = model, model.fit(blob_loader(), 2, verbose=0)
    assert same_weights(runs["all"][0].module, runs["each"][0].module)
    assert runs["one"][1]["lr_backbone"] == [0.1, 0.1]
    assert runs["one"][1]["lr_*"] == runs["all"][1]["lr_*"] != [0.01, 0.01]


def test_plateau_ema_and_early_stopping_work_with_a_dict():
    callbacks = [
        ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=9.0),
        EMA(0.9),
        EarlyStopping("val_loss", patience=9),
    ]
    model = Model(Parts(), device="cpu").compile(PARTS, "cross_entropy", lr=1e-3)
    history = model.fit(blob_loader(), 3, validation_data=blob_loader(), callbacks=callbacks, verbose=0)
    assert history["lr_backbone"] == [0.01, 0.01, 0.005]
    assert history["lr_head"] == [1e-3, 1e-3, 5e-4]


def test_freeze_adds_parameters_to_the_optimizer_of_their_name():
    net = Parts()
    net.head.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([net.head.weight], lr=0.1)
    model = Model(net, device="cpu").compile({"head": optimizer, "*": "adam"}, "cross_entropy")
    before = net.head.bias.clone()
    model.fit(blob_loader(), 2, callbacks=[Freeze("head.bias", until=1)], verbose=0)
    assert any(p is net.head.bias for p in optimizer.param_groups[0]["params"])
    assert not torch.equal(before, net.head.bias)


def test_a_dict_of_names_is_saved_and_loaded(tmp_path):
    parts = {"backbone": ("adamw", {"lr": 1e-4, "betas": (0.8, 0.9)}), "*": "sgd"}
    model = Model(Parts(), device="cpu").compile(parts, "cross_entropy", lr=0.1, scheduler={"*": "cosine"})
    model.fit(blob_loader(), 1, verbose=0).save(tmp_path / "model.pt")
    loaded = Model(Parts(), device="cpu").load(tmp_path / "model.pt")
    for each in (model, loaded):
        each.fit(blob_loader(), 2, verbose=0)
    assert same_weights(model.module, loaded.module)
    assert loaded.compile_args["optimizer"] == parts
    assert loaded.optimizer["backbone"].param_groups[0]["betas"] == (0.8, 0.9)


def test_a_dict_of_optimizer_objects_of_torch_is_saved_too(tmp_path):
    def new_model():
        net = Parts()
        parts = {"backbone": torch.optim.Adagrad(net.backbone.parameters(), lr=0.1), "*": torch.optim.AdamW}
        return Model(net, device="cpu").compile(parts, "cross_entropy")

    model = new_model()
    model.fit(blob_loader(), 1, verbose=0).save(tmp_path / "model.pt")
    loaded = Model(Parts(), device="cpu").load(tmp_path / "model.pt")
    for each in (model, loaded):
        each.fit(blob_loader(), 1, verbose=0)
    assert same_weights(model.module, loaded.module)
    assert type(loaded.optimizer["backbone"]).__name__ == "Adagrad"


def test_the_state_of_other_optimizers_is_not_loaded(tmp_path):
    model = Model(Parts(), device="cpu").compile({"backbone": "adam", "*": "sgd"}, "cross_entropy")
    model.fit(blob_loader(), 1, verbose=0).save(tmp_path / "model.pt")
    other = Model(Parts(), device="cpu").compile({"head": "adam", "*": "sgd"}, "cross_entropy")
    with pytest.warns(UserWarning, match="optimizer starts with an empty state"):
        other.load(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not belong to the optimizers"):
        other.optimizer.load_state_dict(model.optimizer.state_dict())


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_trains_like_the_original(copy_of):
    parts = {"backbone": "adam", "*": "sgd"}
    model = Model(Parts(), device="cpu").compile(parts, "cross_entropy", lr=0.1, scheduler={"*": "cosine"})
    model.fit(blob_loader(), 1, verbose=0)
    twin = copy_of(model)
    for each in (model, twin):
        each.fit(blob_loader(), 2, verbose=0)
    assert same_weights(model.module, twin.module)
    assert twin.optimizer["*"] is not model.optimizer["*"]


@pytest.mark.parametrize("step", [1, 4, 7, 10])
def test_a_stopped_run_with_a_dict_ends_the_same(step, tmp_path):
    def make():
        schedule = {"head": "cosine", "backbone": lambda o: lr_scheduler.StepLR(o, 1, 0.5)}
        return Model(Parts(), device="cpu").compile(PARTS, "cross_entropy", lr=1e-3, scheduler=schedule)

    def fit(model, callbacks):
        torch.manual_seed(3)
        model.fit(blob_loader(shuffle=True), 3, callbacks=callbacks, verbose=0)

    whole = make()
    fit(whole, [])
    assert same_weights(whole.module, crash_and_resume(make, fit, step, tmp_path).module)


def test_no_update_of_several_optimizers_waits_for_the_device():
    with ReadCounter() as counter:
        Model(Parts(), device="cpu").compile(PARTS, "cross_entropy", lr=1e-3).fit(blob_loader(), 1, verbose=0)
    few = counter.reads
    with ReadCounter() as counter:
        Model(Parts(), device="cpu").compile(PARTS, "cross_entropy", lr=1e-3).fit(
            DataLoader(TensorDataset(*blobs(500)), 10), 1, verbose=0
        )
    assert counter.reads == few


# A loss for each optimizer


@pytest.mark.parametrize("clip", [None, 0.05])
def test_simultaneous_losses_equal_a_plain_loop(clip):
    by_model, by_hand = Pair(), Pair()
    torch.manual_seed(0)
    model = LossGAN(by_model, device="cpu").compile(OPTIMIZERS, clip_grad_norm=clip)
    history = model.fit(loader(), 2, verbose=0)
    torch.manual_seed(0)
    optimizers = plain_optimizers(by_hand)
    parts = [list(by_hand.critic.parameters()), list(by_hand.generator.parameters())]
    for _ in range(2):
        for (x,) in loader():
            fakes = by_hand(torch.randn(len(x), LATENT))
            losses = generator_loss(by_hand, fakes), critic_loss(by_hand, x, fakes)
            gradients = (
                torch.autograd.grad(losses[1], parts[0], retain_graph=True),
                torch.autograd.grad(losses[0], parts[1]),
            )
            for part, values in zip(parts, gradients, strict=True):
                for parameter, value in zip(part, values, strict=True):
                    parameter.grad = value
                if clip:
                    nn.utils.clip_grad_norm_(part, clip)
            for optimizer in optimizers:
                optimizer.step()
    assert same_weights(by_model, by_hand)
    assert list(history) == ["generator_loss", "critic_loss", "lr_critic", "lr_generator"]


def test_each_loss_has_its_own_divisor_in_a_window():
    class Counted(LossGAN):
        def train_step(self, batch):
            x = self.unpack(batch).x
            real, fake = x[:, :1], self(x[:, :LATENT])
            errors = self.module.critic[0](x).square()
            return {"generator_loss": (fake * real).sum(), "critic_loss": (errors.sum(), len(x))} | {
                "generator_loss": ((fake * real).sum(), (real > 0).sum())
            }

    weights = []
    for size, window in ((8, 1), (2, 4)):
        pair = Pair().eval()
        for parameter in pair.critic[3].parameters():
            parameter.requires_grad_(False)
        pair.generator[1] = nn.Identity()
        model = Counted(pair, device="cpu").compile(OPTIMIZERS, gradient_accumulation_steps=window)
        model.fit(loader(48, size), 2, verbose=0)
        weights.append(pair)
    assert furthest(*weights) < 1e-5


# A step for each optimizer


def train_by_hand(pair, epochs, every=1, wasserstein=False, clip=None, autocast=False, data=None):
    """The usual loop: one step of the critic for each batch, one of the generator after each ``every`` batches."""
    first, second = plain_optimizers(pair)
    step = 0
    for _ in range(epochs):
        for (x,) in data or loader():
            step += 1
            for optimizer, part in ((first, pair.critic), (second, pair.generator)):
                if part is pair.generator and step % every:
                    continue
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    fakes = pair(torch.randn(len(x), LATENT))
                    if wasserstein and part is pair.critic:
                        loss = pair.critic(fakes.detach()).mean() - pair.critic(x).mean()
                        loss = loss + 10 * penalty(pair, x, fakes)
                    elif wasserstein:
                        loss = -pair.critic(fakes).mean()
                    else:
                        is_critic = part is pair.critic
                        loss = critic_loss(pair, x, fakes) if is_critic else generator_loss(pair, fakes)
                pair.zero_grad()
                loss.backward()
                if clip:
                    nn.utils.clip_grad_norm_(part.parameters(), clip)
                optimizer.step()


@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 0.05}, {"precision": "bf16"}])
def test_a_step_for_each_optimizer_equals_a_plain_loop(options):
    by_model, by_hand = Pair(), Pair()
    torch.manual_seed(0)
    history = StepGAN(by_model, device="cpu").compile(OPTIMIZERS, **options).fit(loader(), 2, verbose=0)
    torch.manual_seed(0)
    train_by_hand(by_hand, 2, clip=options.get("clip_grad_norm"), autocast="precision" in options)
    assert same_weights(by_model, by_hand)
    assert list(history) == ["critic_loss", "generator_loss", "generator_size", "lr_critic", "lr_generator"]


def test_wgan_gp_with_update_every_equals_a_plain_loop():
    by_model, by_hand = Pair(), Pair()
    torch.manual_seed(0)
    model = PenaltyGAN(by_model, device="cpu").compile(OPTIMIZERS, update_every={"generator": 4})
    model.fit(loader(), 3, verbose=0)
    torch.manual_seed(0)
    train_by_hand(by_hand, 3, every=4, wasserstein=True)
    assert same_weights(by_model, by_hand)
    assert model.state.step == 18
    assert list(model.evaluate(loader(), return_dict=True, verbose=0)) == ["distance"]


def test_a_window_of_each_step_equals_one_large_batch():
    class Fixed(StepGAN):
        def critic_step(self, batch):
            x = self.unpack(batch).x
            return {"loss": critic_loss(self.module, x, self(x[:, :LATENT]))}

        def generator_step(self, batch):
            return {"loss": generator_loss(self.module, self(self.unpack(batch).x[:, :LATENT]))}

    weights = []
    for size, window in ((12, 1), (4, 3)):
        pair = Pair()
        pair.generator[1], pair.critic[2] = nn.Identity(), nn.Identity()
        Fixed(pair, device="cpu").compile(OPTIMIZERS, gradient_accumulation_steps=window).fit(
            loader(50, size), 2, verbose=0
        )
        weights.append(pair)
    assert furthest(*weights) < 1e-5


@pytest.mark.parametrize("step", range(1, 12))
def test_a_stopped_gan_ends_the_same_after_every_update(step, tmp_path):
    def make():
        return PenaltyGAN(Pair(), device="cpu").compile(
            OPTIMIZERS, update_every={"generator": 3}, scheduler={"generator": "cosine"}
        )

    def fit(model, callbacks):
        torch.manual_seed(3)
        model.fit(loader(shuffle=True), 2, callbacks=callbacks, verbose=0)

    whole = make()
    fit(whole, [])
    resumed = crash_and_resume(make, fit, step, tmp_path)
    assert same_weights(whole.module, resumed.module)
    assert whole.history.history == resumed.history.history


def test_a_schedule_counts_the_updates_of_its_optimizer():
    model = StepGAN(Pair(), device="cpu").compile(
        OPTIMIZERS, update_every={"generator": 3}, scheduler={"generator": "cosine", "critic": "cosine"}
    )
    model.fit(loader(), 1, verbose=0)
    steps = [schedule.scheduler.last_epoch for schedule in model.schedules]
    assert [schedule.member for schedule in model.schedules] == ["critic", "generator"]
    assert steps == [6, 2]
    assert [group["lr"] for group in model.optimizer.param_groups] == [pytest.approx(0), pytest.approx(0)]


def test_other_optimizers_get_no_gradient_from_a_step():
    seen = []

    class Watched(StepGAN):
        def generator_step(self, batch):
            seen.append([p.grad for p in self.module.parameters()])
            return super().generator_step(batch)

    class Record(Callback):
        def on_before_optimizer_step(self):
            seen.append([name for name, p in self.model.module.named_parameters() if p.grad is not None])

    Watched(Pair(), device="cpu").compile(OPTIMIZERS).fit(loader(8), 1, callbacks=[Record()], verbose=0)
    assert {name.split(".")[0] for name in seen[0]} == {"critic"}
    assert seen[1] == [None] * 10
    assert {name.split(".")[0] for name in seen[2]} == {"generator"}


def test_validation_logs_the_losses_of_all_steps():
    model = StepGAN(Pair(), device="cpu").compile(OPTIMIZERS)
    history = model.fit(loader(), 2, validation_data=loader(), callbacks=[EarlyStopping("val_critic_loss")], verbose=0)
    assert {"val_critic_loss", "val_generator_loss", "val_generator_size"} <= set(history)
    assert list(model.evaluate(loader(), return_dict=True)) == ["critic_loss", "generator_loss", "generator_size"]
    assert model.train_on_batch(blobs(8)[0]).keys() == ["critic_loss", "generator_loss", "generator_size"]


def test_a_step_with_gradients_asks_for_a_test_step():
    class NoTest(PenaltyGAN):
        test_step = Model.test_step

    model = NoTest(Pair(), device="cpu").compile(OPTIMIZERS)
    with pytest.raises(RuntimeError, match=r"critic_step computes gradients.*Define test_step"):
        model.fit(loader(), 1, validation_data=loader(), verbose=0)
    assert model.state.step == 0


def test_nan_stops_before_the_step_and_the_following_steps():
    class Broken(StepGAN):
        def critic_step(self, batch):
            outputs = super().critic_step(batch)
            return {"loss": outputs["loss"] * (float("nan") if self.state.step == 2 else 1)}

    pair, expected = Pair(), Pair()
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"not finite in update 3.*\n.*Term of the loss: loss"):
        Broken(pair, device="cpu").compile(OPTIMIZERS).fit(loader(), 1, callbacks=[TerminateOnNaN()], verbose=0)
    torch.manual_seed(0)
    train_by_hand(expected, 1, data=list(loader())[:2])
    assert same_state_of_parameters(pair, expected)


def test_nan_of_a_later_step_names_the_earlier_ones():
    class Broken(StepGAN):
        def generator_step(self, batch):
            return {"loss": super().generator_step(batch)["loss"] * float("nan")}

    model = Broken(Pair(), device="cpu").compile(OPTIMIZERS)
    with pytest.warns(UserWarning, match=r"before this update\. Only 'critic' made a step in it before\."):
        model.fit(loader(), 1, callbacks=[TerminateOnNaN()], verbose=0)


def same_state_of_parameters(first, second):
    return all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_step_that_steps_an_optimizer_is_refused():
    class Stepping(StepGAN):
        def critic_step(self, batch):
            self.optimizer["critic"].step()
            return super().critic_step(batch)

    with pytest.raises(RuntimeError, match=r"called optimizer.step\(\)"):
        Stepping(Pair(), device="cpu").compile(OPTIMIZERS).fit(loader(), 1, verbose=0)


def test_a_custom_update_can_use_the_members():
    class Custom(StepGAN):
        def update(self, window):
            (batch,) = window
            for name in self.optimizer:
                outputs = self.strategy.run(getattr(self, f"{name}_step"), batch)
                self.module.zero_grad()
                self.strategy.backward(outputs["loss"])
                self.strategy.step(self.optimizer[name])
                self.metrics.record(outputs, self.batch_size(batch), f"{name}_")

    by_model, by_hand = Pair(), Pair()
    torch.manual_seed(0)
    model = Custom(by_model, device="cpu").compile(OPTIMIZERS)
    model.fit(loader(), 1, verbose=0)
    torch.manual_seed(0)
    train_by_hand(by_hand, 1)
    assert isinstance(model.optimizer, OptimizerGroup)
    assert same_weights(by_model, by_hand)


def test_update_every_with_one_loss_skips_windows():
    by_model, by_hand = twins(Parts())
    parts = {"backbone": ("sgd", {"lr": 0.1}), "*": ("sgd", {"lr": 0.1})}
    Model(by_model, device="cpu").compile(parts, "cross_entropy", update_every={"backbone": 2}).fit(
        blob_loader(), 2, verbose=0
    )
    step = 0
    for _ in range(2):
        for x, y in blob_loader():
            step += 1
            functional.cross_entropy(by_hand(x), y).backward()
            with torch.no_grad():
                for name, parameter in by_hand.named_parameters():
                    if step % 2 == 0 or not name.startswith("backbone"):
                        parameter -= 0.1 * parameter.grad
            by_hand.zero_grad()
    assert furthest(by_model, by_hand) < 1e-6
