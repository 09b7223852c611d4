"""Resumed runs equal uninterrupted runs bit for bit."""

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
    AugmentedDataset,
    CrashAfter,
    CustomSampler,
    DropoutNet,
    SimulatedCrash,
    X,
    Y,
    program,
    stop_and_resume,
)
from tests.loops import mlp, same_weights


def assert_same_run(run, other):
    (first, first_ema, _), (second, second_ema, _) = run, other
    assert same_weights(first.module, second.module)
    assert same_weights(first_ema.average, second_ema.average)
    assert first.history.history == second.history.history
    assert first.history.epoch == second.history.epoch
    assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]
    assert first.strategy.state_dict() == second.strategy.state_dict()


STEPS = range(1, 7 * EPOCHS + 1)


@pytest.mark.parametrize("kind", slow_after_first([kind for kind in LOADERS if "workers" not in kind]))
def test_a_run_stopped_after_any_update_resumes_exactly(kind, tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS[kind])
    for step in STEPS:
        resumed = stop_and_resume(tmp_path / str(step), LOADERS[kind], step)
        assert_same_run(uninterrupted, resumed)
        assert resumed[2] == []


@pytest.mark.parametrize("kind", slow_after_first([kind for kind in LOADERS if "workers" in kind]))
def test_a_run_with_workers_resumes_exactly_after_any_update(kind, tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS[kind])
    for step in STEPS:
        assert_same_run(uninterrupted, stop_and_resume(tmp_path / str(step), LOADERS[kind], step))


def test_a_run_with_accumulation_resumes_exactly(tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"], accumulate=3)
    for step in range(1, 3 * EPOCHS + 1):
        assert_same_run(uninterrupted, stop_and_resume(tmp_path / str(step), LOADERS["shuffled"], step, accumulate=3))


def test_steps_per_epoch_resumes_exactly_across_passes(tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"], epochs=4, steps_per_epoch=5)
    for step in range(1, 21):
        resumed = stop_and_resume(tmp_path / str(step), LOADERS["shuffled"], step, epochs=4, steps_per_epoch=5)
        assert_same_run(uninterrupted, resumed)


@pytest.mark.parametrize(("hook", "step"), [("on_before_optimizer_step", 4), ("on_test_batch_begin", 5)])
def test_steps_per_epoch_resumes_after_ctrl_c_at_an_epoch_end(hook, step, tmp_path):
    options = {"epochs": 4, "steps_per_epoch": 5, "save_freq": "epoch"}
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"], **options)
    interrupt = LambdaCallback(
        **{hook: lambda *_: interrupt.model.state.step == step and signal.raise_signal(signal.SIGINT)}
    )
    assert program(tmp_path / "stopped", LOADERS["shuffled"], interrupt, **options)[0].history.interrupted
    assert_same_run(uninterrupted, stop_and_resume(tmp_path / "stopped", LOADERS["shuffled"], 8, **options))


def test_metrics_of_all_predictions_are_resumed(tmp_path):
    metrics = ("accuracy", "auroc", "f1")
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"], metrics=metrics)
    assert_same_run(uninterrupted, stop_and_resume(tmp_path / "stopped", LOADERS["shuffled"], 10, metrics=metrics))


class CountingMetric(Metric):
    """Counts in plain numbers and tensors, like most custom metrics."""

    name = "counted"

    def reset(self):
        self.hits, self.rows = 0, torch.zeros(())

    def update(self, y_pred, y, sample_weight=None):
        self.hits += int((y_pred.argmax(1) == y).sum())
        self.rows += len(y)

    def compute(self):
        return self.hits / self.rows


class ArrayMetric(Metric):
    """Has NumPy arrays, which a checkpoint does not contain."""

    name = "arrays"

    def reset(self):
        self.arrays = []

    def update(self, y_pred, y, sample_weight=None):
        self.arrays.append(y.numpy())

    def compute(self):
        return float(np.concatenate(self.arrays).mean())


def test_a_custom_metric_resumes_in_the_middle_of_an_epoch(tmp_path):
    uninterrupted = program(tmp_path / "a", LOADERS["shuffled"], metrics=[CountingMetric()])
    resumed = stop_and_resume(tmp_path / "b", LOADERS["shuffled"], 3, metrics=[CountingMetric()])
    assert_same_run(resumed, uninterrupted)


def test_a_metric_without_saved_values_is_a_warning(tmp_path):
    *_, messages = stop_and_resume(tmp_path, LOADERS["shuffled"], 3, metrics=[ArrayMetric()])
    assert any("no values of the metric 'arrays'" in message for message in messages)


def test_the_loss_scale_is_resumed(tmp_path, monkeypatch):
    # fp16 is slow on a CPU, but it works.
    monkeypatch.setattr("easytorch.strategies.base.check_precision", lambda device, dtype: None)
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"], precision="fp16")
    # The loss overflows once.
    assert uninterrupted[0].strategy.state_dict()["scaler"]["scale"] == 2.0**15
    assert_same_run(uninterrupted, stop_and_resume(tmp_path / "stopped", LOADERS["shuffled"], 10, precision="fp16"))
    with pytest.raises(SimulatedCrash):
        program(tmp_path / "mutated", LOADERS["shuffled"], 10, precision="fp16")
    path, content = rotation.read_newest(tmp_path / "mutated")
    content["strategy"]["scaler"]["scale"] = 2.0**10
    files.write(path, content)
    with pytest.raises(AssertionError):
        assert_same_run(uninterrupted, program(tmp_path / "mutated", LOADERS["shuffled"], precision="fp16"))


class NoisyDataset(AugmentedDataset):
    """Augments with the NumPy generator ``rng``."""

    def __init__(self, rng):
        self.rng = rng

    def __getitem__(self, index):
        return X[index] + 0.1 * self.rng.normal(), Y[index]


class ShuffledSampler(CustomSampler):
    def __init__(self, rng):
        self.rng = rng


class NoisyCollate:
    def __init__(self, rng):
        self.rng = rng

    def __call__(self, samples):
        x, y = default_collate(samples)
        return x + 0.1 * self.rng.normal(), y


class CachedLoader(DataLoader):
    """Loads all batches once."""

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
def test_augmentation_by_any_numpy_generator_is_resumed(kind, tmp_path):
    def loader():
        return DataLoader(NoisyDataset(GENERATORS[kind]()), 8)

    assert_same_run(program(tmp_path / "a", loader), stop_and_resume(tmp_path / "b", loader, 10))


RANDOM_LOADERS = {
    "sampler": lambda: DataLoader(ROWS, 8, sampler=ShuffledSampler(np.random.RandomState(3))),
    "collation": lambda: DataLoader(ROWS, 8, collate_fn=NoisyCollate(np.random.default_rng(3))),
}


@pytest.mark.parametrize("kind", RANDOM_LOADERS)
def test_generators_of_samplers_and_collation_are_resumed(kind, tmp_path):
    uninterrupted = program(tmp_path / "a", RANDOM_LOADERS[kind])
    assert_same_run(uninterrupted, stop_and_resume(tmp_path / "b", RANDOM_LOADERS[kind], 10))


def test_generators_of_the_validation_data_are_resumed(tmp_path):
    fit = {"validation_data": lambda: DataLoader(NoisyDataset(np.random.default_rng(3)), 8)}
    uninterrupted = program(tmp_path / "a", LOADERS["shuffled"], **fit)
    assert_same_run(uninterrupted, stop_and_resume(tmp_path / "b", LOADERS["shuffled"], 10, **fit))


def test_a_loader_without_sampler_calls_skips_used_batches(tmp_path):
    uninterrupted = program(tmp_path / "a", lambda: CachedLoader(ROWS, 8))
    resumed = stop_and_resume(tmp_path / "b", lambda: CachedLoader(ROWS, 8), 10)
    assert_same_run(uninterrupted, resumed)
    assert any("CachedLoader has no sampler that can skip" in message for message in resumed[2])


def test_a_run_with_several_stops_resumes_exactly(tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"])
    for step in (2, 3, 7, 9, 14):
        with pytest.raises(SimulatedCrash):
            program(tmp_path / "stopped", LOADERS["shuffled"], step)
    assert_same_run(uninterrupted, program(tmp_path / "stopped", LOADERS["shuffled"]))


def test_skipped_samples_are_not_loaded(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, LOADERS["random augmentation"], 5)
    AugmentedDataset.loaded = 0
    program(tmp_path, LOADERS["random augmentation"])
    assert AugmentedDataset.loaded == 2 * 50 - 5 * 8


@pytest.mark.parametrize(
    ("make_data", "is_loaded"),
    [
        (lambda: [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)], False),
        (lambda: iter_batches, True),
    ],
    ids=["list", "function"],
)
def test_data_without_a_sampler_is_replayed(make_data, is_loaded, tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", make_data)
    resumed = stop_and_resume(tmp_path / "stopped", make_data, 10)
    assert_same_run(uninterrupted, resumed)
    warned = any("3 batches that were used before are loaded again" in message for message in resumed[2])
    assert warned == is_loaded


def iter_batches():
    return iter([(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)])


def test_a_stateful_loader_is_resumed_from_its_state(tmp_path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make_data():
        return stateful.StatefulDataLoader(ROWS, 8, shuffle=True)

    uninterrupted = program(tmp_path / "uninterrupted", make_data)
    for step in STEPS:
        assert_same_run(uninterrupted, stop_and_resume(tmp_path / str(step), make_data, step))


def test_more_epochs_continue_a_finished_run(tmp_path):
    uninterrupted = program(tmp_path / "four", LOADERS["shuffled"], epochs=4)
    program(tmp_path / "two", LOADERS["shuffled"], epochs=2)
    assert_same_run(uninterrupted, program(tmp_path / "two", LOADERS["shuffled"], epochs=4))


def test_seeded_data_changes_per_epoch_not_with_the_workers():
    def draw(workers):
        batches = []
        # A Subset hides the seeded dataset.
        data = torch.utils.data.Subset(seeded(AugmentedDataset()), range(16))
        model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
        record = LambdaCallback(
            on_train_batch_begin=lambda batch, logs: batches.append(model.train_data.window[0][0].clone())
        )
        # Two fits of two epochs.
        for _ in range(2):
            model.fit(DataLoader(data, 16, num_workers=workers), 2, callbacks=[record], verbose=0)
        return batches

    serial, parallel = draw(0), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))
    assert all(not torch.equal(serial[i], serial[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("index", [np.int64(3), torch.tensor(3)], ids=["NumPy", "torch"])
def test_seeded_samples_do_not_depend_on_the_type_of_the_index(index):
    rows = seeded(AugmentedDataset())
    assert torch.equal(rows[index][0], rows[3][0])


def test_a_finished_run_is_not_trained_again(tmp_path):
    finished = program(tmp_path, LOADERS["shuffled"])
    repeated = program(tmp_path, LOADERS["shuffled"])
    assert_same_run(finished, repeated)
    assert repeated[0].state.step == 14


def test_a_run_stopped_by_a_callback_is_not_continued(tmp_path):
    def count_epochs():
        model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.0)
        callbacks = [EarlyStopping("loss", patience=1), EarlyStopping("loss", patience=4)]
        return len(model.fit(X, Y, epochs=8, shuffle=False, resume=tmp_path, callbacks=callbacks, verbose=0)["loss"])

    assert [count_epochs(), count_epochs()] == [2, 2]


def test_resume_accepts_a_folder_or_a_checkpoint_file(tmp_path):
    def run(resume, epochs=3, plug=None):
        torch.manual_seed(0)
        model = Model(DropoutNet(), device="cpu").compile("adam", "cross_entropy")
        callbacks = [CrashAfter(plug)] if plug else []
        model.fit(LOADERS["shuffled"](), epochs, resume=resume, callbacks=callbacks, verbose=0)
        return model

    uninterrupted = run(None)
    with pytest.raises(SimulatedCrash):
        run(tmp_path / "run", plug=16)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["step-0000000007.pt", "step-0000000014.pt"]
    assert same_weights(run(tmp_path / "run").module, uninterrupted.module)
    assert same_weights(run(tmp_path / "run" / "step-0000000014.pt").module, uninterrupted.module)


# The tests above depend on every part of a checkpoint: a changed part changes the end of the run.

PARTS = {
    "weights": lambda content: content["module"].update(program_start()),
    "optimizer": lambda content: content["optimizer"]["state"].clear(),
    "random states": lambda content: content["train_data"].update(random=random_of_another_seed()),
    "order of the data": lambda content: content["train_data"]["rng_at_start"].update(random=random_of_another_seed()),
    "position in the data": lambda content: content["train_data"].update(batches_used=0, order_checksum=None),
    "totals of the metrics": lambda content: content["metrics"].update(terms={}),
    "history": lambda content: content["history"].update(epoch=torch.tensor([]), columns={}, measured={}),
    "step": lambda content: content["state"].update(epoch=0),
    "schedule": lambda content: callback_state(content, "LRScheduler")["scheduler"].update(last_epoch=0),
    "average": lambda content: callback_state(content, "EMA")["average"].update(n_averaged=torch.tensor(0)),
    "early stopping": lambda content: callback_state(content, "EarlyStopping").update(wait=4, best=-1.0),
}


def program_start():
    torch.manual_seed(0)
    return DropoutNet().state_dict()


def random_of_another_seed():
    with preserve_rng_state():
        torch.manual_seed(99)
        return get_rng_state()


def callback_state(content, name):
    return next(state for key, state in content["callbacks"] if key == name)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_checkpoint_is_needed(part, tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["shuffled"], epochs=3)
    with pytest.raises(SimulatedCrash):
        program(tmp_path / "stopped", LOADERS["shuffled"], 10, epochs=3)
    path, content = rotation.read_newest(tmp_path / "stopped")
    PARTS[part](content)
    files.write(path, content)
    try:
        resumed = program(tmp_path / "stopped", LOADERS["shuffled"], epochs=3)
    except ResumeError:
        return
    with pytest.raises(AssertionError):
        assert_same_run(uninterrupted, resumed)


@pytest.mark.parametrize("generator", ["python", "numpy", "torch"])
def test_the_state_of_every_generator_is_needed(generator, tmp_path):
    uninterrupted = program(tmp_path / "uninterrupted", LOADERS["random augmentation"])
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
        assert_same_run(uninterrupted, program(tmp_path / "stopped", LOADERS["random augmentation"]))
