"""One rule for means: training, accumulation, ranks and reported losses divide by what a loss counts."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from easytorch import Model
from tests.loops import furthest
from tests.many import run_ranks

CLASSES, STEPS = 4, 3
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.0])


class Net(nn.Module):
    """Logits for each time step, ``[N, CLASSES, STEPS]``, or of one row, ``[N, CLASSES]``."""

    def __init__(self, by_step):
        super().__init__()
        self.by_step, self.layer = by_step, nn.Linear(5, CLASSES * (STEPS if by_step else 1))

    def forward(self, x):
        return self.layer(x).unflatten(1, (CLASSES, STEPS)) if self.by_step else self.layer(x)


class TwoHeads(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return {"first": self.first(x), "second": self.second(x)}


def squared(y_pred, y):
    return (y_pred - y).square()


def per_sample(y_pred, y):
    return squared(y_pred, y).flatten(1).mean(1)


def sum_and_count(y_pred, y):
    counts = y > 0
    return (squared(y_pred, y) * counts).sum(), counts.sum()


def make_case(pick):
    """Return one random loss with its data; ``pick`` chooses from a list."""
    kind = pick(["cross_entropy", "nll", "mse", "huber", "bce_with_logits", "kl_div", "per_sample", "pair", "mape"])
    by_step = pick([False, True])
    return {
        "kind": kind,
        "by_step": by_step,
        "ignore_index": pick([-100, -1, 2, 255]),
        "weight": pick([False, True]),
        "reduction": pick(["mean", "mean", "sum", "none"]),
        "sample_weight": pick([None, None, "ones", "samples", "values"]) if kind != "pair" else None,
        "size": pick([6, 11, 17]),
        "batch_size": pick([1, 2, 4, 5, 17]),
        "ignored": pick([0.0, 0.3, 0.9]),
        "seed": pick(list(range(1000))),
    }


def make_data(case, dtype):
    """Return inputs, targets and sample weights."""
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (case["size"], STEPS) if case["by_step"] else (case["size"],)
    x = torch.randn(case["size"], 5, generator=generator, dtype=dtype)
    if case["kind"] in ("cross_entropy", "nll"):
        y = torch.randint(CLASSES, shape, generator=generator)
        y = torch.where(torch.rand(shape, generator=generator) < case["ignored"], case["ignore_index"], y)
        values = shape
    else:
        values = (case["size"], CLASSES, STEPS) if case["by_step"] else (case["size"], CLASSES)
        y = torch.rand(values, generator=generator, dtype=dtype)
        if case["kind"] == "pair":
            y = y - case["ignored"]
    if case["sample_weight"] == "ones":
        return x, y, torch.ones(case["size"], dtype=dtype)
    if case["sample_weight"] == "samples" or (case["sample_weight"] == "values" and case["kind"] == "per_sample"):
        return x, y, torch.rand(case["size"], generator=generator, dtype=dtype)
    if case["sample_weight"] == "values":
        return x, y, torch.rand(values, generator=generator, dtype=dtype)
    return x, y, None


def make_loss(case, dtype):
    options = {"reduction": case["reduction"]}
    if case["kind"] in ("cross_entropy", "nll"):
        weight = CLASS_WEIGHTS.to(dtype) if case["weight"] else None
        cls = nn.CrossEntropyLoss if case["kind"] == "cross_entropy" else nn.NLLLoss
        return cls(weight=weight, ignore_index=case["ignore_index"], **options)
    if case["kind"] == "kl_div":
        return nn.KLDivLoss(reduction="sum" if case["reduction"] == "sum" else "batchmean")
    classes = {"mse": nn.MSELoss, "huber": nn.HuberLoss, "bce_with_logits": nn.BCEWithLogitsLoss}
    functions = {"per_sample": per_sample, "pair": sum_and_count, "mape": "mape"}
    return functions.get(case["kind"]) or classes[case["kind"]](**options)


def plain_loss(case, y_pred, y, sample_weight):
    """Return the loss over all data: the weighted sum of all values, divided by what counts."""
    kind, dtype = case["kind"], y_pred.dtype
    if kind in ("cross_entropy", "nll"):
        weight = CLASS_WEIGHTS.to(dtype) if case["weight"] else torch.ones(CLASSES, dtype=dtype)
        log_p = y_pred.log_softmax(1) if kind == "cross_entropy" else y_pred
        counts = y != case["ignore_index"]
        classes = torch.where(counts, y, 0)
        factors = weight[classes] * counts
        values, count = -log_p.gather(1, classes.unsqueeze(1)).squeeze(1) * factors, factors.sum()
    elif kind == "kl_div":
        values, count = F.kl_div(y_pred, y, reduction="none"), len(y)
    elif kind == "pair":
        total, count = sum_and_count(y_pred, y)
        return total / max(count, 1)
    else:
        functions = {"mse": squared, "huber": F.huber_loss, "bce_with_logits": F.binary_cross_entropy_with_logits}
        if kind in ("per_sample", "mape"):
            values = squared(y_pred, y) if kind == "per_sample" else 100 * (y - y_pred).abs() / y.abs().clamp(min=1e-7)
        elif kind == "mse":
            values = squared(y_pred, y)
        else:
            values = functions[kind](y_pred, y, reduction="none")
        count = values.numel()
    if sample_weight is not None:
        missing = values.ndim - sample_weight.ndim
        values = values * sample_weight.reshape(*sample_weight.shape, *[1] * missing)
    if case["reduction"] == "sum" and kind not in ("per_sample", "mape"):
        return values.sum()
    return values.sum() / (count if count else 1)


def largest_weight(net):
    return max(1.0, *(float(p.detach().abs().max()) for p in net.parameters()))


def make_net(case, dtype):
    torch.manual_seed(case["seed"])
    return Net(case["by_step"]).to(dtype)


def counts_nothing(case, y):
    if case["kind"] == "pair":
        return not bool((y > 0).any())
    counted = y[y != case["ignore_index"]]
    has_weight = CLASS_WEIGHTS[counted] > 0 if case["weight"] and case["kind"] in ("cross_entropy", "nll") else True
    return case["kind"] in ("cross_entropy", "nll") and not bool((torch.ones_like(counted) * has_weight).any())


def check(case, dtype, processes=1):
    """Compare evaluation, the reported loss and the weights after one update with the plain computation."""
    x, y, sample_weight = make_data(case, dtype)
    if counts_nothing(case, y):  # see test_mean_over_nothing_is_nan_with_a_warning
        return 0.0
    net, plain = make_net(case, dtype), make_net(case, dtype)
    expected = plain_loss(case, plain(x), y, sample_weight)
    expected.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    steps = -(-case["size"] // (case["batch_size"] * processes))
    model = Model(net, device="cpu").compile("sgd", make_loss(case, dtype), lr=0.1, gradient_accumulation_steps=steps)
    options = {"sample_weight": sample_weight, "batch_size": case["batch_size"], "verbose": 0}
    scores = model.evaluate(x, y, **options)
    history = model.fit(x, y, shuffle=False, **options)
    assert model.state.step == 1
    difference = furthest(net, plain)
    return max(
        abs(scores["loss"] - expected.item()) / max(1, abs(expected.item())),
        abs(history["loss"][-1] - expected.item()) / max(1, abs(expected.item())),
        difference / largest_weight(plain),
    )


def check_two_heads(first, second, dtype, processes=1):
    """Compare a dict of two losses, each with its own divisor, with the plain computation."""
    second = {**second, "size": first["size"], "batch_size": first["batch_size"]}
    (x, y1, _), (_, y2, _) = make_data(first, dtype), make_data(second, dtype)
    if counts_nothing(first, y1) or counts_nothing(second, y2):
        return 0.0
    net = TwoHeads(make_net(first, dtype), make_net(second, dtype))
    plain = TwoHeads(make_net(first, dtype), make_net(second, dtype))
    outputs = plain(x)
    losses = plain_loss(first, outputs["first"], y1, None), plain_loss(second, outputs["second"], y2, None)
    expected = 0.5 * losses[0] + 2.0 * losses[1]
    expected.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    steps = -(-first["size"] // (first["batch_size"] * processes))
    model = Model(net, device="cpu").compile(
        "sgd",
        {"first": make_loss(first, dtype), "second": make_loss(second, dtype)},
        lr=0.1,
        loss_weights={"first": 0.5, "second": 2.0},
        gradient_accumulation_steps=steps,
    )
    y = {"first": y1, "second": y2}
    scores = model.evaluate(x, y, batch_size=first["batch_size"], verbose=0)
    history = model.fit(x, y, batch_size=first["batch_size"], shuffle=False, verbose=0)
    difference = furthest(net, plain)
    pairs = [(scores["first_loss"], losses[0]), (scores["second_loss"], losses[1])]
    pairs += [(scores["loss"], expected), (history["loss"][-1], expected)]
    errors = [abs(value - wanted.item()) / max(1, abs(wanted.item())) for value, wanted in pairs]
    return max(*errors, difference / largest_weight(plain))


TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


@pytest.mark.filterwarnings("ignore:The module's outputs go up to")
@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_every_loss_equals_a_plain_computation_over_all_data(data):
    case = make_case(lambda options: data.draw(st.sampled_from(options)))
    for dtype, tolerance in TOLERANCES:
        assert check(case, dtype) < tolerance


@pytest.mark.filterwarnings("ignore:The module's outputs go up to")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_each_of_two_losses_is_divided_by_its_own_count(data):
    first, second = (make_case(lambda options: data.draw(st.sampled_from(options))) for _ in range(2))
    if "pair" in (first["kind"], second["kind"]):
        return  # see test_pair_of_several_outputs_needs_counts_before_the_step
    for dtype, tolerance in TOLERANCES:
        assert check_two_heads(first, second, dtype) < tolerance


@pytest.mark.parametrize("weight", [None, torch.zeros(3)])
def test_mean_over_nothing_is_nan_with_a_warning(weight):
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", nn.CrossEntropyLoss(weight=weight))
    before = model.module.weight.detach().clone()
    y = torch.full((6,), -100) if weight is None else torch.zeros(6, dtype=torch.int64)
    with pytest.warns(UserWarning, match="nothing counts: every label of this pass is ignored"):
        history = model.fit(torch.randn(6, 4), y, batch_size=2, verbose=0)
    assert history["loss"][-1] != history["loss"][-1]
    assert torch.equal(before, model.module.weight)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return {"a": self.a(x), "b": self.b(x)}


ROWS, LABELS = torch.arange(24.0).reshape(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
IGNORED, NO_WEIGHT = torch.full((6,), -100), torch.zeros(6)
ZERO_PASSES = {
    "sample weights": ("cross_entropy", LABELS, {"sample_weight": NO_WEIGHT}, "loss is 0.*every sample weight"),
    "class weights": (
        "cross_entropy",
        LABELS,
        {"class_weight": dict.fromkeys(range(3), 0)},
        "loss is 0.*sample weight",
    ),
    "a sum of weights": (nn.CrossEntropyLoss(reduction="sum"), LABELS, {"sample_weight": NO_WEIGHT}, "loss is 0"),
    "a sum of labels": (nn.CrossEntropyLoss(reduction="sum"), IGNORED, {}, "loss is 0.*every label is ignored"),
    "an output": (
        {"a": "cross_entropy", "b": "cross_entropy"},
        {"a": LABELS, "b": LABELS},
        {"sample_weight": {"a": torch.ones(6), "b": NO_WEIGHT}},
        "b_loss is 0",
    ),
}


@pytest.mark.parametrize("case", ZERO_PASSES)
def test_pass_whose_loss_counts_nothing_gives_one_warning(case):
    loss, y, options, message = ZERO_PASSES[case]
    model = Model(TwoOutputs() if isinstance(loss, dict) else nn.Linear(4, 3), device="cpu").compile("sgd", loss)
    with pytest.warns(UserWarning, match=message) as warnings:
        model.fit(ROWS, y, batch_size=4, epochs=2, verbose=0, **options)
    assert len(warnings) == 1


def test_metric_that_counts_nothing_gives_one_warning():
    def masked(y_pred, y):
        return torch.tensor(0.0), torch.tensor(0)

    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", [masked])
    with pytest.warns(UserWarning, match="The metric 'masked' is NaN, because nothing counts") as warnings:
        model.fit(ROWS, LABELS, batch_size=4, epochs=2, verbose=0)
    assert len(warnings) == 1


def test_batch_that_counts_nothing_gives_no_warning():
    weights = torch.tensor([1.0, 1, 1, 1, 0, 0])
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", weighted_metrics=["accuracy"])
    history = model.fit(ROWS, LABELS, sample_weight=weights, batch_size=4, shuffle=False, verbose=0)
    assert history["accuracy"][0] in (0, 0.25, 0.5, 0.75, 1)


def test_pair_of_several_outputs_needs_counts_before_the_step():
    case = make_case(random.Random(1).choice) | {"kind": "pair", "batch_size": 2, "size": 6, "ignored": 0.0}
    with pytest.raises(ValueError, match=r"returns \(sum, count\).*Use a loss by name"):
        check_two_heads(case, case, torch.float64)


def check_cases(count):
    """Return the largest error of random cases, in float64."""
    generator = random.Random(0)
    worst = 0.0
    for _ in range(count):
        first, second = make_case(generator.choice), make_case(generator.choice)
        worst = max(worst, check(first, torch.float64, processes=2))
        if "pair" not in (first["kind"], second["kind"]):
            worst = max(worst, check_two_heads(first, second, torch.float64, processes=2))
    return worst


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:The module's outputs go up to")
@pytest.mark.slow
def test_two_processes_equal_a_plain_computation_over_all_data():
    assert all(worst < 1e-10 for worst in run_ranks(check_cases, 30, timeout=200))
