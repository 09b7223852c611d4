"""Custom losses with more arguments than predictions and targets."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from easytorch import Model
from tests.loops import blobs, furthest, mlp, same_weights, twins

X, Y = blobs(48)
TEACHER = mlp()
with torch.no_grad():
    LOGITS = TEACHER(X)
BATCHES = [
    {"x": x, "y": y, "teacher_logits": logits}
    for x, y, logits in zip(X.split(16), Y.split(16), LOGITS.split(16), strict=True)
]


@pytest.mark.parametrize("loss", [lambda: 0.0, lambda y_pred: y_pred.mean()])
def test_a_loss_with_too_few_parameters_is_refused_in_compile(loss):
    with pytest.raises(TypeError, match=r"is called with \(y_pred, y\), but takes \(.*def loss\(y_pred, y\)"):
        Model(nn.Linear(8, 3), device="cpu").compile("adam", loss)


def distillation(y_pred, y, teacher_logits, temperature=2.0):
    soft = F.kl_div(
        F.log_softmax(y_pred / temperature, 1), F.softmax(teacher_logits / temperature, 1), reduction="batchmean"
    )
    return 0.5 * F.cross_entropy(y_pred, y) + 0.5 * temperature**2 * soft


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def train_by_hand(net, step, batches=BATCHES, epochs=2):
    optimizer = sgd(net.parameters())
    for _ in range(epochs):
        for batch in batches:
            step(net, batch).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("form", ["list of batches", "loader", "arrays", "pairs", "pair of arrays"])
def test_distillation_equals_a_hand_written_loop(form):
    samples = [{"x": x, "y": y, "teacher_logits": t} for x, y, t in zip(X, Y, LOGITS, strict=True)]
    arrays = {"x": X, "y": Y, "teacher_logits": LOGITS}
    inputs = {"x": X, "teacher_logits": LOGITS}
    pairs = [({"x": sample["x"], "teacher_logits": sample["teacher_logits"]}, sample["y"]) for sample in samples]
    data = {
        "list of batches": BATCHES,
        "loader": DataLoader(samples, 16),
        "arrays": arrays,
        "pairs": DataLoader(pairs, 16),
        "pair of arrays": (inputs, Y),
    }[form]
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile(sgd, distillation, ["multiclass_accuracy"])
    sizes = {"batch_size": 16, "shuffle": False} if "arrays" in form else {}
    model.fit(data, epochs=2, validation_data=data, verbose=0, **sizes)
    train_by_hand(plain, lambda net, batch: distillation(net(batch["x"]), batch["y"], batch["teacher_logits"]))
    assert same_weights(net, plain)
    assert model.evaluate(data, verbose=0)["loss"] == pytest.approx(distillation(net(X), Y, LOGITS).item(), rel=1e-5)
    assert model.predict(data, verbose=0).shape == (48, 3)


def noisy():
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))


def r_drop(y_pred, y, x, model):
    other = model(x)
    p, q = F.log_softmax(y_pred, 1), F.log_softmax(other, 1)
    divergence = F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(
        q, p, log_target=True, reduction="batchmean"
    )
    return F.cross_entropy(y_pred, y) + F.cross_entropy(other, y) + divergence / 2


def r_drop_by_hand(net, batch):
    x, y = batch
    return r_drop(net(x), y, x, net)


PAIRS = list(zip(X.split(16), Y.split(16), strict=True))


@pytest.mark.parametrize("name", ["model", "module"])
def test_r_drop_equals_a_hand_written_loop(name):
    def loss(y_pred, y, x, model):
        return r_drop(y_pred, y, x, model)

    def loss_of_module(y_pred, y, *, x, module):
        return r_drop(y_pred, y, x, module)

    net, plain = twins(noisy())
    model = Model(net, device="cpu").compile(sgd, loss if name == "model" else loss_of_module)
    torch.manual_seed(1)
    model.fit(PAIRS, epochs=2, verbose=0)
    torch.manual_seed(1)
    train_by_hand(plain, r_drop_by_hand, PAIRS)
    assert same_weights(net, plain)


def test_accumulation_equals_one_large_batch():
    net, plain = twins(mlp())
    model = Model(net, device="cpu").compile(sgd, distillation, gradient_accumulation_steps=3)
    model.fit(BATCHES, epochs=2, verbose=0)
    whole = {"x": X, "y": Y, "teacher_logits": LOGITS}
    Model(plain, device="cpu").compile(sgd, distillation).fit([whole], epochs=2, verbose=0)
    assert furthest(net, plain) < 1e-6


class Distillation(nn.Module):
    """A loss with a parameter, one value per sample and its own name for the batch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, y_pred, y, teacher_logits, batch, weight_of_nothing=None):
        assert set(batch) == {"x", "y", "teacher_logits", "sample_weight"}
        assert weight_of_nothing is None
        return F.cross_entropy(y_pred, y, reduction="none") + (self.scale * y_pred - teacher_logits).square().mean(1)


def test_a_module_gets_arguments_by_its_forward_and_weights():
    weighted = [{**batch, "sample_weight": torch.linspace(0, 1, 16)} for batch in BATCHES]
    net, plain = twins(mlp())
    loss, plain_loss = twins(Distillation())
    Model(net, device="cpu").compile(sgd, loss).fit(weighted, epochs=2, verbose=0)
    optimizer = torch.optim.SGD([*plain.parameters(), *plain_loss.parameters()], 0.1)
    for batch in weighted * 2:
        values = plain_loss(plain(batch["x"]), batch["y"], batch["teacher_logits"], batch)
        ((values * batch["sample_weight"]).sum() / 16).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(net, plain)
    assert same_weights(loss, plain_loss)


def test_a_loss_that_takes_weights_applies_them_itself():
    seen = []

    def loss(y_pred, y, sample_weight=None):
        seen.append(sample_weight)
        values = F.cross_entropy(y_pred, y, reduction="none")
        return values.mean() if sample_weight is None else (values * sample_weight).sum() / sample_weight.sum()

    net, plain = twins(mlp())
    weights = torch.linspace(0, 1, 48)
    model = Model(net, device="cpu").compile(sgd, loss)
    model.train_on_batch(X, Y, weights)
    values = F.cross_entropy(plain(X), Y, reduction="none")
    ((values * weights).sum() / weights.sum()).backward()
    sgd(plain.parameters()).step()
    assert same_weights(net, plain)
    assert torch.equal(seen[0], weights)
    model.train_on_batch(X, Y)
    assert seen[1] is None


def test_each_of_several_losses_gets_its_arguments():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return {"a": self.a(x), "b": self.b(x)}

    def loss_a(y_pred, y, teacher_logits):
        return (y_pred - teacher_logits).square().mean()

    net, plain = twins(TwoHeads())
    batches = [{**batch, "y": {"a": batch["y"], "b": batch["y"]}} for batch in BATCHES]
    Model(net, device="cpu").compile(sgd, {"a": loss_a, "b": "cross_entropy"}).fit(batches, epochs=2, verbose=0)

    def step(net, batch):
        outputs = net(batch["x"])
        return loss_a(outputs["a"], None, batch["teacher_logits"]) + F.cross_entropy(outputs["b"], batch["y"])

    train_by_hand(plain, step)
    assert same_weights(net, plain)


def test_a_default_that_is_not_none_is_a_setting():
    def loss(y_pred, y, alpha=0.5, teacher_logits=None, x=2.0):
        assert (alpha, x) == (0.5, 2.0)
        assert teacher_logits is not None
        return F.cross_entropy(y_pred, y)

    batches = [{**batch, "alpha": torch.ones(16)} for batch in BATCHES]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, x):
            return self.layers(x)

    Model(Net(), device="cpu").compile(sgd, loss).fit(batches, verbose=0)


def test_an_optional_argument_may_be_missing():
    def loss(y_pred, y, teacher_logits=None):
        assert teacher_logits is None
        return F.cross_entropy(y_pred, y)

    net, plain = twins(mlp())
    Model(net, device="cpu").compile(sgd, loss).fit(PAIRS, verbose=0)
    Model(plain, device="cpu").compile(sgd, F.cross_entropy).fit(PAIRS, verbose=0)
    assert same_weights(net, plain)


NAMED = [{"input": batch["x"], "y": batch["y"], "teacher_logits": batch["teacher_logits"]} for batch in BATCHES]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (NAMED, r"parameter 'teacher_logit', .* no entry of the batch.* Did you mean 'teacher_logits'"),
        (PAIRS, r"none of 'x', 'model', 'module', 'sample_weight', 'batch'.*dicts: \{\"x\": x, \"y\": y"),
        ([(*pair, pair[1], pair[1]) for pair in PAIRS], r"received 4 parts.*into a dict: \{\"x\": x"),
    ],
)
def test_an_unknown_name_is_an_error_before_the_first_update(batches, message):
    def loss(y_pred, y, teacher_logit):
        return F.cross_entropy(y_pred, y)

    net, plain = twins(mlp())
    with pytest.raises((TypeError, ValueError), match=message):
        Model(net, device="cpu").compile(sgd, loss).fit(batches, verbose=0)
    assert same_weights(net, plain)


def test_a_partial_sets_an_argument():
    net, plain = twins(mlp())
    loss = functools.partial(r_drop_without_x, net=TEACHER)
    Model(net, device="cpu").compile(sgd, loss).fit(PAIRS, epochs=2, verbose=0)
    train_by_hand(plain, lambda net, batch: r_drop_without_x(net(batch[0]), batch[1], TEACHER, batch[0]), PAIRS)
    assert same_weights(net, plain)


def r_drop_without_x(y_pred, y, net, x):
    return F.cross_entropy(y_pred, y) + (y_pred - net(x).detach()).square().mean()


def test_losses_of_torch_keep_their_parameters():
    batches = [{**batch, "weight": torch.full((16,), 5.0)} for batch in NAMED]
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), "cross_entropy"):
        net, plain = twins(mlp())
        Model(net, device="cpu").compile(sgd, loss).fit(batches, epochs=2, verbose=0)
        train_by_hand(plain, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), PAIRS)
        assert same_weights(net, plain)


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x), self.layer(x + 1), self.layer(x - 1)


def test_a_triplet_loss_gets_its_three_outputs():
    net, plain = twins(Three())
    Model(net, device="cpu").compile(sgd, nn.TripletMarginLoss()).fit(X, Y, batch_size=48, shuffle=False, verbose=0)
    train_by_hand(plain, lambda net, batch: F.triplet_margin_loss(*net(batch)), [X], 1)
    assert same_weights(net, plain)


class Doubled(Model):
    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": 2 * self.loss(self(x), y, batch=batch)}


def test_a_custom_step_passes_the_batch():
    net, plain = twins(mlp())
    Doubled(net, device="cpu").compile(sgd, distillation).fit(BATCHES, epochs=2, verbose=0)
    train_by_hand(plain, lambda net, batch: 2 * distillation(net(batch["x"]), batch["y"], batch["teacher_logits"]))
    assert same_weights(net, plain)


def test_a_custom_step_without_the_batch_gets_the_fix():
    class Forgets(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            return {"loss": self.loss(self(x), y)}

    model = Forgets(mlp(), device="cpu").compile(sgd, distillation)
    with pytest.raises(TypeError, match=r"self\.loss\(y_pred, y, batch=batch\)"):
        model.fit(BATCHES, verbose=0)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_the_loss_of_a_copy_uses_the_copy(make_copy):
    model = Model(noisy(), device="cpu").compile(torch.optim.SGD, r_drop, lr=0.1)
    model.fit(PAIRS, verbose=0)
    twin = make_copy(model)
    assert twin.loss.arguments.model is twin
    assert not twin.loss._given
    for each in (model, twin):
        torch.manual_seed(2)
        each.fit(PAIRS, verbose=0)
    assert same_weights(model.module, twin.module)


def test_a_refused_compile_keeps_the_loss():
    model = Model(noisy(), device="cpu").compile(sgd, r_drop)
    with pytest.raises(ValueError, match="Unknown precision"):
        model.compile(sgd, r_drop, precision="fp17")
    model.fit(PAIRS, verbose=0)
