"""The table of layers, by torchinfo."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from easytorch._utils import train_mode
from easytorch._utils.forward_signature import Signature
from easytorch._utils.pytree import map_leaves
from easytorch._utils.rng import random_states_kept


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
        "col_width": 16,
        "verbose": 0,
        "device": device,
    } | options
    if x is None or not options.keys().isdisjoint(("input_data", "input_size")):
        return _shown_once(_narrowed(torchinfo.summary(module, **options)))
    signature = Signature.of(module)
    x = map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, x)
    recorded: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        recorded.update(args=list(args), kwargs=kwargs)

    signature.call(record, x)
    inputs = recorded["args"] or recorded["kwargs"]  # torchinfo passes a list by position and a dict by name
    with random_states_kept(), train_mode.evaluating(module):
        table = torchinfo.summary(module, input_data=inputs, **options)
    torchinfo.torchinfo._cached_forward_pass.clear()  # it would keep the module alive for ever
    return _shown_once(_narrowed(table))


def _narrowed(table: Any) -> Any:
    """Let the first column be as wide as its longest name; torchinfo gives it 40 characters, and the table 89."""
    form = table.formatting
    names = [
        form.get_start_str(layer.depth) + layer.get_layer_name(form.show_var_name, form.show_depth)
        for layer in table.summary_list
        if layer.depth <= form.max_depth
    ]
    header = form.header_row()[: form.layer_name_width].rstrip()
    form.layer_name_width = max(map(len, [header, *names])) + 1
    return table


def _shown_once(table: Any) -> Any:
    """Let the statistics, which were printed, say little when an interactive session shows what a line returned."""
    import torchinfo

    class Statistics(torchinfo.ModelStatistics):
        def __repr__(self) -> str:
            return f"<statistics: {self.total_params:,} parameters, {self.trainable_params:,} to be trained>"

        def __str__(self) -> str:
            # Python 3.11 and later print the name of the unit instead of its letter.
            return re.sub(r"Units\.([A-Z])[A-Z]*", r"\1", super().__repr__())

    table.__class__ = Statistics
    return table
