"""Optimizers by name: fast implementations with the results of torch's defaults."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn

import easytorch
from easytorch import Model, callbacks
from easytorch.optimizers import TABLE
from easytorch.typing import OptimizerOptions
from tests.loops import blobs, mlp, same_weights, twins

X, Y = blobs(64)
# SparseAdam needs sparse gradients, Muon matrices, and the others a closure.
SPECIAL = {"sparseadam", "muon", "lbfgs", "sam"}
# Options that older versions of torch do not have.
NEW_OPTIONS = {"adjust_lr_fn", "decoupled_weight_decay", "ns_coefficients", "ns_steps"}


@pytest.mark.parametrize("name", sorted(set(TABLE) - SPECIAL))
def test_an_optimizer_by_name_equals_torchs_default(name):
    named, default = twins(mlp())
    Model(named, device="cpu").compile(name, "cross_entropy").fit(
        X, Y, epochs=5, batch_size=16, shuffle=False, verbose=0
    )
    optimizer = TABLE[name](default.parameters())
    for _ in range(5):
        for x, y in zip(X.split(16), Y.split(16), strict=True):
            nn.functional.cross_entropy(default(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for actual, expected in zip(named.parameters(), default.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


FUSED = sorted(name for name in TABLE if "fused" in inspect.signature(TABLE[name]).parameters and name != "sgd")


@pytest.mark.parametrize("name", FUSED)
def test_fused_implementations_are_used(name):
    assert Model(mlp(), device="cpu").compile(name, "cross_entropy").optimizer.defaults["fused"] is True


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # from Adagrad
def test_modules_with_sparse_gradients_are_trained(name):
    named, default = twins(nn.EmbeddingBag(100, 2, sparse=True))
    words, y = torch.randint(100, (64, 5)), Y % 2
    Model(named, device="cpu").compile(name, "cross_entropy").fit(words, y, batch_size=64, verbose=0)
    optimizer = TABLE[name](default.parameters())
    nn.functional.cross_entropy(default(words), y).backward()
    optimizer.step()
    torch.testing.assert_close(named.weight, default.weight)


def test_plain_sgd_equals_the_hand_written_loop_bit_for_bit():
    optimizer = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.1).optimizer
    assert not optimizer.defaults["fused"]
    assert not optimizer.defaults["foreach"]


class CustomOptimizer(torch.optim.Optimizer):
    """Has state of unusual shapes and types."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.05})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["seen"] = [*state.get("seen", []), 1.0]
            state["speed"] = 0.9 * state.get("speed", torch.zeros(1)) + parameter.grad.abs().mean()
            parameter.data.sub_(0.05 * state["speed"] * parameter.grad.sign())


def test_a_custom_optimizer_is_resumed_and_loaded(tmp_path):
    def run(epochs, **options):
        torch.manual_seed(0)
        model = Model(mlp(), device="cpu").compile(CustomOptimizer, "cross_entropy")
        model.fit(X, Y, epochs=epochs, verbose=0, **options)
        return model

    uninterrupted = run(3)
    run(1, resume=tmp_path)
    resumed = run(3, resume=tmp_path)
    assert same_weights(resumed.module, uninterrupted.module)
    loaded = Model(mlp(), device="cpu").compile(CustomOptimizer, "cross_entropy").load(tmp_path)
    assert loaded.optimizer.state_dict() == resumed.optimizer.state_dict()


def test_the_state_of_lbfgs_is_loaded(tmp_path):
    def closure():
        loss = model.module(X).square().mean()
        model.optimizer.zero_grad()
        loss.backward()
        return loss

    def compiled_model():
        return Model(mlp(), device="cpu").compile(torch.optim.LBFGS, "cross_entropy")

    model = compiled_model()
    model.optimizer.step(closure)
    other = compiled_model().load(model.save(tmp_path / "model.pt"))
    assert other.optimizer.state_dict()["state"][0].keys() == model.optimizer.state_dict()["state"][0].keys()


# Options by name

CASES = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "adam": {"betas": (0.8, 0.99), "eps": 1e-6, "amsgrad": True, "maximize": True},
    "adamw": {"lr": 0.01, "weight_decay": 0.1},
    "rmsprop": {"alpha": 0.9, "momentum": 0.5, "centered": True},
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.2},
    "rprop": {"etas": [0.4, 1.3], "step_sizes": (1e-5, 10)},
    "nadam": {"momentum_decay": 0.01, "decoupled_weight_decay": True},
    "adafactor": {"eps": (None, 1e-2), "d": 2.0},
}


@pytest.mark.parametrize("form", ["name", "class", "function"])
@pytest.mark.parametrize("name", CASES)
def test_options_reach_the_optimizer(name, form):
    options, forms = CASES[name], {"name": name, "class": TABLE[name], "function": lambda p, **k: TABLE[name](p, **k)}
    named, default = twins(mlp())
    model = Model(named, device="cpu").compile(forms[form], "cross_entropy", **options)
    model.fit(X, Y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    optimizer = TABLE[name](default.parameters(), **options)
    for _ in range(3):
        for x, y in zip(X.split(16), Y.split(16), strict=True):
            nn.functional.cross_entropy(default(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for actual, expected in zip(named.parameters(), default.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert {key: model.optimizer.defaults[key] for key in options} == options


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}])
def test_options_for_the_implementation_pass_through(options):
    optimizer = Model(mlp(), device="cpu").compile("adam", "cross_entropy", **options).optimizer
    expected = torch.optim.Adam(mlp().parameters(), **options)
    assert optimizer.defaults == expected.defaults


def compile_with(*args, **options):
    return Model(mlp(), device="cpu").compile(*args, **options)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("sgd",), {"momentm": 0.9}, "Did you mean 'momentum'"),
        (("sgd",), {"metric": ["mae"]}, "Did you mean 'metrics'"),
        (("sgd",), {"los": "mse", "metrics": ["accuracy"]}, "Did you mean 'loss'"),
        (("sgd",), {"zzz": 1}, r"torch\.optim\.SGD takes the options momentum, dampening, weight_decay, nesterov"),
        (("adam",), {"momentum": 0.9}, r"Adam takes the options betas.* 'momentum' is an option of .*'rmsprop', 'sgd'"),
        (("adam",), {"epsilon": 1e-7}, r"Use eps=1e-07\."),
        (("adam",), {"beta_1": 0.8}, r"Use betas=\(0\.8, 0\.999\)\."),
        (("adam",), {"beta_2": 0.9, "beta_1": 0.8}, r"Use betas=\(0\.8, 0\.9\)\."),
        (("adam",), {"learning_rate": 0.1}, r"Use lr=0\.1\."),
        (("rmsprop",), {"rho": 0.9}, r"Use alpha=0\.9\."),
        (("sgd",), {"wd": 1e-4}, r"Use weight_decay=0\.0001\."),
        (("sgd",), {"clipnorm": 1.0}, r"Use clip_grad_norm=1\.0\."),
        (("sgd",), {"clipvalue": 0.5}, r"Use clip_grad_value=0\.5\."),
        (
            ("sgd",),
            {"decay": 0.01},
            r"LambdaLR\(optimizer, lambda step: 1 / \(1 \+ 0\.01 \* step\)\).* weight_decay=0\.01",
        ),
        (("adam",), {"use_ema": True}, r"easytorch\.callbacks\.EMA\(\)"),
        (("sgd",), {"optimizer_options": {}}, r"compile\('sgd', \.\.\., momentum=0\.9\)"),
        (("sgd",), {"accumulate_grad_batches": 4}, r"gradient_accumulation_steps=4"),
        (("sgd",), {"criterion": "mse"}, r"Use loss='mse'\."),
        ((), {"loss": "mse", "metric": ["mae"]}, "Did you mean 'metrics'"),
        ((torch.optim.AdamW,), {"momentum": 0.9}, r"torch\.optim\.AdamW takes the options betas, eps"),
        ((lambda p, **k: torch.optim.SGD(p, 0.1, **k),), {"metric": ["mae"]}, "Did you mean 'metrics'"),
        ((lambda p: torch.optim.SGD(p, 0.1),), {"momentum": 0.9}, "The optimizer function <lambda> takes no options"),
        (
            ("sgd",),
            {"momentum": "0.9"},
            r"momentum of torch\.optim\.SGD must be a number, received '0\.9'.* default is 0",
        ),
        (("sgd",), {"momentum": float("nan")}, "must be a number, received nan"),
        (("sgd",), {"nesterov": 1}, "must be True or False, received 1"),
        (("adam",), {"betas": 0.9}, r"must be 2 numbers, received 0\.9"),
        ((torch.optim.Adam,), {"betas": (0.9,)}, r"must be 2 numbers, received \(0\.9,\)"),
    ],
)
def test_an_unknown_option_gets_the_fix(args, options, message):
    with pytest.raises(TypeError, match=message):
        compile_with(*args, **options)


def test_the_schedule_for_decay_is_that_of_keras():
    with pytest.raises(TypeError) as caught:
        compile_with("sgd", "cross_entropy", decay=0.01)
    scheduler = re.search(r"scheduler=(.*?step_every='update'\))", str(caught.value))[1]
    scheduler = eval(scheduler, {"easytorch": easytorch, "torch": torch})
    history = compile_with("sgd", "cross_entropy", lr=0.1, scheduler=scheduler).fit(X, Y, batch_size=16, verbose=0)
    assert history["lr"] == [pytest.approx(0.1 / (1 + 0.01 * 4))]


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((), {"loss": "mse", "momentum": 0.9}, r"needs an optimizer.*compile\('sgd', \.\.\., momentum=0\.9\)"),
        (("sgd",), {"momentum": -1}, r"torch\.optim\.SGD cannot be used with momentum=-1: Invalid momentum value"),
        (("sgd",), {"nesterov": True}, "nesterov=True: Nesterov momentum requires a momentum"),
        ((torch.optim.Adam,), {"betas": (0.9, 2)}, "Invalid beta parameter at index 1"),
        (("adam",), {"fused": True, "foreach": True}, "cannot be used with fused=True, foreach=True"),
        (("adam",), {"capturable": True}, "capturable=True: If capturable=True, params"),
        (("lbfgs",), {"line_search_fn": "wolfe"}, "line_search_fn='wolfe': only 'strong_wolfe' is supported"),
    ],
)
def test_an_option_that_has_no_effect_or_is_invalid_is_reported(args, options, message):
    with pytest.raises(ValueError, match=message):
        compile_with(*args, **options)


class Tagger(nn.Module):
    """A module with an embedding, biases and normalization, whose parameters need different optimizers."""

    def __init__(self, sparse=False):
        super().__init__()
        self.embedding = nn.EmbeddingBag(10, 4, sparse=sparse)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


TOKENS = torch.arange(64).reshape(16, 4) % 10


def run_fix(message, module):
    """Train ``module`` with the dict of optimizers in ``message``."""
    optimizers = ast.literal_eval(re.search(r"compile\((\{.*?\}), \.\.\.\)", message)[1])
    model = Model(module, device="cpu").compile(optimizers, "cross_entropy")
    before = [parameter.clone() for parameter in model.module.parameters()]
    model.fit(TOKENS, Y[:16], verbose=0)
    assert not any(map(torch.equal, before, model.module.parameters()))


@pytest.mark.skipif("muon" not in TABLE, reason="this torch has no Muon")
@pytest.mark.parametrize("optimizer", ["muon", getattr(torch.optim, "Muon", None)], ids=["name", "class"])
def test_muon_names_what_it_cannot_train_and_the_fix(optimizer):
    with pytest.raises(ValueError, match=r"'layers\.0\.0\.bias', 'layers\.0\.1\.weight', .* and \d+ more") as caught:
        Model(Tagger(), device="cpu").compile(optimizer, "cross_entropy")
    message = str(caught.value)
    assert "{'layers.*.0.weight': 'muon', 'head.weight': 'muon', '*': 'adamw'}" in message
    run_fix(message, Tagger())


@pytest.mark.parametrize("name", ["adafactor", "muon", "sparseadam"])
def test_complex_parameters_are_refused_at_compile(name):
    if name not in TABLE:
        pytest.skip("this torch lacks the optimizer")
    module = nn.Linear(4, 3, bias=False, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"cannot train 'weight'\. Use 'adamw'"):
        Model(module, device="cpu").compile(name, "mse")


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
def test_sparse_gradients_get_a_dict_of_optimizers(optimizer):
    model = Model(Tagger(sparse=True), device="cpu").compile(optimizer, "cross_entropy")
    with pytest.raises(TypeError, match="one optimizer for each kind") as caught:
        model.fit(TOKENS, Y[:16], verbose=0)
    run_fix(str(caught.value), Tagger(sparse=True))


def test_weight_decay_of_sparse_gradients_is_named():
    model = Model(Tagger(sparse=True), device="cpu").compile("sgd", "cross_entropy", weight_decay=0.1)
    with pytest.raises(TypeError, match=r"SGD with weight_decay cannot use sparse gradients.*weight_decay=0"):
        model.fit(TOKENS, Y[:16], verbose=0)


def test_options_beside_an_optimizer_object_are_refused():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"exists already.*torch\.optim\.SGD\(net\.parameters\(\), momentum=0\.9\)"):
        Model(net, device="cpu").compile(optimizer, "cross_entropy", momentum=0.9)


def test_a_refused_option_leaves_the_model_as_it_was():
    model = compile_with("sgd", "cross_entropy", lr=0.1)
    optimizer = model.optimizer
    for options in ({"momentm": 0.9}, {"momentum": -1}):
        with pytest.raises((TypeError, ValueError)):
            model.compile("sgd", "mse", **options)
    assert model.optimizer is optimizer
    assert repr(model.loss) == "CrossEntropyLoss()"


def test_types_list_every_option_of_torch():
    options = {name for cls in TABLE.values() for name in inspect.signature(cls).parameters}
    assert options - {"params", "lr", "options"} <= set(OptimizerOptions.__annotations__)
    assert set(OptimizerOptions.__annotations__) - options <= NEW_OPTIONS


# The learning rate as an attribute


@pytest.mark.parametrize("attribute", ["lr", "learning_rate"])
@pytest.mark.parametrize("optimizer", [*sorted(set(TABLE) - {"muon"}), torch.optim.LBFGS, CustomOptimizer])
def test_the_learning_rate_is_an_attribute(optimizer, attribute):
    model = compile_with(optimizer, "cross_entropy", lr=0.1 if optimizer is not CustomOptimizer else None)
    setattr(model.optimizer, attribute, 0.5)
    setattr(model.optimizer, attribute, getattr(model.optimizer, attribute) / 2)
    assert model.optimizer.param_groups[0]["lr"] == 0.25
    assert (model.optimizer.lr, model.optimizer.learning_rate) == (0.25, 0.25)
    assert isinstance(model.optimizer, TABLE.get(optimizer, optimizer) if isinstance(optimizer, str) else optimizer)


def test_a_rate_set_in_a_callback_holds_for_the_next_update():
    named, plain = twins(mlp())
    model = Model(named, device="cpu").compile("sgd", "cross_entropy", lr=0.1)

    def lower(batch, logs):
        model.optimizer.lr *= 0.5

    callback = callbacks.LambdaCallback(on_train_batch_end=lower)
    history = model.fit(X, Y, batch_size=16, shuffle=False, callbacks=[callback], verbose=0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for x, y in zip(X.split(16), Y.split(16), strict=True):
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] *= 0.5
    assert same_weights(named, plain)
    assert history["lr"] == [0.1 / 2**4]


def test_a_rate_of_an_earlier_or_second_optimizer_is_applied():
    net = mlp()
    optimizer, second = (torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    optimizer.lr = 0.5
    model = Model(net, device="cpu").compile(optimizer, "cross_entropy")
    assert model.optimizer is optimizer
    assert optimizer.param_groups[0]["lr"] == 0.5
    model.second = second
    model.second.lr = 0.7
    assert second.param_groups[0]["lr"] == 0.7


@pytest.mark.parametrize("rate", [-1, "0.1", None, float("nan"), True])
def test_a_wrong_rate_is_refused_at_once(rate):
    model = compile_with("sgd", "cross_entropy", lr=0.1)
    with pytest.raises(ValueError, match="must be a number of at least 0"):
        model.optimizer.lr = rate
    model.fit(X, Y, verbose=0)
    assert model.optimizer.lr == 0.1


def test_one_rate_for_groups_with_different_rates_is_refused():
    net = mlp()
    groups = [{"params": [parameter], "lr": 0.1 + i} for i, parameter in enumerate(net.parameters())]
    model = Model(net, device="cpu").compile(torch.optim.SGD(groups), "cross_entropy")
    with pytest.raises(ValueError, match=r"rates \[0\.1, 1\.1.*param_groups\[0\]\['lr'\] = 0\.5"):
        model.optimizer.lr = 0.5
    model.fit(X, Y, verbose=0)


def test_a_rate_that_is_a_tensor_is_set_in_place():
    rate = torch.tensor(0.1)
    model = compile_with("adam", "cross_entropy", lr=rate)
    model.optimizer.lr = 0.5
    assert rate == 0.5


class OptimizerWithRate(CustomOptimizer):
    """Has an attribute of this name for a custom purpose."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.lr = "constant"


def test_a_custom_optimizer_keeps_its_attribute():
    model = compile_with(OptimizerWithRate, "cross_entropy")
    assert model.optimizer.lr == "constant"
    model.optimizer.learning_rate = 0.5
    assert model.optimizer.param_groups[0]["lr"] == 0.5
    model.fit(X, Y, verbose=0)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_optimizer_has_the_attribute(make_copy):
    model = compile_with("adam", "cross_entropy")
    model.fit(X, Y, verbose=0)
    twin = make_copy(model.optimizer)
    twin.lr = 0.5
    assert (twin.param_groups[0]["lr"], model.optimizer.lr) == (0.5, 0.001)
    assert twin.state_dict()["state"].keys() == model.optimizer.state_dict()["state"].keys()
