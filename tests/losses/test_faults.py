"""Numbers that other libraries, or earlier versions of this one, computed wrongly without a word."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from easytorch import Model
from easytorch.callbacks import EarlyStopping, LambdaCallback, TerminateOnNaN
from tests.many import run_ranks

torch.manual_seed(0)
X, Y = torch.randn(12, 4), torch.tensor([1, 2, 0, -1, 0, -1, -1, -1, 3, -1, 2, 1])


def net(outputs=4):
    torch.manual_seed(1)
    return nn.Linear(4, outputs)


def compiled(module, *args, **options):
    optimizer = "sgd" if list(module.parameters()) else None
    return Model(module, device="cpu").compile(optimizer, *args, **options)


# Batches that count nothing


def test_a_batch_without_a_label_adds_nothing():
    y = torch.where(torch.arange(12) < 4, -1, Y.clamp(min=0))
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    model = compiled(net(), loss, lr=0.0)
    stop = EarlyStopping("loss", patience=3)
    history = model.fit(X, y, batch_size=4, shuffle=False, callbacks=[stop, TerminateOnNaN()], verbose=0)
    assert history["loss"][-1] == pytest.approx(loss(model.module(X), y).item())
    assert stop.best == history["loss"][-1]
    assert model.state.step == 3
    assert model.train_on_batch(X[4:], y[4:])["loss"] > 0


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", lambda y_pred, y: F.mse_loss(y_pred, y)])
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_an_empty_batch_adds_nothing(loss, empty):
    y = Y.clamp(min=0) if loss == "cross_entropy" else torch.rand(12, 4)
    batches = [(X[:6], y[:6]), (X[6:], y[6:])]
    expected = compiled(net(), loss).evaluate(X, y, batch_size=12, verbose=0)["loss"]
    batches.insert(empty, (X[:0], y[:0]))
    model = compiled(net(), loss, lr=0.1)
    assert model.evaluate(batches, verbose=0)["loss"] == pytest.approx(expected, rel=1e-5)
    other = compiled(net(), loss, lr=0.1)
    other.fit([batch for batch in batches if len(batch[0])], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = model.fit(batches, verbose=0)
    assert math.isfinite(history["loss"][-1])
    assert torch.allclose(model.module.weight, other.module.weight)


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_batch_adds_nothing_to_a_sum(empty):
    y, loss = Y.clamp(min=0), nn.CrossEntropyLoss(reduction="sum")
    batches = [(X, y)]
    batches.insert(empty, (X[:0], y[:0]))
    model = compiled(net(), loss)
    assert float(model.evaluate(batches, verbose=0)) == pytest.approx(loss(model.module(X), y).item(), rel=1e-6)


# Losses that the module or a function computes


class OwnLoss(nn.Module):
    def __init__(self, shifts=False):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.shifts = nn.Linear(8, 3).double(), shifts
        if shifts:
            self.loss_type = "ForCausalLM"  # as in transformers

    def forward(self, tokens, labels):
        logits = self.layer(tokens).transpose(1, 2)
        if self.shifts:
            return {"loss": F.cross_entropy(logits[..., :-1], labels[:, 1:]), "logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def make_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 9, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (12, 9), generator=generator)
    for i in range(12):
        labels[i, 1 + i * 5 % 8 :] = -100
    return {"tokens": tokens, "labels": labels}


def train_own_loss(size, steps, shifts=False):
    model = compiled(OwnLoss(shifts), lr=0.5, gradient_accumulation_steps=steps)
    history = model.fit(make_tokens(), batch_size=size, shuffle=False, verbose=0)
    return model.module.layer.weight.detach(), history["loss"][-1]


@pytest.mark.parametrize("shifts", [False, True])
def test_the_loss_of_a_module_is_weighted_by_the_labels_that_count(shifts):
    expected, loss = train_own_loss(12, 1, shifts)
    for size, steps in ((3, 4), (5, 3)):
        weight, reported = train_own_loss(size, steps, shifts)
        assert torch.allclose(weight, expected, rtol=0, atol=1e-12)
        assert reported == pytest.approx(loss, rel=1e-12)


class TokenSteps(Model):
    """A step that computes its loss by hand and returns what it counts."""

    def train_step(self, batch):
        tokens, labels = batch["tokens"], batch["labels"]
        logits = self.module.layer(tokens).transpose(1, 2)
        return {"loss": (F.cross_entropy(logits, labels, reduction="sum"), (labels != -100).sum())}


def train_steps(size, steps):
    model = TokenSteps(OwnLoss(), device="cpu").compile(
        "sgd", lr=0.5, gradient_accumulation_steps=steps, clip_grad_norm=0.1
    )
    history = model.fit(make_tokens(), batch_size=size, shuffle=False, verbose=0)
    return model.module.layer.weight.detach(), history["loss"][-1]


def test_a_step_that_returns_sum_and_count_is_exact():
    expected, loss = train_steps(12, 1)
    weight, reported = train_steps(5, 3)
    assert torch.allclose(weight, expected, rtol=0, atol=1e-12)
    assert reported == pytest.approx(loss, rel=1e-12)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("train", [train_own_loss, train_steps], ids=["module", "step"])
def test_a_mean_over_labels_is_the_same_in_two_processes(train):
    expected, loss = train(12, 1)
    for weight, reported in run_ranks(train, 2, 3):
        assert torch.allclose(weight, expected, rtol=0, atol=1e-12)
        assert reported == pytest.approx(loss, rel=1e-12)


def test_a_custom_mean_over_labels_warns_that_it_is_weighted_by_samples():
    y = torch.where(torch.arange(12) < 5, -100, Y.clamp(min=0))
    with pytest.warns(
        UserWarning, match=r"returns one number per batch, and some targets are -100.*Return \(sum, count\)"
    ):
        compiled(net(), lambda y_pred, y: F.cross_entropy(y_pred, y)).evaluate(X, y, verbose=0)


# One value per sample


@dataclasses.dataclass
class Output:
    value: torch.Tensor


class Structured(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 1), kind

    def forward(self, x):
        out = self.layer(x)
        return {"tuple": (out, x), "dict": {"out": out}, "dataclass": Output(out)}[self.kind]


READ = {"tuple": lambda out: out[0], "dict": lambda out: out["out"], "dataclass": lambda out: out.value}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("shape", ["[N]", "[N, 1]", "[1]"])
def test_one_value_per_sample_of_a_structured_output_is_averaged(kind, shape):
    def loss(out, y):
        values = (READ[kind](out) - y).square()
        return {"[N]": values.squeeze(1), "[N, 1]": values, "[1]": values.mean().reshape(1)}[shape]

    targets = X.sum(1, keepdim=True)
    model = compiled(Structured(kind), loss, lr=0.1)
    expected = F.mse_loss(model.module.layer(X), targets).item()
    assert float(model.evaluate(X, targets, batch_size=5, verbose=0)) == pytest.approx(expected, rel=1e-5)
    assert model.fit(X, targets, batch_size=12, verbose=0)["loss"][-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cls", [nn.MSELoss, nn.L1Loss, nn.BCEWithLogitsLoss])
def test_a_torch_loss_without_reduction_is_averaged(cls):
    y = torch.rand(12, 4)
    expected = cls()(net()(X), y).item()
    model = compiled(net(), cls(reduction="none"))
    assert float(model.evaluate(X, y, batch_size=5, verbose=0)) == pytest.approx(expected, rel=1e-5)
    assert model.fit(X, y, batch_size=12, verbose=0)["loss"][-1] == pytest.approx(expected, rel=1e-5)


# Weights


def test_weighted_metrics_align_weights_with_the_leading_dimensions():
    q, t, w = torch.randn(6, 6, 6), torch.randn(6, 6, 6), torch.rand(6, 6)
    loss = lambda p, y: (p - y).square().mean(-1)  # noqa: E731  # as in the report
    distance = lambda p, y: (p - y).abs()  # noqa: E731
    scores = compiled(nn.Identity(), loss, weighted_metrics=[distance]).evaluate(q, t, sample_weight=w, verbose=0)
    expected = ((q - t).abs() * w[..., None]).sum() / (w.sum() * 6)
    assert list(scores)[1] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 5), (6, 5, 1)])
def test_weights_per_sample_or_step_are_accepted_for_steps(shape):
    p, t, w = torch.randn(6, 5, 1), torch.randn(6, 5, 1), torch.rand(shape)
    full = w.reshape(6, *([1, 1] if w.numel() == 6 else [5, 1])).expand(6, 5, 1)
    scores = compiled(nn.Identity(), "mse", weighted_metrics=["mse"]).evaluate(p, t, sample_weight=w, verbose=0)
    values = (p - t).square()
    assert scores["loss"] == pytest.approx((values * full).mean().item(), rel=1e-5)
    assert scores["mse"] == pytest.approx(((values * full).sum() / full.sum()).item(), rel=1e-5)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"sample weights have the shape|sample_weight expects one weight per sample"):
        compiled(nn.Identity(), "mse", weighted_metrics=["mse"]).evaluate(
            torch.rand(6, 5), torch.rand(6, 5), sample_weight=torch.rand(6, 3), verbose=0
        )


def test_weights_need_a_loss_without_counts():
    def token_loss(y_pred, y):
        values = (y_pred - y) ** 2
        return values.sum(), torch.tensor(float(len(y)))

    x, y = torch.rand(8, 4), torch.rand(8, 1)
    model = compiled(nn.Linear(4, 1), token_loss)
    with pytest.raises(ValueError, match=r"need one loss per sample, but 'token_loss' returns \(sum, count\)"):
        model.fit(x, y, sample_weight=torch.rand(8), verbose=0)


# Metrics


def test_a_mean_in_the_shape_1_is_weighted_by_samples():
    p = torch.tensor([[1.0], [2], [3], [4], [4], [4]])
    metric = lambda y_pred, y: ((y_pred - y) ** 2).mean().reshape(1)  # noqa: E731
    scores = compiled(nn.Identity(), "mse", [metric]).evaluate(p, torch.zeros(6, 1), batch_size=4, verbose=0)
    assert list(scores) == pytest.approx([62 / 6, 62 / 6])


@pytest.mark.parametrize("value", [{"a": 1.0, "b": 2.0}, "text", None])
def test_a_metric_function_that_returns_no_number_is_named(value):
    with pytest.raises(ValueError, match=r"not one number, one value per sample, or a pair \(sum, count\)"):
        compiled(nn.Identity(), "mse", [lambda y_pred, y: value]).evaluate(
            torch.rand(6, 1), torch.rand(6, 1), verbose=0
        )


def test_r2_of_single_samples_ends_nothing():
    read = []
    look = LambdaCallback(on_train_batch_end=lambda batch, logs: read.append((logs["loss"], logs["r2"])))
    y = X.sum(1, keepdim=True)
    model = compiled(net(1), "mse", metrics=["r2"])
    model.fit(X, y, batch_size=1, callbacks=[look], verbose=0)
    assert math.isnan(read[0][1])
    assert math.isfinite(read[-1][1])
    assert all(math.isfinite(loss) for loss, _ in read)
    with pytest.warns(UserWarning, match="'r2' is NaN, because it cannot be computed"):
        scores = model.train_on_batch(X[:1], y[:1])
    assert math.isnan(scores["r2"])


def test_reading_the_loss_computes_no_metric():
    class Slow:
        __name__ = "slow"

        def __call__(self, y_pred, y):
            return torch.zeros(len(y))

    computed = []
    model = compiled(net(), nn.CrossEntropyLoss(ignore_index=-1), [Slow()])
    metric = model.metrics._entries[0].metric
    plain = type(metric).compute
    type(metric).compute = lambda self: computed.append(1) or plain(self)
    try:
        look = LambdaCallback(on_train_batch_end=lambda batch, logs: logs["loss"])
        model.fit(X, Y, batch_size=2, callbacks=[look], verbose=0)
    finally:
        type(metric).compute = plain
    assert len(computed) == 1


def test_two_class_f1_says_that_it_is_macro():
    pytest.importorskip("torchmetrics")
    y = (X[:, 0] > 0).long()
    model = compiled(net(2), "cross_entropy", ["f1"])
    with pytest.warns(UserWarning, match="'f1' is the macro average over both classes.*'f1_binary'.*'f1_macro'"):
        model.evaluate(X, y, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(net(2), "cross_entropy", ["f1_binary", "f1_macro"]).evaluate(X, y, verbose=0)


# Targets


def test_binary_targets_of_a_later_batch_are_checked():
    good, bad = torch.ones(6, 1), -torch.ones(6, 1)
    model = compiled(net(1), "bce_with_logits")
    with pytest.raises(ValueError, match="targets go from -1 to -1, but the loss"):
        model.fit([(X[:6], good), (X[6:], bad)], verbose=0)
