"""Fully sharded training on FSDP2.

``torch.distributed.fsdp`` is imported at first use, since importing it takes long.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils import torch_private
from easytorch._utils.integers import boolean
from easytorch._utils.pytree import map_leaves
from easytorch._utils.registry import quote_list
from easytorch.checkpoint.storage import Location
from easytorch.distributed.agreement import NO_ANSWER
from easytorch.distributed.process_group import SingleProcess
from easytorch.distributed.sync_batchnorm import has_local_batchnorm
from easytorch.errors import RankError
from easytorch.optimizer_group import OptimizerGroup, OwnedLosses, members_of
from easytorch.strategies.base import SHARDED, Strategy
from easytorch.strategies.checkpoints import Checkpoints
from easytorch.strategies.control import ControlChannel
from easytorch.strategies.ddp import DataParallel, find_synchronized
from easytorch.strategies.device import PRECISIONS

# In the error of torch.autograd.grad for tensors that are not in the graph.
UNUSED = "appears to not have been used in the graph"
SHARDS_IN_STEP = (
    "With strategy='fsdp' the parameters of a block are this rank's shards outside of its forward pass, and the graph has the "
    "gathered weights. To compute gradients of parameters in a step, use strategy='ddp', or gather all weights together: "
    "strategy=easytorch.FullySharded(unit=10**12)."
)
SAME_BLOCKS = (
    "With strategy='fsdp' the ranks gather weights and reduce gradients together, so all ranks must call the same blocks in the "
    "same order."
)
ALIKE = (
    "Choose the parts alike on all ranks, by random numbers with one seed; or use "
    "strategy=easytorch.DataParallel(find_unused_parameters=True)."
)
# Number of calls of blocks that an error names.
MAX_CALLS = 100


class FullySharded(DataParallel, name="fsdp"):
    """Runs the same steps in several processes, each with a shard of the weights, on ``fully_shard`` (FSDP2).

    Results equal those of ``DataParallel``. Weights, gradients and optimizer state take the memory of one process divided by
    the world size. The weights of a block are gathered while it computes, all weights during an evaluation.

    Args:
        device: Device of this rank. ``"auto"`` gives each process of a machine one accelerator.
        precision: See ``Strategy``. Below ``"fp32"`` weights are gathered in half precision; gradients are reduced in float32.
        jit_compile: See ``Strategy``.
        unit: Minimum number of parameters of a block that is gathered separately. Blocks are the elements of
            ``nn.ModuleList`` and ``nn.Sequential``; all other parameters are gathered together.
        sharded_checkpoints: Each rank writes its shard of a checkpoint (``fit(resume=...)``, ``BackupAndRestore``) while
            training continues. With False all weights are gathered into one file, as ``save`` always does.
        sync_batchnorm: See ``DataParallel``.
        split_data: See ``DataParallel``.
        timeout: See ``DataParallel``.

    Raises:
        RuntimeError: If no launcher has started this process, or PyTorch is older than 2.7.

    ``compile`` raises a ``ValueError`` for a module that cannot be sharded: with a scalar parameter, or with ``channels_last``.

    Examples:
        >>> strategy = FullySharded(unit=100_000)  # doctest: +SKIP
        >>> model.compile("adam", "cross_entropy", strategy=strategy)  # doctest: +SKIP
    """

    gradient_copies = 1
    shards_weights = True

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
        _check_torch_version()
        is_sharded = boolean("sharded_checkpoints", sharded_checkpoints)
        super().__init__(
            device, precision, jit_compile, sync_batchnorm=sync_batchnorm, split_data=split_data, timeout=timeout
        )
        # A rank without a batch must run a forward pass too, in which weights are gathered.
        self.unit, self.needs_batch_every_step, self._shares_buffers = unit, True, True
        # With a loss for each of several optimizers: the gathered parameter of each shard, and 0 or NaN for a loss.
        self._gathered: dict[int, nn.Parameter] = {}
        self._not_finite: Any = 0.0
        self._timeout = timeout
        self.checkpoints = ShardedCheckpoints(self, timeout) if is_sharded else GatheredCheckpoints(self)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move ``module`` to the device, shard it, and let ``optimizer`` update this rank's shard."""
        _check_loss_is_fixed(self.loss_modules, module)
        names = {parameter: name for name, parameter in module.named_parameters()}
        control = _find_control(module)
        if control is None:
            _check_can_be_sharded(module, self.channels_last)
            super().prepare(module)
            control = self._shard(module)
        else:
            self._check_can_continue(module, control)
        Strategy.prepare(self, module)
        self._call_module, self.forward = self.forward, self._call
        self.module, self.control, self._replica = module, control, control
        self._synchronized = find_synchronized(module)
        self.release_weights()
        self._reset_flags()
        if optimizer is not None:
            for member in members_of(optimizer).values():
                _replace_parameters(member, names, dict(module.named_parameters()))
        for block in filter(_is_sharded_module, module.modules()):
            vars(block).pop("forward", None)
            if self.jit_compile:  # each block separately: the hooks that gather its weights cannot be compiled
                vars(block)["forward"] = torch.compile(block.forward)

    def _check_can_continue(self, module: nn.Module, control: ShardedControl) -> None:
        """Raise a ``ValueError`` if ``module`` was sharded in another way than this strategy would shard it."""
        if control.precision != self.precision:
            raise ValueError(
                f"The module was sharded for precision={control.precision!r}, which cannot be changed to {self.precision!r}. "
                "Create the module again."
            )
        if self.sync_batchnorm and has_local_batchnorm(module):
            raise ValueError(
                "sync_batchnorm=True cannot replace the BatchNorm layers of a module that is sharded already. Create the module "
                "again, and pass sync_batchnorm=True to its first compile()."
            )

    def _shard(self, module: nn.Module) -> ShardedControl:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dtype = PRECISIONS[self.precision]
        policy = MixedPrecisionPolicy()
        if dtype is not None:  # inputs are cast by autocast
            policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        control = ShardedControl(module, self.device, self.group, self.precision)
        for block in _without_shared(list(_find_blocks(module, self.unit)), module):
            fully_shard(block, mp_policy=policy)
            control.watch(block)
        fully_shard(control, mp_policy=policy, ignored_params={control.flags})
        vars(module)[SHARDED] = control
        return control

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Prepare for updates."""
        self.release_weights()
        Strategy.start(self, optimizer)
        self._reset_flags()
        self._shares_buffers, self._not_finite = True, 0.0
        self._gathered = self._find_gathered() if isinstance(optimizer, OptimizerGroup) else {}

    def _find_gathered(self) -> dict[int, nn.Parameter]:
        """Return the parameter that a backward pass sees, by the identity of its shard; the blocks are gathered in turn."""
        gathered: dict[int, nn.Parameter] = {}
        for module in filter(_is_sharded_module, self.control.modules()):
            block: Any = module
            shards = list(block.parameters())
            block.unshard()
            gathered |= {id(shard): parameter for shard, parameter in zip(shards, block.parameters(), strict=True)}
            block.reshard()
        return gathered

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``; weights are gathered where they are needed."""
        if torch.is_grad_enabled():
            self._mark_padding(self._window.is_padding)
            self._gather(False)
            self._share_buffers()
            with self._explained_errors():
                return Strategy.run(self, lambda placed: self.control(step, self._sync, placed), batch)
        with self.evaluating():
            return Strategy.run(self, lambda placed: self.control(step, False, placed), batch)

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Translate errors of steps that use shards, or blocks that other ranks do not use."""
        try:
            yield
        except RuntimeError as error:
            if UNUSED in str(error):
                raise RuntimeError(f"{error}\n{SHARDS_IN_STEP}") from error
            if any(text in str(error) for text in NO_ANSWER):
                raise RankError(
                    f"Rank {self.group.rank} waited {self._timeout:g} seconds in a step, and the other ranks did not answer. "
                    f"{SAME_BLOCKS} In this update, rank {self.group.rank} had called the blocks "
                    f"{self.control.describe_calls() or '(none)'}; compare it with the other ranks. {ALIKE}"
                ) from error
            raise

    def _share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, as DDP does before the first batch of each update."""
        if self._shares_buffers and (buffers := [buffer.detach() for buffer in self.buffers()]):
            torch_private.broadcast_coalesced(buffers)
        self._shares_buffers = self._sync

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module. Outside of a step, its weights are gathered for the call, so all ranks must make it."""
        if self.control.is_running:
            return self._call_module(*args, **kwargs)
        try:
            return self.run(lambda _: self._call_module(*args, **kwargs), None)
        finally:
            if not self.control.is_gathered:
                self.release_weights()

    def run_locally(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``; all ranks must call this, since each has a shard of the weights."""
        with torch.no_grad():
            return self.run(step, batch)

    def _follow_trainable(self) -> None:
        """Do nothing: FSDP reads which parameters are trained in each backward pass."""

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Delay the reduce-scatter of gradients until ``sync``."""
        self._sync = sync
        self._set_reduce_gradients(sync)
        return contextlib.nullcontext()

    def _set_reduce_gradients(self, reduce: bool) -> None:
        control: Any = self.control
        control.set_requires_gradient_sync(reduce)
        control.set_is_last_backward(reduce)

    def _backward_each(self, losses: OwnedLosses, weight: Any) -> None:
        """Add the gradients of each loss to the parameters of its optimizer; after the last batch of a window, reduce them."""
        for _, loss, _ in losses:
            self._not_finite = self._not_finite + (loss[0] if isinstance(loss, tuple) else loss).detach() * 0
        self._set_reduce_gradients(False)
        control: Any = self.control
        control.set_reshard_after_backward(not self._sync, recurse=False)  # its weights would be gathered again at once
        super()._backward_each(losses, weight)
        if self._sync:
            self._reduce_gradients()

    def backward(self, loss: Any, weight: Any = 1.0, **options: Any) -> None:
        """Add the gradients of ``loss * weight``, averaged over the ranks unless synchronization is delayed."""
        if "inputs" in options:
            options["inputs"] = [self._gathered[id(shard)] for shard in options["inputs"]]
        with self._explained_errors():
            super().backward(loss, weight, **options)
        if not options.get("retain_graph"):
            self.control.end_backward()

    def _reduce_gradients(self) -> None:
        """Reduce the gradients of all losses of a window by a backward pass that adds nothing, and send the flags."""
        self._set_reduce_gradients(True)
        total = self.control.flags.sum() * 0 + self._not_finite
        with self._explained_errors():
            self.control(lambda _: {"loss": total}, True, None)["loss"].backward()
        self._not_finite, self._has_synced = 0.0, True

    @contextlib.contextmanager
    def isolated_step(self) -> Iterator[Iterable[Any]]:
        """Keep a custom step that computes gradients from reducing those of the earlier batches of its window."""
        self._set_reduce_gradients(False)
        try:
            yield torch_private.unsharded_gradients(self.control)
        finally:
            self._set_reduce_gradients(self._sync)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Gather all weights on each rank for the block, since ranks may evaluate unequal numbers of batches.

        All ranks must enter it. Outside of it and of a step, the parameters of the module are always this rank's shards.
        """
        was_gathered = self.control.is_gathered
        self._gather(True)
        try:
            yield
        finally:
            if not was_gathered:
                self.release_weights()

    def release_weights(self) -> None:
        """Release all but this rank's shard of the weights, also after an error."""
        if self.control.has_run and hasattr(self.control, "reset_iter_state"):  # from PyTorch 2.14 on
            self.control.reset_iter_state()
        self._place_weights(gathered=False)

    def _gather(self, gather: bool) -> None:
        """Gather all weights on this rank, or release all but its shard, unless that is so already."""
        if gather != self.control.is_gathered:
            self._place_weights(gathered=gather)

    def _place_weights(self, *, gathered: bool) -> None:
        self.control.is_gathered = gathered
        for module in filter(_is_sharded_module, self.control.modules()):
            block: Any = module
            block.set_reshard_after_forward(not gathered and module is not self.control, recurse=False)
            (block.unshard if gathered else block.reshard)()


class ShardedControl(ControlChannel):
    """The control channel of a sharded module, which belongs to the module and not to the strategy.

    Args:
        module: The user's module.
        device: The device of the module.
        group: The ranks that train together.
        precision: The precision for which the module is sharded.

    Attributes:
        is_gathered: Whether each rank has all weights now, for an evaluation.
        is_running: Whether a step runs now.
        has_run: Whether a step has run, before which FSDP has no state to reset.
        holds_weights: Whether gathered weights stay after the next backward pass.
    """

    module: nn.Module

    def __init__(self, module: nn.Module, device: torch.device, group: SingleProcess, precision: str) -> None:
        super().__init__(module, device, group)
        self.precision, self.is_gathered, self.is_running, self.has_run = precision, False, False, False
        self.holds_weights = False
        self._blocks: list[nn.Module] = []

    def start(self) -> None:
        """Start the clock, clear all flags, and forget the calls of an earlier fit."""
        super().start()
        self._calls, self._checksum = deque[int](maxlen=MAX_CALLS), 0

    def forward(self, step: Callable[[Any], Any], sync: bool, batch: Any) -> Any:
        """Return ``step(batch)``, with the flags attached to its loss."""
        outer, self.is_running, self.has_run = self.is_running, True, True
        # A gradient that the step computes with create_graph=True needs the weights in the backward pass of the loss.
        self._hold_weights(True)
        try:
            return super().forward(step, sync, batch)
        finally:
            self.is_running = outer
            self._hold_weights(not self.is_gathered and any(_has_weights(block) for block in self._blocks))

    def _hold_weights(self, hold: bool) -> None:
        """Set whether the weights of all blocks stay after a backward pass."""
        control: Any = self
        control.set_reshard_after_backward(not hold)
        self.holds_weights = hold

    def end_backward(self) -> None:
        """Release the weights that the backward pass has left."""
        if self.holds_weights:
            self._hold_weights(False)
            for module in (self, *self._blocks):
                block: Any = module
                block.set_reshard_after_forward(block is not self, recurse=False)
                block.reshard()

    def watch(self, block: nn.Module) -> None:
        """Record the calls of ``block``, whose weights all ranks gather together."""
        # Before the hook of FSDP, which gathers the weights.
        block.register_forward_pre_hook(functools.partial(self._record, len(self._blocks)), prepend=True)
        self._blocks.append(block)

    def _record(self, number: int, block: Any, args: Any) -> None:
        if self.is_gathered:
            return
        if self.is_running and _has_weights(block):  # since a backward pass in the step
            block.set_reshard_after_forward(False, recurse=False)
        self._add_to_checksum(number)
        self._calls.append(number)

    def _add_to_checksum(self, number: int) -> None:
        self._checksum = (31 * self._checksum + number + 1) % (1 << 31)  # depends on the order

    def receive(self) -> None:
        """Read the flags of all ranks, if they are due, and check that all ranks have used the same weights.

        FSDP exchanges weights and gradients by their position. It would mix up those of different layers of the same size.
        """
        unused = [i for i, parameter in enumerate(self.module.parameters()) if parameter.grad is None]
        self._add_to_checksum(hash(tuple(unused)))
        super().receive()

    def _reduce(self, flags: Tensor) -> Tensor:
        """Return the mean of ``flags`` over all ranks.

        Raises:
            RankError: If the ranks have called different blocks, or computed gradients of different parameters.
        """
        checksum = flags.new_full((1,), self._checksum, dtype=torch.float64)
        mean: Tensor = self.group.all_reduce_sum_on_device(torch.cat([flags.double(), checksum]), flags.device)
        mean /= self.group.world_size
        self._check_same_use(float(mean[-1]))
        return mean[:-1].to(flags.dtype)

    def _check_same_use(self, mean_checksum: float) -> None:
        if mean_checksum == self._checksum:
            self._calls.clear()
            return
        called = self.describe_calls()
        self._calls.clear()
        unused = quote_list((name for name, p in self.module.named_parameters() if p.grad is None), most=10)
        raise RankError(
            f"The ranks used different parts of the module in an update. {SAME_BLOCKS} They must also compute gradients of the "
            f"same parameters. Rank {self.group.rank} called the blocks {called or '(none)'}, and has no gradient of "
            f"{unused or '(none)'}. {ALIKE}"
        )

    def describe_calls(self) -> str:
        """Return the names of the blocks that were called in this update, in order."""
        names = {block: name for name, block in self.module.named_modules()}
        return quote_list((names[self._blocks[number]] for number in self._calls), most=20)


class GatheredCheckpoints(Checkpoints):
    """Checkpoints of sharded weights in one file, for which all ranks gather the weights."""

    def gather(self, tree: Any) -> Any:
        """Return ``tree`` with complete tensors on the CPU; all ranks must call this."""
        return map_leaves(lambda leaf: leaf.full_tensor().cpu() if _is_shard(leaf) else leaf, tree)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return this rank's shard of an uninitialized tensor, to read into."""
        from torch.distributed.tensor import Shard, empty

        parameter: Any = next(iter(self.strategy.module.parameters()))
        return empty(shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=[Shard(0)])

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Load complete ``weights`` into the module; each rank takes its shard."""
        module = self.strategy.module
        self.strategy.release_weights()
        current = module.state_dict()
        module.load_state_dict({name: _shard_like(value, current[name]) for name, value in weights.items()})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Load a complete state dict into ``optimizer``; each rank takes its shard."""
        if isinstance(optimizer, OptimizerGroup):
            for name, member in optimizer.items():
                self.load_optimizer(member, state[name])
            return
        shards = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        parameters = dict(zip(numbers, shards, strict=True))
        sharded = {
            number: {key: _shard_like(value, parameters[number]) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": sharded})


class ShardedCheckpoints(GatheredCheckpoints):
    """Checkpoints in which each rank writes its shard, while training continues.

    Args:
        strategy: Knows the module, the device and the ranks.
        timeout: Seconds after which a rank that gets no answer from the others fails.
    """

    always_in_background = True

    def __init__(self, strategy: Strategy, timeout: float) -> None:
        super().__init__(strategy)
        self._timeout = timeout
        self._writer: Any = None

    def prepare(self, tree: Any) -> Any:
        """Return ``tree`` as it is, with this rank's shards."""
        return tree

    def write(self, path: Location, content: Mapping[str, Any], *, in_background: bool = True) -> None:
        """Start to write this rank's shard of a checkpoint, after the previous one is complete."""
        if self._writer is None:
            from easytorch.checkpoint.dcp import CheckpointWriter

            self._writer = CheckpointWriter(self.strategy.group, self._timeout)
        self._writer.start(path, content)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete."""
        if self._writer is not None:
            self._writer.wait()


def _check_torch_version() -> None:
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise RuntimeError(
            f"strategy='fsdp' needs PyTorch 2.7 or later, and this is {torch.__version__}. Update it, or use strategy='ddp'."
        )


def _check_can_be_sharded(module: nn.Module, channels_last: bool) -> None:
    """Raise a ``ValueError`` for parameters that FSDP refuses, before anything has changed."""
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse:
            raise ValueError(
                f"strategy='fsdp' cannot reduce the sparse gradients of the layer {name!r}. Create it with sparse=False, or use "
                "strategy='ddp'."
            )
    for name, parameter in module.named_parameters():
        if not parameter.ndim:
            raise ValueError(
                f"strategy='fsdp' cannot shard the parameter {name!r}, a scalar. Use a tensor of shape [1], or "
                "use strategy='ddp'."
            )
        if not parameter.is_contiguous() or (channels_last and parameter.ndim == 4):
            raise ValueError(
                f"strategy='fsdp' cannot shard the parameter {name!r}, which is not contiguous in memory, as with channels_last. "
                "Leave out channels_last=True, or use strategy='ddp'."
            )


def _check_loss_is_fixed(loss_modules: nn.Module, module: nn.Module) -> None:
    """Raise a ``ValueError`` if the loss has parameters to train that ``module`` has not, which are not sharded."""
    known = {id(parameter) for parameter in module.parameters()}
    names = [name for name, p in loss_modules.named_parameters() if p.requires_grad and id(p) not in known]
    if names:
        raise ValueError(
            f"strategy='fsdp' does not train the parameters of a loss, and this loss has {', '.join(map(repr, names[:5]))}. Make "
            "the loss a part of the module, net.criterion = loss before Model(net), or use strategy='ddp'."
        )


def _find_blocks(module: nn.Module, minimum: int) -> Iterator[nn.Module]:
    """Yield the outermost blocks with at least ``minimum`` parameters."""
    is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
    for child in module.children():
        if is_list and sum(parameter.numel() for parameter in child.parameters()) >= minimum:
            yield child
        else:
            yield from _find_blocks(child, minimum)


def _without_shared(blocks: list[nn.Module], module: nn.Module) -> list[nn.Module]:
    """Return the blocks that share no parameter with the rest of ``module``; FSDP must gather tied weights together."""
    uses = Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))
    selected = []
    for block in dict.fromkeys(blocks):
        inside = Counter(id(parameter) for part in block.modules() for parameter in part.parameters(recurse=False))
        if all(uses[key] == count for key, count in inside.items()):
            selected.append(block)
    return selected


def _find_control(module: nn.Module) -> ShardedControl | None:
    """Return the control channel with which ``module`` was sharded by an earlier ``compile``."""
    return vars(module).get(SHARDED)


def _replace_parameters(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], shards: Mapping[str, nn.Parameter]
) -> None:
    """Let ``optimizer`` update the shards of its parameters, and give it this rank's shard of its state."""
    for group in optimizer.param_groups:
        parameters, group["params"] = group["params"], [shards[names[parameter]] for parameter in group["params"]]
        for parameter, shard in zip(parameters, group["params"], strict=True):
            if parameter is not shard and parameter in optimizer.state:
                state = optimizer.state.pop(parameter)
                optimizer.state[shard] = {
                    key: _shard_like(value, shard) if getattr(value, "shape", None) == shard.shape else value
                    for key, value in state.items()
                }


def _is_sharded_module(module: nn.Module) -> bool:
    return hasattr(module, "unshard")


def _has_weights(block: nn.Module) -> bool:
    """Return whether the weights of ``block`` are gathered."""
    return not _is_shard(next(block.parameters()))


def _is_shard(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and hasattr(leaf, "full_tensor")


def _shard_like(value: Any, reference: Any) -> Any:
    """Return this rank's shard of ``value``, sharded as ``reference`` is."""
    if not _is_shard(reference) or _is_shard(value) or not isinstance(value, Tensor) or not value.ndim:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.to(reference.device), reference.device_mesh, reference.placements, src_data_rank=None
    )
