"""Public names, arguments, and methods that subclasses may override."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from pathlib import Path

import pytest

import easytorch
from easytorch import Model

MODULES = ["easytorch", "easytorch.callbacks", "easytorch.data"]
OTHERS = [
    "easytorch.checks",
    "easytorch.integrations.sklearn",
    "easytorch.losses",
    "easytorch.metrics",
    "easytorch.optimizers",
    "easytorch.reports",
    "easytorch.scripts",
    "easytorch.tuning",
    "easytorch.typing",
]
# Parameters that may be anything, by name, and why.
MAY_BE_ANYTHING = {
    "logs": "subclasses of Callback override hooks with other annotations",
    "batch": "the batch of a loader, in any structure",
    "by": "of Model.report: columns in a dict or a frame, or functions",
    "x": "of Model.__call__: whatever the module takes",
    "y_pred": "the outputs of a module, in any structure",
    "y": "of a metric: the targets, in any structure",
    "sample_weight": "of a metric: weights, in the structure of the targets",
    "loss": "of Strategy.backward: a scalar, or a pair",
    "weight": "of Strategy.backward: a number or a tensor",
    "args": "of launch: arguments of a function of the user",
    "options": "arguments that are passed on",
    "trial": "a class of Optuna, which is not a dependency",
}
# Results whose structure is that of the outputs of a module or of targets, or whose class is of an optional dependency.
MAY_RETURN_ANYTHING = (
    "Model.predict", "Model.predict_classes", "Model.predict_proba", "Model.predict_on_batch", "Model.predict_step",
    "Model.__call__", "Model.summary", "Strategy.run", "Strategy.run_locally", "Strategy.to_device", "DataParallel.run",
    "DataParallel.run_locally", "FullySharded.run", "FullySharded.run_locally", "Metric.compute", "EpochMetric.compute",
    "History.plot", "History.to_frame", "all_targets", "Model.current_batch", "Model.current_outputs",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_sorted_and_documented(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for name_in_all in module.__all__:
        value = getattr(module, name_in_all)
        assert name_in_all == "__version__" or inspect.getdoc(value), name_in_all


@pytest.mark.parametrize("name", [*MODULES, *OTHERS])
def test_dir_lists_public_names_only(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)


def public_functions():
    """Yield every public function and method, with the public names of its class and its signature."""
    for name in ("easytorch", "easytorch.callbacks", "easytorch.data"):
        module = importlib.import_module(name)
        for value in (getattr(module, entry) for entry in module.__all__):
            names = dir(value) if inspect.isclass(value) else []
            members = {member: inspect.getattr_static(value, member) for member in names} or {"": value}
            for member, function in members.items():
                function = getattr(function, "__func__", getattr(function, "fget", function))
                is_public = not member.startswith("_") or member in ("__init__", "__call__")
                if inspect.isfunction(function) and is_public and function.__module__.startswith("easytorch"):
                    yield function


def test_public_signatures_have_no_any_without_a_reason():
    found = set()
    for function in public_functions():
        for name, annotation in function.__annotations__.items():
            allowed = function.__qualname__ in MAY_RETURN_ANYTHING if name == "return" else name in MAY_BE_ANYTHING
            is_loop_method = function.__qualname__.startswith("Model.") and name in ("y", "loss", "sample_weight")
            if annotation in ("Any", "Any | None") and (not allowed or is_loop_method):
                found.add(f"{function.__qualname__}: {name}")
    assert len({function.__qualname__ for function in public_functions()}) > 100
    assert not found


def test_results_have_the_signatures_of_the_model():
    for name in (
        "fit",
        "evaluate",
        "predict",
        "predict_proba",
        "predict_classes",
        "report",
        "save",
        "save_weights",
        "summary",
    ):
        for result in (easytorch.History, easytorch.Scores):
            assert inspect.signature(getattr(result, name)) == inspect.signature(getattr(Model, name))


def test_every_type_alias_is_documented():
    statements = ast.parse(inspect.getsource(easytorch.typing)).body
    documented = {
        statement.target.id
        for statement, following in itertools.pairwise(statements)
        if isinstance(statement, ast.AnnAssign) and isinstance(getattr(following, "value", None), ast.Constant)
    }
    classes = {statement.name for statement in statements if isinstance(statement, ast.ClassDef)}
    assert documented | classes == set(easytorch.typing.__all__)
    assert easytorch.typing.__all__ == sorted(easytorch.typing.__all__)


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
