"""Targets with one possible meaning give the value of torch for the targets as torch takes them."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from easytorch import EpochMetric, Model
from easytorch.callbacks import LambdaCallback
from easytorch.losses.resolve import resolve_loss
from tests.cases import slow_after_first
from tests.many import run_ranks

torch.manual_seed(0)
N = 22  # batches of 8, 8 and 6
X = torch.randn(N, 4)
LABELS = torch.arange(N) % 3
LABELS_WITH_IGNORED = torch.where(torch.arange(N) % 5 == 0, -100, LABELS)
YES = (X[:, 0] > 0).float()[:, None]
NUMBERS = X.sum(1, keepdim=True).mul(3).round()
MASKS = (torch.arange(N * 6).reshape(N, 2, 3) % 3 == 0).long()
CLASS_WEIGHT = torch.tensor([1.0, 2.0, 5.0])


class Pixels(nn.Module):
    """Outputs ``[N, outputs, 2, 3]``."""

    def __init__(self, outputs):
        super().__init__()
        self.layer, self.shape = nn.Linear(4, outputs * 6), (outputs, 2, 3)

    def forward(self, x):
        return self.layer(x).unflatten(1, self.shape)


def net(outputs, *layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, outputs), *layers)


def pixels(outputs):
    torch.manual_seed(1)
    return Pixels(outputs)


one_hot = functools.partial(F.one_hot, num_classes=3)
log_softmax = functools.partial(net, 3, nn.LogSoftmax(1))
sigmoid = functools.partial(net, 1, nn.Sigmoid())
# The module, the loss, the targets of the user, and the targets of torch.
CASES = {
    "mse flat": (lambda: net(1), "mse", NUMBERS[:, 0], NUMBERS),
    "mse flat outputs": (lambda: net(1, nn.Flatten(0)), "mse", NUMBERS, NUMBERS[:, 0]),
    "mae integers": (lambda: net(1), nn.L1Loss(), NUMBERS.long(), NUMBERS),
    "huber flat integers": (lambda: net(1), F.huber_loss, NUMBERS[:, 0].int(), NUMBERS),
    "log_cosh flat": (lambda: net(1), "log_cosh", NUMBERS[:, 0].long(), NUMBERS),
    "bce flat integers": (sigmoid, "bce", YES[:, 0].long(), YES),
    "bce booleans": (sigmoid, nn.BCELoss(), YES > 0, YES),
    "logits flat booleans": (lambda: net(1), "bce_with_logits", YES[:, 0] > 0, YES),
    "logits object": (lambda: net(1), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), YES[:, 0].long(), YES),
    "several labels": (lambda: net(3), "bce_with_logits", one_hot(LABELS), one_hot(LABELS).float()),
    "multi-label": (lambda: net(1), "multi_label_soft_margin", YES[:, 0] > 0, YES),
    "masks": (lambda: pixels(1), "bce_with_logits", MASKS, MASKS[:, None].float()),
    "one-hot": (lambda: net(3), "cross_entropy", one_hot(LABELS), one_hot(LABELS).float()),
    "one-hot booleans": (lambda: net(3), F.cross_entropy, one_hot(LABELS) > 0, one_hot(LABELS).float()),
    "a column": (lambda: net(3), "cross_entropy", LABELS[:, None], LABELS),
    "floats": (lambda: net(3), "cross_entropy", LABELS.float(), LABELS),
    "a column of floats": (lambda: net(3), nn.CrossEntropyLoss(), LABELS_WITH_IGNORED[:, None].double(), LABELS_WITH_IGNORED),
    "bytes": (lambda: net(3), "cross_entropy", LABELS.to(torch.uint8), LABELS),
    "two classes": (lambda: net(2), "cross_entropy", YES[:, 0] > 0, YES[:, 0].long()),
    "weighted floats": (lambda: net(3), nn.CrossEntropyLoss(CLASS_WEIGHT), LABELS_WITH_IGNORED.float(), LABELS_WITH_IGNORED),
    "weighted one-hot": (lambda: net(3), nn.CrossEntropyLoss(CLASS_WEIGHT), one_hot(LABELS), one_hot(LABELS).float()),
    "ignored class": (lambda: net(3), nn.CrossEntropyLoss(ignore_index=1), one_hot(LABELS), LABELS),
    "nll one-hot": (log_softmax, nn.NLLLoss(CLASS_WEIGHT), one_hot(LABELS), LABELS),
    "nll one-hot floats": (log_softmax, "nll", one_hot(LABELS).float(), LABELS),
    "margin": (lambda: net(3), "multi_margin", LABELS[:, None].float(), LABELS),
    "pixels of a channel": (lambda: pixels(3), "cross_entropy", MASKS[:, None], MASKS),
    "float pixels": (lambda: pixels(3), "cross_entropy", MASKS.float(), MASKS),
    "weighted float pixels": (lambda: pixels(3), nn.CrossEntropyLoss(CLASS_WEIGHT), MASKS[..., None].float(), MASKS),
}  # fmt: skip


class ByHand(Dataset):
    """A dataset whose targets are unknown until its samples are loaded."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


KINDS = {
    "tensors": lambda x, y: ((x, y), {"batch_size": 8}),
    "arrays": lambda x, y: ((x.numpy(), y.numpy()), {"batch_size": 8}),
    "loader": lambda x, y: ((DataLoader(TensorDataset(x, y), 8),), {}),
    "dataset": lambda x, y: ((ByHand(x, y),), {"batch_size": 8}),
    "batches": lambda x, y: (([(x[i : i + 8], y[i : i + 8]) for i in range(0, N, 8)],), {}),
    "function": lambda x, y: ((lambda: iter([(x[i : i + 8], y[i : i + 8]) for i in range(0, N, 8)]),), {}),
    "dicts": lambda x, y: (({"input": x, "label": y},), {"batch_size": 8}),
}


def compiled(module, loss, **options):
    # A loss that is an object is not shared between models.
    return Model(module, device="cpu").compile("sgd", copy.deepcopy(loss), lr=0.1, **options)


def trained(module, loss, y, kind="tensors", batch_size=8, **options):
    arguments, fit_options = KINDS[kind](X, y)
    fit_options |= {"batch_size": batch_size} if fit_options else {}
    shuffle = {"shuffle": False} if kind in ("tensors", "arrays", "dataset", "dicts") else {}
    model = compiled(module, loss, **options)
    history = model.fit(*arguments, epochs=2, verbose=0, **fit_options, **shuffle)
    return model, history["loss"]


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_that_of_torch(name):
    make, loss, given, plain = CASES[name]
    module = make()
    function = compiled(module, loss).loss.function
    with torch.no_grad():
        expected = pytest.approx(function(module(X), plain).mean().item(), rel=1e-6)
    assert compiled(make(), loss).evaluate(X, given, batch_size=N, verbose=0)["loss"] == expected
    assert compiled(make(), loss).test_on_batch(X, given)["loss"] == expected
    assert compiled(make(), loss).train_on_batch(X, given)["loss"] == expected


COMMON = ("mse flat", "bce flat integers", "one-hot", "a column of floats")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in CASES for kind in KINDS if name in COMMON or kind in ("tensors", "dataset")],
)
def test_training_is_that_of_the_targets_of_torch(name, kind):
    make, loss, given, plain = CASES[name]
    expected, losses = trained(make(), loss, plain)
    model, converted = trained(make(), loss, given, kind)
    assert converted == losses
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, expected.module.state_dict()[key])


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
@pytest.mark.parametrize("name", CASES)
def test_accumulation_is_that_of_the_targets_of_torch(name, kind):
    make, loss, given, plain = CASES[name]
    expected, losses = trained(make(), loss, plain, gradient_accumulation_steps=3)
    model, converted = trained(make(), loss, given, kind, gradient_accumulation_steps=3)
    assert converted == pytest.approx(losses, rel=1e-6)
    for key, value in model.module.state_dict().items():
        assert torch.allclose(value, expected.module.state_dict()[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mse flat", "logits flat booleans", "one-hot", "a column of floats"])
def test_sample_weights_and_validation_use_the_converted_targets(name):
    make, loss, given, plain = CASES[name]
    weights = torch.rand(N, generator=torch.Generator().manual_seed(2))
    histories = []
    for y in (plain, given):
        model = compiled(make(), loss)
        history = model.fit(X, y, sample_weight=weights, validation_data=(X, y), shuffle=False, verbose=0)
        histories.append(dict(history) | dict(model.evaluate(X, y, sample_weight=weights, verbose=0)))
    assert histories[0] == histories[1]


@pytest.mark.parametrize("class_weight", slow_after_first([{0: 1.0, 1: 3.0}, "balanced", [1.0, 3.0]]))
@pytest.mark.parametrize(
    ("outputs", "loss", "given", "plain"),
    [
        (1, "bce_with_logits", YES[:, 0] > 0, YES),
        (1, "bce_with_logits", YES[:, 0].long(), YES),
        (2, "cross_entropy", F.one_hot(YES[:, 0].long()), YES[:, 0].long()),
        (2, "cross_entropy", YES, YES[:, 0].long()),
    ],
)
def test_class_weights_use_the_converted_targets(outputs, loss, given, plain, class_weight):
    losses = [
        compiled(net(outputs), loss).fit(X, y, class_weight=class_weight, shuffle=False, verbose=0)["loss"]
        for y in (given, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_frames_and_lists_are_read_as_arrays():
    frame = pd.DataFrame({"kind": LABELS.numpy(), "size": NUMBERS[:, 0].numpy()})
    for y in (frame["kind"], frame[["kind"]], frame["kind"].astype(object), LABELS.tolist(), one_hot(LABELS).tolist()):
        expected = F.cross_entropy(net(3)(X), LABELS).item()
        assert compiled(net(3), "cross_entropy").evaluate(X, y, verbose=0)["loss"] == pytest.approx(expected)
    for y in (frame["size"], frame[["size"]], frame["size"].astype(int), NUMBERS[:, 0].tolist()):
        expected = F.mse_loss(net(1)(X), NUMBERS).item()
        assert compiled(net(1), "mse").evaluate(X, y, verbose=0)["loss"] == pytest.approx(expected)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.kind, self.size = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        return {"kind": self.kind(x), "size": self.size(x)}


class HeadsInTuple(Heads):
    def forward(self, x):
        return tuple(super().forward(x).values())


def test_targets_of_several_outputs_are_converted():
    losses = {"kind": "cross_entropy", "size": "mse"}
    metrics = {"kind": ["accuracy"], "size": ["mae", "r2"]}
    given = {"kind": one_hot(LABELS), "size": NUMBERS[:, 0].long()}
    plain = {"kind": one_hot(LABELS).float(), "size": NUMBERS}
    options = {"batch_size": 8, "verbose": 0}
    expected = dict(compiled(Heads(), losses, metrics=metrics).evaluate(X, plain, **options))
    assert dict(compiled(Heads(), losses, metrics=metrics).evaluate(X, given, **options)) == expected
    as_lists = compiled(HeadsInTuple(), list(losses.values()), metrics=list(metrics.values()))
    assert list(as_lists.evaluate(X, tuple(given.values()), **options)) == list(expected.values())


def test_a_function_of_all_outputs_sees_the_converted_targets():
    seen = []

    def look(y_pred, y):
        seen.append((y["kind"].dtype, y["size"].shape))
        return torch.zeros(())

    losses = {"kind": "cross_entropy", "size": "mse"}
    compiled(Heads(), losses, metrics=[look]).test_on_batch(X, {"kind": LABELS.int(), "size": NUMBERS[:, 0]})
    assert seen == [(torch.int64, (N, 1))]


# Metrics


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("mse flat", ["mae", "rmse", "r2", "pearson_corrcoef"]),
        ("mse flat outputs", ["mae", "rmse", "r2"]),
        ("logits flat booleans", ["accuracy", "f1", "auroc", "recall"]),
        ("bce flat integers", ["accuracy", "binary_accuracy", "precision"]),
        ("several labels", ["accuracy", "f1"]),
        ("one-hot", ["accuracy", "top_2_accuracy", "f1", "auroc"]),
        ("a column of floats", ["accuracy", "top_2_accuracy", "f1_macro"]),
        ("nll one-hot", ["accuracy", "f1"]),
        ("float pixels", ["accuracy"]),
    ],
)
@pytest.mark.filterwarnings("ignore:No positive samples")
def test_metrics_are_those_of_the_targets_of_torch(name, metrics):
    pytest.importorskip("torchmetrics")
    make, loss, given, plain = CASES[name]
    expected = compiled(make(), loss, metrics=metrics).evaluate(X, plain, batch_size=8, verbose=0)
    scores = compiled(make(), loss, metrics=metrics).evaluate(X, given, batch_size=8, verbose=0)
    assert dict(scores) == dict(expected)


def test_metrics_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score

    numbers, yes = NUMBERS[:, 0].numpy(), (YES[:, 0] > 0).numpy()
    model = compiled(net(1), "mse", metrics=["mae", EpochMetric(mean_absolute_error, name="of_sklearn")])
    scores = model.evaluate(X, numbers, batch_size=8, verbose=0)
    expected = pytest.approx(mean_absolute_error(numbers, model.predict(X, verbose=0)), rel=1e-5)
    assert [scores["mae"], scores["of_sklearn"]] == [expected, expected]
    model = compiled(net(1), "bce_with_logits", metrics=[EpochMetric(f1_score), EpochMetric(roc_auc_score), "accuracy"])
    scores = model.evaluate(X, yes, batch_size=8, verbose=0)
    predicted = model.predict_classes(X, verbose=0)
    assert scores["f1_score"] == pytest.approx(f1_score(yes, predicted))
    assert scores["roc_auc_score"] == pytest.approx(roc_auc_score(yes, model.predict(X, verbose=0)))
    assert scores["accuracy"] == pytest.approx((predicted[:, 0] == yes).mean())


# Several processes


def train_converted(names):
    return [
        trained(CASES[name][0](), CASES[name][1], CASES[name][2], gradient_accumulation_steps=2)[1] for name in names
    ]


@pytest.mark.distributed
@pytest.mark.slow
def test_targets_are_converted_alike_in_two_processes():
    names = ["mse flat", "logits flat booleans", "weighted one-hot", "weighted floats", "nll one-hot", "float pixels"]
    expected = [
        trained(CASES[name][0](), CASES[name][1], CASES[name][3], batch_size=16, gradient_accumulation_steps=2)[1]
        for name in names
    ]
    for losses in run_ranks(train_converted, names):
        assert losses == [pytest.approx(values, rel=1e-5) for values in expected]


# What stays as it is


def test_a_custom_loss_gets_the_targets_of_the_user():
    seen = []

    def own(y_pred, y):
        seen.append((y.dtype, y.shape))
        return (y_pred[:, 0] - y).square()

    class Own(nn.BCEWithLogitsLoss):
        def forward(self, y_pred, y):
            seen.append((y.dtype, y.shape))
            return super().forward(y_pred, y)

    compiled(net(1), own).test_on_batch(X, NUMBERS[:, 0].long())
    compiled(net(3), Own()).test_on_batch(X, one_hot(LABELS).float())
    assert seen == [(torch.int64, (N,)), (torch.float32, (N, 3))]


def test_a_custom_step_gets_the_targets_of_the_user():
    seen = []

    class Step(Model):
        def train_step(self, batch):
            x, y = batch
            seen.append((y.dtype, y.shape))
            return {"loss": self.loss(self(x), y)}

    scores = Step(net(1)).compile("sgd", "mse").test_on_batch(X, NUMBERS[:, 0].long())
    assert seen == [(torch.int64, (N,))]
    assert scores["loss"] == pytest.approx(F.mse_loss(net(1)(X), NUMBERS).item())


@pytest.mark.parametrize(
    ("outputs", "loss", "y", "message"),
    [
        (3, "mse", LABELS, "one integer per sample.*give the last layer one output"),
        (3, "bce_with_logits", YES[:, 0], "3 outputs per sample"),
        (3, "mse", YES, r"\[22, 3\] but the targets have \[22, 1\]"),
        (1, "mse", one_hot(LABELS), r"float|\[22, 1\]"),
        (3, "cross_entropy", (one_hot(LABELS) + one_hot(LABELS.flip(0))).clamp(max=1), "not one-hot.*bce_with_logits"),
        (3, "nll", torch.rand(N, 3), "not one-hot"),
        (2, "cross_entropy", one_hot(LABELS), "3 columns, but the module has 2 outputs"),
        (2, "cross_entropy", one_hot(LABELS).float(), "one column per class, give the last layer 3"),
        (3, "cross_entropy", LABELS + 0.5, "not integers"),
        (1, "bce_with_logits", LABELS, "targets go from 0 to 2"),
        (1, "soft_margin", YES[:, 0].long(), r"expects -1 and 1. Pass 2 \* y - 1"),
        (1, "hinge_embedding", YES[:, 0] > 0, r"booleans, .*Pass 2 \* y\.float\(\) - 1"),
    ],
)
def test_targets_without_one_meaning_are_refused(outputs, loss, y, message):
    layers = [nn.LogSoftmax(1)] if loss == "nll" else []
    for run in (
        lambda model: model.fit(X, y, verbose=0),
        lambda model: model.evaluate(ByHand(X, y), verbose=0),
        lambda model: model.train_on_batch(X, y),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            run(compiled(net(outputs, *layers), loss))


@pytest.mark.parametrize(
    ("outputs", "loss", "good", "bad", "message"),
    [
        (3, "cross_entropy", LABELS.float(), LABELS + 0.5, "not integers"),
        (3, "cross_entropy", one_hot(LABELS), one_hot(LABELS) + 1, "not one-hot"),
        (1, "bce_with_logits", YES[:, 0].long(), 2 * YES[:, 0].long(), "targets go from 0 to 2"),
        (3, "cross_entropy", LABELS[:, None], LABELS[:, None] + 1, "from 0 to 3|from 1 to 3"),
    ],
)
def test_every_batch_is_checked(outputs, loss, good, bad, message):
    with pytest.raises(ValueError, match=message):
        compiled(net(outputs), loss).fit([(X, good), (X, bad)], verbose=0)
    model, y = compiled(net(outputs), loss), torch.cat([good, bad])
    with pytest.raises(ValueError, match=message):
        model.fit(torch.cat([X, X]), y, batch_size=N, shuffle=False, verbose=0)
    assert model.state.step == 0  # all targets were known


def test_targets_of_another_pass_are_checked_by_themselves():
    good, bad = LABELS.float(), LABELS + 0.5
    unknown = [(X, good), (X, bad)]
    model = compiled(net(3), "cross_entropy")
    with pytest.raises(ValueError, match="not integers"):
        model.fit(X, good, validation_data=unknown, verbose=0)
    evaluate = LambdaCallback(on_epoch_begin=lambda epoch, logs: model.evaluate(X, good, verbose=0))
    with pytest.raises(ValueError, match="not integers"):
        model.fit(unknown, callbacks=[evaluate], verbose=0)


def test_probabilities_stay_probabilities():
    soft = torch.rand(N, 3).softmax(1)
    expected = F.cross_entropy(net(3)(X), soft).item()
    assert compiled(net(3), "cross_entropy").evaluate(X, soft, verbose=0)["loss"] == pytest.approx(expected)


def test_labels_of_sequences_stay_labels():
    """Rows of labels [N, T] with a single 1 look one-hot, but the outputs are [N, classes, T]."""
    labels = F.one_hot(LABELS, 3)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            return self.layer(x).unflatten(1, (2, 3))

    expected = F.cross_entropy(Tokens()(X), labels).item()
    assert compiled(Tokens(), "cross_entropy").evaluate(X, labels, verbose=0)["loss"] == pytest.approx(expected)


def test_autocast_keeps_targets_in_float32():
    numbers = NUMBERS[:, 0].long() + 1001  # 1001 is no bfloat16
    loss = resolve_loss("mse")
    with torch.autocast("cpu", torch.bfloat16):
        y_pred = net(1)(X)
        assert y_pred.dtype == torch.bfloat16
        assert loss(y_pred, numbers) == F.mse_loss(y_pred, numbers.float()[:, None])
    assert loss(y_pred, numbers) == F.mse_loss(y_pred, numbers.bfloat16()[:, None])


# Outputs in a structure


class Named(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.layer, self.pack = net(3)[0], pack

    def forward(self, x):
        return self.pack(self.layer(x))


@pytest.mark.parametrize(
    "pack",
    [
        lambda out: {"logits": out},
        lambda out: {"scores": out},
        lambda out: (out,),
        lambda out: {"logits": out, "h": out},
    ],
    ids=["logits", "another name", "tuple", "logits and states"],
)
def test_the_only_output_of_a_structure_is_compared(pack):
    model = compiled(Named(pack), "cross_entropy", metrics=["accuracy"], gradient_accumulation_steps=2)
    expected = compiled(net(3), "cross_entropy", metrics=["accuracy"])
    assert dict(model.evaluate(X, LABELS, verbose=0)) == dict(expected.evaluate(X, LABELS, verbose=0))
    assert np.array_equal(model.predict_proba(X, verbose=0), expected.predict_proba(X, verbose=0))
    assert len(model.fit(X, LABELS[:, None], verbose=0)["loss"]) == 1


def test_targets_by_the_name_of_the_only_output_are_taken():
    model = compiled(Named(lambda out: {"scores": out}), "cross_entropy")
    expected = F.cross_entropy(net(3)(X), LABELS).item()
    assert model.evaluate(X, {"scores": LABELS.int()}, verbose=0)["loss"] == pytest.approx(expected)


def test_several_outputs_of_one_loss_are_refused():
    with pytest.raises(TypeError, match=r"expects one tensor.*one loss for each output"):
        compiled(Named(lambda out: {"first": out, "second": out}), "cross_entropy").fit(X, LABELS, verbose=0)


TAGS = torch.tensor([[0, 1], [0, -100], [1, 0], [1, 1], [0, 1]])


class Tokens(nn.Module):
    """Outputs ``[N, 2, 2]``: two classes for two tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).unflatten(1, (2, 2))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("class_weight", [None, {0: 1.0, 1: 5.0}])
def test_labels_of_one_sample_that_look_one_hot_are_labels(dtype, class_weight):
    x, weights = X[:5], torch.ones(2) if class_weight is None else torch.tensor([1.0, 5.0])
    net, reference = Tokens(), Tokens()
    compiled(net, "cross_entropy", gradient_accumulation_steps=5).fit(
        x, TAGS.to(dtype), batch_size=1, shuffle=False, class_weight=class_weight, verbose=0
    )
    values = F.cross_entropy(reference(x), TAGS, reduction="none") * weights[TAGS.clamp(min=0)]
    (values.sum() / 9).backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(net.layer.weight, reference.layer.weight)


def test_labels_that_are_counted_as_one_hot_rows_are_reported():
    x, y = X[:4], torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])
    model = compiled(Tokens(), nn.CrossEntropyLoss(ignore_index=0), gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="like one-hot rows, and were counted as such"):
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0)


def test_all_known_targets_show_that_labels_are_not_one_hot_rows():
    y = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 1]])
    net, reference = Tokens(), Tokens()
    compiled(net, nn.CrossEntropyLoss(ignore_index=0), gradient_accumulation_steps=2).fit(
        X[:4], y, batch_size=1, shuffle=False, verbose=0
    )
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for rows in (slice(0, 2), slice(2, 4)):
        optimizer.zero_grad()
        F.cross_entropy(reference(X[rows]), y[rows], ignore_index=0).backward()
        optimizer.step()
    torch.testing.assert_close(net.layer.weight, reference.layer.weight)
