"""Seeds of all random generators, and deterministic algorithms."""

from __future__ import annotations

import numbers
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from easytorch._utils.warnings import warn

# NumPy takes seeds of 32 bits.
MAX_SEED = 2**32 - 1
# A matrix product on an NVIDIA GPU is deterministic only with a fixed workspace, which cuBLAS reads when it starts.
CUBLAS_VARIABLE, CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
CUBLAS_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class Seeds:
    """What ``set_seed`` has done.

    Attributes:
        seed: The seed.
        generators: The generators that were seeded: ``"python"``, ``"numpy"``, ``"torch"``, and the type of the accelerator.
        deterministic: Whether torch now uses deterministic algorithms only: True, False, or ``"warn"``.
        limits: What may still differ between two runs with this seed, one sentence each.
    """

    seed: int
    generators: tuple[str, ...]
    deterministic: bool | str
    limits: tuple[str, ...] = field(repr=False)

    def __int__(self) -> int:
        return self.seed

    def __str__(self) -> str:
        limits = "".join(f"\n- {limit}" for limit in self.limits)
        return f"Seed {self.seed} for {', '.join(self.generators)}. What may still differ between two runs:{limits}"


def set_seed(seed: int, deterministic: bool | str = False) -> Seeds:
    """Seed the global generators of Python, NumPy and torch, those of all accelerators included.

    Call it first in a program, before the module is created and before data is split or shuffled.

    Args:
        seed: An integer from 0 to 4,294,967,295.
        deterministic: True: torch uses deterministic algorithms only, and raises a ``RuntimeError`` for an operation that has
            none. ``"warn"``: torch warns of such an operation, and runs it. Both turn off the search for the fastest algorithm of
            cuDNN, and set ``CUBLAS_WORKSPACE_CONFIG``. False (default) leaves these settings as they are.

    Returns:
        What was seeded, and what may still differ between two runs. Print it to read it.

    Raises:
        TypeError: If ``seed`` is no integer.
        ValueError: If ``seed`` is out of range, or ``deterministic`` is another value.

    Examples:
        >>> easytorch.set_seed(0)
        >>> print(easytorch.set_seed(0, deterministic=True))
    """
    number = _check_seed(seed)
    if not any(deterministic is choice or deterministic == "warn" for choice in (True, False)):
        raise ValueError(
            f"deterministic must be True, False or 'warn', received {deterministic!r}. Pass deterministic=True."
        )
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)  # on all accelerators too
    if deterministic:
        _use_deterministic_algorithms(warn_only=deterministic == "warn")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    names = ("python", "numpy", "torch", *([accelerator.type] if accelerator is not None else []))
    return Seeds(number, names, deterministic, tuple(_list_limits(deterministic)))


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed must be an integer, received {seed!r}. Pass easytorch.set_seed(0).")
    if not 0 <= int(seed) <= MAX_SEED:
        raise ValueError(
            f"seed must be an integer from 0 to {MAX_SEED}, received {seed!r}. Pass easytorch.set_seed(0)."
        )
    return int(seed)


def _use_deterministic_algorithms(warn_only: bool) -> None:
    if os.environ.get(CUBLAS_VARIABLE) not in CUBLAS_WORKSPACES:
        is_initialized: Callable[[], bool] = torch.cuda.is_initialized
        if torch.cuda.is_available() and is_initialized():
            warn(
                f"{CUBLAS_VARIABLE} is read when the GPU is first used, which has happened already, so matrix products may raise "
                f"an error. Call set_seed() earlier, or set {CUBLAS_VARIABLE}={CUBLAS_WORKSPACE} before Python starts."
            )
        os.environ[CUBLAS_VARIABLE] = CUBLAS_WORKSPACE
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _list_limits(deterministic: bool | str) -> list[str]:
    """Return a sentence for each reason why two runs may differ."""
    limits = [
        "Objects that have a generator, such as DataLoader(generator=...) or numpy.random.default_rng(), have their own "
        "seed. The workers of such a loader get theirs from it.",
        "Another device, number of threads, number of processes, or version of torch rounds differently.",
    ]
    if _has_random_hashes():
        limits.append(
            "The order of sets of text differs between runs. Set PYTHONHASHSEED=0 before Python starts, or sort them."
        )
    if deterministic is False and not torch.are_deterministic_algorithms_enabled():
        limits.append(
            "Some operations of torch on accelerators, and a few on CPUs, are not deterministic. Pass deterministic=True."
        )
    elif deterministic == "warn":
        limits.append(
            "Operations without a deterministic algorithm run with a warning. Pass deterministic=True for an error."
        )
    return limits


def _has_random_hashes() -> bool:
    """Return whether Python chose the hashes of text at random when it started."""
    has_fixed_seed = os.environ.get("PYTHONHASHSEED", "random") != "random" and not sys.flags.ignore_environment
    return bool(sys.flags.hash_randomization) and not has_fixed_seed
