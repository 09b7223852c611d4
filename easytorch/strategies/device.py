"""Devices and numeric precisions."""

from __future__ import annotations

import torch

from easytorch._utils import torch_private
from easytorch._utils.registry import did_you_mean, find
from easytorch._utils.warnings import warn
from easytorch.distributed.process_group import is_launched, local_rank

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device for the argument of ``Model``.

    Args:
        device: ``"auto"`` for the accelerator if there is one, otherwise the CPU; a name, or a ``torch.device``.

    Raises:
        ValueError: If this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    available = ["cpu"] + ([accelerator.type] if accelerator else [])
    if isinstance(device, str) and device.strip().lower() == "auto":
        if accelerator is not None and is_launched():  # one accelerator per process
            return torch.device(accelerator.type, local_rank() % torch.accelerator.device_count())
        return accelerator or torch.device("cpu")
    names = ", ".join(map(repr, available))
    try:
        result = torch.device(device.strip().lower() if isinstance(device, str) else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Unknown device {device!r}.{_suggest_device(device, available)} Pass 'auto', a torch.device, or a device of this "
            f"machine: {names}."
        ) from error
    if result.type not in (*available, "meta"):
        raise ValueError(
            f"This machine has no device {device!r}, or PyTorch was built without it. Pass 'auto', or a device of this machine: "
            f"{names}."
        )
    if result.type != "cpu" and (result.index or 0) >= torch.accelerator.device_count():
        count = torch.accelerator.device_count()
        raise ValueError(
            f"There is no device {device!r}: this machine has {count}, numbered from 0. Use device='{result.type}:{count - 1}', "
            f"or '{result.type}' for the current one."
        )
    return result


def _suggest_device(device: object, available: list[str]) -> str:
    if str(device).strip().lower() == "gpu":
        return " Did you mean 'auto'?"
    return did_you_mean(device, ["auto", *available, "cuda", "mps", "xpu"])


def check_precision(device: torch.device, dtype: torch.dtype | None) -> None:
    """Raise a ``ValueError`` if ``device`` does not compute in ``dtype`` efficiently."""
    if device.type != "cpu":
        return
    if dtype == torch.float16:
        raise ValueError("precision='fp16' is 10 to 14 times slower than 'fp32' on a CPU. Use 'bf16' or 'fp32'.")
    if dtype == torch.bfloat16 and not torch_private.cpu_has_bf16():
        raise ValueError(
            "precision='bf16' needs bfloat16 instructions, which this processor does not have: it would be slower than "
            "'fp32'. Use 'fp32'."
        )


def saved_precision(device: torch.device, precision: str | None) -> dict[str, str]:
    """Return the precision of a saved model as an argument of ``compile``; empty, with a warning, if unsupported."""
    if precision in (None, "fp32"):
        return {}
    try:
        check_precision(device, find("precision", precision, PRECISIONS))
    except ValueError as error:
        warn(f"The saved model used precision={precision!r}; this one uses 'fp32'. {error}")
        return {}
    return {"precision": str(precision)}


def compiler_works(device: torch.device) -> bool:
    """Compile a tiny function, so that a missing compiler is found before the first step; warn if it fails."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:  # the compiler backend raises whatever its tools raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warn(
            f"jit_compile=True has no effect, because torch.compile found no working compiler ({reason}). The model runs "
            "uncompiled, with the same results. Install a C++ compiler (g++) to speed it up."
        )
        return False
    return True
