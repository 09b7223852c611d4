"""Training, evaluation and prediction of one batch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tests.loops import mlp, same_weights, twins
from tests.strategies.common_strategy import X, Y, compiled_model


def test_train_on_batch_equals_one_hand_written_update():
    by_model, by_hand = twins(mlp())
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    model = compiled_model(by_model, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    for _ in range(3):
        scores = model.train_on_batch(X, Y)
        loss = functional.cross_entropy(by_hand(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert scores.loss == loss.item()
    assert same_weights(by_model, by_hand)
    assert model.state.step == 3


def test_train_on_batch_accepts_arrays_and_weights():
    by_array, by_tensor = twins(mlp())
    weight = torch.linspace(0, 2, 50)
    compiled_model(by_array).train_on_batch(X.numpy(), Y.numpy(), weight.numpy())
    compiled_model(by_tensor).train_on_batch((X, Y, weight))
    assert same_weights(by_array, by_tensor)


def test_train_on_batch_does_not_change_the_history():
    model = compiled_model()
    model.fit(X, Y, verbose=0)
    before = model.history.history
    model.train_on_batch(X, Y)
    assert model.history.history == before


def test_test_on_batch_equals_evaluate_of_the_batch():
    model = compiled_model(metrics=["accuracy"])
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    assert model.test_on_batch(X, Y) == model.evaluate(X, Y, batch_size=50, verbose=0)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_predict_on_batch_equals_predict_of_the_batch():
    model = compiled_model()
    assert np.array_equal(model.predict_on_batch(X.numpy()), model.predict(X, batch_size=50, verbose=0))
