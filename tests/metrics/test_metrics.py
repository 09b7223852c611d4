"""Metrics that measure something else than was meant, or nothing: told before anybody relies on their numbers."""

from __future__ import annotations

import ast
import functools
import re
import signal
import warnings

import pytest
import torch
import torchmetrics
from sklearn import metrics as sklearn_metrics
from torch import nn

from easytorch import Mean, Metric, Model
from easytorch.callbacks import EarlyStopping, LambdaCallback

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


def test_tokens_that_do_not_count_are_no_misses_of_the_largest_outputs():
    y_pred, y = torch.randn(8, 20, 6), torch.randint(20, (8, 6))
    y[:, 3:] = -100
    model = Model(nn.Identity(), device="cpu").compile(None, "cross_entropy", ["top_20_accuracy", "top_3_accuracy"])
    scores = model.evaluate(y_pred, y, verbose=0)
    flat = y_pred[:, :, :3].transpose(1, 2).reshape(-1, 20)
    expected = sklearn_metrics.top_k_accuracy_score(y[:, :3].flatten(), flat, k=3, labels=range(20))
    assert scores["top_20_accuracy"] == 1
    assert scores["top_3_accuracy"] == pytest.approx(expected)


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


@pytest.mark.parametrize("name", ["f1", "recall", "auroc"])
def test_targets_that_are_nearly_zero_or_one_count_as_for_accuracy(name):
    net, smooth = nn.Linear(4, 1), torch.where(X[:, :1] > 0, 0.95, 0.05)
    net.load_state_dict({"weight": torch.tensor([[5.0, 0, 0, 0]]), "bias": torch.zeros(1)})  # it is right always
    scores = (
        Model(net, device="cpu").compile(None, "bce_with_logits", ["accuracy", name]).evaluate(X, smooth, verbose=0)
    )
    assert scores.accuracy == scores[name] == 1


@pytest.mark.parametrize(
    ("name", "channels", "reference"),
    [
        ("auroc", 1, torchmetrics.classification.BinaryAUROC()),
        ("f1", 1, torchmetrics.classification.BinaryF1Score()),
        ("iou", 3, torchmetrics.classification.MultilabelJaccardIndex(3)),
        ("f1", 3, torchmetrics.classification.MultilabelF1Score(3)),
    ],
)
def test_masks_are_measured_channel_by_channel(name, channels, reference):
    images, net = torch.randn(8, 2, 4, 6), nn.Conv2d(2, channels, 1)
    masks = (torch.rand(8, channels, 4, 6) > torch.tensor([0.2, 0.5, 0.8])[:channels, None, None]).float()
    model = Model(net, device="cpu").compile(None, "bce_with_logits", [name])
    expected = float(reference(net(images).sigmoid(), masks.long()))
    assert model.evaluate(images, masks, batch_size=3, verbose=0)[name] == pytest.approx(expected)


def test_cosine_similarity_is_a_mean_however_much_data_there_is():
    y_pred, y = torch.randn(100, 4), torch.randn(100, 4)
    model = Model(nn.Identity(), device="cpu").compile(None, "mse", ["cosine_similarity"])
    expected = nn.functional.cosine_similarity(y_pred, y).mean().item()
    assert model.evaluate(y_pred, y, verbose=0).cosine_similarity == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, torch.ones(2048)], ids=["plain", "weighted"])
def test_sums_of_short_floats_neither_overflow_nor_lose_their_digits(dtype, weights):
    y_pred, y = torch.full((2048, 1), 101.0, dtype=dtype), torch.zeros(2048, 1, dtype=dtype)
    model = Model(nn.Identity(), device="cpu").compile(None, "l1", ["mae"], weighted_metrics=["mse"])
    y_pred[0] = 1
    mae, mse = list(model.evaluate(y_pred, y, sample_weight=weights, batch_size=2048, verbose=0))[1:]
    errors = (y_pred - y).abs()
    assert mae == pytest.approx(errors.double().mean().item(), rel=1e-4)
    assert mse == pytest.approx(errors.square().double().mean().item(), rel=1e-4)


def test_of_mean_and_variance_names_measure_the_mean_and_functions_get_both():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 1)

        def forward(self, x):
            return self.out(x), torch.full((len(x), 1), 0.5)

    def covered(y_pred, y):
        mean, variance = y_pred
        return ((mean - y).abs() < 2 * variance.sqrt()).float()

    net = Net()
    metrics = ["mae", "r2", torchmetrics.MeanSquaredError(), covered]
    scores = Model(net, device="cpu").compile(None, "gaussian_nll", metrics).evaluate(X, R, verbose=0)
    mean = net(X)[0].detach()
    errors = (mean - R).abs()
    assert scores.mae == pytest.approx(errors.mean().item(), rel=1e-5)
    assert scores.r2 == pytest.approx(sklearn_metrics.r2_score(R, mean), rel=1e-4)
    assert scores.mean_squared_error == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert scores.covered == pytest.approx((errors < 2 * 0.5**0.5).float().mean().item())

    class WithMore(Net):
        def forward(self, x):
            return super().forward(x), self.out(x)

    net = WithMore()
    model = Model(net, device="cpu").compile(None, ["gaussian_nll", "mse"], [["mae", covered], []])
    scores = model.evaluate(X, (R, R), verbose=0)
    errors = (net(X)[1].detach() - R).abs()
    assert scores.output_1_mae == pytest.approx(errors.mean().item(), rel=1e-5)
    assert scores.output_1_covered == pytest.approx((errors < 2 * 0.5**0.5).float().mean().item())


def test_a_metric_around_others_is_measured():
    net, y = nn.Linear(4, 2), X[:, :2] + 1
    metric = torchmetrics.MultioutputWrapper(torchmetrics.MeanSquaredError(), 2)
    model = Model(net, device="cpu").compile(None, "mse", [metric])
    expected = (net(X) - y).square().mean().item()
    for _ in range(2):  # the second has forgotten the first
        scores = model.evaluate(X, y, batch_size=40, verbose=0)
        assert scores.multioutput_wrapper == pytest.approx(expected, rel=1e-5)


AROUND = {
    "compositional_metric": lambda: torchmetrics.MeanSquaredError() + torchmetrics.MeanAbsoluteError(),
    "multioutput_wrapper": lambda: torchmetrics.MultioutputWrapper(torchmetrics.MeanSquaredError(), 1),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_metric_around_others_goes_on_in_the_middle_of_an_epoch(name, tmp_path):
    def run(folder, stop=None):
        torch.manual_seed(0)
        halt = LambdaCallback(
            on_train_batch_end=lambda *_: model.state.step == stop and signal.raise_signal(signal.SIGINT)
        )
        model = compiled(1, "mse", [AROUND[name]()])
        return model.fit(X, R, batch_size=16, resume=tmp_path / folder, callbacks=[halt], verbose=0)

    undisturbed = run("whole")
    run("parts", stop=4)
    assert run("parts")[name] == undisturbed[name]


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


def test_weights_by_output_are_those_of_the_metric_of_each():
    net, weights = TwoHeads(named=True), {"kind": torch.rand(96), "size": torch.rand(96)}
    metrics = {"kind": ["accuracy"], "size": ["mae"]}
    model = Model(net, device="cpu").compile(None, BY_NAME, weighted_metrics=metrics)
    scores = model.evaluate(X, {"kind": Y, "size": R}, sample_weight=weights, verbose=0)
    outputs = {name: output.detach() for name, output in net(X).items()}
    hits = sklearn_metrics.accuracy_score(Y, outputs["kind"].argmax(1), sample_weight=weights["kind"])
    errors = sklearn_metrics.mean_absolute_error(R, outputs["size"], sample_weight=weights["size"])
    assert scores.kind_accuracy == pytest.approx(hits)
    assert scores.size_mae == pytest.approx(errors, rel=1e-5)


@pytest.mark.parametrize("make", [torchmetrics.MeanSquaredError, Bias], ids=["torchmetrics", "own"])
def test_one_metric_object_for_two_outputs_is_refused(make):
    metric = make()
    for metrics in ([[metric], [metric]], [[], [metric, metric]]):
        with pytest.raises(ValueError, match=r"was passed twice.*Make an object for each"):
            Model(TwoHeads(), device="cpu").compile("sgd", ["mse", "mse"], metrics)
    with pytest.raises(ValueError, match="was passed twice"):
        compiled(1, "mse", [metric], weighted_metrics=[metric])
    Model(TwoHeads(), device="cpu").compile("sgd", ["mse", "mse"], [[make()], [make()]])


def test_two_metric_objects_may_have_the_same_attributes():
    class Named(Bias):
        def __init__(self, name):
            self.name, self.metric = name, "l2"
            super().__init__()

    assert compiled(1, "mse", [Named("a"), Named("b")]).metrics.names == ["a", "b"]


@pytest.mark.parametrize(
    ("outputs", "metric"),
    [
        (1, torchmetrics.classification.BinaryAveragePrecision),
        (3, lambda: torchmetrics.classification.MultilabelAUROC(3)),
    ],
    ids=["binary", "multilabel"],
)
def test_objects_of_torchmetrics_go_with_a_loss_of_yes_and_no_whose_targets_are_floats(outputs, metric):
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), (torch.rand(60, outputs) > 0.5).float()
    net = nn.Linear(4, outputs)
    scores = Model(net).compile(None, "bce_with_logits", [metric()]).evaluate(x, y, verbose=0)
    reference = metric()
    reference.update(net(x).detach(), y.long())
    assert list(scores)[1] == pytest.approx(float(reference.compute()))
