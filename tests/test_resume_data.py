"""Resumed runs equal uninterrupted runs, wherever data keeps its state."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from easytorch import Model, ResumeError
from easytorch.callbacks import BackupAndRestore, Callback, LambdaCallback
from easytorch.data import in_memory
from tests import common_sources
from tests.cases import slow_after_first
from tests.common_resume import (
    LOADERS,
    ROWS,
    CrashAfter,
    CustomSampler,
    DropoutNet,
    SimulatedCrash,
    X,
    Y,
    program,
    stop_and_resume,
)
from tests.common_sources import DATASETS, SAMPLERS, STREAMS, OwnStream, StandIn, StandInWithLength
from tests.loops import same_weights
from tests.test_resume import assert_same_run

# The last update before the crash, and how often checkpoints are written: in an epoch, at its last update, and between epochs.
STOPS = [(2, 1), (7, 1), (8, "epoch"), (15, "epoch"), (19, 1)]


def check_stops(make_loader, folder, stops=STOPS, **options):
    """Check that the run equals an undisturbed one after each stop; return the warnings."""

    def start(*args, **more):
        common_sources.restart()
        return program(*args, epochs=3, **options, **more)

    def make_fresh():
        common_sources.restart()
        return make_loader()

    undisturbed = start(folder / "undisturbed", make_fresh)
    messages = []
    for step, save_freq in stops:
        run = stop_and_resume(
            folder / f"{step}-{save_freq}", make_fresh, step, epochs=3, save_freq=save_freq, **options
        )
        assert_same_run(undisturbed, run)
        messages += [message for message in run[2] if "worker processes in total" not in message]  # on one core
    return messages


@pytest.mark.parametrize("place", slow_after_first(DATASETS))
def test_generators_of_samples_are_resumed_in_any_place(place, tmp_path):
    assert not check_stops(lambda: DataLoader(DATASETS[place](), 8, shuffle=True), tmp_path)


@pytest.mark.parametrize("kind", slow_after_first(SAMPLERS))
def test_the_state_of_samplers_and_collation_is_resumed(kind, tmp_path):
    assert not check_stops(SAMPLERS[kind], tmp_path)


@pytest.mark.parametrize("kind", slow_after_first(STREAMS))
def test_streams_with_a_state_of_their_own_are_resumed(kind, tmp_path):
    messages = check_stops(STREAMS[kind], tmp_path)
    assert all("loaded again and discarded" in m or "workers load" in m for m in messages)


# Loaders that save themselves


def interrupt_at(hook, step):
    """Return a callback that sends Ctrl-C in ``hook`` once, after the update ``step``."""

    def interrupt(*_):
        if callback.model.state.step == step and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGINT)

    sent = []
    callback = LambdaCallback(**{hook: interrupt})
    return callback


def check_interrupts(make_loader, folder, steps=(7, 14), hook="on_test_batch_begin", **options):
    """Check that a run that is interrupted in a hook after each of ``steps`` equals an undisturbed one."""
    undisturbed = program(folder / "undisturbed", make_loader, epochs=3, **options)
    for step in steps:
        place = folder / f"{hook}-{step}"
        first = program(place, make_loader, interrupt_at(hook, step), epochs=3, **options)
        assert first[0].history.interrupted
        assert_same_run(undisturbed, program(place, make_loader, epochs=3, **options))


def test_a_loader_that_saves_itself_is_resumed(tmp_path):
    assert not check_stops(StandInWithLength, tmp_path / "length")
    # Without a length, it is unknown after update 7 whether the pass has ended.
    assert not check_stops(StandIn, tmp_path / "no length", [stop for stop in STOPS if stop != (7, 1)])


@pytest.mark.parametrize("kind", [StandIn, StandInWithLength])
def test_an_epoch_of_a_stateful_loader_never_runs_twice(kind, tmp_path):
    check_interrupts(kind, tmp_path / "validation")
    # The last window is short.
    check_stops(kind, tmp_path / "window", [(2, 1), (3, 1), (4, "epoch")], accumulate=3)


def make_stateful(data=ROWS, **options):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    return stateful.StatefulDataLoader(data, 8, **options)


def make_nodes():
    nodes = pytest.importorskip("torchdata.nodes", reason="torchdata is not installed")
    sampler = RandomSampler(ROWS, generator=torch.Generator().manual_seed(3))
    rows = nodes.MapStyleWrapper(ROWS, sampler)
    return nodes.Loader(nodes.Mapper(nodes.Batcher(rows, batch_size=8, drop_last=False), default_collate))


TORCHDATA = {
    "shuffled": lambda: make_stateful(shuffle=True),
    "own generator": lambda: make_stateful(shuffle=True, generator=torch.Generator().manual_seed(3)),
    "stream": lambda: make_stateful(OwnStream()),
    "nodes": make_nodes,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_after_first(TORCHDATA))
def test_loaders_of_torchdata_are_resumed_at_the_end_of_a_pass(kind, tmp_path):
    make_loader = TORCHDATA[kind]
    check_stops(make_loader, tmp_path / "kill")
    check_interrupts(make_loader, tmp_path / "interrupt")
    check_stops(make_loader, tmp_path / "short", [(2, 1), (3, 1), (4, "epoch")], accumulate=3)
    check_stops(make_loader, tmp_path / "steps", [(3, 1), (5, 1), (7, 1), (8, 1), (14, 1)], steps_per_epoch=5)


# Validation


class NoisyValidation(Dataset):
    def __init__(self):
        self.rngs = {"noise": np.random.default_rng(3)}

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return X[index] + self.rngs["noise"].normal(), Y[index]


@pytest.mark.parametrize("hook", ["on_test_batch_begin", "on_test_batch_end"])
def test_an_interrupted_validation_is_repeated_exactly(hook, tmp_path):
    options = {"validation_data": lambda: DataLoader(NoisyValidation(), 8)}
    check_interrupts(LOADERS["shuffled"], tmp_path, hook=hook, **options)


def validation_batches():
    for number in range(100):
        yield X[:8] + 0.01 * number, Y[:8]


def test_a_validation_iterator_continues_after_a_restart(tmp_path):
    options = {"validation_data": validation_batches, "validation_steps": 2}
    messages = check_stops(LOADERS["shuffled"], tmp_path / "kill", **options)
    assert sum("batches of validation_data that were used before are loaded again" in m for m in messages) == 3
    check_interrupts(LOADERS["shuffled"], tmp_path / "interrupt", **options)


# Generators next to the data


class NoisyNet(DropoutNet):
    def __init__(self):
        super().__init__()
        self.noise = {"rng": torch.Generator().manual_seed(7)}

    def forward(self, x):
        return self.net(x + 0.1 * torch.randn(x.shape, generator=self.noise["rng"]))


class NoisyModel(Model):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rng = np.random.default_rng(7)

    def train_step(self, batch):
        return super().train_step([batch[0] + 0.1 * self.rng.normal(), batch[1]])


class NoisyRate(Callback):
    def __init__(self):
        self.rng = random.Random(7)

    def on_train_batch_begin(self, batch, logs=None):
        for group in self.model.optimizer.param_groups:
            group["lr"] = 0.1 + 0.1 * self.rng.random()


class NoisyLoss:
    def __init__(self):
        self.rng = random.Random(7)

    def __call__(self, y_pred, y):
        return (0.5 + self.rng.random()) * nn.functional.cross_entropy(y_pred, y)


PARTS = {
    "module": {"net": NoisyNet},
    "model": {"kind": NoisyModel},
    "callback": {"callback": NoisyRate},
    "loss": {"loss": NoisyLoss},
}


@pytest.mark.parametrize("part", PARTS)
def test_generators_of_the_model_and_callbacks_are_resumed(part, tmp_path):
    def run(folder, crash=None, save_freq=1):
        torch.manual_seed(0)
        options = {"net": DropoutNet, "kind": Model, "callback": Callback, "loss": lambda: "cross_entropy"} | PARTS[
            part
        ]
        model = options["kind"](options["net"](), device="cpu").compile("sgd", options["loss"](), lr=0.1)
        keeper = BackupAndRestore(folder, save_freq, delete_checkpoint=False)
        callbacks = [options["callback"](), keeper, *([crash] if crash else [])]
        options = {"callbacks": callbacks, "on_interrupt": "return", "verbose": 0}
        model.fit(LOADERS["shuffled"](), 3, validation_data=(X[:20], Y[:20]), **options)
        return model

    undisturbed = run(tmp_path / "undisturbed")
    for step, save_freq in STOPS[:4]:
        folder = tmp_path / f"{step}-{save_freq}"
        with pytest.raises(SimulatedCrash):
            run(folder, CrashAfter(step), save_freq)
        assert same_weights(run(folder).module, undisturbed.module)
    folder = tmp_path / "validation"
    assert run(folder, interrupt_at("on_test_batch_begin", 7)).history.interrupted
    resumed = run(folder)
    assert same_weights(resumed.module, undisturbed.module)
    assert resumed.history.history == undisturbed.history.history


def test_transforms_of_hugging_face_datasets_are_resumed(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def make_loader():
        rng = np.random.default_rng(3)

        def augment(rows):
            x = [torch.tensor(row) + 0.1 * rng.normal() for row in rows["x"]]
            return {"x": x, "y": [torch.tensor(label) for label in rows["y"]]}

        rows = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()}).with_transform(augment)
        return DataLoader(rows, 8, shuffle=True, collate_fn=as_pair)

    assert not check_stops(make_loader, tmp_path, STOPS[:4])


def as_pair(samples):
    batch = default_collate(samples)
    return batch["x"], batch["y"]


def test_seeded_data_with_a_generator_is_exact_with_workers(tmp_path):
    def make_loader():
        return DataLoader(DATASETS["seeded"](), 8, shuffle=True, num_workers=2)

    assert not check_stops(make_loader, tmp_path, STOPS[:3])


# Orders


class Unrepeatable(CustomSampler):
    """Draws from the system, which nothing restores."""

    def __init__(self):
        self.rng = random.SystemRandom()


def test_an_order_that_cannot_be_restored_is_a_warning(tmp_path):
    def make_loader():
        return DataLoader(ROWS, 8, sampler=Unrepeatable())

    *_, messages = stop_and_resume(tmp_path / "a", make_loader, 8, save_freq="epoch")
    assert len(messages) == 1
    assert "another order than in an uninterrupted run" in messages[0]
    assert "Define Unrepeatable.set_epoch(epoch)" in messages[0]
    with pytest.raises(ResumeError, match=r"another order.*Unrepeatable"):
        stop_and_resume(tmp_path / "b", make_loader, 8)


def test_a_missing_generator_is_a_warning(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, lambda: DataLoader(DATASETS["list"](), 8), 8)
    *_, messages = program(tmp_path, lambda: DataLoader(DATASETS["attribute of any name"](), 8))
    assert any("drew random numbers from loader.dataset.rngs[0], loader.dataset.rngs[1]" in m for m in messages)


class PlainSubclass(DataLoader):
    pass


SAME_ORDERS = {
    "pinned memory": lambda: DataLoader(ROWS, 8, shuffle=True, pin_memory=True),
    "a worker": lambda: DataLoader(ROWS, 8, shuffle=True, num_workers=1),
    "a subclass": lambda: PlainSubclass(ROWS, 8, shuffle=True),
    "samples in memory": lambda: DataLoader(in_memory(RowByRow(), verbose=0), 8, shuffle=True),
    "single samples": lambda: DataLoader(RowByRow(), 8, shuffle=True),
}


class RowByRow(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index], Y[index]


@pytest.mark.parametrize("kind", slow_after_first(SAME_ORDERS))
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_the_same_order_from_another_loader_is_resumed(kind, tmp_path):
    undisturbed = program(tmp_path / "undisturbed", LOADERS["shuffled"])
    for name, (before, after) in {"a": ("shuffled", kind), "b": (kind, "shuffled")}.items():
        loaders = LOADERS | SAME_ORDERS
        with pytest.raises(SimulatedCrash):
            program(tmp_path / name, loaders[before], 10)
        resumed = program(tmp_path / name, loaders[after])
        assert_same_run(undisturbed, resumed)


@pytest.mark.parametrize(("before", "after"), [(None, 2), (None, 7), (6, 7), (6, None)])
def test_another_number_of_steps_per_epoch_is_an_error(before, after, tmp_path):
    for step, save_freq in [(8, 1), (8, "epoch")]:
        folder = tmp_path / str(save_freq)
        with pytest.raises(SimulatedCrash):
            program(folder, LOADERS["shuffled"], step, steps_per_epoch=before, save_freq=save_freq)
        with pytest.raises(ResumeError, match=rf"steps_per_epoch={before}, and this program has {after}"):
            program(folder, LOADERS["shuffled"], steps_per_epoch=after)
