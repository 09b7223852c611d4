"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from tests.errors.common import X, Y, compiled, fit, refused
from tests.loops import mlp

# What only a fresh eye sees


def test_probabilities_before_cross_entropy_are_told():
    net = nn.Sequential(mlp(), nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"applies a softmax itself.*predict_proba"):
        fit(compiled(net), X, Y)


def test_a_loss_of_ones_own_that_would_broadcast_is_told():
    net = nn.Linear(8, 1)
    with pytest.warns(UserWarning, match=r"makes \[32, 32\] of .*\[32, 1\], and the targets, \[32\]"):
        fit(compiled(net, loss=lambda y_pred, y: ((y_pred - y) ** 2).mean()), X, X[:, 0])


@pytest.mark.parametrize("labels", [lambda y: y * 2 - 1, lambda y: y + 1], ids=["-1 and 1", "1 and 2"])
def test_labels_that_are_no_probabilities_are_refused(labels):
    y = labels((Y > 0).float())[:, None]
    refused(lambda: fit(compiled(nn.Linear(8, 1), loss="bce_with_logits"), X, y), "targets go from", "0 and 1", "y - 1")


@pytest.mark.parametrize(
    "value", [lambda loss: loss, lambda loss: None, lambda loss: (loss,)], ids=["tensor", "None", "tuple"]
)
def test_a_step_that_returns_no_dict_is_told(value):
    class Own(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            return value(nn.functional.cross_entropy(self(x), y))

    refused(lambda: fit(Own(mlp(), device="cpu").compile("sgd"), X, Y), "train_step returned", "'loss'", kind=TypeError)


def test_a_step_that_optimizes_itself_is_told():
    class Own(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            loss = nn.functional.cross_entropy(self(x), y)
            loss.backward()
            return {"loss": loss}

    refused(lambda: fit(Own(mlp(), device="cpu").compile("sgd"), X, Y), "Leave backward", "update", kind=RuntimeError)


def test_what_is_wrong_with_the_validation_data_is_said_of_it():
    refused(lambda: fit(compiled(), X, Y, validation_data=(X[:, :5], Y)), "On the validation data", "8 features")


def test_an_error_of_ones_own_in_the_validation_is_told_with_its_words():
    class PickyError(ValueError):
        def __init__(self, what, why):
            super().__init__(f"{what}: {why}")

    class Failing(nn.Linear):
        def forward(self, x):
            if not self.training:
                raise PickyError("this input", "I do not like it")
            return super().forward(x)

    model = compiled(Failing(8, 3))
    refused(
        lambda: fit(model, X, Y, validation_split=0.2),
        "which is tried first: this input: I do not like it",
    )


@pytest.mark.parametrize("given", [{"y": Y}, {"sample_weight": torch.ones(50)}, {"batch_size": 8}], ids=str)
def test_what_belongs_to_data_is_refused_where_the_data_of_the_last_fit_is_measured(given):
    model = compiled()
    fit(model, X, Y)
    refused(lambda: model.evaluate(verbose=0, **given), f"given {next(iter(given))} without data", kind=ValueError)


def test_outputs_without_a_row_for_each_sample_are_not_joined():
    model = Model(nn.LSTM(8, 4, batch_first=True), device="cpu")
    refused(lambda: model.predict(X.reshape(-1, 1, 8), verbose=0), "one row for each sample", "predict_step")


def test_a_missing_flatten_is_told():
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 3, 1), nn.Linear(4, 5))
    refused(lambda: fit(compiled(net), X, Y), r"\[N, classes\]", "Flatten")


def test_an_optimizer_in_the_place_of_the_loss_is_told():
    with pytest.raises(ValueError, match="'adam' is an optimizer, which comes first"):
        Model(mlp()).compile("cross_entropy", "adam")


def test_a_list_of_samples_is_told_from_a_list_of_batches():
    for samples in ([(X[i], int(Y[i])) for i in range(9)], [(X[i], Y[i]) for i in range(9)]):
        with pytest.raises(ValueError, match=r"this one holds samples: .* DataLoader\(samples, batch_size=32"):
            Model(mlp()).compile("sgd", "cross_entropy").fit(samples, 1, verbose=0)


def test_inputs_and_targets_in_a_list_are_told():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=r"looks like inputs and targets. Pass them as a tuple, \(x, y\)"):
        model.fit(X, Y, validation_data=[X, Y], verbose=0)


@pytest.mark.parametrize("shape", [(), (nn.Flatten(0),)])
def test_a_sigmoid_before_a_loss_that_has_one_is_told(shape):
    net = nn.Sequential(nn.Linear(X.shape[1], 1), nn.Sigmoid(), *shape)
    with pytest.warns(UserWarning, match="Leave the sigmoid out"):
        Model(net).compile("sgd", "bce_with_logits").fit(X, (Y > 0).float().reshape(-1, *[1] * (not shape)), verbose=0)


def test_logits_between_0_and_1_are_logits():
    net = nn.Linear(X.shape[1], 1)
    with torch.no_grad():
        net.weight.mul_(0.01)
        net.bias.fill_(0.5)
    Model(net).compile("sgd", "bce_with_logits").fit(X, (Y > 0).float()[:, None], verbose=0)


def test_the_weight_of_a_class_that_no_target_is_is_told():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    with pytest.warns(UserWarning, match="class_weight has a weight for class 7, which no target is"):
        model.fit(X, Y, class_weight={0: 2.0, 7: 3.0}, verbose=0)


@pytest.mark.parametrize(("spoil", "cause"), [(True, "first batch contains values"), (False, "a lower learning rate")])
def test_a_loss_that_is_no_number_is_told_once(spoil, cause):
    x = X.clone()
    x[:, 0] = float("nan") if spoil else x[:, 0]
    model = Model(mlp()).compile("sgd", "cross_entropy", lr=0.1 if spoil else 1e30)
    with pytest.warns(UserWarning, match=f"The loss of epoch 1 is nan. .*{cause}.* TerminateOnNaN") as told:
        model.fit(x, Y, epochs=3, verbose=0)
    assert len(told) == 1
