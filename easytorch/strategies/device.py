"""Devices and numeric precisions."""

from __future__ import annotations

from typing import Any

import torch

from easytorch._utils.registry import did_you_mean, find
from easytorch._utils.warnings import warn
from easytorch.distributed.process_group import is_launched, local_rank

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device for what the user passed to ``Model``; ``"auto"`` is the accelerator, else the CPU.

    Raises:
        ValueError: If there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["cpu"] + ([accelerator.type] if accelerator else [])
    if isinstance(device, str) and device.strip().lower() == "auto":
        if accelerator is not None and is_launched():  # each process of a machine has one of its own
            return torch.device(accelerator.type, local_rank() % torch.accelerator.device_count())
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


MATMUL = {"highest": "highest", "high": "high", "medium": "medium"}


def check_matmul(precision: str | None) -> None:
    """Raise a ``ValueError`` if ``precision`` is none that torch knows for products of float32 matrices."""
    if precision is not None:
        find("float32_matmul_precision", precision, MATMUL)


def set_matmul(precision: str | None) -> None:
    """Let the whole program multiply float32 matrices in ``precision``; None leaves it as it is."""
    if precision is not None:
        torch.set_float32_matmul_precision(find("float32_matmul_precision", precision, MATMUL))


def _nearest_device(device: Any, here: list[str]) -> str:
    if str(device).strip().lower() == "gpu":
        return " Did you mean 'auto'?"
    return did_you_mean(device, ["auto", *here, "cuda", "mps", "xpu"])


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


def precision_here(device: torch.device, wanted: str | None) -> dict[str, str]:
    """Return a saved model's precision as an argument for ``compile``; none, with a warning, where ``device`` has not got it."""
    if wanted in (None, "fp32"):
        return {}
    try:
        _check_precision(device, find("precision", wanted, PRECISIONS))
    except ValueError as error:
        warn(f"The saved model computed in {wanted}; this one does it in fp32. {error}")
        return {}
    return {"precision": str(wanted)}


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
