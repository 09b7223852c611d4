"""Where and in which precision a step runs: the strategy for one device, and the interface of all strategies."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from easytorch._utils import torch_private
from easytorch._utils.api_errors import HelpfulInit
from easytorch._utils.api_hints import PRECISION_HINTS, STRATEGY_HINTS
from easytorch._utils.integers import boolean
from easytorch._utils.pytree import describe
from easytorch._utils.registry import find
from easytorch._utils.timer import Timer
from easytorch.data.batch import Window, divide, make_to_device, one_if_zero
from easytorch.data.eval_iterator import EvalIterator
from easytorch.distributed import slurm
from easytorch.distributed.process_group import SingleProcess, is_launched
from easytorch.optimizer_group import OptimizerGroup, OwnedLosses, members_of, parameters_of
from easytorch.strategies.checkpoints import Checkpoints
from easytorch.strategies.control import SingleProcessControl
from easytorch.strategies.device import PRECISIONS, check_precision, compiler_works, pick_device

if TYPE_CHECKING:
    from easytorch.data.predictions import OutputCollector
    from easytorch.losses.criterion import Criterion
    from easytorch.metrics.collection import MetricCollection
    from easytorch.typing import DataLike, StrategyLike

_NO_GRADIENTS: contextlib.nullcontext[Iterable[Any]] = contextlib.nullcontext(())
_NO_OP = contextlib.nullcontext()

# The attribute of a sharded module that holds its control channel.
SHARDED = "_easytorch_control"


def _missing_module(*_: Any) -> Any:
    raise RuntimeError("The strategy has no module. Call strategy.prepare(module) first, as Model does.")


class Strategy(HelpfulInit):
    """Runs the steps of one process on one device.

    The loop calls every method unconditionally; methods that do not apply are no-ops. Subclass it to run steps elsewhere.

    Args:
        device: Where the module and the batches live. ``"auto"`` is the accelerator if there is one, otherwise the CPU.
        precision: ``"fp32"``: the dtype of the module. ``"bf16"`` and ``"fp16"``: forward pass under ``torch.autocast``;
            ``"fp16"`` scales the loss by ``torch.amp.GradScaler``.
        jit_compile: Call the module through ``torch.compile``. Without a working compiler the model runs uncompiled, with
            one warning.

    Attributes:
        group: The ranks that train together; here a single process.
        control: What ranks communicate at each update: stop flags, non-finite losses, a common clock.
        checkpoints: How weights and optimizer state are gathered, written and loaded.
        timer: Where the time of the current epoch goes.
        forward: The module, or its compiled twin.
        gradient_copies: How many copies of each gradient are held in memory.
        needs_batch_every_step: Whether each rank must have a batch in each update.
        clip_count: How often ``clip`` has clipped gradients.
        loss_modules: The losses that have parameters or buffers.
        losses: What ``backward`` got in the current update, while a callback watches it; otherwise empty.
        channels_last: Whether images and convolution weights are stored with the channels last.
        shards_weights: Whether each rank has a shard of the weights.
        evaluations: Runs the step of an optimizer that needs a closure; None for all others.

    Raises:
        ValueError: If the precision is unknown, or the device does not support it.

    Examples:
        >>> compiled = model.compile("adam", "cross_entropy", strategy=Strategy(precision="bf16"))

        A custom update calls the methods in this order:

        >>> class CustomModel(Model):
        ...     def update(self, window):
        ...         for batch in window:
        ...             outputs = self.strategy.run(self.train_step, batch)
        ...             self.strategy.backward(outputs["loss"], 1 / len(window))
        ...             self.metrics.record(outputs, self.batch_size(batch))
        ...         self.strategy.unscale(self.optimizer)
        ...         self.strategy.clip(self.optimizer, 1.0, None)
        ...         self.strategy.step(self.optimizer)
        ...         self.strategy.zero_grad(self.optimizer)
        >>> history = CustomModel(net).compile("adam", "cross_entropy").fit(x, y, verbose=0)
    """

    kinds: ClassVar[dict[str, type[Strategy]]] = {}
    """Strategies that ``compile(strategy=...)`` knows by name."""
    in_snapshots = False  # of a dry run: its connections to other ranks cannot be set back
    needs_batch_every_step = False
    gradient_copies = 1
    channels_last = False
    shards_weights = False

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            Strategy.kinds[name] = cls

    def __init__(self, device: str | torch.device = "auto", precision: str = "fp32", jit_compile: bool = False) -> None:
        self.device = device = pick_device(device)
        self.group = SingleProcess()
        self.control: Any = SingleProcessControl()
        self.checkpoints = Checkpoints(self)
        self.timer = Timer()
        if str(precision) in PRECISION_HINTS:
            raise ValueError(f"Unknown precision {precision!r}. Use {PRECISION_HINTS[str(precision)]!r}.")
        dtype = find("precision", precision, PRECISIONS)
        self.precision = next(name for name, known in PRECISIONS.items() if known == dtype)
        check_precision(device, dtype)
        self.autocast: contextlib.AbstractContextManager[Any] = (
            torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # Read in each step, since even a context or a scaler that does nothing takes time.
        self._uses_autocast, self.scales_loss = dtype is not None, self.scaler.is_enabled()
        self.jit_compile = boolean("jit_compile", jit_compile) and compiler_works(device)
        self._to_device: Callable[[Any], Any] = make_to_device(device, None)
        self.forward: Callable[..., Any] = _missing_module
        self.loss_modules: nn.Module = nn.ModuleList()
        self._unowned: list[nn.Parameter] = []  # parameters that the optimizer does not have
        self._count: Any = None  # of the losses of an update that return it
        # Of the losses of each optimizer, and its parameters.
        self._counts: dict[str, tuple[Any, list[nn.Parameter]]] = {}
        self._clips_each = False  # whether each optimizer has a loss, so that gradients are clipped separately
        self.losses: collections.deque[Any] = collections.deque(maxlen=0)
        self._watchers, self.clip_count = 0, 0
        self.evaluations: Any = None  # runs the step of an optimizer that needs a closure
        self._loss_sum: Tensor | None = None  # of the current evaluation, while an optimizer asks for it

    # Construction

    @staticmethod
    def auto(device: str | torch.device = "auto", precision: str = "fp32", jit_compile: bool = False) -> Strategy:
        """Return ``DataParallel`` in a process that ``torchrun`` or ``srun`` started, otherwise the strategy for one device."""
        if is_launched():
            return Strategy.kinds["ddp"](device, precision, jit_compile)
        slurm.warn_without_srun(os.environ)
        return Strategy.kinds["one"](device, precision, jit_compile)

    @staticmethod
    def of(strategy: StrategyLike, device: torch.device, *, precision: str, jit_compile: bool) -> Strategy:
        """Return the strategy for the argument of ``compile``.

        Raises:
            ValueError: If the name is unknown, or ``precision`` or ``jit_compile`` contradict a strategy object.
            TypeError: If it is neither a name nor a strategy.
        """
        if isinstance(strategy, Strategy):
            for name, value, default in (("precision", precision, "fp32"), ("jit_compile", jit_compile, False)):
                if value not in (default, getattr(strategy, name)):
                    raise ValueError(
                        f"{name}={value!r} contradicts the strategy object. Set it there: "
                        f"easytorch.{type(strategy).__name__}({name}={value!r})."
                    )
            return strategy
        if not isinstance(strategy, str):
            raise TypeError(f"Expected a strategy, received {strategy!r}. Pass 'auto', 'ddp', 'fsdp' or a Strategy.")
        if strategy in STRATEGY_HINTS:
            raise ValueError(f"Unknown strategy {strategy!r}. Use {STRATEGY_HINTS[strategy]}.")
        makers: dict[str, Callable[..., Strategy]] = {"auto": Strategy.auto, **Strategy.kinds}
        make: Callable[..., Strategy] = find("strategy", strategy, makers, otherwise="an easytorch.Strategy")
        return make(device, precision, jit_compile)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move ``module`` to the device and prepare its calls; ``optimizer`` will update it.

        Raises:
            ValueError: If ``module`` was prepared by another strategy in a way that cannot be undone.
        """
        if optimizer is not None:
            check_is_not_sharded(module)
        self.module = module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
        self._to_device = make_to_device(self.device, dtypes.pop() if len(dtypes) == 1 else None)
        self.forward = torch.compile(module) if self.jit_compile else module

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the module and of the loss."""
        return list(dict.fromkeys([*self.module.parameters(), *self.loss_modules.parameters()]))

    def buffers(self) -> list[Tensor]:
        """Return the buffers of the module and of the loss."""
        return [*self.module.buffers(), *self.loss_modules.buffers()]

    # Steps, in the order in which the loop calls them

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Prepare for updates of ``optimizer``, which start now."""
        owned = {id(parameter) for parameter in parameters_of(optimizer)}
        self._unowned = [parameter for parameter in self.parameters() if id(parameter) not in owned]
        self._counts, self._clips_each = {}, False
        self.zero_grad(optimizer)

    def batch_weights(self, criterion: Criterion, window: Window) -> Iterable[Any]:
        """Return the factor of each batch's loss, so that the window counts as one batch: sizes / sum(sizes) for a mean.

        Args:
            criterion: The loss, ``model.loss``.
            window: The batches of an update.
        """
        return [1.0] if len(window) == 1 else self._weights(criterion, window)

    def _weights(self, criterion: Criterion, window: Window) -> Iterable[Any]:
        return criterion.batch_weights(window, functools.partial(self._share, window))

    def _share(self, window: Window, columns: list[Sequence[Any] | None]) -> list[list[Any]]:
        """Return the counts of the batches in ``window``, each column divided by its total; None is a sum, whose share is 1."""
        return [
            [1.0] * len(window) if column is None else [divide(count, sum(column)) for count in column]
            for column in columns
        ]

    def run_closure(self, closure: Callable[..., None], *args: Any) -> None:
        """Compute the gradients of an update by ``closure(*args)``, which ``step`` repeats if the optimizer needs that.

        Args:
            closure: A function that computes the gradients of an update.
            args: Its arguments.
        """
        if self.evaluations is None:
            closure(*args)
        else:
            self.evaluations.start(functools.partial(closure, *args))

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Delay the all-reduce of gradients until ``sync``; a no-op on one device.

        Args:
            sync: Whether this is the last batch of the window.

        Returns:
            A context manager for the forward and the backward pass of one batch.
        """
        return _NO_OP

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``, with the batch on the device and the forward pass in the chosen precision.

        Args:
            step: A function of a batch, such as ``model.train_step``.
            batch: The batch, on any device.
        """
        batch = self._to_device(batch)
        if not self._uses_autocast:
            return step(batch)
        with self.autocast:
            return step(batch)

    def isolated_step(self) -> contextlib.AbstractContextManager[Iterable[Any]]:
        """Return a context for a custom step, in which gradients are not synchronized.

        It yields objects whose ``grad`` has further gradients of the window, apart from those of the parameters.
        """
        return _NO_GRADIENTS

    def run_locally(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)`` without communication with other ranks."""
        return self.run(step, batch)

    def backward(self, loss: Any, weight: Any = 1.0, **options: Any) -> None:
        """Add the gradients of ``loss * weight``, multiplied by the loss scale under fp16.

        The weight of a pair ``(sum, count)`` is unknown: the gradients are those of the sum until ``unscale`` divides them.

        Args:
            loss: The loss; or ``OwnedLosses``, each of which has gradients only for the parameters of one optimizer.
            weight: The factor of the loss, or of all losses.
            options: Passed to ``Tensor.backward``.
        """
        if type(loss) is OwnedLosses:
            self._backward_each(loss, weight)
            return
        self.losses.append(loss)
        if not isinstance(loss, Tensor):
            loss, weight = self._add_count(loss, weight)
        if type(weight) is not float or weight != 1.0:
            loss = loss * (weight.to(loss.dtype) if isinstance(weight, Tensor) else weight)
        if self._loss_sum is not None:
            self._loss_sum = self._loss_sum + loss.detach()
        if self.scales_loss:
            loss = self.scaler.scale(loss)
        loss.backward(**options)
        self.timer.mark("model")

    def _backward_each(self, losses: OwnedLosses, weight: Any) -> None:
        """Add the gradients of each loss to the parameters of its optimizer, before any of them steps."""
        self._clips_each |= any(name for name, _, _ in losses)
        parts = [(name, loss, [p for p in parameters if p.requires_grad]) for name, loss, parameters in losses]
        parts = [part for part in parts if part[2]]  # an optimizer may be frozen
        for i, (name, loss, trained) in enumerate(parts):
            total, self._count = self._count, self._counts.get(name, (None, None))[0]
            # The losses may share a part of the graph.
            self.backward(loss, weight, inputs=trained, retain_graph=i < len(parts) - 1)
            if self._count is not None:
                self._counts[name] = self._count, trained
            self._count = total

    def _add_count(self, loss: Any, weight: Any) -> tuple[Tensor, float]:
        """Return the sum of a pair ``(sum, count)`` and its weight, and add its count to that of the update.

        Raises:
            TypeError: If ``loss`` is no such pair.
        """
        total, count = loss if isinstance(loss, tuple) and len(loss) == 2 else (None, 0)
        if not isinstance(total, Tensor):
            raise TypeError(
                f"The loss of a training step is {describe(loss)}, not a tensor. Return a scalar tensor: remove .item() or "
                "float(), or add the missing return statement of the loss."
            )
        is_padding = type(weight) is float and weight == 0.0
        self._count = (0 if self._count is None else self._count) + (0 if is_padding else count)
        return total, 0.0 if is_padding else 1.0

    def watch_losses(self, watch: bool) -> None:
        """Start or stop to collect the losses of each update in ``losses``; each callback that starts it stops it once."""
        self._watchers += 1 if watch else -1
        self.losses = collections.deque(maxlen=None if self._watchers > 0 else 0)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale, and by the count of a loss that returns it; otherwise a no-op.

        Args:
            optimizer: The optimizer, or the group of several optimizers.
        """
        if self.scales_loss:
            for member in _with_gradients(optimizer):
                self.scaler.unscale_(member)
        if self._count is not None:
            self._divide_gradients(self._count, self.parameters())
            self._count = None
        if self._counts:
            for count, parameters in self._counts.values():
                self._divide_gradients(count, parameters)
            self._counts = {}

    def _divide_gradients(self, count: Any, parameters: list[nn.Parameter]) -> None:
        divisor = one_if_zero(count)
        if self._loss_sum is not None:
            self._loss_sum = self._loss_sum / divisor
        for parameter in parameters:
            if parameter.grad is not None:
                gradient: Any = parameter.grad
                (gradient.to_local() if hasattr(gradient, "to_local") else gradient).div_(divisor)

    def clip(self, optimizer: torch.optim.Optimizer, norm: float | None, value: float | None) -> None:
        """Clip each gradient of ``optimizer`` to ``value`` and their common norm to ``norm``; None does not clip.

        If each of several optimizers has a loss, the norm is that of the gradients of each.

        Args:
            optimizer: The optimizer, or the group of several optimizers.
            norm: The largest norm of all gradients together.
            value: The largest absolute value of each entry.
        """
        self.clip_count += 1
        if value is not None:
            _clip_values(parameters_of(optimizer), value)
        if norm is not None:
            for part in members_of(optimizer).values() if self._clips_each else (optimizer,):
                nn.utils.clip_grad_norm_(parameters_of(part), norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters; under fp16 skip the update if a gradient overflowed.

        Args:
            optimizer: The optimizer, or the group of several optimizers.
        """
        if self.scales_loss:
            members = _with_gradients(optimizer)
            for member in members:
                self.scaler.step(member)
            if members:
                self.scaler.update()
        elif self.evaluations is not None:
            self.evaluations.step(optimizer)
        else:
            torch_private.find_step(optimizer)()
        self.timer.mark("optimizer")

    def discard_update(self, optimizer: torch.optim.Optimizer, loss_count: int) -> None:
        """Discard gradients, counts and losses of an update that failed before ``unscale``.

        Args:
            optimizer: The optimizer.
            loss_count: The number of losses in ``losses`` before the update.
        """
        self.zero_grad(optimizer)
        self._count, self._counts = None, {}
        while len(self.losses) > loss_count:
            self.losses.pop()

    def total_loss(self, closure: Callable[[], None]) -> Tensor:
        """Compute the gradients of an update by ``closure``, and return its loss over all batches and ranks."""
        self._loss_sum = torch.zeros((), device=self.device)
        try:
            closure()
            return self._loss_sum
        finally:
            self._loss_sum = None

    def repeat_backward(self) -> None:
        """Prepare for the gradients of another evaluation of the same update."""

    def release_weights(self) -> None:
        """Release all but this rank's shard of the weights, also after an error; a no-op unless weights are sharded."""

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Delete the gradients, also those of parameters that the optimizer does not have, which would pile up.

        Args:
            optimizer: The optimizer, or the group of several optimizers.
        """
        torch_private.zero_grad(optimizer)
        for parameter in self._unowned:
            parameter.grad = None

    # Evaluation and prediction

    def evaluating(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which each rank has complete weights; a no-op unless weights are sharded."""
        return _NO_OP

    def to_device(self, batch: Any) -> Any:
        """Return ``batch`` on the device, with floats in the dtype of the module.

        Args:
            batch: Tensors, or dicts, lists and tuples of tensors.

        Examples:
            >>> batch = model.strategy.to_device((x, y))
        """
        return self._to_device(batch)

    def batches(self, loader: DataLike, steps: int | None = None) -> EvalIterator:
        """Return this rank's batches of ``loader`` for evaluation or prediction: all, or the first ``steps``."""
        return EvalIterator(loader, steps, self.group, pins=self.pins_batches)

    @property
    def pins_batches(self) -> bool:
        """Whether batches of data in memory are in pinned memory, which the device reads while the program continues."""
        return self.device.type == "cuda"

    def merge_metrics(self, metrics: MetricCollection) -> MetricCollection:
        """Return the metrics over the samples of all ranks."""
        return metrics

    def output_collector(self, collector: OutputCollector) -> OutputCollector:
        """Return a collector for the outputs of all ranks, based on ``collector``."""
        return collector

    # State

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which holds no loss and measures by itself."""
        state = vars(self) | {"losses": collections.deque(maxlen=0), "_watchers": 0}
        state.pop("run", None)
        state["evaluations"] = None
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale; empty unless the precision is fp16."""
        return {"scaler": self.scaler.state_dict()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ``ValueError`` unless ``load_state_dict`` can load ``state``."""
        scale = state["scaler"]
        if any(not isinstance(value, (int, float)) for value in scale.values()):
            raise ValueError("the loss scale does not consist of numbers")
        if self.scaler.is_enabled() and scale and set(scale) != set(self.scaler.state_dict()):
            raise ValueError(
                f"the loss scale has the entries {sorted(scale)}, expected {sorted(self.scaler.state_dict())}"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the loss scale."""
        if state.get("scaler"):
            self.scaler.load_state_dict(dict(state["scaler"]))


def check_is_not_sharded(module: nn.Module) -> None:
    """Raise a ``ValueError`` if ``"fsdp"`` has sharded ``module``."""
    if SHARDED in vars(module):
        raise ValueError(
            "The module was sharded by strategy='fsdp', and no other strategy can use its shards. Pass strategy='fsdp', or call "
            "save(), create the module again, and load() the file."
        )


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return ``optimizer``; of a group the members that update in this window and have a gradient to check."""
    if not isinstance(optimizer, OptimizerGroup):
        return [optimizer]
    return [member for member in optimizer.due() if any(p.grad is not None for p in parameters_of(member))]


def _clip_values(parameters: list[nn.Parameter], value: float) -> None:
    """Clip gradients like ``clip_grad_value_``, those of sparse layers and complex parameters too.

    The real and the imaginary part are clipped separately.
    """
    others = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or not (gradient.is_sparse or gradient.is_complex()):
            others.append(parameter)
            continue
        if gradient.is_sparse:
            gradient = parameter.grad = gradient.coalesce()
            gradient = gradient.values()
        (torch.view_as_real(gradient) if gradient.is_complex() else gradient).clamp_(-value, value)
    if any(parameter.grad is not None for parameter in others):
        nn.utils.clip_grad_value_(others, value)


Strategy.kinds["one"] = Strategy
