"""Equality of data parallel training and one process with larger batches."""

from __future__ import annotations

import functools
import os

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, FullySharded, Model, Strategy
from easytorch.strategies.control import STOP, ControlChannel
from tests.loops import blobs, mlp
from tests.many import furthest, run_ranks

WIDE = {"dtype": torch.float64}


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class TwoHeads(nn.Module):
    """Submodules without a forward of the module."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(4, 3)


class SubmoduleSteps(Model):
    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        code = self.module.encoder(x)
        reconstruction = (self.module.decoder(code) - x).square().mean()
        return {"loss": reconstruction + functional.cross_entropy(self.module.head(code), y), "mse": reconstruction}


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def rows(count, shape=(8,)):
    if shape == (8,):
        x, y = blobs(count)
        return x, y
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, *shape, generator=generator), torch.randint(3, (count,), generator=generator)


def program(
    make,
    count,
    size,
    dtype=torch.float64,
    model_class=Model,
    strategy="auto",
    loss="cross_entropy",
    change_targets=None,
    fit=None,
    shuffle=True,
    **options,
):
    """Train for two epochs, and return the weights and the history."""
    torch.manual_seed(0)
    net = make().to(dtype)
    convolutional = isinstance(net, Convolutional)
    x, y = rows(count, (1, 8, 8) if convolutional else (8,))
    y = change_targets(y) if change_targets else y
    data = TensorDataset(x.to(dtype), y)
    model = model_class(net, device="cpu").compile(
        momentum, loss, strategy=strategy() if callable(strategy) else strategy, **options
    )
    model.fit(DataLoader(data, size, shuffle=shuffle), 2, verbose=0, **(fit or {}))
    weights = model.state_dict()["module"]  # complete, also if each rank has a shard
    return {name: value.clone() for name, value in weights.items()}, dict(model.history.history)


def assert_equal_to_one(make, count, size, processes=2, tolerance=1e-10, many=None, **options):
    (reference, history), rank_results = (
        program(make, count, size * processes, **options),
        run_ranks(functools.partial(program, **(options | (many or {}))), make, count, size, processes=processes),
    )
    for weights, logs in rank_results:
        assert furthest(reference, weights) < tolerance
        for name in history:
            assert logs[name] == pytest.approx(history[name], rel=max(tolerance, 1e-10))


@pytest.mark.parametrize(
    "count", [48, 50, 49, 45], ids=["even", "short last batch", "last batch of one rank", "uneven last batch"]
)
def test_two_ranks_equal_one_process_with_twice_the_batch(count):
    assert_equal_to_one(mlp, count, 8)


def test_three_ranks_equal_one_process_with_triple_batches():
    assert_equal_to_one(mlp, 50, 5, processes=3)


def test_fewer_samples_than_ranks_can_be_trained_on():
    assert_equal_to_one(mlp, 2, 4, processes=3)


def test_float32_results_are_close_to_one_process():
    assert_equal_to_one(mlp, 50, 8, tolerance=1e-6, dtype=torch.float32)


# Of 50 samples, the second rank gets none of the last two, and its batch is padding.
@pytest.mark.parametrize("strategy", [DataParallel, FullySharded])
@pytest.mark.parametrize("count", [48, 50])
def test_sync_batchnorm_uses_the_batches_of_all_ranks(count, strategy):
    sync = functools.partial(strategy, "cpu", sync_batchnorm=True)
    assert_equal_to_one(Convolutional, count, 8, many={"strategy": sync})


def test_a_step_can_call_any_submodule():
    assert_equal_to_one(TwoHeads, 50, 8, model_class=SubmoduleSteps, loss=None)


@pytest.mark.parametrize("count", [48, 50, 33, 41])
def test_a_window_of_all_ranks_equals_one_large_batch(count):
    assert_equal_to_one(mlp, count, 4, gradient_accumulation_steps=2)


def test_clipping_uses_the_gradient_norm_of_all_ranks():
    assert_equal_to_one(mlp, 50, 8, clip_grad_norm=0.05)


def test_a_sum_loss_is_the_sum_over_all_ranks():
    run_program = functools.partial(program, loss=nn.CrossEntropyLoss(reduction="sum"), clip_grad_norm=0.1)
    reference, _ = run_program(mlp, 50, 16)
    assert all(furthest(reference, weights) < 1e-10 for weights, _ in run_ranks(run_program, mlp, 50, 8))


def ignore_some_targets(y):
    """Ignore many targets, including all targets of rank 0 in the second update."""
    return torch.where(
        (torch.arange(len(y)) % 5 < 2) | ((torch.arange(len(y)) >= 16) & (torch.arange(len(y)) < 24)), -1, y
    )


# The loss of a batch of ignored targets is 0 / 0.
@pytest.mark.filterwarnings("ignore:The loss of epoch")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ignored_targets_are_excluded_from_the_mean_of_ranks(accumulate):
    loss = nn.CrossEntropyLoss(ignore_index=-1, weight=torch.tensor([1.0, 2.0, 1.0], **WIDE))
    run_program = functools.partial(program, loss=loss, change_targets=ignore_some_targets, shuffle=False)
    reference, _ = run_program(mlp, 48, 16 * accumulate)
    for weights, _ in run_ranks(functools.partial(run_program, gradient_accumulation_steps=accumulate), mlp, 48, 8):
        assert furthest(weights, reference) < 1e-10


def test_class_and_sample_weights_apply_on_all_ranks():
    assert_equal_to_one(
        mlp, 50, 8, fit={"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}, "sample_weight": torch.linspace(0.1, 2, 50)}
    )


class UnusedParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.filterwarnings("ignore")
def test_unused_parameters_need_an_option():
    assert_equal_to_one(
        UnusedParameters, 50, 8, many={"strategy": functools.partial(DataParallel, "cpu", find_unused_parameters=True)}
    )
    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        run_ranks(program, UnusedParameters, 50, 8)


def test_a_static_graph_changes_no_result():
    assert_equal_to_one(mlp, 49, 8, many={"strategy": functools.partial(DataParallel, "cpu", static_graph=True)})


def all_reduce_steps():
    """Return the step of each all-reduce of gradients in a fit."""
    steps = []
    model = Model(mlp(), device="cpu").compile(momentum, "cross_entropy", gradient_accumulation_steps=2)

    def count(_, bucket):
        steps.append(model.state.step)
        return (
            torch.distributed.all_reduce(bucket.buffer(), async_op=True)
            .get_future()
            .then(lambda future: future.value()[0])
        )

    start = model.strategy.start

    def start_and_count(optimizer):
        start(optimizer)
        model.strategy._replica.register_comm_hook(None, count)
        steps.clear()

    model.strategy.start = start_and_count
    model.fit(*blobs(64), batch_size=8, verbose=0)
    return steps


def test_one_all_reduce_per_window_carries_the_flags():
    # Two updates of 2 x 2 x 8 samples, with one all-reduce each.
    assert run_ranks(all_reduce_steps) == [[0, 1]] * 2


def freeze_and_thaw():
    net = mlp()
    model = Model(net, device="cpu").compile(momentum, "cross_entropy")
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    model.fit(*blobs(48), batch_size=8, verbose=0)
    unchanged = torch.equal(before, net[0].weight)
    net[0].requires_grad_(True)
    model.fit(*blobs(48), batch_size=8, verbose=0)
    return unchanged, torch.equal(before, net[0].weight), net.state_dict()


def test_frozen_layers_can_change_between_two_fits():
    (unchanged, same_weights, first), (_, _, second) = run_ranks(freeze_and_thaw)
    assert unchanged
    assert not same_weights
    assert furthest(first, second) == 0


def train_with_rank_seed():
    torch.manual_seed(int(os.environ["RANK"]) + 5)
    model = Model(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)), device="cpu")
    batches = []

    class RecordingModel(Model):
        def train_step(self, batch):
            batches.append(batch[0])
            return super().train_step(batch)

    model = RecordingModel(model.module, device="cpu").compile(momentum, "cross_entropy")
    model.fit(*blobs(48), batch_size=8, epochs=2, verbose=0)
    return model.module.state_dict(), torch.cat(batches), torch.rand(1)


def test_ranks_with_different_seeds_train_the_same_model():
    (first, batches, after), (second, other_batches, other_random) = run_ranks(train_with_rank_seed)
    assert furthest(first, second) == 0
    assert torch.equal(after, other_random)
    x, _ = blobs(48)
    for epoch in (slice(0, 24), slice(24, 48)):
        rows_seen = torch.cat([batches[epoch], other_batches[epoch]])
        assert torch.equal(rows_seen.sort(0).values, x.sort(0).values)


def save_and_load(folder):
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    model.fit(*blobs(20), verbose=0)
    # The folders of two machines.
    path = model.save(folder / os.environ["RANK"] / "model.pt")
    model.load(folder / "0/model.pt")
    return path.exists()


def test_rank_0_writes_files_with_plain_parameter_names(tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
    assert run_ranks(save_and_load, tmp_path) == [True, False]
    assert list(torch.load(tmp_path / "0/model.pt", weights_only=True)["module"]) == list(mlp().state_dict())


def test_without_torchrun_the_strategy_has_one_device():
    assert type(Model(mlp(), device="cpu").compile("sgd", "cross_entropy").strategy) is Strategy
    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node=2"):
        Model(mlp(), device="cpu").compile("sgd", "cross_entropy", strategy="ddp")


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"Unknown strategy 'dpd'. Did you mean 'ddp'\?"):
        Model(mlp(), device="cpu").compile("sgd", "cross_entropy", strategy="dpd")
    with pytest.raises(TypeError, match="Expected a strategy, received 3"):
        Model(mlp(), device="cpu").compile("sgd", "cross_entropy", strategy=3)
    with pytest.raises(ValueError, match=r"contradicts the strategy object\. Set it there"):
        Model(mlp(), device="cpu").compile("sgd", "cross_entropy", strategy=Strategy("cpu"), jit_compile=True)


def test_flags_are_read_every_16_updates_on_an_accelerator():
    control = ControlChannel(mlp(), torch.device("cpu"), Strategy("cpu").group)
    control._every = ControlChannel.EVERY
    control.start()
    reads = []
    for _ in range(32):
        control(lambda _: {"loss": control.module(torch.ones(1, 8)).sum()}, True, None)["loss"].backward()
        control.any_rank(STOP, True)
        control.receive()
        reads.append(control.any_rank(STOP, True))
        control.finish_update()
    assert reads == [False] * 15 + [True] * 17


def train_on_one_batch(x, y):
    """Train on this rank's half of a batch, or on all of it, and return the scores."""
    torch.manual_seed(0)
    model = Model(mlp().double(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    rank, world_size = model.strategy.group.rank, model.strategy.group.world_size
    return dict(model.train_on_batch(x[rank::world_size].double(), y[rank::world_size]).items())


def test_train_on_batch_returns_the_scores_of_all_ranks():
    x, y = blobs(48)
    expected = train_on_one_batch(x, y)
    for scores in run_ranks(train_on_one_batch, x, y):
        assert scores == pytest.approx(expected)
