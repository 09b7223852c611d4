"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import EarlyStopping, LambdaCallback
from tests.errors.common import Count, X, Y, compiled, fit, refused
from tests.loops import mlp

# Names


@pytest.mark.parametrize(
    ("run", "unknown", "near", "instead"),
    [
        (lambda: Model(mlp()).compile("adamm", "mse"), "Unknown optimizer 'adamm'", "adam", r"torch\.optim\.Optimizer"),
        (lambda: compiled(loss="cross_entropi"), "Unknown loss 'cross_entropi'", "cross_entropy", r"f\(y_pred, y\)"),
        (lambda: compiled(metrics=["acuracy"]), "Unknown metric 'acuracy'", "accuracy", r"f\(y_pred, y\)"),
        (lambda: fit(compiled(), X, Y, verbose="atuo"), "Unknown verbose 'atuo'", "auto", "0 .*1 .*2 "),
        (lambda: compiled().evaluate(X, Y, verbose="atuo"), "Unknown verbose 'atuo'", "auto", "0 .*1 .*2 "),
        (lambda: compiled().predict(X, verbose="atuo"), "Unknown verbose 'atuo'", "auto", "0 .*1 .*2 "),
        (lambda: Model(mlp(), device="cpuu"), "Unknown device 'cpuu'", "cpu", "Pass 'auto'"),
        (lambda: compiled(precision="bf61"), "Unknown precision 'bf61'", "bf16", "'fp32', 'bf16', 'fp16'"),
        (lambda: LambdaCallback(on_epoch_ends=print), "Unknown hook 'on_epoch_ends'", "on_epoch_end", "on_train_begin"),
        (lambda: EarlyStopping(mode="maxx"), "Unknown mode 'maxx'", "max", "'min'"),
    ],
    ids=[
        "optimizer",
        "loss",
        "metric",
        "verbose in fit",
        "verbose in evaluate",
        "verbose in predict",
        "device",
        "precision",
        "hook",
        "mode",
    ],
)
def test_an_unknown_name_gets_the_nearest_and_the_alternatives(run, unknown, near, instead):
    refused(run, unknown, f"Did you mean '{near}'", instead, kind=ValueError)


@pytest.mark.parametrize("verbose", [3, -1, "loud", None])
def test_an_unknown_verbose_gets_the_valid_values(verbose):
    refused(lambda: fit(compiled(), X, Y, verbose=verbose), "Unknown verbose", "'auto'", kind=ValueError)


def test_an_unknown_precision_gets_the_valid_names():
    refused(lambda: compiled(precision=8), "precision", "8", "'fp32', 'bf16', 'fp16'")


@pytest.mark.parametrize(
    ("typed", "here"), [("mixed_bfloat16", "bf16"), ("float16", "fp16"), ("bf16-mixed", "bf16"), (16, "fp16")]
)
def test_a_precision_of_another_library_gets_its_name(typed, here):
    refused(lambda: compiled(precision=typed), f"Use '{here}'", kind=ValueError)


def test_a_missing_device_gets_the_available_devices():
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    absent = next(name for name in ("xpu", "mps") if here is None or here.type != name)
    refused(lambda: Model(mlp(), device=absent), f"no device '{absent}'", "'auto'", "'cpu'", kind=ValueError)


def test_early_stopping_on_an_unknown_value_gets_the_nearest():
    early = EarlyStopping("val_los")
    message = refused(
        lambda: fit(compiled(), X, Y, validation_split=0.2, callbacks=[early]), "'val_los'", kind=ValueError
    )
    assert "Did you mean 'val_loss'?" in message
    assert "'loss', 'val_loss', 'lr'" in message


def test_early_stopping_without_validation_data_gets_a_fix():
    refused(lambda: fit(compiled(), X, Y, callbacks=[EarlyStopping()]), "'val_loss'", "validation_data", "'loss'")


def test_early_stopping_with_unknown_direction_asks_for_mode():
    model = compiled(metrics=[Count()])
    refused(lambda: fit(model, X, Y, callbacks=[EarlyStopping("count")]), "'count'", "mode='min' or mode='max'")


def test_the_best_of_an_unknown_value_gets_the_nearest():
    history = fit(compiled(), X, Y)
    refused(lambda: history.best("los"), "'los'", "Did you mean 'loss'", "'lr'", kind=KeyError)


def test_an_unknown_score_gets_the_nearest():
    scores = compiled(metrics=["accuracy"]).evaluate(X, Y, verbose=0)
    refused(lambda: scores["acuracy"], "'acuracy'", "Did you mean 'accuracy'", kind=KeyError)
    refused(lambda: scores.acuracy, "'acuracy'", "Did you mean 'accuracy'", kind=AttributeError)


# The order of calls


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("fit", lambda model: model.fit(X, Y)),
        ("evaluate", lambda model: model.evaluate(X, Y)),
        ("train_on_batch", lambda model: model.train_on_batch(X, Y)),
        ("test_on_batch", lambda model: model.test_on_batch(X, Y)),
    ],
)
def test_methods_before_compile_name_the_missing_call(method, call):
    refused(lambda: call(Model(mlp())), rf"{method}\(\) needs a compiled model", r"compile\('adam'", kind=RuntimeError)


def test_fit_without_an_optimizer_names_the_missing_call():
    model = Model(mlp()).compile(None, "cross_entropy")
    refused(lambda: model.fit(X, Y), "optimizer", r"compile\('adam'", kind=RuntimeError)


def test_evaluate_without_data_before_fit_asks_for_data():
    refused(lambda: compiled().evaluate(), "no data", r"evaluate\(x, y\)", kind=ValueError)
