"""Data, metrics, predictions and decisions across ranks."""

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
from tests.common_resume import CustomBatchSampler
from tests.loops import blobs, mlp
from tests.many import furthest, run_ranks

X, Y = blobs(71)


class FakeGroup(SingleProcess):
    """A rank without other ranks."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def seed_per_rank(self):
        return None


def rank():
    return int(os.environ.get("RANK", 0))


def compiled_model(net=None, **options):
    torch.manual_seed(0)
    net = (mlp() if net is None else net).double()
    return Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy", **options)


# Batches of each rank


ROWS = TensorDataset(torch.arange(50))


def indices(loader, size, training):
    """Return the batches of each rank."""
    return [
        [b if isinstance(b, list) else [b] for b in shard_loader(loader, FakeGroup(i, size), training).batch_sampler]
        for i in range(size)
    ]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", range(1, 25))
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_ranks_share_each_batch_and_every_sample_appears_once(size, count, batch_size):
    loader = DataLoader(TensorDataset(torch.arange(count)), batch_size)
    rank_batches = indices(loader, size, training=True)
    rounds = [
        [index for batches in rank_batches if i < len(batches) for index in batches[i]]
        for i in range(max(map(len, rank_batches)))
    ]
    expected = list(BatchSampler(range(count), batch_size * size, drop_last=False))
    assert rounds == expected
    last = [len(batches[-1]) for batches in rank_batches if len(batches) == len(expected)]
    assert max(last) - min(last) <= 1
    # BatchNorm needs more than one sample.
    assert min(last) > 1 or len(last) == len(expected[-1]) == 1
    assert len(shard_loader(loader, FakeGroup(size - 1, size), True)) == len(expected)


@pytest.mark.parametrize("size", [2, 3])
def test_evaluation_batches_equal_one_process(size):
    loader = DataLoader(ROWS, 7)
    rank_batches = indices(loader, size, training=False)
    assert [rank_batches[i % size][i // size] for i in range(8)] == list(BatchSampler(range(50), 7, drop_last=False))
    assert [len(shard_loader(loader, FakeGroup(i, size), False)) for i in range(size)] == [
        len(batches) for batches in rank_batches
    ]


def test_drop_last_drops_less_than_one_batch_per_rank():
    rank_batches = indices(DataLoader(ROWS, 8, drop_last=True), 2, training=True)
    assert [len(batches) for batches in rank_batches] == [3, 3]
    with pytest.raises(ValueError, match="fewer batches than the 2 processes"):
        EpochIterator(DataLoader(ROWS, 40, drop_last=True), group=FakeGroup(0, 2))


def test_batches_of_a_custom_batch_sampler_are_not_split():
    class UnevenBatches:
        def __iter__(self):
            return iter([[1, 2], [3], [4, 5, 6], [7, 8], [9, 10, 11]])

        def __len__(self):
            return 5

    assert indices(DataLoader(ROWS, batch_sampler=UnevenBatches()), 2, True) == [
        [[1, 2], [4, 5, 6], [9, 10, 11]],
        [[3], [7, 8]],
    ]


def test_a_distributed_sampler_is_not_sharded_again():
    loader = DataLoader(ROWS, 4, sampler=DistributedSampler(ROWS, 3, 1, shuffle=False))
    twin = shard_loader(loader, FakeGroup(1, 3), training=True)
    assert type(twin.batch_sampler) is PreshardedBatchSampler
    assert list(twin.batch_sampler) == list(loader.batch_sampler)
    assert twin.batch_sampler.rounds == [(4, 12)] * 4 + [(1, 3)]
    # Evaluation drops the samples that DistributedSampler repeats.
    evaluation = shard_loader(loader, FakeGroup(1, 3), training=False)
    assert list(evaluation.batch_sampler) == list(BatchSampler(range(50), 4, drop_last=False))[1::3]


def test_ranks_take_the_batches_of_a_stream_in_turn():
    stream = [torch.full((2, 1), i) for i in range(5)]
    rank_batches = [list(shard_loader(stream, FakeGroup(i, 2), training=False)) for i in range(2)]
    assert [[int(batch[0]) for batch in batches] for batches in rank_batches] == [[0, 2, 4], [1, 3]]
    rank_stream = shard_loader(stream, FakeGroup(1, 2), training=True)
    assert len(list(rank_stream)) == len(rank_stream) == 3
    assert rank_stream.rounds == [(2, 4), (2, 4), (0, 2)]


# Evaluation and prediction


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


def evaluate_model(metrics, loader=None):
    model = compiled_model(metrics=metrics)
    data = (X.double(), Y) if loader is None else loader()
    scores = model.evaluate(data, verbose=0) if loader else model.evaluate(*data, batch_size=8, verbose=0)
    steps = list(model.evaluate(*data, batch_size=8, steps=5, verbose=0)) if loader is None else None
    return dict(scores.items()), steps


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 3])
def test_scores_equal_one_process(processes):
    pytest.importorskip("torchmetrics")
    (expected_scores, first_steps), rank_results = (
        evaluate_model(METRICS),
        run_ranks(evaluate_model, METRICS, processes=processes),
    )
    for scores, steps in rank_results:
        assert scores == pytest.approx(expected_scores, rel=1e-12)
        assert scores["accuracy"] == expected_scores["accuracy"]
        assert steps == pytest.approx(first_steps, rel=1e-12)


def test_a_rank_without_batches_gets_the_scores_of_the_others():
    pytest.importorskip("torchmetrics")

    def two_batches():
        return [(X[:8].double(), Y[:8]), (X[8:16].double(), Y[8:16])]

    (expected_scores, _), rank_results = (
        evaluate_model(METRICS, two_batches),
        run_ranks(evaluate_model, METRICS, two_batches, processes=3),
    )
    assert all(scores == pytest.approx(expected_scores, rel=1e-12) for scores, _ in rank_results)


def test_a_metric_that_cannot_be_merged_is_an_error():
    with pytest.raises(RuntimeError, match="'forgetful' cannot be merged across ranks"):
        run_ranks(evaluate_model, [Forgetful()])


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return {"logits": self.head(x), "norm": x.norm(dim=1)}


def predict_and_compare(folder):
    torch.manual_seed(rank())
    net = TwoOutputs()
    model = Model(net, device="cpu").compile("sgd", "cross_entropy")
    x = torch.arange(71 * 8.0).reshape(71, 8)
    outputs = model.predict(x, batch_size=4, verbose=0)
    file_outputs = model.predict(x, batch_size=4, to=folder / "outputs.npy", verbose=0)
    with torch.no_grad():
        expected = net(x)
    first_steps = model.predict(x, batch_size=4, steps=3, verbose=0)
    checks = [
        np.allclose(outputs[key], expected[key], rtol=1e-6) and np.array_equal(outputs[key], file_outputs[key])
        for key in outputs
    ]
    return all(checks) and len(first_steps["norm"]) == 12


@pytest.mark.parametrize("processes", [2, 3])
def test_every_rank_gets_all_outputs_in_order(processes, tmp_path):
    assert all(run_ranks(predict_and_compare, tmp_path, processes=processes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs.logits.npy", "outputs.norm.npy"]


# Training on every kind of data


class StreamDataset(IterableDataset):
    def __iter__(self):
        for i in range(50):
            yield X[i].double(), Y[i]


class UnevenStream(IterableDataset):
    """Separate data of each rank: 7 batches on rank 0, 5 on rank 1."""

    def __iter__(self):
        count = 7 if rank() == 0 else 5
        for i in range(8 * count):
            yield X[(i + 13 * rank()) % 71].double(), Y[(i + 13 * rank()) % 71]


class RowDataset(Dataset):
    targets = Y

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index].double(), Y[index]


ROWS_50 = TensorDataset(X[:50].double(), Y[:50])
KINDS = {
    "shuffled": lambda: DataLoader(RowDataset(), 8, shuffle=True),
    "two workers": lambda: DataLoader(RowDataset(), 8, shuffle=True, num_workers=1),
    "in memory": lambda: DataLoader(ROWS_50, 8, shuffle=True),
    "custom generator": lambda: DataLoader(
        ROWS_50, 8, sampler=RandomSampler(ROWS_50, generator=torch.Generator().manual_seed(rank()))
    ),
    "custom batch sampler": lambda: DataLoader(RowDataset(), batch_sampler=CustomBatchSampler()),
    "stream": lambda: DataLoader(StreamDataset(), 8),
    "list": lambda: [(X[i : i + 8].double(), Y[i : i + 8]) for i in range(0, 50, 8)],
    "generator function": lambda: lambda: ((X[i : i + 8].double(), Y[i : i + 8]) for i in range(0, 50, 8)),
    "custom collate_fn": lambda: DataLoader(
        RowDataset(),
        8,
        collate_fn=lambda rows: (torch.stack([x for x, _ in rows] * 2), torch.stack([y for _, y in rows] * 2)),
    ),
}


def train(kind, accumulate, **options):
    torch.manual_seed(4)
    model = compiled_model(metrics=["accuracy"], gradient_accumulation_steps=accumulate, **options)
    torch.manual_seed(4)
    data = KINDS[kind]()
    model.fit(data, 2, verbose=0)
    return model.module.state_dict(), dict(model.history.history), len(model.history.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process_with_two_batch_windows(kind):
    expected_weights, history, _ = train(kind, 2)
    for weights, logs, _ in run_ranks(train, kind, 1):
        assert furthest(expected_weights, weights) < 1e-10
        assert logs["loss"] == pytest.approx(history["loss"], rel=1e-10)
        assert logs["accuracy"] == pytest.approx(history["accuracy"], rel=1e-12)


def train_on_uneven_data(sync_batchnorm):
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) if sync_batchnorm else mlp()
    strategy = DataParallel("cpu", split_data=False, sync_batchnorm=sync_batchnorm)
    model = compiled_model(net, strategy=strategy, metrics=["accuracy"])
    model.fit(DataLoader(UnevenStream(), 8), 2, validation_data=DataLoader(UnevenStream(), 8), verbose=0)
    return model.module.state_dict(), dict(model.history.history), model.state.step


@pytest.mark.parametrize("sync_batchnorm", [False, True])
def test_a_rank_with_fewer_batches_waits_for_the_others(sync_batchnorm):
    (first, history, steps), (second, logs, _) = run_ranks(train_on_uneven_data, sync_batchnorm)
    assert steps == 14
    assert furthest(first, second) < 1e-12
    assert history == logs


def train_with_distributed_sampler():
    # The sampler needs the process group of torch.
    torch.distributed.init_process_group("gloo")
    sampler = DistributedSampler(ROWS_50)
    model = compiled_model()
    model.fit(DataLoader(ROWS_50, 4, sampler=sampler), 3, verbose=0)
    return model.module.state_dict(), sampler.epoch


def test_a_distributed_sampler_receives_the_epoch():
    (first, epoch), (second, _) = run_ranks(train_with_distributed_sampler)
    assert epoch == 2
    assert furthest(first, second) == 0


class CustomUpdate(Model):
    def update(self, window):
        (batch,) = window
        outputs = self.strategy.run(self.train_step, batch)
        self.strategy.backward(outputs["loss"])
        self.strategy.step(self.optimizer)
        self.optimizer.zero_grad()
        self.metrics.record(outputs, self.batch_size(batch))


def train_by_custom_update():
    torch.manual_seed(0)
    model = CustomUpdate(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    model.fit(TensorDataset(X[:49], Y[:49]), 2, batch_size=8, verbose=0)
    return model.module.state_dict(), dict(model.history.history)


def test_a_custom_update_always_has_a_batch():
    (first, history), (second, logs) = run_ranks(train_by_custom_update)
    assert furthest(first, second) == 0
    assert history == logs


# Decisions of all ranks


class StopOnRank1(Callback):
    def on_train_batch_end(self, batch, logs=None):
        if rank() == 1 and self.model.state.step == 5:
            self.model.stop_training = True


class SignalRank1(Callback):
    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_train_batch_end(self, batch, logs=None):
        if rank() == 1 and self.model.state.step == self.step:
            os.kill(os.getpid(), self.number)


def train_until_stop(*callbacks, **options):
    model = compiled_model()
    code = None
    try:
        model.fit(ROWS_50, 4, batch_size=4, callbacks=list(callbacks), verbose=0, **options)
    except SystemExit as exit_error:
        code = exit_error.code
    except KeyboardInterrupt:
        code = 130
    return model.state.step, model.history.interrupted, code, model.module.state_dict()


def test_stop_training_on_one_rank_stops_all_ranks():
    (first, _, _, weights), (second, _, _, others) = run_ranks(train_until_stop, StopOnRank1())
    assert first == second == 6
    assert furthest(weights, others) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_rank_stops_all_ranks(number, code):
    rank_results = run_ranks(train_until_stop, SignalRank1(number, 5))
    assert [(step, interrupted, exit_code) for step, interrupted, exit_code, _ in rank_results] == [(6, True, code)] * 2


def train_with_monitors():
    model = compiled_model(metrics=["accuracy"])
    plateau = ReduceLROnPlateau("val_loss", patience=1, min_delta=0.5)
    early = EarlyStopping("val_accuracy", patience=3, restore_best_weights=True)
    model.fit(
        ROWS_50, 20, batch_size=4, validation_data=(X[50:].double(), Y[50:]), callbacks=[plateau, early], verbose=0
    )
    return early.stopped_epoch, early.best_epoch, model.history["lr"], model.module.state_dict()


def test_early_stopping_and_plateau_agree_on_all_ranks():
    (epoch, best, rates, weights), (other, other_best, other_rates, others) = run_ranks(train_with_monitors)
    assert epoch is not None
    assert (epoch, best, rates) == (other, other_best, other_rates)
    assert furthest(weights, others) == 0


def train_with_nan_sample():
    x = X[:50].double().clone()
    x[37] = float("nan")
    model = compiled_model()
    nan = TerminateOnNaN()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(DataLoader(TensorDataset(x, Y[:50]), 4), 4, callbacks=[nan], verbose=0)
    finite = all(bool(value.isfinite().all()) for value in model.module.state_dict().values())
    return model.state.step, nan.report, finite


def test_a_nan_loss_of_one_rank_stops_all_with_finite_weights():
    (first, report, finite), (second, other, other_finite) = run_ranks(train_with_nan_sample)
    assert first == second == 5
    assert finite
    assert other_finite
    assert "samples of the dataset: 37" in other
    assert "the report of another rank states the origin and the fix" in report


def captured_output(folder):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        model = compiled_model()
        model.fit(
            ROWS_50, 2, batch_size=4, callbacks=[CSVLogger(folder / f"{rank()}.csv"), EarlyStopping("loss", verbose=1)]
        )
        model.evaluate(ROWS_50)
    return out.getvalue()


def test_only_rank_0_prints_and_logs(tmp_path):
    first, second = run_ranks(captured_output, tmp_path)
    assert "Epoch 2/2" in first
    assert "Evaluated on" in first
    assert second == ""
    assert [path.name for path in tmp_path.iterdir()] == ["0.csv"]


class RecordClock(Callback):
    def __init__(self):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(self.model.strategy.control.now())
        time.sleep(0.01 * rank())


def clock_times():
    clock = RecordClock()
    compiled_model().fit(ROWS_50, 1, batch_size=4, callbacks=[clock], verbose=0)
    return clock.times


def test_all_ranks_use_the_clock_of_rank_0():
    first, second = run_ranks(clock_times)
    assert first == second == sorted(first)
    assert first[-1] > 0
