"""Programs with several optimizers in two processes, compared with one process."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Every
from easytorch.callbacks import Callback, EarlyStopping, Freeze, GradientStatistics, StopAfter
from tests.distributed.test_several_optimizers import GAN, SGD, SHARDED, Losses, Penalty, Steps, new_pair
from tests.loops import blobs
from tests.many import furthest, run_ranks

X = blobs(48)[0].double()


def new_model(model_class, strategy, optimizers=GAN, **options):
    model = model_class(new_pair(), device="cpu")
    return model.compile(optimizers, strategy=strategy() if callable(strategy) else strategy, **options)


def fit(model, size, *callbacks, epochs=2, **options):
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(X), size, shuffle=True)
    model.fit(loader, epochs, callbacks=list(callbacks), verbose=0, **options)


def parts_of_a_run(strategy, size, folder):
    for updates in (2, 3, 5, 99):
        model = new_model(Steps, strategy, update_every={"generator": 2})
        fit(model, size, StopAfter(updates=updates), resume=folder)
    return model, model.state.step


def a_dry_run(strategy, size, folder):
    model = new_model(Losses, strategy)
    fit(model, size, dry_run=True)
    fit(model, size)
    return model, model.state.step


def a_file_predictions_and_scores(strategy, size, folder):
    model = new_model(Losses, strategy)
    fit(model, size)
    model.save(f"{folder}.pt")
    outputs, scores = model.predict(X[:5, :3], verbose=0), model.evaluate(TensorDataset(X), verbose=0)
    fit(model, size)
    return model, [float(outputs.sum()), *dict(scores).values()]


def statistics_of_gradients(strategy, size, folder):
    model = new_model(Penalty, strategy, clip_grad_norm=0.1)
    fit(model, size, GradientStatistics(every=2))
    names = [name for name in model.history if "norm" in name or "ratio" in name]
    return model, [value for name in names for value in model.history[name]]


def single_batches(strategy, size, folder):
    model = new_model(Losses, strategy)
    rank = int(os.environ.get("RANK", "0"))
    for batch in X.split(16):
        scores = model.train_on_batch((batch[rank * size :][:size],))
    return model, list(dict(scores).values())


def best_weights(strategy, size, folder):
    model = new_model(Steps, strategy)
    stopping = EarlyStopping("val_critic_loss", patience=1, restore_best_weights=True)
    fit(model, size, stopping, epochs=4, validation_data=TensorDataset(X[:19]))
    return model, model.history["val_critic_loss"]


def several_validation_sets(strategy, size, folder):
    model = new_model(Losses, strategy)
    sets = {"first": TensorDataset(X[:19]), "second": TensorDataset(X[19:])}
    fit(model, size, validation_data=sets, validation_freq=Every(updates=2))
    return model, [row["val_second_critic_loss"] for row in model.history.validations]


def schedules_and_rates(strategy, size, folder):
    options = {"update_every": {"generator": 2}, "gradient_accumulation_steps": 2}
    model = new_model(Steps, strategy, scheduler={"critic": "one_cycle", "generator": "cosine"}, **options)
    fit(model, size)
    model.optimizer["critic"].lr = 1e-3
    fit(model, size)
    return model, model.history["lr_critic"]


class FailAfter(Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == 3:
            raise ArithmeticError("failed")


def an_error_in_a_callback(strategy, size, folder):
    with pytest.raises(ArithmeticError):
        fit(new_model(Losses, strategy), size, FailAfter(), resume=folder)
    model = new_model(Losses, strategy)
    fit(model, size, resume=folder)
    return model, model.state.step


def frozen_optimizers(strategy, size, folder):
    model = new_model(Losses, strategy)
    fit(model, size, Freeze("critic"))
    fit(model, size, Freeze("generator.0", "critic.3", until=3))
    return model, 0


def two_compilations(strategy, size, folder):
    model = new_model(Losses, strategy)
    fit(model, size)
    model.compile(SGD, strategy=strategy() if callable(strategy) else strategy)
    fit(model, size)
    return model, 0


PROGRAMS = (
    parts_of_a_run, a_dry_run, a_file_predictions_and_scores, statistics_of_gradients, single_batches, best_weights,
    several_validation_sets, schedules_and_rates, an_error_in_a_callback, frozen_optimizers, two_compilations,
)  # fmt: skip


def run_all(strategy, size, folder):
    """Return the weights and the numbers of each program, all in the same processes."""
    results = {}
    for program in PROGRAMS:
        model, numbers = program(strategy, size, f"{folder}/{program.__name__}")
        weights = model.strategy.checkpoints.gather(model.module.state_dict())
        results[program.__name__] = {name: value.clone() for name, value in weights.items()}, numbers
    return results


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", pytest.param(SHARDED, id="fsdp")])
def test_programs_of_two_processes_equal_those_of_one(strategy):
    with tempfile.TemporaryDirectory() as folder:
        expected = run_all("auto", 16, f"{folder}/one")
        for results in run_ranks(run_all, strategy, 8, f"{folder}/many", timeout=300):
            for name, (weights, numbers) in results.items():
                assert furthest(expected[name][0], weights) < 1e-10, name
                assert numbers == pytest.approx(expected[name][1], rel=1e-8), name
