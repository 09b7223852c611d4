"""What a step may do, and what an update does with it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import easytorch
from easytorch import Model
from easytorch.callbacks import Callback, LambdaCallback, TerminateOnNaN
from tests.cases import slow_after_first
from tests.loops import furthest, same_weights

torch.manual_seed(0)
X = torch.randn(64, 8)
Y = torch.arange(64) % 10


def linear(outputs=10):
    torch.manual_seed(1)
    return nn.Linear(8, outputs)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def batches(count):
    return list(zip(X.chunk(count), Y.chunk(count), strict=True))


def fgsm(net, x, y):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(net(x), y), x)
    return (x + 0.1 * gradient.sign()).detach()


class Attack(Model):
    """The lines of the tutorial on FGSM: a backward pass inside of the step."""

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        x = x.clone().requires_grad_()
        self.loss(self(x), y).backward()
        return {"loss": self.loss(self((x + 0.1 * x.grad.sign()).detach()), y)}


class ClearedAttack(Attack):
    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        x = x.clone().requires_grad_()
        self.loss(self(x), y).backward()
        self.optimizer.zero_grad()
        return {"loss": self.loss(self((x + 0.1 * x.grad.sign()).detach()), y)}


def train_on_attacks(net, data, window=1):
    """Train as the loop of the tutorial does, with the mean over each window of equal batches."""
    optimizer = sgd(net.parameters())
    for start in range(0, len(data), window):
        gradients = []
        for x, y in data[start : start + window]:
            attacked = fgsm(net, x, y)
            gradients.append(torch.autograd.grad(functional.cross_entropy(net(attacked), y), list(net.parameters())))
        for parameter, *parts in zip(net.parameters(), *gradients, strict=True):
            parameter.grad = sum(parts) / len(parts)
        optimizer.step()


class TestGradientsOfAStep:
    @pytest.mark.parametrize("window", slow_after_first([2, 1, 4]))
    def test_gradients_inside_train_step_do_not_reach_the_update(self, window):
        by_model, by_hand = linear(), linear()
        model = Attack(by_model, device="cpu").compile(sgd, "cross_entropy", gradient_accumulation_steps=window)
        with pytest.warns(UserWarning, match=r"torch\.autograd\.grad") as given:
            model.fit(batches(8), epochs=2, verbose=0)
        assert len(given) == 1
        train_on_attacks(by_hand, batches(8) * 2, window)
        assert furthest(by_model, by_hand) < 1e-6

    @pytest.mark.parametrize("window", [1, 2])
    def test_cleared_gradients_leave_those_of_earlier_batches(self, window):
        by_model, by_hand = linear(), linear()
        model = ClearedAttack(by_model, device="cpu").compile(sgd, "cross_entropy", gradient_accumulation_steps=window)
        model.fit(batches(8), verbose=0)
        train_on_attacks(by_hand, batches(8), window)
        assert furthest(by_model, by_hand) < 1e-6

    def test_train_on_batch_ignores_gradients_of_the_step(self):
        by_model, by_hand = linear(), linear()
        with pytest.warns(UserWarning, match=r"torch\.autograd\.grad"):
            Attack(by_model, device="cpu").compile(sgd, "cross_entropy").train_on_batch(X, Y)
        train_on_attacks(by_hand, [(X, Y)])
        assert furthest(by_model, by_hand) < 1e-6

    def test_a_second_optimizer_inside_a_step_is_exact_and_silent(self):
        class Critic(Model):
            def train_step(self, batch):
                x, y, _ = self.unpack(batch)
                features = self.module[0](x)
                self.critic_optimizer.zero_grad()
                self.loss(self.module[1](features.detach()), y).backward()
                self.critic_optimizer.step()
                return {"loss": -0.1 * self.loss(self.module[1](features), y)}

        def new_net():
            torch.manual_seed(2)
            return nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 10))

        by_model, by_hand = new_net(), new_net()
        optimizer = torch.optim.SGD(by_model[0].parameters(), lr=0.5)
        model = Critic(by_model, device="cpu").compile(optimizer, "cross_entropy")
        model.critic_optimizer = torch.optim.SGD(by_model[1].parameters(), lr=0.5)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some parameters are not trained")
            model.fit(batches(4), verbose=0)
        first, second = (torch.optim.SGD(layer.parameters(), lr=0.5) for layer in by_hand)
        for x, y in batches(4):
            features = by_hand[0](x)
            second.zero_grad()
            functional.cross_entropy(by_hand[1](features.detach()), y).backward()
            second.step()
            first.zero_grad()
            (-0.1 * functional.cross_entropy(by_hand[1](features), y)).backward()
            first.step()
        assert same_weights(by_model, by_hand)

    def test_optimizer_step_inside_train_step_is_refused(self):
        class Twice(Model):
            def train_step(self, batch):
                x, y, _ = self.unpack(batch)
                loss = self.loss(self(x), y)
                loss.backward(retain_graph=True)
                self.optimizer.step()
                return {"loss": loss}

        model = Twice(linear()).compile(
            "sgd", "cross_entropy", scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1)
        )
        with pytest.raises(RuntimeError, match="updated twice"):
            model.fit(X, Y, verbose=0)
        assert same_weights(model.module, linear())
        assert all(parameter.grad is None for parameter in model.module.parameters())

    def test_a_custom_update_may_use_gradients_of_its_steps(self):
        class Own(Model):
            def update(self, window):
                outputs = self.strategy.run(self.train_step, window[0])
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.metrics.record(outputs, self.batch_size(window[0]))

            def train_step(self, batch):
                x, y, _ = self.unpack(batch)
                loss = self.loss(self(x), y)
                loss.backward()
                return {"loss": loss}

        by_model, by_hand = linear(), linear()
        Own(by_model, device="cpu").compile(sgd, "cross_entropy").fit(batches(4), verbose=0)
        optimizer = sgd(by_hand.parameters())
        for x, y in batches(4):
            optimizer.zero_grad()
            functional.cross_entropy(by_hand(x), y).backward()
            optimizer.step()
        assert same_weights(by_model, by_hand)


class Recording(Model):
    """Logs its loss under another name, which is NaN in the second update."""

    calls_hook = False

    def update(self, window):
        (batch,) = window
        factor = float("nan") if self.state.step == 1 else 1.0
        loss = self.strategy.run(self.train_step, batch)["loss"] * factor
        self.strategy.backward(loss)
        if self.calls_hook:
            self.callbacks.on_before_optimizer_step()
        self.strategy.step(self.optimizer)
        self.strategy.zero_grad(self.optimizer)
        self.metrics.record({"generator": loss}, self.batch_size(batch))


class RecordingWithHook(Recording):
    calls_hook = True


def partial_update(parts):
    """Return a class of models whose update consists of ``parts``."""

    class Partial(Model):
        def update(self, window):
            steps = "rare_step" not in parts or self.state.step % 2 == 1
            outputs = self.strategy.run(self.train_step, window[0])
            for part in parts.split():
                if part == "backward":
                    self.strategy.backward(outputs["loss"])
                elif part == "record":
                    self.metrics.record(outputs, self.batch_size(window[0]))
                elif part.endswith("step") and not part.startswith("zero") and steps:
                    self.strategy.step(self.optimizer)
                elif part.startswith("zero") and steps:
                    self.strategy.zero_grad(self.optimizer)

    return Partial


def messages_of(run):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in given]


class TestCustomUpdate:
    def test_terminate_on_nan_ends_after_a_bad_custom_update(self):
        model = Recording(linear()).compile("sgd", "cross_entropy")
        with pytest.warns(UserWarning, match=r"update 2 .*after this update.*on_before_optimizer_step"):
            model.fit(X, Y, batch_size=16, epochs=3, callbacks=[TerminateOnNaN()], verbose=0)
        assert model.state.step == 2

    def test_terminate_on_nan_keeps_the_weights_if_the_hook_is_called(self):
        model = RecordingWithHook(linear(), device="cpu").compile(sgd, "cross_entropy")
        before = []
        watch = LambdaCallback(on_train_batch_begin=lambda batch, logs: before.append(copy.deepcopy(model.module)))
        with pytest.warns(UserWarning, match="before this update"):
            model.fit(X, Y, batch_size=16, epochs=3, callbacks=[watch, TerminateOnNaN()], verbose=0)
        assert len(before) == model.state.step == 2
        assert same_weights(model.module, before[1])

    def test_a_nan_of_a_custom_update_is_reported_by_its_name(self):
        model = Recording(linear()).compile("sgd", "cross_entropy")
        with pytest.warns(UserWarning, match="'generator' of epoch 1 is nan"):
            model.fit(X, Y, batch_size=16, verbose=0)

    def test_a_nan_of_an_extra_value_is_not_reported(self):
        class Extra(Model):
            def train_step(self, batch):
                return super().train_step(batch) | {"extra": torch.tensor(float("nan"))}

        Extra(linear()).compile("sgd", "cross_entropy").fit(X, Y, verbose=0)

    def test_losses_are_not_held_without_a_callback_that_watches(self):
        model = Model(linear()).compile("sgd", "cross_entropy")
        held = []
        watch = LambdaCallback(on_train_batch_end=lambda batch, logs: held.append(len(model.strategy.losses)))
        model.fit(X, Y, callbacks=[TerminateOnNaN()], verbose=0)
        model.fit(X, Y, callbacks=[watch], verbose=0)
        assert held == [0, 0]

    def test_a_hook_that_a_custom_update_does_not_call_is_reported(self):
        class Gradients(Callback):
            def on_before_optimizer_step(self):
                raise AssertionError

        class Plain(Recording):
            def update(self, window):
                outputs = self.strategy.run(self.train_step, window[0])
                self.strategy.backward(outputs["loss"])
                self.strategy.step(self.optimizer)
                self.strategy.zero_grad(self.optimizer)
                self.metrics.record(outputs, self.batch_size(window[0]))

        model = Plain(linear()).compile("sgd", "cross_entropy", clip_grad_norm=1.0)
        with pytest.warns(UserWarning, match="update\\(\\) is custom") as given:
            model.fit(X, Y, epochs=2, callbacks=[Gradients()], verbose=0)
        messages = [str(warning.message) for warning in given]
        assert ["Gradients" in message for message in messages] == [True, False]
        assert "clip_grad_norm and clip_grad_value have no effect" in messages[1]

    def test_a_custom_update_that_does_everything_is_silent(self):
        class Complete(Model):
            def update(self, window):
                outputs = self.strategy.run(self.train_step, window[0])
                self.strategy.backward(outputs["loss"])
                self.callbacks.on_before_optimizer_step()
                self.strategy.clip(self.optimizer, self.clip_grad_norm, self.clip_grad_value)
                self.strategy.step(self.optimizer)
                self.strategy.zero_grad(self.optimizer)
                self.metrics.record(outputs, self.batch_size(window[0]))

        nets = [linear(), linear()]
        for kind, net in zip((Complete, Model), nets, strict=True):
            model = kind(net, device="cpu").compile(sgd, "cross_entropy", clip_grad_norm=0.1)
            hook = LambdaCallback(on_before_optimizer_step=lambda: None)
            model.fit(batches(4), callbacks=[hook], verbose=0)
        assert same_weights(*nets)

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ("backward step record", ["does not delete the gradients"]),
            ("backward step zero", ["records nothing"]),
            ("backward record", ["changed no weights"]),
            ("", ["records nothing", "changed no weights"]),
            ("zero backward step record", []),
            ("backward rare_step zero_after_step record", []),
        ],
    )
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])  # fused optimizers do not count their changes
    def test_a_part_that_a_custom_update_lacks_is_reported(self, parts, expected, optimizer):
        model = partial_update(parts)(linear()).compile(optimizer, "cross_entropy")
        messages = messages_of(lambda: model.fit(batches(4), 2, verbose=0))
        assert len(messages) == len(expected), messages
        assert all(part in message for part, message in zip(expected, messages, strict=True))

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ("backward step record", []),  # each call starts without gradients
            ("backward step zero", ["records nothing"]),
            ("backward record", ["changed no weights in 20 calls"]),
            ("zero backward step record", []),
            ("backward rare_step zero_after_step record", []),
        ],
    )
    def test_train_on_batch_reports_it_once(self, parts, expected):
        model = partial_update(parts)(linear()).compile("sgd", "cross_entropy")
        messages = messages_of(lambda: [model.train_on_batch(*batch) for batch in batches(25)])
        assert len(messages) == len(expected), messages
        assert all(part in message for part, message in zip(expected, messages, strict=True))

    def test_train_on_batch_reports_clipping_and_lost_gradients(self):
        class Leaking(Model):
            def train_step(self, batch):
                outputs = super().train_step(batch)
                outputs["loss"].backward(retain_graph=True)
                return outputs

        clipped = partial_update("backward step zero record")(linear()).compile(
            "sgd", "cross_entropy", clip_grad_norm=1.0
        )
        for model, message in (
            (clipped, "clip_grad_norm and clip_grad_value have no effect"),
            (Leaking(linear()).compile("sgd", "cross_entropy"), "the gradients that it left are deleted"),
        ):
            (found,) = messages_of(lambda model=model: [model.train_on_batch(*batch) for batch in batches(3)])
            assert message in found

    def test_a_gradient_of_another_loss_is_not_reported(self):
        class Gan(Model):
            def update(self, window):
                x, _, _ = self.unpack(window[0])
                generator, critic = self.module
                fake = generator(x)
                losses = {"critic": (critic(fake).mean(), critic), "generator": (-critic(fake).mean(), generator)}
                for name, (loss, part) in losses.items():
                    part.zero_grad()
                    loss.backward(retain_graph=True)
                    for parameter in part.parameters():
                        parameter.data -= 0.1 * parameter.grad
                    self.metrics.record({name: loss}, len(x))

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Gan(nn.Sequential(linear(8), linear(1))).compile("sgd").fit(batches(4), 2, verbose=0)


class Quasi(Model):
    def update(self, window):
        (batch,) = window

        def closure():
            self.optimizer.zero_grad()
            loss = self.strategy.run(self.train_step, batch)["loss"]
            self.strategy.backward(loss)
            return loss

        self.metrics.record({"loss": self.optimizer.step(closure)}, self.batch_size(batch))


class Sharpness(Model):
    """SAM over a window: a step up, and the gradient there."""

    def update(self, window):
        parameters = list(self.module.parameters())
        for batch in window:
            outputs = self.strategy.run(self.train_step, batch)
            self.strategy.backward(outputs["loss"])
            self.metrics.record(outputs, self.batch_size(batch))
        steps = [parameter.grad.sign() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, steps)
        self.module.zero_grad()
        for batch in window:
            self.strategy.backward(self.strategy.run(self.train_step, batch)["loss"])
        with torch.no_grad():
            torch._foreach_sub_(parameters, steps)
        self.strategy.step(self.optimizer)
        self.module.zero_grad()


class Chunks(Model):
    """Runs a step on two halves of each batch."""

    def update(self, window):
        (batch,) = window
        for half in (0, 1):
            part = tuple(tensor.chunk(2)[half] for tensor in batch)
            outputs = self.strategy.run(self.train_step, part)
            self.strategy.backward(outputs["loss"])
            self.metrics.record(outputs, self.batch_size(part))
        self.strategy.step(self.optimizer)
        self.module.zero_grad()


def accuracy(net):
    return (net(X).argmax(1) == Y).float().mean().item()


class TestRepeatedSteps:
    def test_lbfgs_measures_the_weights_before_the_update(self):
        before = accuracy(linear())
        model = Quasi(linear()).compile(lambda p: torch.optim.LBFGS(p, max_iter=10), "cross_entropy", ["accuracy"])
        history = model.fit(X, Y, batch_size=64, verbose=0)
        assert history["accuracy"] == [pytest.approx(before)]
        assert accuracy(model.module) != before

    @pytest.mark.parametrize("window", [1, 4])
    def test_sam_measures_the_first_of_two_passes(self, window):
        model = Sharpness(linear()).compile(
            "sgd", "cross_entropy", ["accuracy"], lr=0.0, gradient_accumulation_steps=window
        )
        history = model.fit(batches(4), validation_data=(X, Y), verbose=0)
        assert history["accuracy"] == [pytest.approx(accuracy(linear()))]
        assert history["accuracy"] == history["val_accuracy"]

    def test_parts_of_a_batch_are_all_measured(self):
        model = Chunks(linear()).compile("sgd", "cross_entropy", ["accuracy"], lr=0.0)
        assert model.fit(batches(4), verbose=0)["accuracy"] == [pytest.approx(accuracy(linear()))]

    def test_train_on_batch_inside_a_custom_fit_leaves_the_measure(self):
        model = Quasi(linear()).compile(
            lambda p: torch.optim.LBFGS(p, lr=0.0, max_iter=3), "cross_entropy", ["accuracy"]
        )
        extra = LambdaCallback(on_train_batch_end=lambda batch, logs: model.train_on_batch(X, Y))
        history = model.fit(X, Y, batch_size=32, shuffle=False, callbacks=[extra], verbose=0)
        assert history["accuracy"] == [pytest.approx(accuracy(linear()))]
        assert "run" not in vars(model.strategy)

    def test_a_copy_made_inside_a_custom_update_trains_by_itself(self):
        copies = []
        watch = LambdaCallback(on_train_batch_end=lambda batch, logs: copies.append(copy.deepcopy(model)))
        model = Chunks(linear()).compile("sgd", "cross_entropy", ["accuracy"], lr=0.0)
        model.fit([(X, Y)], callbacks=[watch], verbose=0)
        assert "run" not in vars(model.strategy)
        assert "run" not in vars(copies[0].strategy)
        assert copies[0].fit([(X, Y)], verbose=0)["accuracy"][-1] == pytest.approx(accuracy(linear()))


class SummedStep(Model):
    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": self.compute(self(x), y)}

    def compute(self, y_pred, y):
        return functional.cross_entropy(y_pred, y, reduction="sum")


class SummedBits(SummedStep):
    def compute(self, y_pred, y):
        return functional.binary_cross_entropy(y_pred.sigmoid(), y_pred.detach().sigmoid(), reduction="sum") + 1


class SummedSquares(SummedStep):
    def compute(self, y_pred, y):
        return 0.5 * y_pred.square().sum() - functional.one_hot(y, 10).mul(y_pred).sum()


class SummedPairs(SummedStep):
    def compute(self, y_pred, y):
        return super().compute(y_pred, y), len(y)


class Means(SummedStep):
    def compute(self, y_pred, y):
        penalty = sum(parameter.square().sum() for parameter in self.module.parameters())
        return y_pred.square().sum(1).mean() + y_pred.square().sum() / len(y) + 0.01 * penalty


class TestSummedLoss:
    @pytest.mark.parametrize("kind", [SummedStep, SummedBits, SummedSquares])
    def test_a_sum_in_a_step_is_reported_under_accumulation(self, kind):
        model = kind(linear()).compile("sgd", "cross_entropy", gradient_accumulation_steps=4)
        with pytest.warns(UserWarning, match="sum over the samples") as given:
            model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
        assert len(given) == 1

    @pytest.mark.parametrize("kind", [SummedPairs, Means, Model])
    def test_means_and_pairs_are_not_reported(self, kind):
        model = kind(linear()).compile("sgd", "cross_entropy", gradient_accumulation_steps=4)
        model.fit(X, Y, batch_size=16, verbose=0)

    def test_a_sum_without_accumulation_is_not_reported(self):
        SummedStep(linear()).compile("sgd", "cross_entropy").fit(X, Y, batch_size=16, verbose=0)

    def test_a_pair_equals_one_large_batch(self):
        nets = [linear(), linear()]
        for net, size in zip(nets, (64, 16), strict=True):
            model = SummedPairs(net, device="cpu").compile(sgd, gradient_accumulation_steps=64 // size)
            model.fit(X, Y, batch_size=size, shuffle=False, epochs=2, verbose=0)
        assert furthest(*nets) < 1e-6


class GradientPenalty(Model):
    def train_step(self, batch):
        x = self.unpack(batch).x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
        return {"loss": gradient.square().mean()}


class TestGradientsInValidation:
    @pytest.mark.parametrize("call", ["evaluate", "fit", "test_on_batch"])
    def test_gradients_in_a_validation_step_are_explained(self, call):
        model = GradientPenalty(nn.Sequential(linear(4), nn.Tanh(), nn.Linear(4, 1))).compile("sgd")
        calls = {
            "fit": lambda: model.fit(X, validation_data=X, verbose=0),
            "evaluate": lambda: model.evaluate(X, verbose=0),
            "test_on_batch": lambda: model.test_on_batch(X),
        }
        with pytest.raises(RuntimeError, match=r"torch\.enable_grad"):
            calls[call]()
        assert model.state.step == 0


class TestUnpack:
    def test_unpack_may_return_a_plain_tuple(self):
        class Pairs(Model):
            def unpack(self, batch):
                return batch["image"], batch["mask"]

        net = nn.Conv2d(1, 1, 1)
        images = torch.randn(8, 1, 4, 4)
        data = [{"image": images, "mask": (images > 0).float()}]
        model = Pairs(net).compile("sgd", "bce_with_logits", ["accuracy"])
        assert model.fit(data, validation_data=data, verbose=0)["val_loss"]
        assert model.predict(data, verbose=0).shape == (8, 1, 4, 4)

    @pytest.mark.parametrize("result", [X[:2], X[:3], None, (1, 2, 3, 4), (), {"x": X, "y": Y}])
    def test_another_result_of_unpack_is_an_error(self, result):
        class Wrong(Model):
            def unpack(self, batch):
                return result

        model = Wrong(linear()).compile("sgd", "cross_entropy")
        with pytest.raises(
            TypeError, match=r"Wrong\.unpack must return \(x, y\), \(x, y, sample_weight\) or .*, received"
        ):
            model.fit(X, Y, verbose=0)
        with pytest.raises(TypeError, match=r"unpack must return"):
            model.predict(X, verbose=0)

    def test_two_of_the_three_parts_are_explained(self):
        class Pairs(Model):
            def train_step(self, batch):
                x, y = self.unpack(batch)
                return {"loss": self.loss(self(x), y)}

        model = Pairs(linear()).compile("sgd", "cross_entropy")
        for call in (model.fit, model.evaluate):
            with pytest.raises(ValueError, match=r"train_step: .*Write x, y, sample_weight = self\.unpack\(batch\)"):
                call(X, Y, verbose=0)

    def test_another_tuple_of_the_user_is_not_explained(self):
        class Wrong(Model):
            def train_step(self, batch):
                first, _second = (1, 2, 3)
                return {"loss": first}

        with pytest.raises(ValueError, match=r"^too many values to unpack \(expected 2\)$"):
            Wrong(linear()).compile("sgd", "cross_entropy").fit(X, Y, verbose=0)

    @pytest.mark.parametrize("result", [None, torch.tensor(1.0)])
    def test_a_test_step_without_a_dict_is_explained(self, result):
        class Wrong(Model):
            def test_step(self, batch):
                return result

        with pytest.raises(TypeError, match=r"A step returned .*, expected a dict.*\{'loss': loss\}"):
            Wrong(linear()).compile("sgd", "cross_entropy").evaluate(X, Y, verbose=0)

    def test_batch_is_a_public_name(self):
        assert easytorch.Batch(1, 2) == (1, 2, None)
