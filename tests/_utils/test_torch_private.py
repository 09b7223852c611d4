"""Private names of torch, and the public names that replace them."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.autograd import profiler
from torch.utils.data import DataLoader, TensorDataset

import easytorch
from easytorch import DataParallel, Model
from easytorch._utils import torch_private
from easytorch._utils.torch_private import cpu_has_bf16, find_step, zero_grad
from easytorch.optimizers import TABLE
from tests.loops import blobs, mlp
from tests.many import run_ranks

PACKAGE = Path(easytorch.__file__).parent


# The names in torch


def test_torch_has_the_shapes_of_autograd_nodes():
    column = torch.ones(3, 1, requires_grad=True)
    pairs, rows = column + torch.ones(3), column[:, 0] + torch.ones(3)
    assert torch_private.has_node_of_shape(pairs.mean().grad_fn, torch.Size([3, 3]), None)
    assert not torch_private.has_node_of_shape(rows.mean().grad_fn, torch.Size([3, 3]), None)
    assert not torch_private.has_node_of_shape(pairs.mean().grad_fn, torch.Size([3, 3]), pairs.grad_fn)


def test_torch_draws_a_permutation_as_expected():
    assert torch_private._draws_a_permutation()


def new_optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def test_torch_has_the_names_of_the_optimizer_shortcut():
    module = importlib.import_module("torch.optim.optimizer")
    assert profiler._is_profiler_enabled is False
    assert module._global_optimizer_pre_hooks is torch_private._global_pre_hooks
    assert module._global_optimizer_post_hooks is torch_private._global_post_hooks
    assert new_optimizer()._optimizer_step_pre_hooks == {}
    assert new_optimizer()._optimizer_step_post_hooks == {}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_torch_wraps_the_step_of_every_optimizer(name):
    # The first instance wraps the method.
    TABLE[name]([torch.zeros(1, 1, requires_grad=True)])
    assert TABLE[name].step.__code__ is torch_private.STEP_WRAPPER
    assert TABLE[name].step.__wrapped__.__name__ == "step"


def test_the_shortcut_skips_the_wrapper():
    with torch.autograd.profiler.profile() as profile:
        zero_grad(new_optimizer())
    assert "Optimizer.zero_grad#SGD.zero_grad" not in {event.name for event in profile.function_events}
    calls = []
    optimizer = new_optimizer()
    # The wrapper calls this function.
    optimizer._optimizer_step_code = lambda: calls.append(1)
    find_step(optimizer)()
    assert calls == []
    optimizer.step()
    assert calls == [1]


def test_torch_has_the_coalesced_broadcast():
    assert callable(dist._broadcast_coalesced)


def test_private_names_of_torch_are_in_one_file():
    private = re.compile(
        r"\b(torch|dist|distributed|profiler|distributed_c10d)(\.[a-z_0-9]+)*\._[a-z]|from torch\S* import .*\b_[a-zA-Z]"
    )
    # Names in files of other programs.
    allowed_files = {"_utils/torch_private.py", "checkpoint/pickles.py", "checkpoint/validation.py"}
    names_in_files = {
        path.relative_to(PACKAGE).as_posix(): match[0]
        for path in PACKAGE.rglob("*.py")
        if (match := private.search(path.read_text())) is not None
    }
    assert {path: name for path, name in names_in_files.items() if path not in allowed_files} == {}


# The fallbacks


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (profiler, "_is_profiler_enabled"),
        (torch_private, "STEP_WRAPPER"),
        (torch_private, "_global_pre_hooks"),
        (torch_private, "_global_post_hooks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_private_names_the_public_step_is_called(monkeypatch, owner, name):
    if owner is profiler:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, object())
    optimizer, calls = new_optimizer(), []
    optimizer._optimizer_step_code = lambda: calls.append(1)
    if owner is profiler:
        # torch itself reads the name in its wrapper.
        monkeypatch.setattr(type(optimizer), "step", lambda self: calls.append(1))
    find_step(optimizer)()
    assert calls == [1]


def test_a_torch_without_the_wrapper_is_accepted(monkeypatch):
    monkeypatch.delattr(torch.optim.Optimizer, "profile_hook_step")
    assert torch_private._find_step_wrapper() is not None


def broadcast_tensors(with_private_name):
    group = DataParallel("cpu").group
    if not with_private_name:
        del dist._broadcast_coalesced
    tensors = [torch.full((2,), float(group.rank)), torch.full((3,), group.rank)]
    group.broadcast_tensors(tensors)
    return [tensor.tolist() for tensor in tensors]


@pytest.mark.parametrize("with_private_name", [True, False])
def test_broadcast_works_without_the_private_name(with_private_name):
    assert run_ranks(broadcast_tensors, with_private_name) == [[[0.0, 0.0], [0, 0, 0]]] * 2


def accumulate_by_fsdp():
    """Return how many gradients wait after a batch that is not the last of its window, and after they are deleted."""
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", strategy="fsdp")
    x, y = blobs(4)
    model.strategy.accumulating(sync=False)
    model.strategy.backward(model.strategy.run(model.train_step, (x, y))["loss"])
    gradients = torch_private.unsharded_gradients(model.strategy.control)
    counts = [sum(gradient.grad is not None for gradient in gradients)]
    for gradient in gradients:
        gradient.grad = None
    return [*counts, sum(gradient.grad is not None for gradient in gradients)]


def test_torch_has_the_gradients_that_fsdp_accumulates():
    assert run_ranks(accumulate_by_fsdp) == [[len(list(mlp().parameters())), 0]] * 2


# Custom behavior of optimizers


class CountingSGD(torch.optim.SGD):
    """Counts the calls of ``zero_grad``."""

    calls = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.calls += 1
        super().zero_grad(set_to_none)


def test_a_custom_zero_grad_is_called():
    x, y = blobs(20)
    module = mlp()
    optimizer = CountingSGD(module.parameters(), lr=0.1)
    Model(module).compile(optimizer, "cross_entropy").fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert optimizer.calls >= 10
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_replaced_zero_grad_is_called():
    x, y = blobs(20)
    module, calls = mlp(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.zero_grad = lambda: calls.append(1) or torch.optim.SGD.zero_grad(optimizer)
    Model(module).compile(optimizer, "cross_entropy").fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert len(calls) >= 10


def count_calls(prepare):
    """Train for ten updates, and return the number of calls that ``prepare(optimizer, calls)`` records."""
    x, y = blobs(20)
    module, calls = mlp(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    undo = prepare(optimizer, calls)
    try:
        Model(module).compile(optimizer, "cross_entropy").fit(x, y, batch_size=4, epochs=2, verbose=0)
    finally:
        if hasattr(undo, "remove"):
            undo.remove()
    return len(calls)


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_of_an_optimizer_are_called(register):
    assert count_calls(lambda optimizer, calls: getattr(optimizer, register)(lambda *_: calls.append(1))) == 10


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_of_all_optimizers_are_called(register):
    # The class torch.optim.Optimizer hides the module.
    module = importlib.import_module("torch.optim.optimizer")
    assert count_calls(lambda optimizer, calls: getattr(module, register)(lambda *_: calls.append(1))) == 10


def test_a_replaced_step_is_called():
    def replace(optimizer, calls):
        optimizer.step = lambda: calls.append(1)

    assert count_calls(replace) == 10


def test_a_step_wrapped_for_the_class_is_called(monkeypatch):
    def wrap(optimizer, calls):
        original = torch.optim.SGD.step

        # functools.wraps makes it look like the step of torch.
        @functools.wraps(original)
        def step(self, closure=None):
            calls.append(1)
            return original(self, closure)

        monkeypatch.setattr(torch.optim.SGD, "step", step)

    assert count_calls(wrap) == 10


def test_a_profiler_sees_every_update():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert count_calls(lambda optimizer, calls: None) == 0
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#SGD.step"] == 10


# SparseAdam needs sparse gradients; tests/test_closures.py has the optimizers that need a closure.
@pytest.mark.parametrize("name", sorted(set(TABLE) - {"sparseadam", "lbfgs", "sam"}))
def test_step_gives_the_weights_of_the_optimizer(name):
    def weights(step):
        torch.manual_seed(0)
        module = torch.nn.Linear(6, 4, bias=name != "muon")
        optimizer = TABLE[name](module.parameters())
        for _ in range(3):
            module(torch.ones(2, 6)).square().sum().backward()
            step(optimizer)
            zero_grad(optimizer)
        return module.weight

    assert torch.equal(weights(lambda optimizer: find_step(optimizer)()), weights(lambda optimizer: optimizer.step()))


def test_torch_has_the_names_of_a_process_group():
    c10d = dist.distributed_c10d
    assert callable(c10d._get_default_store)
    assert callable(c10d._abort_process_group)


def test_without_the_private_name_there_is_no_store(monkeypatch):
    monkeypatch.delattr(dist.distributed_c10d, "_get_default_store")
    assert torch_private.default_store() is None


def test_a_released_replica_holds_no_connection():
    replica = torch.nn.Linear(1, 1)
    replica.reducer = replica.logger = replica.process_group = object()
    torch_private.release_replica(replica)
    assert replica.reducer is replica.logger is replica.process_group is None


def test_torch_has_the_names_of_a_data_loader():
    loader = DataLoader(TensorDataset(torch.zeros(4)), num_workers=1, persistent_workers=True)
    assert not torch_private.workers_are_running(loader)
    iterator = iter(loader)
    assert callable(iterator._shutdown_workers)
    assert torch_private.workers_are_running(loader)
    assert not torch_private.workers_are_running(torch_private.copy_loader(loader))
    torch_private.shut_down_workers(iterator)
    assert not iterator._workers[0].is_alive()


def test_torch_has_the_probes_of_x86_instructions():
    if "AVX" in torch.backends.cpu.get_cpu_capability():
        assert type(torch.cpu._is_avx512_bf16_supported()) is bool
        assert type(torch.cpu._is_amx_tile_supported()) is bool
    assert type(cpu_has_bf16()) is bool


def test_the_leaves_of_a_graph_are_its_weights():
    net, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    found = torch_private.graph_leaves([net(x).relu(), net(x), x])
    assert {id(leaf) for leaf in found} == {id(parameter) for parameter in net.parameters()}


def test_torch_reads_whether_an_optimizer_has_stepped():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    torch_private.mark_as_stepped(optimizer)
    scheduler.step()  # without a warning


@pytest.mark.parametrize(
    ("loss", "is_sum"),
    [
        (lambda z: torch.nn.functional.mse_loss(z, z.detach() + 1, reduction="sum"), True),
        (lambda z: torch.nn.functional.mse_loss(z, z.detach() + 1), False),
        (lambda z: 0.5 * z.square().sum() + 1, True),
        (lambda z: z.square().sum() / len(z), False),
        (lambda z: z.square().sum(1).mean(), False),
        (lambda z: z.sum(0).sum(), False),  # a sum over columns, in which no dimension is that of the samples
    ],
)
def test_a_sum_over_samples_is_found_in_the_graph(loss, is_sum):
    z = torch.randn(4, 3, requires_grad=True)
    value = loss(z)
    value.backward()
    assert torch_private.is_sum_over(value.grad_fn, 4) is is_sum
