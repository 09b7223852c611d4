"""Every public flag: a text such as "no" is an error, and no True."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import nn

import easytorch
from easytorch import Model
from easytorch.integrations import sklearn
from tests.loops import blobs

X, Y = blobs(20)
FLAGS = ("bool", "bool | None")
PACKAGES = ["", "callbacks", "data", "optimizers", "integrations.sklearn", "reports", "tuning", "checks"]
# What the loop calls, what scikit-learn defines, results that only easytorch creates, base classes,
# and trackers, whose flag is that of their base class.
NOT_FOR_USERS = {
    "accumulating", "watch_losses", "auto", "of", "get_params", "LearningRates", "Samples", "Comparison",
    "Measurement", "Speeds", "Scores", "Averaging", "Tracker", "MLflowLogger", "WandbLogger", "TrackioLogger",
}  # fmt: skip
ARGUMENTS = {
    "BackupAndRestore": ("run",), "CSVLogger": ("log.csv",), "ModelCheckpoint": ("model.pt",), "SAM": ([torch.ones(1)],),
    "TensorBoard": ("runs",),
}  # fmt: skip


def model():
    return Model(nn.Linear(X.shape[1], 3), device="cpu").compile("sgd", "cross_entropy")


def fitted():
    return model().fit(X, Y, verbose=0)


# How to call a method.
OBJECTS = {
    "Model": model,
    "History": fitted,
    "Report": lambda: model().report(X, Y),
    "CheckReport": lambda: model().check(X, Y),
    "BatchSizes": lambda: model().find_batch_size(X, Y, max_size=8, verbose=0),
    "BackupAndRestore": lambda: easytorch.BackupAndRestore("run"),
    "RayReport": lambda: easytorch.BackupAndRestore("run"),
}
METHOD_ARGUMENTS = {
    "save": (), "plot": (), "load_weights": ("model.pt",), "export": ("model.onnx",), "push_to_hub": ("user/name",),
    "predict": (X,), "predict_classes": (X,), "__call__": (X,), "split": (X, Y), "as_loader": (X, Y), "targets_of": ([],),
    "show_internal_frames": (),
}  # fmt: skip


def flags_of(function):
    for parameter in inspect.signature(function).parameters.values():
        if str(parameter.annotation) in FLAGS:
            yield parameter.name


def public_flags():
    """Yield an id, the object, the name of the method or None, and the flag, for each public flag."""
    seen = set()
    for package in PACKAGES:
        module = importlib.import_module(f"easytorch.{package}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) in seen or name in NOT_FOR_USERS:
                continue
            seen.add(id(value))
            if inspect.isfunction(value):
                yield from ((f"{name}({flag})", value, None, flag) for flag in flags_of(value))
            if not inspect.isclass(value):
                continue
            for method in ["__init__", "__call__", *(key for key in dir(value) if not key.startswith("_"))]:
                function = inspect.getattr_static(value, method, None)
                is_ours = inspect.isfunction(function) and function.__module__.startswith("easytorch")
                if is_ours and method not in NOT_FOR_USERS and function.__qualname__.startswith(name):
                    yield from ((f"{name}.{method}({flag})", value, method, flag) for flag in flags_of(function))


CASES = {case: rest for case, *rest in public_flags()}


def test_the_flags_of_the_main_methods_are_found():
    names = {"Model.predict(targets)", "Model.compile(channels_last)", "split(stratify)", "CSVLogger.__init__(append)"}
    assert names <= set(CASES)
    assert len(CASES) > 40


@pytest.mark.parametrize("case", CASES)
def test_text_is_no_flag(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, method, flag = CASES[case]
    name = value.__name__
    if method is None:
        call, arguments = value, METHOD_ARGUMENTS[name]
    elif issubclass(value, sklearn.BaseEstimator):
        call, arguments = lambda **flags: value(**flags).fit(X.numpy(), Y.numpy()), ()
    elif method == "__init__":
        call, arguments = value, ARGUMENTS.get(name, ())
    else:
        call = getattr(OBJECTS[name](), method)
        arguments = METHOD_ARGUMENTS.get(method, (X, Y) if method != "compile" else ())
    with pytest.raises((TypeError, ValueError), match=f"{flag} must be True or False, received 'no'"):
        call(*arguments, **{flag: "no"})
