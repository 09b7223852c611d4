"""Custom steps, updates and strategies."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from easytorch import Model, Strategy
from easytorch.callbacks import EarlyStopping, ModelCheckpoint
from tests.loops import blob_loader, mlp, same_weights, twins
from tests.strategies.common_strategy import X, Y, compiled_model

# Custom steps


def test_a_custom_train_step_is_optimized_and_logged():
    class LabelSmoothingModel(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            y_pred = self(x)
            loss = functional.cross_entropy(y_pred, y, label_smoothing=0.1)
            return {"loss": loss, "confidence": y_pred.softmax(1).amax(1).mean()}

    by_model, by_hand = twins(mlp())
    model = LabelSmoothingModel(by_model, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1))
    history = model.fit(blob_loader(), 2, validation_data=blob_loader(), verbose=0)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in blob_loader():
            optimizer.zero_grad()
            functional.cross_entropy(by_hand(x), y, label_smoothing=0.1).backward()
            optimizer.step()
    assert same_weights(by_model, by_hand)
    assert list(history) == ["loss", "confidence", "val_loss", "val_confidence", "lr"]


def test_a_custom_update_trains_a_gan_with_two_optimizers():
    class Gan(Model):
        def compile(self, lr):
            super().compile(lambda _: torch.optim.SGD(self.module["generator"].parameters(), lr=lr))
            self.critic_optimizer = torch.optim.SGD(self.module["critic"].parameters(), lr=lr)
            return self

        def update(self, window):
            (batch,) = window
            for optimizer, step in ((self.critic_optimizer, self.critic_step), (self.optimizer, self.generator_step)):
                outputs = self.strategy.run(step, batch)
                optimizer.zero_grad()
                self.strategy.backward(next(iter(outputs.values())))
                self.strategy.step(optimizer)
                self.metrics.record(outputs, self.batch_size(batch))

        def critic_step(self, batch):
            x = self.unpack(batch).x
            real, fake = self.module["critic"](x), self.module["critic"](self.fakes(x).detach())
            return {"critic_loss": functional.softplus(-real).mean() + functional.softplus(fake).mean()}

        def generator_step(self, batch):
            x = self.unpack(batch).x
            return {"generator_loss": functional.softplus(-self.module["critic"](self.fakes(x))).mean()}

        def fakes(self, x):
            return self.module["generator"](x[:, :2])

    def new_modules():
        torch.manual_seed(5)
        return nn.ModuleDict({"generator": nn.Linear(2, 8), "critic": nn.Linear(8, 1)})

    by_model, by_hand = new_modules(), new_modules()
    history = Gan(by_model, device="cpu").compile(lr=0.1).fit([X[:25], X[25:]], 3, verbose=0)
    generator, critic = by_hand["generator"], by_hand["critic"]
    first, second = torch.optim.SGD(critic.parameters(), lr=0.1), torch.optim.SGD(generator.parameters(), lr=0.1)
    for _ in range(3):
        for x in (X[:25], X[25:]):
            loss = (
                functional.softplus(-critic(x)).mean()
                + functional.softplus(critic(generator(x[:, :2]).detach())).mean()
            )
            first.zero_grad()
            loss.backward()
            first.step()
            loss = functional.softplus(-critic(generator(x[:, :2]))).mean()
            second.zero_grad()
            loss.backward()
            second.step()
    assert same_weights(by_model, by_hand)
    assert list(history) == ["critic_loss", "generator_loss", "lr"]
    assert len(history["critic_loss"]) == 3


def test_a_custom_predict_step_defines_the_predictions():
    class Hidden(Model):
        def predict_step(self, batch):
            return self.module[:2](self.unpack(batch).x)

    assert Hidden(mlp(), device="cpu").predict(X, verbose=0).shape == (50, 16)


def test_a_custom_test_step_defines_the_scores():
    class CustomModel(Model):
        def test_step(self, batch):
            return super().test_step(batch) | {"largest": self.unpack(batch).y.max()}

    scores = CustomModel(mlp(), device="cpu").compile("sgd", "cross_entropy").evaluate(X, Y, batch_size=50, verbose=0)
    assert scores.keys() == ["loss", "largest"]
    assert scores.largest == 2


# A custom strategy


class RecordingStrategy(Strategy):
    """Records the calls of its methods."""

    def __init__(self, device):
        super().__init__(device)
        self.events = []

    def run(self, step, batch):
        self.events.append(step.__name__)
        return super().run(step, batch)

    def backward(self, loss, share=1.0):
        self.events.append(f"backward {share:g}")
        super().backward(loss, share)

    def accumulating(self, sync):
        self.events.append("sync" if sync else "hold")
        return super().accumulating(sync)

    def unscale(self, optimizer):
        self.events.append("unscale")
        super().unscale(optimizer)

    def clip(self, module, norm, value):
        self.events.append(f"clip {norm}")
        super().clip(module, norm, value)

    def step(self, optimizer):
        self.events.append("step")
        super().step(optimizer)


def recording_model(net=None, **options):
    model = compiled_model(net, **options)
    model.strategy = RecordingStrategy(model.device)
    model.strategy.prepare(model.module)
    return model


def test_a_custom_strategy_runs_every_operation_in_order():
    model = recording_model(clip_grad_norm=1.0)
    model.fit([(X[:25], Y[:25]), (X[25:], Y[25:])], verbose=0)
    assert model.strategy.events == ["sync", "train_step", "backward 1", "unscale", "clip 1.0", "step"] * 2


def test_a_window_syncs_once_and_weights_batches_by_samples():
    model = recording_model(gradient_accumulation_steps=2)
    model.fit([(X[:30], Y[:30]), (X[30:40], Y[30:40]), (X[40:], Y[40:])], verbose=0)
    assert model.strategy.events == [
        *("hold", "train_step", "backward 0.75", "sync", "train_step", "backward 0.25", "unscale", "clip None", "step"),
        *("sync", "train_step", "backward 1", "unscale", "clip None", "step"),
    ]


def test_evaluate_and_predict_only_run_steps():
    model = recording_model()
    model.evaluate([(X, Y)], verbose=0)
    model.predict([(X, Y)], verbose=0)
    assert model.strategy.events == ["test_step", "predict_step"]


def test_a_recording_strategy_changes_no_result():
    plain, recorded_net = twins(mlp())
    compiled_model(plain).fit(blob_loader(), 2, verbose=0)
    recording_model(recorded_net).fit(blob_loader(), 2, verbose=0)
    assert same_weights(plain, recorded_net)


class LogsInTestStep(Model):
    def test_step(self, batch):
        return {**super().test_step(batch), "flat": torch.tensor(1.0)}


def test_a_value_that_only_test_step_logs_can_be_monitored(tmp_path):
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    callbacks = [
        EarlyStopping("val_flat", mode="min"),
        ModelCheckpoint(tmp_path / "{epoch}-{val_flat}.pt", "val_flat", save_best_only=True, mode="min"),
    ]
    model = LogsInTestStep(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy")
    history = model.fit(x, y, epochs=2, validation_data=(x, y), callbacks=callbacks, verbose=0)
    assert history["val_flat"] == [1.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["1-1.0.pt"]
