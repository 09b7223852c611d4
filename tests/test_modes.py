"""Where and in which precision steps run, in which mode, one at a time or many, and how all of it is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch.callbacks import LambdaCallback
from tests.strategies.common_strategy import X, Y, compiled, normed

# Train and eval mode


def modes_of(net):
    return [part.training for part in net.modules()]


@pytest.mark.parametrize("freeze", [False, True], ids=["all training", "frozen BatchNorm"])
@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_every_verb_leaves_the_modes_as_it_found_them(verb, freeze):
    net = normed()
    net[1].train(not freeze)
    model, before = compiled(net), modes_of(net)
    getattr(model, verb)(*([X] if verb == "predict" else [X, Y]), verbose=0)
    assert modes_of(net) == before


def test_fit_leaves_a_module_in_eval_mode_as_it_found_it():
    net = normed().eval()
    compiled(net).fit(X, Y, validation_data=(X, Y), verbose=0)
    assert not any(modes_of(net))


def test_a_module_in_eval_mode_is_trained_in_train_mode():
    net, modes = normed().eval(), []
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: modes.append(modes_of(net)))
    compiled(net).fit(X, Y, verbose=0, callbacks=[watch])
    assert all(all(each) for each in modes)
    assert net[1].num_batches_tracked == len(modes) == 2


def test_a_frozen_batchnorm_stays_frozen_in_fit_and_its_validation():
    net, modes = normed(), []
    net[1].eval()
    means = net[1].running_mean.clone()
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: modes.append((net.training, net[1].training)))
    compiled(net).fit(X, Y, epochs=3, validation_data=(X, Y), verbose=0, callbacks=[watch])
    assert set(modes) == {(True, False)}
    assert torch.equal(net[1].running_mean, means)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "test_on_batch", "predict_on_batch"])
def test_measuring_runs_in_eval_mode_and_without_gradients(verb):
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = compiled(Watched(8, 3))
    getattr(model, verb)(*([X] if "predict" in verb else [X, Y]), **({} if "batch" in verb else {"verbose": 0}))
    assert set(seen) == {(False, False)}


def test_validation_runs_in_eval_mode_and_training_goes_on_in_train_mode():
    net, modes = normed(), []
    watch = LambdaCallback(
        on_test_batch_end=lambda batch, logs: modes.append(("test", net[3].training)),
        on_train_batch_end=lambda batch, logs: modes.append(("train", net[3].training)),
    )
    compiled(net).fit(X, Y, epochs=2, batch_size=50, validation_data=(X, Y), verbose=0, callbacks=[watch])
    assert [mode for i, mode in enumerate(modes) if i == 0 or mode != modes[i - 1]] == [
        ("train", True),
        ("test", False),
    ] * 2


def test_an_error_in_training_leaves_the_modes_as_they_were():
    net = normed()
    net[1].eval()
    before = modes_of(net)
    with pytest.raises(ValueError):
        compiled(net).fit(X[:, :5], Y, verbose=0)
    assert modes_of(net) == before
