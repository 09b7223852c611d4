"""An explained error shows the lines of the user and the message; every other error is complete."""

from __future__ import annotations

import code
import copy
import io
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import easytorch
from easytorch import Callback, LambdaCallback, Model, RankError
from easytorch._utils import tracebacks
from easytorch._utils.tracebacks import hide_internal_frames, is_explained
from tests.loops import blobs, mlp

X, Y = blobs(48)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x)  # the line in forward()


class Broken(Net):
    def forward(self, x):
        raise ValueError("an error of the user")


class BrokenDataset(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {}["missing"]


def compiled(net=None, loss="cross_entropy"):
    return Model(mlp() if net is None else net, device="cpu").compile("sgd", loss)


def compiled_step():
    class Wrong(Model):
        def train_step(self, batch):
            return {"loss": 1.0}

    return Wrong(mlp(), device="cpu").compile("sgd", "cross_entropy")


def error_of(run):
    with pytest.raises(BaseException) as caught:
        run()
    return caught.value


def lines_of(error):
    return "".join(traceback.format_exception(error)).splitlines()


def modules_of(error):
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return {frame.f_globals["__name__"].partition(".")[0] for frame in frames}


EXPLAINED = {
    "layer": lambda: compiled(Net()).fit(X, Y, verbose=0),
    "layer, with validation": lambda: compiled(Net()).fit(X, Y, validation_split=0.25, verbose=0),
    "layer, predict": lambda: compiled(Net()).predict(X, verbose=0),
    "layer, train_on_batch": lambda: compiled(Net()).train_on_batch(X, Y),
    "labels": lambda: compiled().fit(X, Y + 5, verbose=0),
    "data": lambda: compiled().fit("train.csv"),
    "argument": lambda: compiled().fit(X, Y, epoch=3),
    "name": lambda: compiled().compile("adm"),
    "option": lambda: easytorch.EarlyStopping(patince=3),
    "attribute": lambda: compiled().layers,
    "assignment": lambda: setattr(compiled(), "lr", 0.1),
    "name of the package": lambda: easytorch.load_model,
    "import": lambda: exec("from easytorch import load_model"),
    "one sample": lambda: compiled().predict_proba(X[0], verbose=0),
    "samples": lambda: compiled().fit(zip(X, Y, strict=True), verbose=0),
    "no file of a model": lambda: compiled().load(__file__),
    "NumPy": lambda: compiled(loss=lambda y_pred, y: np.mean(y_pred)).fit(X, Y, verbose=0),
    "train_step(x, y)": lambda: type("Wrong", (Model,), {"train_step": lambda self, x, y: {}}),
    "step without a tensor": lambda: compiled_step().fit(X, Y, verbose=0),
    "chain": lambda: compiled().fit(X, Y, verbose=0).evaluate("train.csv"),
    "history": lambda: compiled().fit(X, Y, verbose=0)["val_loss"],
    "scores": lambda: compiled().evaluate(X, Y, verbose=0)["acc"],
    "file": lambda: compiled().load("missing.pt"),
    "data.split": lambda: easytorch.data.split("train.csv"),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_an_explained_error_shows_only_lines_of_the_user(case):
    error = error_of(EXPLAINED[case])
    assert modules_of(error) <= {"tests", "_pytest"}
    assert len(lines_of(error)) <= 16
    assert "direct cause" not in "".join(lines_of(error))


def test_the_lines_of_forward_stay_visible():
    for case in ("layer", "layer, with validation", "layer, predict"):
        text = "\n".join(lines_of(error_of(EXPLAINED[case])))
        assert text.index("compiled(Net())") < text.index("# the line in forward()") < text.index("expects 5 features")


def test_the_original_error_is_the_context():
    error = error_of(EXPLAINED["layer"])
    assert isinstance(error.__context__, RuntimeError)
    assert "torch" in modules_of(error.__context__)


def test_an_error_of_the_user_is_complete():
    error = error_of(lambda: compiled(Broken()).fit(X, Y, verbose=0))
    assert str(error) == "an error of the user"
    assert {"easytorch", "torch", "tests"} <= modules_of(error)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_begin", "on_train_end", "on_before_optimizer_step"])
def test_an_error_in_a_callback_is_complete(hook):
    def fail(*args):
        raise ValueError("in the hook")

    error = error_of(lambda: compiled().fit(X, Y, callbacks=[LambdaCallback(**{hook: fail})], verbose=0))
    assert "easytorch" in modules_of(error)
    assert (
        lines_of(error)[-3].strip().startswith('raise ValueError("in the hook")')
        or "in the hook" in lines_of(error)[-2]
    )


def test_an_error_in_a_dataset_is_complete():
    error = error_of(lambda: compiled().fit(DataLoader(BrokenDataset()), verbose=0))
    assert isinstance(error, KeyError)
    assert {"easytorch", "tests"} <= modules_of(error)


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_ctrl_c_shows_only_lines_of_the_user(method):
    class Slow(BrokenDataset):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    error = error_of(lambda: getattr(compiled(), method)(Slow(), verbose=0))
    assert isinstance(error, KeyboardInterrupt)
    assert modules_of(error) == {"tests"}


def test_a_bug_of_the_package_is_complete(monkeypatch):
    monkeypatch.setattr(Model, "train_epoch", lambda self, data: data.no_such_attribute)
    error = error_of(lambda: compiled().fit(X, Y, verbose=0))
    assert isinstance(error, AttributeError)
    assert "easytorch" in modules_of(error)


def test_an_error_with_a_bug_as_its_cause_is_complete():
    bug = error_of(lambda: exec("{}['key']", {"__name__": "easytorch.bug"}))
    scope = {"__name__": "easytorch.module", "bug": bug, "hide": hide_internal_frames}
    exec("@hide\ndef run():\n    raise ValueError('a message') from bug", scope)
    error = error_of(scope["run"])
    assert error.__cause__ is bug
    assert "easytorch" in modules_of(error)


def test_the_context_of_the_user_stays():
    def run():
        try:
            {}["key"]
        except KeyError:
            compiled().compile("adm")

    error = error_of(run)
    assert isinstance(error.__context__, KeyError)
    assert "During handling of the above exception" in "\n".join(lines_of(error))


def test_a_chain_of_the_user_stays():
    def run():
        try:
            compiled().compile("adm")
        except ValueError as error:
            raise RuntimeError("my message") from error

    error = error_of(run)
    assert isinstance(error.__cause__, ValueError)
    assert modules_of(error.__cause__) == {"tests"}


def test_an_explained_error_through_a_callback_keeps_the_line_of_the_callback():
    class Own(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.predict("three.png")  # the line in the hook

    error = error_of(lambda: compiled().fit(X, Y, callbacks=[Own()], verbose=0))
    assert modules_of(error) == {"tests"}
    assert "# the line in the hook" in "\n".join(lines_of(error))


def test_errors_of_ranks_and_imports_keep_their_cause():
    for kind in (RankError, ImportError):
        scope = {
            "__name__": "easytorch.module",
            "kind": kind,
            "cause": OSError("the reason"),
            "hide": hide_internal_frames,
        }
        exec("@hide\ndef run():\n    raise kind('a message') from cause", scope)
        error = error_of(scope["run"])
        assert isinstance(error.__cause__, OSError)
        assert modules_of(error) == {"tests"}


def test_the_switch_brings_all_frames_back():
    easytorch.show_internal_frames()
    try:
        error = error_of(EXPLAINED["layer"])
        assert {"easytorch", "torch"} <= modules_of(error) | modules_of(error.__cause__)
        assert isinstance(error.__cause__, RuntimeError)
    finally:
        easytorch.show_internal_frames(False)
    assert modules_of(error_of(EXPLAINED["layer"])) == {"tests"}


def test_an_error_in_an_exception_group_stays():
    group = pytest.importorskip("builtins").__dict__.get("ExceptionGroup")
    if group is None:
        pytest.skip("Python 3.10 has no exception groups")

    def fail(*args):
        raise group("several", [ValueError("one"), TypeError("two")])

    error = error_of(lambda: compiled().fit(X, Y, callbacks=[LambdaCallback(on_epoch_end=fail)], verbose=0))
    assert len(error.exceptions) == 2
    assert "easytorch" in modules_of(error)


def test_a_debugger_starts_in_the_line_of_the_user():
    error = error_of(EXPLAINED["layer"])
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    assert frame.f_code is Net.forward.__code__
    assert torch.equal(frame.f_locals["x"].float(), frame.f_locals["x"])


def test_the_repl_shows_only_lines_of_the_user(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    console = code.InteractiveConsole({"model": compiled(Net()), "X": X, "Y": Y})
    console.push("model.fit(X, Y, verbose=0)")
    text = stream.getvalue()
    assert "expects 5 features" in text
    assert os.sep + "easytorch" + os.sep + "model.py" not in text
    assert len(text.splitlines()) < 10


def test_ipython_shows_only_lines_of_the_user(tmp_path, monkeypatch):
    shell_module = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = shell_module.InteractiveShell()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    shell.user_ns.update(model=compiled(Net()), X=X, Y=Y)
    shell.run_cell("model.fit(X, Y, verbose=0)")
    monkeypatch.undo()
    text = stream.getvalue()
    assert "expects 5 features" in text
    assert "translate_errors" not in text
    assert len(text.splitlines()) < 30


def test_the_environment_variable_is_the_same_switch(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import easytorch, torch\n"
        "model = easytorch.Model(torch.nn.Linear(5, 3)).compile('sgd', 'mse')\n"
        "model.fit(torch.ones(8, 4), torch.ones(8, 3))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(easytorch.__file__).parents[1])}

    def run(value):
        result = subprocess.run(
            [sys.executable, str(script)],
            env={**environment, "EASYTORCH_FULL_TRACEBACK": value},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1
        return result.stderr

    short, full = run("0"), run("1")
    assert len(short.splitlines()) <= 6
    assert "The above exception was the direct cause" in full
    assert short.splitlines()[-1] == full.splitlines()[-1]


def test_a_hidden_function_keeps_its_result_and_its_name():
    def double(value):
        """Return twice the value."""
        return 2 * value

    hidden = hide_internal_frames(double)
    assert (hidden(2), hidden.__name__, hidden.__doc__) == (4, "double", double.__doc__)


def test_explained_errors_can_be_copied():
    error = error_of(EXPLAINED["layer"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == str(copy.copy(error))


def test_a_warning_that_is_an_error_is_explained():
    with pytest.warns(UserWarning, match="Softmax|softmax"):
        compiled(nn.Sequential(mlp(), nn.Softmax(1))).fit(X, Y, verbose=0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = error_of(lambda: compiled(nn.Sequential(mlp(), nn.Softmax(1))).fit(X, Y, verbose=0))
    assert is_explained(error)
    assert modules_of(error) == {"tests"}


def test_all_public_classes_and_functions_hide_their_frames():
    def is_wrapped(function):
        while function is not None:
            if function.__code__.co_filename == tracebacks.__file__:
                return True
            function = getattr(function, "__wrapped__", None)
        return False

    names = "fit evaluate predict predict_proba predict_classes compile train_on_batch save load load_weights summary __init__"
    assert all(is_wrapped(getattr(Model, name)) for name in names.split())
    assert all(
        map(is_wrapped, (easytorch.launch, easytorch.data.split, easytorch.data.in_memory, easytorch.data.seeded))
    )
    classes = [getattr(easytorch.callbacks, name) for name in easytorch.callbacks.__all__]
    assert all(is_wrapped(cls.__init__) for cls in classes if "__init__" in vars(cls))
