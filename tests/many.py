"""Functions that run in several forked processes."""

from __future__ import annotations

from typing import Any

import torch

# DDP imports the first module, FSDP the next two. The forked processes share them.
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor

from easytorch import launch


def run_ranks(function: Any, *args: Any, processes: int = 2, timeout: float = 60) -> list[Any]:
    """Run ``function`` in every rank, and return the results in rank order."""
    return launch(_run_with_seed, function, args, processes=processes, timeout=timeout, start="fork")


def _run_with_seed(function: Any, args: Any) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return function(*args)


def furthest(first: Any, second: Any) -> float:
    """Return the largest difference between two dicts of tensors."""
    assert first.keys() == second.keys()
    differences = torch.stack([(first[name].double() - second[name].double()).abs().max() for name in first])
    # The maximum is NaN if any value is NaN.
    return float(differences.max())
