"""Hints for wrong arguments, attributes and options."""

import copy
import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from torch import nn

import easytorch
from easytorch import Model, callbacks
from easytorch._utils.api_hints import ARGUMENT_HINTS, ATTRIBUTE_HINTS, CALLBACK_HINTS, OPTION_HINTS, PACKAGE_HINTS
from tests.loops import blobs, mlp

X, Y = blobs()


def compiled_model():
    return Model(mlp()).compile("sgd", "cross_entropy")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compiled_model().fit(X, Y, 32, 5, 2), r"fit\(x, y, epochs=10, batch_size=32, "),
        (lambda: compiled_model().fit(X, Y, 32), r"epochs or batch_size\. Write epochs=32 or batch_size=32"),
        (lambda: callbacks.StopAfter(3), r"Pass all arguments by name: StopAfter\(updates=\.\.\., \.\.\.\)"),
        (lambda: callbacks.Every(3), r"Pass all arguments by name: Every\(epochs=\.\.\., \.\.\.\)"),
        (lambda: callbacks.CSVLogger("a", ",", True, 1), r"CSVLogger\(filename, separator, append, every=\.\.\.\)"),
        (lambda: compiled_model().evaluate(X, Y, 32), r"evaluate\(x, y, batch_size=\.\.\., \.\.\.\)"),
        (lambda: compiled_model().fit(X, Y, epoch=5), "Did you mean 'epochs'"),
        (lambda: compiled_model().fit(X, Y, val_data=(X, Y)), "Use validation_data="),
        (lambda: compiled_model().fit(X, Y, validation_batch_size=8), r"DataLoader\(dataset, 64\)"),
        (lambda: compiled_model().train_on_batch(X, Y, return_dict=True), r"dict\(\.\.\.\) of the result"),
        (lambda: compiled_model().fit(X, Y, lr=0.1), r"Use compile\(\.\.\., lr=0\.001\)"),
        (lambda: compiled_model().fit(X, Y, metrics=["accuracy"]), r"Use compile\(\.\.\., metrics="),
        (lambda: Model(mlp()).compile("adam", "mse", learning_rate=0.1), r"Use lr=0\.1\."),
        (lambda: Model(mlp()).compile("adam", "mse", metric=["mae"]), "Did you mean 'metrics'"),
        (
            lambda: Model(mlp()).compile(d_optimizer="sgd", g_optimizer="adam"),
            "'discriminator': 'sgd', 'generator': 'adam'",
        ),
        (lambda: Model(mlp()).compile("adam", splitter=len), r"a dict: compile\({'backbone': \('adamw'"),
        (lambda: Model(mlp()).compile("sgd", optimizer__param_groups=[]), r"a dict: compile\({'backbone\*'"),
        (lambda: compiled_model().fit(X, Y, zzz=1), r"fit\(\) takes x, y, epochs, batch_size, validation_data"),
        (lambda: Model.load(mlp(), "model.pt"), r"on the class, with a \w+ in place.*Model\(module\)\.load\(\.\.\.\)"),
        (lambda: Model.load("model.pt"), r"Call it on an instance: Model\(module\)\.load\(\.\.\.\)"),
        (lambda: compiled_model().predict(), r"See help\(Model\.predict\)"),
    ],
)
def test_wrong_arguments_get_a_hint(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_errors_inside_a_method_stay_unchanged():
    class FailingModule(nn.Module):
        def forward(self, x):
            return int(None)

    with pytest.raises(TypeError) as error_info:
        Model(FailingModule()).compile(loss="mse").evaluate(X, Y, verbose=0)
    assert "See help" not in str(error_info.value)


def test_methods_keep_signatures_and_docstrings():
    assert list(inspect.signature(Model.fit).parameters)[:5] == ["self", "x", "y", "sizes", "epochs"]
    assert "Train, and return the history" in Model.fit.__doc__


def test_suggested_arguments_exist():
    known = {name for method in (Model.compile, Model.fit) for name in inspect.signature(method).parameters}
    suggested = {match[1] for hint in ARGUMENT_HINTS.values() if (match := re.match(r"(\w+)=", hint))}
    assert len(suggested) > 5
    assert suggested <= known
    assert all(ARGUMENT_HINTS[name].startswith("compile(") for name in known & set(ARGUMENT_HINTS))


# Attributes


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (lambda: compiled_model().layers, r"A Model has no 'layers'\. Use list\(model\.module\.children\(\)\)"),
        (lambda: compiled_model().count_params(), r"model\.summary\(\)\.total_params"),
        (lambda: compiled_model().parameters(), r"model\.module\.parameters\(\)"),
        (lambda: compiled_model().evaluat(X), "Did you mean 'evaluate'"),
        (lambda: compiled_model()._nothing, r"A Model has no '_nothing'\.$"),
        (
            lambda: easytorch.load_model("m.pt"),
            r"easytorch has no 'load_model'\. Use Model\(net\)\.load\(path\)",
        ),
        (
            lambda: easytorch.callbacks.CutMix(),
            "Use a collate_fn of the DataLoader that mixes a batch; see the how-to 'Training techniques'",
        ),
        (lambda: easytorch.losses.LabelSmoothingCrossEntropy(), r"CrossEntropyLoss\(label_smoothing=0\.1\)"),
        (lambda: easytorch.EarlyStoping(), r"Did you mean 'EarlyStopping'"),
        (lambda: easytorch.Modell, "Did you mean 'Model'"),
    ],
)
def test_missing_attributes_get_a_hint(access, message):
    with pytest.raises(AttributeError, match=message):
        access()


def test_hasattr_and_copies_work_on_a_model():
    model = compiled_model()
    assert not hasattr(model, "layers")
    assert copy.deepcopy(model).predict(X, verbose=0).shape == (len(X), 3)


def test_no_hint_is_for_an_existing_attribute():
    assert not set(ATTRIBUTE_HINTS) & set(dir(compiled_model()))
    assert not set(CALLBACK_HINTS) & set(callbacks.__all__)
    for module in pkgutil.iter_modules(easytorch.__path__, "easytorch."):
        importlib.import_module(module.name)
    # A submodule is an attribute too: __getattr__ is never called for its name. Only users import integrations.
    assert set(PACKAGE_HINTS) & set(vars(easytorch)) <= {"integrations"}


@pytest.mark.parametrize("name", ["lr", "learning_rate", "trainable"])
def test_ignored_attributes_cannot_be_assigned(name):
    with pytest.raises(AttributeError, match=f"Setting model.{name} has no effect. Use "):
        setattr(compiled_model(), name, 0.5)


def test_a_subclass_may_have_a_learning_rate_attribute():
    class CustomModel(Model):
        pass

    CustomModel.__module__ = "my_program"
    model = CustomModel(mlp())
    model.lr = 0.5
    assert model.lr == 0.5


def test_the_module_of_a_model_cannot_be_replaced():
    with pytest.raises(AttributeError, match=r"module of a model cannot be replaced\. .*Model\(net\)\.compile"):
        compiled_model().module = mlp()


def test_the_loss_cannot_be_assigned():
    with pytest.raises(TypeError, match=r"cannot be set to MSELoss.*Choose the loss by compile\(optimizer, loss\)"):
        compiled_model().loss = nn.MSELoss()


# Changes after compile


def test_a_layer_replaced_after_compile_is_reported():
    model = compiled_model()
    model.module[-1] = nn.Linear(model.module[-1].in_features, 3)
    with pytest.raises(ValueError, match=r"replaced after compile.* Call compile\(\) again"):
        model.fit(X, Y, verbose=0)
    model.compile("sgd", "cross_entropy").fit(X, Y, verbose=0)


@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_an_optimizer_of_some_parameters_is_accepted():
    net = mlp()
    Model(net).compile(torch.optim.SGD(net[0].parameters(), lr=0.1), "cross_entropy").fit(X, Y, verbose=0)


def test_trainable_gets_a_hint_to_requires_grad():
    model = compiled_model()
    model.module[0].trainable = False
    with pytest.warns(
        UserWarning, match=r"module\.0\.trainable = False has no effect.*module\.0\.requires_grad_\(False\)"
    ):
        model.fit(X, Y, verbose=0)
    model.module[0].requires_grad_(False)
    model.fit(X, Y, verbose=0)


def test_a_missing_call_of_super_init_is_reported():
    class ModelWithoutSuper(Model):
        def __init__(self, module):
            self.net = module

    with pytest.raises(AttributeError, match=r"Call super\(\).__init__\(module\) in the first line"):
        ModelWithoutSuper(mlp()).compile("sgd", "mse")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Model([nn.Linear(2, 2)]), r"Combine layers with nn\.Sequential\(\*layers\)"),
        (lambda: Model(nn.Linear), "Create an object of the class first"),
        (
            lambda: compiled_model().save(overwrite=True),
            r"^Model\.save\(\) .*Not needed: save\(\) replaces an existing file",
        ),
        (
            lambda: compiled_model().fit(X, Y, resume=True),
            r"resume must be the folder .*received True\. Pass resume='run/'",
        ),
    ],
)
def test_misused_arguments_are_reported(call, message):
    with pytest.raises(TypeError, match=message):
        call()


# Options of callbacks, metrics and strategies


class CustomCallback(callbacks.EarlyStopping):
    """A callback that passes options to its base class."""

    def __init__(self, threshold=0.5, **options):
        super().__init__(**options)
        self.threshold = threshold


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (
            lambda: callbacks.EarlyStopping(patince=3),
            r"^EarlyStopping\(\) got .* 'patince'\. Did you mean 'patience'\?$",
        ),
        (lambda: callbacks.EarlyStopping(min_delta_=0), "Did you mean 'min_delta'"),
        (lambda: callbacks.EarlyStopping(restore_best=True), "Did you mean 'restore_best_weights'"),
        (lambda: callbacks.EarlyStopping("loss", 0, 1, 0, "min", None, True, 0, 9), "after start_from_epoch by name"),
        (lambda: callbacks.ModelCheckpoint(folder="x"), r"ModelCheckpoint\(\) takes filepath, monitor, verbose"),
        (lambda: callbacks.ModelCheckpoint("x", save_top_k=3), "Use keep_best="),
        (lambda: callbacks.ModelCheckpoint(path="x"), "Use filepath="),
        (lambda: callbacks.ModelCheckpoint(), r"missing .* 'filepath'\. See help\(ModelCheckpoint\)"),
        (lambda: callbacks.TerminateOnNaN(raise_errors=True), "Did you mean 'raise_error'"),
        (lambda: easytorch.Strategy(precison="bf16"), r"^Strategy\(\) .*Did you mean 'precision'"),
        (lambda: easytorch.DataParallel(sync_batchnrom=True), "Did you mean 'sync_batchnorm'"),
        (lambda: CustomMetric(treshold=0.1), r"^CustomMetric\(\) .*Did you mean 'threshold'"),
        (lambda: CustomCallback(0.5, patince=3), "Did you mean 'patience'"),
        (lambda: Model(mlp(), devise="cpu"), r"^Model\(\) .*Did you mean 'device'"),
        (lambda: Model(mlp(), "cpu", "adam"), r"See help\(Model\)"),
        (lambda: Model(mlp(), optimizer="adam"), r"Use Model\(module\)\.compile"),
    ],
)
def test_wrong_options_get_a_hint(create, message):
    with pytest.raises(TypeError, match=message):
        create()


class CustomMetric(easytorch.Metric):
    def __init__(self, threshold):
        self.threshold = len(threshold)


def test_errors_inside_init_stay_unchanged():
    with pytest.raises(TypeError) as error_info:
        CustomMetric(threshold=0.5)
    assert str(error_info.value) == "object of type 'float' has no len()"


def test_classes_keep_their_signatures():
    assert list(inspect.signature(callbacks.EarlyStopping).parameters)[:3] == ["monitor", "min_delta", "patience"]
    assert list(inspect.signature(CustomCallback).parameters) == ["threshold", "options"]
    assert "super().__init__(**options)" in inspect.getsource(CustomCallback.__init__)


def test_suggested_options_exist():
    assert len(OPTION_HINTS) > 10
    for option, hint in OPTION_HINTS.items():
        name, unknown = option.split(".")
        known = inspect.signature(getattr(callbacks, name, None) or getattr(easytorch, name)).parameters
        suggested = re.match(r"(\w+)=", hint)
        assert unknown not in known
        assert suggested is None or suggested[1] in known, option


@pytest.mark.parametrize(
    "name", ["learning_rate", "gradient_clip_val", "accumulate_grad_batches", "criterion", "weight_decay"]
)
def test_arguments_of_compile_passed_to_fit_name_compile(name):
    with pytest.raises(TypeError, match=rf"fit\(\) got an unexpected keyword argument '{name}'\. Use compile\("):
        Model(mlp()).compile("sgd", "cross_entropy").fit(*blobs(8), **{name: 1})


def test_hints_lead_to_several_optimizers():
    with pytest.raises(ValueError, match=r"received slice\(1e-05, 0.001, None\).*'head': \('adam', {'lr': 0.001}\)"):
        Model(mlp()).compile("adam", "mse", lr=slice(1e-5, 1e-3))
    with pytest.raises(TypeError, match="With several optimizers, define a step for each"):
        type("Indexed", (Model,), {"train_step": lambda self, batch, optimizer_idx: None})
    with pytest.raises(AttributeError, match=r"compile\({'critic': 'adam', ...}\)"):
        _ = compiled_model().manual_backward
    with pytest.raises(AttributeError, match="generator_step"):
        _ = easytorch.GANLearner
