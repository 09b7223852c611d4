"""Files that the module itself can load: hooks, lazy layers, buffers that grow, and weights of older versions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint

torch.manual_seed(0)
X, Y = torch.randn(32, 8), torch.arange(32) % 3


def old_weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 3)))


def new_weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)))


def norm_without_count():
    return {key: value for key, value in nn.BatchNorm1d(8).state_dict().items() if "tracked" not in key}


def lazy_weights():
    lazy = nn.Sequential(nn.LazyLinear(3))
    lazy(X)
    return lazy.state_dict()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("weights", "make"),
    [
        (lambda: old_weight_norm().state_dict(), new_weight_norm),
        (norm_without_count, lambda: nn.BatchNorm1d(8)),
        (lazy_weights, lambda: nn.Sequential(nn.LazyLinear(3))),
    ],
    ids=["renamed by a hook", "BatchNorm without a count", "lazy"],
)
def test_weights_that_torch_loads_strictly_are_loaded(weights, make, tmp_path):
    content, plain = weights(), make()
    plain.load_state_dict(content)
    torch.save(content, tmp_path / "weights.pt")
    model = Model(make(), device="cpu").load_weights(tmp_path / "weights.pt")
    for value, expected in zip(model.module.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, expected)


def test_weights_of_another_module_are_still_refused(tmp_path):
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "weights.pt")
    for module in (nn.Linear(8, 3), nn.BatchNorm1d(3)):
        with pytest.raises(FileError, match="belongs to another module"):
            Model(module, device="cpu").load_weights(tmp_path / "weights.pt")


# What callbacks freeze


class Unfreeze(Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.model.module[0].requires_grad_(True)
            self.model.module[1].eval()


def run(folder, stop=None):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
    net[0].requires_grad_(False)
    model = Model(net, device="cpu").compile("adam", "cross_entropy", lr=0.01)

    def interrupt(batch, logs):
        if model.state.step == stop:
            import signal

            signal.raise_signal(signal.SIGINT)

    callbacks = [Unfreeze(), LambdaCallback(on_train_batch_end=interrupt)]
    options = {"callbacks": callbacks, "resume": folder, "on_interrupt": "return", "verbose": 0}
    model.fit(X, Y, epochs=5, batch_size=8, **options)
    return model


@pytest.mark.parametrize("stop", [3, 8, 10, 13, 18])
def test_a_resumed_run_is_frozen_and_unfrozen_as_it_was(stop, tmp_path):
    expected = run(tmp_path / "undisturbed")
    run(tmp_path / "stopped", stop)
    resumed = run(tmp_path / "stopped")
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, expected.module.state_dict()[name]), name
    assert resumed.module[0].weight.requires_grad


# Names of checkpoints that repeat


class Worse(Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            with torch.no_grad():
                for parameter in self.model.module.parameters():
                    parameter.add_(5 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", ["model.pt", "{val_accuracy:.0f}.pt"])
def test_a_worse_model_does_not_replace_the_best_file(name, tmp_path):
    torch.manual_seed(1)
    best = ModelCheckpoint(tmp_path / name, keep_best=1)
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"], lr=0.1)
    model.fit(X, Y, epochs=5, validation_data=(X, Y), callbacks=[Worse(), best], verbose=0)
    loaded = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy").load(best.best_path)
    assert loaded.evaluate(X, Y, verbose=0)["loss"] == pytest.approx(best.best, rel=1e-5)
    assert best.best == min(model.history["val_loss"])
    assert len(list(tmp_path.iterdir())) <= 2


def test_two_checkpoints_with_one_name_are_refused(tmp_path):
    callbacks = [
        ModelCheckpoint(tmp_path / "{epoch}.pt", keep=1),
        ModelCheckpoint(tmp_path / "{epoch}.pt", "val_loss", mode="max", keep_best=1),
    ]
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match="Two ModelCheckpoint callbacks have filepath"):
        model.fit(X, Y, epochs=2, validation_data=(X, Y), callbacks=callbacks, verbose=0)
    assert model.state.step == 0
