"""Non-finite losses: training stops before the update and reports the origin."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import Callback, TerminateOnNaN
from easytorch.checkpoint import files
from tests.loops import blobs, mlp, same_weights, twins
from tests.scripted import raising

X, Y = blobs(50)


class Log(nn.Module):
    def forward(self, x):
        return x.log()


class Sometimes(nn.Module):
    """Divides by zero for one draw of dropout in a while."""

    def __init__(self):
        super().__init__()
        self.net, self.drop = mlp(), nn.Dropout(0.5)

    def forward(self, x):
        mask = self.drop(torch.ones(len(x), 6))
        return self.net(x) / mask.sum(1, keepdim=True)


def stopped(net, x=X, y=Y, loss="cross_entropy", message="The loss is not finite", callbacks=(), **options):
    callback = TerminateOnNaN(**options)
    model = Model(net, device="cpu").compile("sgd", loss, metrics=["multiclass_accuracy"], lr=0.1)
    loader = DataLoader(TensorDataset(x, y), 8, shuffle=True)
    with pytest.warns(UserWarning, match=message):
        model.fit(loader, 5, callbacks=[callback, *callbacks], verbose=0)
    return model, callback.report


def test_nan_in_the_data_is_found_with_its_sample():
    x = X.clone()
    x[37, 2] = float("nan")
    _, report = stopped(mlp(), x)
    assert "The inputs are not finite" in report
    assert "First module with an output that is not finite: 0, Linear" in report
    assert "samples of the dataset: 37" in report


def test_the_first_non_finite_layer_is_named():
    _, report = stopped(nn.Sequential(nn.Linear(8, 16), Log(), nn.Linear(16, 3)))
    assert "First module with an output that is not finite: 1, Log" in report
    assert "inputs are not finite" not in report


def test_a_loss_that_is_the_only_origin_is_reported():
    def loss(y_pred, y):
        return nn.functional.cross_entropy(y_pred, y) / (y.sum() * 0)

    _, report = stopped(mlp(), loss=loss)
    assert "Term of the loss: loss" in report
    assert "The output of every module is finite" in report


def test_the_non_finite_term_is_named():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x):
            return {"a": self.a(x), "b": self.b(x).log()}

    model = Model(TwoHeads(), device="cpu").compile("sgd", {"a": "cross_entropy", "b": "mse"})
    callback = TerminateOnNaN()
    with pytest.warns(UserWarning, match="The loss is not finite in update 1"):
        model.fit(X, {"a": Y, "b": X[:, :1]}, callbacks=[callback], verbose=0)
    assert "Term of the loss: loss, b_loss" in callback.report


def test_the_weights_are_from_before_the_update():
    x = X.clone()
    x[:] = float("inf")
    before, net = twins(mlp())
    model, _ = stopped(net, x)
    assert same_weights(model.module, before)
    assert model.stop_training


def test_a_random_failure_is_found_by_the_same_random_numbers():
    torch.manual_seed(0)
    _, report = stopped(Sometimes())
    assert "First module with an output that is not finite: the module itself, Sometimes" in report
    assert "Rows of the batch" in report


def test_raise_error_raises_the_report():
    x = X.clone()
    x[3] = float("nan")
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(FloatingPointError, match="The inputs are not finite"):
        model.fit(DataLoader(TensorDataset(x, Y), 32), callbacks=[TerminateOnNaN(raise_error=True)], verbose=0)


def test_the_file_reproduces_the_loss(tmp_path):
    x = X.clone()
    x[37] = float("nan")
    path = tmp_path / "nan.pt"
    net = mlp()
    _, report = stopped(net, x, path=path)
    assert str(path) in report
    content = files.read(path)
    inputs, _ = content["window"][0]
    again = mlp()
    again.load_state_dict(content["module"])
    assert not again(inputs).isfinite().all()


def test_every_batch_of_a_window_is_checked():
    x = X.clone()
    x[0] = float("nan")
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", gradient_accumulation_steps=3)
    with pytest.warns(UserWarning, match="The loss is not finite in update 1"):
        model.fit(DataLoader(TensorDataset(x, Y), 8), callbacks=[TerminateOnNaN()], verbose=0)
    assert model.state.step == 1


def test_checks_do_not_change_the_training():
    plain, watched = twins(Sometimes().net)
    for net, callbacks in ((plain, []), (watched, [TerminateOnNaN()])):
        torch.manual_seed(0)
        model = Model(net, device="cpu").compile("sgd", "cross_entropy")
        model.fit(DataLoader(TensorDataset(X, Y), 8, shuffle=True), 2, callbacks=callbacks, verbose=0)
    assert same_weights(plain, watched)


def test_the_device_skips_updates_until_the_host_checks():
    """Fused optimizers on a CPU skip updates as on an accelerator."""

    class AsOnAnAccelerator(TerminateOnNaN):
        CHECK_INTERVAL = 4

        def on_train_begin(self, logs=None):
            super().on_train_begin(logs)
            self._checks_on_device = True

    class Weights(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append([value.clone() for value in self.model.module.parameters()])

    x = X.clone()
    x[8:16] = float("nan")  # the second batch
    callback, weights = AsOnAnAccelerator(), Weights()
    fused = functools.partial(torch.optim.SGD, lr=0.1, fused=True)
    model = Model(mlp(), device="cpu").compile(fused, "cross_entropy")
    with pytest.warns(UserWarning, match="The inputs are not finite"):
        model.fit(DataLoader(TensorDataset(x, Y), 8), callbacks=[callback, weights], verbose=0)
    assert all(torch.equal(a, b) for a, b in zip(weights.seen[0], weights.seen[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights.seen[1], weights.seen[2], strict=True))
    assert all(value.isfinite().all() for value in model.module.parameters())
    assert len(weights.seen) == 4
    assert not hasattr(model.optimizer, "found_inf")


def test_a_non_finite_validation_loss_is_one_warning():
    x, y = X.clone(), Y
    x[0] = float("nan")
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.warns(
        UserWarning, match="The validation loss of epoch 1 is nan, but the training loss is finite"
    ) as warned:
        model.fit(X, Y, epochs=3, validation_data=DataLoader(TensorDataset(x, y), 32), verbose=0)
    assert len(warned) == 1


def test_a_failed_file_does_not_lose_the_report(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(28, f"Cannot write {path}: the disk is full.")

    monkeypatch.setattr(files, "write", fail)
    x = X.clone()
    x[37] = float("nan")
    model, report = stopped(mlp(), x, path=tmp_path / "nan.pt")
    assert "samples of the dataset: 37" in report
    assert "nan.pt" in report
    assert model.stop_training


def test_an_earlier_error_of_another_callback_is_raised():
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(RuntimeError, match=r"^on_train_begin failed$"):
        model.fit(X, Y, callbacks=[raising("on_train_begin"), TerminateOnNaN()], verbose=0)
