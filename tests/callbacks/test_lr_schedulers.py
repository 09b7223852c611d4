"""Learning rate schedules, compared with their formulas."""

from __future__ import annotations

import copy
import math
import re
import signal

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import easytorch
from easytorch import Model
from easytorch._utils import api_hints
from easytorch.callbacks import LambdaCallback, LearningRateScheduler, LRScheduler, ReduceLROnPlateau, Schedule
from tests.loops import same_weights
from tests.scripted import NAN, UPDATES, Rates, Scripted, X, Y, new_model, train

pytestmark = pytest.mark.filterwarnings("ignore:The validation loss of epoch")  # scripted values

# LRScheduler and compile(scheduler=...)

PER_UPDATE = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.1, max_lr=0.5, step_size_up=4),
}
PER_EPOCH = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[1, 3]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.5),
}


def rates_of(make, steps):
    """Return the learning rates of a scheduler's steps, by hand."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates_in(epochs, *callbacks, **options):
    """Return the learning rates of every update of a run."""
    rates = Rates()
    train(new_model(**options), epochs, rates, *callbacks)
    return rates.used


@pytest.mark.parametrize("name", PER_UPDATE)
def test_a_scheduler_that_counts_updates_steps_after_each(name):
    assert rates_in(4, scheduler=PER_UPDATE[name]) == rates_of(PER_UPDATE[name], 4 * UPDATES)


@pytest.mark.parametrize("name", PER_EPOCH)
def test_a_scheduler_that_counts_epochs_steps_after_each(name):
    expected = [rate for rate in rates_of(PER_EPOCH[name], 4) for _ in range(UPDATES)]
    assert rates_in(4, scheduler=PER_EPOCH[name]) == expected


def test_an_update_is_a_window_of_accumulated_batches():
    rates = rates_in(2, scheduler=PER_UPDATE["OneCycleLR"], gradient_accumulation_steps=2)
    assert rates == rates_of(PER_UPDATE["OneCycleLR"], 4)


def milestones(optimizer):
    return lr_scheduler.MultiStepLR(optimizer, milestones=[1, 3, 3])


def milestones_after_warming_up(optimizer):
    warming = lr_scheduler.ConstantLR(optimizer, 0.5, 1)
    return lr_scheduler.SequentialLR(optimizer, [warming, milestones(optimizer)], milestones=[1])


@pytest.mark.parametrize("make", [milestones, milestones_after_warming_up])
def test_milestones_continue_in_a_resumed_run(make, tmp_path):
    def rates(epochs, **options):
        model = new_model(scheduler=LRScheduler(make, "epoch"))
        return train(model, epochs, **options)["lr"]

    rates(2, resume=tmp_path)
    assert rates(6, resume=tmp_path) == rates(6)


DOUBTFUL = {
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
}


def test_a_scheduler_without_a_length_is_refused_by_compile():
    with pytest.raises(ValueError, match=r"LambdaLR may count updates or epochs.*step_every='update'"):
        new_model(scheduler=DOUBTFUL["LambdaLR"])


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "LinearLR"])
def test_a_length_that_fits_neither_updates_nor_epochs_is_refused(name):
    model = new_model(scheduler=DOUBTFUL[name])
    with pytest.raises(
        ValueError, match=rf"{name} may count.* is neither the number of updates nor of epochs, .*step_every"
    ):
        train(model, 3)
    assert model.state.step == 0


LENGTHS = {
    "CosineAnnealingLR": lambda steps: lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps),
    "LinearLR": lambda steps: lambda o: lr_scheduler.LinearLR(o, total_iters=steps),
    "PolynomialLR": lambda steps: lambda o: lr_scheduler.PolynomialLR(o, total_iters=steps),
    "CosineAnnealingWarmRestarts": lambda steps: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=steps),
    "SequentialLR": lambda steps: (
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, total_iters=1), lr_scheduler.CosineAnnealingLR(o, T_max=steps - 1)],
            milestones=[1],
        )
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_the_length_shows_whether_a_scheduler_counts_updates_or_epochs(name):
    per_update = LENGTHS[name](3 * UPDATES)
    assert rates_in(3, scheduler=per_update) == rates_of(per_update, 3 * UPDATES)
    per_epoch = LENGTHS[name](3)
    assert rates_in(3, scheduler=per_epoch) == [rate for rate in rates_of(per_epoch, 3) for _ in range(UPDATES)]


ABSOLUTE = {
    "cosine": {"scheduler": "cosine"},
    "warmup_cosine": {"scheduler": "warmup_cosine"},
    "one_cycle": {"scheduler": "one_cycle"},
    "OneCycleLR": {"scheduler": PER_UPDATE["OneCycleLR"]},
    "LambdaLR": {"scheduler": LRScheduler(DOUBTFUL["LambdaLR"], "epoch")},
}


@pytest.mark.parametrize("name", ABSOLUTE)
@pytest.mark.parametrize(
    "make",
    [
        lambda: ReduceLROnPlateau("loss"),
        lambda: LearningRateScheduler(lambda epoch: 1e-3),
        lambda: LearningRateScheduler(lambda epoch, lr: lr * 0.5),
        lambda: LRScheduler(PER_EPOCH["StepLR"]),
    ],
    ids=["plateau", "function of the epoch", "function of the rate", "StepLR"],
)
def test_two_controllers_of_the_rate_are_refused(name, make):
    model = new_model(**ABSOLUTE[name])
    with pytest.raises(ValueError, match=r"both control the learning rate\. .* would undo .* Leave one of them out"):
        train(model, 2, make())
    assert model.state.step == 0


def test_a_function_of_the_epoch_and_plateau_are_refused():
    with pytest.raises(ValueError, match="LearningRateScheduler and ReduceLROnPlateau both control"):
        train(new_model(), 2, LearningRateScheduler(lambda epoch: 1e-3), ReduceLROnPlateau("loss"))


def test_controllers_that_multiply_the_rate_work_together():
    model = new_model(scheduler=lambda o: lr_scheduler.ExponentialLR(o, gamma=0.5))
    train(model, 4, Scripted(loss=[1, 1, 1, 1]), ReduceLROnPlateau("loss", factor=0.1, patience=1))
    assert model.history["lr"] == pytest.approx([0.1, 0.05, 0.0025, 0.000125])


def test_a_rate_that_the_user_changes_under_a_schedule_is_reported():
    def change(batch, logs):
        model.optimizer.param_groups[0]["lr"] = 7.0

    model = new_model(scheduler="cosine")
    with pytest.warns(UserWarning, match="learning rate was changed, but scheduler='cosine' computes it"):
        train(model, 2, LambdaCallback(on_train_batch_end=change))


def test_all_groups_keep_their_ratio_and_are_logged():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    groups = [{"params": net[0].parameters(), "lr": 1e-2}, {"params": net[1].parameters(), "lr": 1e-4}]
    model = Model(net, device="cpu").compile(torch.optim.SGD(groups), "cross_entropy")
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    halve, absolute = LearningRateScheduler(lambda epoch, lr: lr * 0.5), LearningRateScheduler(lambda epoch: 0.1)
    history = model.fit(x, y, callbacks=[halve], verbose=0)
    assert (history["lr"], history["lr_1"]) == ([pytest.approx(5e-3)], [pytest.approx(5e-5)])
    history = model.fit(x, y, callbacks=[absolute], verbose=0)
    assert (history["lr"][-1], history["lr_1"][-1]) == (pytest.approx(0.1), pytest.approx(1e-3))


class Longer(torch.utils.data.IterableDataset):
    """40 samples for each worker, which ``len`` does not know."""

    def __iter__(self):
        return iter([(torch.randn(4), torch.tensor(i % 3)) for i in range(40)])

    def __len__(self):
        return 20


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=2 * UPDATES + 1)


def one_cycle_after_warming_up(optimizer):
    warmup = lr_scheduler.LinearLR(optimizer, total_iters=1)
    last = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=2 * UPDATES)
    return lr_scheduler.SequentialLR(optimizer, [warmup, last], [1])


@pytest.mark.parametrize("make", [one_cycle, one_cycle_after_warming_up])
def test_a_schedule_that_is_too_short_is_refused_before_training(make):
    model = new_model(scheduler=LRScheduler(make, "update"))
    train(model, 1)
    weights = copy.deepcopy(model.module)
    with pytest.raises(
        ValueError, match=rf"{UPDATES + 1} .*{2 * UPDATES} more updates.*Add {UPDATES - 1} to its total_steps"
    ):
        train(model, 2)
    assert model.state.step == UPDATES
    assert same_weights(weights, model.module)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset", "ignore:The epoch had 10 updates")
@pytest.mark.parametrize("name", ["cosine", "warmup_cosine", "one_cycle"])
def test_a_schedule_stays_at_its_end_if_the_data_is_longer_than_promised(name):
    rates = Rates()
    model = Model(nn.Linear(4, 3), device="cpu").compile("sgd", "cross_entropy", lr=0.1, scheduler=name)
    with pytest.warns(UserWarning, match="more than the 5 updates per epoch that its length promised"):
        model.fit(torch.utils.data.DataLoader(Longer(), 4), 2, callbacks=[rates], verbose=0)
    assert len(rates.used) == 20
    assert rates.used[10:] == pytest.approx([0.0] * 10, abs=2e-5)


def test_an_ambiguous_scheduler_callback_is_refused():
    model = new_model()
    with pytest.raises(ValueError, match=r"LambdaLR may count updates or epochs"):
        train(model, 1, LRScheduler(DOUBTFUL["LambdaLR"]))
    assert model.state.step == 0


@pytest.mark.parametrize("name", DOUBTFUL)
def test_step_every_decides_for_an_ambiguous_scheduler(name):
    expected = rates_of(DOUBTFUL[name], 2 * UPDATES)
    assert rates_in(2, scheduler=LRScheduler(DOUBTFUL[name], step_every="update")) == expected
    per_epoch = [rate for rate in expected[:2] for _ in range(UPDATES)]
    assert rates_in(2, scheduler=LRScheduler(DOUBTFUL[name], step_every="epoch")) == per_epoch


def test_step_every_is_update_or_epoch():
    with pytest.raises(ValueError, match=r"step_every must be 'update' or 'epoch', received 'batch'"):
        LRScheduler(DOUBTFUL["LambdaLR"], step_every="batch")


@pytest.mark.parametrize("form", ["object", "function", "LRScheduler", "callback"])
def test_a_scheduler_is_an_object_a_function_or_a_callback(form):
    make, rates = PER_EPOCH["ExponentialLR"], Rates()
    net = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = {"object": lambda: make(optimizer), "function": lambda: make, "LRScheduler": lambda: LRScheduler(make)}
    given = scheduler[form]() if form in scheduler else None
    model = Model(net, device="cpu").compile(optimizer, "cross_entropy", scheduler=given)
    train(model, 2, rates, *([LRScheduler(make)] if form == "callback" else []))
    assert rates.used == [0.1] * UPDATES + [0.05] * UPDATES


def test_a_scheduler_of_another_optimizer_is_refused():
    other = torch.optim.SGD(nn.Linear(8, 3).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"belongs to another optimizer.*scheduler=lambda optimizer: StepLR"):
        new_model(scheduler=lr_scheduler.StepLR(other, 1))


def test_a_function_creates_a_scheduler_for_every_model():
    scheduler = LRScheduler(PER_EPOCH["ExponentialLR"])
    assert rates_in(2, scheduler=scheduler) == rates_in(2, scheduler=scheduler)


def test_a_number_as_scheduler_is_refused():
    with pytest.raises(TypeError, match=r"scheduler must be a torch.optim.lr_scheduler"):
        new_model(scheduler=0.5)


def test_a_scheduler_continues_in_a_second_fit():
    model, rates = new_model(scheduler=PER_UPDATE["OneCycleLR"]), Rates()
    train(model, 1, rates)
    train(model, 1, rates)
    assert rates.used == rates_of(PER_UPDATE["OneCycleLR"], 2 * UPDATES)


@pytest.mark.parametrize(
    ("monitor", "values", "expected"),
    [
        (None, {"val_loss": [1, 2, 2, 0.5]}, [0.1, 0.1, 0.05, 0.025]),
        ("loss", {"loss": [1, 2, 0.5, 0.5]}, [0.1, 0.1, 0.05, 0.05]),
    ],
)
def test_torch_plateau_reads_the_monitor_after_each_epoch(monitor, values, expected):
    plateau = LRScheduler(lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0), monitor=monitor)
    model = new_model()
    assert train(model, 4, Scripted(**values), plateau)["lr"] == expected


def test_torch_plateau_uses_the_loss_without_validation():
    plateau = LRScheduler(lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0))
    history = train(new_model(), 3, Scripted(loss=[1, 2, 3]), plateau, validation_data=None)
    assert history["lr"] == [0.1, 0.1, 0.05]


def test_torch_plateau_skips_epochs_without_validation():
    plateau = LRScheduler(lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0))
    values = {"loss": [0, 0, 0, 0], "val_loss": [None, 2, None, 1]}
    history = train(new_model(), 4, Scripted(**values), plateau, validation_freq=2)
    assert history["lr"] == [0.1] * 4
    assert plateau.scheduler.best == 1


def test_torch_plateau_uses_the_loss_if_validation_has_none():
    class Measured(Model):
        def test_step(self, batch):
            return {"iou": torch.tensor(0.5)}

    plateau = LRScheduler(lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0))
    model = Measured(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    assert train(model, 3, Scripted(loss=[1, 2, 3]), plateau)["lr"] == [0.1, 0.1, 0.05]


OF_MILESTONES = {
    "alone": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "after a warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 2), lr_scheduler.MultiStepLR(o, [1, 2])], [3]
    ),
}


@pytest.mark.parametrize("where", OF_MILESTONES)
def test_a_scheduler_with_milestones_continues_in_a_resumed_run(where, tmp_path):
    def rates(epochs, **options):
        scheduler = LRScheduler(OF_MILESTONES[where], "epoch")
        return train(new_model(scheduler=scheduler), epochs, **options)["lr"]

    for epochs in (2, 6):
        resumed = rates(epochs, resume=tmp_path)
    assert resumed == rates(6)


@pytest.mark.filterwarnings("ignore:The inputs go up to")
@pytest.mark.parametrize("optimizer", ["adam", torch.optim.Adam], ids=["fused", "by steps"])
def test_updates_that_fp16_skips_do_not_step_a_scheduler(optimizer, monkeypatch):
    monkeypatch.setattr(
        "easytorch.strategies.base.check_precision", lambda device, dtype: None
    )  # slow on a CPU, but it runs
    model = new_model(
        optimizer=optimizer, precision="fp16", scheduler=LRScheduler(PER_EPOCH["ExponentialLR"], "update")
    )
    changed, before = [], [model.module.weight.detach().clone()]

    def note(batch, logs):
        changed.append(not torch.equal(model.module.weight, before[0]))
        before[0] = model.module.weight.detach().clone()

    look = LambdaCallback(on_train_batch_end=note)
    model.fit(1000 * X, Y, epochs=4, batch_size=16, callbacks=[look], verbose=0)
    assert set(changed) == {True, False}  # at first the loss is scaled too much
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * 0.5 ** sum(changed))


def test_unknown_monitor_of_torch_plateau_is_refused():
    plateau = LRScheduler(lambda o: lr_scheduler.ReduceLROnPlateau(o), monitor="val_acuracy")
    model = new_model(metrics=["accuracy"], scheduler=plateau)
    with pytest.raises(ValueError, match=r"'val_acuracy'.*Did you mean 'val_accuracy'"):
        train(model, 1)
    assert model.state.step == 0


def test_the_learning_rate_is_always_in_the_logs():
    assert train(new_model(), 2)["lr"] == [0.1, 0.1]
    assert train(new_model(scheduler=PER_EPOCH["ExponentialLR"]), 3)["lr"] == [0.1, 0.05, 0.025]


# Schedules by name


def warmup_cosine(step, total, share):
    rise = round(share * total)
    return (step + 1) / (rise + 1) if step < rise else (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2


@pytest.mark.parametrize(
    ("scheduler", "share"),
    [
        ("warmup_cosine", 0.05),
        ("cosine", 0.0),
        (Schedule("warmup_cosine", warmup=0.25), 0.25),
        (Schedule("warmup_cosine", warmup=0.0), 0.0),
    ],
    ids=["warmup_cosine", "cosine", "a quarter of warm-up", "no warm-up"],
)
def test_the_named_cosines_follow_their_formula_and_end_at_zero(scheduler, share):
    model, rates, total = new_model(scheduler=scheduler), Rates(), 8 * UPDATES
    train(model, 8, rates)
    assert rates.used == pytest.approx([0.1 * warmup_cosine(step, total, share) for step in range(total)])
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_named_one_cycle_equals_torch_one_cycle():
    model, rates, total = new_model(scheduler="one_cycle"), Rates(), 4 * UPDATES
    train(model, 4, rates)
    expected = rates_of(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=total + 1), total)
    assert rates.used == pytest.approx(expected)
    assert max(rates.used) == pytest.approx(0.1, rel=0.05)
    assert model.optimizer.param_groups[0]["lr"] < 1e-5


def test_the_named_one_cycle_accepts_no_momentum():
    model, rates = new_model(optimizer="adagrad", scheduler="one_cycle"), Rates()
    train(model, 2, rates)
    total = 2 * UPDATES
    expected = rates_of(lambda o: lr_scheduler.OneCycleLR(o, 0.01, total + 1, cycle_momentum=False), total)
    assert rates.used == pytest.approx(expected)


@pytest.mark.parametrize("name", Schedule.NAMES)
def test_a_schedule_has_the_length_of_a_continued_run(name, tmp_path):
    train(new_model(scheduler=name), 2, resume=tmp_path)
    with pytest.warns(UserWarning, match="epochs changed from 2 to 4"):
        train(new_model(scheduler=name), 4, rates := Rates(), resume=tmp_path)
    # The first update still has the rate that the run ended with.
    assert rates.used[1:] == pytest.approx(rates_in(4, scheduler=name)[2 * UPDATES + 1 :])


def test_a_named_schedule_restarts_in_a_second_fit():
    model, first, second = new_model(scheduler="warmup_cosine"), Rates(), Rates()
    train(model, 2, first)
    train(model, 2, second)
    assert first.used == second.used


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "warmup_cosine"])
def test_a_resumed_schedule_ends_with_the_longer_run(name, tmp_path):
    train(new_model(scheduler=name), 2, resume=tmp_path)
    rates = Rates()
    with pytest.warns(
        UserWarning, match=rf"epochs changed from 2 to 4, so scheduler='{name}' continues on the curve of 4"
    ):
        train(new_model(scheduler=name), 4, rates, resume=tmp_path)
    assert rates.used == pytest.approx(rates_in(4, scheduler=name)[2 * UPDATES :])


def test_a_named_schedule_can_be_a_callback():
    assert rates_in(2, Schedule("cosine")) == rates_in(2, scheduler="cosine")


def test_a_schedule_preserves_the_ratio_of_parameter_groups():
    def groups(parameters):
        weight, bias = parameters
        return torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=0.1)

    model, ratios = new_model(optimizer=groups, scheduler="warmup_cosine"), []
    ratio = LambdaCallback(
        on_before_optimizer_step=lambda: ratios.append(
            model.optimizer.param_groups[1]["lr"] / model.optimizer.param_groups[0]["lr"]
        )
    )
    train(model, 2, ratio)
    assert ratios == pytest.approx([0.1] * 2 * UPDATES)


def endless():
    while True:
        yield X[:16], Y[:16]


def test_a_named_schedule_needs_the_number_of_updates():
    model = new_model(scheduler="cosine")
    with pytest.raises(ValueError, match=r"no length.*steps_per_epoch"):
        model.fit(endless(), epochs=2, verbose=0)
    assert model.state.step == 0
    model.fit(endless(), epochs=2, steps_per_epoch=4, verbose=0)
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_an_unknown_schedule_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"Unknown scheduler 'warmup_cosin'\. Did you mean 'warmup_cosine'\?"):
        new_model(scheduler="warmup_cosin")


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 5])
def test_warmup_out_of_range_is_refused(warmup):
    with pytest.raises(ValueError, match=r"warmup must be a share"):
        Schedule("warmup_cosine", warmup=warmup)


# LearningRateScheduler


def test_a_schedule_of_epoch_and_lr_sets_the_rate():
    seen = []

    def halve(epoch, lr):
        seen.append((epoch, lr))
        return lr * 0.5

    rates = rates_in(3, LearningRateScheduler(halve))
    assert rates == [rate for rate in (0.05, 0.025, 0.0125) for _ in range(UPDATES)]
    assert seen == [(0, 0.1), (1, 0.05), (2, 0.025)]


def test_a_schedule_may_take_only_the_epoch():
    history = train(new_model(), 3, LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1)))
    assert history["lr"] == pytest.approx([0.5, 0.25, 0.5 / 3])


def test_a_schedule_counts_the_epochs_of_all_fits():
    model, scheduler = new_model(), LearningRateScheduler(lambda epoch: 0.1 - 0.01 * epoch)
    train(model, 2, scheduler)
    assert train(model, 2, scheduler)["lr"] == pytest.approx([0.1, 0.09, 0.08, 0.07])


def test_a_schedule_sets_the_rate_of_a_resumed_epoch_once(tmp_path):
    def program(*more):
        halve, model = LearningRateScheduler(lambda epoch, lr: lr * 0.5), new_model()
        return train(model, 3, halve, *more, resume=tmp_path, on_interrupt="return")

    interrupt = LambdaCallback(on_train_batch_end=lambda batch, _: batch == 1 and signal.raise_signal(signal.SIGINT))
    assert program(interrupt).interrupted
    assert program()["lr"] == [0.05, 0.025, 0.0125]


def test_a_schedule_must_be_callable():
    with pytest.raises(TypeError, match=r"schedule\(epoch, lr\), received 0.5"):
        LearningRateScheduler(0.5)


def test_a_verbose_schedule_prints_the_rate(capsys):
    train(new_model(), 1, LearningRateScheduler(lambda epoch: 0.25, verbose=1))
    assert capsys.readouterr().out == "Epoch 1: learning rate 0.25\n"


# ReduceLROnPlateau


def plateau(values, name="val_loss", **options):
    """Return the learning rate of each epoch, and that after the last."""
    model = new_model(metrics=["accuracy"])
    train(model, len(values), Scripted(**{name: values}), ReduceLROnPlateau(name, **options))
    return [*model.history["lr"], model.optimizer.param_groups[0]["lr"]]


def test_plateau_has_the_arguments_of_keras():
    assert vars(ReduceLROnPlateau()) == vars(ReduceLROnPlateau("val_loss", 0.1, 10, 0, "auto", 1e-4, 0, 0.0))


def test_plateau_reduces_the_rate_after_patience_epochs():
    expected = [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]
    assert plateau([1, 1, 1, 1, 1], factor=0.5, patience=2) == pytest.approx(expected)


def test_an_improvement_resets_the_patience_of_plateau():
    assert plateau([3, 3, 2, 2, 1, 1], factor=0.5, patience=2) == pytest.approx([0.1] * 7)


def test_cooldown_counts_the_epochs_that_keras_counts():
    # Keras 3.15: the epoch of the reduction is one of the cooldown, so that cooldown=1 has no effect.
    assert plateau([1] * 4, factor=0.5, patience=1, cooldown=1) == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125])
    expected = [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]
    rates = plateau([1] * 8, factor=0.1, patience=1, cooldown=2, min_delta=0)
    assert rates == pytest.approx([rate * 0.1 for rate in expected])


def test_the_rate_does_not_change_in_cooldown():
    assert plateau([1] * 4, factor=0.5, patience=1, cooldown=3) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05])


def test_the_rate_is_never_below_min_lr():
    assert plateau([1] * 4, patience=1, min_lr=0.03) == pytest.approx([0.1, 0.1, 0.03, 0.03, 0.03])


def test_a_change_below_min_delta_is_no_improvement():
    assert plateau([1, 0.95, 0.91], factor=0.5, patience=2, min_delta=0.1)[-1] == pytest.approx(0.05)
    assert plateau([1, 0.95, 0.85], factor=0.5, patience=2, min_delta=0.1)[-1] == pytest.approx(0.1)
    assert plateau([1, 1 - 5e-5], factor=0.5, patience=1)[-1] == pytest.approx(0.05)


def test_plateau_uses_the_direction_of_the_metric():
    assert plateau([0.1, 0.2, 0.3], "val_accuracy", factor=0.5, patience=1)[-1] == pytest.approx(0.1)
    assert plateau([0.3, 0.2, 0.1], "val_accuracy", factor=0.5, patience=1)[-1] == pytest.approx(0.025)


def test_plateau_does_not_treat_nan_as_the_best():
    assert plateau([NAN, 3, 2, 1], factor=0.5, patience=2)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("factor", [1.0, 1.5, NAN])
def test_a_factor_of_one_or_more_is_refused(factor):
    with pytest.raises(ValueError, match=r"factor must be below 1"):
        ReduceLROnPlateau(factor=factor)


def test_a_second_fit_resets_plateau():
    model, scripted, callback = new_model(), Scripted(val_loss=[1, 1, 9, 9, 9]), ReduceLROnPlateau(patience=2)
    train(model, 2, scripted, callback)
    train(model, 2, scripted, callback)
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert callback.best == 9


def test_plateau_reduces_the_rate_of_every_group():
    def groups(parameters):
        weight, bias = parameters
        return torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=0.1)

    model = new_model(optimizer=groups)
    train(model, 2, Scripted(val_loss=[1, 1]), ReduceLROnPlateau(factor=0.5, patience=1))
    assert [group["lr"] for group in model.optimizer.param_groups] == pytest.approx([0.05, 0.005])


def test_plateau_refuses_an_unknown_monitor():
    model = new_model()
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau monitors 'val_loss'.*validation_data"):
        train(model, 1, ReduceLROnPlateau(), validation_data=None)
    assert model.state.step == 0


def test_a_schedule_that_returns_none_is_an_error():
    model = new_model()
    with pytest.raises(
        TypeError, match=r"schedule must return the learning rate as a number, received None for epoch 0"
    ):
        model.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch: None)])


def test_a_scheduler_class_with_more_arguments_is_explained():
    with pytest.raises(TypeError, match=r"scheduler=lambda optimizer: StepLR\(optimizer, \.\.\.\).*step_size"):
        Model(nn.Linear(2, 2)).compile("sgd", "cross_entropy", scheduler=lr_scheduler.StepLR)


@pytest.mark.parametrize(
    ("rates", "expected"), [((1e-2, 1e-6), (1e-5, 1e-6)), ((1e-5, 1e-2), (1e-5, 1e-5))], ids=["below", "at min_lr"]
)
def test_plateau_reduces_only_groups_above_min_lr(rates, expected):
    def groups(parameters):
        return torch.optim.SGD([{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)])

    model = new_model(optimizer=groups)
    train(model, 5, Scripted(val_loss=[1] * 5), ReduceLROnPlateau(patience=1, min_lr=1e-5))
    assert [group["lr"] for group in model.optimizer.param_groups] == pytest.approx(expected)


def linear_model(lr, scheduler):
    torch.manual_seed(0)
    return Model(nn.Linear(4, 2), device="cpu").compile("sgd", "mse", lr=lr, momentum=0.9, scheduler=scheduler)


def fitted_rates(model):
    return model.fit(torch.ones(8, 4), torch.ones(8, 2), epochs=2, batch_size=4, verbose=0)["lr"][-2:]


@pytest.mark.parametrize("name", ["cosine", "warmup_cosine", "one_cycle"])
def test_a_rate_that_is_set_before_a_fit_is_that_of_the_schedule(name):
    model = linear_model(0.1, name)
    model.optimizer.lr = 0.02
    expected = fitted_rates(linear_model(0.02, name))
    assert fitted_rates(model) == expected
    assert fitted_rates(model) == expected


def test_the_rate_of_a_schedule_is_saved(tmp_path):
    model = linear_model(0.1, "cosine")
    model.optimizer.lr = 0.02
    fitted_rates(model)
    model.save(tmp_path / "fitted.pt")
    model.optimizer.lr = 0.5
    model.save(tmp_path / "set.pt")
    for name, rate in (("fitted.pt", 0.02), ("set.pt", 0.5)):
        loaded = Model(nn.Linear(4, 2), device="cpu").load(tmp_path / name)
        assert fitted_rates(loaded) == fitted_rates(linear_model(rate, "cosine"))


def test_a_rate_that_is_set_before_a_fit_is_reported_if_a_scheduler_undoes_it():
    def make(optimizer):
        return lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)

    model = linear_model(0.1, LRScheduler(make, "epoch"))
    model.optimizer.lr = 0.02
    with pytest.warns(UserWarning, match="learning rate was changed, but LRScheduler"):
        fitted_rates(model)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("step", "StepLR(optimizer, step_size=10)"),
        ("StepLR", "StepLR(optimizer, step_size=10)"),
        ("multistep", "MultiStepLR"),
        ("exponential", "ExponentialLR(optimizer, gamma=0.95)"),
        ("plateau", "callbacks=[easytorch.callbacks.ReduceLROnPlateau('val_loss')]"),
        ("ReduceLROnPlateau", "callbacks=[easytorch.callbacks.ReduceLROnPlateau('val_loss')]"),
        ("CosineAnnealingLR", "Use scheduler='cosine'"),
        ("cosine_with_restarts", "CosineAnnealingWarmRestarts"),
        ("linear", "LinearLR"),
        ("PolynomialDecay", "PolynomialLR"),
        ("constant", "no scheduler"),
    ],
)
def test_schedules_of_other_libraries_get_a_hint(name, fix):
    with pytest.raises(ValueError, match=re.escape(fix)) as error:
        new_model(scheduler=name)
    assert f"Unknown scheduler {name!r}. Use" in str(error.value)


def test_the_schedulers_of_the_hints_can_be_created():
    for hint in api_hints.SCHEDULER_HINTS.values():
        if code := re.match(r"scheduler=((?:lambda|easytorch).*\))", hint):
            new_model(scheduler=eval(code[1], {"torch": torch, "easytorch": easytorch, "epochs": 10}))
    assert set(api_hints.SCHEDULER_NAMES.values()) <= set(api_hints.SCHEDULER_HINTS)


@pytest.mark.parametrize(
    "function", [lambda epoch: 0.1, lambda epoch, lr: 0.9 * lr, lambda n: 0.1 * 0.9**n, lambda n: 0.1], ids=range(4)
)
def test_a_function_of_the_epoch_gets_a_hint(function):
    with pytest.raises(TypeError, match=r"LearningRateScheduler\(function\).*LambdaLR\(optimizer, function\)"):
        new_model(scheduler=function)
