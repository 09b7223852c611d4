"""A model can be pickled and copied whole: the copy predicts the same, and goes on training like the original."""

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


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def trained_on(model):
    torch.manual_seed(1)
    history = model.fit(X, Y, epochs=2, batch_size=16, verbose=0).history
    return history, model.module.state_dict()


def assert_goes_on_alike(model, twin):
    (history, weights), (other_history, other_weights) = trained_on(model), trained_on(twin)
    assert other_history == history
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())


@pytest.mark.parametrize("copied", [pickled, saved_by_torch, copy.deepcopy])
@pytest.mark.parametrize("scheduler", [None, "warmup_cosine", "one_cycle"])
def test_a_copy_of_a_fitted_model_predicts_the_same_and_goes_on_training(copied, scheduler):
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy", "f1"], scheduler=scheduler)
    early = callbacks.EarlyStopping(restore_best_weights=True)
    model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[early], verbose=0)
    twin = copied(model)
    assert (twin.predict(X, verbose=0) == model.predict(X, verbose=0)).all()
    assert_goes_on_alike(model, twin)


@pytest.mark.parametrize("loss", ["bce", nn.GaussianNLLLoss(), nn.functional.mse_loss])
def test_every_kind_of_loss_can_be_pickled(loss):
    twin = pickled(Model(mlp(), device="cpu").compile("sgd", loss, metrics=["rmse", "mae"]))
    assert repr(twin.loss) == repr(Model(mlp()).compile("sgd", loss).loss)


def test_a_scheduler_that_counts_updates_counts_them_in_a_copy_too():
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=100)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", scheduler=schedule)
    model.fit(X, Y, verbose=0)
    assert_goes_on_alike(model, pickled(model))


def test_an_optimizer_made_by_a_lambda_is_pickled_as_what_it_has_made():
    model = Model(mlp(), device="cpu").compile(lambda parameters: torch.optim.SGD(parameters, 0.1), "cross_entropy")
    assert_goes_on_alike(model, pickled(model))


def test_a_copy_made_by_a_callback_holds_nothing_of_the_fit_that_runs():
    copies = []
    keep = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: copies.append(pickled(keep.model)))
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    model.fit(X, Y, epochs=2, callbacks=[keep], verbose=1)
    assert [one.state.epoch for one in copies] == [1, 2]
    assert_goes_on_alike(model, copies[1])


def test_a_pickle_holds_no_data():
    x = torch.randn(10_000, 8)
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(x, torch.zeros(10_000).long(), batch_size=5_000, verbose=0)
    data = pickle.dumps(model)
    assert len(data) < 50_000
    with pytest.raises(ValueError, match=r"evaluate\(\) received no data"):
        pickle.loads(data).evaluate(verbose=0)


def test_a_model_that_is_not_compiled_can_be_pickled():
    twin = pickled(Model(mlp(), device="cpu"))
    with pytest.raises(RuntimeError, match=r"Call model\.compile"):
        twin.fit(X, Y)


def test_a_model_in_bfloat16_can_be_copied():
    try:
        model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", precision="bf16")
    except ValueError:
        pytest.skip("this processor has no bfloat16")
    assert_goes_on_alike(model, copy.deepcopy(pickled(model)))
