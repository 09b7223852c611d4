"""Fully sharded training on FSDP2."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import map_leaves
from easytorch.data.epoch_iterator import EvalIterator
from easytorch.strategies.base import Strategy
from easytorch.strategies.control import ControlChannel
from easytorch.strategies.ddp import DataParallel
from easytorch.strategies.device import PRECISIONS


class FullySharded(DataParallel, name="fsdp"):
    """Runs the same steps in many processes, each of which keeps a part of the weights, on torch's ``fully_shard`` (FSDP2).

    The numbers are those of ``DataParallel``. Weights, gradients and the optimizer's state take the memory that they take in one
    process, divided by the number of processes; a block is whole only while it computes, the module only while it is evaluated.

    Args:
        device: Where this process computes; ``"auto"`` gives each process of a machine an accelerator of its own.
        precision: See ``Strategy``; below ``"fp32"`` the weights travel in half the bytes, the gradients in float32.
        jit_compile: See ``Strategy``.
        unit: Blocks, the elements of an ``nn.ModuleList`` or ``nn.Sequential``, with at least so many parameters are gathered one
            by one; all other parameters at once.
        sharded_checkpoints: Keep a run (``fit(resume=...)``, ``BackupAndRestore``) in parts: each process writes what it has,
            while training goes on. False: one plain file, for which every process gathers all weights, as ``save`` always does.
        sync_batchnorm: See ``DataParallel``.
        split_data: See ``DataParallel``.
        timeout: See ``DataParallel``.

    Raises:
        RuntimeError: If the process was not started as one of many, or torch is older than 2.7.

    ``compile`` raises a ``ValueError`` for a module that cannot be split: with a parameter that is a single number, or with
    ``channels_last``.
    """

    gradient_copies = 1
    sharded: ClassVar[Any] = weakref.WeakKeyDictionary()  # of modules that are so already, their precision and notes

    def __init__(
        self,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        jit_compile: bool = False,
        *,
        unit: int = 1_000_000,
        sharded_checkpoints: bool = True,
        sync_batchnorm: bool = False,
        split_data: bool = True,
        timeout: float = 600.0,
    ) -> None:
        _check_torch()
        super().__init__(
            device, precision, jit_compile, sync_batchnorm=sync_batchnorm, split_data=split_data, timeout=timeout
        )
        self.unit, self.needs_batch_every_step = (
            unit,
            True,
        )  # whoever has no batch must have a forward, in which weights are gathered
        self._gathered = False
        self.sharded_checkpoints, self._timeout = sharded_checkpoints, timeout
        self._writer: Any = None

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Bring ``module`` to the device, keep this process' part of it, and let ``optimizer`` update that."""
        if module not in self.sharded:
            _check(module, self.channels_last)
            super().prepare(module)
            self.sharded[module] = (self.precision, self._shard(module, optimizer))
        Strategy.prepare(self, module)
        self.module, (precision, self.notes) = module, self.sharded[module]
        if precision != self.precision:
            raise ValueError(
                f"The parts of the module are made for precision={precision!r}, and stay so. Build a new one for "
                f"{self.precision!r}."
            )
        self._replica = self.notes
        for block in filter(_is_block, module.modules()):
            vars(block).pop("forward", None)
            if self.jit_compile:  # each by itself: what gathers it, before and after, cannot be compiled
                vars(block)["forward"] = torch.compile(block.forward)

    def _shard(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> ControlChannel:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        names = {parameter: name for name, parameter in module.named_parameters()}
        low = MixedPrecisionPolicy(
            PRECISIONS[self.precision], torch.float32, cast_forward_inputs=False
        )  # autocast casts
        policy = MixedPrecisionPolicy() if PRECISIONS[self.precision] is None else low
        for block in _blocks(module, self.unit):
            fully_shard(block, mp_policy=policy)
        notes = ControlChannel(module, self.device, self.group, apart=True)
        fully_shard(notes, mp_policy=policy, ignored_params={notes.note})
        parts = dict(module.named_parameters())
        for group in optimizer.param_groups if optimizer is not None else ():
            group["params"] = [parts[names[parameter]] for parameter in group["params"]]
        return notes

    def begin(self) -> None:
        """Get ready for updates."""
        self._start()

    def batches(self, loader: Any, steps: int | None = None) -> EvalIterator:
        """Return this process' batches of ``loader``, of which others may have more: nothing is gathered between two of them."""
        self._gather(True)
        return super().batches(loader, steps)

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``, with every weight where it is needed."""
        self._gather(not torch.is_grad_enabled())
        return Strategy.run(self, lambda placed: self.notes(step, self._synced, placed), batch)

    def run_alone(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``; all processes must do so, since each has a part of the weights."""
        with torch.no_grad():
            return self.run(step, batch)

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold gradients back from other processes until ``sync``."""
        self._turn(sync)
        engine: Any = self.notes
        engine.set_requires_gradient_sync(sync)
        engine.set_is_last_backward(sync)
        return contextlib.nullcontext()

    def gather_full(self, tree: Any) -> Any:
        """Return ``tree`` with every tensor whole, on the CPU; all processes must ask for it."""
        return map_leaves(lambda leaf: leaf.full_tensor().cpu() if _is_part(leaf) else leaf, tree)

    def to_checkpoint(self, tree: Any) -> Any:
        """Return ``tree`` as the checkpoints of a run keep it: in parts, if they are sharded."""
        return tree if self.sharded_checkpoints else self.gather_full(tree)

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint ``content``, each process its part of it; the one before must be written."""
        if not self.sharded_checkpoints:
            super().write(path, content)
            return
        if self._writer is None:
            from easytorch.checkpoint.dcp import Writer

            self._writer = Writer(self.group, self._timeout)
        self._writer.begin(path, content)

    def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that was begun is whole."""
        if self._writer is not None:
            self._writer.finish()

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return this process' part of a tensor, for a part of a checkpoint to be read into."""
        from torch.distributed.tensor import Shard, empty

        mesh = next(iter(self.module.parameters())).device_mesh  # type: ignore[attr-defined]  # of those that are in parts
        return empty(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Let the module have ``weights``, which are whole."""
        self._gather(False)
        own = self.module.state_dict()
        self.module.load_state_dict({name: _like(value, own[name]) for name, value in weights.items()})

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Let ``optimizer`` have ``state``, which is whole."""
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        parameters = dict(zip(numbers, own, strict=True))
        parts = {
            number: {key: _like(value, parameters[number]) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})

    def _gather(self, whole: bool) -> None:
        """Have all weights here, or this process' part of them alone."""
        if whole == self._gathered:
            return
        self._gathered = whole
        for part in filter(_is_block, self.notes.modules()):
            engine: Any = part
            engine.set_reshard_after_forward(not whole and part is not self.notes, recurse=False)
            (engine.unshard if whole else engine.reshard)()


def _check_torch() -> None:
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise RuntimeError(
            f"strategy='fsdp' needs PyTorch 2.7 or later, this is {torch.__version__}. Update it, or use strategy='ddp'."
        )


def _check(module: nn.Module, channels_last: bool) -> None:
    """Raise a ``ValueError`` for what ``fully_shard`` refuses, before anything has changed."""
    for name, parameter in module.named_parameters():
        if not parameter.ndim:
            raise ValueError(
                f"strategy='fsdp' cannot split the parameter {name!r}, a single number. Make it a tensor of shape [1], or use "
                "strategy='ddp'."
            )
        if not parameter.is_contiguous() or (channels_last and parameter.ndim == 4):
            raise ValueError(
                f"strategy='fsdp' cannot split the parameter {name!r}, whose numbers do not lie in memory in the order of its "
                "dimensions, as with channels_last. Leave that out, or use strategy='ddp'."
            )


def _blocks(module: nn.Module, least: int) -> Iterator[nn.Module]:
    """Yield the outermost blocks of at least so many parameters."""
    listed = isinstance(module, (nn.ModuleList, nn.Sequential))
    for child in module.children():
        if listed and sum(parameter.numel() for parameter in child.parameters()) >= least:
            yield child
        else:
            yield from _blocks(child, least)


def _is_block(part: nn.Module) -> bool:
    return hasattr(part, "unshard")


def _is_part(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and hasattr(leaf, "full_tensor")


def _like(value: Any, own: Any) -> Any:
    """Return this process' part of ``value``, split as ``own`` is."""
    if not _is_part(own) or _is_part(value) or not isinstance(value, Tensor) or not value.ndim:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
