"""Data-parallel training on DistributedDataParallel."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from easytorch.data.batch import Window
from easytorch.data.epoch_iterator import EvalIterator
from easytorch.data.predictions import DistributedCollector, NpyWriter, OutputCollector
from easytorch.distributed.process_group import ProcessGroup
from easytorch.distributed.sync_batchnorm import convert_batchnorm
from easytorch.strategies.base import Strategy
from easytorch.strategies.control import ControlChannel

if TYPE_CHECKING:
    from easytorch.losses.criterion import Criterion
    from easytorch.metrics.collection import MetricCollection

_NO_OP = contextlib.nullcontext()


class DataParallel(Strategy, name="ddp"):
    """Runs the same steps in several processes, each on its share of the data, on ``DistributedDataParallel``.

    Start the processes with ``torchrun`` or ``easytorch.launch``. An update of all ranks equals that of one process with the
    combined batch. An evaluation measures each sample once, and all ranks get the same numbers.

    Args:
        device: Device of this rank. ``"auto"`` gives each process of a machine one accelerator.
        precision: See ``Strategy``.
        jit_compile: See ``Strategy``.
        find_unused_parameters: Set it for steps that do not use every trainable parameter.
        static_graph: Set it for steps that use the same parameters in the same way in each update, which saves time.
        sync_batchnorm: Let BatchNorm use the statistics of the combined batch of all ranks.
        split_data: All ranks have the same data, which is divided between them. With False each rank brings its own data.
        timeout: Seconds after which a rank that gets no answer from the others fails.

    Raises:
        RuntimeError: If no launcher has started this process.
    """

    gradient_copies = 2  # DDP holds a second copy in its communication buffers

    def __init__(
        self,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        jit_compile: bool = False,
        *,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        sync_batchnorm: bool = False,
        split_data: bool = True,
        timeout: float = 600.0,
    ) -> None:
        super().__init__(device, precision, jit_compile)
        if self.device.type != "cpu":
            torch.accelerator.set_device_index(self.device.index or 0)
        self.group = ProcessGroup(self.device, timeout, split_data)
        self.options: dict[str, Any] = {"find_unused_parameters": find_unused_parameters, "static_graph": static_graph}
        self.sync_batchnorm = sync_batchnorm
        self.needs_batch_every_step = sync_batchnorm
        self._replica: Any = None  # the control channel, wrapped in DDP
        self._trainable: list[int] = []

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move ``module`` to the device, broadcast the weights of rank 0, and prepare its calls."""
        if self.sync_batchnorm:
            convert_batchnorm(module.to(self.device))
        super().prepare(module)
        self.module = module
        self.group.broadcast_tensors([*module.parameters(), *module.buffers()])

    # Steps

    def start(self) -> None:
        """Prepare for updates: wrap the module again if its trainable parameters have changed."""
        trainable = [id(parameter) for parameter in self._trainable_parameters()]
        if self._replica is None or trainable != self._trainable:
            self._trainable, self.control = trainable, ControlChannel(self.module, self.device, self.group)
            self._replica = DistributedDataParallel(self.control, **self.options)
            if not self._replica.static_graph:  # otherwise the first update would differ from the others
                self._settle_layout()
        self._reset_flags()

    def _reset_flags(self) -> None:
        self.control.start()
        self._counts_are_known: bool | None = None  # whether each loss is divided by known sample counts
        self._sync, self._has_synced = True, False

    def batch_weights(self, criterion: Criterion, window: Window) -> list[Any]:
        """Return the factor of each batch's loss, so that the windows of all ranks count as one batch."""
        world_size = self.group.world_size
        counts = list(window.sizes if window.sample_counts is None else window.sample_counts)
        normalizers = criterion.normalizers(window.sizes, window.unpacked())
        if normalizers is None:  # DDP averages gradients, but those of a sum must be added
            return [float(world_size) * bool(count) for count in counts]
        local = [normalizer if count else 0 for normalizer, count in zip(normalizers, counts, strict=True)]
        total = self._total(window, local, by_samples=normalizers is window.sizes)
        return [value * world_size / total if isinstance(value, Tensor) or value else 0.0 for value in local]

    def _total(self, window: Window, local: Sequence[Any], *, by_samples: bool) -> Any:
        """Return the sum of ``local`` over all ranks: the known sample count, otherwise by an all-reduce."""
        if self._counts_are_known is None:
            is_known = by_samples and window.counts_exact and list(local) == window.sample_counts
            self._counts_are_known = not self.group.any_rank(not is_known)
        if self._counts_are_known and window.total is not None:
            return window.total
        return self.group.all_reduce_sum_on_device(sum(local), self.device)

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Delay the all-reduce of gradients until ``sync``."""
        self._sync = sync
        return _NO_OP if sync else self._replica.no_sync()

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``; its backward pass synchronizes the gradients of all ranks."""
        if torch.is_grad_enabled() and self._replica is not None:
            step = functools.partial(self._replica, step, self._sync)
        return super().run(step, batch)

    def run_locally(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)`` without communication with other ranks."""
        return super().run(step, batch)

    def backward(self, loss: Tensor, weight: Any = 1.0) -> None:
        """Add the gradients of ``loss * weight``, averaged over the ranks unless synchronization is delayed."""
        counts_nothing = type(weight) is float and weight == 0.0
        if counts_nothing and not self.needs_batch_every_step and not self._replica.find_unused_parameters:
            # The loss of a batch without targets is 0 / 0, whose NaN would spoil the gradients of all ranks.
            loss, weight = _zero_loss([*self._trainable_parameters(), self.control.flags]), 1.0
        super().backward(loss, weight)
        self._has_synced |= self._sync

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Take part in the all-reduce even without a batch, read the control flags, and divide by the loss scale."""
        if not self._has_synced:
            self._sync_without_batch()
        self.control.receive()
        super().unscale(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters; under fp16 skip the update if a gradient overflowed."""
        super().step(optimizer)
        self.control.finish_update()
        self._sync, self._has_synced = True, False

    def _settle_layout(self) -> None:
        """Let DDP choose the memory layout of gradients now.

        Sums in another layout differ in the last bits, so a resumed run would not equal the uninterrupted one.
        """
        self.control.start()
        self._sync_without_batch()
        self.module.zero_grad()

    def _sync_without_batch(self) -> None:
        """Take part in an update without a batch, with zero gradients."""
        self._replica(lambda _: {"loss": _zero_loss(self._trainable_parameters())}, True, None)["loss"].backward()

    def _trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    # Evaluation and prediction

    def batches(self, loader: Any, steps: int | None = None) -> EvalIterator:
        """Return this rank's batches of ``loader``; the BatchNorm statistics of rank 0 are broadcast before the first."""
        batches = super().batches(loader, steps)
        batches.before_first = functools.partial(self.group.broadcast_tensors, list(self.module.buffers()))
        return batches

    def merge_metrics(self, metrics: MetricCollection) -> MetricCollection:
        """Return the metrics over the samples of all ranks."""
        metrics.flush()  # two sums travel faster than the hundreds of values that they consist of
        return metrics.merged(self.group.gather(metrics.state_dict()))

    def output_collector(self, collector: OutputCollector) -> OutputCollector:
        """Return a collector for the outputs of all ranks, based on ``collector``."""
        if isinstance(collector, NpyWriter):
            collector.writes = self.group.is_main
        return DistributedCollector(collector, self.group)


def _zero_loss(parameters: list[nn.Parameter]) -> Tensor:
    """Return 0, with zero gradients for all ``parameters``, whatever their values."""
    return torch.stack([parameter.flatten()[:0].sum() for parameter in parameters]).sum()
