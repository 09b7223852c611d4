"""find_lr: a range test that leaves no trace, and the rate that follows from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.tuning import LearningRates
from easytorch.tuning.learning_rates import Curve, compare_rates
from easytorch.tuning.range_test import geometric_rates, has_diverged
from tests.distributed.common_ranks import X as RANK_X
from tests.distributed.common_ranks import Y as RANK_Y
from tests.distributed.common_ranks import attempt
from tests.distributed.common_ranks import new_model as rank_model
from tests.loops import blobs
from tests.many import run_ranks

X, Y = blobs(60)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.Linear(32, 3))


def new_model(optimizer="adam", loss="cross_entropy", **options):
    return Model(network(), device="cpu").compile(optimizer, loss, **options)


def state_of(model):
    return copy.deepcopy(
        [model.module.state_dict(), model.optimizer.state_dict(), vars(model.state), torch.get_rng_state()]
    )


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_equal(list(a.values()), list(b.values()))
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_equal(left, right)
    else:
        assert a == b


OPTIONS = {
    "adam": {},
    "sgd": {"optimizer": "sgd", "momentum": 0.9},
    "sam": {"optimizer": "sam", "base": "sgd"},
    "accumulation": {"gradient_accumulation_steps": 2, "clip_grad_norm": 1.0},
    "warmup": {"scheduler": "warmup_cosine"},
    "one cycle": {"scheduler": "one_cycle"},
    "scheduler object": {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3)},
    "several": {"optimizer": {"0": ("sgd", {"lr": 0.1}), "*": ("adam", {"lr": 0.001})}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_range_test_leaves_no_trace(options):
    model = new_model(**options)
    before = state_of(model)
    found = model.find_lr(X, Y, batch_size=16, updates=40, runs=2)
    assert_equal(before, state_of(model))
    assert found.suggestion > 1e-6
    assert not len(model.history)
    model.fit(X, Y, epochs=1, verbose=0)
    other = new_model(**options)
    torch.set_rng_state(before[-1])
    other.fit(X, Y, epochs=1, verbose=0)
    assert_equal(model.module.state_dict(), other.module.state_dict())


def test_training_at_the_suggestion_is_better_than_before():
    scores = []
    for finds in (False, True):
        model = new_model("sgd", lr=1e-4)
        if finds:
            model.optimizer.lr = model.find_lr(X, Y).suggestion
        torch.manual_seed(1)
        scores.append(model.fit(X, Y, epochs=5, verbose=0)["loss"][-1])
    assert scores[1] < 0.7 * scores[0]


class Log:
    """Rates that the end of the range test does not restore."""

    in_snapshots = False
    rates: list[list[float]] = []  # noqa: RUF012  # a test clears it


class Recording(Model):
    """Records the learning rates in each step."""

    def train_step(self, batch):
        Log.rates.append([float(group["lr"]) for group in self.optimizer.param_groups])
        return super().train_step(batch)


@pytest.mark.parametrize("scheduler", [None, "warmup_cosine", "one_cycle"])
def test_groups_keep_the_ratio_of_their_rates(scheduler):
    Log.rates.clear()
    net = network()
    groups = [
        {"params": net[0].parameters(), "lr": 0.02},
        {"params": [*net[3].parameters(), *net[4].parameters()], "lr": 0.1},
    ]
    model = Recording(net, device="cpu").compile(
        torch.optim.SGD(groups, momentum=0.9), "cross_entropy", scheduler=scheduler
    )
    found = model.find_lr(X, Y, updates=30, max_lr=1.0, runs=1)
    rates = np.array(Log.rates)
    assert rates[:, 1] / rates[:, 0] == pytest.approx(5.0)
    assert rates[: len(found.rates), 0] == pytest.approx(found.rates)
    assert found.group_rates == pytest.approx({"lr": found.suggestion, "lr_1": 5 * found.suggestion})
    assert "call .apply(model)" in str(found)
    found.apply(model)
    assert [group["lr"] for group in model.optimizer.param_groups] == pytest.approx(
        [found.suggestion, 5 * found.suggestion]
    )


def test_several_optimizers_keep_the_ratio_of_their_rates():
    model = new_model({"0": ("sgd", {"lr": 0.1}), "*": ("adam", {"lr": 0.001})})
    found = model.find_lr(X, Y, updates=40, runs=2)
    assert found.group_rates == pytest.approx({"lr_0": found.suggestion, "lr_*": found.suggestion / 100})


def test_a_scheduler_object_needs_another_compile():
    model = new_model(
        "sgd", lr=0.1, scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    )
    found = model.find_lr(X, Y, updates=40, runs=2)
    assert "compile(..., lr=" in found.notes[0]
    with pytest.raises(ValueError, match=r"Compile again: compile\(\.\.\., lr="):
        found.apply(model)


def test_a_test_stops_when_training_diverges():
    Log.rates.clear()
    model = Recording(network(), device="cpu").compile("sgd", "mse")
    targets = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = model.find_lr(X, targets, min_lr=1e-3, max_lr=1e6, runs=0)
    assert found.diverged
    assert len(Log.rates) < 100
    assert np.isfinite(found.losses).all()


def test_divergence_is_a_loss_far_above_the_fall():
    falling = [2.3 - 0.05 * i for i in range(30)]
    assert not has_diverged(falling)
    assert not has_diverged([2.3, 2.4, 2.2, 2.5, 2.1])
    assert has_diverged([*falling, *[9.0] * 6])
    assert has_diverged([2.3, float("nan")])
    assert not has_diverged([-1.0, -1.1, -1.2, -1.3, -2.0])


def test_rates_grow_by_the_same_factor():
    rates = geometric_rates(1e-6, 10.0, 8)
    assert rates[0] == 1e-6
    assert rates[-1] == pytest.approx(10.0)
    assert np.diff(np.log10(rates)) == pytest.approx(1.0)


def test_data_of_every_kind_is_accepted():
    model = new_model()
    labels = np.array(["a", "b", "c"])[Y]
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 56, 8)]
    for data in (
        (X.numpy(), labels), (DataLoader(TensorDataset(X, Y), 8, shuffle=True),), (TensorDataset(X, Y),), (batches,),
        (lambda: iter(batches),),
    ):  # fmt: skip
        assert model.find_lr(*data, updates=25, runs=0).suggestion > 0
    assert model.class_names is None


def test_a_custom_step_and_a_loss_of_the_module_work():
    class Step(Model):
        def train_step(self, batch):
            x, y = batch
            return {"loss": nn.functional.cross_entropy(self(x), y), "extra": 1.0}

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, y):
            return {"loss": nn.functional.cross_entropy(self.net(x), y)}

    assert Step(network(), device="cpu").compile("adam", None).find_lr(X, Y, updates=30, runs=0).suggestion > 0
    assert (
        Model(WithLoss(), device="cpu").compile("adam", None).find_lr({"x": X, "y": Y}, updates=30, runs=0).suggestion
        > 0
    )


def test_what_has_no_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"find_lr\(\) cannot test LBFGS.*Keep its lr"):
        new_model("lbfgs").find_lr(X, Y)
    with pytest.raises(RuntimeError, match=r"find_lr\(\) needs an optimizer"):
        Model(network(), device="cpu").compile(None, "cross_entropy").find_lr(X, Y)
    with pytest.raises(RuntimeError, match=r"find_lr\(\) needs a compiled model"):
        Model(network(), device="cpu").find_lr(X, Y)


def test_networks_that_compete_are_refused():
    class Gan(Model):
        def generator_step(self, batch):
            return {"loss": self.module["generator"](batch[0]).mean()}

        def critic_step(self, batch):
            return {"loss": -self.module["critic"](batch[0]).mean()}

    net = nn.ModuleDict({"generator": nn.Linear(8, 8), "critic": nn.Linear(8, 1)})
    model = Gan(net, device="cpu").compile({"generator": "adam", "critic": "adam"})
    with pytest.raises(ValueError, match="needs one loss, but generator_step, critic_step have a loss each"):
        model.find_lr(X)


def test_a_custom_update_must_record_its_loss():
    class Silent(Model):
        def update(self, window):
            for x, y in window:
                self.strategy.backward(self.loss(self(x), y))
                self.strategy.step(self.optimizer)
                self.strategy.zero_grad(self.optimizer)

    model = Silent(network(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=r"needs the loss of each update.*metrics\.record"):
        model.find_lr(X, Y)


def test_wrong_arguments_are_explained():
    model = new_model()
    with pytest.raises(ValueError, match=r"max_lr the larger one, received 1\.0 and 0\.1"):
        model.find_lr(X, Y, min_lr=1.0, max_lr=0.1)
    with pytest.raises(ValueError, match="updates must be at least 20"):
        model.find_lr(X, Y, updates=3)
    with pytest.raises(ValueError, match=r"find_lr\(\) would use up the first batches"):
        model.find_lr((X[i : i + 8], Y[i : i + 8]) for i in range(0, 56, 8))
    with pytest.raises(ValueError, match=r"diverged after .* updates.*Pass a smaller min_lr"):
        new_model("sgd", "mse").find_lr(X, torch.randn(60, 3), min_lr=1e5, max_lr=1e9)
    with pytest.raises(TypeError, match="learning_rate"):
        model.find_lr(X, Y, learning_rate=3)


def curve():
    rates = geometric_rates(1e-6, 10.0, 60)
    return Curve(rates, [2.3 - 2.0 / (1 + (1e-3 / rate)) + (5 * rate) ** 2 for rate in rates], 2.3, diverged=True)


def test_the_rate_with_the_lowest_loss_is_suggested():
    scores = compare_rates(lambda rate: abs(np.log10(rate / 0.003)), 0.01, 5)
    found = LearningRates(curve(), scores, has_schedule=True)
    assert len(scores) == 3
    assert found.suggestion == pytest.approx(0.004, rel=0.01)
    assert f"{found.suggestion:g}. It has the lowest loss after 100 updates" in found.reason


def test_without_a_schedule_the_suggestion_is_smaller():
    scores = {0.004: 1.2, 0.01: 0.5, 0.025: 0.7}
    found = LearningRates(curve(), scores)
    assert found.suggestion == 0.0063
    assert "a longer training without a schedule needs a smaller rate" in found.reason
    assert "0.01" in next(line for line in str(found).splitlines() if line.endswith("lowest loss"))
    assert LearningRates(curve(), scores, has_schedule=True).suggestion == 0.01


def test_the_range_test_runs_once():
    model, seen = new_model(), []
    model.module.register_forward_hook(lambda *_: seen.append(1))
    model.find_lr(X, Y, updates=30, runs=0, verbose=0)
    assert len(seen) <= 31


def tried_rates(score, middle=1.0, runs=6, **options):
    tried = []

    def record(rate):
        tried.append(round(np.log(rate / middle) / np.log(2.5)))
        return score(rate)

    scores = compare_rates(record, middle, runs, **options)
    return tried, scores


def test_the_comparison_follows_the_loss_downhill():
    assert tried_rates(lambda rate: rate)[0] == [0, -1, -2, -3, -4, -5]
    assert tried_rates(lambda rate: -rate)[0] == [0, -1, 1, 2, 3, 4]
    assert tried_rates(lambda rate: abs(np.log(rate)))[0] == [0, -1, 1]
    assert tried_rates(lambda rate: rate, runs=2)[0] == [0, -1]
    unstable = compare_rates(lambda rate: float("inf") if rate > 1e-2 else -rate, 1.0, 7)
    assert min(unstable, key=unstable.get) < 1e-2
    with pytest.raises(ValueError, match="diverged with all rates down to"):
        compare_rates(lambda rate: float("inf"), 1.0, 5)


def test_the_comparison_ends_where_the_loss_is_flat():
    losses = {0: 1.0, -1: 0.97, -2: 0.5}
    tried, scores = tried_rates(lambda rate: losses[round(np.log(rate) / np.log(2.5))], start=3.0, lowest=0.5)
    assert tried == [0, -1]
    assert min(scores.values()) == 0.97


def test_a_rate_that_learns_nothing_is_too_large():
    # All rates down to 0.16 leave the loss at that of chance, some a little lower than others.
    losses = {0: 2.30, -1: 2.31, -2: 2.29, -3: 1.0, -4: 1.5}
    tried, scores = tried_rates(lambda rate: losses[round(np.log(rate) / np.log(2.5))], start=2.3, lowest=0.8)
    assert tried == [0, -1, -2, -3, -4]
    assert min(scores.values()) == 1.0


def test_a_quarter_of_the_rate_is_suggested_without_runs():
    found = LearningRates(curve(), {})
    assert found.suggestion == pytest.approx(found._curve.best_rate / 4, rel=0.05)
    assert "a quarter of the rate with the lowest loss" in str(found)
    assert new_model().find_lr(X, Y, runs=0, updates=30).scores == {}


def test_short_trainings_have_the_same_weights_and_batches():
    class Data:
        in_snapshots = False
        sums: list[float] = []  # noqa: RUF012  # not restored

    class Sums(Model):
        def train_step(self, batch):
            Data.sums.append((float(batch[0].sum()), float(self.module[0].weight.detach().sum())))
            return super().train_step(batch)

    Sums(network(), device="cpu").compile("adam", "cross_entropy").find_lr(X, Y, updates=30, runs=3, max_lr=0.01)
    starts = Data.sums[::31]
    assert len(set(starts)) == 1


def test_a_result_is_a_table_a_frame_a_dict_and_a_picture(tmp_path):
    found = LearningRates(curve(), {0.001: 1.0, 0.01: 0.5, 0.1: float("inf")}, has_schedule=True)
    assert found.suggestion == 0.01
    text = str(found)
    assert "model.optimizer.lr = 0.01, or compile(..., lr=0.01)" in text
    assert "lowest loss" in text
    assert "diverged" in text
    assert len(text.splitlines()) < 12
    assert list(found.to_frame().columns) == ["lr", "loss", "smoothed"]
    assert found.to_dict()["suggestion"] == 0.01
    assert found._repr_html_().count("<tr>") == 4
    found.plot(path=tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_curve_that_does_not_fall_has_no_suggestion():
    with pytest.raises(ValueError, match="no rate at which the loss falls"):
        Curve(geometric_rates(1e-6, 10.0, 60), [2.3 + i for i in range(60)], 2.3)


def test_the_benchmark_runs_an_example_up_to_its_fit():
    from benchmarks.learning_rates import capture

    model, args, options, names = capture("quickstart", 1)
    assert options["epochs"] == 15
    assert len(args[0]) == len(names["x"])
    assert not len(model.history)


def find_in_a_rank(strategy):
    model = rank_model("adam", strategy=strategy)
    found = model.find_lr(RANK_X, RANK_Y, batch_size=16, updates=30, runs=2)
    refused = (
        attempt(lambda: model.tune_speed(RANK_X, RANK_Y))[0],
        attempt(lambda: model.find_batch_size(RANK_X, RANK_Y))[0],
    )
    model.fit(RANK_X, RANK_Y, verbose=0)
    return found.suggestion, found.losses, [error[0] for error in refused], model.evaluate(verbose=0).loss


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_find_the_same_rate(strategy):
    first, second = run_ranks(find_in_a_rank, strategy)
    assert first == second
    assert first[0] > 0
    assert first[2] == ["ValueError", "ValueError"]


@pytest.mark.distributed
def test_two_processes_find_the_rate_of_one():
    single = rank_model("adam").find_lr(RANK_X, RANK_Y, batch_size=32, updates=30, runs=0, shuffle=False)
    both = run_ranks(losses_in_a_rank)
    assert both[0][:20] == pytest.approx(single.losses[:20], rel=1e-3)


def losses_in_a_rank():
    return rank_model("adam").find_lr(RANK_X, RANK_Y, batch_size=16, updates=30, runs=0, shuffle=False).losses


def test_too_few_updates_before_divergence_ask_for_more_updates():
    torch.manual_seed(0)
    model = Model(nn.Linear(8, 1), device="cpu").compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"diverged after \d+, at a rate of .*Pass updates=100"):
        model.find_lr(10 * X, X[:, :1], updates=20)
