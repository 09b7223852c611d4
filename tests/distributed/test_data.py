"""Many processes: every sample once, numbers that are those of one process, decisions that all of them take alike."""

from __future__ import annotations

import os
import signal
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from easytorch import DataParallel, Mean, Metric, Model
from easytorch.callbacks import Callback, CSVLogger, EarlyStopping, ReduceLROnPlateau, TerminateOnNaN
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.data.sharding import PreshardedBatchSampler, shard_loader
from easytorch.distributed.process_group import SingleProcess
from tests.loops import blobs, mlp
from tests.many import furthest, together

X, Y = blobs(71)


class FakeGroup(SingleProcess):
    """A rank without other ranks."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def seed_per_rank(self):
        return None


def rank():
    return int(os.environ.get("RANK", 0))


def compiled(net=None, **options):
    torch.manual_seed(0)
    net = (mlp() if net is None else net).double()
    return Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy", **options)


# Who has which batch


ROWS = TensorDataset(torch.arange(50))


def indices(loader, size, training):
    """Return the batches of each process."""
    return [
        [b if isinstance(b, list) else [b] for b in shard_loader(loader, FakeGroup(i, size), training).batch_sampler]
        for i in range(size)
    ]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", range(1, 25))
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_sample_is_there_once_in_the_rounds_of_one_process(size, count, batch_size):
    loader = DataLoader(TensorDataset(torch.arange(count)), batch_size)
    own = indices(loader, size, training=True)
    rounds = [[index for mine in own if i < len(mine) for index in mine[i]] for i in range(max(map(len, own)))]
    whole = list(BatchSampler(range(count), batch_size * size, drop_last=False))
    assert rounds == whole
    last = [len(mine[-1]) for mine in own if len(mine) == len(whole)]
    assert max(last) - min(last) <= 1
    assert min(last) > 1 or len(last) == len(whole[-1]) == 1  # BatchNorm cannot take a single sample
    assert len(shard_loader(loader, FakeGroup(size - 1, size), True)) == len(whole)


@pytest.mark.parametrize("size", [2, 3])
def test_evaluation_has_the_batches_of_one_process(size):
    loader = DataLoader(ROWS, 7)
    own = indices(loader, size, training=False)
    assert [own[i % size][i // size] for i in range(8)] == list(BatchSampler(range(50), 7, drop_last=False))
    assert [len(shard_loader(loader, FakeGroup(i, size), False)) for i in range(size)] == [len(mine) for mine in own]


def test_what_is_dropped_is_what_is_less_than_a_round():
    own = indices(DataLoader(ROWS, 8, drop_last=True), 2, training=True)
    assert [len(mine) for mine in own] == [3, 3]
    with pytest.raises(ValueError, match="fewer batches than the 2 processes"):
        EpochIterator(DataLoader(ROWS, 40, drop_last=True), group=FakeGroup(0, 2))


def test_batches_of_a_sampler_of_ones_own_stay_whole():
    class Longer:
        def __iter__(self):
            return iter([[1, 2], [3], [4, 5, 6], [7, 8], [9, 10, 11]])

        def __len__(self):
            return 5

    assert indices(DataLoader(ROWS, batch_sampler=Longer()), 2, True) == [
        [[1, 2], [4, 5, 6], [9, 10, 11]],
        [[3], [7, 8]],
    ]


def test_a_sampler_that_knows_the_processes_is_left_as_it_is():
    loader = DataLoader(ROWS, 4, sampler=DistributedSampler(ROWS, 3, 1, shuffle=False))
    twin = shard_loader(loader, FakeGroup(1, 3), training=True)
    assert type(twin.batch_sampler) is PreshardedBatchSampler
    assert list(twin.batch_sampler) == list(loader.batch_sampler)
    assert twin.batch_sampler.rounds == [(4, 12)] * 4 + [(1, 3)]
    measured = shard_loader(loader, FakeGroup(1, 3), training=False)  # without what it repeats
    assert list(measured.batch_sampler) == list(BatchSampler(range(50), 4, drop_last=False))[1::3]


def test_a_stream_is_taken_in_turns():
    stream = [torch.full((2, 1), i) for i in range(5)]
    own = [list(shard_loader(stream, FakeGroup(i, 2), training=False)) for i in range(2)]
    assert [[int(batch[0]) for batch in mine] for mine in own] == [[0, 2, 4], [1, 3]]
    turns = shard_loader(stream, FakeGroup(1, 2), training=True)
    assert len(list(turns)) == len(turns) == 3
    assert turns.rounds == [(2, 4), (2, 4), (0, 2)]


# Measuring and predicting


class Bias(Metric):
    name, mode = "bias", None

    def reset(self):
        self.mean = Mean()

    def update(self, y_pred, y, sample_weight=None):
        self.mean.add_sum(y_pred.sum(), y.numel())

    def compute(self):
        return self.mean.compute()


class Forgetful(Metric):
    name = "forgetful"

    def reset(self):
        self.total = 0.0

    def update(self, y_pred, y, sample_weight=None):
        self.total = self.total + y_pred.sum()

    def compute(self):
        return self.total


METRICS = ["accuracy", "top_2_accuracy", Bias(), "auroc", "f1", "cohen_kappa"]


def measured(metrics, loader=None):
    model = compiled(metrics=metrics)
    data = (X.double(), Y) if loader is None else loader()
    scores = model.evaluate(data, verbose=0) if loader else model.evaluate(*data, batch_size=8, verbose=0)
    steps = list(model.evaluate(*data, batch_size=8, steps=5, verbose=0)) if loader is None else None
    return dict(scores.items()), steps


@pytest.mark.parametrize("processes", [2, 3])
def test_an_evaluation_is_that_of_one_process(processes):
    pytest.importorskip("torchmetrics")
    (alone, few), several = measured(METRICS), together(measured, METRICS, processes=processes)
    for scores, steps in several:
        assert scores == pytest.approx(alone, rel=1e-12)
        assert scores["accuracy"] == alone["accuracy"]
        assert steps == pytest.approx(few, rel=1e-12)


def test_measures_without_batches_in_some_process_are_those_of_the_others():
    pytest.importorskip("torchmetrics")

    def two_batches():
        return [(X[:8].double(), Y[:8]), (X[8:16].double(), Y[8:16])]

    (alone, _), several = measured(METRICS, two_batches), together(measured, METRICS, two_batches, processes=3)
    assert all(scores == pytest.approx(alone, rel=1e-12) for scores, _ in several)


def test_a_metric_that_cannot_be_joined_says_so():
    with pytest.raises(RuntimeError, match="'forgetful' cannot be merged across ranks"):
        together(measured, [Forgetful()])


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return {"logits": self.head(x), "norm": x.norm(dim=1)}


def predicted(folder):
    torch.manual_seed(rank())
    net = Several()
    model = Model(net, device="cpu").compile("sgd", "cross_entropy")
    x = torch.arange(71 * 8.0).reshape(71, 8)
    outputs = model.predict(x, batch_size=4, verbose=0)
    kept = model.predict(x, batch_size=4, to=folder / "outputs.npy", verbose=0)
    with torch.no_grad():
        whole = net(x)
    few = model.predict(x, batch_size=4, steps=3, verbose=0)
    same = [
        np.allclose(outputs[key], whole[key], rtol=1e-6) and np.array_equal(outputs[key], kept[key]) for key in outputs
    ]
    return all(same) and len(few["norm"]) == 12


@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_gets_all_outputs_in_order(processes, tmp_path):
    assert all(together(predicted, tmp_path, processes=processes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs.logits.npy", "outputs.norm.npy"]


# Training on every kind of data


class Numbers(IterableDataset):
    def __iter__(self):
        for i in range(50):
            yield X[i].double(), Y[i]


class Uneven(IterableDataset):
    """Data that each process has of its own: 7 batches in one, 5 in the other."""

    def __iter__(self):
        count = 7 if rank() == 0 else 5
        for i in range(8 * count):
            yield X[(i + 13 * rank()) % 71].double(), Y[(i + 13 * rank()) % 71]


class OwnBatches:
    def __len__(self):
        return 7

    def __iter__(self):
        order = torch.randperm(50).tolist()
        return iter([order[i : i + 8] for i in range(0, 50, 8)])


class Slow(Dataset):
    targets = Y

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index].double(), Y[index]


FIRST = TensorDataset(X[:50].double(), Y[:50])
KINDS = {
    "shuffled": lambda: DataLoader(Slow(), 8, shuffle=True),
    "two workers": lambda: DataLoader(Slow(), 8, shuffle=True, num_workers=1),
    "in memory": lambda: DataLoader(FIRST, 8, shuffle=True),
    "own generator": lambda: DataLoader(
        FIRST, 8, sampler=RandomSampler(FIRST, generator=torch.Generator().manual_seed(rank()))
    ),
    "own batch sampler": lambda: DataLoader(Slow(), batch_sampler=OwnBatches()),
    "a stream": lambda: DataLoader(Numbers(), 8),
    "a list": lambda: [(X[i : i + 8].double(), Y[i : i + 8]) for i in range(0, 50, 8)],
    "a generator function": lambda: lambda: ((X[i : i + 8].double(), Y[i : i + 8]) for i in range(0, 50, 8)),
    "packed by a collate of its own": lambda: DataLoader(
        Slow(),
        8,
        collate_fn=lambda rows: (torch.stack([x for x, _ in rows] * 2), torch.stack([y for _, y in rows] * 2)),
    ),
}


def trained(kind, accumulate, **options):
    torch.manual_seed(4)
    model = compiled(metrics=["accuracy"], gradient_accumulation_steps=accumulate, **options)
    torch.manual_seed(4)
    data = KINDS[kind]()
    model.fit(data, 2, verbose=0)
    return model.module.state_dict(), dict(model.history.history), len(model.history.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_data_two_processes_are_one_that_takes_two_batches_for_an_update(kind):
    alone, history, _ = trained(kind, 2)
    for weights, logs, _ in together(trained, kind, 1):
        assert furthest(alone, weights) < 1e-10
        assert logs["loss"] == pytest.approx(history["loss"], rel=1e-10)
        assert logs["accuracy"] == pytest.approx(history["accuracy"], rel=1e-12)


def uneven(sync_batchnorm):
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) if sync_batchnorm else mlp()
    strategy = DataParallel("cpu", split_data=False, sync_batchnorm=sync_batchnorm)
    model = compiled(net, strategy=strategy, metrics=["accuracy"])
    model.fit(DataLoader(Uneven(), 8), 2, validation_data=DataLoader(Uneven(), 8), verbose=0)
    return model.module.state_dict(), dict(model.history.history), model.state.step


@pytest.mark.parametrize("sync_batchnorm", [False, True])
def test_who_has_fewer_batches_waits_for_the_others(sync_batchnorm):
    (first, history, steps), (second, logs, _) = together(uneven, sync_batchnorm)
    assert steps == 14
    assert furthest(first, second) < 1e-12
    assert history == logs


def given():
    torch.distributed.init_process_group("gloo")  # a sampler of torch asks for it
    sampler = DistributedSampler(FIRST)
    model = compiled()
    model.fit(DataLoader(FIRST, 4, sampler=sampler), 3, verbose=0)
    return model.module.state_dict(), sampler.epoch


def test_a_distributed_sampler_is_told_the_epoch():
    (first, epoch), (second, _) = together(given)
    assert epoch == 2
    assert furthest(first, second) == 0


class OwnUpdate(Model):
    def update(self, window):
        (batch,) = window
        outputs = self.strategy.run(self.train_step, batch)
        self.strategy.backward(outputs["loss"])
        self.strategy.step(self.optimizer)
        self.optimizer.zero_grad()
        self.metrics.record(outputs, self.batch_size(batch))


def by_own_update():
    torch.manual_seed(0)
    model = OwnUpdate(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    model.fit(TensorDataset(X[:49], Y[:49]), 2, batch_size=8, verbose=0)
    return model.module.state_dict(), dict(model.history.history)


def test_an_update_of_ones_own_always_has_a_batch():
    (first, history), (second, logs) = together(by_own_update)
    assert furthest(first, second) == 0
    assert history == logs


# Deciding alike


class OneStops(Callback):
    def on_train_batch_end(self, batch, logs=None):
        if rank() == 1 and self.model.state.step == 5:
            self.model.stop_training = True


class OneIsSignalled(Callback):
    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_train_batch_end(self, batch, logs=None):
        if rank() == 1 and self.model.state.step == self.step:
            os.kill(os.getpid(), self.number)


def stopped(*callbacks, **options):
    model = compiled()
    code = None
    try:
        model.fit(FIRST, 4, batch_size=4, callbacks=list(callbacks), verbose=0, **options)
    except SystemExit as ending:
        code = ending.code
    return model.state.step, model.history.interrupted, code, model.module.state_dict()


def test_where_one_wishes_to_stop_all_stop_after_the_next_update():
    (first, _, _, weights), (second, _, _, others) = together(stopped, OneStops())
    assert first == second == 6
    assert furthest(weights, others) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_a_signal_to_one_ends_all_after_the_next_update(number, code):
    several = together(stopped, OneIsSignalled(number, 5))
    assert [(step, interrupted, ended) for step, interrupted, ended, _ in several] == [(6, True, code)] * 2


def monitored():
    model = compiled(metrics=["accuracy"])
    plateau = ReduceLROnPlateau("val_loss", patience=1, min_delta=0.5)
    early = EarlyStopping("val_accuracy", patience=3, restore_best_weights=True)
    model.fit(FIRST, 20, batch_size=4, validation_data=(X[50:].double(), Y[50:]), callbacks=[plateau, early], verbose=0)
    return early.stopped_epoch, early.best_epoch, model.history["lr"], model.module.state_dict()


def test_early_stopping_and_plateau_decide_alike():
    (epoch, best, rates, weights), (other, other_best, other_rates, others) = together(monitored)
    assert epoch is not None
    assert (epoch, best, rates) == (other, other_best, other_rates)
    assert furthest(weights, others) == 0


def with_a_bad_sample():
    x = X[:50].double().clone()
    x[37] = float("nan")
    model = compiled()
    nan = TerminateOnNaN()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(DataLoader(TensorDataset(x, Y[:50]), 4), 4, callbacks=[nan], verbose=0)
    finite = all(bool(value.isfinite().all()) for value in model.module.state_dict().values())
    return model.state.step, nan.report, finite


def test_a_loss_that_is_not_finite_in_one_ends_all_before_the_weights_take_harm():
    (first, report, finite), (second, other, also) = together(with_a_bad_sample)
    assert first == second == 5
    assert finite
    assert also
    assert "samples of the dataset: 37" in other
    assert "see the report of another rank" in report


def shown(folder):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        model = compiled()
        model.fit(
            FIRST, 2, batch_size=4, callbacks=[CSVLogger(folder / f"{rank()}.csv"), EarlyStopping("loss", verbose=1)]
        )
        model.evaluate(FIRST)
    return out.getvalue()


def test_process_0_alone_shows_and_logs(tmp_path):
    first, second = together(shown, tmp_path)
    assert "Epoch 2/2" in first
    assert "Evaluated on" in first
    assert second == ""
    assert [path.name for path in tmp_path.iterdir()] == ["0.csv"]


class Clocks(Callback):
    def __init__(self):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(self.model.strategy.control.now())
        time.sleep(0.01 * rank())


def clocks():
    own = Clocks()
    compiled().fit(FIRST, 1, batch_size=4, callbacks=[own], verbose=0)
    return own.times


def test_the_clock_is_that_of_process_0():
    first, second = together(clocks)
    assert first == second == sorted(first)
    assert first[-1] > 0
