"""Where and in which precision a step runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from easytorch._utils import torch_private
from easytorch._utils.api_hints import PRECISION_HINTS, HelpfulInit
from easytorch._utils.registry import find
from easytorch._utils.timer import Timer
from easytorch.checkpoint import files
from easytorch.data.batch import Batch, make_to_device
from easytorch.data.epoch_iterator import EvalIterator
from easytorch.distributed.process_group import SingleProcess, is_launched
from easytorch.strategies.device import PRECISIONS, _can_compile, _check_precision, pick_device

if TYPE_CHECKING:
    from easytorch.data.predictions import OutputCollector
    from easytorch.losses.criterion import Criterion
    from easytorch.metrics.collection import MetricCollection


STOP, INTERRUPT = 0, 1  # what processes agree about


class Strategy(HelpfulInit):
    """Runs the steps of one process on one device.

    The loop calls it and asks nothing: what a place or a precision does not need, it does not do.

    Args:
        device: Where the module and the batches live; ``"auto"`` is the accelerator, else the CPU.
        precision: ``"fp32"``: as the module is. ``"bf16"`` and ``"fp16"``: the forward under ``torch.autocast``,
            ``"fp16"`` with the loss scaled by ``torch.amp.GradScaler``.
        jit_compile: Call the module through ``torch.compile``. Without a working compiler the model runs uncompiled, with
            one warning.

    Raises:
        ValueError: If the precision is unknown, or not to be had on the device.

    Attributes:
        processes: Those who run the program together; here it is one.
    """

    kinds: ClassVar[dict[str, type[Strategy]]] = {}
    """What ``compile`` knows by name."""
    needs_batch_every_step = False  # whether every process must have a batch in every update
    gradient_copies = 1  # how often every gradient is held
    channels_last = False  # whether images and convolutions have their channels last in memory

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            Strategy.kinds[name] = cls

    def __init__(self, device: str | torch.device = "auto", precision: str = "fp32", jit_compile: bool = False) -> None:
        self.device = device = pick_device(device)
        self.group = SingleProcess()
        self.timer = Timer()  # of the epoch that runs
        if str(precision) in PRECISION_HINTS:
            raise ValueError(f"Unknown precision {precision!r}. Use {PRECISION_HINTS[str(precision)]!r}.")
        dtype = find("precision", precision, PRECISIONS)
        self.precision = next(name for name, known in PRECISIONS.items() if known == dtype)  # however it was typed
        _check_precision(device, dtype)
        autocast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
        self.autocast: contextlib.AbstractContextManager[Any] = autocast
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # Asked in each step, since even a context or a scaler that does nothing takes its time.
        self.autocasts, self.scales = dtype is not None, self.scaler.is_enabled()
        self.jit_compile = jit_compile and _can_compile(device)
        self._place: Callable[[Any], Any] = make_to_device(device, None)
        self.forward: Callable[..., Any] = _unprepared
        """The module, or its compiled twin."""

    @staticmethod
    def auto(device: str | torch.device = "auto", precision: str = "fp32", jit_compile: bool = False) -> Strategy:
        """Return ``DataParallel`` in a process that ``torchrun`` has started, else one device."""
        return Strategy.kinds["ddp" if is_launched() else "one"](device, precision, jit_compile)

    @staticmethod
    def of(wanted: Any, device: torch.device, precision: str, jit_compile: bool) -> Strategy:
        """Return the strategy for what the user passed to ``compile``.

        Raises:
            ValueError: If the name is unknown, or a strategy that is already made was to have another precision.
            TypeError: If it is none.
        """
        if isinstance(wanted, Strategy):
            for name, value, default in (("precision", precision, "fp32"), ("jit_compile", jit_compile, False)):
                if value not in (default, getattr(wanted, name)):
                    raise ValueError(
                        f"{name}={value!r} was given with a strategy that is already made. Set it there: "
                        f"easytorch.{type(wanted).__name__}({name}={value!r})."
                    )
            return wanted
        if not isinstance(wanted, str):
            raise TypeError(f"Expected a strategy, received {wanted!r}. Pass 'auto', 'ddp', 'fsdp' or a Strategy.")
        makers: dict[str, Callable[..., Strategy]] = {"auto": Strategy.auto, **Strategy.kinds}
        make: Callable[..., Strategy] = find("strategy", wanted, makers, otherwise="an easytorch.Strategy")
        return make(device, precision, jit_compile)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Bring ``module`` to the device and get ready for its calls; ``optimizer`` is to update it."""
        self.module = module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
        self._place = make_to_device(self.device, dtypes.pop() if len(dtypes) == 1 else None)
        self.forward = torch.compile(module) if self.jit_compile else module

    def begin(self) -> None:
        """Get ready for updates, which begin now."""

    def batches(self, loader: Any, steps: int | None = None) -> EvalIterator:
        """Return the batches of ``loader`` to measure or predict: all of them, or the first ``steps``."""
        return EvalIterator(loader, steps, self.group)

    def merge_metrics(self, metrics: MetricCollection) -> MetricCollection:
        """Return what was measured in all processes."""
        return metrics

    def output_collector(self, gathered: OutputCollector) -> OutputCollector:
        """Return what gathers the outputs of all processes in ``gathered``."""
        return gathered

    def to_device(self, batch: Any) -> Any:
        """Bring a batch to the device, its floats to the module's dtype."""
        return self._place(batch)

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)`` with the batch on the device and the forward in the chosen precision."""
        batch = self._place(batch)
        if not self.autocasts:
            return step(batch)
        with self.autocast:
            return step(batch)

    def run_alone(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``, without a word to other processes."""
        return self.run(step, batch)

    def loss_weights(self, criterion: Criterion, sizes: Sequence[int], batches: Iterable[Batch]) -> list[Any]:
        """Return what the loss of each batch of a window is multiplied by, so that the window counts as one batch.

        Args:
            criterion: The loss, which knows what it divides by.
            sizes: The number of samples of each batch.
            batches: The parts of each batch, looked at only where they matter.
        """
        return criterion.loss_weights(sizes, batches)

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold gradients back from other processes until ``sync``; there are none here."""
        return _NOTHING

    def backward(self, loss: Tensor, share: Any = 1.0) -> None:
        """Add the gradients of ``loss`` times ``share``, scaled if the precision needs it."""
        if type(share) is not float or share != 1.0:
            loss = loss * (share.to(loss.dtype) if isinstance(share, Tensor) else share)
        if self.scales:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.timer.mark("model")

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their true size."""
        if self.scales:
            self.scaler.unscale_(optimizer)

    def clip(self, module: nn.Module, norm: float | None, value: float | None) -> None:
        """Limit each gradient to ``value`` and the norm of all of them to ``norm``, where these are given."""
        if value is not None:
            nn.utils.clip_grad_value_(module.parameters(), value)
        if norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters, unless a scaled gradient overflowed."""
        if self.scales:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            torch_private.step(optimizer)
        self.timer.mark("optimizer")

    def any_rank(self, topic: int, wish: bool) -> bool:
        """Whether some process wishes something, ``STOP`` or ``INTERRUPT``; asked after every update, all get one answer."""
        return wish

    def loss_not_finite(self, bad: Any) -> Any:
        """Whether a loss of this update was not finite, in any process; ``bad`` is what was found in this one."""
        return bad

    def now(self) -> float:
        """Return the seconds on a clock that shows all processes the same."""
        return time.monotonic()

    def gather_full(self, tree: Any) -> Any:
        """Return ``tree`` with every tensor whole, of which processes may have parts."""
        return tree

    def to_checkpoint(self, tree: Any) -> Any:
        """Return ``tree`` as the checkpoints of a run keep it."""
        return self.gather_full(tree)

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint ``content``, and have it written by the next ``written``; all processes must do so.

        Raises:
            OSError: In every process, if it cannot be written.
        """
        error: OSError | None = None
        if self.group.is_main:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write(path, content)
            except OSError as caught:
                error = caught
        error = self.group.broadcast(error)
        if error is not None:
            raise error

    def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that was begun is whole.

        Raises:
            OSError: In every process, if it cannot be written.
        """

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a tensor for a part of a checkpoint to be read into, or what this process keeps of one."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Let the module have ``weights``."""
        self.module.load_state_dict(weights)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Let ``optimizer`` have ``state``."""
        optimizer.load_state_dict(dict(state))

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale, empty where nothing is scaled."""
        return {"scaler": self.scaler.state_dict()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise an error if ``state`` is none that this strategy can go on from."""
        scale = state["scaler"]
        if any(not isinstance(value, (int, float)) for value in scale.values()):
            raise ValueError("the loss scale is not made of numbers")
        if self.scaler.is_enabled() and scale and set(scale) != set(self.scaler.state_dict()):
            raise ValueError("the loss scale has other parts")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the loss scale of ``state``."""
        if state.get("scaler"):
            self.scaler.load_state_dict(dict(state["scaler"]))


Strategy.kinds["one"] = Strategy


def _unprepared(*_: Any) -> Any:
    raise RuntimeError("The strategy has no module yet: call prepare(module) first.")


_NOTHING = contextlib.nullcontext()
