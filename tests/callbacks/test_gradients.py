"""GradientStatistics: values of plain torch, and when they are measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    Every,
    GradientStatistics,
    LambdaCallback,
    TensorBoard,
)
from tests.callbacks.test_loggers import scalars
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import run_ranks
from tests.test_no_sync import ReadCounter

X, Y = blobs(32)
LAYERS = ("0", "2")


class Tracker(Callback):
    """A tracker of a few lines, which gets each measurement."""

    all_ranks = False

    def __init__(self):
        self.values = {}

    def on_log(self, values, step):
        self.values[step] = values


def new_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    net[0].bias.data[:4] = -100.0  # four units are dead
    return net


def new_model(**options):
    return Model(new_net(), device="cpu").compile("sgd", "cross_entropy", lr=0.1, **options)


def fit(every=1, epochs=1, model=None, callbacks=(), batch_size=8, rows=32, **options):
    """Return the history and the measurements by update."""
    tracker = Tracker()
    model = model or new_model(**options)
    statistics = GradientStatistics(every)
    model.fit(
        X[:rows], Y[:rows], epochs=epochs, batch_size=batch_size, shuffle=False, verbose=0,
        callbacks=[tracker, statistics, *callbacks],
    )  # fmt: skip
    return model.history, tracker.values


def plain_values(updates=4, size=8):
    """Return what a plain loop measures in each update."""
    net, values = new_net(), {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(updates):
        x, y = X[size * step : size * (step + 1)], Y[size * step : size * (step + 1)]
        nn.functional.cross_entropy(net(x), y).backward()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
        dead = (net[1](net[0](x)) == 0).all(0).float().mean().item()
        optimizer.step()
        optimizer.zero_grad()
        changes = {name: p.detach() - before[name] for name, p in net.named_parameters()}
        row = values[step + 1] = {"dead": dead, "dead/1": dead, "non_finite": 0}
        for key, prefix in (("", ""), *((f"/{layer}", f"{layer}.") for layer in LAYERS)):
            norms = [
                norm({n: v for n, v in tree.items() if n.startswith(prefix)}) for tree in (gradients, changes, before)
            ]
            row |= {f"grad_norm{key}": norms[0], f"update_ratio{key}": norms[1] / norms[2]}
    return values


def norm(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).norm().item()


def check(values, expected, tolerance=1e-5):
    assert values.keys() == expected.keys()
    for step in values:
        assert values[step] == {name: pytest.approx(value, rel=tolerance) for name, value in expected[step].items()}


def test_the_values_are_those_of_a_plain_loop():
    expected = plain_values()
    assert expected[1]["dead"] >= 0.25
    check(fit()[1], expected)


def test_the_epoch_has_the_means_of_its_measurements():
    history, values = fit(every=2, epochs=2)
    assert list(values) == [2, 4, 6, 8]
    for name in values[2]:
        means = [(values[a][name] + values[b][name]) / 2 for a, b in ((2, 4), (6, 8))]
        assert history[name] == pytest.approx(means)


def test_an_accumulated_gradient_is_that_of_the_window():
    check(fit(batch_size=4, gradient_accumulation_steps=2)[1], plain_values())


def test_gradients_are_measured_before_clipping():
    _, values = fit(clip_grad_norm=1e-3)
    assert values[1]["grad_norm"] == pytest.approx(plain_values()[1]["grad_norm"], rel=1e-5)
    assert values[1]["update_ratio"] < 1e-4


def test_mixed_precision_measures_unscaled_gradients():
    _, values = fit(precision="bf16")
    assert values[1]["grad_norm"] == pytest.approx(plain_values()[1]["grad_norm"], rel=0.05)


def test_non_finite_gradients_are_counted_by_layer():
    class Bad(Model):
        def train_step(self, batch):
            terms = super().train_step(batch)
            return {"loss": terms["loss"] + (self.module[2].bias * float("nan")).sum()}

    model = Bad(new_net(), device="cpu").compile("sgd", "cross_entropy", lr=0.0)
    with pytest.warns(UserWarning, match="is nan"):
        history, values = fit(model=model)
    assert values[1]["non_finite"] == values[1]["non_finite/2"] == 3
    assert "non_finite/0" not in values[1]
    assert math.isnan(values[1]["grad_norm"])
    assert history["non_finite"] == [sum(row["non_finite"] for row in values.values())]


def test_channels_of_images_are_units():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    net[0].bias.data[:] = torch.tensor([-100.0, 1.0, 1.0, 1.0])
    tracker = Tracker()
    model = Model(net, device="cpu").compile("sgd", "cross_entropy")
    model.fit(torch.rand(8, 1, 4, 4), torch.arange(8) % 2, callbacks=[GradientStatistics(1), tracker], verbose=0)
    assert tracker.values[1]["dead"] == 0.25


def test_layers_can_be_left_out():
    tracker = Tracker()
    new_model().fit(X, Y, callbacks=[GradientStatistics(1, layers=False), tracker], verbose=0)
    assert list(tracker.values[1]) == ["grad_norm", "update_ratio", "non_finite", "dead"]


def test_frozen_layers_have_no_values():
    model = new_model()
    model.module[0].requires_grad_(False)
    _, values = fit(model=model)
    assert "grad_norm/0" not in values[1]
    assert values[1]["grad_norm"] == values[1]["grad_norm/2"]


def test_an_update_that_is_not_measured_reads_nothing():
    def count_reads(rows):
        with ReadCounter() as counter:
            fit(every=1000, rows=rows)
        return counter.reads

    assert count_reads(32) == count_reads(16)


def test_no_hook_remains_after_a_fit():
    class Fail(Callback):
        def on_before_optimizer_step(self):
            raise KeyError

    model = new_model()
    fit(model=model)
    assert not model.module[1]._forward_hooks
    with pytest.raises(KeyError):
        fit(model=model, callbacks=[Fail()])
    assert not model.module[1]._forward_hooks


def test_the_csv_file_has_the_values_of_each_epoch(tmp_path):
    fit(callbacks=[CSVLogger(tmp_path / "log.csv")])
    assert "grad_norm/2" in (tmp_path / "log.csv").read_text().splitlines()[0].split(",")


def test_tensorboard_gets_each_measurement(tmp_path):
    pytest.importorskip("tensorboard")

    _, values = fit(every=2, callbacks=[TensorBoard(tmp_path)])
    written = dict(scalars(tmp_path / "train", "grad_norm/2"))
    assert written == {step: pytest.approx(values[step]["grad_norm/2"]) for step in (2, 4)}


def test_printed_lines_leave_out_the_layers(capsys):
    new_model().fit(X, Y, callbacks=[GradientStatistics(1)], verbose=2)
    output = capsys.readouterr().out
    assert "grad_norm" in output
    assert "grad_norm/" not in output


def test_a_logger_that_fails_is_disabled():
    class Broken(Tracker):
        optional = True

        def on_log(self, values, step):
            raise OSError("no connection")

    with pytest.warns(UserWarning, match="Broken failed and is disabled"):
        assert len(fit(callbacks=[Broken()])[0]["loss"]) == 1


def test_a_function_can_be_a_logger():
    steps = []
    fit(every=2, callbacks=[LambdaCallback(on_log=lambda values, step: steps.append(step))])
    assert steps == [2, 4]


def test_a_resumed_run_has_the_same_values(tmp_path):
    expected = fit(epochs=2)[0].history

    def run(crash=None):
        backup = BackupAndRestore(tmp_path, save_freq=1, delete_checkpoint=False)
        return fit(epochs=2, callbacks=[backup, *([CrashAfter(crash)] if crash else [])])[0].history

    for crash in (2, 5):
        with pytest.raises(SimulatedCrash):
            run(crash)
    assert run() == expected


@pytest.mark.parametrize("every", [Every(minutes=1), Every(epochs=1), "epoch", 0])
def test_only_numbers_of_updates_are_accepted(every):
    with pytest.raises(ValueError, match="every"):
        GradientStatistics(every)


def on_rank(strategy):
    history, values = fit(batch_size=4, strategy=strategy)
    return dict(history.history), values


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_measure_what_one_process_measures(strategy):
    (history, values), (other_history, others) = run_ranks(on_rank, strategy)
    check(values, plain_values(), 1e-4)
    assert others == {}  # the tracker runs on rank 0 only
    assert history == other_history
