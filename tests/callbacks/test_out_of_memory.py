"""SplitOnOutOfMemory: an update that does not fit is repeated with smaller batches, and is equal."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import BackupAndRestore, Callback, SplitOnOutOfMemory
from easytorch.callbacks.out_of_memory import split_batch
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import run_ranks

X, Y = blobs(60)
WEIGHTS = torch.rand(60, generator=torch.Generator().manual_seed(2)) + 0.5


class FailInBackward(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 MiB.")


class Limited(nn.Module):
    """Has memory for ``limit`` samples in the forward pass, and for ``backward_limit`` in the backward pass."""

    def __init__(self, limit=10**9, backward_limit=10**9, *layers):
        super().__init__()
        self.limit, self.backward_limit, self.sizes = limit, backward_limit, []
        self.layers = nn.Sequential(nn.Linear(8, 16), *layers, nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x):
        y = self.layers(x)
        if self.training:
            self.sizes.append(len(x))
            if len(x) > self.limit:
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 MiB.")
            if len(x) > self.backward_limit:
                y = FailInBackward.apply(y)
        return y


def train(net, data=(X, Y), epochs=2, callbacks=(), loss="cross_entropy", **options):
    fit: dict[str, object] = {name: options.pop(name) for name in ("class_weight", "batch_size") if name in options}
    torch.manual_seed(1)
    model = Model(net, device="cpu").compile(options.pop("optimizer", "sgd"), loss, ["accuracy"], lr=0.1, **options)
    if isinstance(data, tuple):
        x, y, weight = (*data, None)[:3]
        fit = {"batch_size": 16, "y": y, "sample_weight": weight, **fit}
    else:
        x = data
    model.fit(x, epochs=epochs, callbacks=list(callbacks), verbose=0, **fit)
    return model


def assert_close(split, whole, tolerance=1e-6):
    for name, value in whole.module.state_dict().items():
        assert torch.allclose(split.module.state_dict()[name], value, atol=tolerance, rtol=tolerance), name
    for name, values in whole.history.history.items():
        assert split.history[name] == pytest.approx(values, abs=max(tolerance, 1e-5)), name


def ignored():
    labels = Y.clone()
    labels[::3] = -100
    return X, labels


CASES = {
    "mean": {},
    "adam with clipping": {"optimizer": "adam", "clip_grad_norm": 0.1},
    "accumulation": {"gradient_accumulation_steps": 3, "batch_size": 10},
    "sample weights": {"data": (X, Y, WEIGHTS)},
    "class weights": {"class_weight": {0: 2.0, 1: 0.5, 2: 1.0}},
    "ignored labels": {"data": ignored()},
    "sum": {"loss": nn.CrossEntropyLoss(reduction="sum"), "clip_grad_norm": 1.0},
    "weighted loss": {"loss": nn.CrossEntropyLoss(weight=torch.tensor([2.0, 1.0, 0.5]))},
    "bf16": {"precision": "bf16", "tolerance": 2e-2},
}


@pytest.mark.filterwarnings("ignore:Update 1 ran out of memory")
@pytest.mark.parametrize("limits", [(7, 99), (99, 4)], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_a_split_update_equals_the_whole_one(case, limits):
    options = dict(CASES[case])
    tolerance = options.pop("tolerance", 1e-6)
    net = Limited()
    small = copy.deepcopy(net)
    small.limit, small.backward_limit = limits
    whole = train(net, **options)
    split = train(small, callbacks=[SplitOnOutOfMemory()], **options)
    assert max(small.sizes[-5:]) <= min(limits)
    assert_close(split, whole, tolerance)


def test_a_loss_that_returns_a_count_is_divided_by_all_counts():
    class Counted(Model):
        def train_step(self, batch):
            x, y = batch
            losses = nn.functional.cross_entropy(self(x), y, reduction="none")
            return {"loss": (losses[y != 0].sum(), (y != 0).sum())}

    models = []
    net = Limited()
    for size in (None, 4):
        model = Counted(copy.deepcopy(net), device="cpu").compile("sgd", None, lr=0.1)
        callback = SplitOnOutOfMemory(batch_size=size)
        model.fit(X, Y, batch_size=16, shuffle=False, callbacks=[callback], verbose=0)
        assert max(model.module.sizes) == (size or 16)
        models.append(model)
    assert_close(*models)


@pytest.mark.parametrize("limits", [(7, 99), (99, 7)], ids=["forward", "backward"])
def test_a_failed_attempt_leaves_no_trace(limits):
    net = Limited(*limits, nn.BatchNorm1d(16), nn.Dropout(0.5))
    expected = train(copy.deepcopy(net), callbacks=[SplitOnOutOfMemory(batch_size=4)])
    with pytest.warns(UserWarning, match="BatchNorm1d normalizes over the smaller batches"):
        model = train(net, callbacks=[SplitOnOutOfMemory()])
    for name, value in expected.module.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], value), name
    assert dict(model.history.history) == dict(expected.history.history)


def test_one_warning_names_the_size_that_fits_and_the_settings():
    net = Limited(5)
    callback = SplitOnOutOfMemory()
    with pytest.warns(UserWarning, match="out of memory") as caught:
        train(net, callbacks=[callback], epochs=3)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(
        "Update 1 ran out of memory with batches of 16 samples. It was repeated with batches of 4"
    )
    assert "use batch_size=4 in the data and compile(..., gradient_accumulation_steps=4)" in message
    assert callback.batch_size == 4
    assert net.sizes[:3] == [16, 8, 4]
    assert max(net.sizes[3:]) == 4  # later updates are not tried in full


def test_only_the_batches_that_are_too_large_are_split():
    net = Limited()
    batches = [(X[:6], Y[:6]), (X[6:17], Y[6:17]), (X[17:20], Y[17:20])]
    train(net, data=batches, epochs=1, callbacks=[SplitOnOutOfMemory(batch_size=8)])
    assert net.sizes == [6, 6, 5, 3]


def test_a_resumed_run_keeps_the_size_and_ends_equal_bit_for_bit(tmp_path):
    def run(folder, crash=None):
        torch.manual_seed(0)
        net = Limited(5, 99, nn.Dropout(0.3))
        callbacks = [SplitOnOutOfMemory(), BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)]
        try:
            train(net, callbacks=[*callbacks, *([CrashAfter(crash)] if crash else [])])
        except SimulatedCrash:
            return None
        return net

    with pytest.warns(UserWarning, match="out of memory"):
        expected = run(tmp_path / "a")
    with pytest.warns(UserWarning, match="out of memory"):
        run(tmp_path / "b", crash=3)
    resumed = run(tmp_path / "b")
    assert resumed.sizes[-1] == expected.sizes[-1] == 4
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_one_sample_that_does_not_fit_is_an_error_with_advice():
    net = Limited(0)
    with pytest.raises(torch.OutOfMemoryError, match=r"batch of one sample.*precision='bf16'.*Tried to allocate"):
        train(net, callbacks=[SplitOnOutOfMemory()])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_error_in_the_optimizer_is_not_repeated():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise torch.OutOfMemoryError("out of memory in the optimizer")

    calls = []

    class Count(Callback):
        def on_before_optimizer_step(self):
            calls.append(1)

    model = Model(Limited(), device="cpu").compile(lambda p: Failing(p, lr=0.1), "cross_entropy")
    with pytest.raises(torch.OutOfMemoryError, match="in the optimizer"):
        model.fit(X, Y, callbacks=[SplitOnOutOfMemory(), Count()], verbose=0)
    assert calls == [1]


class Steps(Model):
    """Has memory for ``limit`` samples in the step of ``poor``."""

    poor, limit = "", 8

    def first_step(self, batch):
        return self.step_of("first", batch)

    def second_step(self, batch):
        return self.step_of("second", batch)

    def step_of(self, name, batch):
        if name == self.poor and len(batch[0]) > self.limit:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 MiB.")
        return {"loss": nn.functional.cross_entropy(self(batch[0]), batch[1])}


def train_steps(poor, callback):
    torch.manual_seed(1)
    module = nn.Sequential(OrderedDict(first=nn.Linear(8, 16), second=nn.Linear(16, 3)))
    model = Steps(module, device="cpu").compile({"first": "sgd", "second": "sgd"}, lr=0.1)
    model.poor = poor
    model.fit(X, Y, batch_size=16, shuffle=False, callbacks=[callback], verbose=0)
    return model


def test_the_first_of_several_steps_can_be_repeated():
    with pytest.warns(UserWarning, match="was repeated with batches of 8"):
        split = train_steps("first", SplitOnOutOfMemory())
    assert_close(split, train_steps("", SplitOnOutOfMemory()))


def test_an_update_after_the_step_of_an_optimizer_is_not_repeated():
    with pytest.raises(torch.OutOfMemoryError, match=r"after the optimizer 'first' had stepped.*\(batch_size=8\)"):
        train_steps("second", SplitOnOutOfMemory())
    assert_close(train_steps("second", SplitOnOutOfMemory(8)), train_steps("", SplitOnOutOfMemory()))


@pytest.mark.parametrize("optimizer", ["lbfgs", "sam"])
def test_only_a_step_that_changed_no_weights_is_repeated(optimizer):
    class FailsLater(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            if self.training and self.calls == 2:
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 MiB.")
            return super().forward(x)

    torch.manual_seed(1)
    net = FailsLater(8, 3)
    plain = nn.Linear(8, 3)
    plain.load_state_dict(net.state_dict())
    model = Model(net, device="cpu").compile(optimizer, "cross_entropy")
    if optimizer == "lbfgs":
        with pytest.raises(torch.OutOfMemoryError, match="while LBFGS stepped"):
            model.fit(X, Y, batch_size=60, callbacks=[SplitOnOutOfMemory()], verbose=0)
        return
    with pytest.warns(UserWarning, match="was repeated with batches of 30"):
        model.fit(X, Y, batch_size=60, callbacks=[SplitOnOutOfMemory()], verbose=0)
    expected = Model(plain, device="cpu").compile(optimizer, "cross_entropy")
    expected.fit(X, Y, batch_size=60, verbose=0)
    assert_close(model, expected)


def test_a_failed_attempt_counts_no_labels_of_each_loss():
    class Counted(Model):
        limit, calls = 99, 0

        def train_step(self, batch):
            x, y = batch
            self.calls += 1
            if self.calls == 2 and len(x) > self.limit:
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 MiB.")
            losses = nn.functional.cross_entropy(self(x), y, reduction="none")
            return {f"{name}_loss": (losses.sum(), len(x)) for name in ("0", "1")}

    models = []
    for limit in (99, 8):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
        model = Counted(net, device="cpu").compile(
            {"0": "sgd", "1": "sgd"}, None, lr=0.1, gradient_accumulation_steps=2
        )
        model.limit = limit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, Y, batch_size=16, shuffle=False, callbacks=[SplitOnOutOfMemory()], verbose=0)
        models.append(model)
    assert_close(*models)


def test_a_batch_that_cannot_be_divided_is_an_error():
    net = Limited(2)
    batches = [{"x": X[:6], "labels": Y[:6], "other": torch.ones(5)}]
    model = Model(net, device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(torch.OutOfMemoryError, match="cannot divide it, because its 5 rows are not its 6 samples"):
        model.fit(batches, callbacks=[SplitOnOutOfMemory()], verbose=0)


def test_a_custom_update_is_refused():
    class Custom(Model):
        def update(self, window):
            super().update(window)

    model = Custom(Limited(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=r"cannot repeat a custom update\(\)"):
        model.fit(X, Y, callbacks=[SplitOnOutOfMemory()], verbose=0)


def test_batches_are_divided_by_samples():
    x, y = torch.arange(12).view(6, 2), np.arange(6)
    batch = ({"a": x, "b": [str(i) for i in range(6)], "scale": 2.0}, (y, None))
    first, second = split_batch(batch, 6, 2)
    assert torch.equal(second[0]["a"], x[3:])
    assert first[0]["b"] == ["0", "1", "2"]
    assert second[0]["scale"] == 2.0
    assert second[1][0].tolist() == [3, 4, 5]
    assert second[1][1] is None
    assert [len(part[0]) for part in split_batch((x, y), 6, 4)] == [2, 1, 1, 2]


@pytest.mark.parametrize(
    "batch",
    [([torch.ones(3, 2)] * 3, torch.ones(3)), ((torch.ones(3, 1),) * 3, torch.ones(3)), (object(), torch.ones(3))],
    ids=["list", "tuple", "object"],
)
def test_what_may_be_samples_or_inputs_is_not_divided(batch):
    with pytest.raises(TypeError):
        split_batch(batch, 3, 2)


def fit_in_two_processes():
    model = Model(Limited(), device="cpu").compile("sgd", "cross_entropy", strategy="ddp")
    with pytest.raises(ValueError, match=r"works in one process.*gradient_accumulation_steps=2"):
        model.fit(X, Y, callbacks=[SplitOnOutOfMemory()], verbose=0)


@pytest.mark.distributed
def test_several_processes_are_refused():
    run_ranks(fit_in_two_processes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA")
def test_a_gpu_without_memory_trains_with_smaller_batches():
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    width, size = 1024, 16384
    x, y = torch.randn(size, 8), torch.arange(size) % 3
    layers = [layer for _ in range(8) for layer in (nn.Linear(width, width), nn.ReLU())]
    net = nn.Sequential(nn.Linear(8, width), *layers, nn.Linear(width, 3))
    callback = SplitOnOutOfMemory()
    torch.cuda.set_per_process_memory_fraction(700 * 2**20 / total)
    try:
        model = Model(net, device="cuda").compile("sgd", "cross_entropy")
        with pytest.warns(UserWarning, match="ran out of memory with batches of 16384 samples"):
            model.fit(x, y, batch_size=size, callbacks=[callback], verbose=0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert callback.batch_size < size
    assert model.state.step == 1
