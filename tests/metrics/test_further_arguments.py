"""Metrics with more arguments than predictions and targets."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from easytorch import EpochMetric, Model
from tests.loops import blobs, mlp
from tests.many import run_ranks

X, Y = blobs(44)
PRICE = torch.rand(44, generator=torch.Generator().manual_seed(0))
ARRAYS = {"x": X, "y": Y, "price": PRICE}


def profit(y_pred, y, price):
    return (y_pred.argmax(1) == y) * price


def sensitivity(y_pred, y, x, *, model, share=0.5):
    return (model(x + share) - y_pred).abs().sum(1)


def setting(y_pred, y, price=None, top=2):
    return torch.full_like(y, (price is None) * top).float()


def new_model(metrics=(profit,), **options):
    torch.manual_seed(0)
    return Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics, lr=0.0, **options)


def data(form):
    samples = [{"x": x, "y": y, "price": price} for x, y, price in zip(X, Y, PRICE, strict=True)]
    pairs = [({"x": s["x"], "price": s["price"]}, s["y"]) for s in samples]
    return {"dict": ARRAYS, "pair": ({"x": X, "price": PRICE}, Y), "loader": samples, "pairs": pairs}[form]


@pytest.mark.parametrize("form", ["dict", "pair", "loader", "pairs"])
def test_a_metric_gets_entries_of_the_batch(form):
    model = new_model()
    found = data(form)
    found = DataLoader(found, 8) if isinstance(found, list) else found
    options = {} if isinstance(found, DataLoader) else {"batch_size": 8}
    history = model.fit(found, validation_data=found, verbose=0, **options)
    expected = profit(model.module(X), Y, PRICE).mean().item()
    assert history["profit"][0] == pytest.approx(expected, rel=1e-5)
    assert history["val_profit"][0] == pytest.approx(expected, rel=1e-5)
    assert model.evaluate(found, verbose=0)["profit"] == pytest.approx(expected, rel=1e-5)
    assert model.predict(found, verbose=0).shape == (44, 3)


def test_a_metric_gets_inputs_and_the_model():
    model = new_model([sensitivity])
    expected = sensitivity(model.module(X), Y, X, model=model.module).mean().item()
    assert model.evaluate(X, Y, verbose=0)["sensitivity"] == pytest.approx(expected, rel=1e-5)


def test_parameters_with_a_default_are_settings():
    assert new_model([profit, setting]).evaluate(ARRAYS, verbose=0)["setting"] == 2


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_uses_the_copied_model(copy_of):
    model = copy_of(new_model([profit, sensitivity]))
    assert model.metrics._all_entries[1].metric.further_arguments.model is model
    assert model.evaluate(ARRAYS, verbose=0)["profit"] > 0


def test_a_missing_entry_is_named():
    with pytest.raises(TypeError, match=r"The metric, 'profit', has the parameter 'price'.*\"y\": y, 'price'"):
        new_model().fit(X, Y, verbose=0)


def test_sample_weights_are_no_argument_of_a_metric():
    def weighted(y_pred, y, sample_weight):
        return sample_weight

    with pytest.raises(TypeError, match=r"weighted_metrics=\[weighted\]"):
        new_model([weighted])
    with pytest.raises(TypeError, match=r"none of 'x', 'model', 'module', 'batch'"):
        new_model().fit(X, Y, verbose=0)


def test_an_epoch_metric_refuses_entries_of_the_batch():
    with pytest.raises(TypeError, match="also requires 'price'"):
        EpochMetric(profit)
    assert EpochMetric(profit, price=PRICE).name == "profit"


class Step(Model):
    passes_batch = True

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        y_pred = self(x)
        self.metrics.update(y_pred, y, **{"batch": batch} if self.passes_batch else {})
        return {"loss": F.cross_entropy(y_pred, y)}


class StepWithoutBatch(Step):
    passes_batch = False


def test_a_custom_step_passes_the_batch():
    for kind in (Step, StepWithoutBatch):
        torch.manual_seed(0)
        model = kind(mlp(), device="cpu").compile("sgd", metrics=[profit], lr=0.0)
        if kind is Step:
            expected = new_model().fit(ARRAYS, verbose=0)["profit"]
            assert model.fit(ARRAYS, verbose=0)["profit"] == pytest.approx(expected)
        else:
            with pytest.raises(TypeError, match=r"self.metrics.update\(y_pred, y, batch=batch\)"):
                model.fit(ARRAYS, verbose=0)


def _measure():
    return new_model(gradient_accumulation_steps=2).fit(ARRAYS, batch_size=4, verbose=0)["profit"][0]


@pytest.mark.distributed
def test_ranks_measure_all_samples():
    expected = profit(new_model().module(X), Y, PRICE).mean().item()
    assert run_ranks(_measure) == [pytest.approx(expected, rel=1e-5)] * 2
