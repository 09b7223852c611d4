"""What a check, a nested call or an unowned gradient leaves behind: nothing."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import Freeze, LambdaCallback
from tests.loops import same_weights

torch.manual_seed(0)
X, Y = torch.randn(32, 4), torch.arange(32) % 3


class ActNorm(nn.Module):
    """Initializes itself by the first data that it sees."""

    def __init__(self):
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)
        self.register_buffer("ready", torch.tensor(0))

    def forward(self, x):
        if not self.ready:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.ready.fill_(1)
        return self.layer(x + self.shift)


class Counts(nn.Module):
    """Changes a buffer, a number, a list and a tensor in eval mode too, and registers a buffer late."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.seen, self.hidden = nn.Linear(4, 3), 0, [], torch.zeros(3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        self.calls += 1
        self.seen.append(len(x))
        self.hidden += 1
        if not hasattr(self, "late"):
            self.register_buffer("late", x.mean(0))
        return self.layer(x) + 1e-3 * self.hidden + 1e-3 * self.late.mean()


@pytest.mark.parametrize("make", [ActNorm, Counts])
def test_the_check_of_the_validation_data_leaves_no_trace(make):
    start = make()
    modules = []
    for validation in (None, (X - 100, Y)):
        model = Model(copy.deepcopy(start), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        first = []

        def record(batch, logs, model=model, first=first):
            first.append(copy.deepcopy(model.module)) if not first else None

        callbacks = [LambdaCallback(on_train_batch_end=record)]
        model.fit(X, Y, batch_size=8, shuffle=False, validation_data=validation, callbacks=callbacks, verbose=0)
        modules.append(first[0])
    without, checked = modules
    assert same_weights(without, checked)
    for name in ("calls", "seen"):
        assert getattr(without, name, None) == getattr(checked, name, None)
    if make is Counts:
        assert torch.equal(without.hidden, checked.hidden)


def test_large_parameters_are_not_copied_for_the_check(monkeypatch):
    from easytorch._utils import train_mode

    monkeypatch.setattr(train_mode, "MAX_COPIED_VALUES", 5)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    net[0].requires_grad_(False)
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda self, **options: copied.append(self.numel()) or clone(self, **options)
    )
    with train_mode.preserve_module(net):
        pass
    assert max(copied) <= 5
    with (
        pytest.warns(UserWarning, match="check of the validation data has changed '0.weight'"),
        train_mode.preserve_module(net),
    ):
        net[0].weight.detach().add_(1)


def test_train_on_batch_in_a_callback_does_not_disturb_the_epoch():
    def run(*callbacks):
        torch.manual_seed(1)
        model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"], lr=0.0)
        actions = [callback(model) for callback in callbacks]
        return model.fit(X, Y, batch_size=8, callbacks=actions, verbose=0)

    def foreign(model):
        def step(batch, logs):
            assert model.train_on_batch(X + 100, Y)["loss"] > 1

        return LambdaCallback(on_train_batch_end=step)

    plain, disturbed = run(), run(foreign)
    assert disturbed["loss"] == pytest.approx(plain["loss"])
    assert disturbed["accuracy"] == plain["accuracy"]


def test_the_returned_history_does_not_grow_with_a_later_fit():
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy")
    first = model.fit(X, Y, epochs=2, verbose=0)
    second = model.fit(X, Y, epochs=1, verbose=0)
    assert (len(first["loss"]), len(second["loss"]), len(model.history["loss"])) == (2, 3, 3)
    assert first.epoch == [0, 1]
    assert first.params["epochs"] == 2
    assert first.model is model


# Gradients


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_without_an_optimizer_neither_pile_up_nor_count_for_clipping(steps):
    net, plain = make_net(), make_net()
    model = Model(net, device="cpu").compile(
        torch.optim.SGD(net[2].parameters(), lr=0.1),
        "cross_entropy",
        clip_grad_norm=0.05,
        gradient_accumulation_steps=steps,
    )
    with pytest.warns(
        UserWarning, match=r"not trained: no optimizer has '0.weight', '0.bias'.*requires_grad_\(False\)"
    ):
        model.fit(X, Y, epochs=3, batch_size=8 // steps, shuffle=False, verbose=0)
    optimizer = torch.optim.SGD(plain[2].parameters(), lr=0.1)
    for _ in range(3):
        for i in range(0, 32, 8):
            plain.zero_grad()
            nn.functional.cross_entropy(plain(X[i : i + 8]), Y[i : i + 8]).backward()
            nn.utils.clip_grad_norm_(plain[2].parameters(), 0.05)
            optimizer.step()
    assert torch.allclose(net[2].weight, plain[2].weight, atol=1e-7)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_parameters_that_are_not_used_are_reported_once_by_name():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.forgotten = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)

    model = Model(Unused(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.warns(UserWarning, match="'forgotten.weight', 'forgotten.bias' got no gradient") as caught:
        model.fit(X, Y, epochs=2, verbose=0)
    assert len(caught) == 1
    model.module.forgotten.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, Y, verbose=0)


def test_parameters_that_were_frozen_are_not_reported_as_unused():
    x, y = torch.randn(24, 4), torch.arange(24) % 3
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model = Model(net, device="cpu").compile({"0": "sgd", "1": "sgd"}, "cross_entropy", update_every={"0": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Thawed after the window in which its optimizer would have stepped first.
        model.fit(x, y, batch_size=8, epochs=2, callbacks=[Freeze("0", until=1)], verbose=0)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.layer(self.embedding(tokens))


TOKENS = torch.randint(20, (32, 5))


def test_values_of_sparse_gradients_are_clipped():
    net, dense = Sparse(), Sparse()
    dense.load_state_dict(net.state_dict())
    dense.embedding.sparse = False
    for module in (net, dense):
        model = Model(module, device="cpu").compile("sgd", "cross_entropy", lr=1.0, clip_grad_value=0.002)
        model.fit(TOKENS, Y, batch_size=8, shuffle=False, verbose=0)
    assert torch.allclose(net.embedding.weight, dense.embedding.weight, atol=1e-6)


def test_an_optimizer_that_cannot_use_sparse_gradients_is_named():
    model = Model(Sparse(), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(TypeError, match=r"Adam cannot use sparse gradients, such as that of 'embedding'.*'adagrad'"):
        model.fit(TOKENS, Y, verbose=0)
    model = Model(nn.Linear(4, 3), device="cpu").compile("sparse_adam", "cross_entropy")
    with pytest.raises(TypeError, match=r"SparseAdam is only for sparse gradients.*'adam'"):
        model.fit(X, Y, verbose=0)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    def forward(self, z):
        return z @ self.w


def test_complex_numbers_have_an_absolute_error_and_clipped_gradients():
    z, target = torch.randn(32, 4, dtype=torch.cfloat), torch.randn(32, 3, dtype=torch.cfloat)
    net = Complex()
    expected = nn.functional.l1_loss(net(z), target).item()
    model = Model(net, device="cpu").compile("sgd", "mae", metrics=["mae", "mse"], lr=1.0, clip_grad_value=1e-3)
    scores = model.evaluate(z, target, verbose=0)
    assert scores["loss"] == scores["mae"] == pytest.approx(expected, rel=1e-5)
    before = net.w.detach().clone()
    model.fit(z, target, batch_size=32, verbose=0)
    change = torch.view_as_real((net.w - before).detach()).abs()
    assert 0 < change.max() <= 1e-3 + 1e-6
    with pytest.raises(TypeError, match=r"torch has no MSELoss\(\) for complex numbers.*'mae'"):
        Model(Complex(), device="cpu").compile("sgd", "mse").fit(z, target, verbose=0)
