"""Train and eval mode of the module in every method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch.callbacks import LambdaCallback
from tests.strategies.common_strategy import X, Y, batchnorm_net, compiled_model


def modes_of(net):
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("freeze", [False, True], ids=["all training", "frozen BatchNorm"])
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_every_method_restores_the_modes(method, freeze):
    net = batchnorm_net()
    net[1].train(not freeze)
    model, before = compiled_model(net), modes_of(net)
    getattr(model, method)(*([X] if method == "predict" else [X, Y]), verbose=0)
    assert modes_of(net) == before


def test_fit_restores_eval_mode():
    net = batchnorm_net().eval()
    compiled_model(net).fit(X, Y, validation_data=(X, Y), verbose=0)
    assert not any(modes_of(net))


def test_fit_trains_a_module_in_eval_mode_in_train_mode():
    net, modes = batchnorm_net().eval(), []
    record = LambdaCallback(on_train_batch_end=lambda batch, logs: modes.append(modes_of(net)))
    compiled_model(net).fit(X, Y, verbose=0, callbacks=[record])
    assert all(all(batch_modes) for batch_modes in modes)
    assert net[1].num_batches_tracked == len(modes) == 2


def test_frozen_batchnorm_stays_frozen_in_fit_and_validation():
    net, modes = batchnorm_net(), []
    net[1].eval()
    means = net[1].running_mean.clone()
    record = LambdaCallback(on_train_batch_end=lambda batch, logs: modes.append((net.training, net[1].training)))
    compiled_model(net).fit(X, Y, epochs=3, validation_data=(X, Y), verbose=0, callbacks=[record])
    assert set(modes) == {(True, False)}
    assert torch.equal(net[1].running_mean, means)


@pytest.mark.parametrize("method", ["evaluate", "predict", "test_on_batch", "predict_on_batch"])
def test_evaluation_runs_in_eval_mode_without_gradients(method):
    states = []

    class RecordingLinear(nn.Linear):
        def forward(self, x):
            states.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = compiled_model(RecordingLinear(8, 3))
    getattr(model, method)(*([X] if "predict" in method else [X, Y]), **({} if "batch" in method else {"verbose": 0}))
    assert set(states) == {(False, False)}


def test_fit_switches_modes_for_validation():
    net, modes = batchnorm_net(), []
    record = LambdaCallback(
        on_test_batch_end=lambda batch, logs: modes.append(("test", net[3].training)),
        on_train_batch_end=lambda batch, logs: modes.append(("train", net[3].training)),
    )
    compiled_model(net).fit(X, Y, epochs=2, batch_size=50, validation_data=(X, Y), verbose=0, callbacks=[record])
    assert [mode for i, mode in enumerate(modes) if i == 0 or mode != modes[i - 1]] == [
        ("train", True),
        ("test", False),
    ] * 2


def test_an_error_in_training_restores_the_modes():
    net = batchnorm_net()
    net[1].eval()
    before = modes_of(net)
    with pytest.raises(ValueError):
        compiled_model(net).fit(X[:, :5], Y, verbose=0)
    assert modes_of(net) == before
