"""Private names of torch, each with a fallback on public ones.

This is the only file with private names of torch. ``tests/_utils/test_torch_private.py`` fails when torch changes one of them;
until then the fallback works, only slower.
"""

from __future__ import annotations

import copy
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import profiler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

# TCPStore and PrefixStore are public, but the type stubs of torch lack them.
stores: Any = dist

# The bytes that one message of a broadcast carries at most.
BROADCAST_BYTES = 250 * 1024 * 1024

_global_pre_hooks: Any
_global_post_hooks: Any
try:
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    _global_pre_hooks, _global_post_hooks = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
except ImportError:
    # Hooks that cannot be seen may be registered.
    _global_pre_hooks = _global_post_hooks = True


def _find_step_wrapper() -> Any:
    """Return the code of the function in which torch wraps the ``step`` of every optimizer, or an object that is no code."""
    wrap = getattr(torch.optim.Optimizer, "profile_hook_step", None)
    return object() if wrap is None else getattr(wrap(lambda: None), "__code__", object())


STEP_WRAPPER = _find_step_wrapper()
ZERO_GRAD = torch.optim.Optimizer.zero_grad


def find_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """Return a function that does what ``optimizer.step`` does, in two thirds of the time for a small network.

    torch wraps the step of every optimizer in a profiler record and in calls of hooks. The wrapper is skipped if no profiler
    runs, no hook is registered and ``step`` is not replaced. Otherwise the result is ``optimizer.step`` itself.
    """
    method: Any = type(optimizer).step
    try:
        needs_wrapper = (
            method.__code__ is not STEP_WRAPPER
            or "step" in vars(optimizer)
            or profiler._is_profiler_enabled
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or _global_pre_hooks
            or _global_post_hooks
        )
    except AttributeError:
        # This version of torch has other names, or the step is no function.
        needs_wrapper = True
    return optimizer.step if needs_wrapper else types.MethodType(method.__wrapped__, optimizer)


def step_hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return the hooks that run before and after each step of ``optimizer``; none if this version of torch has other names."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [hook for name in names for hook in getattr(optimizer, name, {}).values()]


def mark_as_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Let torch's schedulers know that ``optimizer`` has stepped, in a run that is resumed: they would warn otherwise."""
    vars(optimizer)["_opt_called"] = True


def complete_copy(optimizer: torch.optim.Optimizer) -> None:
    """Give a copied or unpickled ``LBFGS`` the attributes that its ``__getstate__`` leaves out; others are complete."""
    if isinstance(optimizer, torch.optim.LBFGS) and "_params" not in vars(optimizer):
        vars(optimizer).update(_params=optimizer.param_groups[0]["params"], _numel_cache=None)


def zero_grad(optimizer: torch.optim.Optimizer) -> None:
    """Delete the gradients as ``optimizer.zero_grad()`` does, in a tenth of the time: without a profiler record."""
    if type(optimizer).zero_grad is not ZERO_GRAD or "zero_grad" in vars(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def draw_order(sampler: Any) -> Tensor:
    """Return the indices that ``sampler`` yields, with the same random numbers, without an integer of Python for each.

    The algorithm of ``RandomSampler`` is private to torch. It is compared with torch's once, and left to torch if it differs.
    """
    if type(sampler) is SequentialSampler:
        return torch.arange(len(sampler))
    is_permutation = type(sampler) is RandomSampler and not sampler.replacement
    if is_permutation and len(sampler) == len(sampler.data_source) and _draws_a_permutation():
        return _permutation(len(sampler), sampler.generator)
    return torch.tensor(list(sampler), dtype=torch.int64)


def _permutation(count: int, generator: torch.Generator | None) -> Tensor:
    """Return what ``RandomSampler`` draws."""
    if generator is None:
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(count, generator=generator)
    torch.randperm(count, generator=generator)  # of a part of a pass, which is empty
    return order


@functools.cache
def _draws_a_permutation() -> bool:
    """Return whether ``RandomSampler`` of this version of torch draws what ``_permutation`` does."""

    def draw_list(sampler: Any) -> list[int]:
        return list(sampler)

    def draw_tensor(sampler: Any) -> list[int]:
        return [int(index) for index in _permutation(5, sampler.generator)]

    results = []
    with torch.random.fork_rng(devices=[]):
        for draw in (draw_list, draw_tensor):
            torch.manual_seed(0)
            generator = torch.Generator().manual_seed(1)
            orders = [draw(RandomSampler(range(5))), draw(RandomSampler(range(5), generator=generator))]
            results.append((orders, torch.rand(1).item(), torch.rand(1, generator=generator).item()))
    return results[0] == results[1]


def broadcast_coalesced(tensors: list[Tensor]) -> None:
    """Overwrite ``tensors`` with those of rank 0, in few large messages as DDP does."""
    broadcast: Any = getattr(dist, "_broadcast_coalesced", None)
    if broadcast is not None:
        broadcast(dist.group.WORLD, tensors, BROADCAST_BYTES, 0)
        return
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


def default_store() -> Any:
    """Return the store of the default process group, or None if torch does not show it."""
    c10d: Any = dist.distributed_c10d
    find_store = getattr(c10d, "_get_default_store", None)
    return None if find_store is None else find_store()


def release_replica(replica: Any) -> None:
    """Let a ``DistributedDataParallel`` release its connections, though a traceback may still hold it; it cannot run again."""
    for name in ("reducer", "logger", "process_group"):
        if hasattr(replica, name):
            setattr(replica, name, None)


def abort_process_group() -> None:
    """Close the connections of the default process group without waiting for the other ranks."""
    abort: Any = getattr(dist.distributed_c10d, "_abort_process_group", None)
    # Gloo has nothing to abort. Collectives on a device would be waited for.
    if abort is not None and dist.get_backend() != "gloo" and torch.accelerator.is_available():
        abort()
    else:
        dist.destroy_process_group()


def release_process_groups(*holders: type) -> None:
    """Remove the references to process groups from all wrappers of DDP and FSDP, and from instances of ``holders``.

    A group ends its threads when nothing refers to it. The wrappers cannot communicate afterwards.
    """
    kinds = (*holders, *_group_holders())
    groups = tuple(getattr(dist, name) for name in ("ProcessGroup", "Reducer", "Logger"))
    for thing in gc.get_objects():
        if not issubclass(type(thing), kinds):
            continue
        for name, value in list(vars(thing).items()):
            if issubclass(type(value), groups):
                vars(thing)[name] = None
            elif name == "_pg_registry":  # of a DeviceMesh
                value.clear()


def _group_holders() -> Iterator[type]:
    """Yield the classes of torch that hold groups, if they have been imported."""
    for module, name in (
        ("torch.nn.parallel.distributed", "DistributedDataParallel"),
        ("torch.distributed.device_mesh", "DeviceMesh"),
        ("torch.distributed.fsdp._fully_shard._fsdp_common", "DataParallelMeshInfo"),
    ):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            yield kind


def copy_loader(loader: DataLoader[Any], **attributes: Any) -> Any:
    """Return a copy of ``loader`` without its running workers, with other attributes, which ``DataLoader`` forbids to set."""
    twin = copy.copy(loader)
    vars(twin).update(_iterator=None, **attributes)
    return twin


def overrides_iteration(loader: DataLoader[Any]) -> bool:
    """Return whether the class of ``loader`` yields other batches than a ``DataLoader`` with its settings.

    The loaders of torchdata yield the same ones.
    """
    kind = type(loader)
    if kind.__module__.partition(".")[0] == "torchdata":
        return False
    return any(
        getattr(kind, name, None) is not getattr(DataLoader, name, None) for name in ("__iter__", "_get_iterator")
    )


def workers_are_running(loader: Any) -> bool:
    """Return whether ``loader`` has persistent workers that are running."""
    return getattr(loader, "_iterator", None) is not None


def shut_down_workers(iterator: Any) -> None:
    """Shut down the workers of an iterator of a ``DataLoader``; without them, do nothing."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()


def version(tensor: Tensor) -> int:
    """Return a number that changes when the values of ``tensor`` are changed in place; 0 if torch has none."""
    return int(getattr(tensor, "_version", 0))


def graph_leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaves that get a gradient from ``tensors``, each once; none if torch hides the graph."""
    nodes = [tensor.grad_fn for tensor in tensors]
    seen, found = set(nodes), []
    while nodes:
        node: Any = nodes.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.append(variable)
        for following, _ in getattr(node, "next_functions", ()):
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def cpu_has_bf16() -> bool:
    """Return whether the processor has bfloat16 instructions; True if torch cannot find out."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return True  # torch has these probes for x86 only
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def has_node_of_shape(node: Any, shape: torch.Size, end: Any) -> bool:
    """Return whether an operation of an autograd graph returned a tensor of ``shape``; False if unknown.

    Args:
        node: The ``grad_fn`` of a loss.
        shape: The shape.
        end: The ``grad_fn`` of the output of the module, which is not searched.
    """
    queue, seen = [node], {None, end}
    while queue and len(seen) < 1000:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if any(tuple(output.shape) == shape for output in getattr(node, "_input_metadata", ())):
            return True
        queue += [parent for parent, _ in node.next_functions]
    return False


# Autograd nodes that pass a sum on.
SUM_KEEPERS = ("Add", "Sub", "Neg", "AttachFlags", "View", "Squeeze", "Alias", "ToCopy")


def is_sum_over(node: Any, size: int) -> bool:
    """Return whether an autograd graph ends in a sum over a dimension of ``size``, perhaps times a number; False if unknown.

    Args:
        node: The ``grad_fn`` of a loss, before or after its backward pass.
        size: The number of samples, the first dimension of what is summed.
    """
    queue, seen = [node], 0
    while queue and seen < 1000:  # the graph of a loss that is a sum of many terms may be large
        node, seen = queue.pop(), seen + 1
        if node is None:
            continue
        name = node.name()
        sizes = getattr(node, "_saved_self_sym_sizes", ())
        # 2 is the sum in torch's enumeration of reductions.
        if getattr(node, "_saved_reduction", None) == 2 or (name == "SumBackward0" and [*sizes[:1]] == [size]):
            return True
        parents = [parent for parent, _ in node.next_functions]
        is_scaled = name.startswith("Mul") and sum(parent is not None for parent in parents) == 1
        if is_scaled or name.startswith(SUM_KEEPERS):
            queue += parents
    return False


class UnshardedGradient:
    """The gradient of an FSDP parameter that waits for the last batch of a window, with the interface of a parameter.

    Args:
        parameter: FSDP's record of the parameter.
    """

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter

    @property
    def grad(self) -> Any:
        """The gradient in both of the forms that FSDP keeps; None without any."""
        parameter = self._parameter
        gradients = (
            getattr(getattr(parameter, "_unsharded_param", None), "grad", None),
            getattr(parameter, "unsharded_accumulated_grad", None),
        )
        return None if all(gradient is None for gradient in gradients) else gradients

    @grad.setter
    def grad(self, gradients: Any) -> None:
        gradient, accumulated = gradients or (None, None)
        if hasattr(self._parameter, "_unsharded_param"):
            self._parameter._unsharded_param.grad = gradient
        self._parameter.unsharded_accumulated_grad = accumulated


def unsharded_gradients(module: torch.nn.Module) -> list[UnshardedGradient]:
    """Return the gradients that the blocks of ``module`` have not reduced yet; none if torch hides them."""
    blocks: list[Any] = [block for block in module.modules() if hasattr(block, "_get_fsdp_state")]
    states = [block._get_fsdp_state() for block in blocks]
    groups = [group for state in states for group in getattr(state, "_fsdp_param_groups", ())]
    return [UnshardedGradient(parameter) for group in groups for parameter in getattr(group, "fsdp_params", ())]
