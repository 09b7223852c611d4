"""Many processes in a test: copies of the one that runs it, so that they start in a fraction of a second."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo  # which DDP imports, and the next two FSDP: loaded once, copied often
import torch.distributed.fsdp
import torch.distributed.tensor

from easytorch import launch


def together(function: Any, *args: Any, processes: int = 2, timeout: float = 60) -> list[Any]:
    """Return what ``function`` returns in each of many processes."""
    return launch(_alike, function, args, processes=processes, timeout=timeout, start="fork")


def _alike(function: Any, args: Any) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return function(*args)


def furthest(first: Any, second: Any) -> float:
    """Return the largest difference between two dicts of tensors."""
    assert first.keys() == second.keys()
    differences = torch.stack([(first[name].double() - second[name].double()).abs().max() for name in first])
    return float(differences.max())  # NaN, if there is one
