"""Metrics that measure something else than was meant, or nothing: told before anybody relies on their numbers."""

from __future__ import annotations

import ast
import functools
import re
import warnings

import pytest
import torch
import torchmetrics
from torch import nn

from easytorch import Mean, Metric, Model
from easytorch.callbacks import EarlyStopping

torch.manual_seed(0)
X = torch.randn(96, 4)
Y = torch.arange(96) % 3
R = X.sum(1, keepdim=True)


def compiled(outputs=3, loss="cross_entropy", metrics=(), **options):
    return Model(nn.Linear(4, outputs), device="cpu").compile("sgd", loss, metrics, **options)


def named(name):
    def function(y_pred, y):
        return (y_pred - y).abs().mean()

    function.__name__ = name
    return function


class Bias(Metric):
    name = "bias"

    def reset(self):
        self.mean = Mean()

    def update(self, y_pred, y, sample_weight=None):
        self.mean.add_sum((y_pred - y).sum(), y.numel())

    def compute(self):
        return self.mean.compute()


# Shapes and weights


@pytest.mark.parametrize("name", ["multiclass_accuracy", "top_1_accuracy"])
def test_targets_in_a_column_are_not_paired_with_every_prediction(name):
    def squeezing(y_pred, y):
        return nn.functional.cross_entropy(y_pred, y.squeeze(1))

    model = compiled(loss=squeezing, metrics=[name])
    flat = compiled(metrics=["accuracy"])
    flat.module.load_state_dict(model.module.state_dict())
    assert model.evaluate(X, Y[:, None], verbose=0)[name] == flat.evaluate(X, Y, verbose=0).accuracy


def test_tokens_that_do_not_count_are_left_out_whatever_form_the_loss_has():
    y_pred, y = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].transpose(1, 2), torch.tensor([[0, -100], [2, 1]])
    for loss in ("cross_entropy", nn.functional.cross_entropy, functools.partial(nn.functional.cross_entropy)):
        model = Model(nn.Identity(), device="cpu").compile(None, loss, ["accuracy"])
        assert model.evaluate(y_pred, y, verbose=0).accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["precision", "recall", "f1", "auroc"])
def test_tokens_that_do_not_count_are_left_out_by_metrics_of_torchmetrics(name):
    y_pred, y = torch.randn(8, 3, 5), torch.randint(3, (8, 5))
    y[:, 3:] = -100
    model = Model(nn.Identity(), device="cpu").compile(None, "cross_entropy", [name])
    counted = model.evaluate(y_pred[:, :, :3], y[:, :3], verbose=0)
    assert model.evaluate(y_pred, y, verbose=0)[name] == pytest.approx(counted[name])


def test_weights_count_in_a_weighted_accuracy_of_tokens_of_which_some_do_not():
    y_pred, y = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].transpose(1, 2), torch.tensor([[0, -100], [2, 1]])
    model = Model(nn.Identity(), device="cpu").compile(None, "cross_entropy", weighted_metrics=["accuracy"])
    scores = model.evaluate(y_pred, y, sample_weight=torch.tensor([3.0, 1.0]), verbose=0)
    assert scores.accuracy == pytest.approx((3 + 1) / (3 + 1 + 1))


def test_a_mean_of_tensors_and_plain_numbers_loses_no_digit():
    mean = Mean()
    mean.add(torch.tensor(1.0, dtype=torch.float64), 1)
    mean.add(0.1, 1)
    assert float(mean.compute()) == 1.1 / 2


def test_a_weighted_metric_that_returns_one_number_is_refused():
    def mean_hit(y_pred, y):
        return (y_pred.argmax(1) == y).float().mean()

    model = compiled(weighted_metrics=[mean_hit])
    model.evaluate(X, Y, verbose=0)
    with pytest.raises(
        ValueError, match=r"'mean_hit' .*one number for the whole batch, but weights need one value for each"
    ):
        model.evaluate(X, Y, sample_weight=torch.ones(96), verbose=0)


# Names


@pytest.mark.parametrize("name", ["loss", "lr", "epoch", "val_loss", "val_lr"])
def test_a_metric_with_a_name_of_the_logs_is_refused(name):
    class Named(Bias):
        pass

    Named.name = name
    for metric in (named(name), Named()):
        with pytest.raises(
            ValueError, match=f"'{name}' is reserved.*[Rr]ename the function, or give the metric another"
        ):
            compiled(1, "mse", [metric])
        with pytest.raises(ValueError, match="reserved"):
            compiled(1, "mse", weighted_metrics=[metric])


def test_a_metric_of_torchmetrics_with_a_name_of_the_logs_is_refused():
    class Loss(torchmetrics.MeanSquaredError):
        pass

    with pytest.raises(ValueError, match="'loss' is reserved"):
        compiled(1, "mse", [Loss()])


def test_a_metric_named_like_the_loss_of_an_output_is_refused():
    with pytest.raises(ValueError, match="'output_1_loss' is reserved"):
        compiled(1, ["mse", "mse"], [[named("loss")], []])


def test_a_metric_named_like_the_validation_of_another_is_refused():
    with pytest.raises(ValueError, match="'val_mae' is reserved"):
        compiled(1, "mse", ["mae", named("val_mae")])


@pytest.mark.parametrize("name", ["lr", "epoch"])
def test_a_step_that_returns_a_name_of_the_logs_is_refused(name):
    class Own(Model):
        def train_step(self, batch):
            return super().train_step(batch) | {name: 1.0}

    model = Own(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=f"A step returned '{name}', a reserved name"):
        model.fit(X, Y, verbose=0)
    assert model.state.step == 0


# The order of the arguments


def swapped(y_true, y_pred):
    return (y_true - y_pred).mean()


class Swapped(Bias):
    def update(self, y_true, y_pred, sample_weight=None):
        super().update(y_pred, y_true)


class SwappedObject(torchmetrics.MeanSquaredError):
    def update(self, target, preds):
        super().update(preds, target)


@pytest.mark.parametrize("metric", [swapped, Swapped(), SwappedObject()], ids=["function", "Metric", "torchmetrics"])
@pytest.mark.parametrize("where", ["metrics", "weighted_metrics"])
def test_a_metric_that_takes_targets_first_is_refused(metric, where):
    with pytest.raises(ValueError, match=r"predictions first.*Swap the arguments, or pass lambda y_pred, y"):
        compiled(1, "mse", **{where: [metric]})


def test_a_score_of_scikit_learn_is_refused_with_what_can_be_pasted():
    from sklearn.metrics import mean_absolute_error

    with pytest.raises(ValueError, match=re.escape("pass lambda y_pred, y: mean_absolute_error(y, y_pred)")):
        compiled(1, "mse", [mean_absolute_error])
    model = compiled(1, "mse", [lambda y_pred, y: mean_absolute_error(y, y_pred)])
    assert model.fit(X, R, verbose=0)["<lambda>"][0] > 0


# Updates


class Silent(Model):
    """A model whose training step measures nothing."""

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": nn.functional.cross_entropy(self(x), y)}


class SilentInTests(Model):
    def test_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": nn.functional.cross_entropy(self(x), y)}


@pytest.mark.parametrize("kind", [Silent, SilentInTests])
@pytest.mark.parametrize("verbose", [0, 1])
def test_a_metric_that_is_never_updated_is_told_once(kind, verbose):
    model = kind(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"])
    with pytest.warns(UserWarning, match="accuracy") as told:
        model.fit(X, Y, epochs=3, validation_data=(X, Y), callbacks=[EarlyStopping("val_accuracy")], verbose=verbose)
    messages = [str(one.message) for one in told if "never updated" in str(one.message)]
    assert messages == [
        "accuracy was never updated: call self.metrics.update(y_pred, y) in train_step and test_step, or take it out of compile."
    ]


def test_a_metric_that_is_never_updated_is_told_again_in_the_next_fit():
    model = Silent(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"])
    for _ in range(2):
        with pytest.warns(UserWarning, match="accuracy was never updated") as told:
            model.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
        assert len(told) == 1


@pytest.mark.parametrize("verb", ["evaluate", "train_on_batch", "test_on_batch"])
def test_metrics_that_are_never_updated_are_told_by_every_verb(verb):
    model = Silent(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy", "top_2_accuracy"])
    with pytest.warns(UserWarning, match="accuracy, top_2_accuracy were never updated: .* take them out"):
        getattr(model, verb)(X, Y, **({"verbose": 0} if verb == "evaluate" else {}))


def test_a_step_that_measures_now_and_then_is_not_complained_of():
    class Sparing(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            y_pred = self(x)
            if self.state.epoch_step == 2 or not self.module.training:
                self.metrics.update(y_pred, y)
            return {"loss": self.loss(y_pred, y)}

    model = Sparing(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = model.fit(X, Y, epochs=2, validation_split=0.1, verbose=1)
    assert all(value == value for value in history["accuracy"])


def test_a_model_without_metrics_need_not_update_any():
    model = Silent(nn.Linear(4, 3), device="cpu").compile("sgd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, Y, verbose=0)


# Several outputs


class TwoHeads(nn.Module):
    def __init__(self, named=False):
        super().__init__()
        self.kind, self.size, self.named = nn.Linear(4, 3), nn.Linear(4, 1), named

    def forward(self, x):
        kind, size = self.kind(x), self.size(x)
        return {"kind": kind, "size": size} if self.named else (kind, size)


BY_NAME = {"kind": "cross_entropy", "size": "mse"}


@pytest.mark.parametrize(
    ("loss", "cure"),
    [
        (["cross_entropy", "mse"], "metrics=[['accuracy'], []]"),
        (BY_NAME, "metrics={'kind': ['accuracy']}"),
    ],
    ids=["list", "dict"],
)
@pytest.mark.parametrize("metrics", [["accuracy"], "accuracy"], ids=["in a list", "alone"])
def test_a_name_that_may_measure_any_of_several_outputs_is_refused_with_what_to_pass(loss, cure, metrics):
    named = isinstance(loss, dict)
    with pytest.raises(ValueError, match=r"'accuracy' does not say which of the outputs.*" + re.escape(cure)):
        Model(TwoHeads(named), device="cpu").compile("sgd", loss, metrics=metrics)
    model = Model(TwoHeads(named), device="cpu").compile(
        "sgd", loss, metrics=ast.literal_eval(cure.removeprefix("metrics="))
    )
    history = model.fit(X, {"kind": Y, "size": R} if named else (Y, R), verbose=0)
    assert next(name for name in history if name.endswith("accuracy")) == f"{'kind' if named else 'output_1'}_accuracy"


def test_more_lists_of_metrics_than_outputs_are_refused():
    with pytest.raises(ValueError, match="There are 2 outputs, but 3 lists of metrics"):
        Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", "mse"], [["accuracy"], ["mae"], ["mse"]])


def test_metrics_of_outputs_belong_to_their_place_where_one_has_no_loss():
    model = Model(TwoHeads(), device="cpu").compile("sgd", [None, "mse"], [None, ["mae"]])
    assert list(model.fit(X, (Y, R), verbose=0)) == ["loss", "output_2_loss", "output_2_mae", "lr"]


def test_a_list_of_one_loss_has_its_metrics_by_name():
    model = compiled(3, ["cross_entropy"], ["accuracy"])
    assert list(model.fit(X, Y, verbose=0)) == ["loss", "output_1_loss", "accuracy", "lr"]


@pytest.mark.parametrize("metrics", [None, [["accuracy"], ["mae"]]], ids=["without metrics", "with metrics"])
@pytest.mark.parametrize("y", [Y, R], ids=["classes", "numbers"])
def test_one_target_for_two_losses_is_refused(metrics, y):
    model = Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", "mse"], metrics)
    with pytest.raises(ValueError, match=r"2 outputs with 2 losses, but one target, .*: pass \(y1, y2\)\."):
        model.fit(X, y, verbose=0)
    model.fit(X, (Y, R), verbose=0)


def test_one_target_for_losses_by_name_is_refused_with_the_names():
    model = Model(TwoHeads(named=True), device="cpu").compile("sgd", BY_NAME)
    with pytest.raises(ValueError, match=re.escape("pass {'kind': y1, 'size': y2}.")):
        model.fit(X, Y, verbose=0)


def test_one_output_for_two_losses_is_refused():
    with pytest.raises(ValueError, match=r"losses for 2 outputs, but the module returned one, float32 \[32, 1\]"):
        compiled(1, ["mse", "mse"]).fit(X, (R, R), verbose=0)


def test_weights_of_losses_in_a_list_belong_to_losses_by_name_in_their_order():
    class Twice(nn.Linear):
        def forward(self, x):
            return dict.fromkeys("ab", super().forward(x))

    module, losses = Twice(4, 3), {"a": "cross_entropy", "b": "cross_entropy"}
    named, listed = (
        Model(module, device="cpu")
        .compile("sgd", losses, loss_weights=weights)
        .evaluate(X, {"a": Y, "b": Y}, verbose=0)
        for weights in ({"a": 0.25, "b": 0.5}, [0.25, 0.5])
    )
    assert listed["loss"] == named["loss"] == pytest.approx(0.75 * named["a_loss"])


@pytest.mark.parametrize("weights", [0.5, [0.5]], ids=str)
def test_weights_of_losses_that_are_not_one_for_each_are_refused(weights):
    with pytest.raises(ValueError, match=r"There are 2 outputs, but loss_weights=.*Pass one weight for each"):
        compiled(loss=["mse", "mse"], loss_weights=weights)


def test_one_weight_for_two_losses_holds_for_both():
    model = Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", "mse"])
    assert model.fit(X, (Y, R), sample_weight=torch.zeros(96), verbose=0)["loss"] == [0.0]


def test_one_target_does_for_the_only_loss_of_two_outputs():
    model = Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", None])
    assert model.fit(X, Y, verbose=0)["output_1_loss"][0] > 0


# Names


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MeanSquaredError", "mse"),
        ("RootMeanSquaredError", "rmse"),
        ("MeanAbsoluteError", "mae"),
        ("mean-squared-error", "mse"),
        ("MeanAbsolutePercentageError", "mape"),
        ("R2Score", "r2"),
    ],
)
def test_errors_are_known_by_their_names_in_keras(name, same):
    scores = compiled(1, "mse", [name, same]).evaluate(X, R, verbose=0)
    assert scores[name] == pytest.approx(scores[same]) != 0


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("sparse_top_k_categorical_accuracy", "top_5_accuracy"),
        ("top_k_categorical_accuracy", "top_5_accuracy"),
        ("TopKCategoricalAccuracy", "top_5_accuracy"),
        ("SparseCategoricalAccuracy", "accuracy"),
        ("CategoricalAccuracy", "accuracy"),
        ("F1Score", "f1"),
        ("AUC", "auroc"),
    ],
)
def test_accuracies_are_known_by_their_names_in_keras(name, same):
    scores = compiled(8, "cross_entropy", [name, same]).evaluate(X, torch.arange(96) % 8, verbose=0)
    assert 0 < scores[name] == scores[same] < 1


@pytest.mark.parametrize("name", ["hinge", "SquaredHinge", "Poisson", "log_cosh", "MeanSquaredLogarithmicError"])
def test_losses_of_keras_are_metrics_as_well(name):
    net = nn.Sequential(nn.Linear(4, 1), nn.Softplus())  # Poisson takes what is positive
    model = Model(net, device="cpu").compile("sgd", name, [name])
    loss, metric = model.evaluate(X, R.abs(), verbose=0)
    assert metric == pytest.approx(loss)
    assert model.metrics.mode(name) == "min"


@pytest.mark.parametrize("name", ["confusion_matrix", "perplexity", "dice"])
def test_an_unknown_metric_that_is_near_to_none_is_told_with_a_short_list(name):
    with pytest.raises(
        ValueError, match=rf"Unknown metric '{name}'\. Pass a name such as 'accuracy', .* f\(y_pred, y\)"
    ) as caught:
        compiled(metrics=[name])
    assert "easytorch.metrics.NAMES" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "near"),
    [("acuracy", "accuracy"), ("f1score_", "f1_score"), ("kappa", "cohen_kappa"), ("top_0_accuracy", "top_5_accuracy")],
)
def test_an_unknown_metric_that_is_near_to_one_is_told_with_that_alone(name, near):
    with pytest.raises(ValueError, match=rf"Did you mean '{near}'\? Otherwise pass a function") as caught:
        compiled(metrics=[name])
    assert len(str(caught.value)) < 200
