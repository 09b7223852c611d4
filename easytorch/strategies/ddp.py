"""Data-parallel training on DistributedDataParallel."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from easytorch._utils.integers import boolean
from easytorch._utils.registry import quote_list
from easytorch.data.batch import Window, divide
from easytorch.data.eval_iterator import EvalIterator
from easytorch.data.predictions import DistributedCollector, NpyWriter, OutputCollector
from easytorch.distributed.process_group import ProcessGroup
from easytorch.distributed.sync_batchnorm import SYNCHRONIZED, convert_batchnorm
from easytorch.optimizer_group import OptimizerGroup, OwnedLosses, parameters_of
from easytorch.strategies.base import Strategy, check_is_not_sharded
from easytorch.strategies.control import ControlChannel
from easytorch.strategies.reduction import Reduction

if TYPE_CHECKING:
    from easytorch.losses.criterion import Criterion
    from easytorch.metrics.collection import MetricCollection
    from easytorch.typing import DataLike

_NO_OP = contextlib.nullcontext()

# In the error that torch raises in the update after one which did not use all parameters.
UNFINISHED = "Expected to have finished reduction in the prior iteration"
UNEQUAL_PAIRS = (
    "train_step returned a pair, (sum, count), as 'loss', but not in the first update. With several processes, return a pair in "
    "every step or in none."
)


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

    Examples:
        >>> strategy = DataParallel(find_unused_parameters=True)  # doctest: +SKIP
        >>> model.compile("adam", "cross_entropy", strategy=strategy)  # doctest: +SKIP
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
        self.sync_batchnorm = self.needs_batch_every_step = boolean("sync_batchnorm", sync_batchnorm)
        self.options: dict[str, Any] = {
            "find_unused_parameters": boolean("find_unused_parameters", find_unused_parameters),
            "static_graph": boolean("static_graph", static_graph),
        }
        split_data = boolean("split_data", split_data)
        if self.device.type != "cpu":
            torch.accelerator.set_device_index(self.device.index or 0)
        self.group = ProcessGroup(self.device, timeout, split_data)
        self._synchronized: list[Any] = []  # the BatchNorm layers with the statistics of all ranks
        self._window = Window()  # of the update in progress
        self._replica: Any = None  # the control channel, wrapped in DDP
        self._trainable: list[int] = []
        self._trained: list[nn.Parameter] = []
        self._waits_for_all = False  # whether DDP expects a gradient of each parameter in each update
        self._divides_by_count: bool | None = None
        # With a loss for each of several optimizers.
        self._group: OptimizerGroup | None = None
        self._reduction: Reduction | None = None

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move ``module`` to the device, broadcast the weights of rank 0, and prepare its calls."""
        check_is_not_sharded(module)
        if self.sync_batchnorm:
            convert_batchnorm(module.to(self.device))
        self._synchronized = find_synchronized(module)
        super().prepare(module)
        self.module = module
        with self.group.call("compile", **_describe(module)):
            self.group.broadcast_tensors([*self.parameters(), *self.buffers()])

    # Steps

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Prepare for updates: wrap the module again if its trainable parameters have changed."""
        super().start(optimizer)
        self._wrap()
        self._reset_flags()
        # DDP expects gradients of all parameters in each backward pass.
        self._group = optimizer if isinstance(optimizer, OptimizerGroup) and optimizer.may_have_losses else None
        self._reduction = None if self._group is None else self._new_reduction()

    def _wrap(self) -> None:
        """Wrap the module, unless the same parameters are trained as before."""
        self._trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        trainable = self._list_trainable()
        if self._replica is None or trainable != self._trainable:
            control = ControlChannel(self.module, self.device, self.group, loss_modules=self.loss_modules)
            self._trainable, self.control = trainable, control
            self._waits_for_all = not any(self.options.values())
            self._replica = DistributedDataParallel(self.control, **self.options)
            self.group.add_replica(self._replica)
            if not self._replica.static_graph:  # otherwise the first update would differ from the others
                self._settle_layout()

    def _new_reduction(self) -> Reduction:
        return Reduction(self.group, self.control, finds_unused=self.options["find_unused_parameters"])

    def _reset_flags(self) -> None:
        self.control.start()
        self._counts_are_known: bool | None = None  # whether each loss is divided by known sample counts
        self._sync, self._has_synced = True, False
        self._count, self._divides_by_count = None, None  # agreed by all ranks in the first update

    def batch_weights(self, criterion: Criterion, window: Window) -> Iterable[Any]:
        """Return the factor of each batch's loss, so that the windows of all ranks count as one batch."""
        self._window = window
        self._follow_trainable()
        if self._reduction is not None:
            self.group.broadcast_tensors(self.buffers())  # as DDP does before a forward pass
        return self._weights(criterion, window)

    def _follow_trainable(self) -> None:
        """Wrap the module again if a callback has frozen or unfrozen parameters on all ranks."""
        if self._list_trainable() != self._trainable:
            self._wrap()
            self.control.start()
            self._reduction = None if self._reduction is None else self._new_reduction()

    def _share(self, window: Window, columns: list[Sequence[Any] | None]) -> list[list[Any]]:
        """Return the counts of this rank's batches, each column divided by its total over all ranks.

        DDP averages gradients, so every share is multiplied by the number of ranks. A batch that is padding has no share.
        """
        is_real = [bool(n) for n in (window.sizes if window.sample_counts is None else window.sample_counts)]
        local = {
            i: [n if real else 0 for n, real in zip(column, is_real, strict=True)]
            for i, column in enumerate(columns)
            if column is not None
        }
        by_samples = all(columns[i] is window.sizes for i in local)
        totals = dict(zip(local, self._totals(window, list(local.values()), by_samples=by_samples), strict=True))
        world_size = self.group.world_size
        sums = [float(world_size) * real for real in is_real]
        return [
            [divide(n * world_size, totals[i]) if isinstance(n, Tensor) or n else 0.0 for n in local[i]]
            if i in local
            else sums
            for i in range(len(columns))
        ]

    def _totals(self, window: Window, columns: list[list[Any]], *, by_samples: bool) -> list[Any]:
        """Return the sum of each column over all ranks: the known sample count, otherwise by an all-reduce."""
        if not columns:
            return []
        if self._counts_are_known is None:
            is_known = by_samples and window.counts_exact and list(columns[0]) == window.sample_counts
            self._counts_are_known = not self.group.any_rank(not is_known)
        if self._counts_are_known and window.total is not None:
            return [window.total] * len(columns)
        sums = torch.stack([torch.as_tensor(sum(column), dtype=torch.float64) for column in columns])
        return list(self.group.all_reduce_sum_on_device(sums, self.device))

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Delay the all-reduce of gradients until ``sync``."""
        self._sync = sync
        return _NO_OP if sync or self._reduction is not None else self._replica.no_sync()

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``; its backward pass synchronizes the gradients of all ranks."""
        self._mark_padding(self._window.is_padding)
        if torch.is_grad_enabled() and self._replica is not None and self._reduction is None:
            step = functools.partial(self._call_replica, step, self._sync)
        return super().run(step, batch)

    def _mark_padding(self, is_padding: bool) -> None:
        """Let synchronized statistics leave out the current batch if it is padding."""
        for layer in self._synchronized:
            layer.is_padding = is_padding

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Delete the gradients at the end of an update."""
        super().zero_grad(optimizer)
        self._window = Window()
        self._mark_padding(False)

    def _call_replica(self, step: Callable[[Any], Any], sync: bool, batch: Any) -> Any:
        try:
            return self._replica(step, sync, batch)
        except RuntimeError as error:
            if UNFINISHED not in str(error):
                raise
            raise _unused_error("parameters") from error

    def run_locally(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)`` without communication with other ranks."""
        return super().run(step, batch)

    def backward(self, loss: Any, weight: Any = 1.0, **options: Any) -> None:
        """Add the gradients of ``loss * weight``, averaged over the ranks unless synchronization is delayed."""
        counts_nothing = type(weight) is float and weight == 0.0
        if self._reduction is not None:
            if not counts_nothing or self.needs_batch_every_step:
                if type(loss) is not OwnedLosses:
                    self._reduction.watch(loss)
                super().backward(loss, weight, **options)
            return
        if counts_nothing and not self.needs_batch_every_step and not self._replica.find_unused_parameters:
            # The loss of a batch without targets is 0 / 0, whose NaN would spoil the gradients of all ranks.
            zero, weight = _zero_loss(self.module, *self.loss_modules.parameters(), self.control.flags), 1.0
            loss = (zero, 0) if isinstance(loss, tuple) else zero
        super().backward(loss, weight, **options)
        self._has_synced |= self._sync

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Take part in the all-reduce even without a batch, read the control flags, and divide by the loss scale."""
        if self._group is not None:
            self._reduce_own(optimizer, self._group)
            super().unscale(optimizer)
            return
        if not self._has_synced:
            self._sync_without_batch()
        if self._waits_for_all:
            self._check_were_used(self._trained)
        self.control.receive()
        if self._divides_by_count is None:
            self._divides_by_count = self.group.any_rank(self._count is not None)
        if self._divides_by_count:
            self._count = 0 if self._count is None else self._count
        elif self._count is not None:
            raise ValueError(UNEQUAL_PAIRS)
        super().unscale(optimizer)

    def _reduce_own(self, optimizer: torch.optim.Optimizer, group: OptimizerGroup) -> None:
        """Average the gradients of ``optimizer`` over the ranks, and agree on what its losses are divided by."""
        assert self._reduction is not None
        names, reduction = group.names_of(optimizer), self._reduction
        trained = {name: [p for p in parameters_of(group[name]) if p.requires_grad] for name in names}
        parameters, had_batch = [p for part in trained.values() for p in part], reduction.has_gradients
        if had_batch and not reduction.finds_unused:
            self._check_were_used(parameters)
        reduction.reduce(parameters)
        self.control.receive()
        current = [self._clips_each, self._count is not None, *(name in self._counts for name in names)]
        self._clips_each, is_pair, *are_pairs = agreed = reduction.agree(names, current)
        if had_batch and agreed[1:] != current[1:]:
            raise ValueError(UNEQUAL_PAIRS)
        if is_pair:
            self._count = 0 if self._count is None else self._count
        for name in (name for name, has_count in zip(names, are_pairs, strict=True) if has_count):
            self._counts.setdefault(name, (0, trained[name]))

    def _check_were_used(self, parameters: list[nn.Parameter]) -> None:
        """Raise an error if a parameter had no gradient: DDP would wait for it, and average no gradient of its bucket."""
        if any(parameter.grad is None for parameter in parameters):
            names = {id(parameter): name for name, parameter in self.module.named_parameters()}
            unused = [names.get(id(p), "a parameter of the loss") for p in parameters if p.grad is None]
            raise _unused_error(quote_list(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else ""))

    def _divide_gradients(self, count: Any, parameters: list[nn.Parameter]) -> None:
        total = self.group.all_reduce_sum_on_device(count, self.device)
        super()._divide_gradients(total / self.group.world_size, parameters)  # DDP averages gradients

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters; under fp16 skip the update if a gradient overflowed."""
        super().step(optimizer)
        self.control.finish_update()
        self._sync, self._has_synced = True, False

    def total_loss(self, closure: Callable[[], None]) -> Tensor:
        """Compute the gradients of an update by ``closure``, and return its loss over all batches and ranks."""
        total: Tensor = self.group.all_reduce_sum_on_device(super().total_loss(closure), self.device)
        return total / self.group.world_size  # a batch's share is multiplied by the number of ranks

    def repeat_backward(self) -> None:
        """Prepare for the gradients of another evaluation of the same update."""
        self.control.finish_update()
        self._sync, self._has_synced = True, False

    def _settle_layout(self) -> None:
        """Let DDP choose the memory layout of gradients now.

        Sums in another layout differ in the last bits, so a resumed run would not equal the uninterrupted one.
        """
        self.control.start()
        self._sync_without_batch()
        self.module.zero_grad()
        self.loss_modules.zero_grad()

    def _sync_without_batch(self) -> None:
        """Take part in an update without a batch, with zero gradients."""
        zero = functools.partial(_zero_loss, self.module, *self.loss_modules.parameters())
        self._replica(lambda _: {"loss": zero()}, True, None)["loss"].backward()

    def _list_trainable(self) -> list[int]:
        """Return the identities of what DDP has wrapped: the trainable parameters, and the modules of the loss."""
        trainable = [id(parameter) for parameter in self.parameters() if parameter.requires_grad]
        return trainable + [id(loss) for loss in self.loss_modules.children()]

    # Evaluation and prediction

    def batches(self, loader: DataLike, steps: int | None = None) -> EvalIterator:
        """Return this rank's batches of ``loader``; the BatchNorm statistics of rank 0 are broadcast before the first."""
        batches = super().batches(loader, steps)
        batches.before_first = functools.partial(self.group.broadcast_tensors, self.buffers())
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


def find_synchronized(module: nn.Module) -> list[Any]:
    """Return the BatchNorm layers of ``module`` that use the statistics of all ranks."""
    return [layer for layer in module.modules() if isinstance(layer, SYNCHRONIZED)]


def _unused_error(names: str) -> RuntimeError:
    return RuntimeError(
        f"An update used not all trainable parameters: {names} had no gradient. DDP waits for the gradient of each of them. Pass "
        "strategy=easytorch.DataParallel(find_unused_parameters=True) for steps that do not use every parameter. Or freeze "
        "unused ones before fit(): parameter.requires_grad_(False)."
    )


def _describe(module: nn.Module) -> dict[str, Any]:
    """Return what must be the same on all ranks: the names and shapes of all tensors."""
    tensors = {
        name: (tuple(value.shape), str(value.dtype))
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    return {
        "module": type(module).__name__,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "tensors": f"{len(tensors)} ({hashlib.sha256(repr(tensors).encode()).hexdigest()[:8]})",
    }


def _zero_loss(module: nn.Module, *others: nn.Parameter) -> Tensor:
    """Return 0, with zero gradients for all trainable parameters and ``others``, whatever their values."""
    sparse = {
        id(layer.weight): layer.weight
        for layer in module.modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse and layer.weight.requires_grad
    }
    dense = [p for p in (*module.parameters(), *others) if p.requires_grad and id(p) not in sparse]
    terms = [(p.real if p.is_complex() else p).flatten()[:0].sum().float() for p in dense]
    # DDP expects sparse gradients of these layers.
    rows = [
        nn.functional.embedding(weight.new_empty(0, dtype=torch.int64), weight, sparse=True)
        for weight in sparse.values()
    ]
    return torch.stack([*terms, *(row.sum().float() for row in rows)]).sum()
