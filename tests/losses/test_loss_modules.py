"""Losses with parameters or buffers are trained, moved, evaluated, saved and resumed with the module."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from easytorch import Model, ResumeError
from easytorch.callbacks import EarlyStopping, LambdaCallback
from easytorch.losses.modules import LossModules
from tests.loops import same_weights

torch.manual_seed(0)
X = torch.randn(48, 8)
Y = torch.arange(48) % 10


class Arc(nn.Module):
    """A loss with weights, as ArcFace has, and a scale, as CLIP has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.weight, self.scale = nn.Parameter(torch.randn(10, 8)), nn.Parameter(torch.ones(1))

    def forward(self, z, y):
        return functional.cross_entropy(self.scale * (z @ self.weight.T), y)


class Centered(nn.Module):
    """A loss with a moving mean, as DINO has; it replaces the buffer in each step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(8))
        self.modes = []

    def forward(self, z, y):
        self.modes.append(self.training)
        loss = (z - self.center).square().mean()
        if self.training:
            self.center = 0.9 * self.center + 0.1 * z.detach().mean(0)
        return loss


class Uncertainty(nn.Module):
    """A loss of two tasks with learned weights, which holds a loss of torch."""

    def __init__(self):
        super().__init__()
        self.logs, self.inner = nn.Parameter(torch.zeros(2)), nn.CrossEntropyLoss()

    def forward(self, z, y):
        terms = torch.stack([self.inner(z, y), z.square().mean()])
        return (terms * (-self.logs).exp() + self.logs).sum()


def linear(outputs=8):
    torch.manual_seed(1)
    return nn.Linear(8, outputs)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batches(count=3):
    return list(zip(X.chunk(count), Y.chunk(count), strict=True))


def train_by_hand(net, loss, epochs, make=sgd):
    optimizer = make([*net.parameters(), *loss.parameters()])
    for _ in range(epochs):
        for x, y in batches():
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()


class TestTraining:
    @pytest.mark.parametrize(("kind", "outputs"), [(Arc, 8), (Centered, 8), (Uncertainty, 10)])
    def test_a_loss_is_trained_by_an_optimizer_of_a_function(self, kind, outputs):
        nets, losses = (linear(outputs), linear(outputs)), (kind(), kind())
        Model(nets[0], device="cpu").compile(sgd, losses[0]).fit(batches(), epochs=2, verbose=0)
        train_by_hand(nets[1], losses[1], 2)
        assert same_weights(*nets)
        assert same_weights(*losses)

    def test_a_loss_is_trained_by_an_optimizer_by_name(self):
        nets, losses = (linear(), linear()), (Arc(), Arc())
        Model(nets[0], device="cpu").compile("sgd", losses[0], lr=0.1).fit(batches(), verbose=0)
        train_by_hand(nets[1], losses[1], 1, lambda p: torch.optim.SGD(p, lr=0.1))
        assert same_weights(*losses)

    def test_an_optimizer_of_module_and_loss_is_accepted(self):
        net, loss = linear(), Arc()
        optimizer = torch.optim.SGD([{"params": net.parameters()}, {"params": loss.parameters(), "lr": 0.5}], lr=0.1)
        before = copy.deepcopy(loss)
        Model(net, device="cpu").compile(optimizer, loss).fit(batches(), verbose=0)
        assert not torch.equal(before.weight, loss.weight)

    def test_an_optimizer_without_the_loss_is_reported(self):
        net = linear()
        model = Model(net, device="cpu").compile(torch.optim.SGD(net.parameters()), Arc())
        with pytest.warns(UserWarning, match=r"no optimizer has 'loss\.0\.weight'"):
            model.fit(batches(), verbose=0)

    def test_the_loss_of_a_frozen_module_is_trained(self):
        net, loss = linear().requires_grad_(False), Arc()
        before = copy.deepcopy(loss)
        Model(net, device="cpu").compile(sgd, loss).fit(batches(), verbose=0)
        assert same_weights(net, linear())
        assert not torch.equal(before.weight, loss.weight)

    def test_frozen_parameters_of_a_loss_stay(self):
        loss = Arc()
        loss.weight.requires_grad_(False)
        Model(linear(), device="cpu").compile(sgd, loss).fit(batches(), verbose=0)
        assert torch.equal(loss.weight, Arc().weight)
        assert not torch.equal(loss.scale, Arc().scale)

    def test_a_loss_inside_of_the_module_is_trained_once(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.criterion = linear(), Arc()

            def forward(self, x):
                return self.layer(x)

        net, hand, loss = Net(), linear(), Arc()
        model = Model(net, device="cpu").compile(sgd, net.criterion)
        model.fit(batches(), verbose=0)
        train_by_hand(hand, loss, 1)
        assert same_weights(net.criterion, loss)
        assert not list(model.loss.modules.children())
        assert len(model.optimizer.param_groups[0]["params"]) == 4

    def test_a_loss_that_holds_the_module_adds_nothing(self):
        class Regularized(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net, self.scale = net, nn.Parameter(torch.ones(1))

            def forward(self, z, y):
                return self.scale * z.square().mean() + self.net.weight.square().sum()

        net = linear()
        model = Model(net, device="cpu").compile("sgd", Regularized(net))
        assert len(model.optimizer.param_groups[0]["params"]) == 3
        assert list(model.state_dict()["loss"]) == ["0.scale"]

    def test_a_method_of_a_module_is_found(self):
        loss = Arc()
        model = Model(linear(), device="cpu").compile(sgd, loss.forward)
        model.fit(batches(), verbose=0)
        assert not torch.equal(loss.weight, Arc().weight)

    def test_losses_of_several_outputs_are_trained(self):
        class Heads(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = linear()

            def forward(self, x):
                return {"a.b": self.layer(x), "c": self.layer(x)}

        loss = Arc()
        model = Model(Heads(), device="cpu").compile(sgd, {"a.b": loss, "c": "mse"})
        model.fit([(X, {"a.b": Y, "c": X})], verbose=0)
        assert not torch.equal(loss.weight, Arc().weight)

    def test_accumulation_over_a_loss_with_weights_is_one_batch(self):
        nets, losses = (linear(), linear()), (Arc(), Arc())
        for net, loss, count in zip(nets, losses, (1, 3), strict=True):
            model = Model(net, device="cpu").compile(sgd, loss, gradient_accumulation_steps=count)
            model.fit(batches(count), epochs=2, verbose=0)
        assert torch.allclose(losses[0].weight, losses[1].weight, atol=1e-6)

    def test_gradients_of_a_loss_are_deleted_after_an_update(self):
        loss = Arc()
        Model(linear(), device="cpu").compile(sgd, loss).fit(batches(), verbose=0)
        assert loss.weight.grad is None


class TestForgotten:
    def test_a_module_inside_of_a_function_is_reported(self):
        arc = Arc()
        model = Model(linear(), device="cpu").compile(sgd, lambda z, y: arc(z, y))
        with pytest.warns(UserWarning, match=r"no optimizer has 'arc\.weight'.*if the loss is a module"):
            model.fit(batches(), verbose=0)

    def test_an_attribute_of_a_model_is_reported(self):
        class Own(Model):
            def train_step(self, batch):
                x, y = batch
                return {"loss": self.arc(self(x), y)}

        model = Own(linear(), device="cpu").compile(sgd)
        model.arc = Arc()
        with pytest.warns(UserWarning, match=r"no optimizer has 'model\.arc\.weight'"):
            model.fit(batches(), verbose=0)

    def test_a_teacher_without_gradients_is_not_reported(self):
        teacher = linear()

        def distill(z, y):
            with torch.no_grad():
                target = teacher(X[: len(z)])
            return functional.mse_loss(z, target)

        Model(linear(), device="cpu").compile(sgd, distill).fit(batches(), verbose=0)

    def test_a_module_with_its_own_optimizer_is_not_reported(self):
        class Critic(Model):
            def train_step(self, batch):
                x, _ = batch
                z = self(x)
                self.critic_optimizer.zero_grad()
                self.critic(z.detach()).mean().backward()
                self.critic_optimizer.step()
                return {"loss": -self.critic(z).mean()}

        model = Critic(linear(), device="cpu").compile(sgd)
        model.critic = nn.Linear(8, 1)
        model.critic_optimizer = torch.optim.SGD(model.critic.parameters(), lr=0.1)
        model.fit(batches(), verbose=0)


class TestMode:
    def test_a_loss_is_in_eval_mode_while_the_module_is(self):
        loss = Centered()
        model = Model(linear(), device="cpu").compile(sgd, loss)
        model.fit(batches(1), validation_data=batches(1), verbose=0)
        model.evaluate(X, Y, batch_size=48, verbose=0)
        model.test_on_batch(X, Y)
        assert loss.modes == [True, False, False, False]
        assert loss.training

    def test_a_loss_that_was_set_to_eval_mode_stays_there(self):
        loss = Centered().eval()
        Model(linear(), device="cpu").compile(sgd, loss).fit(batches(1), validation_data=batches(1), verbose=0)
        assert loss.modes == [False] * 2
        assert not loss.training

    def test_the_check_of_validation_data_leaves_no_trace_in_a_loss(self):
        class Always(Centered):
            def forward(self, z, y):
                self.center = self.center + 1
                return z.mean()

        loss, seen = Always(), []
        model = Model(linear(), device="cpu").compile(sgd, loss)
        watch = LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(loss.center.clone()))
        model.fit(batches(1), validation_data=batches(1), callbacks=[watch], verbose=0)
        assert torch.equal(seen[0], torch.zeros(8))

    def test_a_failed_first_update_restores_the_buffers_of_a_loss(self):
        loss = Centered()

        def fail():
            raise ValueError

        model = Model(linear(), device="cpu").compile(sgd, loss)
        with pytest.raises(ValueError):  # raised above
            model.fit(batches(), callbacks=[LambdaCallback(on_before_optimizer_step=fail)], verbose=0)
        assert torch.equal(loss.center, torch.zeros(8))


class TestDevice:
    @pytest.mark.parametrize(
        "make",
        [
            Arc,
            Centered,
            lambda: nn.CrossEntropyLoss(weight=torch.ones(10)),
            lambda: nn.BCEWithLogitsLoss(pos_weight=torch.ones(10)),
            lambda: functools.partial(functional.cross_entropy, weight=torch.ones(10)),
            lambda: [Arc(), nn.CrossEntropyLoss(weight=torch.ones(10))],
        ],
    )
    def test_tensors_of_a_loss_move_to_the_device(self, make):
        model = Model(linear(), device="cpu").compile(None, make())
        model.loss.to(torch.device("meta"))
        tensors = [tensor for loss in model.loss.functions() for tensor in self.list_tensors(loss)]
        assert tensors
        assert {tensor.device.type for tensor in tensors} == {"meta"}

    def list_tensors(self, loss):
        return loss.keywords.values() if isinstance(loss, functools.partial) else [*loss.parameters(), *loss.buffers()]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_losses_with_tensors_train_on_an_accelerator(self):
        for make in (Arc, lambda: nn.CrossEntropyLoss(weight=torch.ones(8))):
            model = Model(linear(), device="cuda").compile("adam", make())
            model.fit(X, Y % 8, verbose=0)


def run(folder, kind, stop=None, outputs=8):
    """Train 3 epochs of 3 updates, stopped after ``stop`` updates and resumed if it is given."""
    for stop_at in [stop, None] if stop else [None]:
        torch.manual_seed(5)
        net, loss = linear(outputs), kind()
        model = Model(net, device="cpu").compile(sgd, loss)

        def interrupt(batch, logs, model=model, stop_at=stop_at):
            if model.state.step == stop_at:
                raise KeyboardInterrupt

        stopping = EarlyStopping("loss", patience=9, restore_best_weights=True)
        callbacks = [stopping, LambdaCallback(on_train_batch_end=interrupt)]
        options = {"resume": folder} if stop else {}
        try:
            model.fit(X, Y, batch_size=16, epochs=3, callbacks=callbacks, verbose=0, **options)
        except KeyboardInterrupt:
            assert stop_at is not None
    return net, loss, model


class TestFiles:
    @pytest.mark.parametrize(("kind", "outputs"), [(Arc, 8), (Centered, 8), (Uncertainty, 10)])
    def test_save_and_load_restore_the_loss(self, tmp_path, kind, outputs):
        model = Model(linear(outputs), device="cpu").compile(sgd, kind())
        model.fit(batches(), verbose=0)
        model.save(tmp_path / "m.pt")
        other = kind()
        loaded = Model(linear(outputs), device="cpu").compile(sgd, other).load(tmp_path / "m.pt")
        assert same_weights(other, model.loss.function)
        assert loaded.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
        for each in (model, loaded):
            each.fit(batches(), verbose=0)
        assert same_weights(other, model.loss.function)

    @pytest.mark.parametrize("stop", [3, 6])
    @pytest.mark.parametrize(("kind", "outputs"), [(Arc, 8), (Centered, 8), (Uncertainty, 10)])
    def test_a_resumed_run_has_the_loss_of_an_undisturbed_one(self, tmp_path, kind, outputs, stop):
        resumed, undisturbed = run(tmp_path, kind, stop + 1, outputs), run(None, kind, None, outputs)
        assert same_weights(resumed[0], undisturbed[0])
        assert same_weights(resumed[1], undisturbed[1])

    def test_resume_with_another_loss_is_refused(self, tmp_path):
        run(tmp_path, Arc, 4)
        with pytest.raises(ResumeError, match=r"state of the loss \{'0\.weight'"):
            run(tmp_path, Centered, 9)

    def test_load_into_another_loss_is_reported(self, tmp_path):
        Model(linear(), device="cpu").compile(None, "mse").save(tmp_path / "m.pt")
        with pytest.warns(UserWarning, match=r"no values for '0\.center'"):
            Model(linear(), device="cpu").compile(None, Centered()).load(tmp_path / "m.pt")

    def test_class_weights_are_settings_and_not_in_files(self, tmp_path):
        model = Model(linear(), device="cpu").compile(None, nn.CrossEntropyLoss(weight=torch.ones(8)))
        model.save(tmp_path / "m.pt")
        loss = nn.CrossEntropyLoss(weight=torch.arange(8.0))
        Model(linear(), device="cpu").compile(None, loss).load(tmp_path / "m.pt")
        assert torch.equal(loss.weight, torch.arange(8.0))

    def test_frozen_networks_of_a_loss_are_not_in_files(self):
        class Perceptual(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = linear().requires_grad_(False)

            def forward(self, z, y):
                return (self.net(z) - self.net(X[: len(z)])).square().mean()

        model = Model(linear(), device="cpu").compile(sgd, Perceptual())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.fit(batches(), verbose=0)
        assert model.state_dict()["loss"] == {}

    def test_early_stopping_restores_the_loss_of_the_best_epoch(self):
        loss, states, scores = Arc(), [], [3.0, 1.0, 2.0, 2.0]

        def record(epoch, logs):
            logs["score"] = scores[epoch]
            states.append(loss.weight.detach().clone())

        stopping = EarlyStopping("score", mode="min", patience=2, restore_best_weights=True)
        callbacks = [LambdaCallback(on_epoch_end=record), stopping]
        Model(linear(), device="cpu").compile(sgd, loss).fit(batches(), epochs=6, callbacks=callbacks, verbose=0)
        assert len(states) == 4
        assert torch.equal(loss.weight, states[1])

    def test_a_copy_of_a_model_has_its_own_loss(self):
        model = Model(linear(), device="cpu").compile(sgd, Arc())
        twin = copy.deepcopy(model)
        twin.fit(batches(), verbose=0)
        assert torch.equal(model.loss.function.weight, Arc().weight)
        model.fit(batches(), verbose=0)
        assert same_weights(model.loss.function, twin.loss.function)


def test_modules_without_tensors_are_no_state():
    assert not list(LossModules([nn.MSELoss(), nn.Flatten(), lambda z, y: z]).children())
