"""Pickles and copies of models."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn

from easytorch import Model, callbacks
from tests.loops import blobs, mlp

X, Y = blobs()


def pickle_copy(model):
    return pickle.loads(pickle.dumps(model))


def torch_copy(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def continue_training(model):
    torch.manual_seed(1)
    history = model.fit(X, Y, epochs=2, batch_size=16, verbose=0).history
    return history, model.module.state_dict()


def assert_same_training(model, twin):
    (history, weights), (other_history, other_weights) = continue_training(model), continue_training(twin)
    assert other_history == history
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())


@pytest.mark.parametrize("make_copy", [pickle_copy, torch_copy, copy.deepcopy])
@pytest.mark.parametrize("scheduler", [None, "warmup_cosine", "one_cycle"])
def test_a_copy_of_a_model_predicts_and_trains_the_same(make_copy, scheduler):
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy", "f1"], scheduler=scheduler)
    early_stopping = callbacks.EarlyStopping(restore_best_weights=True)
    model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[early_stopping], verbose=0)
    twin = make_copy(model)
    assert (twin.predict(X, verbose=0) == model.predict(X, verbose=0)).all()
    assert_same_training(model, twin)


@pytest.mark.parametrize("loss", ["bce", nn.GaussianNLLLoss(), nn.functional.mse_loss])
def test_every_kind_of_loss_can_be_pickled(loss):
    twin = pickle_copy(Model(mlp(), device="cpu").compile("sgd", loss, metrics=["rmse", "mae"]))
    assert repr(twin.loss) == repr(Model(mlp()).compile("sgd", loss).loss)


def test_a_scheduler_per_update_continues_in_a_copy():
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=100)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", scheduler=schedule)
    model.fit(X, Y, verbose=0)
    assert_same_training(model, pickle_copy(model))


def test_an_optimizer_from_a_lambda_can_be_pickled():
    model = Model(mlp(), device="cpu").compile(lambda parameters: torch.optim.SGD(parameters, 0.1), "cross_entropy")
    assert_same_training(model, pickle_copy(model))


def test_a_copy_from_a_callback_is_independent_of_the_fit():
    copies = []
    copier = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: copies.append(pickle_copy(copier.model)))
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    model.fit(X, Y, epochs=2, callbacks=[copier], verbose=1)
    assert [model_copy.state.epoch for model_copy in copies] == [1, 2]
    assert_same_training(model, copies[1])


def test_a_pickle_contains_no_data():
    x = torch.randn(10_000, 8)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(x, torch.zeros(10_000).long(), batch_size=5_000, verbose=0)
    data = pickle.dumps(model)
    assert len(data) < 50_000
    with pytest.raises(ValueError, match=r"evaluate\(\) received no data"):
        pickle.loads(data).evaluate(verbose=0)


def test_an_uncompiled_model_can_be_pickled():
    twin = pickle_copy(Model(mlp(), device="cpu"))
    with pytest.raises(RuntimeError, match=r"Call model\.compile"):
        twin.fit(X, Y)


def test_a_model_in_bfloat16_can_be_copied():
    try:
        model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", precision="bf16")
    except ValueError:
        pytest.skip("this processor has no bfloat16")
    assert_same_training(model, copy.deepcopy(pickle_copy(model)))
