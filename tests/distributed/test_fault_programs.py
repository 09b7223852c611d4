"""Programs that failed or gave wrong numbers in comparable libraries: two processes give the numbers of one."""

from __future__ import annotations

import functools
import os
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from easytorch import DataParallel, FullySharded, Model, RankError
from easytorch.callbacks import EarlyStopping, LambdaCallback, LRScheduler
from tests.distributed.common_ranks import attempt_all, both_fail
from tests.many import furthest, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SIZE = 6
X = torch.randn(48, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(48) % 3
STRATEGIES = {"one": lambda: "one", "ddp": lambda: DataParallel("cpu"), "fsdp": lambda: FullySharded("cpu", unit=40)}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def new_model(strategy, net=None, model_class=Model, loss="cross_entropy", **options):
    model = model_class(mlp() if net is None else net, device="cpu")
    options = {"strategy": STRATEGIES[strategy]() if isinstance(strategy, str) else strategy} | options
    return model.compile(options.pop("optimizer", sgd), loss, **options)


def weights_of(model):
    return {k: v.clone() for k, v in model.strategy.checkpoints.gather(model.module.state_dict()).items()}


def results_of(model, *names):
    """Return the weights and the columns ``names`` of the history as tensors."""
    columns = {name: torch.tensor(model.history[name], dtype=torch.float64) for name in ("loss", *names)}
    return weights_of(model) | columns


# Programs. Each is run with batches of ``SIZE`` on two ranks, and with two batches per update in one process.


class Parts(nn.Module):
    """Uses one of its parts for each batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.parts = nn.ModuleList(nn.Linear(8, 3) for _ in range(3))
        self.double()

    def forward(self, x):
        return self.parts[int(x[0, 0] * 1000) % 3](x)


def other_parts_in_each_batch(strategy, updates):
    strategies = {"ddp": lambda: DataParallel("cpu", find_unused_parameters=True)}
    model = new_model(strategies.get(strategy, STRATEGIES[strategy])(), Parts(), gradient_accumulation_steps=updates)
    model.fit(X, Y, epochs=2, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model)


class Backward(Model):
    """Calls ``backward`` for gradients of the inputs, as adversarial training does."""

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(self(x), y), x)
        return {"loss": self.loss(self((x + 0.1 * gradient.sign()).detach()), y)}


def gradients_of_inputs(strategy, updates):
    model = new_model(strategy, model_class=Backward, gradient_accumulation_steps=updates)
    model.fit(X, Y, epochs=2, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model)


class BackwardInStep(Model):
    """Leaves gradients, which do not belong to the update."""

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        x = x.clone().requires_grad_()
        self.loss(self(x), y).backward()
        return {"loss": self.loss(self((x + 0.1 * x.grad.sign()).detach()), y)}


def backward_in_the_step(strategy, updates):
    model = new_model(strategy, model_class=BackwardInStep, gradient_accumulation_steps=updates)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "train_step called backward")
        model.fit(X, Y, epochs=2, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model)


class Parted(Model):
    """Batches of four parts, of which the second counts no samples."""

    def train_step(self, batch):
        inputs, _, lengths, _ = batch
        return {"loss": self(inputs).square().mean(), "samples": torch.tensor(float(len(lengths)))}

    def batch_size(self, batch):
        return len(batch[0])


def batches_of_four_parts(strategy, updates):
    data = [(X[i : i + n], torch.zeros(3 * n), torch.zeros(n), 0) for i, n in [(0, 6), (6, 6), (12, 4), (16, 4)]]
    model = new_model(strategy, model_class=Parted, loss=None, gradient_accumulation_steps=updates)
    model.fit(data, epochs=2, verbose=0)
    return results_of(model, "samples")


class LoggedByTest(Model):
    def test_step(self, batch):
        return {**super().test_step(batch), "flat": self.unpack(batch).x.mean()}


def value_that_only_test_step_logs(strategy, updates):
    model = new_model(strategy, model_class=LoggedByTest, gradient_accumulation_steps=updates)
    stop = EarlyStopping("val_flat", mode="min", patience=1)
    model.fit(
        X, Y, epochs=4, batch_size=SIZE, shuffle=False, validation_data=(X[:31], Y[:31]), callbacks=[stop], verbose=0
    )
    return results_of(model, "val_flat") | {"stopped": torch.tensor(float(stop.stopped_epoch))}


class Stream(IterableDataset):
    """A stream that two workers share, with a length that is too small."""

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i in range(first, 48, step):
            yield X[i], Y[i]

    def __len__(self):
        return 42


def stream_of_two_workers(strategy, updates):
    rates = []
    model = new_model(strategy, gradient_accumulation_steps=updates, scheduler="cosine")
    record = LambdaCallback(on_train_batch_end=lambda batch, logs: rates.append(model.optimizer.param_groups[0]["lr"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its length
        model.fit(DataLoader(Stream(), SIZE, num_workers=2), epochs=2, callbacks=[record], verbose=0)
    return results_of(model) | {"rates": torch.tensor(rates)}


class Noam:
    """A schedule that is no class of torch."""

    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0
        self.step()

    def step(self):
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * min(self.count**-0.5, self.count * 4**-1.5)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def schedule_of_another_library(strategy, updates):
    model = new_model(strategy, gradient_accumulation_steps=updates, scheduler=LRScheduler(Noam, "update"))
    model.fit(X, Y, epochs=3, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model, "lr")


def sum_of_a_step(strategy, updates):
    class Summed(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            return {"loss": (functional.cross_entropy(self(x), y, reduction="sum"), torch.tensor(len(y)))}

    model = new_model(strategy, model_class=Summed, gradient_accumulation_steps=updates, clip_grad_norm=0.1)
    model.fit(X[:40], Y[:40], epochs=2, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model)


def early_stopping_on_f1(strategy, updates):
    pytest.importorskip("torchmetrics")
    model = new_model(strategy, metrics=["accuracy", "f1"], gradient_accumulation_steps=updates)
    stop = EarlyStopping("val_f1", patience=2, restore_best_weights=True)
    model.fit(
        X, Y, epochs=5, batch_size=SIZE, shuffle=False, validation_data=(X[:31], Y[:31]), callbacks=[stop], verbose=0
    )
    return results_of(model, "val_f1", "f1", "accuracy", "val_loss")


def one_output(strategy, updates):
    """Train layers of one row, of which a rank has no shard."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    model = new_model(strategy, net, loss="mse", gradient_accumulation_steps=updates)
    model.fit(X, X[:, :1], epochs=2, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model)


def lazy_layers_after_a_first_call(strategy, updates):
    torch.manual_seed(1)
    net = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(3))
    net(X[:2].float())
    model = new_model(strategy, net.double(), gradient_accumulation_steps=updates)
    model.fit(X, Y, epochs=2, batch_size=SIZE, shuffle=False, verbose=0)
    return results_of(model)


PROGRAMS = (
    other_parts_in_each_batch, gradients_of_inputs, batches_of_four_parts, value_that_only_test_step_logs,
    stream_of_two_workers, schedule_of_another_library, sum_of_a_step, early_stopping_on_f1, lazy_layers_after_a_first_call,
)  # fmt: skip


def run_programs(strategy, ranks):
    programs = [program for program in PROGRAMS if strategy != "fsdp" or program is not other_parts_in_each_batch]
    return {
        (program.__name__, window): program(strategy, window * 2 // ranks) for program in programs for window in (1, 2)
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_two_processes_equal_one(strategy):
    expected = run_programs("one", 1)
    for results in run_ranks(run_programs, strategy, 2):
        for name, values in results.items():
            assert furthest(values, expected[name]) < 1e-12, name


# Parts of a module that one rank does not use


class Skipping(nn.Module):
    """Calls the layers whose numbers it gets for this rank."""

    def __init__(self, numbers):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.numbers = numbers[int(os.environ.get("RANK", "0"))]
        self.double()

    def forward(self, x):
        x = self.first(x)
        for number in self.numbers:
            x = x + self.layers[number](x).tanh()
        return self.last(x)


def skip_layers(numbers, unit):
    model = new_model(FullySharded("cpu", unit=unit), Skipping(numbers))
    model.fit(X, Y, batch_size=SIZE, verbose=0)


SKIPS = {"other blocks": ([0, 1], [0, 2]), "another order": ([0, 1], [1, 0]), "one block each": ([2], [0])}


@pytest.mark.parametrize("unit", [40, 1_000_000])
def test_fsdp_refuses_layers_that_one_rank_skips(unit):
    """FSDP would exchange the weights, or gradients, of different layers of the same size."""
    names = [name for name in SKIPS if unit == 40 or name != "another order"]
    functions = {name: functools.partial(skip_layers, SKIPS[name], unit) for name in names}
    results = run_ranks(attempt_all, functions)
    for name in names:
        both_fail([result[name] for result in results], "used different parts of the module.*find_unused_parameters")
    if unit == 40:
        assert (
            "called the blocks 'layers.0', 'layers.1', and has no gradient of 'layers.2.weight'"
            in results[0]["other blocks"][0][1]
        )


def train_after_an_error():
    model = new_model("fsdp", Skipping(([0, 1], [1, 0])))
    with pytest.raises(RankError, match="used different parts"):
        model.fit(X, Y, batch_size=SIZE, verbose=0)
    model.module.numbers = [0, 1, 2]
    model.fit(X, Y, batch_size=SIZE, verbose=0)
    return weights_of(model)


def test_fsdp_continues_after_the_error_of_all_ranks():
    first, second = run_ranks(train_after_an_error)
    assert furthest(first, second) == 0


def train_parts_alike(numbers):
    """Skip the same layers on both ranks, with two updates of them in a window."""
    model = new_model(FullySharded("cpu", unit=40), Skipping(numbers), gradient_accumulation_steps=2)
    model.fit(X, Y, batch_size=SIZE, shuffle=False, validation_data=(X[:7], Y[:7]), verbose=0)
    return results_of(model)


@pytest.mark.filterwarnings("ignore:Some parameters are not trained")
def test_fsdp_trains_layers_that_all_ranks_skip():
    net = Skipping(([0, 1], [0, 1]))
    expected = new_model("one", net, gradient_accumulation_steps=4)
    expected.fit(X, Y, batch_size=SIZE, shuffle=False, verbose=0)
    for results in run_ranks(train_parts_alike, ([0, 1], [0, 1])):
        assert furthest(results, results_of(expected)) < 1e-12
