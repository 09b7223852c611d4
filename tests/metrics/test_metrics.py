"""Metrics: values, names, outputs, and checks before anyone relies on a wrong number."""

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

from easytorch import EpochMetric, Mean, Metric, Model
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
def test_column_of_targets_is_not_broadcast_to_pairs(name):
    def squeezing(y_pred, y):
        return nn.functional.cross_entropy(y_pred, y.squeeze(1))

    model = compiled(loss=squeezing, metrics=[name])
    flat = compiled(metrics=["accuracy"])
    flat.module.load_state_dict(model.module.state_dict())
    assert model.evaluate(X, Y[:, None], verbose=0)[name] == flat.evaluate(X, Y, verbose=0).accuracy


def test_accuracy_excludes_ignored_tokens_for_every_form_of_loss():
    y_pred, y = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].transpose(1, 2), torch.tensor([[0, -100], [2, 1]])
    for loss in ("cross_entropy", nn.functional.cross_entropy, functools.partial(nn.functional.cross_entropy)):
        model = Model(nn.Identity(), device="cpu").compile(None, loss, ["accuracy"])
        assert model.evaluate(y_pred, y, verbose=0).accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["precision", "recall", "f1", "auroc"])
def test_torchmetrics_exclude_ignored_tokens(name):
    y_pred, y = torch.randn(8, 3, 5), torch.randint(3, (8, 5))
    y[:, 3:] = -100
    model = Model(nn.Identity(), device="cpu").compile(None, "cross_entropy", [name])
    counted = model.evaluate(y_pred[:, :, :3], y[:, :3], verbose=0)
    assert model.evaluate(y_pred, y, verbose=0)[name] == pytest.approx(counted[name])


def test_top_k_accuracy_excludes_ignored_tokens():
    y_pred, y = torch.randn(8, 20, 6), torch.randint(20, (8, 6))
    y[:, 3:] = -100
    model = Model(nn.Identity(), device="cpu").compile(None, "cross_entropy", ["top_20_accuracy", "top_3_accuracy"])
    scores = model.evaluate(y_pred, y, verbose=0)
    flat = y_pred[:, :, :3].transpose(1, 2).reshape(-1, 20)
    expected = sklearn_metrics.top_k_accuracy_score(y[:, :3].flatten(), flat, k=3, labels=range(20))
    assert scores["top_20_accuracy"] == 1
    assert scores["top_3_accuracy"] == pytest.approx(expected)


def test_weighted_accuracy_excludes_ignored_tokens():
    y_pred, y = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].transpose(1, 2), torch.tensor([[0, -100], [2, 1]])
    model = Model(nn.Identity(), device="cpu").compile(None, "cross_entropy", weighted_metrics=["accuracy"])
    scores = model.evaluate(y_pred, y, sample_weight=torch.tensor([3.0, 1.0]), verbose=0)
    assert scores.accuracy == pytest.approx((3 + 1) / (3 + 1 + 1))


def test_mean_of_tensors_and_numbers_keeps_float64_precision():
    mean = Mean()
    mean.add(torch.tensor(1.0, dtype=torch.float64), 1)
    mean.add(0.1, 1)
    assert float(mean.compute()) == 1.1 / 2


@pytest.mark.parametrize("name", ["f1", "recall", "auroc"])
def test_smoothed_targets_are_rounded_as_for_accuracy(name):
    net, smooth = nn.Linear(4, 1), torch.where(X[:, :1] > 0, 0.95, 0.05)
    net.load_state_dict({"weight": torch.tensor([[5.0, 0, 0, 0]]), "bias": torch.zeros(1)})  # always right
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
def test_masks_are_measured_per_channel(name, channels, reference):
    images, net = torch.randn(8, 2, 4, 6), nn.Conv2d(2, channels, 1)
    masks = (torch.rand(8, channels, 4, 6) > torch.tensor([0.2, 0.5, 0.8])[:channels, None, None]).float()
    model = Model(net, device="cpu").compile(None, "bce_with_logits", [name])
    expected = float(reference(net(images).sigmoid(), masks.long()))
    assert model.evaluate(images, masks, batch_size=3, verbose=0)[name] == pytest.approx(expected)


def test_cosine_similarity_is_a_mean_over_samples():
    y_pred, y = torch.randn(100, 4), torch.randn(100, 4)
    model = Model(nn.Identity(), device="cpu").compile(None, "mse", ["cosine_similarity"])
    expected = nn.functional.cosine_similarity(y_pred, y).mean().item()
    assert model.evaluate(y_pred, y, verbose=0).cosine_similarity == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, torch.ones(2048)], ids=["plain", "weighted"])
def test_sums_of_16_bit_floats_do_not_overflow_or_lose_digits(dtype, weights):
    y_pred, y = torch.full((2048, 1), 101.0, dtype=dtype), torch.zeros(2048, 1, dtype=dtype)
    model = Model(nn.Identity(), device="cpu").compile(None, "l1", ["mae"], weighted_metrics=["mse"])
    y_pred[0] = 1
    mae, mse = list(model.evaluate(y_pred, y, sample_weight=weights, batch_size=2048, verbose=0))[1:]
    errors = (y_pred - y).abs()
    assert mae == pytest.approx(errors.double().mean().item(), rel=1e-4)
    assert mse == pytest.approx(errors.square().double().mean().item(), rel=1e-4)


def test_named_metrics_get_the_mean_and_functions_all_outputs():
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


def test_metric_that_wraps_others_is_measured():
    net, y = nn.Linear(4, 2), X[:, :2] + 1
    metric = torchmetrics.MultioutputWrapper(torchmetrics.MeanSquaredError(), 2)
    model = Model(net, device="cpu").compile(None, "mse", [metric])
    expected = (net(X) - y).square().mean(0).tolist()
    for _ in range(2):  # the second pass starts from zero
        scores = model.evaluate(X, y, batch_size=40, verbose=0)
        measured = [scores.multioutput_wrapper_0, scores.multioutput_wrapper_1]  # logged separately, never averaged
        assert measured == pytest.approx(expected, rel=1e-5)


def test_confusion_matrix_and_scores_of_classes_are_logged_by_entry():
    net, y = nn.Linear(4, 3), torch.arange(len(X)) % 3
    classes = torchmetrics.classification
    metrics = [
        classes.MulticlassConfusionMatrix(3),
        classes.MulticlassRecall(3, average=None),
        torchmetrics.ClasswiseWrapper(classes.MulticlassPrecision(3, average=None), labels=["a", "b", "c"]),
    ]
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", metrics)
    predicted = net(X).argmax(1)
    scores = model.evaluate(X, y, batch_size=10, verbose=0)
    for i in range(3):
        assert scores[f"multiclass_recall_{i}"] == pytest.approx((predicted == i)[y == i].double().mean().item())
        for j in range(3):
            assert scores[f"multiclass_confusion_matrix_{i}_{j}"] == ((y == i) & (predicted == j)).sum()
    assert any(name.endswith("_b") for name in scores.keys())  # noqa: SIM118  # Scores is not a dict
    stop = EarlyStopping("val_multiclass_recall_2")
    history = model.fit(X, y, validation_data=(X, y), callbacks=[stop], verbose=0)
    assert "val_multiclass_recall_2" in history


WRAPPERS = {
    "compositional_metric": lambda: torchmetrics.MeanSquaredError() + torchmetrics.MeanAbsoluteError(),
    "multioutput_wrapper": lambda: torchmetrics.MultioutputWrapper(torchmetrics.MeanSquaredError(), 1),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_metric_that_wraps_others_resumes_within_an_epoch(name, tmp_path):
    def run(folder, stop=None):
        torch.manual_seed(0)
        halt = LambdaCallback(
            on_train_batch_end=lambda *_: model.state.step == stop and signal.raise_signal(signal.SIGINT)
        )
        model = compiled(1, "mse", [WRAPPERS[name]()])
        options = {"resume": tmp_path / folder, "on_interrupt": "return", "verbose": 0}
        return model.fit(X, R, batch_size=16, callbacks=[halt], **options)

    uninterrupted = run("uninterrupted")
    run("resumed", stop=4)
    assert run("resumed")[name] == uninterrupted[name]


def test_weighted_metric_with_one_number_per_batch_raises():
    def mean_hit(y_pred, y):
        return (y_pred.argmax(1) == y).float().mean()

    model = compiled(weighted_metrics=[mean_hit])
    model.evaluate(X, Y, verbose=0)
    with pytest.raises(
        ValueError, match=r"'mean_hit' .*weights need one value per sample, but the function returns one number"
    ):
        model.evaluate(X, Y, sample_weight=torch.ones(96), verbose=0)


# Names


@pytest.mark.parametrize("name", ["loss", "lr", "epoch", "val_loss", "val_lr"])
def test_metric_with_reserved_name_raises(name):
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


def test_torchmetrics_metric_with_reserved_name_raises():
    class Loss(torchmetrics.MeanSquaredError):
        pass

    with pytest.raises(ValueError, match="'loss' is reserved"):
        compiled(1, "mse", [Loss()])


def test_metric_named_like_an_output_loss_raises():
    with pytest.raises(ValueError, match="'output_1_loss' is reserved"):
        compiled(1, ["mse", "mse"], [[named("loss")], []])


def test_metric_named_like_a_validation_metric_raises():
    with pytest.raises(ValueError, match="'val_mae' is reserved"):
        compiled(1, "mse", ["mae", named("val_mae")])


@pytest.mark.parametrize("name", ["lr", "epoch"])
def test_step_that_returns_a_reserved_name_raises(name):
    class Own(Model):
        def train_step(self, batch):
            return super().train_step(batch) | {name: 1.0}

    model = Own(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=f"A step returned '{name}', a reserved name"):
        model.fit(X, Y, verbose=0)
    assert model.state.step == 0


# Order of the arguments


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
def test_metric_with_targets_first_raises(metric, where):
    with pytest.raises(ValueError, match=r"predictions first.*Swap the arguments, or pass lambda y_pred, y"):
        compiled(1, "mse", **{where: [metric]})


def test_scikit_learn_score_error_contains_working_code():
    from sklearn.metrics import mean_absolute_error

    with pytest.raises(ValueError, match=re.escape("Pass easytorch.EpochMetric(mean_absolute_error)")):
        compiled(1, "mse", [mean_absolute_error])
    model = compiled(1, "mse", [EpochMetric(mean_absolute_error), "mae"])
    scores = model.evaluate(X, R, verbose=0)
    assert scores.mean_absolute_error == pytest.approx(scores.mae)


# Updates


class Silent(Model):
    """A model whose training step updates no metric."""

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": nn.functional.cross_entropy(self(x), y)}


class SilentInTests(Model):
    def test_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"loss": nn.functional.cross_entropy(self(x), y)}


@pytest.mark.parametrize("kind", [Silent, SilentInTests])
@pytest.mark.parametrize("verbose", [0, 1])
def test_unused_metric_warns_once_per_fit(kind, verbose):
    model = kind(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"])
    with pytest.warns(UserWarning, match="accuracy") as caught:
        model.fit(X, Y, epochs=3, validation_data=(X, Y), callbacks=[EarlyStopping("val_accuracy")], verbose=verbose)
    messages = [str(warning.message) for warning in caught if "never updated" in str(warning.message)]
    assert messages == [
        "accuracy was never updated. Call self.metrics.update(y_pred, y) in train_step and test_step, or remove it from "
        "compile()."
    ]


def test_unused_metric_warns_again_in_the_next_fit():
    model = Silent(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"])
    for _ in range(2):
        with pytest.warns(UserWarning, match="accuracy was never updated") as caught:
            model.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
        assert len(caught) == 1


@pytest.mark.parametrize("method", ["evaluate", "train_on_batch", "test_on_batch"])
def test_unused_metrics_warn_in_every_method(method):
    model = Silent(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy", "top_2_accuracy"])
    with pytest.warns(UserWarning, match="accuracy, top_2_accuracy were never updated. .* remove them"):
        getattr(model, method)(X, Y, **({"verbose": 0} if method == "evaluate" else {}))


def test_step_that_measures_some_batches_does_not_warn():
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


def test_model_without_metrics_does_not_warn():
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
    ("loss", "fix"),
    [
        (["cross_entropy", "mse"], "metrics=[['accuracy'], []]"),
        (BY_NAME, "metrics={'kind': ['accuracy']}"),
    ],
    ids=["list", "dict"],
)
@pytest.mark.parametrize("metrics", [["accuracy"], "accuracy"], ids=["list", "name"])
def test_ambiguous_output_error_contains_working_code(loss, fix, metrics):
    named = isinstance(loss, dict)
    with pytest.raises(ValueError, match=r"'accuracy' could measure any of the outputs.*" + re.escape(fix)):
        Model(TwoHeads(named), device="cpu").compile("sgd", loss, metrics=metrics)
    model = Model(TwoHeads(named), device="cpu").compile(
        "sgd", loss, metrics=ast.literal_eval(fix.removeprefix("metrics="))
    )
    history = model.fit(X, {"kind": Y, "size": R} if named else (Y, R), verbose=0)
    assert next(name for name in history if name.endswith("accuracy")) == f"{'kind' if named else 'output_1'}_accuracy"


def test_more_metric_lists_than_outputs_raise():
    with pytest.raises(ValueError, match="There are 2 outputs, but 3 lists of metrics"):
        Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", "mse"], [["accuracy"], ["mae"], ["mse"]])


@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_metric_lists_match_outputs_by_position():
    model = Model(TwoHeads(), device="cpu").compile("sgd", [None, "mse"], [None, ["mae"]])
    assert list(model.fit(X, (Y, R), verbose=0)) == ["loss", "output_2_loss", "output_2_mae", "lr"]


def test_list_of_one_loss_takes_a_plain_list_of_metrics():
    model = compiled(3, ["cross_entropy"], ["accuracy"])
    assert list(model.fit(X, Y, verbose=0)) == ["loss", "output_1_loss", "accuracy", "lr"]


@pytest.mark.parametrize("metrics", [None, [["accuracy"], ["mae"]]], ids=["without metrics", "with metrics"])
@pytest.mark.parametrize("y", [Y, R], ids=["classes", "numbers"])
def test_one_target_for_two_losses_raises(metrics, y):
    model = Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", "mse"], metrics)
    with pytest.raises(ValueError, match=r"2 outputs with 2 losses, but one target, .*\. Pass targets \(y1, y2\)\."):
        model.fit(X, y, verbose=0)
    model.fit(X, (Y, R), verbose=0)


def test_one_target_for_named_losses_error_lists_the_names():
    model = Model(TwoHeads(named=True), device="cpu").compile("sgd", BY_NAME)
    with pytest.raises(ValueError, match=re.escape("Pass targets {'kind': y1, 'size': y2}.")):
        model.fit(X, Y, verbose=0)


def test_one_output_for_two_losses_raises():
    with pytest.raises(ValueError, match=r"losses for 2 outputs, but the module returned one, float32 \[32, 1\]"):
        compiled(1, ["mse", "mse"]).fit(X, (R, R), verbose=0)


def test_list_of_loss_weights_follows_the_order_of_named_losses():
    class Twice(nn.Linear):
        def forward(self, x):
            return dict.fromkeys("ab", super().forward(x))

    module, losses = Twice(4, 3), {"a": "cross_entropy", "b": "cross_entropy"}
    by_name, by_position = (
        Model(module, device="cpu")
        .compile("sgd", losses, loss_weights=weights)
        .evaluate(X, {"a": Y, "b": Y}, verbose=0)
        for weights in ({"a": 0.25, "b": 0.5}, [0.25, 0.5])
    )
    assert by_position["loss"] == by_name["loss"] == pytest.approx(0.75 * by_name["a_loss"])


@pytest.mark.parametrize("weights", [0.5, [0.5]], ids=str)
def test_wrong_number_of_loss_weights_raises(weights):
    with pytest.raises(ValueError, match=r"expects 2 weights, received loss_weights=.*Pass one weight per output"):
        compiled(loss=["mse", "mse"], loss_weights=weights)


def test_one_sample_weight_applies_to_both_losses():
    model = Model(TwoHeads(), device="cpu").compile("sgd", ["cross_entropy", "mse"])
    with pytest.warns(UserWarning, match="output_1_loss is 0, because nothing counts"):
        assert model.fit(X, (Y, R), sample_weight=torch.zeros(96), verbose=0)["loss"] == [0.0]


@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_one_target_suffices_for_the_only_loss():
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
def test_keras_names_of_errors_are_known(name, same):
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
def test_keras_names_of_accuracies_are_known(name, same):
    scores = compiled(8, "cross_entropy", [name, same]).evaluate(X, torch.arange(96) % 8, verbose=0)
    assert 0 < scores[name] == scores[same] < 1


@pytest.mark.parametrize("name", ["hinge", "SquaredHinge", "Poisson", "log_cosh", "MeanSquaredLogarithmicError"])
def test_keras_losses_are_metrics_too(name):
    net = nn.Sequential(nn.Linear(4, 1), nn.Softplus())  # Poisson needs positive outputs
    model = Model(net, device="cpu").compile("sgd", name, [name])
    loss, metric = model.evaluate(X, R.abs(), verbose=0)
    assert metric == pytest.approx(loss)
    assert model.metrics.mode(name) == "min"


@pytest.mark.parametrize("name", ["confusion_matrix", "perplexity", "dice"])
def test_unknown_metric_without_similar_name_lists_common_ones(name):
    with pytest.raises(
        ValueError, match=rf"Unknown metric '{name}'\. Pass a name such as 'accuracy', .* f\(y_pred, y\)"
    ) as caught:
        compiled(metrics=[name])
    assert "easytorch.metrics.NAMES" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "similar"),
    [("acuracy", "accuracy"), ("f1score_", "f1_score"), ("kappa", "cohen_kappa"), ("top_0_accuracy", "top_5_accuracy")],
)
def test_unknown_metric_suggests_a_similar_name(name, similar):
    with pytest.raises(ValueError, match=rf"Did you mean '{similar}'\? Otherwise pass a function") as caught:
        compiled(metrics=[name])
    assert len(str(caught.value)) < 200


def test_weighted_metrics_use_the_weights_of_their_output():
    net, weights = TwoHeads(named=True), {"kind": torch.rand(96), "size": torch.rand(96)}
    metrics = {"kind": ["accuracy"], "size": ["mae"]}
    model = Model(net, device="cpu").compile(None, BY_NAME, weighted_metrics=metrics)
    scores = model.evaluate(X, {"kind": Y, "size": R}, sample_weight=weights, verbose=0)
    outputs = {name: output.detach() for name, output in net(X).items()}
    hits = sklearn_metrics.accuracy_score(Y, outputs["kind"].argmax(1), sample_weight=weights["kind"])
    errors = sklearn_metrics.mean_absolute_error(R, outputs["size"], sample_weight=weights["size"])
    assert scores.kind_accuracy == pytest.approx(hits)
    assert scores.size_mae == pytest.approx(errors, rel=1e-5)


@pytest.mark.parametrize("make", [torchmetrics.MeanSquaredError, Bias], ids=["torchmetrics", "Metric"])
def test_metric_object_passed_twice_raises(make):
    metric = make()
    for metrics in ([[metric], [metric]], [[], [metric, metric]]):
        with pytest.raises(ValueError, match=r"was passed twice.*Create one object for each"):
            Model(TwoHeads(), device="cpu").compile("sgd", ["mse", "mse"], metrics)
    with pytest.raises(ValueError, match="was passed twice"):
        compiled(1, "mse", [metric], weighted_metrics=[metric])
    Model(TwoHeads(), device="cpu").compile("sgd", ["mse", "mse"], [[make()], [make()]])


def test_two_metric_objects_may_have_equal_attributes():
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
def test_torchmetrics_take_float_targets_of_binary_losses(outputs, metric):
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), (torch.rand(60, outputs) > 0.5).float()
    net = nn.Linear(4, outputs)
    scores = Model(net).compile(None, "bce_with_logits", [metric()]).evaluate(x, y, verbose=0)
    reference = metric()
    reference.update(net(x).detach(), y.long())
    assert list(scores)[1] == pytest.approx(float(reference.compute()))


def test_torchmetrics_object_that_computes_a_plain_number_is_accepted():
    class Constant(torchmetrics.Metric):
        def update(self, y_pred, y):
            pass

        def compute(self):
            return 3

    model = Model(nn.Linear(4, 1), device="cpu").compile("sgd", "mse", [Constant()])
    assert model.evaluate(X, R, verbose=0).constant == 3


def test_metric_object_with_a_method_named_check_is_only_called():
    class Custom:
        __name__ = "custom"

        def check(self):
            raise AssertionError("this is the user's own method")

        def __call__(self, y_pred, y):
            return (y_pred - y).abs()

    model = Model(nn.Linear(4, 1), device="cpu").compile("sgd", "mse", [Custom(), "mae"])
    scores = model.evaluate(X, R, verbose=0)
    assert scores.custom == pytest.approx(scores.mae)
