"""Data-parallel training on DistributedDataParallel."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from easytorch.data.epoch_iterator import EvalIterator
from easytorch.data.predictions import DistributedCollector, NpyWriter, OutputCollector
from easytorch.distributed.process_group import ProcessGroup
from easytorch.distributed.sync_batchnorm import synchronized
from easytorch.strategies.base import Strategy
from easytorch.strategies.control import ControlChannel

if TYPE_CHECKING:
    from easytorch.data.batch import Batch
    from easytorch.losses.criterion import Criterion
    from easytorch.metrics.collection import MetricCollection


class DataParallel(Strategy, name="ddp"):
    """Runs the same steps in many processes, each on its part of the data, on torch's ``DistributedDataParallel``.

    The processes are those that ``torchrun`` or ``easytorch.launch`` has started. An update of all of them is that of one process
    with a batch as large as all of theirs. Evaluations measure every sample once, and every process gets the same numbers.

    Args:
        device: Where this process computes; ``"auto"`` gives each process of a machine an accelerator of its own.
        precision: See ``Strategy``.
        jit_compile: See ``Strategy``.
        find_unused_parameters: For steps that do not use every parameter that is trained.
        static_graph: For steps that use the same parameters in the same way in every update, which saves time.
        sync_batchnorm: Let BatchNorm measure the batch of all processes, instead of each its own.
        split_data: Every process has the same data, which is split between them. False: each brings its own.
        timeout: Seconds after which a process that hears nothing of the others gives up.

    Raises:
        RuntimeError: If the process was not started as one of many.
    """

    gradient_copies = 2  # the second lies in what is sent

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
        self.needs_batch_every_step = sync_batchnorm  # every process must have a batch then
        self._replica: Any = None
        self._trained: list[int] = []

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Bring ``module`` to the device, with the weights of process 0, and get ready for its calls."""
        if self.sync_batchnorm:
            synchronized(module.to(self.device))
        super().prepare(module)
        self.module = module
        self.group.broadcast_tensors([*module.parameters(), *module.buffers()])

    def begin(self) -> None:
        """Get ready for updates: find out which parameters are trained, which may have changed."""
        trained = [id(parameter) for parameter in self.module.parameters() if parameter.requires_grad]
        if self._replica is None or trained != self._trained:
            self._trained, self.notes = trained, ControlChannel(self.module, self.device, self.group)
            self._replica = DistributedDataParallel(self.notes, **self.options)
            if not self._replica.static_graph:  # else the first update would not be like the others
                self._settle()
        self._start()

    def _start(self) -> None:
        self.notes.begin()
        self._plain: bool | None = None  # whether every loss is divided by samples, whose number is foreseen
        self._synced, self._met = True, False
        self._idle_batches: list[bool] = []  # of those of the window that are still to come

    def batches(self, loader: Any, steps: int | None = None) -> EvalIterator:
        """Return this process' batches of ``loader``; statistics of BatchNorm are those of process 0 from now on."""
        batches = super().batches(loader, steps)
        batches.first = functools.partial(self.group.broadcast_tensors, list(self.module.buffers()))
        return batches

    def merge_metrics(self, metrics: MetricCollection) -> MetricCollection:
        """Return what was measured in all processes."""
        metrics.flush()  # two numbers travel faster than the hundreds that they are the sums of
        return metrics.merged(self.group.gather(metrics.state_dict()))

    def output_collector(self, gathered: OutputCollector) -> OutputCollector:
        """Return what gathers the outputs of all processes in ``gathered``."""
        if isinstance(gathered, NpyWriter):
            gathered.writes = self.group.is_main
        return DistributedCollector(gathered, self.group)

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``; where gradients are wanted, they will meet those of the other processes."""
        if torch.is_grad_enabled() and self._replica is not None:
            step = functools.partial(self._replica, step, self._synced)
        return super().run(step, batch)

    def run_alone(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``, without a word to the other processes."""
        return super().run(step, batch)

    def loss_weights(self, criterion: Criterion, sizes: Sequence[int], batches: Iterable[Batch]) -> list[Any]:
        """Return what the loss of each batch is multiplied by, so that the windows of all processes count as one batch."""
        count, foreseen, sure = self.group.world_size, self.group.foreseen, self.group.sure
        self.group.foreseen, own = None, list(sizes) if foreseen is None else foreseen[0]
        self._idle_batches = [not one for one in own]
        divisors = criterion.normalizers(sizes, batches)
        if divisors is None:  # gradients are averaged, but those of a sum are to be added
            return [float(count) * bool(one) for one in own]
        mine = [
            divisor if one else 0 for divisor, one in zip(divisors, own, strict=True)
        ]  # a lent batch counts nothing
        if self._plain is None:
            self._plain = not self.group.any_rank(divisors is not sizes or not sure or foreseen is None or mine != own)
        total = (
            foreseen[1]
            if self._plain and foreseen is not None
            else self.group.all_reduce_sum_on_device(sum(mine), self.device)
        )
        return [divisor * count / total if isinstance(divisor, Tensor) or divisor else 0.0 for divisor in mine]

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold gradients back from other processes until ``sync``."""
        self._turn(sync)
        return _NOTHING if sync else self._replica.no_sync()

    def _turn(self, sync: bool) -> None:
        """Note whose turn it is: that of a batch which counts, or which is lent; of the last of a window, or not."""
        self._synced, self.group.idle = sync, bool(self._idle_batches) and self._idle_batches.pop(0)

    def backward(self, loss: Tensor, share: Any = 1.0) -> None:
        """Add the gradients of ``loss`` times ``share``; those of all processes meet, unless they are held back."""
        if (
            type(share) is float
            and share == 0.0
            and not self.needs_batch_every_step
            and not self._replica.find_unused_parameters
        ):
            # Of a batch in which no target counts the loss is 0 / 0, and would spoil the gradients of all.
            loss, share = _nothing([*self._parameters(), self.notes.note]), 1.0
        super().backward(loss, share)
        self._met |= self._synced

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients, which have met by now, back to their true size."""
        if not self._met:
            self._idle()
        self.notes.read()
        super().unscale(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters, unless a scaled gradient overflowed."""
        super().step(optimizer)
        self.notes.end()
        self._synced, self._met = True, False
        self._idle_batches.clear()

    def any_rank(self, topic: int, wish: bool) -> bool:
        """Whether some process wished something before the last update, in which all were told."""
        self.notes.wishes[topic] |= wish
        return self.notes.granted[topic]

    def loss_not_finite(self, bad: Any) -> Any:
        """Whether a loss of this update was not finite, in any process; ``bad`` is what was found in this one."""
        return self.notes.broken()

    def now(self) -> float:
        """Return the seconds since training began, on the clock of process 0, as all were told in the last update."""
        return self.notes.timer

    def _settle(self) -> None:
        """Let DDP lay gradients out as it will keep them: sums in another layout have other last bits, so a run that is
        resumed would not be the one that it was.
        """
        self.notes.begin()
        self._idle()
        self.module.zero_grad()

    def _idle(self) -> None:
        """Take part in an update without a batch: with gradients of nothing."""
        self._replica(lambda _: {"loss": _nothing(self._parameters())}, True, None)["loss"].backward()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


def _nothing(parameters: list[nn.Parameter]) -> Tensor:
    """Return 0, and as gradients of all ``parameters`` zeros, whatever they are."""
    return torch.stack([parameter.flatten()[:0].sum() for parameter in parameters]).sum()


_NOTHING = contextlib.nullcontext()
