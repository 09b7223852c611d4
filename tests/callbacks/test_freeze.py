"""Fine-tuning with frozen layers equals a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import Freeze, LambdaCallback
from tests.loops import blobs
from tests.many import run_ranks

X, Y = blobs(24)
BATCHES = list(zip(X.split(4), Y.split(4), strict=True))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x))


def new_model(net=None, **options):
    torch.manual_seed(0)
    options = {"optimizer": "adamw", "lr": 0.05} | options
    return Model(net or Net(), device="cpu").compile(loss="cross_entropy", **options)


def plain_loop(epochs, until, lr=0.05):
    """Fine-tune in plain torch, and return the module."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, fused=True)
    for epoch in range(epochs):
        is_frozen = until is None or epoch < until
        net.train()
        net.body.requires_grad_(not is_frozen)
        net.body[1].train(not is_frozen)
        for x, y in BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("until", [None, 1, 2, 5])
def test_frozen_layers_train_from_the_given_epoch(until):
    model = new_model()
    model.fit(BATCHES, 3, callbacks=[Freeze("body", until=until)], verbose=0)
    assert equal(model.module, plain_loop(3, until))


def test_everything_is_restored_after_the_fit():
    model = new_model()
    model.module.body[0].bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.module.named_parameters()}
    model.fit(BATCHES, callbacks=[Freeze("body")], verbose=0)
    assert {name: p.requires_grad for name, p in model.module.named_parameters()} == before
    assert model.module.body[1].training
    body = copy.deepcopy(model.module.body)
    model.fit(BATCHES, verbose=0)
    assert not equal(model.module.body, body)


def test_validation_keeps_frozen_statistics_frozen():
    model = new_model()
    before = copy.deepcopy(model.module.body)
    model.fit(BATCHES, 2, validation_data=BATCHES, callbacks=[Freeze("body.*")], verbose=0)
    assert equal(model.module.body, before)


def test_layer_in_eval_mode_of_the_user_stays_there():
    model = new_model()
    model.module.body[1].eval()
    mean = model.module.body[1].running_mean.clone()
    model.fit(BATCHES, 2, callbacks=[Freeze("body", until=1)], verbose=0)
    assert torch.equal(model.module.body[1].running_mean, mean)


def test_gradual_unfreezing():
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 3))
    seen = []
    record = LambdaCallback(on_train_batch_end=lambda *_: seen.append([p.requires_grad for p in net.parameters()][::2]))
    stages = [Freeze("2", until=1), Freeze("[01]", until=2)]
    new_model(net).fit(X, Y, epochs=3, batch_size=24, callbacks=[*stages, record], verbose=0)
    assert seen == [[False, False, False, True], [False, False, True, True], [True] * 4]


def test_parameters_that_the_optimizer_lacks_are_added():
    net = Net()
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1, momentum=0.9)
    net.body.requires_grad_(False)
    model = new_model(net, optimizer=optimizer, lr=None)
    before = copy.deepcopy(net.body)
    model.fit(BATCHES, 2, callbacks=[Freeze("body", until=1)], verbose=0)
    assert len(optimizer.param_groups) == 1
    assert not equal(net.body, before)
    assert not net.body[0].weight.requires_grad  # as before the fit


def test_added_parameters_follow_the_schedule():
    net = Net()
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    net.body.requires_grad_(False)
    model = new_model(net, optimizer=optimizer, lr=None, scheduler="cosine")
    before = copy.deepcopy(net.body)
    model.fit(BATCHES, 2, callbacks=[Freeze("body", until=1)], verbose=0)
    assert optimizer.param_groups[0]["lr"] == 0
    assert not equal(net.body, before)


@pytest.mark.parametrize("stop", range(1, 18, 3))
def test_resumed_run_equals_an_uninterrupted_one(stop, tmp_path):
    def stop_at(*_):
        if model.state.step == stop:
            raise RuntimeError("stop")

    model = new_model()
    callbacks = [Freeze("body", until=2), LambdaCallback(on_train_batch_end=stop_at)]
    with pytest.raises(RuntimeError, match="stop"):
        model.fit(BATCHES, 3, callbacks=callbacks, resume=tmp_path, verbose=0)
    model = new_model()
    model.fit(BATCHES, 3, callbacks=[Freeze("body", until=2)], resume=tmp_path, verbose=0)
    assert equal(model.module, plain_loop(3, 2))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([Freeze("bodi")], r"Freeze\('bodi'\) matches no parameter of the module. Did you mean 'body'\?"),
        ([Freeze("*")], r"Freeze\('\*'\) leaves nothing to train"),
        ([Freeze("body", until=1), Freeze("body.0")], r"both freeze 'body.0.weight'. Name each layer in one of them"),
    ],
)
def test_wrong_names_are_refused_before_training(callbacks, message):
    model = new_model()
    before = copy.deepcopy(model.module)
    with pytest.raises(ValueError, match=message):
        model.fit(BATCHES, callbacks=callbacks, verbose=0)
    assert equal(model.module, before)
    assert all(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize("patterns", [(), ("",), (3,)])
def test_missing_names_are_refused(patterns):
    with pytest.raises(ValueError, match="needs names of layers"):
        Freeze(*patterns)


class NetWithoutStatistics(Net):
    def __init__(self):
        super().__init__()
        self.body[1] = nn.LayerNorm(6)


def train_in_ranks(strategy):
    model = new_model(NetWithoutStatistics(), strategy=strategy)
    model.fit(X, Y, epochs=3, batch_size=8, shuffle=False, callbacks=[Freeze("body", until=2)], verbose=0)
    return model.strategy.checkpoints.gather(model.module.state_dict())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_unfreeze_as_one(strategy):
    torch.manual_seed(0)
    model = new_model(NetWithoutStatistics())
    before = copy.deepcopy(model.module.body)
    model.fit(X, Y, epochs=3, batch_size=16, shuffle=False, callbacks=[Freeze("body", until=2)], verbose=0)
    weights = run_ranks(train_in_ranks, strategy)[0]
    assert not equal(model.module.body, before)
    assert all(torch.allclose(weights[name], value, atol=1e-5) for name, value in model.module.state_dict().items())
