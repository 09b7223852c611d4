"""Runs with data, modules, losses, optimizers and callbacks that keep a state in unusual places."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    WeightedRandomSampler,
    get_worker_info,
)

from easytorch import Metric, Model
from easytorch.callbacks import BackupAndRestore, Callback, EarlyStopping, LambdaCallback
from tests import common_sources
from tests.common_resume import LOADERS, ROWS, DatasetNoise, X, Y
from tests.security.battery.starts import End, Program
from tests.training.test_attributes import Lookahead

EPOCHS = 3  # of seven updates


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.dropout(self.norm(self.first(x)).relu(), 0.3, self.training))


def train(
    folder: Path,
    callbacks: list[Callback],
    save_freq: Any,
    *,
    make_model: Callable[[], Model] = lambda: Model(Net(), device="cpu"),
    make_data: Callable[[], Any] = lambda: DataLoader(ROWS, 8, shuffle=True),
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    make_loss: Callable[[], Any] = nn.CrossEntropyLoss,
    make_callbacks: Callable[[], list[Callback]] = list,
    metrics: Callable[[], list[Any]] = list,
    **fit: Any,
) -> End:
    """Train with what the functions make."""
    own, data = make_callbacks(), make_data()
    # A callback of the user that changes the data.
    for callback in own:
        if hasattr(callback, "data"):
            callback.data = data
    model = make_model().compile(make_optimizer, make_loss(), metrics())
    fit = {"epochs": EPOCHS, "validation_data": (X[:20], Y[:20]), "verbose": 0} | fit
    if callable(fit["validation_data"]):
        fit["validation_data"] = fit["validation_data"]()
    backup = BackupAndRestore(folder / "run", save_freq, delete_checkpoint=False)
    model.fit(data, callbacks=[*own, backup, *callbacks], **fit)
    return End(model, [callback for callback in own if type(callback).__module__.startswith("easytorch")])


# Data


class Data(Dataset[Any]):
    """Samples of ``X`` with a shift by ``self.shift(index)``."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        return X[index] + 0.1 * self.shift(index), Y[index]

    def shift(self, index: int) -> float:
        raise NotImplementedError


class SetByCallback(Data):
    """A callback makes the samples harder in each epoch."""

    level = 0.0

    def shift(self, index: int) -> float:
        return self.level


class Epochs(Data):
    """Draws by ``set_epoch``."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def shift(self, index: int) -> float:
        return random.Random(self.epoch * 1000 + index).random()


class Mixing(Data):
    """Mixes with another random sample."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def __getitem__(self, index: int) -> Any:
        other, share = self.rng.integers(50), float(self.rng.beta(0.4, 0.4))
        return share * X[index] + (1 - share) * X[other], Y[index]


class Caching(Data):
    """Draws the noise of a sample once, and keeps it."""

    def __init__(self) -> None:
        self.cache: dict[int, float] = {}

    def shift(self, index: int) -> float:
        return self.cache.setdefault(index, random.random())


class CountingSamples(Data):
    """Counts how many samples were read."""

    count = 0

    def shift(self, index: int) -> float:
        self.count += 1
        return 0.02 * self.count


class PreviousSample(Data):
    """Adds a part of the sample that was read before."""

    def __init__(self) -> None:
        self.previous = torch.zeros(8)

    def __getitem__(self, index: int) -> Any:
        x = X[index] + 0.5 * self.previous
        self.previous = X[index]
        return x, Y[index]


class Sharded(IterableDataset[Any]):
    """Each worker reads its share."""

    def __iter__(self) -> Any:
        worker = get_worker_info()
        step = worker.num_workers if worker else 1
        for index in range(worker.id if worker else 0, 48, step):
            yield X[index], Y[index]


class Shards(IterableDataset[Any]):
    """Shuffles shards and a buffer, as WebDataset does."""

    def __init__(self) -> None:
        self.rng, self.buffer_rng = random.Random(1), random.Random(2)

    def __iter__(self) -> Any:
        shards = [range(i, min(i + 10, 50)) for i in range(0, 50, 10)]
        self.rng.shuffle(shards)
        buffer: list[int] = []
        for index in (index for shard in shards for index in shard):
            buffer.append(index)
            if len(buffer) > 6:
                chosen = buffer.pop(self.buffer_rng.randrange(len(buffer)))
                yield X[chosen], Y[chosen]
        self.buffer_rng.shuffle(buffer)
        yield from ((X[index], Y[index]) for index in buffer)


class WithLast(DataLoader[Any]):
    """A loader that adds a part of the last batch."""

    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            last = getattr(self, "last", torch.zeros(8))
            self.last = x.mean(0)
            yield x + 0.3 * last, y


def pair_of_loaders() -> Callable[[], Any]:
    first, second = DataLoader(ROWS, 8, shuffle=True), DataLoader(ROWS, 8, shuffle=True)
    return lambda: ((x + 0.1 * z, y) for (x, y), (z, _) in zip(first, second, strict=True))


def endless() -> Any:
    rng = np.random.default_rng(3)
    while True:
        index = rng.integers(50, size=8)
        yield X[index], Y[index]


def stateful(data: Any, **options: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(data, 8, **options)


def nodes() -> Any:
    from torchdata import nodes

    source = nodes.SamplerWrapper(torch.utils.data.RandomSampler(ROWS))
    batches = nodes.Batcher(nodes.Mapper(source, ROWS.__getitem__), 8, drop_last=False)
    return nodes.Loader(nodes.Mapper(batches, torch.utils.data.default_collate))


def hugging_face() -> Any:
    datasets = __import__("datasets")
    rng = np.random.default_rng(3)

    def augment(rows: Any) -> Any:
        return {"x": [np.asarray(x, "float32") + rng.random(dtype="float32") for x in rows["x"]], "y": rows["y"]}

    data = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()}).with_transform(augment)
    return DataLoader(data, 8, shuffle=True, collate_fn=as_pair)


def as_pair(samples: Any) -> Any:
    return torch.tensor(np.stack([s["x"] for s in samples])), torch.tensor([s["y"] for s in samples])


class CountingCollate:
    """Counts its batches."""

    count = 0

    def __call__(self, samples: Any) -> Any:
        self.count += 1
        x, y = torch.utils.data.default_collate(samples)
        return x + 0.05 * self.count, y


class Harder(Callback):
    """Changes the data in each epoch."""

    data: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.data.dataset.level = 0.5 * epoch


class SetTransform(Callback):
    """Replaces the transform once."""

    data: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.data.dataset.level = 1.0


class HardSamples(Callback):
    """Changes the weights of the sampler by the loss of the epoch."""

    data: Any = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.data.sampler.weights[: 10 * (epoch + 1)] *= 3 + logs["loss"]


def data_cases() -> dict[str, dict[str, Any]]:
    makers: dict[str, Callable[[], Any]] = {
        **{f"loader, {name}": make for name, make in LOADERS.items()},
        **{
            f"dataset, {name}": functools.partial(lambda make: DataLoader(make(), 8, shuffle=True), make)
            for name, make in common_sources.DATASETS.items()
        },
        **{f"sampler, {name}": make for name, make in common_sources.SAMPLERS.items()},
        **{f"stream, {name}": make for name, make in common_sources.STREAMS.items()},
        "loader with a state and a length": common_sources.StandInWithLength,
        "StatefulDataLoader": lambda: stateful(ROWS, shuffle=True),
        "StatefulDataLoader in order": lambda: stateful(ROWS),
        "StatefulDataLoader of a stream": lambda: stateful(common_sources.OwnStream()),
        "torchdata.nodes": nodes,
        "Hugging Face with_transform": hugging_face,
        "two loaders": pair_of_loaders,
        "set_epoch": lambda: DataLoader(Epochs(), 8, shuffle=True),
        "set_epoch, persistent workers": lambda: DataLoader(Epochs(), 8, num_workers=1, persistent_workers=True),
        "mixing of samples": lambda: DataLoader(Mixing(), 8, shuffle=True),
        "concatenated": lambda: DataLoader(ConcatDataset([Mixing(), DatasetNoise()]), 16, shuffle=True),
        "subset": lambda: DataLoader(Subset(Mixing(), range(0, 48, 2)), 8, shuffle=True),
        "chain of streams": lambda: DataLoader(ChainDataset([common_sources.OwnStream(), Shards()]), 16),
        "shards and a buffer": lambda: DataLoader(Shards(), 8),
        "stream in two workers": lambda: DataLoader(Sharded(), 8, num_workers=2),
        "dataset that caches": lambda: DataLoader(Caching(), 8, shuffle=True),
        "dataset that counts": lambda: DataLoader(CountingSamples(), 8, shuffle=True),
        "dataset with the previous sample": lambda: DataLoader(PreviousSample(), 8, shuffle=True),
        "loader with the last batch": lambda: WithLast(ROWS, 8, shuffle=True),
        "collate_fn that counts": lambda: DataLoader(ROWS, 8, shuffle=True, collate_fn=CountingCollate()),
    }
    cases: dict[str, dict[str, Any]] = {name: {"make_data": make} for name, make in makers.items()}
    hard = WeightedRandomSampler(torch.ones(50), 50)
    return cases | {
        "endless generator": {"make_data": endless, "steps_per_epoch": 6},
        "shards, steps_per_epoch": {"make_data": lambda: DataLoader(Shards(), 8), "steps_per_epoch": 5},
        "mixing, steps_per_epoch": {"make_data": makers["mixing of samples"], "steps_per_epoch": 9},
        "own stream, steps_per_epoch": {"make_data": makers["stream, stream with a generator"], "steps_per_epoch": 10},
        "validation with a generator": {"validation_data": lambda: DataLoader(Mixing(), 8)},
        "validation by a function": {"validation_data": lambda: common_sources.make_function()},
        "validation generator": {"validation_data": endless, "validation_steps": 2},
        "data that a callback changes": {
            "make_data": lambda: DataLoader(SetByCallback(), 8, shuffle=True), "make_callbacks": lambda: [Harder()],
        },
        "data that a callback changes once": {
            "make_data": lambda: DataLoader(SetByCallback(), 8, shuffle=True),
            "make_callbacks": lambda: [SetTransform()],
        },
        "weights of a sampler that a callback changes": {
            "make_data": lambda: DataLoader(ROWS, 8, sampler=WeightedRandomSampler(hard.weights.clone(), 50)),
            "make_callbacks": lambda: [HardSamples()],
        },
    }  # fmt: skip


# Models: each step multiplies the loss by a factor that depends on a state, which it changes.


class Stepped(Model):
    """Multiplies the loss by a factor."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        result = super().train_step(batch)
        return {"loss": result["loss"] * (1 + 0.1 * (self.factor() if self.module.training else 0.0))}

    def factor(self) -> Any:
        raise NotImplementedError


@dataclasses.dataclass
class Memory:
    count: int = 0
    recent: list[float] = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1.0


def stepped(start: Callable[[], Any], use: Callable[[Any, int], Any]) -> Callable[[], Model]:
    """Return a function that makes a model with an attribute ``held``, which ``use(model, step)`` reads and changes."""

    class Held(Stepped):
        def __init__(self) -> None:
            super().__init__(Net(), device="cpu")
            self.held = start()

        def factor(self) -> Any:
            return use(self, self.state.step)

    return Held


def use_number(model: Any, step: int) -> float:
    model.held = 0.9 * model.held + step
    return model.held


def use_text(model: Any, step: int) -> float:
    model.held = {"warm": "full", "full": "cool", "cool": "warm"}[model.held]
    return {"warm": 0.1, "full": 1.0, "cool": 3.0}[model.held]


def use_deque(model: Any, step: int) -> float:
    model.held.append(torch.randn(2))
    return random.choice(model.held).sum()


def use_memory(model: Any, step: int) -> float:
    model.held.count += 1
    model.held.recent.append(random.random())
    return sum(model.held.recent) / model.held.count


def use_slots(model: Any, step: int) -> float:
    model.held.value *= 1.05
    return model.held.value


def use_counter(model: Any, step: int) -> float:
    model.held[step % 3] += 1
    return max(model.held.values())


def use_default_dict(model: Any, step: int) -> float:
    model.held[f"phase {step // 4}"].append(step)
    return len(model.held)


def use_set(model: Any, step: int) -> float:
    model.held.add(random.randrange(30))
    return len(model.held)


def use_array(model: Any, step: int) -> float:
    model.held[step % 5] += step
    return float(model.held.mean())


def use_tensors(model: Any, step: int) -> Any:
    model.held["sum"] += step
    model.held["list"].append(torch.tensor(float(step)))
    return model.held["sum"] / len(model.held["list"])


def use_teacher(model: Any, step: int) -> Any:
    with torch.no_grad():
        for teacher, student in zip(model.held.parameters(), model.module.parameters(), strict=True):
            teacher.lerp_(student, 0.2)
    return model.held.last.weight.square().sum().detach()


def use_average(model: Any, step: int) -> Any:
    model.held.update_parameters(model.module)
    return model.held.module.last.weight.square().sum().detach()


def use_generator(model: Any, step: int) -> Any:
    return torch.rand((), generator=model.held)


def use_generators(model: Any, step: int) -> float:
    return model.held["a"][0].random() + model.held["b"].random()


def use_named_tuple(model: Any, step: int) -> float:
    model.held = model.held._replace(total=model.held.total + step)
    return model.held.total


Totals = collections.namedtuple("Totals", ["total", "name"])


class Hidden(Stepped):
    """Keeps the hidden state of a recurrent layer between batches."""

    def __init__(self) -> None:
        super().__init__(Net(), device="cpu")
        self.cell, self.hidden = nn.GRUCell(8, 4), None

    def factor(self) -> Any:
        hidden = torch.zeros(1, 4) if self.hidden is None else self.hidden
        with torch.no_grad():
            self.hidden = self.cell(X[:1] * self.state.step, hidden)
        return self.hidden.sum()


class Adversarial(Model):
    """Trains a critic with a further optimizer and schedule in ``update``."""

    def __init__(self) -> None:
        super().__init__(Net(), device="cpu")
        self.critic = nn.Linear(3, 1)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=0.05)
        self.critic_schedule = lr_scheduler.StepLR(self.critic_optimizer, 3, 0.7)

    def update(self, window: Any) -> None:
        (batch,) = window
        x, y, _ = self.unpack(batch)
        critic_loss = self.critic(self(x).detach()).square().mean()
        critic_loss.backward()
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()
        self.critic_schedule.step()
        y_pred = self(x)
        loss = self.loss(y_pred, y) + 0.1 * self.critic(y_pred).mean()
        self.strategy.backward(loss)
        self.strategy.step(self.optimizer)
        self.optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        self.metrics.record({"loss": loss, "critic": critic_loss}, len(x))


def counting_class() -> Model:
    """Return a model that counts in its class."""

    class Counter(Stepped):
        calls = 0

        def factor(self) -> float:
            type(self).calls += 1
            return self.calls

    return Counter(Net(), device="cpu")


# Modules


class Buffers(Net):
    """Has buffers that are no statistics: not saved, replaced in forward, growing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("held", torch.zeros(3), persistent=kind != "non-persistent")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y_pred = super().forward(x)
        if self.training:
            mean = y_pred.detach().mean(0)
            if self.kind == "growing":
                self.held = torch.cat([self.held, mean])[-60:]
            elif self.kind == "replaced":
                self.held = 0.9 * self.held + mean
            else:
                self.held.mul_(0.9).add_(mean)
        return y_pred + self.held[-3:]


class Attributes(Net):
    """Keeps numbers, tensors and lists as plain attributes, which change in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.prototype, self.means = 0, torch.zeros(3), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y_pred = super().forward(x)
        if self.training:
            self.count += 1
            self.prototype = self.prototype * 0.9 + y_pred.detach().mean(0)
            self.means.append(float(self.prototype.mean()))
        return y_pred + self.prototype / (1 + self.count) + sum(self.means)


class ExtraState(Net):
    """Keeps a counter by ``get_extra_state``."""

    count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += self.training
        return super().forward(x) * (1 + 0.01 * self.count)

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


class OwnNoise(Net):
    """Draws from a private generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn(x.shape, generator=self.generator))


class Bag(nn.Module):
    """Has sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 3, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bag((x.abs() * 6).long().clamp(max=19))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.cfloat) @ self.weight).abs()


class Sized(nn.Module):
    """Initializes itself by its first data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift, self.is_ready = nn.Linear(8, 3), nn.Parameter(torch.zeros(8)), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_ready:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
            self.is_ready = True
        return self.layer(x + self.shift)


class Recurrent(nn.Module):
    """Keeps its hidden state between batches."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head, self.hidden = nn.LSTM(8, 4), nn.Linear(4, 3), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, hidden = self.lstm(x, self.hidden)
        self.hidden = tuple(value.detach() for value in hidden)
        return self.head(outputs)


def quantized() -> nn.Module:
    quantization = torch.ao.quantization
    net = nn.Sequential(quantization.QuantStub(), nn.Linear(8, 3), quantization.DeQuantStub()).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(net)


def normalized(kind: str) -> nn.Module:
    net = Net()
    if kind == "spectral":
        nn.utils.parametrizations.spectral_norm(net.first)
    elif kind == "weight":
        nn.utils.parametrizations.weight_norm(net.first)
    else:
        nn.utils.spectral_norm(net.first)
    return net


MODULES: dict[str, Callable[[], nn.Module]] = {
    "buffer that is not saved": lambda: Buffers("non-persistent"),
    "buffer that is replaced": lambda: Buffers("replaced"),
    "buffer that grows": lambda: Buffers("growing"),
    "plain attributes": Attributes,
    "extra state": ExtraState,
    "generator": OwnNoise,
    "complex weights": Complex,
    "first batch": Sized,
    "hidden state": Recurrent,
    "quantization-aware training": quantized,
    "spectral norm": lambda: normalized("spectral"),
    "old spectral norm": lambda: normalized("old"),
    "weight norm": lambda: normalized("weight"),
    "weights that a list shares": lambda: nn.Sequential(*[nn.Linear(8, 8)] * 2, nn.Linear(8, 3)),
    "lazy layer": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
}


# Losses and metrics


class Center(nn.Module):
    """Moves a center, as DINO does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(y_pred - self.center, y)
        if self.training:
            self.center = 0.9 * self.center + y_pred.detach().mean(0)
        return loss


class Learned(nn.Module):
    """Has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(y_pred, y) * (-self.scale).exp() + self.scale


class PlainLoss:
    """Keeps a mean of the loss, and is no module."""

    def __init__(self) -> None:
        self.mean, self.rng = 1.0, np.random.default_rng(3)

    def __call__(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(y_pred, y)
        self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
        return loss / self.mean * (1 + 0.1 * float(self.rng.random()))


class ModuleLossWithNumber(nn.Module):
    """Counts its calls in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.count += self.training
        return F.cross_entropy(y_pred, y) * (1 + 0.02 * self.count)


def closure_loss() -> Any:
    state = {"count": 0, "rng": random.Random(3)}

    def loss(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(y_pred, y) * (1 + 0.1 * state["rng"].random())

    return loss


def counting_loss() -> Any:
    count = 0

    def loss(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return F.cross_entropy(y_pred, y) * (1 + 0.02 * count)

    return loss


def partial_loss() -> Any:
    return functools.partial(scaled_loss, held={"count": 0})


def scaled_loss(y_pred: torch.Tensor, y: torch.Tensor, held: dict[str, int]) -> torch.Tensor:
    held["count"] += 1
    return F.cross_entropy(y_pred, y) * (1 + 0.02 * held["count"])


class RunningMetric(Metric):
    """Has a value of all epochs."""

    name = "running"

    def __init__(self) -> None:
        self.total = 0.0
        self.reset()

    def reset(self) -> None:
        self.count = 0

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        self.count += len(y)
        self.total += float(y_pred.detach().sum())

    def compute(self) -> float:
        return self.total


# Optimizers


class SAM(torch.optim.Optimizer):
    """Wraps another optimizer, whose state its own state dict leaves out, as the one of davda54 does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        self.base_optimizer.step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class Counting(torch.optim.SGD):
    """Counts its steps in an attribute."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.count
        return super().step(closure)


class Two(torch.optim.Optimizer):
    """Two optimizers in one, with a custom state dict."""

    def __init__(self, parameters: Any) -> None:
        parameters = list(parameters)
        self.both = [torch.optim.Adam(parameters[:2], lr=0.02), torch.optim.SGD(parameters[2:], 0.05, momentum=0.9)]
        super().__init__(parameters, {"lr": 0.05})

    def step(self, closure: Any = None) -> Any:
        for optimizer in self.both:
            optimizer.step()

    def state_dict(self) -> Any:
        return {"both": [optimizer.state_dict() for optimizer in self.both]}

    def load_state_dict(self, state: Any) -> None:
        for optimizer, entry in zip(self.both, state["both"], strict=True):
            optimizer.load_state_dict(entry)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SAM": SAM,
    "Lookahead": lambda p: Lookahead(torch.optim.Adam(p, lr=0.05)),
    "that counts": lambda p: Counting(p, lr=0.1),
    "two in one": Two,
    "rates as tensors": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, maximize=False, foreach=False),
    "nesterov by groups": lambda p: torch.optim.SGD(
        [{"params": p[:2], "nesterov": True}, {"params": p[2:], "lr": 0.01, "weight_decay": 0.1}], 0.05, momentum=0.9
    ),
}


# Callbacks


class CountingRate(Callback):
    """Counts, and sets the rate."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.count += 1
        self.model.optimizer.param_groups[0]["lr"] = 0.1 / self.count


class WeightDecay(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.param_groups[0]["weight_decay"] += 0.05


class Unfreeze(Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.model.module.first.requires_grad_(False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.module.first.requires_grad_(True)


class FreezeNorm(Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.module.norm.eval()


class AddGroup(Unfreeze):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        if epoch == 1:
            self.model.optimizer.add_param_group({"params": list(self.model.module.first.parameters()), "lr": 0.01})


class Settings(Callback):
    """Changes settings of layers and of the model once."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.module.norm.momentum = 0.5
            self.model.clip_grad_norm = 0.1


class Momentum(Callback):
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.param_groups[0]["momentum"] *= 0.97


class OwnAverage(Callback):
    """Keeps an average of the weights in a dict, and puts it into the module at the end of each epoch."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for name, value in self.model.module.named_parameters():
            average = self.average.setdefault(name, value.detach().clone())
            average.lerp_(value.detach(), 0.3)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with torch.no_grad():
            for name, value in self.model.module.named_parameters():
                value.copy_(self.average[name])


class OwnBest(Callback):
    """Remembers the best weights, and returns to them."""

    def __init__(self) -> None:
        self.best, self.weights = float("inf"), None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs["val_loss"] + 0.2 * epoch < self.best:
            self.best, self.weights = logs["val_loss"], copy.deepcopy(self.model.module.state_dict())
        else:
            self.model.module.load_state_dict(self.weights)


class WithState(Callback):
    """Has a state dict."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.rows.append({"loss": logs["loss"], "draw": random.random()})
        self.model.optimizer.param_groups[0]["lr"] = 0.05 / (1 + sum(row["draw"] for row in self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: Any) -> None:
        self.rows = state["rows"]


class NoisyRate(Callback):
    def __init__(self) -> None:
        self.rngs = {"a": [np.random.default_rng(3)]}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.param_groups[0]["lr"] = 0.1 * float(self.rngs["a"][0].random())


def counting_lambda() -> list[Callback]:
    """Return a LambdaCallback that counts in a closure."""
    callback = LambdaCallback()
    calls: list[int] = []

    def set_rate(batch: int, logs: Any) -> None:
        calls.append(batch)
        callback.model.optimizer.param_groups[0]["lr"] = 0.1 / len(calls)

    callback.on_train_batch_begin = set_rate
    return [callback]


class ChangedGradients(Callback):
    """Adds noise to gradients, with a scale that it lowers."""

    scale = 0.1

    def on_before_optimizer_step(self) -> None:
        self.scale *= 0.95
        for parameter in self.model.module.parameters():
            parameter.grad.add_(self.scale * torch.randn_like(parameter.grad))


class AtEpochBegin(Callback):
    """Changes everything when an epoch starts, by random numbers too."""

    def __init__(self, kind: str) -> None:
        self.kind, self.count = kind, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        model = self.model
        if self.kind == "counts":
            self.count += 1
            model.optimizer.param_groups[0]["lr"] = 0.1 / self.count
        elif self.kind == "draws":
            model.optimizer.param_groups[0]["lr"] = 0.1 * random.random() + 0.1 * float(torch.rand(()))
        elif self.kind == "changes weights":
            with torch.no_grad():
                model.module.last.weight.add_(0.1)
        elif self.kind == "raises weight decay":
            model.optimizer.param_groups[0]["weight_decay"] += 0.05
        else:
            model.module.norm.momentum *= 0.5


class BeforeBatch(Callback):
    """Counts, changes momentum and draws before each batch."""

    count = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.count += 1
        self.model.optimizer.param_groups[0]["momentum"] *= 0.98
        self.model.optimizer.param_groups[0]["lr"] = 0.1 * random.random() / self.count


CALLBACKS: dict[str, Callable[[], list[Callback]]] = {
    **{
        f"that {kind} at the start of an epoch": functools.partial(lambda kind: [AtEpochBegin(kind)], kind)
        for kind in ("counts", "draws", "changes weights", "raises weight decay", "changes settings")
    },
    "that counts before each batch": lambda: [BeforeBatch()],
    "that counts": lambda: [CountingRate()],
    "that moves weight decay": lambda: [WeightDecay()],
    "that unfreezes": lambda: [Unfreeze()],
    "that freezes a norm": lambda: [FreezeNorm()],
    "that changes settings": lambda: [Settings()],
    "that changes momentum": lambda: [Momentum()],
    "with an average": lambda: [OwnAverage()],
    "with the best weights": lambda: [OwnBest()],
    "with a state dict": lambda: [WithState()],
    "with a generator": lambda: [NoisyRate()],
    "with a closure": counting_lambda,
    "that changes gradients": lambda: [ChangedGradients()],
    "two of a class": lambda: [CountingRate(), EarlyStopping(patience=9), CountingRate()],
}


def state_cases() -> dict[str, dict[str, Any]]:
    generators = lambda: {"a": [random.Random(1)], "b": np.random.default_rng(2)}  # noqa: E731
    held: dict[str, tuple[Callable[[], Any], Callable[[Any, int], Any]]] = {
        "number": (lambda: 1.0, use_number),
        "text": (lambda: "warm", use_text),
        "deque": (lambda: collections.deque(maxlen=9), use_deque),
        "dataclass": (Memory, use_memory),
        "slots": (Slotted, use_slots),
        "Counter": (collections.Counter, use_counter),
        "defaultdict": (lambda: collections.defaultdict(list), use_default_dict),
        "set": (set, use_set),
        "array": (lambda: np.zeros(5), use_array),
        "tensors in containers": (lambda: {"sum": torch.zeros(()), "list": []}, use_tensors),
        "named tuple": (lambda: Totals(0, "a"), use_named_tuple),
        "mean teacher": (Net, use_teacher),
        "AveragedModel": (lambda: torch.optim.swa_utils.AveragedModel(Net()), use_average),
        "generator": (lambda: torch.Generator().manual_seed(4), use_generator),
        "generators in containers": (generators, use_generators),
    }
    cases: dict[str, dict[str, Any]] = {
        **{f"attribute, {name}": {"make_model": stepped(*pair)} for name, pair in held.items()},
        "attribute, hidden state": {"make_model": Hidden},
        "attribute, critic with an optimizer": {"make_model": Adversarial},
        "attribute of the class": {"make_model": counting_class},
        **{
            f"module, {name}": {"make_model": functools.partial(lambda make: Model(make(), device="cpu"), make)}
            for name, make in MODULES.items()
        },
        "module with sparse gradients": {
            "make_model": lambda: Model(Bag(), device="cpu"),
            "make_optimizer": lambda p: torch.optim.SparseAdam(p, lr=0.05),
        },
        "loss with a center": {"make_loss": Center},
        "loss with a parameter": {"make_loss": Learned},
        "loss that is no module": {"make_loss": PlainLoss},
        "loss that counts": {"make_loss": ModuleLossWithNumber},
        "loss with a generator in a closure": {"make_loss": closure_loss},
        "loss that counts in a closure": {"make_loss": counting_loss},
        "loss that counts in a partial": {"make_loss": partial_loss},
        "metric of all epochs": {"metrics": lambda: [RunningMetric()]},
        **{f"optimizer {name}": {"make_optimizer": make} for name, make in OPTIMIZERS.items()},
        **{f"callback {name}": {"make_callbacks": make} for name, make in CALLBACKS.items()},
        "callback that adds a group": {
            "make_callbacks": lambda: [AddGroup()],
            "make_optimizer": lambda p: torch.optim.Adam(p[2:], lr=0.05),
        },
    }
    return cases


CASES = data_cases() | state_cases()


def make_program(name: str, save_freq: Any) -> Program:
    return functools.partial(train, save_freq=save_freq, **CASES[name])
