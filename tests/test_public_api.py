"""Public names, arguments, and methods that subclasses may override."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import easytorch
from easytorch import Model

MODULES = ["easytorch", "easytorch.callbacks", "easytorch.data"]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_sorted_and_documented(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for name_in_all in module.__all__:
        value = getattr(module, name_in_all)
        assert name_in_all == "__version__" or inspect.getdoc(value), name_in_all


def test_dir_lists_public_names_only():
    assert dir(easytorch) == easytorch.__all__


def test_the_package_has_a_py_typed_file():
    assert (Path(easytorch.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (
            "compile",
            "optimizer loss metrics lr loss_weights clip_grad_norm clip_grad_value gradient_accumulation_steps precision",
        ),
        (
            "fit",
            "x y epochs batch_size validation_data validation_split validation_freq validation_steps steps_per_epoch "
            "class_weight sample_weight shuffle initial_epoch callbacks resume on_interrupt verbose",
        ),
        ("evaluate", "x y batch_size sample_weight steps callbacks verbose"),
        ("predict", "x batch_size steps to callbacks verbose"),
        ("train_on_batch", "x y sample_weight"),
        ("test_on_batch", "x y sample_weight"),
        ("predict_on_batch", "x"),
        ("save", "path"),
        ("load", "path"),
    ],
)
def test_a_method_has_the_promised_arguments(method, arguments):
    parameters = inspect.signature(getattr(Model, method)).parameters
    assert set(arguments.split()) <= set(parameters)


def test_every_method_of_the_loop_can_be_overridden():
    calls = []

    class CustomModel(Model):
        def train_epoch(self, feed):
            calls.append("train_epoch")
            return super().train_epoch(feed)

        def update(self, window):
            calls.append("update")
            super().update(window)

        def train_step(self, batch):
            calls.append("train_step")
            return super().train_step(batch)

        def test_epoch(self, loader, steps=None):
            calls.append("test_epoch")
            return super().test_epoch(loader, steps)

        def test_step(self, batch):
            calls.append("test_step")
            return super().test_step(batch)

        def predict_step(self, batch):
            calls.append("predict_step")
            return super().predict_step(batch)

    from tests.loops import blobs, mlp

    x, y = blobs(8)
    model = CustomModel(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(x, y, validation_data=(x, y), verbose=0)
    model.predict(x, verbose=0)
    assert set(calls) == {"train_epoch", "update", "train_step", "test_epoch", "test_step", "predict_step"}
