"""EpochMetric: any function of all predictions and targets of a pass."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

import easytorch
from easytorch import EpochMetric, Model
from easytorch.callbacks import EarlyStopping, LambdaCallback
from tests.many import run_ranks

torch.manual_seed(0)
X = torch.randn(50, 4)
CLASSES = torch.arange(50) % 3
YES = (X.sum(1) + torch.randn(50) > 0).float()[:, None]
NUMBERS = X.sum(1, keepdim=True) + 0.1 * torch.randn(50, 1)


def scores_of(net, loss, metrics, x, y, **options):
    model = Model(net, device="cpu").compile("sgd", loss, metrics=metrics)
    return model.evaluate(x, y, batch_size=7, verbose=0, **options)


def test_classes_probabilities_and_outputs_reach_scikit_learn():
    net = nn.Linear(4, 3)
    p = torch.softmax(net(X), 1).detach().numpy()
    metrics = [
        EpochMetric(sk.f1_score, average="macro"),
        EpochMetric(sk.roc_auc_score, multi_class="ovr"),
        EpochMetric(sk.cohen_kappa_score, name="kappa"),
        EpochMetric(sk.recall_score, average=None, name="recall"),
    ]
    scores = scores_of(net, "cross_entropy", metrics, X, CLASSES)
    y, predicted = CLASSES.numpy(), p.argmax(1)
    assert scores.f1_score == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert scores.roc_auc_score == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert scores.kappa == pytest.approx(sk.cohen_kappa_score(y, predicted))
    recalls = sk.recall_score(y, predicted, average=None)
    assert [scores[f"recall_{i}"] for i in range(3)] == pytest.approx(list(recalls))


def test_two_outputs_and_one_output_give_the_probability_of_class_1():
    two, one = nn.Linear(4, 2), nn.Linear(4, 1)
    labels = YES[:, 0].long()
    p = torch.softmax(two(X), 1)[:, 1].detach().numpy()
    assert scores_of(two, "cross_entropy", [EpochMetric(sk.roc_auc_score)], X, labels).roc_auc_score == pytest.approx(
        sk.roc_auc_score(labels.numpy(), p)
    )
    q = torch.sigmoid(one(X))[:, 0].detach().numpy()
    scores = scores_of(
        one, "bce_with_logits", [EpochMetric(sk.average_precision_score), EpochMetric(sk.f1_score)], X, YES
    )
    assert scores.average_precision_score == pytest.approx(sk.average_precision_score(labels.numpy(), q))
    assert scores.f1_score == pytest.approx(sk.f1_score(labels.numpy(), q > 0.5))


def test_ignored_labels_and_tokens_are_left_out():
    net = nn.Conv1d(4, 3, 1)
    x, y = torch.randn(20, 4, 6), torch.randint(3, (20, 6))
    y[:, 4:] = -100
    scores = scores_of(net, "cross_entropy", [EpochMetric(sk.f1_score, average="micro")], x, y)
    predicted = net(x).argmax(1)[:, :4].flatten().numpy()
    assert scores.f1_score == pytest.approx(sk.f1_score(y[:, :4].flatten().numpy(), predicted, average="micro"))


def test_regression_and_custom_functions_get_the_outputs():
    net = nn.Linear(4, 1)

    def largest_error(y_pred, y):
        assert y_pred.shape == y.shape == (50,)
        return np.abs(y_pred - y).max()

    scores = scores_of(net, "mse", [EpochMetric(sk.r2_score), EpochMetric(largest_error, mode="min")], X, NUMBERS)
    prediction = net(X).detach()
    assert scores.r2_score == pytest.approx(sk.r2_score(NUMBERS.numpy(), prediction.numpy()))
    assert scores.largest_error == pytest.approx((prediction - NUMBERS).abs().max().item())


def test_weighted_metrics_pass_the_sample_weights():
    net, weights = nn.Linear(4, 3), torch.rand(50)
    model = Model(net, device="cpu").compile(
        "sgd", "cross_entropy", weighted_metrics=[EpochMetric(sk.f1_score, average="macro")]
    )
    scores = model.evaluate(X, CLASSES, batch_size=7, sample_weight=weights, verbose=0)
    expected = sk.f1_score(CLASSES, net(X).argmax(1), average="macro", sample_weight=weights)
    assert scores.f1_score == pytest.approx(expected)


def test_it_is_computed_once_per_pass_and_can_be_monitored():
    calls = []

    def counted(y_pred, y):
        calls.append(len(y))
        return float(len(calls))

    read = []
    look = LambdaCallback(on_train_batch_end=lambda batch, logs: read.append("counted" in logs))
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", [EpochMetric(counted, mode="max")])
    stop = EarlyStopping("val_counted", patience=5)
    history = model.fit(X, CLASSES, epochs=2, validation_data=(X[:9], CLASSES[:9]), callbacks=[look, stop], verbose=0)
    assert calls == [50, 9, 50, 9]
    assert not any(read)
    assert history["counted"] == [1, 3]


def test_a_run_resumes_within_an_epoch(tmp_path):
    def train(callbacks, folder):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        metric = EpochMetric(sk.f1_score, average="macro")
        model = Model(net, device="cpu").compile("sgd", "cross_entropy", [metric])
        options = {"resume": tmp_path / folder, "on_interrupt": "return", "verbose": 0}
        return model.fit(X, CLASSES, epochs=2, batch_size=8, callbacks=callbacks, **options)

    class Stop(easytorch.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = self.model.state.step == 3

    class Interrupt(easytorch.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.state.step == 10:
                import signal

                signal.raise_signal(signal.SIGINT)

    expected = train([], "whole")["f1_score"]
    train([Interrupt()], "stopped")
    assert train([], "stopped")["f1_score"] == expected


def evaluate_in_ranks():
    net = nn.Linear(4, 3)
    scores = scores_of(net, "cross_entropy", [EpochMetric(sk.f1_score, average="macro")], X, CLASSES)
    return scores.f1_score, sk.f1_score(CLASSES.numpy(), net(X).argmax(1).numpy(), average="macro")


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_compute_it_over_all_samples():
    for measured, expected in run_ranks(evaluate_in_ranks):
        assert measured == pytest.approx(expected)


def f1_of_batch(y_pred, y):
    return sk.f1_score(y, y_pred.argmax(1), average="macro")


class F1:
    def __call__(self, y_pred, y):
        return sk.f1_score(y, y_pred.argmax(1), average="macro")


@pytest.mark.parametrize(
    "function",
    [
        f1_of_batch,
        lambda y_pred, y: sk.f1_score(y, y_pred.argmax(1), average="macro"),
        functools.partial(
            lambda y_pred, y, average: sk.f1_score(y, y_pred.argmax(1), average=average), average="macro"
        ),
        F1(),
    ],
    ids=["function", "lambda", "partial", "object"],
)
def test_function_that_is_not_a_mean_of_batches_warns(function):
    with pytest.warns(UserWarning, match=r"calls f1_score of scikit-learn on each batch.*EpochMetric\(f1_score"):
        Model(nn.Linear(4, 3)).compile("sgd", "cross_entropy", metrics=[function])


def test_means_of_scikit_learn_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = lambda y_pred, y: sk.accuracy_score(y, y_pred.argmax(1))  # noqa: E731  # as a user writes it
        Model(nn.Linear(4, 3)).compile("sgd", "cross_entropy", metrics=[metric])


@pytest.mark.parametrize("function", [sk.f1_score, functools.partial(sk.f1_score, average="macro")])
def test_function_of_scikit_learn_itself_is_refused_with_the_fix(function):
    with pytest.raises(ValueError, match=r"EpochMetric\(f1_score\)"):
        Model(nn.Linear(4, 3)).compile("sgd", "cross_entropy", metrics=[function])


def test_unknown_probabilities_and_arguments_are_refused():
    with pytest.raises(ValueError, match="needs classes, but they cannot be inferred from the loss"):
        Model(nn.Linear(4, 3)).compile("sgd", lambda y_pred, y: y_pred.mean(), metrics=[EpochMetric(sk.f1_score)])
    with pytest.raises(ValueError, match="Unknown inputs"):
        EpochMetric(sk.f1_score, inputs="logits")
    with pytest.raises(TypeError, match="expects a function"):
        EpochMetric("f1")
