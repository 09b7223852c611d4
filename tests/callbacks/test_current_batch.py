"""The current batch and outputs, which callbacks read."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.callbacks import Callback
from tests.loops import blobs
from tests.many import run_ranks

X, Y = blobs(20)


class Reader(Callback):
    """Collects what a callback reads in each hook."""

    def __init__(self):
        self.seen, self.windows, self.outputs, self.references = [], [], [], []

    def read(self, hook):
        x, y = self.model.current_batch
        self.seen.append((hook, x.clone(), y.clone()))

    def on_train_batch_begin(self, batch, logs=None):
        self.read("start")

    def on_before_optimizer_step(self):
        self.read("before step")

    def on_train_batch_end(self, batch, logs=None):
        self.read("end")
        self.windows.append([len(x) for x, _ in self.model.current_window])
        self.outputs.append(self.model.current_outputs)
        self.references += [weakref.ref(self.model.current_batch[0]), weakref.ref(self.model.metrics.outputs["loss"])]

    def on_test_batch_end(self, batch, logs=None):
        self.read("test")
        self.outputs.append(self.model.current_outputs)


def new_model(**options):
    torch.manual_seed(0)
    return Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", **options)


def test_each_hook_reads_the_batch_of_its_step():
    reader = Reader()
    new_model().fit(DataLoader([*zip(X, Y, strict=True)], 8), callbacks=[reader], verbose=0)
    assert [hook for hook, _, _ in reader.seen] == ["start", "before step", "end"] * 3
    for i in range(3):
        for _, x, y in reader.seen[3 * i : 3 * i + 3]:
            assert torch.equal(x, X[8 * i : 8 * i + 8])
            assert torch.equal(y, Y[8 * i : 8 * i + 8])


def test_outputs_are_what_the_step_returned_without_gradients():
    class Two(Model):
        def train_step(self, batch):
            x, y = batch
            return {"loss": self.loss(self(x), y), "pair": (x.sum(), len(x))}

    reader = Reader()
    torch.manual_seed(0)
    model = Two(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    expected = nn.functional.cross_entropy(model.module(X[:8]), Y[:8])
    model.fit(X, Y, batch_size=8, shuffle=False, callbacks=[reader], verbose=0)
    assert torch.equal(reader.outputs[0]["loss"], expected)
    assert not reader.outputs[0]["loss"].requires_grad
    assert reader.outputs[0]["pair"] == (X[:8].sum(), 8)


def test_a_window_has_all_batches_of_an_update():
    reader = Reader()
    new_model(gradient_accumulation_steps=2).fit(X, Y, batch_size=8, shuffle=False, callbacks=[reader], verbose=0)
    assert reader.windows == [[8, 8], [4]]
    assert torch.equal(reader.seen[2][1], X[8:16])


def test_evaluations_have_their_own_batches():
    reader = Reader()
    model = new_model()
    model.fit(X, Y, batch_size=10, shuffle=False, validation_data=(X[:6], Y[:6]), callbacks=[reader], verbose=0)
    assert [hook for hook, _, _ in reader.seen][-2:] == ["end", "test"]
    assert torch.equal(reader.seen[-1][1], X[:6])
    reader = Reader()
    scores = model.evaluate(X[:4], Y[:4], callbacks=[reader], verbose=0)
    assert torch.equal(reader.seen[0][1], X[:4])
    assert reader.outputs[0]["loss"].item() == pytest.approx(scores.loss)


def test_predictions_have_the_batch_in_the_logs():
    class Read(Callback):
        def on_predict_batch_end(self, batch, logs=None):
            batches.append(logs["batch"])

    batches = []
    new_model().predict(X, batch_size=8, callbacks=[Read()], verbose=0)
    assert torch.equal(torch.cat(batches), X)


def test_nothing_is_kept_after_a_fit():
    reader = Reader()
    model = new_model()
    model.fit(DataLoader([*zip(X, Y, strict=True)], 8), callbacks=[reader], verbose=0)
    reader.seen.clear()
    gc.collect()
    assert [reference() for reference in reader.references] == [None] * 6
    assert model.current_outputs is None
    with pytest.raises(RuntimeError, match="There is no current batch"):
        _ = model.current_batch


def test_nothing_is_kept_after_a_failed_fit():
    class Fail(Reader):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            raise KeyError

    model, reader = new_model(), Fail()
    with pytest.raises(KeyError):
        model.fit(DataLoader([*zip(X, Y, strict=True)], 8), callbacks=[reader], verbose=0)
    assert model.metrics.current_batches() == []
    assert model.current_outputs is None


def read_on_rank():
    reader = Reader()
    new_model().fit(X, Y, batch_size=5, shuffle=False, callbacks=[reader], verbose=0)
    return [x for hook, x, _ in reader.seen if hook == "end"]


def test_each_rank_reads_its_own_batch():
    first, second = run_ranks(read_on_rank)
    assert torch.equal(torch.cat([first[0], second[0], first[1], second[1]]), X)
