"""Programs that would train something else than intended are reported before training."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import easytorch
from easytorch import Model, callbacks
from easytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint
from tests.errors.common import X, Y, compiled, fit, refused
from tests.loops import mlp

# Programs that would train something else than intended


class Hidden(nn.Module):
    """A network with a layer that torch does not register."""

    def __init__(self, store):
        super().__init__()
        self.layers, self.head = store(nn.Linear(4, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (lambda layer: [layer], "Hidden.layers is a plain list of layers.*nn.ModuleList"),
        (lambda layer: (layer, None), "plain tuple"),
        (lambda layer: {"a": layer}, "plain dict.*nn.ModuleDict"),
    ],
    ids=["list", "tuple", "dict"],
)
def test_unregistered_layers_warn(store, message):
    with pytest.warns(UserWarning, match=message):
        Model(Hidden(store))


@pytest.mark.parametrize("store", [lambda layer: [layer.requires_grad_(False)], lambda layer: nn.ModuleList([layer])])
def test_registered_or_frozen_layers_do_not_warn(store):
    Model(Hidden(store))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training_step", r"Own\.training_step is never called\. Use train_step\(self, batch\)"),
        ("configure_optimizers", r"Use compile\("),
        ("trainstep", r"Own\.trainstep is never called.*Did you mean 'train_step'"),
    ],
)
def test_a_step_that_is_never_called_warns(name, message):
    with pytest.warns(UserWarning, match=message):
        type("Own", (Model,), {name: lambda self, batch: None})


def test_custom_methods_do_not_warn():
    type(
        "Own",
        (Model,),
        {
            "compute_loss": lambda self, x: None,
            "reconstruct": lambda self, x: None,
            "_train_steps": lambda self: None,
            "decode": lambda self: None,
        },
    )


@pytest.mark.parametrize("step", [lambda self, x, y: None, lambda self: None, lambda self, batch, number: None])
def test_a_step_takes_only_the_batch(step):
    with pytest.raises(TypeError, match=r"the batch as its only argument\. Define it as def train_step\(self, batch\)"):
        type("Own", (Model,), {"train_step": step})


def test_a_step_that_needs_gradients_must_override_test_step():
    class Penalized(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            x = x.requires_grad_()
            loss = nn.functional.cross_entropy(self(x), y)
            return {"loss": loss + torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()}

    model = Penalized(mlp()).compile("adam", "cross_entropy")
    model.fit(X, Y, verbose=0)
    for run in (
        lambda: model.evaluate(X, Y, verbose=0),
        lambda: model.test_on_batch(X.clone(), Y),
        lambda: model.fit(X, Y, validation_data=(X, Y), verbose=0),
    ):
        refused(run, "without gradients", "Override test_step", kind=RuntimeError)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end", "on_train_begin", "on_batch_end"])
def test_a_hook_with_wrong_arguments_is_refused_before_training(hook):
    net = mlp()
    before = net[0].weight.clone()
    own = type("Own", (Callback,), {hook: lambda self: None})()
    message = refused(
        lambda: fit(Model(net).compile("adam", "cross_entropy"), X, Y, callbacks=[own]), f"Own.{hook} takes"
    )
    assert f"def {hook}(self, " in message
    assert torch.equal(net[0].weight, before)


def test_a_function_with_wrong_arguments_gets_a_fix():
    own = LambdaCallback(on_epoch_end=lambda logs: None)
    refused(
        lambda: fit(compiled(), X, Y, callbacks=[own]), r"is called with \(epoch, logs\)", "lambda epoch, logs: ..."
    )


def test_callback_names_of_other_libraries_get_a_hint():
    refused(lambda: callbacks.EarlyStoping, "Did you mean 'EarlyStopping'", kind=AttributeError)
    refused(lambda: callbacks.SwapEMAWeights, r"Use EMA\(\)", kind=AttributeError)


def test_probabilities_need_a_loss_that_defines_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = mlp()

        def forward(self, x):
            return self.a(x), x

    model = Model(Two()).compile("adam", ["cross_entropy", "mse"])
    refused(
        lambda: model.predict_proba(X, verbose=0),
        "the output 'output_2' to probabilities, because its loss, MSELoss",
        kind=ValueError,
    )
    model.compile("adam", "cross_entropy")
    refused(lambda: model.predict_proba(X, verbose=0), "the module returned", "predict_step", kind=ValueError)
    refused(
        lambda: Model(mlp()).predict_proba(X, verbose=0),
        r"compile\(\) has no loss",
        r"Call compile\(\)",
        kind=ValueError,
    )


def test_a_complete_model_is_not_named_like_weights(tmp_path):
    for run in (
        lambda: compiled().save(tmp_path / "best.safetensors"),
        lambda: ModelCheckpoint(tmp_path / "best.safetensors", save_best_only=True),
    ):
        refused(run, "best.safetensors", "best.pt", "save_weights", kind=ValueError)
    assert not list(tmp_path.iterdir())
    ModelCheckpoint(tmp_path / "best.safetensors", save_weights_only=True)


def test_lr_for_an_optimizer_function_without_lr_is_refused():
    net = mlp()
    make = lambda parameters: torch.optim.SGD(parameters, 0.1)  # noqa: E731  # as people write it
    refused(lambda: Model(net).compile(make, "cross_entropy", lr=0.1), "takes no lr", kind=ValueError)


def test_a_model_in_a_model_is_refused():
    refused(lambda: Model(Model(mlp())), "It is a Model already", kind=TypeError)
    refused(lambda: Model(nn.Flatten), r"Create an object of the class first: Flatten\(\)", kind=TypeError)
    refused(lambda: Model([nn.Flatten()]), r"nn\.Sequential\(\*layers\)", kind=TypeError)


def test_single_samples_instead_of_batches_are_reported():
    refused(
        lambda: fit(compiled(), zip(X.numpy(), Y.numpy(), strict=True)),
        "single samples instead of batches",
        r"fit\(x, y\)",
    )


def test_a_dataset_without_a_length_is_refused():
    class Unsized(Dataset):
        def __getitem__(self, index):
            return X[index], Y[index]

    refused(lambda: fit(compiled(), Unsized()), "Unsized has no length", "__len__", kind=TypeError)


def test_a_special_file_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    refused(lambda: compiled().save(path), "not a regular file", kind=OSError)
    assert path.is_fifo()


def test_a_path_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(compiled(), X, Y, resume="~/run", callbacks=[ModelCheckpoint("~/best/{epoch}.pt")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "run"]


def test_a_metric_without_a_loss_names_the_fix():
    with pytest.raises(
        ValueError, match=r"compile\(\) got none.*'multiclass_accuracy'.*\{'loss': loss, 'accuracy': value\}"
    ):
        Model(nn.Linear(4, 3)).compile("adam", metrics=["accuracy"])


@pytest.mark.parametrize("url", ["sftp://host/run", "s4://bucket/run"])
def test_an_unknown_store_lists_file_urls(url):
    model = Model(nn.Linear(4, 3)).compile("adam", "mse")
    with pytest.raises(ValueError, match="file://, s3://, gs:// or memory://"):
        model.fit(torch.zeros(4, 4), torch.zeros(4, 3), resume=url, verbose=0)


def test_launch_without_a_main_guard_names_it(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match=r"if __name__ == '__main__': easytorch\.launch\(print"):
        easytorch.launch(print, processes=1)


def embedding_model():
    return Model(nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 2))).compile("sgd", "cross_entropy")


@pytest.mark.parametrize("rows", [{"text": ["good", "bad"], "label": [1, 0]}, {"text": "good", "label": 1}])
def test_rows_with_text_are_explained(rows):
    for call in (embedding_model().fit, embedding_model().predict):
        with pytest.raises(TypeError, match=r"entry 'text' is text, 'good'.*dataset\.select"):
            call(rows, verbose=0)


def test_text_in_predict_is_explained():
    with pytest.raises(TypeError, match=r"inputs of a batch are text, 'good'.*convert the words of a text"):
        embedding_model().predict(["good", "bad"], verbose=0)


def test_a_column_that_is_no_target_by_its_name_is_explained():
    data = [{"text": ["good", "bad"], "sentiment": torch.tensor([1, 0]), "input": torch.zeros(2, 3, dtype=torch.long)}]
    with pytest.raises(ValueError, match=r"entries are 'text', 'sentiment', 'input'.*'label'"):
        embedding_model().fit(data, verbose=0)
