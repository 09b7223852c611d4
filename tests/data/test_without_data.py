"""Training without data: the step makes its data itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import BackupAndRestore
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import same_weights
from tests.many import furthest, run_ranks


class Sine(Model):
    """Learns sin(x) at random points."""

    def train_step(self, batch):
        assert batch is None
        x = torch.rand(16, 1) * 6
        SEEN.append(x)
        return {"loss": nn.functional.mse_loss(self(x), x.sin()), "steps": torch.tensor(float(len(SEEN)))}


SEEN = []


def new_model(**options):
    torch.manual_seed(0)
    SEEN.clear()
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    return Sine(net, device="cpu").compile("sgd", lr=0.1, **options)


@pytest.mark.parametrize("window", [1, 2])
def test_fit_equals_a_plain_loop_bit_for_bit(window):
    model = new_model(gradient_accumulation_steps=window).fit(steps_per_epoch=4, epochs=3, verbose=0).model
    net = new_model().module
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(12):
        for _ in range(window):
            x = torch.rand(16, 1) * 6
            (nn.functional.mse_loss(net(x), x.sin()) * (1 / window)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(model.module, net)
    assert model.state.step == 12


def test_each_step_counts_once_in_the_logs():
    history = new_model().fit(steps_per_epoch=4, epochs=2, verbose=0)
    assert history["steps"] == [2.5, 6.5]


def test_validation_steps_measure_without_data():
    model = new_model()
    history = model.fit(steps_per_epoch=2, epochs=2, validation_steps=3, verbose=0)
    assert history["val_steps"] == [4.0, 9.0]
    assert len(SEEN) == 10
    assert model.evaluate(verbose=0).loss > 0
    assert len(SEEN) == 13


def test_validation_data_is_used_if_it_is_given():
    class Both(Sine):
        def test_step(self, batch):
            return {"loss": nn.functional.mse_loss(self(batch[0]), batch[1])}

    torch.manual_seed(0)
    model = Both(nn.Linear(1, 1), device="cpu").compile("sgd")
    x = torch.rand(8, 1)
    assert len(model.fit(steps_per_epoch=2, validation_data=(x, x.sin()), verbose=0)["val_loss"]) == 1


def program(folder, crash=None, **options):
    model = new_model(**options)
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    try:
        model.fit(
            steps_per_epoch=3,
            epochs=2,
            validation_steps=2,
            callbacks=[backup, *([CrashAfter(crash)] if crash else [])],
            verbose=0,
        )
    except SimulatedCrash:
        return None
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    return {**weights, "next": torch.rand(3)}, model.history["loss"] + model.history["val_loss"]


def check_stops(folder, stops, **options):
    expected = program(folder / "undisturbed", **options)
    for step in stops:
        program(folder / str(step), step, **options)
        weights, history = program(folder / str(step), **options)
        assert furthest(weights, expected[0]) == 0
        assert history == expected[1]
    return expected[0]


@pytest.mark.parametrize("window", [1, 2])
def test_each_update_can_be_resumed(window, tmp_path):
    check_stops(tmp_path, range(1, 7), gradient_accumulation_steps=window)


def on_ranks(folder):
    weights = check_stops(folder, (2, 3, 4))
    return weights, [x.clone() for x in SEEN]


def test_each_rank_draws_other_data_and_resumes(tmp_path):
    (weights, first), (others, second) = run_ranks(on_ranks, tmp_path)
    names = [name for name in weights if name != "next"]
    assert all(torch.equal(weights[name], others[name]) for name in names)
    assert not any(torch.equal(x, z) for x, z in zip(first, second, strict=False))


def test_two_ranks_average_their_gradients():
    for gradient, expected in run_ranks(one_update):
        assert torch.allclose(gradient, expected, atol=1e-6)


def one_update():
    model = new_model()
    before = model.module[2].bias.detach().clone()
    model.fit(steps_per_epoch=1, verbose=0)
    gradient = (before - model.module[2].bias.detach()) / 0.1
    return gradient, _mean_gradient(model)


def _mean_gradient(model):
    """Return the gradient of the last bias at the points of both ranks, which are drawn again."""
    net = new_model().module  # draws what the program drew before the fit
    model.strategy.group.seed_per_rank()
    x = torch.rand(16, 1) * 6
    nn.functional.mse_loss(net(x), x.sin()).backward()
    return torch.stack(model.strategy.group.gather(net[2].bias.grad)).mean(0)


# What is refused


def test_no_data_without_steps_names_steps_per_epoch():
    with pytest.raises(TypeError, match=r"received None.*steps_per_epoch=100"):
        new_model().fit(epochs=2)


def test_the_default_step_names_train_step():
    model = Model(nn.Linear(1, 1), device="cpu").compile("sgd", "mse")
    with pytest.raises(ValueError, match="Override train_step"):
        model.fit(steps_per_epoch=2, verbose=0)


@pytest.mark.parametrize(
    "argument",
    [{"batch_size": 8}, {"shuffle": True}, {"validation_split": 0.2}, {"sample_weight": torch.ones(3)}],
    ids=str,
)
def test_arguments_of_data_are_refused(argument):
    with pytest.raises(ValueError, match=f"received {next(iter(argument))} without data"):
        new_model().fit(steps_per_epoch=2, **argument)
