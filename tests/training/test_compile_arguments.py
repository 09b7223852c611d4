"""Each argument of compile is saved by itself, and a loaded model does what the saved one did, or names what it lacks."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from easytorch import EpochMetric, FileError, Model
from easytorch.checkpoint import files
from easytorch.losses.names import TORCH_LOSSES
from easytorch.optimizers import TABLE
from tests.loops import blobs, mlp, same_weights

X, Y = blobs()
WEIGHT = torch.tensor([1.0, 2.0, 3.0])


class CustomOptimizer(torch.optim.SGD):
    """Not a class of torch."""


class FocalLoss(nn.CrossEntropyLoss):
    """Not a class of torch, but its outputs are logits."""

    def forward(self, y_pred, y):
        return super().forward(y_pred, y) * 2


def custom_loss(y_pred, y):
    return F.cross_entropy(y_pred, y)


def custom_metric(y_pred, y):
    return (y_pred.argmax(1) == y).float()


def epoch_metric(y, y_pred):
    return float((y == y_pred.argmax(1)).mean())


def saved(tmp_path, optimizer="adam", loss="cross_entropy", net=None, **options):
    """Return a trained model and the path of its file."""
    net = mlp() if net is None else net
    optimizer = optimizer(net) if getattr(optimizer, "takes_module", False) else optimizer
    model = Model(net, device="cpu").compile(optimizer, loss, **options)
    model.fit(X, Y, batch_size=16, verbose=0)
    return model, model.save(tmp_path / "model.pt")


def loaded(path, net=None):
    return Model(mlp() if net is None else net, device="cpu").load(path)


def train(model):
    torch.manual_seed(1)
    return model.fit(X, Y, epochs=2, batch_size=16, verbose=0)


def assert_continues(model, twin):
    """Assert that the loaded model evaluates, predicts and trains like the saved one."""
    assert twin.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
    assert (twin.predict_classes(X, verbose=0) == model.predict_classes(X, verbose=0)).all()
    assert train(twin).history == train(model).history
    assert same_weights(twin.module, model.module)


def of_module(function):
    function.takes_module = True
    return function


def freeze(net):
    net[0].requires_grad_(False)
    return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05, betas=(0.5, 0.9))


OPTIMIZERS = {
    "options by name": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "class": {"optimizer": torch.optim.AdamW, "lr": 0.01, "weight_decay": 0.1},
    "partial": {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "lr": 0.1},
    "function": {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)},
    "object": {"optimizer": of_module(lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))},
    "two groups": {
        "optimizer": of_module(
            lambda net: torch.optim.SGD(
                [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}], 0.01
            )
        )
    },
    "a part of the parameters": {"optimizer": of_module(freeze)},
    "with a schedule": {"optimizer": torch.optim.AdamW, "scheduler": "cosine"},
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_loaded_model_has_the_optimizer(tmp_path, case):
    model, path = saved(tmp_path, metrics=["accuracy"], **OPTIMIZERS[case])
    twin = loaded(path)
    if case == "a part of the parameters":
        twin.module[0].requires_grad_(False)
    groups = [{**group, "params": len(group["params"])} for group in model.optimizer.param_groups]
    assert [{**group, "params": len(group["params"])} for group in twin.optimizer.param_groups] == groups
    assert {**twin.optimizer.defaults} == {**model.optimizer.defaults}
    assert_continues(model, twin)


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"sparseadam", "muon", "sam"}))
def test_every_optimizer_object_of_torch_is_saved(tmp_path, name):
    model, path = saved(tmp_path, TABLE[name])
    twin = loaded(path)
    assert isinstance(twin.optimizer, TABLE[name])
    train(model)
    train(twin)
    assert same_weights(twin.module, model.module)


def test_a_file_without_an_optimizer_state_format_has_options(tmp_path):
    _, path = saved(tmp_path, "sgd", lr=0.1, momentum=0.9)
    assert files.read(path)["compiled"]["optimizer_options"] == {"momentum": 0.9}


LOSSES = {
    "weight": nn.CrossEntropyLoss(weight=WEIGHT.clone(), label_smoothing=0.1, ignore_index=7),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "partial": functools.partial(F.cross_entropy, weight=WEIGHT.clone()),
    "function": F.cross_entropy,
    "margin": nn.MultiMarginLoss(p=2, margin=0.5),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loaded_model_has_the_loss(tmp_path, case):
    model, path = saved(tmp_path, loss=LOSSES[case], metrics=["accuracy"])
    assert_continues(model, loaded(path))


OPTIONS = {
    "BCELoss": {"weight": WEIGHT},
    "BCEWithLogitsLoss": {"pos_weight": WEIGHT, "reduction": "sum"},
    "CTCLoss": {"blank": 2, "zero_infinity": True},
    "CrossEntropyLoss": {"weight": WEIGHT, "ignore_index": 3, "label_smoothing": 0.2},
    "GaussianNLLLoss": {"full": True, "eps": 1e-3},
    "HuberLoss": {"delta": 0.5},
    "KLDivLoss": {"reduction": "batchmean", "log_target": True},
    "PoissonNLLLoss": {"log_input": False, "full": True, "eps": 1e-4},
    "SmoothL1Loss": {"beta": 0.3},
    "TripletMarginLoss": {"margin": 2.0, "p": 1.0, "swap": True},
}


@pytest.mark.parametrize("name", sorted(cls.__name__ for cls in set(TORCH_LOSSES.values())))
def test_every_loss_of_torch_is_saved_with_its_options(tmp_path, name):
    loss = getattr(nn, name)(**OPTIONS.get(name, {}))
    path = Model(mlp(), device="cpu").compile("adam", loss).save(tmp_path / "model.pt")
    if name == "TripletMarginWithDistanceLoss":  # its distance is a function
        assert files.read(path)["compiled_objects"] == {"loss": "PairwiseDistance"}
        return
    function = loaded(path).loss.function
    assert type(function) is type(loss)
    for key, value in vars(loss).items():
        if key not in ("_buffers", "training"):
            assert vars(function)[key] == value, key
    assert all(torch.equal(value, dict(loss.named_buffers())[key]) for key, value in function.named_buffers())


def test_losses_by_output_and_loss_modules_as_metrics_are_saved(tmp_path):
    loss = {"a": nn.HuberLoss(delta=0.5), "b": "mse", "c": None}
    arguments = {"loss": loss, "metrics": {"a": [nn.L1Loss(), "mae"]}, "loss_weights": {"a": torch.tensor(0.5)}}
    path = Model(mlp(), device="cpu").compile("adam", **arguments).save(tmp_path / "model.pt")
    twin = loaded(path)
    assert twin.loss.losses["a"].function.delta == 0.5
    assert twin.loss.weights == {"a": 0.5, "b": 1.0}
    assert len(twin.metrics.names) == 2


# Objects that a file cannot hold

PREDICTIONS = ("predict_classes", "predict_proba")
EVALUATIONS = ("evaluate", "test_on_batch")
TRAININGS = ("fit", "train_on_batch")
CUSTOM = {
    "optimizer": ({"optimizer": lambda p: CustomOptimizer(p, lr=0.1)}, "optimizer (CustomOptimizer)", TRAININGS),
    "metric": ({"metrics": ["accuracy", custom_metric]}, "metrics (custom_metric)", (*EVALUATIONS, *TRAININGS)),
    "metric object": ({"metrics": [EpochMetric(epoch_metric)]}, "metrics (EpochMetric)", (*EVALUATIONS, *TRAININGS)),
    "scheduler": (
        {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
        "scheduler (StepLR)",
        TRAININGS,
    ),
    "subclass of a loss": ({"loss": FocalLoss()}, "loss (FocalLoss)", (*EVALUATIONS, *TRAININGS)),
    "loss": ({"loss": custom_loss}, "loss (custom_loss)", (*PREDICTIONS, *EVALUATIONS, *TRAININGS)),
}


def call(model, method):
    arguments = (X,) if method in PREDICTIONS else (X, Y)
    return getattr(model, method)(*arguments, **({} if method.endswith("batch") else {"verbose": 0}))


@pytest.mark.parametrize("case", CUSTOM)
def test_methods_without_their_arguments_name_the_object(tmp_path, case):
    options, description, refused = CUSTOM[case]
    model, path = saved(tmp_path, **options)
    twin = loaded(path)
    assert (twin.predict(X, verbose=0) == model.predict(X, verbose=0)).all()
    for method in (*PREDICTIONS, *EVALUATIONS, *TRAININGS):
        if method in refused:
            with pytest.raises(RuntimeError) as caught:
                call(twin, method)
            message = str(caught.value)
            assert message.startswith(
                f"{method}() cannot run: the file's model was compiled with an object for {description}"
            )
            assert f"{description.split()[0]}=..." in message
            assert "then load() the file again" in message
        elif method not in TRAININGS:
            assert (call(twin, method) == call(model, method)) is True or method in PREDICTIONS
            if method in PREDICTIONS:
                assert (call(twin, method) == call(model, method)).all()


def test_the_message_repeats_the_known_arguments(tmp_path):
    _, path = saved(
        tmp_path, "sgd", nn.CrossEntropyLoss(label_smoothing=0.1), metrics=[custom_metric], lr=0.1, momentum=0.9
    )
    call = "optimizer='sgd', loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1), metrics=..., lr=0.1, momentum=0.9"
    with pytest.raises(RuntimeError) as caught:
        loaded(path).evaluate(X, Y)
    assert f"Pass compile({call})" in str(caught.value)


def test_compile_then_load_restores_a_model_with_objects(tmp_path):
    options = {"optimizer": lambda p: CustomOptimizer(p, lr=0.1, momentum=0.9), "loss": custom_loss}
    model, path = saved(tmp_path, **options)
    twin = loaded(path)
    twin.compile(**options).load(path)
    assert train(twin).history == train(model).history


def test_saving_a_partly_loaded_model_loses_no_argument(tmp_path):
    _, path = saved(tmp_path, loss=FocalLoss(), metrics=["accuracy"])
    again = loaded(path).save(tmp_path / "again.pt")
    first, second = files.read(path), files.read(again)
    assert [second[name] for name in ("compiled", "compiled_objects")] == [
        first[name] for name in ("compiled", "compiled_objects")
    ]
    with pytest.raises(RuntimeError, match="FocalLoss"):
        loaded(again).fit(X, Y)


def test_a_second_file_replaces_what_the_first_lacks(tmp_path):
    _, named = saved(tmp_path, "sgd", lr=0.1, metrics=["accuracy"])
    named = named.rename(tmp_path / "named.pt")
    _, custom = saved(tmp_path, loss=custom_loss)
    custom = custom.rename(tmp_path / "custom.pt")
    _, focal = saved(tmp_path, loss=FocalLoss())
    assert loaded(focal).load(named).evaluate(X, Y, verbose=0).keys() == ["loss", "accuracy"]
    assert loaded(custom).load(named).fit(X, Y, verbose=0)["accuracy"]
    with pytest.raises(RuntimeError, match="custom_loss"):
        loaded(focal).load(custom).predict_classes(X)


def changed_forward():
    loss = nn.CrossEntropyLoss()
    loss.forward = custom_loss
    return loss


def hooked(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"loss": changed_forward()}, "loss"),
        ({"optimizer": of_module(hooked)}, "optimizer"),
    ],
    ids=["forward", "hook"],
)
def test_a_changed_object_of_torch_is_an_object(tmp_path, options, argument):
    _, path = saved(tmp_path, **options)
    assert list(files.read(path)["compiled_objects"]) == [argument]


class TwoOptimizers(Model):
    def compile(self, first, second):
        self.second = second
        return super().compile(first, "cross_entropy")


def test_a_subclass_with_its_own_compile_is_loaded(tmp_path):
    model = TwoOptimizers(mlp(), device="cpu").compile("adam", None)
    path = model.save(tmp_path / "model.pt")
    twin = TwoOptimizers(mlp(), device="cpu").load(path)
    assert same_weights(twin.module, model.module)
    with pytest.raises(RuntimeError, match=r"TwoOptimizers\.compile takes other arguments.*Call compile\(\)"):
        twin.fit(X, Y)
    twin.compile("adam", None).load(path).fit(X, Y, verbose=0)


# Resume


def run(folder, *args, epochs=1, **options):
    torch.manual_seed(0)
    model = Model(mlp(), device="cpu").compile(*args, **options)
    model.fit(X, Y, epochs=epochs, resume=folder, verbose=0)
    return model


def test_a_resumed_run_keeps_the_old_options_with_a_warning(tmp_path):
    run(tmp_path, "sgd", "cross_entropy", lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match=r"momentum changed from 0\.9 to 0\.5; the resumed run keeps the old value"):
        model = run(tmp_path, "sgd", "cross_entropy", lr=0.1, momentum=0.5, epochs=2)
    assert model.optimizer.param_groups[0]["momentum"] == 0.9
    assert files.read(model.save(tmp_path / "model.pt"))["compiled"]["optimizer_options"] == {"momentum": 0.9}


def test_a_resumed_run_reports_a_changed_loss_object(tmp_path):
    run(tmp_path, "sgd", nn.CrossEntropyLoss(label_smoothing=0.1))
    with pytest.warns(
        UserWarning, match=r"loss changed from 'torch\.nn\.CrossEntropyLoss\(label_smoothing=0\.1\)' to "
    ):
        run(tmp_path, "sgd", nn.CrossEntropyLoss(label_smoothing=0.2), epochs=2)


def test_large_tensors_are_compared_but_not_printed(tmp_path):
    weights = [torch.linspace(1, 2, 50), torch.linspace(1, 2, 50).flip(0)]
    net = nn.Linear(8, 50)
    for epochs, weight in enumerate(weights, 1):
        model = Model(net, device="cpu").compile("sgd", nn.CrossEntropyLoss(weight=weight))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X, Y, epochs=epochs, resume=tmp_path, verbose=0)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1
    assert "weight='tensor [50] with the checksum" in messages[0]


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(weight=WEIGHT), "cross_entropy"])
def test_a_resumed_run_with_the_same_arguments_warns_of_nothing(tmp_path, loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epochs in (1, 2):
            run(tmp_path, torch.optim.SGD, loss, lr=0.1, momentum=0.9, epochs=epochs)


# Files with other contents

GOOD = {"torch object": "nn.CrossEntropyLoss", "options": {}}
SGD = {"torch object": "optim.SGD", "options": {"lr": 0.1}, "groups": [["0.weight"]]}
LAUGHS = functools.reduce(lambda inner, _: [inner] * 10, range(12), "mae")
WRONG = {
    "class": (
        {"loss": {**GOOD, "torch object": "os.system"}},
        "'os.system' is no loss of torch",
    ),
    "no class": ({"loss": {**GOOD, "torch object": 3}}, "3 is no loss of torch"),
    "list as class": ({"loss": {**GOOD, "torch object": ["nn"]}}, "['nn'] is no loss of torch"),
    "layer": ({"loss": {**GOOD, "torch object": "nn.Linear"}}, "'nn.Linear' is no loss of torch"),
    "option": ({"loss": {**GOOD, "options": {"device": "cuda"}}}, "has no option 'device'"),
    "option of the call": (
        {"loss": {"torch object": "nn.functional.cross_entropy", "options": {"input": 1}}},
        "has no option 'input'",
    ),
    "no options": ({"loss": {"torch object": "nn.MSELoss"}}, "must be a dict"),
    "number": ({"loss": {**GOOD, "options": {"label_smoothing": "x"}}}, "must be a number, received 'x'"),
    "reduction": ({"loss": {**GOOD, "options": {"reduction": "eval"}}}, "must be one of 'none', 'mean'"),
    "weight": ({"loss": {**GOOD, "options": {"weight": "x"}}}, "must be a tensor"),
    "optimizer": (
        {"optimizer": {**SGD, "torch object": "optim.Optimizer"}},
        "'optim.Optimizer' is no optimizer of torch",
    ),
    "optimizer option": ({"optimizer": {**SGD, "options": {"params": []}}}, "has no option 'params'"),
    "optimizer number": ({"optimizer": {**SGD, "options": {"momentum": [1]}}}, "must be a number"),
    "optimizer parameter": ({"optimizer": {**SGD, "groups": [["nothing"]]}}, "has the parameter 'nothing'"),
    "optimizer groups": ({"optimizer": {**SGD, "groups": 3}}, ""),
    "a group of nothing": ({"optimizer": {**SGD, "groups": [[]] * 20_000}}, "must be a list of names"),
    "a group of text": ({"optimizer": {**SGD, "groups": ["0.weight"]}}, "must be a list of names"),
    "a parameter twice": ({"optimizer": {**SGD, "groups": [["0.weight"]] * 20_000}}, "or has it twice"),
    "very many losses": ({"loss": ["mse"] * 20_000}, "more than 10000 values"),
    "very many loss objects": ({"loss": [GOOD] * 20_000}, "more than 10000 values"),
    "very many metrics": ({"metrics": {"a": ["mae"] * 20_000}}, "more than 10000 values"),
    "lists of lists": ({"metrics": LAUGHS}, "more than 10000 values"),
    "options": ({"optimizer_options": 3}, "must be a dict"),
    "unknown option": ({"optimizer_options": {"nonsense": 1}}, "nonsense"),
    "loss as optimizer": ({"optimizer": GOOD}, "'nn.CrossEntropyLoss' is no optimizer of torch"),
    "optimizer as loss": ({"loss": SGD}, "'optim.SGD' is no loss of torch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_a_file_error_that_names_it(tmp_path, case):
    _, path = saved(tmp_path)
    content = files.read(path)
    changes, message = WRONG[case]
    content["compiled"] |= changes
    model = Model(mlp(), device="cpu")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    torch.save(content, tmp_path / "wrong.pt")  # a value that comes again is written as a reference
    with pytest.raises(FileError) as caught:
        model.load(tmp_path / "wrong.pt")
    assert "wrong.pt" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert message in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_a_description_in_a_file_is_escaped(tmp_path):
    _, path = saved(tmp_path)
    content = {**files.read(path), "compiled_objects": {"metrics": "\x1b[2J" + "x" * 1000}}
    with pytest.raises(RuntimeError) as caught:
        loaded(files.write(tmp_path / "strange.pt", content)).fit(X, Y)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("objects", [3, [1], {"loss": 3}, {1: "x"}, {"\x1b[2J": "x"}])
def test_wrong_descriptions_are_a_file_error(tmp_path, objects):
    _, path = saved(tmp_path)
    content = {**files.read(path), "compiled_objects": objects}
    with pytest.raises(FileError, match=r"wrong\.pt"):
        loaded(files.write(tmp_path / "wrong.pt", content))
