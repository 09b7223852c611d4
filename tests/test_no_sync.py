"""Training steps without reads from the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import LambdaCallback
from easytorch.callbacks.advice import WarnOnNonFiniteLoss
from tests.loops import blob_loader, blobs, mlp

# Operators that return a result to the host.
OPERATORS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
METHODS = {
    getattr(torch.Tensor, name)
    for name in ("tolist", "cpu", "numpy", "item", "__bool__", "__float__", "__int__", "__index__", "__array__")
}


class _Operators(TorchDispatchMode):
    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func.overloadpacket.__name__ in OPERATORS
        return func(*args, **(kwargs or {}))


class ReadCounter(TorchFunctionMode):
    """Counts the calls of methods and operators that make the host wait for values of a tensor."""

    def __init__(self):
        super().__init__()
        self.operators, self.methods = _Operators(), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.methods += func in METHODS
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.operators.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.operators.__exit__(*error)

    @property
    def reads(self):
        return self.methods + self.operators.reads


def count_reads_of_fit(rows, **options):
    model = Model(mlp(), device="cpu").compile(
        "adam", "cross_entropy", metrics=["accuracy", "top_2_accuracy"], **options.pop("compile", {})
    )
    # In order: a shuffled loader reads its seed on the host.
    loader = blob_loader(rows, 8)
    with ReadCounter() as counter:
        model.fit(loader, verbose=0, **options)
    return counter.reads


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compile": {"gradient_accumulation_steps": 2}},
        {"compile": {"clip_grad_norm": 1.0, "clip_grad_value": 0.5}},
        {"class_weight": {0: 1.0, 1: 2.0}},
        {"callbacks": [LambdaCallback(on_train_batch_end=lambda batch, logs: logs)]},
    ],
    ids=["plain", "accumulation", "clipping", "class weights", "callback without reads"],
)
def test_training_steps_read_no_tensor(options, monkeypatch):
    # On a CPU, where nothing waits, a loss of NaN is looked for every few seconds.
    monkeypatch.setattr(WarnOnNonFiniteLoss, "FIRST_SECONDS", math.inf)
    assert count_reads_of_fit(80 * 8, **dict(options)) == count_reads_of_fit(8 * 8, **dict(options))


CONVERTED = {
    "one-hot": (3, "cross_entropy", lambda y: nn.functional.one_hot(y, 3)),
    "a column of labels": (3, "cross_entropy", lambda y: y[:, None]),
    "float labels": (3, "cross_entropy", lambda y: y.float()),
    "flat booleans": (1, "bce_with_logits", lambda y: y > 0),
    "flat integers": (1, "mse", lambda y: y),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_targets_are_converted_without_reads(name):
    outputs, loss, convert = CONVERTED[name]
    counts = []
    for rows in (64, 640):
        x, y = blobs(rows)
        loader = DataLoader(TensorDataset(x, convert(y)), 8)
        model = Model(mlp(8, outputs), device="cpu").compile(
            "adam", loss, metrics=["mae"] if loss == "mse" else ["accuracy"]
        )
        with ReadCounter() as counter:
            model.fit(loader, verbose=0)
        counts.append(counter.reads)
    assert counts[0] == counts[1]


def test_reads_of_evaluate_do_not_depend_on_the_batches():
    model = Model(mlp(), device="cpu").compile(None, "cross_entropy", metrics=["accuracy"])
    counts = []
    for rows in (64, 640):
        with ReadCounter() as counter:
            model.evaluate(blob_loader(rows, 8), verbose=0)
        counts.append(counter.reads)
    assert counts[0] == counts[1]


def test_a_callback_that_reads_logs_causes_reads():
    fit = {"callbacks": [LambdaCallback(on_train_batch_end=lambda batch, logs: logs["loss"])]}
    assert count_reads_of_fit(80, **fit) > count_reads_of_fit(40, **fit)
