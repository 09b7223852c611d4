"""Promise 1, of many processes: an update of all is that of one with a batch as large as all of theirs."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, Model, Strategy
from easytorch.strategies.control import STOP, ControlChannel
from tests.loops import blobs, mlp
from tests.many import furthest, together

WIDE = {"dtype": torch.float64}


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Pair(nn.Module):
    """Two parts, which no forward joins."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(4, 3)


class CallsParts(Model):
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
    kind=Model,
    strategy="auto",
    loss="cross_entropy",
    change=None,
    fit=None,
    shuffle=True,
    **options,
):
    """Train for two epochs, and return the weights, the history, the scores and the outputs."""
    torch.manual_seed(0)
    net = make().to(dtype)
    convolutional = isinstance(net, Convolutional)
    x, y = rows(count, (1, 8, 8) if convolutional else (8,))
    y = change(y) if change else y
    data = TensorDataset(x.to(dtype), y)
    model = kind(net, device="cpu").compile(
        momentum, loss, strategy=strategy() if callable(strategy) else strategy, **options
    )
    model.fit(DataLoader(data, size, shuffle=shuffle), 2, verbose=0, **(fit or {}))
    return {name: value.clone() for name, value in net.state_dict().items()}, dict(model.history.history)


def assert_equal_to_one(make, count, size, processes=2, tolerance=1e-10, many=None, **options):
    (alone, history), several = (
        program(make, count, size * processes, **options),
        together(functools.partial(program, **(options | (many or {}))), make, count, size, processes=processes),
    )
    for weights, logs in several:
        assert furthest(alone, weights) < tolerance
        for name in history:
            assert logs[name] == pytest.approx(history[name], rel=max(tolerance, 1e-10))


@pytest.mark.parametrize("count", [48, 50, 49, 45], ids=["even", "a short tail", "a tail for one", "an uneven tail"])
def test_two_processes_are_one_with_twice_the_batch(count):
    assert_equal_to_one(mlp, count, 8)


def test_three_processes_are_one_with_three_times_the_batch():
    assert_equal_to_one(mlp, 50, 5, processes=3)


def test_fewer_samples_than_processes_are_trained_on():
    assert_equal_to_one(mlp, 2, 4, processes=3)


def test_in_float32_they_are_within_its_precision():
    assert_equal_to_one(mlp, 50, 8, tolerance=1e-6, dtype=torch.float32)


def test_batchnorm_measures_the_batch_of_all_processes():
    sync = functools.partial(DataParallel, "cpu", sync_batchnorm=True)
    assert_equal_to_one(Convolutional, 48, 8, many={"strategy": sync})


def test_a_step_may_call_any_part_of_the_module():
    assert_equal_to_one(Pair, 50, 8, kind=CallsParts, loss=None)


@pytest.mark.parametrize("count", [48, 50, 33, 41])
def test_a_window_of_batches_of_all_processes_is_one_batch(count):
    assert_equal_to_one(mlp, count, 4, gradient_accumulation_steps=2)


def test_clipping_goes_by_the_norm_of_the_gradient_of_all_processes():
    assert_equal_to_one(mlp, 50, 8, clip_grad_norm=0.05)


def test_a_loss_that_sums_is_the_sum_over_all_processes():
    trained = functools.partial(program, loss=nn.CrossEntropyLoss(reduction="sum"), clip_grad_norm=0.1)
    alone, _ = trained(mlp, 50, 16)
    assert all(furthest(alone, weights) < 1e-10 for weights, _ in together(trained, mlp, 50, 8))


def some_ignored(y):
    """Ignore many targets, among them all that process 0 has in the second update."""
    return torch.where(
        (torch.arange(len(y)) % 5 < 2) | ((torch.arange(len(y)) >= 16) & (torch.arange(len(y)) < 24)), -1, y
    )


@pytest.mark.filterwarnings("ignore:The loss of epoch")  # of a batch in which nothing counts it is 0 / 0
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_ignores_targets_is_divided_by_those_that_count_in_all_processes(accumulate):
    loss = nn.CrossEntropyLoss(ignore_index=-1, weight=torch.tensor([1.0, 2.0, 1.0], **WIDE))
    trained = functools.partial(program, loss=loss, change=some_ignored, shuffle=False)
    alone, _ = trained(mlp, 48, 16 * accumulate)
    for weights, _ in together(functools.partial(trained, gradient_accumulation_steps=accumulate), mlp, 48, 8):
        assert furthest(weights, alone) < 1e-10


def test_weights_of_classes_and_samples_hold_in_all_processes():
    assert_equal_to_one(
        mlp, 50, 8, fit={"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}, "sample_weight": torch.linspace(0.1, 2, 50)}
    )


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.filterwarnings("ignore")
def test_parameters_that_a_step_does_not_use_need_an_option():
    assert_equal_to_one(
        Half, 50, 8, many={"strategy": functools.partial(DataParallel, "cpu", find_unused_parameters=True)}
    )
    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        together(program, Half, 50, 8)


def test_a_static_graph_changes_no_result():
    assert_equal_to_one(mlp, 49, 8, many={"strategy": functools.partial(DataParallel, "cpu", static_graph=True)})


def messages():
    """Return how many messages about gradients each update of a fit takes."""
    sent = []
    model = Model(mlp(), device="cpu").compile(momentum, "cross_entropy", gradient_accumulation_steps=2)

    def count(_, bucket):
        sent.append(model.state.step)
        return (
            torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
        )

    start = model.strategy.start

    def start_and_count():
        start()
        model.strategy._replica.register_comm_hook(None, count)
        sent.clear()

    model.strategy.start = start_and_count
    model.fit(*blobs(64), batch_size=8, verbose=0)
    return sent


def test_one_all_reduce_per_window_carries_the_flags():
    assert together(messages) == [[0, 1]] * 2  # two updates of 2 x 2 x 8 samples, one message each


def freeze_and_thaw():
    net = mlp()
    model = Model(net, device="cpu").compile(momentum, "cross_entropy")
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    model.fit(*blobs(48), batch_size=8, verbose=0)
    frozen = torch.equal(before, net[0].weight)
    net[0].requires_grad_(True)
    model.fit(*blobs(48), batch_size=8, verbose=0)
    return frozen, torch.equal(before, net[0].weight), net.state_dict()


def test_what_is_trained_may_change_between_two_fits():
    (frozen, same, first), (_, _, second) = together(freeze_and_thaw)
    assert frozen
    assert not same
    assert furthest(first, second) == 0


def seeded_apart():
    torch.manual_seed(int(__import__("os").environ["RANK"]) + 5)
    model = Model(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)), device="cpu")
    seen = []

    class Watching(Model):
        def train_step(self, batch):
            seen.append(batch[0])
            return super().train_step(batch)

    model = Watching(model.module, device="cpu").compile(momentum, "cross_entropy")
    model.fit(*blobs(48), batch_size=8, epochs=2, verbose=0)
    return model.module.state_dict(), torch.cat(seen), torch.rand(1)


def test_programs_with_different_seeds_train_one_model_on_all_samples():
    (first, seen, after), (second, others, also) = together(seeded_apart)
    assert furthest(first, second) == 0
    assert torch.equal(after, also)
    x, _ = blobs(48)
    for epoch in (slice(0, 24), slice(24, 48)):
        rows_seen = torch.cat([seen[epoch], others[epoch]])
        assert torch.equal(rows_seen.sort(0).values, x.sort(0).values)


def names_of_files(folder):
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    model.fit(*blobs(20), verbose=0)
    rank = model.strategy.group.rank
    path = model.save(folder / f"{rank}.pt")
    model.load(folder / "0.pt")
    return path.exists()


def test_files_are_written_by_process_0_under_the_users_names(tmp_path):
    assert together(names_of_files, tmp_path) == [True, False]
    assert list(torch.load(tmp_path / "0.pt", weights_only=True)["module"]) == list(mlp().state_dict())


def test_a_process_of_its_own_has_one_device():
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
