"""Table of layers and estimate of memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils import train_mode
from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.pytree import map_leaves
from easytorch._utils.rng import preserve_rng_state


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
    signature = ForwardSignature.of(module)
    x = map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, x)
    recorded: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        recorded.update(args=list(args), kwargs=kwargs)

    signature.call(record, x)
    inputs = recorded["args"] or recorded["kwargs"]  # torchinfo passes a list by position and a dict by name
    with preserve_rng_state(), train_mode.in_eval_mode(module):
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


def estimate_memory(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, gradient_copies: int = 1
) -> dict[str, int | None]:
    """Return the bytes of weights (with buffers), gradients and the optimizer's state in this process.

    What the layers keep for the backward comes on top; it grows with the batch.

    Args:
        module: Of parameters that are sharded, the part of this process counts.
        optimizer: None for a module that is not trained.
        gradient_copies: How often every gradient is held.

    Returns:
        ``{"weights": ..., "gradients": ..., "optimizer": ...}``; None for an optimizer that nobody can foresee.
    """
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return {
        "weights": _bytes([*parameters, *module.buffers()]),
        "gradients": _bytes(trained) * gradient_copies if optimizer is not None else 0,
        "optimizer": 0 if optimizer is None else _state_bytes(optimizer),
    }


def format_memory(sizes: dict[str, int | None]) -> str:
    """Return ``sizes`` in words."""
    known = sum(size for size in sizes.values() if size is not None)
    parts = ", ".join(f"{name} {'unknown' if size is None else format_bytes(size)}" for name, size in sizes.items())
    return f"Training holds {format_bytes(known)} in each process: {parts}. What layers keep for the backward pass comes on top."


def format_bytes(size: float) -> str:
    """Return a number of bytes as ``1.5 MB``, of a million bytes each as torchinfo has it."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= 0.9995 * factor:  # what would be rounded to it
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(own.numel() * own.element_size() for own in map(_own, tensors))


def _own(tensor: Any) -> Any:
    """Return this process' part of a tensor that is sharded, else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _state_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    if not optimizer.state:
        return _foreseen(optimizer)
    return _bytes(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


def _foreseen(optimizer: torch.optim.Optimizer) -> int | None:
    """Return the bytes of the state that a first step will make: taken by a twin whose tensors have shapes and no memory."""
    groups = []
    for group in optimizer.param_groups:
        twins = [nn.Parameter(torch.empty_like(_own(one).detach(), device="meta")) for one in group["params"]]
        for twin in twins:
            twin.grad = torch.empty_like(twin)
        groups.append({**group, "params": twins, "fused": False, "foreach": False})
    try:
        rehearsal: Any = type(optimizer)(groups)  # type: ignore[call-arg]  # whose settings are those of its groups
        rehearsal.step()
    except Exception:  # of one's own that wants more arguments, reads values, or takes a closure
        return None
    return _bytes(value for state in rehearsal.state.values() for value in state.values() if isinstance(value, Tensor))
