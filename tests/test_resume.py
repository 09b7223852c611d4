"""Promise 3: kill it anywhere, the same command continues, bit for bit."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from easytorch import Metric, Model, ResumeError
from easytorch._utils.rng import get_rng_state, preserve_rng_state
from easytorch.callbacks import EarlyStopping, LambdaCallback
from easytorch.checkpoint import files, rotation
from easytorch.data.seeded import seeded
from tests.cases import slow_after_first
from tests.common_resume import (
    EPOCHS,
    LOADERS,
    ROWS,
    CrashAfter,
    CustomSampler,
    Dropping,
    Noisy,
    SimulatedCrash,
    X,
    Y,
    program,
    stop_and_resume,
)
from tests.loops import mlp, same_weights


def assert_same_run(one, other):
    (first, first_ema, _), (second, second_ema, _) = one, other
    assert same_weights(first.module, second.module)
    assert same_weights(first_ema.average, second_ema.average)
    assert first.history.history == second.history.history
    assert first.history.epoch == second.history.epoch
    assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]
    assert first.strategy.state_dict() == second.strategy.state_dict()


STEPS = range(1, 7 * EPOCHS + 1)


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "workers" not in kind])
def test_stopped_after_any_update_the_run_ends_as_if_undisturbed(kind, tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS[kind])
    for step in STEPS:
        continued = stop_and_resume(tmp_path / str(step), LOADERS[kind], step)
        assert_same_run(undisturbed, continued)
        assert continued[2] == []


@pytest.mark.parametrize("kind", slow_after_first([kind for kind in LOADERS if "workers" in kind]))
def test_stopped_with_workers_after_any_update_the_run_ends_as_if_undisturbed(kind, tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS[kind])
    for step in STEPS:
        assert_same_run(undisturbed, stop_and_resume(tmp_path / str(step), LOADERS[kind], step))


def test_stopped_in_accumulation_the_run_ends_as_if_undisturbed(tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"], accumulate=3)
    for step in range(1, 3 * EPOCHS + 1):
        assert_same_run(undisturbed, stop_and_resume(tmp_path / str(step), LOADERS["shuffled"], step, accumulate=3))


def test_a_stream_cut_into_epochs_goes_on_across_passes(tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"], epochs=4, steps_per_epoch=5)
    for step in range(1, 21):
        continued = stop_and_resume(tmp_path / str(step), LOADERS["shuffled"], step, epochs=4, steps_per_epoch=5)
        assert_same_run(undisturbed, continued)


@pytest.mark.parametrize(("hook", "step"), [("on_before_optimizer_step", 4), ("on_test_batch_begin", 5)])
def test_a_stream_interrupted_at_the_end_of_an_epoch_and_killed_in_the_next_goes_on(hook, step, tmp_path):
    options = {"epochs": 4, "steps_per_epoch": 5, "save_freq": "epoch"}
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"], **options)
    press = LambdaCallback(**{hook: lambda *_: press.model.state.step == step and signal.raise_signal(signal.SIGINT)})
    assert program(tmp_path / "stopped", LOADERS["shuffled"], press, **options)[0].history.interrupted
    assert_same_run(undisturbed, stop_and_resume(tmp_path / "stopped", LOADERS["shuffled"], 8, **options))


def test_metrics_that_keep_every_prediction_go_on(tmp_path):
    metrics = ("accuracy", "auroc", "f1")
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"], metrics=metrics)
    assert_same_run(undisturbed, stop_and_resume(tmp_path / "stopped", LOADERS["shuffled"], 10, metrics=metrics))


class Counted(Metric):
    """Counts in plain numbers and tensors, as people write them."""

    name = "counted"

    def reset(self):
        self.hits, self.rows = 0, torch.zeros(())

    def update(self, y_pred, y, sample_weight=None):
        self.hits += int((y_pred.argmax(1) == y).sum())
        self.rows += len(y)

    def compute(self):
        return self.hits / self.rows


class Arrays(Metric):
    """Keeps what no file holds as it is."""

    name = "arrays"

    def reset(self):
        self.found = []

    def update(self, y_pred, y, sample_weight=None):
        self.found.append(y.numpy())

    def compute(self):
        return float(np.concatenate(self.found).mean())


def test_a_metric_of_ones_own_goes_on_in_the_middle_of_an_epoch(tmp_path):
    undisturbed = program(tmp_path / "a", LOADERS["shuffled"], metrics=[Counted()])
    resumed = stop_and_resume(tmp_path / "b", LOADERS["shuffled"], 3, metrics=[Counted()])
    assert_same_run(resumed, undisturbed)


def test_a_metric_whose_numbers_no_checkpoint_finds_says_so(tmp_path):
    *_, told = stop_and_resume(tmp_path, LOADERS["shuffled"], 3, metrics=[Arrays()])
    assert any("no values of the metric 'arrays'" in message for message in told)


def test_the_loss_scale_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "easytorch.strategies.base.check_precision", lambda device, dtype: None
    )  # slow on a CPU, but it runs
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"], precision="fp16")
    assert undisturbed[0].strategy.state_dict()["scaler"]["scale"] == 2.0**15  # it overflowed once
    assert_same_run(undisturbed, stop_and_resume(tmp_path / "stopped", LOADERS["shuffled"], 10, precision="fp16"))
    with pytest.raises(SimulatedCrash):
        program(tmp_path / "mutated", LOADERS["shuffled"], 10, precision="fp16")
    path, content = rotation.read_newest(tmp_path / "mutated")
    content["strategy"]["scaler"]["scale"] = 2.0**10
    files.write(path, content)
    with pytest.raises(AssertionError):
        assert_same_run(undisturbed, program(tmp_path / "mutated", LOADERS["shuffled"], precision="fp16"))


class NoisyBy(Noisy):
    """Augments from NumPy's generator ``rng``."""

    def __init__(self, rng):
        self.rng = rng

    def __getitem__(self, index):
        return X[index] + 0.1 * self.rng.normal(), Y[index]


class ShuffledBy(CustomSampler):
    def __init__(self, rng):
        self.rng = rng


class MixedBy:
    def __init__(self, rng):
        self.rng = rng

    def __call__(self, samples):
        x, y = default_collate(samples)
        return x + 0.1 * self.rng.normal(), y


class Cached(DataLoader):
    """Loads all of its batches once."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = list(super().__iter__())

    def __iter__(self):
        return iter(self.batches)


GENERATORS = {
    "Philox": lambda: np.random.Generator(np.random.Philox(1)),
    "SFC64": lambda: np.random.Generator(np.random.SFC64(3)),
    "RandomState": lambda: np.random.RandomState(3),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_augmentation_by_any_generator_of_numpy_goes_on(kind, tmp_path):
    def loader():
        return DataLoader(NoisyBy(GENERATORS[kind]()), 8)

    assert_same_run(program(tmp_path / "a", loader), stop_and_resume(tmp_path / "b", loader, 10))


DRAWING = {
    "sampler": lambda: DataLoader(ROWS, 8, sampler=ShuffledBy(np.random.RandomState(3))),
    "collation": lambda: DataLoader(ROWS, 8, collate_fn=MixedBy(np.random.default_rng(3))),
}


@pytest.mark.parametrize("kind", DRAWING)
def test_what_draws_beside_the_dataset_goes_on(kind, tmp_path):
    undisturbed = program(tmp_path / "a", DRAWING[kind])
    assert_same_run(undisturbed, stop_and_resume(tmp_path / "b", DRAWING[kind], 10))


def test_the_generators_of_the_validation_data_go_on(tmp_path):
    fit = {"validation_data": lambda: DataLoader(NoisyBy(np.random.default_rng(3)), 8)}
    undisturbed = program(tmp_path / "a", LOADERS["shuffled"], **fit)
    assert_same_run(undisturbed, stop_and_resume(tmp_path / "b", LOADERS["shuffled"], 10, **fit))


def test_a_loader_that_asks_no_sampler_skips_what_was_used(tmp_path):
    undisturbed = program(tmp_path / "a", lambda: Cached(ROWS, 8))
    continued = stop_and_resume(tmp_path / "b", lambda: Cached(ROWS, 8), 10)
    assert_same_run(undisturbed, continued)
    assert any("Cached has no sampler that can skip" in message for message in continued[2])


def test_several_stops_are_as_good_as_one(tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"])
    for step in (2, 3, 7, 9, 14):
        with pytest.raises(SimulatedCrash):
            program(tmp_path / "again", LOADERS["shuffled"], step)
    assert_same_run(undisturbed, program(tmp_path / "again", LOADERS["shuffled"]))


def test_skipping_does_not_load_what_it_skips(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, LOADERS["random augmentation"], 5)
    Noisy.loaded = 0
    program(tmp_path, LOADERS["random augmentation"])
    assert Noisy.loaded == 2 * 50 - 5 * 8


@pytest.mark.parametrize(
    "make",
    [lambda: [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)], lambda: iter_batches],
    ids=["list", "function"],
)
def test_data_without_a_sampler_is_replayed_and_says_so(make, tmp_path):
    undisturbed = program(tmp_path / "undisturbed", make)
    continued = stop_and_resume(tmp_path / "stopped", make, 10)
    assert_same_run(undisturbed, continued)
    assert any("3 batches that were used before are loaded again" in message for message in continued[2])


def iter_batches():
    return iter([(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)])


def test_a_stateful_loader_is_resumed_by_its_own_state(tmp_path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make():
        return stateful.StatefulDataLoader(ROWS, 8, shuffle=True)

    undisturbed = program(tmp_path / "undisturbed", make)
    for step in STEPS:
        assert_same_run(undisturbed, stop_and_resume(tmp_path / str(step), make, step))


def test_more_epochs_go_on_from_a_finished_run(tmp_path):
    undisturbed = program(tmp_path / "four", LOADERS["shuffled"], epochs=4)
    program(tmp_path / "two", LOADERS["shuffled"], epochs=2)
    assert_same_run(undisturbed, program(tmp_path / "two", LOADERS["shuffled"], epochs=4))


def test_augmentation_is_another_in_every_epoch_and_the_same_for_any_number_of_workers():
    def drawn(workers):
        seen = []
        data = torch.utils.data.Subset(seeded(Noisy()), range(16))  # a split, say: it hides what is inside
        model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
        keep = LambdaCallback(
            on_train_batch_begin=lambda batch, logs: seen.append(model.train_data.window[0][0].clone())
        )
        for _ in range(2):  # two fits of two epochs
            model.fit(DataLoader(data, 16, num_workers=workers), 2, callbacks=[keep], verbose=0)
        return seen

    alone, helped = drawn(0), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert all(not torch.equal(alone[i], alone[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("index", [np.int64(3), torch.tensor(3)], ids=["NumPy", "torch"])
def test_a_sample_draws_the_same_numbers_whatever_kind_of_number_its_index_is(index):
    rows = seeded(Noisy())
    assert torch.equal(rows[index][0], rows[3][0])


def test_the_same_command_after_the_end_trains_no_more(tmp_path):
    finished = program(tmp_path, LOADERS["shuffled"])
    again = program(tmp_path, LOADERS["shuffled"])
    assert_same_run(finished, again)
    assert again[0].state.step == 14


def test_a_run_that_one_of_two_callbacks_has_stopped_is_not_taken_up_again(tmp_path):
    def again():
        model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.0)
        watching = [EarlyStopping("loss", patience=1), EarlyStopping("loss", patience=4)]
        return len(model.fit(X, Y, epochs=8, shuffle=False, resume=tmp_path, callbacks=watching, verbose=0)["loss"])

    assert [again(), again()] == [2, 2]


def test_fit_resume_keeps_the_run_in_a_folder_and_goes_on_from_a_file(tmp_path):
    def run(resume, epochs=3, plug=None):
        torch.manual_seed(0)
        model = Model(Dropping(), device="cpu").compile("adam", "cross_entropy")
        callbacks = [CrashAfter(plug)] if plug else []
        model.fit(LOADERS["shuffled"](), epochs, resume=resume, callbacks=callbacks, verbose=0)
        return model

    undisturbed = run(None)
    with pytest.raises(SimulatedCrash):
        run(tmp_path / "run", plug=16)
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["step-0000000007.pt", "step-0000000014.pt"]
    assert same_weights(run(tmp_path / "run").module, undisturbed.module)
    assert same_weights(run(tmp_path / "run" / "step-0000000014.pt").module, undisturbed.module)


# Every part matters: without it the run would not end the same, so the tests above would see it missing

PARTS = {
    "weights": lambda content: content["module"].update(program_start()),
    "optimizer": lambda content: content["optimizer"]["state"].clear(),
    "random states": lambda content: content["train_data"].update(random=random_of_another_seed()),
    "order of the data": lambda content: content["train_data"]["rng_at_start"].update(random=random_of_another_seed()),
    "place in the data": lambda content: content["train_data"].update(batches_used=0, order_checksum=None),
    "totals of the metrics": lambda content: content["metrics"].update(terms={}),
    "history": lambda content: content["history"].update(epoch=torch.tensor([]), columns={}, measured={}),
    "step": lambda content: content["state"].update(epoch=0),
    "schedule": lambda content: callback_state(content, "LRScheduler")["scheduler"].update(last_epoch=0),
    "average": lambda content: callback_state(content, "EMA")["average"].update(n_averaged=torch.tensor(0)),
    "early stopping": lambda content: callback_state(content, "EarlyStopping").update(wait=4, best=-1.0),
}


def program_start():
    torch.manual_seed(0)
    return Dropping().state_dict()


def random_of_another_seed():
    with preserve_rng_state():
        torch.manual_seed(99)
        return get_rng_state()


def callback_state(content, name):
    return next(state for one, state in content["callbacks"] if one == name)


@pytest.mark.parametrize("part", PARTS)
def test_leaving_out_one_part_would_not_go_unnoticed(part, tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"], epochs=3)
    with pytest.raises(SimulatedCrash):
        program(tmp_path / "stopped", LOADERS["shuffled"], 10, epochs=3)
    path, content = rotation.read_newest(tmp_path / "stopped")
    PARTS[part](content)
    files.write(path, content)
    try:
        continued = program(tmp_path / "stopped", LOADERS["shuffled"], epochs=3)
    except ResumeError:
        return
    with pytest.raises(AssertionError):
        assert_same_run(undisturbed, continued)


@pytest.mark.parametrize("generator", ["python", "numpy", "torch"])
def test_the_state_of_every_generator_matters(generator, tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS["random augmentation"])
    with pytest.raises(SimulatedCrash):
        program(tmp_path / "stopped", LOADERS["random augmentation"], 10)
    path, content = rotation.read_newest(tmp_path / "stopped")
    with preserve_rng_state():
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)
        content["train_data"]["random"][generator] = get_rng_state()[generator]
    files.write(path, content)
    with pytest.raises(AssertionError):
        assert_same_run(undisturbed, program(tmp_path / "stopped", LOADERS["random augmentation"]))
