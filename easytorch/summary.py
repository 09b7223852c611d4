"""The table of layers, by torchinfo."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from easytorch import modes
from easytorch.batch import Signature
from easytorch.state import random_states_kept
from easytorch.tree import map_leaves


def summarize(module: nn.Module, x: Any, device: torch.device, **options: Any) -> Any:
    """Return torchinfo's statistics of ``module``; its ``str`` is the table.

    Args:
        module: The module; its modes, weights and the random states stay as they are.
        x: Inputs, one batch or the first rows of one; None leaves the shapes out.
        device: Where the module lives.
        options: Passed on to ``torchinfo.summary``.
    """
    import torchinfo

    columns = ("output_size", "num_params", "mult_adds") if x is not None else ("num_params", "trainable")
    options = {
        "col_names": columns,
        "row_settings": ("var_names",),
        "depth": 4,
        "verbose": 0,
        "device": device,
    } | options
    if x is None:
        return torchinfo.summary(module, **options)
    signature = Signature.of(module)
    x = map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, x)
    recorded: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        recorded.update(args=list(args), kwargs=kwargs)

    signature.call(record, x)
    inputs = recorded["args"] or recorded["kwargs"]  # torchinfo passes a list by position and a dict by name
    with random_states_kept(), modes.evaluating(module):
        table = torchinfo.summary(module, input_data=inputs, **options)
    torchinfo.torchinfo._cached_forward_pass.clear()  # it would keep the module alive for ever
    return table
