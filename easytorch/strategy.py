"""Where and in which precision a step runs: everything the loop would have to ask about its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch.batch import placer
from easytorch.clock import Clock
from easytorch.lookup import find, nearest
from easytorch.notice import warn

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device for what the user passed to ``Model``; ``"auto"`` is the accelerator, else the CPU.

    Raises:
        ValueError: If there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["cpu"] + ([accelerator.type] if accelerator else [])
    if isinstance(device, str) and device.strip().lower() == "auto":
        return accelerator or torch.device("cpu")
    try:
        wanted = torch.device(device.strip().lower() if isinstance(device, str) else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Unknown device {device!r}.{_nearest_device(device, here)} Pass 'auto', "
            f"a torch.device, or one of what this machine has: {', '.join(map(repr, here))}."
        ) from error
    if wanted.type not in (*here, "meta"):
        raise ValueError(
            f"There is no device {device!r} on this machine, or this torch was not built for it. Pass 'auto', or one of "
            f"{', '.join(map(repr, here))}."
        )
    if wanted.type != "cpu" and (wanted.index or 0) >= torch.accelerator.device_count():
        raise ValueError(
            f"There is no device {device!r}: this machine has {torch.accelerator.device_count()} of its kind, counted from 0."
        )
    return wanted


def check_numbers(gradient_accumulation_steps: Any, **limits: Any) -> None:
    """Raise a ``ValueError`` for a number of batches below 1, or a limit that is not above 0."""
    steps = gradient_accumulation_steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"gradient_accumulation_steps must be a whole number of at least 1, received {steps!r}.")
    for name, limit in limits.items():
        if limit is not None and (isinstance(limit, (str, bool)) or not limit > 0):
            raise ValueError(f"{name} must be a number above 0, or None, received {limit!r}.")


class Strategy:
    """Runs the steps of one process on one device.

    The loop calls it and asks nothing: what a place or a precision does not need, it does not do.

    Args:
        device: Where the module and the batches live.
        precision: ``"fp32"``: as the module is. ``"bf16"`` and ``"fp16"``: the forward under ``torch.autocast``,
            ``"fp16"`` with the loss scaled by ``torch.amp.GradScaler``.
        jit_compile: Call the module through ``torch.compile``. Without a working compiler the model runs uncompiled, with
            one warning.

    Raises:
        ValueError: If the precision is unknown, or not to be had on the device.
    """

    def __init__(self, device: torch.device, precision: str = "fp32", jit_compile: bool = False) -> None:
        self.device = device
        self.precision = precision
        self.clock = Clock()  # of the epoch that runs
        dtype = find("precision", precision, PRECISIONS)
        _check_precision(device, dtype)
        autocast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
        self.autocast: contextlib.AbstractContextManager[Any] = autocast
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # Asked in each step, since even a context or a scaler that does nothing takes its time.
        self.autocasts, self.scales = dtype is not None, self.scaler.is_enabled()
        self.jit_compile = jit_compile and _can_compile(device)
        self._place: Callable[[Any], Any] = placer(device, None)
        self.forward: Callable[..., Any] = _unprepared
        """The module, or its compiled twin."""

    def prepare(self, module: nn.Module) -> None:
        """Bring ``module`` to the device and get ready for its calls."""
        module.to(self.device)
        dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
        self._place = placer(self.device, dtypes.pop() if len(dtypes) == 1 else None)
        self.forward = torch.compile(module) if self.jit_compile else module

    def place(self, batch: Any) -> Any:
        """Bring a batch to the device, its floats to the module's dtype."""
        return self._place(batch)

    def run(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)`` with the batch on the device and the forward in the chosen precision."""
        batch = self._place(batch)
        if not self.autocasts:
            return step(batch)
        with self.autocast:
            return step(batch)

    def accumulating(self, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold gradients back from other processes until ``sync``; there are none here."""
        return _NOTHING

    def backward(self, loss: Tensor, share: Any = 1.0) -> None:
        """Add the gradients of ``loss`` times ``share``, scaled if the precision needs it."""
        if type(share) is not float or share != 1.0:
            loss = loss * share
        if self.scales:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self.clock.mark("model")

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
            optimizer.step()
        self.clock.mark("optimizer")

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


def _nearest_device(device: Any, here: list[str]) -> str:
    if str(device).strip().lower() == "gpu":
        return " Did you mean 'auto'?"
    return nearest(device, ["auto", *here, "cuda", "mps", "xpu"])


def _unprepared(*_: Any) -> Any:
    raise RuntimeError("The strategy has no module yet: call prepare(module) first.")


_NOTHING = contextlib.nullcontext()


def _check_precision(device: torch.device, dtype: torch.dtype | None) -> None:
    if device.type != "cpu":
        return
    if dtype == torch.float16:
        raise ValueError(
            "precision='fp16' is 10 to 14 times slower than 'fp32' on a CPU, so it is refused there. Use 'bf16' or 'fp32'."
        )
    if dtype == torch.bfloat16 and not _cpu_has_bf16():
        raise ValueError(
            "precision='bf16' needs bfloat16 instructions, which this processor does not have: it would be slower than "
            "'fp32'. Use 'fp32'."
        )


def _cpu_has_bf16() -> bool:
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return True  # torch tells it of x86 only; other processors are taken at their word
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def _can_compile(device: torch.device) -> bool:
    """Try to compile something tiny, so that a missing compiler is found out before the first step."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:  # inductor raises whatever its tools raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warn(
            f"jit_compile=True needs a working compiler, and torch.compile found none ({reason}). The model runs "
            "uncompiled, with the same results. Install a C++ compiler (g++) to speed it up."
        )
        return False
    return True
