"""Losses: definitions, and checks in ``compile`` and on the first batch."""

from __future__ import annotations

import functools
import math
import re
import warnings

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch._utils.registry import did_you_mean
from easytorch.losses.resolve import resolve_loss

torch.manual_seed(0)
X = torch.randn(64, 4)
Y = torch.arange(64) % 3
R = X.sum(1)
YES = (R > 0).float()[:, None]


def pinball(y_true, y_pred):
    return torch.relu(y_true - y_pred).mean()


class Pinball(nn.Module):
    def forward(self, target, input):
        return pinball(target, input)


def compiled(net, loss, **options):
    return Model(net, device="cpu").compile("sgd", loss, **options)


def fit(net, loss, x, y, **options):
    return compiled(net, loss, **options).fit(x, y, verbose=0)


# Order of the arguments


@pytest.mark.parametrize(
    "loss",
    [
        pinball,
        lambda target, output: (target - output).abs().mean(),
        lambda t, y_pred: (t - y_pred).abs().mean(),
        lambda y, p: (y - p).abs().mean(),
        lambda labels, logits: (labels - logits).abs().mean(),
        functools.partial(lambda y, y_hat, scale: scale * (y - y_hat).abs().mean(), scale=2),
        Pinball(),
    ],
    ids=["y_true", "target", "t, y_pred", "y, p", "labels", "partial", "module"],
)
def test_loss_with_targets_first_raises(loss):
    with pytest.raises(
        ValueError, match=r"calls \w+\(y_pred, y\), predictions first.*Swap .*lambda y_pred, y: \w+\(y, y_pred\)"
    ):
        compiled(nn.Linear(4, 1), loss)


def test_swapped_loss_error_contains_working_code():
    with pytest.raises(ValueError, match=re.escape("pass lambda y_pred, y: pinball(y, y_pred)")):
        compiled(nn.Linear(4, 1), pinball)
    fit(nn.Linear(4, 1), lambda y_pred, y: pinball(y, y_pred), X, R[:, None])


@pytest.mark.parametrize(
    "loss",
    [
        lambda y_pred, y_true: (y_pred - y_true).abs().mean(),
        lambda input, target: (input - target).abs().mean(),
        lambda y, t: (y - t).abs().mean(),
        lambda t, o: (t - o).abs().mean(),
        lambda t, p: (t - p).abs().mean(),
        lambda output, label: (output - label).abs().mean(),
        lambda a, y_pred: (a - y_pred).abs().mean(),
        lambda *both: (both[0] - both[1]).abs().mean(),
        nn.functional.mse_loss,
        nn.L1Loss(),
    ],
)
def test_order_is_wrong_only_if_both_argument_names_show_it(loss):
    fit(nn.Linear(4, 1), loss, X, R[:, None])


# Last layer of the module


HEADS = {
    "sigmoid and cross_entropy": (
        nn.Sigmoid(),
        3,
        "cross_entropy",
        Y,
        "ends in a sigmoid.*a softmax itself.*Remove the sigmoid",
    ),
    "relu and cross_entropy": (nn.ReLU(), 3, "cross_entropy", Y, "ends in a ReLU"),
    "softmax and cross_entropy": (nn.Softmax(1), 3, "cross_entropy", Y, "already probabilities.*Remove the softmax"),
    "softmax of one column and bce": (nn.Softmax(1), 1, "bce", YES, "outputs are all 1"),
    "softmax of one column and logits": (nn.Softmax(1), 1, "bce_with_logits", YES, "outputs are all 1"),
    "sigmoid and bce_with_logits": (
        nn.Sigmoid(),
        1,
        "bce_with_logits",
        YES,
        "ends in a sigmoid.*a sigmoid itself.*Remove the sigmoid",
    ),
    "logits and nll": (nn.Identity(), 3, "nll", Y, "go up to .*'nll' expects log-probabilities"),
    "probabilities and nll": (nn.Softmax(1), 3, "nll", Y, "go up to .*'nll' expects log-probabilities"),
}


@pytest.mark.parametrize("case", HEADS)
def test_unsuitable_last_layer_warns_once(case):
    head, outputs, loss, y, message = HEADS[case]
    with pytest.warns(UserWarning, match=message) as caught:
        fit(nn.Sequential(nn.Linear(4, outputs), head), loss, X, y)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("head", "outputs", "loss", "y"),
    [
        (nn.Identity(), 3, "cross_entropy", Y),
        (nn.LogSoftmax(1), 3, "nll", Y),
        (nn.Sigmoid(), 1, "bce", YES),
        (nn.Softmax(1), 2, "bce", torch.cat([YES, 1 - YES], 1)),
        (nn.ReLU(), 1, "mse", R[:, None]),
        (nn.Identity(), 3, "cross_entropy", nn.functional.one_hot(Y, 3).float()),
    ],
)
def test_suitable_last_layer_does_not_warn(head, outputs, loss, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(nn.Sequential(nn.Linear(4, outputs), head), loss, X, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows * 2, "sum to between 2 and 2"),
        (lambda rows: rows + rows.roll(1, 1), "sum to between 2 and 2.*several classes"),
        (lambda rows: rows * 3 - 1, "have values down to -1"),
    ],
    ids=["other sums", "several classes", "negative"],
)
def test_target_rows_that_are_not_probabilities_warn(change, message):
    with pytest.warns(UserWarning, match=message):
        fit(nn.Linear(4, 3), "cross_entropy", X, change(nn.functional.one_hot(Y, 3).float()))


# Shapes


@pytest.mark.parametrize(
    ("net", "y"),
    [
        (nn.Linear(4, 1), R[:, None]),
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), R),
        (nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))), torch.zeros(64, 3)),
    ],
    ids=["columns", "flat", "shapes that torch cannot broadcast"],
)
def test_custom_loss_without_broadcasting_does_not_warn(net, y):
    fit(net, lambda y_pred, y: ((y_pred.reshape(y.shape) - y) ** 2).mean(), X, y)


def test_same_shapes_silence_the_broadcast_warning():
    def squared_error(y_pred, y):
        return ((y_pred - y) ** 2).mean()

    with pytest.warns(UserWarning, match=r"y\.unsqueeze\(1\) for the targets.*the same shape silences this warning"):
        fit(nn.Linear(4, 1), squared_error, X, R)
    fit(nn.Linear(4, 1), squared_error, X, R.unsqueeze(1))


class SquaredError(nn.Module):
    def forward(self, y_pred, y):
        return ((y_pred - y) ** 2).mean()


@pytest.mark.parametrize(
    "loss",
    [
        SquaredError(),
        lambda y_pred, y: (y - y_pred).abs().mean(),
        lambda y_pred, y: ((y - y_pred).abs().sum(), len(y) ** 2),
    ],
    ids=["module", "function", "sum and count"],
)
@pytest.mark.parametrize("split", [None, 0.25])
def test_custom_loss_that_broadcasts_to_pairs_warns(loss, split):
    with pytest.warns(UserWarning, match=r"broadcasts them to \[32, 32\].*Give both the same shape"):
        compiled(nn.Linear(4, 1), loss).fit(X, R, validation_split=split, verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y_pred, y: ((y_pred[:, 0] - y) ** 2).mean(),
        lambda y_pred, y: nn.functional.mse_loss(y_pred.squeeze(1), y),
        lambda y_pred, y: nn.functional.l1_loss(y_pred, y.unsqueeze(1)),
        lambda y_pred, y: (y_pred.flatten() - y).square(),
    ],
    ids=["index", "squeeze", "unsqueeze", "one value per sample"],
)
@pytest.mark.parametrize("weight", [None, torch.ones(len(X))], ids=["plain", "weighted"])
def test_custom_loss_that_reshapes_its_arguments_does_not_warn(loss, weight):
    values = loss if weight is None else lambda y_pred, y: loss(y_pred, y) * torch.ones(len(y))
    compiled(nn.Linear(4, 1), values).fit(X, R, sample_weight=weight, verbose=0)


def test_failing_custom_loss_that_does_not_broadcast_is_reported():
    message = r"The loss, .*, failed on .* and the targets, float32 \[32\]"
    with pytest.raises(ValueError, match=message) as caught:
        fit(nn.Linear(4, 1), lambda y_pred, y: torch.cat([y_pred, y]).mean(), X, R)
    assert isinstance(caught.value.__context__, RuntimeError)


@pytest.mark.parametrize("metrics", [[], ["accuracy"]], ids=["loss", "metric"])
@pytest.mark.parametrize(("shape", "fix"), [((5, 3), r"transpose\(1, 2\)"), ((5, 6, 3), r"movedim\(-1, 1\)")])
def test_classes_in_the_last_dimension_are_reported(shape, fix, metrics):
    net = nn.Sequential(nn.Linear(4, math.prod(shape)), nn.Unflatten(1, shape))
    y = torch.zeros(64, *shape[:-1], dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"expects the classes in dimension 1.*y_pred\.{fix}"):
        fit(net, "cross_entropy", X, y, metrics=metrics)


@pytest.mark.parametrize(
    "y",
    [Y, torch.zeros_like(Y), Y[:, None].float(), torch.ones(64, 1)],
    ids=["int64", "zeros", "column", "ones"],
)
def test_cross_entropy_with_one_output_raises(y):
    with pytest.raises(ValueError, match=r"With one class the loss is always 0\..*'bce_with_logits'"):
        fit(nn.Linear(4, 1), "cross_entropy", X, y)


def test_fractions_as_class_indices_raise():
    with pytest.raises(ValueError, match=r"not integers \(for example .*\).*loss='mse'"):
        fit(nn.Linear(4, 3), "cross_entropy", X, X[:, 0])


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "huber"])
@pytest.mark.parametrize("y", [Y, Y.float()], ids=["int64", "float32"])
def test_class_indices_for_regression_suggest_cross_entropy(loss, y):
    with pytest.raises(ValueError, match=r"3 outputs per sample.*use loss='cross_entropy'"):
        fit(nn.Linear(4, 3), loss, X, y)


class MeanAndVariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(4, 1)

    def forward(self, x):
        return self.mean(x), torch.full((len(x), 1), 0.5)


LOG_PROBABILITIES = nn.Sequential(nn.Linear(4, 1), nn.LogSigmoid())


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (MeanAndVariance(), "gaussian_nll", R),
        (nn.Linear(4, 1), "hinge_embedding", 2 * YES[:, 0] - 1),
        (nn.Linear(4, 1), "soft_margin", 2 * YES[:, 0] - 1),
        (LOG_PROBABILITIES, "kl_div", YES[:, 0]),
    ],
    ids=["gaussian_nll", "hinge_embedding", "soft_margin", "kl_div"],
)
# Torch warns that the mean of kl_div is not a mean over samples.
@pytest.mark.filterwarnings("ignore:reduction")
def test_flat_targets_are_not_broadcast_to_pairs(net, loss, y):
    values = [compiled(net, loss).evaluate(X, targets, verbose=0)["loss"] for targets in (y, y[:, None])]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("name", "function"),
    [("hinge_embedding", nn.functional.hinge_embedding_loss), ("soft_margin", nn.functional.soft_margin_loss)],
)
def test_signed_targets_may_be_integers_as_in_torch(name, function):
    net, signs = nn.Linear(4, 1), 2 * YES.long() - 1
    expected = function(net(X), signs).item()
    assert compiled(net, name).evaluate(X, signs, verbose=0).loss == pytest.approx(expected)


class SpeechNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        return self.out(x).log_softmax(-1).transpose(0, 1), torch.full((len(x),), 12)


# Checks of the first batch


def test_first_batch_is_checked_after_every_prepare():
    loss, y = compiled(nn.Linear(4, 3), "cross_entropy").loss, Y.clone()
    probabilities = torch.full((64, 3), 1 / 3)
    for _ in range(2):
        loss.prepare(y)
        with pytest.warns(UserWarning, match="already probabilities"):
            loss(probabilities, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(probabilities, y)


def test_failed_check_is_repeated_on_the_next_batch():
    loss = compiled(nn.Linear(4, 1), "cross_entropy").loss
    for _ in range(2):
        with pytest.raises(ValueError, match="cross-entropy compares several classes"):
            loss(torch.zeros(64, 1), torch.zeros(64, dtype=torch.int64))


def test_shapes_are_checked_in_every_batch():
    loss = compiled(nn.Linear(4, 3), "mse").loss
    loss(torch.rand(64, 3), torch.rand(64, 3))
    with pytest.raises(ValueError, match=r"\[64, 3\] but the targets have \[64, 1\]"):
        loss(torch.rand(64, 3), R[:, None])


# Losses of Keras


def keras_hinge(labels, y_pred, power=1):
    """Return the hinge loss by the definition of Keras, value by value."""
    flat, outputs = labels.flatten().tolist(), y_pred.flatten().tolist()
    if all(label in (0, 1) for label in flat):
        flat = [2 * label - 1 for label in flat]
    return sum(max(1 - label * output, 0) ** power for label, output in zip(flat, outputs, strict=True)) / len(flat)


@pytest.mark.parametrize(("name", "power"), [("hinge", 1), ("squared_hinge", 2)])
@pytest.mark.parametrize(
    "labels", [YES, 2 * YES - 1, YES.long(), torch.ones(64, 1)], ids=["0 1", "-1 1", "int", "ones"]
)
def test_hinge_matches_keras(name, power, labels):
    model = compiled(nn.Linear(4, 1), name)
    expected = keras_hinge(labels, torch.from_numpy(model.predict(X, verbose=0)), power)
    assert model.evaluate(X, labels, batch_size=64, verbose=0).loss == pytest.approx(expected, rel=1e-5)


def test_kl_divergence_matches_keras():
    y_pred, y = torch.randn(64, 3).softmax(1), torch.randn(64, 3).softmax(1)
    y[0] = torch.tensor([1.0, 0.0, 0.0])  # Keras clamps 0 to 1e-7
    clipped = y.double().clamp(1e-7, 1)
    expected = (clipped * (clipped.log() - y_pred.double().clamp(1e-7, 1).log())).sum(1).mean()
    for name in ("kl_divergence", "kld"):
        loss = compiled(nn.Linear(3, 3), name).loss
        assert float(loss(y_pred, y)) == pytest.approx(float(expected), rel=1e-4)


def test_flat_targets_of_a_keras_loss_are_a_column():
    model = compiled(nn.Linear(4, 1), "hinge")
    values = [model.evaluate(X, y, verbose=0)["loss"] for y in (YES[:, 0], YES)]
    assert values[0] == values[1]


# Sample weights


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.MSELoss(reduction="sum"),
        nn.KLDivLoss(reduction="batchmean"),
        functools.partial(nn.functional.mse_loss, reduction="sum"),
    ],
    ids=["mean", "sum", "batchmean", "bound sum"],
)
def test_sample_weights_of_one_do_not_change_the_loss(loss):
    criterion = compiled(nn.Linear(4, 3), loss).loss
    y_pred, y = torch.randn(8, 3).log_softmax(1), torch.randn(8, 3).softmax(1)
    assert float(criterion(y_pred, y, torch.ones(8))) == pytest.approx(float(criterion(y_pred, y)))


def test_sample_weights_apply_to_each_ctc_loss():
    net, x, lengths = SpeechNet(), torch.randn(6, 12, 4), torch.tensor([2, 3, 4, 5, 5, 0])
    labels, weights = torch.randint(1, 5, (6, 5)), torch.linspace(0.5, 2.0, 6)
    output, sizes = net(x)
    each = [
        nn.functional.ctc_loss(output[:, i : i + 1], labels[i : i + 1], sizes[:1], lengths[i : i + 1])
        for i in range(len(x))
    ]
    model = compiled(net, "ctc")
    for given in (torch.ones(6), weights):
        loss = model.evaluate([(x, (labels, lengths), given)], verbose=0).loss
        assert loss == pytest.approx((torch.stack(each) * given).mean().item(), rel=1e-5)
    assert model.evaluate([(x, (labels, lengths))], verbose=0).loss == pytest.approx(torch.stack(each).mean().item())


# Names


@pytest.mark.parametrize(("name", "similar"), [("cross_entropi", "cross_entropy"), ("triplet", "triplet_margin")])
def test_unknown_loss_suggests_a_similar_name(name, similar):
    with pytest.raises(
        ValueError, match=rf"Unknown loss '{name}'\. Did you mean '{similar}'\? Otherwise pass a torch.nn loss"
    ):
        compiled(nn.Linear(4, 3), name)


@pytest.mark.parametrize("name", ["dice", "focal", "softmax", "wasserstein"])
def test_unknown_loss_without_similar_name_lists_common_ones(name):
    with pytest.raises(ValueError, match=rf"Unknown loss '{name}'\. Pass a name such as 'cross_entropy', .*") as caught:
        compiled(nn.Linear(4, 3), name)
    assert "easytorch.losses.TABLE" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("typed", "names", "similar"),
    [
        ("sgd2", ["adam", "sgd"], "sgd"),
        ("sdg", ["adam", "sgd"], "sgd"),
        ("adma", ["adamax", "adam"], "adam"),
        ("val_acc", ["val_loss", "val_accuracy"], "val_accuracy"),
        ("validation_loss", ["loss", "val_loss"], "val_loss"),
        ("confusion_matrix", ["cosine_similarity"], None),
        ("mcc", ["acc", "accuracy"], None),
        ("lion", ["muon", "nadam"], None),
    ],
)
def test_only_similar_names_are_suggested(typed, names, similar):
    assert did_you_mean(typed, names) == ("" if similar is None else f" Did you mean {similar!r}?")


@pytest.mark.parametrize("name", ["softmax_loss", "Keras_Loss"])
def test_unknown_loss_is_quoted_as_it_was_typed(name):
    with pytest.raises(ValueError, match=f"Unknown loss '{name}'"):
        resolve_loss(name)


class Parts(nn.Module):
    """A module that returns ``count`` outputs in a tuple; with 0, one tensor."""

    def __init__(self, count):
        super().__init__()
        self.layer, self.count = nn.Linear(4, 3), count

    def forward(self, x):
        return (self.layer(x),) * self.count if self.count else self.layer(x)


# With as many samples as parts, one tensor would be taken apart along the batch, without an error of torch.
@pytest.mark.parametrize(
    ("loss", "samples", "outputs", "y", "message"),
    [
        ("triplet_margin", 3, 0, [1.0] * 3, r"return \(anchor, positive, negative\), received float"),
        ("cosine_embedding", 2, 0, [1.0] * 2, r"return \(first, second\), received float"),
        ("margin_ranking", 2, 3, [1.0] * 2, r"return \(first, second\), received \(float"),
        ("gaussian_nll", 2, 0, [[1.0] * 3] * 2, r"return \(mean, variance\), received float"),
        ("ctc", 2, 0, [[1, 2]] * 2, r"return \(log_probabilities, input_lengths\)"),
        ("cosine_embedding", 2, 2, [0.0, 1.0], r"targets are 0 and 1.*expects -1 and 1\. Pass 2 \* y - 1\.$"),
        ("margin_ranking", 2, 2, [0.0, 1.0], "targets are 0 and 1"),
        ("cosine_embedding", 2, 2, [1.0, 0.5], "The targets contain 0.5.* is 0 for any other target"),
    ],
)
def test_losses_of_several_outputs_refuse_what_torch_misreads(loss, samples, outputs, y, message):
    model = Model(Parts(outputs), device="cpu").compile("sgd", loss)
    with pytest.raises(ValueError, match=message):
        model.fit(torch.ones(samples, 4), torch.tensor(y), verbose=0)
