"""Table of layers and estimate of memory."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from easytorch._utils import train_mode
from easytorch._utils.api_errors import check_options
from easytorch._utils.api_hints import SUMMARY_HINTS
from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.html_table import format_pairs, format_table
from easytorch._utils.notebook import SHOWN_NUMBERS, Output, in_notebook
from easytorch._utils.paths import printable
from easytorch._utils.pytree import leaves, map_leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch.data.arrays import as_predict_data
from easytorch.data.batch_objects import is_batch_object
from easytorch.data.loader import as_single_batch
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.optimizer_group import learning_rates, members_of

if TYPE_CHECKING:
    from easytorch.model import Model

LINE_WIDTH = 80  # characters of a printed line
MAX_FACT = 100  # characters of a loss in a table


def print_summary(model: Model, x: Any, **options: Any) -> Any:
    """Print the table of layers and the memory estimate of ``model``; see ``Model.summary``."""
    import torchinfo

    check_options("Model.summary", options, list(inspect.signature(torchinfo.summary).parameters)[1:-1], SUMMARY_HINTS)
    if _is_shape(x):
        x = torch.zeros(tuple(x))
    if isinstance(x, DataLoader):
        table = _summarize_batch(model, _first_batch(x), **options)
    elif x is not None:
        table = _summarize_batch(model, as_single_batch(as_predict_data(x, model.signature)), **options)
    else:
        table = _summarize_last_fit(model, **options)
    if in_notebook():
        _show_in_cell(table)
    else:
        print(table)
    if model.optimizer is not None:
        sizes = estimate_memory(model.module, model.optimizer, model.strategy.gradient_copies)
        print(textwrap.fill(format_memory(sizes), LINE_WIDTH))
    return table


def _first_batch(loader: DataLoader[Any]) -> Any:
    """Return the first batch of ``loader``; random states are restored."""
    with preserve_rng_state(), preserve_generators([loader.sampler, loader.dataset, loader.collate_fn]):
        return next(iter(loader))


def format_model(model: Model) -> str:
    """Return the parts of ``model`` and its position in training as an HTML table."""
    facts = {"module": f"{type(model.module).__name__}, {_describe_size(model.module)}", "device": str(model.device)}
    if model.compile_args is None:
        facts["optimizer"] = "none, since compile() was not called"
    else:
        facts |= {
            "loss": printable(repr(model.loss), MAX_FACT),
            "metrics": ", ".join(model.metrics.names) or "none",
            "optimizer": "none",
        }
    if model.optimizer is not None:
        rates = ", ".join(f"{name} {rate:.4g}" for name, rate in learning_rates(model.optimizer).items())
        facts["optimizer"] = f"{type(model.optimizer).__name__}, {rates}"
    facts["trained"] = f"{model.state.epoch:,} epochs, {model.state.step:,} updates"
    return format_pairs(facts, type(model).__name__)


def _describe_size(module: nn.Module) -> str:
    parameters = list(module.parameters())
    if any(map(nn.parameter.is_lazy, parameters)):
        return "of a size that the first batch decides"
    return f"{sum(parameter.numel() for parameter in parameters):,} parameters"


def _show_in_cell(table: Any) -> None:
    output = Output()
    output.show(table._repr_html_(), str(table))
    SHOWN_NUMBERS.add(table, output)


def _is_shape(x: Any) -> bool:
    """Return whether ``x`` is the shape of a batch, such as ``(32, 20)``."""
    return isinstance(x, tuple) and len(x) > 0 and all(isinstance(size, int) and size > 0 for size in x)


def _summarize_last_fit(model: Model, **options: Any) -> Any:
    """Return the table with the shapes of a batch of the last fit; without shapes if there is none, or it cannot be used."""
    batch = model.last_fit.get("example")
    if batch is not None:
        try:
            return _summarize_batch(model, batch, **options)
        # Only a custom step knows how to call the module with this batch.
        except Exception as error:
            cause = str(error).partition("\n")[0]
            print(f"Without shapes, since summary() cannot call the module with a batch of the last fit: {cause[:200]}")
    return summarize_layers(model.module, None, model.device, **options)


def _summarize_batch(model: Model, batch: Any, **options: Any) -> Any:
    """Return the table with the shapes of ``batch``, as a step does, so that sharded weights are gathered.

    Raises:
        Exception: If the module cannot process ``batch``, with the explanation that ``fit`` gives.
    """
    batch = map_leaves(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch
    )  # changed in place, perhaps
    with translate_errors(model.module), _original_errors(), torch.no_grad():
        return model.strategy.run_locally(
            lambda placed: summarize_layers(model.module, model.unpack(placed).x, model.device, **options), batch
        )


@contextlib.contextmanager
def _original_errors() -> Iterator[None]:
    """Raise the error of the module that torchinfo replaces by its own inside."""
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def summarize_layers(module: nn.Module, x: Any, device: torch.device, **options: Any) -> Any:
    """Return the statistics of torchinfo for ``module``; their ``str`` is the table.

    Args:
        module: The module. Its modes, its weights and the random states are unchanged afterwards.
        x: Inputs, one batch or a part of it. With None, or an object such as a graph, the table has no shapes.
        device: The device of the module.
        options: Passed to ``torchinfo.summary``.
    """
    import torchinfo

    if any(map(is_batch_object, leaves(x))):  # torchinfo knows the sizes of tensors only
        x = None
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
        return _shorten_repr(_fit_name_column(torchinfo.summary(module, **options)))
    x = map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, x)
    arguments: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        arguments.update(args=list(args), kwargs=kwargs)

    ForwardSignature.of(module).call(record, x)
    call_inputs = arguments["args"] or arguments["kwargs"]  # torchinfo passes a list by position and a dict by name
    with preserve_rng_state(), train_mode.in_eval_mode(module):
        table = torchinfo.summary(module, input_data=call_inputs, **options)
    torchinfo.torchinfo._cached_forward_pass.clear()  # the cache would hold the module in memory
    return _shorten_repr(_fit_name_column(table))


def _fit_name_column(table: Any) -> Any:
    """Set the first column to the width of its longest name; torchinfo gives it 40 characters, and the table 89."""
    form = table.formatting
    names = [
        form.get_start_str(layer.depth) + layer.get_layer_name(form.show_var_name, form.show_depth)
        for layer in table.summary_list
        if layer.depth <= form.max_depth
    ]
    header = form.header_row()[: form.layer_name_width].rstrip()
    form.layer_name_width = max(map(len, [header, *names])) + 1
    return table


def _shorten_repr(table: Any) -> Any:
    """Give ``table`` a short ``repr``: the table was printed, and an interactive session would print it again."""
    import torchinfo

    class Statistics(torchinfo.ModelStatistics):
        def __repr__(self) -> str:
            return f"<statistics: {self.total_params:,} parameters, {self.trainable_params:,} trainable>"

        def _repr_html_(self) -> str | None:
            """Return a table of the layers; None, for the text alone, in the cell that shows it already."""
            return None if SHOWN_NUMBERS.contain(self) else _format_layers(self)

        def __str__(self) -> str:
            # From Python 3.11 on, torchinfo prints the name of the unit instead of its letter.
            return re.sub(r"Units\.([A-Z])[A-Z]*", r"\1", super().__repr__())

    table.__class__ = Statistics
    return table


def _format_layers(table: Any) -> str:
    """Return the layers of ``table`` with the columns that it prints as an HTML table."""
    form = copy.copy(table.formatting)
    rows: list[list[str]] = []

    def collect(name: str, values: dict[Any, str]) -> str:
        rows.append([name, *(values.get(column, "") for column in form.col_names)])
        return ""

    form.format_row = collect
    form.header_row()
    form.layers_to_str(table.summary_list, table.total_params)
    names = rows.pop(0)
    frozen = table.total_params - table.trainable_params
    title = f"{table.total_params:,} parameters: {table.trainable_params:,} trainable, {frozen:,} not"
    layers = format_table([dict(zip(names, row, strict=True)) for row in rows], names, title)
    return f'<div style="max-height:40em;overflow:auto">{layers}</div>'


def estimate_memory(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, gradient_copies: int = 1
) -> dict[str, int | None]:
    """Return the bytes of weights (with buffers), gradients and optimizer state in this process.

    Activations for the backward pass come on top; they grow with the batch size.

    Args:
        module: The module. Of sharded parameters, the shard of this rank counts.
        optimizer: The optimizer; None for a module that is not trained.
        gradient_copies: Number of copies of each gradient.

    Returns:
        ``{"weights": ..., "gradients": ..., "optimizer": ...}`` in bytes; None for an optimizer state of unknown size.
    """
    parameters = list(module.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return {
        "weights": _count_bytes([*parameters, *module.buffers()]),
        "gradients": _count_bytes(trainable) * gradient_copies if optimizer is not None else 0,
        "optimizer": 0 if optimizer is None else _count_state_bytes(optimizer),
    }


def format_memory(sizes: dict[str, int | None]) -> str:
    """Return ``sizes``, in bytes by part, as a sentence."""
    known = sum(size for size in sizes.values() if size is not None)
    parts = ", ".join(f"{name} {'unknown' if size is None else format_bytes(size)}" for name, size in sizes.items())
    return (
        f"Memory for training in each process: {format_bytes(known)} ({parts}), plus activations for the backward pass."
    )


def format_bytes(size: float) -> str:
    """Return a number of bytes as ``1.5 MB``, with decimal units as in torchinfo."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= 0.9995 * factor:  # smaller values are rounded to less than one unit
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def _count_bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in map(_to_local, tensors))


def _to_local(tensor: Any) -> Any:
    """Return this rank's shard of a sharded tensor, otherwise the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _count_state_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    members = members_of(optimizer).values()
    sizes = [_count_tensor_bytes(member) if member.state else _estimate_state_bytes(member) for member in members]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _estimate_state_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """Return the bytes of the state after a first step, which a twin takes on tensors without memory."""
    groups = []
    for group in optimizer.param_groups:
        twins = [nn.Parameter(torch.empty_like(_to_local(p).detach(), device="meta")) for p in group["params"]]
        for twin in twins:
            twin.grad = torch.empty_like(twin)
        groups.append({**group, "params": twins, "fused": False, "foreach": False})
    try:
        rehearsal: Any = type(optimizer)(groups)  # type: ignore[call-arg]  # the settings are those of its groups
        rehearsal.step()
    except Exception:  # a custom optimizer may need more arguments, read values, or take a closure
        return None
    return _count_tensor_bytes(rehearsal)


def _count_tensor_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = optimizer.state.values()
    return _count_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))
