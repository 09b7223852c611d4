"""Any order of calls: sharded weights give the results of DDP."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import FullySharded, Model
from easytorch.callbacks import EarlyStopping, LambdaCallback
from tests.loops import blobs
from tests.many import furthest, run_ranks

X, Y = blobs(20)
X = X.double()
HELD_OUT = (X[:7], Y[:7])  # the ranks evaluate unequal numbers of batches


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        # Adam would amplify the rounding errors of a bias in front of BatchNorm, whose gradient is 0.
        self.inner, self.norm = nn.Linear(8, 7, bias=False), nn.BatchNorm1d(7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = self.norm(self.inner(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Program:
    """A model and the calls of a program, each of which returns what a user sees."""

    def __init__(self, strategy, folder):
        torch.manual_seed(0)
        self.strategy, self.folder = strategy, folder
        self.model = Model(Net().double(), device="cpu")
        self.compile_adam()

    def compile(self, optimizer, **options):
        strategy = FullySharded("cpu", unit=40) if self.strategy == "fsdp" else self.strategy
        self.model.compile(optimizer, "cross_entropy", metrics=["accuracy"], strategy=strategy, **options)

    def compile_adam(self):
        self.compile("adam", lr=0.05)

    def compile_function(self):
        self.compile(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))

    def compile_object(self):
        parameters = list(self.model.module.parameters())
        groups = [{"params": parameters[:3], "lr": 0.02}, {"params": parameters[3:]}]
        self.compile(torch.optim.AdamW(groups, lr=0.05))

    def fit(self, **options):
        options = {"epochs": 1, "batch_size": 4, "verbose": 0} | options
        return list(self.model.fit(X, Y, **options)["loss"])

    def fit_validated(self, **options):
        self.fit(validation_data=HELD_OUT, **options)
        return self.model.history["val_loss"]

    def fit_restored(self):
        return self.fit_validated(epochs=3, callbacks=[EarlyStopping(patience=0, restore_best_weights=True)])

    def fit_resumed(self):
        return self.fit_validated(resume=self.folder / "run")

    def fit_evaluating(self):
        scores = []

        def evaluate(*_):
            scores.append(self.evaluate())
            scores.append(self.predict())

        self.fit(callbacks=[LambdaCallback(on_epoch_begin=evaluate, on_train_batch_end=evaluate)])
        return scores

    def evaluate(self):
        return list(self.model.evaluate(*HELD_OUT, batch_size=4, verbose=0))

    def predict(self):
        return self.model.predict(X[:9], batch_size=4, verbose=0)

    def train_on_batch(self):
        return list(self.model.train_on_batch(X[:6], Y[:6]))

    def test_on_batch(self):
        return list(self.model.test_on_batch(X[:6], Y[:6]))

    def predict_on_batch(self):
        return self.model.predict_on_batch(X[:6])

    def save(self):
        self.model.save(self.folder / "model.pt")

    def load(self):
        if (self.folder / "model.pt").exists():
            self.model.load(self.folder / "model.pt")

    def save_weights(self):
        self.model.save_weights(self.folder / "weights.pt")

    def load_weights(self):
        if (self.folder / "weights.pt").exists():
            self.model.load_weights(self.folder / "weights.pt")

    def fail(self):
        """Continue after errors in an update, an evaluation and a prediction, on all ranks."""
        wrong, options = X[:4, :5], {"batch_size": 2, "verbose": 0}
        with pytest.raises(ValueError, match="expects 8 features"):
            self.model.fit(wrong, Y[:4], **options)
        with pytest.raises(ValueError, match="expects 8 features"):
            self.model.evaluate(wrong, Y[:4], **options)
        with pytest.raises(ValueError, match="expects 8 features"):
            self.model.predict(wrong, **options)

    def weights(self):
        weights = self.model.strategy.checkpoints.gather(self.model.module.state_dict())
        return {name: value.clone() for name, value in weights.items()}


TRAINING = ("fit", "fit_validated", "train_on_batch", "fit_restored", "fit_resumed", "fit_evaluating")
EVALUATION = ("evaluate", "predict", "test_on_batch", "predict_on_batch")
COMPILATION = ("compile_adam", "compile_function", "compile_object")
FILES = ("save", "load", "save_weights", "load_weights")
CALLS = (*TRAINING, *EVALUATION, *COMPILATION, *FILES, "fail")


def make_sequences(count=24):
    """Return every evaluation before and after training and a second compile, and ``count`` drawn sequences."""
    planned = [
        *itertools.product(EVALUATION, ["fit"]),
        *itertools.product(["fit_validated"], EVALUATION, COMPILATION, ["fit"]),
        *itertools.product(["fit_validated", "fail"], [*TRAINING, *FILES], ["fit"]),
        ("save", "fit_validated", "load", "evaluate", "fit"),
        ("save_weights", "fit_validated", "load_weights", "predict", "fit"),
    ]
    rng = random.Random(0)
    drawn = [(*rng.choices(CALLS, k=rng.randint(2, 4)), "fit") for _ in range(count)]
    return list(dict.fromkeys([*planned, *drawn]))


SEQUENCES = make_sequences()
FEW = [
    ("evaluate", "fit_validated", "evaluate", "compile_adam", "fit"),
    ("predict_on_batch", "fit_validated", "fit_validated", "predict", "fit_restored"),
    ("fail", "train_on_batch", "compile_object", "test_on_batch", "fit"),
]


def run_sequences(strategy, sequences):
    """Return the weights and results after each call of each sequence."""
    records = []
    for sequence in sequences:
        folder = Path(tempfile.mkdtemp())  # of this rank
        program = Program(strategy, folder)
        group = program.model.strategy.group
        program.folder, records_of_sequence = group.broadcast(folder), []
        for call in sequence:
            result = getattr(program, call)()
            records_of_sequence.append((program.weights(), [] if result is None else result))
            is_sharded = [hasattr(p, "to_local") for p in program.model.module.parameters()]
            assert set(is_sharded) == {strategy == "fsdp"}, f"{call} leaves other parameters in the module"
        records.append(records_of_sequence)
        group.barrier()
        shutil.rmtree(folder)
    return records


def check_sequences(sequences):
    expected, sharded = (run_ranks(run_sequences, name, sequences, timeout=500) for name in ("ddp", "fsdp"))
    failures = []
    for rank_expected, rank_sharded in zip(expected, sharded, strict=True):
        for sequence, steps, others in zip(sequences, rank_expected, rank_sharded, strict=True):
            differences = [difference(step, other) for step, other in zip(steps, others, strict=True)]
            failures += [
                f"{call} in {' -> '.join(sequence)}: {value:.1e}"
                for call, value in zip(sequence, differences, strict=True)
                if not value < 1e-9
            ]
    assert not failures, "\n".join(failures)


def difference(step, other):
    """Return the largest difference between weights and results."""
    values, others = flatten(step[1]), flatten(other[1])
    results = [float(np.abs(np.subtract(a, b)).max()) for a, b in zip(values, others, strict=True)]
    return max(furthest(step[0], other[0]), *results, 0.0)


def flatten(value):
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in flatten(part)]
    return [value]


def test_a_few_orders_of_calls_equal_ddp():
    check_sequences(FEW)


@pytest.mark.slow
@pytest.mark.distributed
def test_generated_orders_of_calls_equal_ddp():
    assert len(SEQUENCES) >= 60
    assert max(map(len, SEQUENCES)) == 5
    check_sequences(SEQUENCES)
