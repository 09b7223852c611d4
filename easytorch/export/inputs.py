"""The example inputs that a program is traced with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch.data.arrays import as_predict_data, match_columns
from easytorch.data.batch import select_inputs
from easytorch.data.class_names import without_text_targets
from easytorch.data.loader import as_loader

if TYPE_CHECKING:
    from easytorch.model import Model

# Rows of the example: torch.export treats a size of 1 as a constant.
ROWS = 2


class Inputs(NamedTuple):
    """The arguments of ``forward`` for a small batch, on the CPU.

    Attributes:
        tree: The inputs as ``predict`` takes them.
        args: Positional arguments of ``forward``.
        kwargs: Further arguments by name.
        names: A name for each tensor of ``args`` and ``kwargs``.
        dynamic: The dimensions whose size may vary.
    """

    tree: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    dynamic: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, x: Any, dynamic: Sequence[int]) -> Inputs:
        """Return a small batch of ``x``, or of the data of the last fit.

        Raises:
            ValueError: If there is no data, or if it cannot be an example.
        """
        dimensions = _check_dynamic(dynamic)
        batch = model.strategy.to_device(_find_batch(model, x))
        parts = model.unpack(batch)
        tree = select_inputs(batch, parts.x, model.signature)
        tree = map_leaves(_to_cpu, _with_decoder_inputs(model, tree, parts.y))
        if isinstance(tree, Mapping):  # without targets the module computes no loss
            tree = {name: value for name, value in tree.items() if name != model.signature.label}
        if any(hasattr(each, "num_nodes") or hasattr(each, "edge_index") for each in (batch, *leaves(tree))):
            raise ValueError(
                f"export() writes programs of arrays with one row for each sample, and {describe(batch)} is a graph. Save the "
                "weights, model.save_weights('weights.pt'), and run the module in torch."
            )
        if type(tree) is list:
            raise ValueError(
                f"export() needs inputs with one row for each sample, received a list with an array for each, {describe(tree)}. "
                "Save the weights, model.save_weights('weights.pt'), and run the module in torch."
            )
        tensors = [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]
        if not tensors or any(tensor.ndim == 0 or not len(tensor) for tensor in tensors):
            raise ValueError(
                f"export() needs inputs that are tensors with at least one sample, received {describe(tree)}. Pass x."
            )
        args, kwargs = model.signature.call(lambda *args, **kwargs: (args, kwargs), tree)
        names = tuple(name_leaves(bind_arguments(model.module, args, kwargs)))
        return cls(tree, args, kwargs, names, dimensions).with_rows(ROWS)

    def with_rows(self, count: int) -> Inputs:
        """Return inputs with ``count`` samples, repeated from these."""
        return self._resize(0, lambda size: torch.arange(count) % size)

    def with_other_sizes(self) -> Inputs:
        """Return inputs whose dynamic dimensions, apart from the first, are shorter by one."""
        inputs = self
        for dimension in self.dynamic:
            if dimension:
                inputs = inputs._resize(dimension, lambda size: torch.arange(max(size - 1, 1)))
        return inputs

    def _resize(self, dimension: int, rows: Any) -> Inputs:
        def resize(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.ndim <= dimension:
                return leaf
            return leaf.index_select(dimension, rows(leaf.shape[dimension]))

        tree, args, kwargs = (map_leaves(resize, part) for part in (self.tree, self.args, self.kwargs))
        return self._replace(tree=tree, args=args, kwargs=kwargs)

    def tensors(self) -> list[Any]:
        """Return the tensors in the order of ``names``."""
        return [*leaves(self.args), *leaves(self.kwargs)]


def _with_decoder_inputs(model: Model, inputs: Any, y: Any) -> Any:
    """Return ``inputs`` with those of the decoder, which a model of transformers makes from the labels while it trains."""
    make = getattr(model.module, "prepare_decoder_input_ids_from_labels", None)
    if make is None:
        return inputs
    named = model.signature.with_label(inputs, y)
    if not isinstance(named, Mapping) or "decoder_input_ids" in named or not isinstance(named.get("labels"), Tensor):
        return inputs
    return {**named, "decoder_input_ids": make(labels=named["labels"])}


def bind_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by the names that the ``forward`` of ``module`` has for them."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def _check_dynamic(dynamic: Sequence[int]) -> tuple[int, ...]:
    dimensions = tuple(dynamic) if isinstance(dynamic, Sequence) and not isinstance(dynamic, str) else ()
    if 0 not in dimensions or not all(type(each) is int and each >= 0 for each in dimensions):
        raise ValueError(
            f"dynamic must contain the dimensions whose size may vary, 0 for the batch among them, such as (0,) or (0, 1). "
            f"Received {dynamic!r}."
        )
    return tuple(sorted(set(dimensions)))


def _find_batch(model: Model, x: Any) -> Any:
    if x is None:
        batch = model.last_fit.get("example")
        if batch is None:
            raise ValueError(
                "export() needs an example of the inputs, since the model has no data of a previous fit. Pass x as to "
                "predict(), for example model.export('net.onnx', x[:2])."
            )
        return batch
    data = as_predict_data(
        match_columns(without_text_targets(x), model.columns), model.signature, model.input_list_length
    )
    batch = next(iter(as_loader(data, batch_size=None)), None)
    if batch is None:
        raise ValueError("export() needs an example of the inputs, but x has no samples. Pass one sample: x[:1].")
    return batch


def _to_cpu(leaf: Any) -> Any:
    return torch.as_tensor(leaf).cpu() if hasattr(leaf, "shape") else leaf


def name_leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield a name for each leaf of ``tree``: ``prefix``, followed by its keys and positions."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from name_leaves(value, f"{prefix}_{key}" if prefix else str(key))
    elif isinstance(tree, (tuple, list)):
        for i, value in enumerate(tree):
            yield from name_leaves(value, f"{prefix}_{i}")
    else:
        yield prefix
