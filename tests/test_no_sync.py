"""Promise 2: nothing in the loop waits for the device."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from easytorch import Model
from easytorch.callbacks import LambdaCallback
from tests.loops import blob_loader, mlp

OPERATORS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")  # whose results are needed on the host
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
    """Counts what makes the host wait for a tensor's values, in the methods and in the operators below them."""

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


def reads_of_a_fit(rows, **options):
    model = Model(mlp(), device="cpu").compile(
        "adam", "cross_entropy", metrics=["accuracy", "top_2_accuracy"], **options.pop("compile", {})
    )
    loader = blob_loader(rows, 8)  # in order: a shuffled loader reads its seed, on the host
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
    ids=["plain", "accumulation", "clipping", "class weights", "a callback that does not read"],
)
def test_no_step_reads_a_tensor(options):
    assert reads_of_a_fit(80 * 8, **dict(options)) == reads_of_a_fit(8 * 8, **dict(options))


def test_evaluation_reads_once_however_many_batches_there_are():
    model = Model(mlp(), device="cpu").compile(None, "cross_entropy", metrics=["accuracy"])
    counts = []
    for rows in (64, 640):
        with ReadCounter() as counter:
            model.evaluate(blob_loader(rows, 8), verbose=0)
        counts.append(counter.reads)
    assert counts[0] == counts[1]


def test_who_reads_a_log_pays_when_he_reads():
    fit = {"callbacks": [LambdaCallback(on_train_batch_end=lambda batch, logs: logs["loss"])]}
    assert reads_of_a_fit(80, **fit) > reads_of_a_fit(40, **fit)
