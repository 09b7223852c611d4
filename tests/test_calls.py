"""Promise 4: who calls with arguments that do not exist is told those that do."""

import inspect
import re

import pytest
from torch import nn

from easytorch import Model
from easytorch.calls import INSTEAD
from tests.loops import blobs, mlp

X, Y = blobs()


def compiled():
    return Model(mlp()).compile("sgd", "cross_entropy")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: compiled().fit(X, Y, 32, 5), r"fit\(x, y, epochs=\.\.\., \.\.\.\)"),
        (lambda: compiled().fit(X, Y, epoch=5), "Did you mean 'epochs'"),
        (lambda: compiled().fit(X, Y, val_data=(X, Y)), "Here it is validation_data="),
        (lambda: compiled().fit(X, Y, validation_batch_size=8), r"DataLoader\(dataset, 64\)"),
        (lambda: compiled().evaluate(X, Y, return_dict=True), r"dict\(model\.evaluate\(\.\.\.\)\)"),
        (lambda: Model(mlp()).compile("adam", "mse", learning_rate=0.1), "Here it is lr=0.001"),
        (lambda: Model(mlp()).compile("adam", "mse", metric=["mae"]), "Did you mean 'metrics'"),
        (lambda: compiled().fit(X, Y, zzz=1), r"fit\(\) takes x, y, epochs, batch_size, validation_data"),
        (lambda: Model.load("model.pt"), r"It is a method of a model: Model\(module\)\.load\(\.\.\.\)"),
        (lambda: compiled().predict(), r"See help\(Model\.predict\)"),
    ],
)
def test_wrong_arguments_are_answered_with_the_right_ones(call, told):
    with pytest.raises(TypeError, match=told):
        call()


def test_an_error_inside_a_call_is_left_as_it_is():
    class Confused(nn.Module):
        def forward(self, x):
            return int(None)

    with pytest.raises(TypeError) as caught:
        Model(Confused()).compile(loss="mse").evaluate(X, Y, verbose=0)
    assert "See help" not in str(caught.value)


def test_signatures_and_docstrings_stay_those_of_the_methods():
    assert list(inspect.signature(Model.fit).parameters)[:4] == ["self", "x", "y", "epochs"]
    assert "Train, and return the history" in Model.fit.__doc__


def test_what_is_offered_instead_exists():
    known = {name for method in (Model.compile, Model.fit) for name in inspect.signature(method).parameters}
    offered = {found[1] for text in INSTEAD.values() if (found := re.match(r"(\w+)=", text))}
    assert len(offered) > 5
    assert offered <= known
    assert not known & set(INSTEAD)
