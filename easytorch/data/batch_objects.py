"""Batches that are one object of another library, such as the graphs of PyTorch Geometric."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from easytorch._utils.forward_signature import LABEL_KEYS, ForwardSignature
from easytorch._utils.pytree import describe

# Attributes with the targets. A graph for link prediction has labels of edges next to those of nodes.
TARGETS = ("edge_label", *LABEL_KEYS)
# Attributes with the number of samples.
SIZES = ("batch_size", "num_graphs")
# Attributes that divide the nodes of a graph.
MASKS = ("train_mask", "val_mask", "test_mask")
# Attributes with the number of rows that the outputs for a graph may have, apart from those of its targets.
ROWS = ("num_graphs", "num_nodes", "num_edges")


def is_batch_object(batch: Any) -> bool:
    """Return whether ``batch`` is an object that is no structure of tensors, and that can be moved to a device."""
    if isinstance(batch, (Tensor, np.ndarray, tuple, list, Mapping, PackedSequence, str)):
        return False
    return callable(getattr(batch, "to", None))


def unpack_object(batch: Any, signature: ForwardSignature | None, ignored: int | None) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch object; the targets are None if it has none.

    The inputs are the object. If the module requires several arguments, and the object has an attribute for each of them, they
    are these attributes.

    Args:
        batch: The object.
        signature: The arguments of the module.
        ignored: The label that the loss ignores; None if there is no such label.
    """
    return _select_inputs(batch, signature), _counted_targets(batch, ignored)


def object_size(batch: Any) -> int | None:
    """Return the number of samples of a batch object: that of its seeds or of its targets; else its attribute; else None.

    A graph with a label for each node has as many samples as nodes, a batch of graphs with a label each as many as graphs.
    """
    if not is_batch_object(batch):
        return None
    seeds = _count_seeds(batch)
    if seeds is not None:
        return seeds
    y = _find_targets(batch)
    if isinstance(y, Tensor) and y.ndim and hasattr(batch, "num_nodes"):
        return len(y)
    return read_size(batch)


def read_size(batch: Any) -> int | None:
    """Return the number of samples that an attribute of ``batch`` has; None without one."""
    return next((size for size in (getattr(batch, name, None) for name in SIZES) if isinstance(size, int)), None)


def object_rows(batch: Any) -> set[int]:
    """Return the numbers of rows that outputs for a batch object may have; empty for other batches."""
    if not is_batch_object(batch):
        return set()
    y = _find_targets(batch)
    sizes = [getattr(batch, name, None) for name in ROWS]
    labels = [len(y)] if isinstance(y, Tensor) and y.ndim else []
    return {size for size in sizes if isinstance(size, int)}.union(labels)


def without_neighbors(outputs: Any, batch: Any) -> Any:
    """Return the rows of ``outputs`` that belong to the seeds of a sampled subgraph; others belong to their neighbors."""
    seeds = _count_seeds(batch)
    if seeds is None or not isinstance(outputs, Tensor) or len(outputs) != getattr(batch, "num_nodes", None):
        return outputs
    return outputs[:seeds]


def _find_targets(batch: Any) -> Any:
    return next((y for y in (getattr(batch, name, None) for name in TARGETS) if y is not None), None)


def _count_seeds(batch: Any) -> int | None:
    """Return the number of nodes that a neighbor loader has drawn, which come first; None for other batches."""
    size = getattr(batch, "batch_size", None)
    return size if getattr(batch, "input_id", None) is not None and isinstance(size, int) else None


def _select_inputs(batch: Any, signature: ForwardSignature | None) -> Any:
    if signature is None or signature.required < 2:
        return batch
    if any(getattr(batch, name, None) is None for name in signature.required_names):
        return batch
    attributes = ((name, getattr(batch, name, None)) for name in signature.names)
    return {name: value for name, value in attributes if isinstance(value, Tensor) or name in signature.required_names}


def _counted_targets(batch: Any, ignored: int | None) -> Any:
    """Return the targets, with the ignored label for the neighbors of the seeds, which do not count."""
    y, seeds = _find_targets(batch), _count_seeds(batch)
    if seeds is None or ignored is None or not isinstance(y, Tensor) or y.is_floating_point() or len(y) <= seeds:
        return y
    y = y.clone()
    y[seeds:] = ignored
    return y


def check_targets_count(batch: Any, loss_entries: Collection[str], ignored: int | None) -> None:
    """Raise a ``ValueError`` if only some of the targets of a batch object count, and the loss would use all of them.

    Args:
        batch: The object.
        loss_entries: Attributes that the loss takes by name.
        ignored: The label that the loss ignores; None if there is no such label.
    """
    y, seeds = _find_targets(batch), _count_seeds(batch)
    if not isinstance(y, Tensor):
        return
    if seeds is not None:
        if len(y) > seeds and (ignored is None or y.is_floating_point()):
            raise ValueError(
                f"Only the first {seeds} of {len(y)} nodes of {describe(batch)} count: the others are neighbors. Override "
                "train_step in a subclass of Model, with loss = f(self(batch)[:batch.batch_size], batch.y[:batch.batch_size])."
            )
        return
    masks = [name for name in MASKS if getattr(batch, name, None) is not None]
    if masks and masks[0] not in loss_entries and y is getattr(batch, "y", None):
        raise ValueError(
            f"{describe(batch)} has {', '.join(masks)}, but the loss and the metrics would use the labels of all nodes. Pass one "
            "graph for each mask, in which the loss ignores all other labels: train_graph = graph.clone(); train_graph.y = "
            "torch.where(graph.train_mask, graph.y, -100); del train_graph.train_mask, ...; fit([train_graph], "
            "validation_data=[val_graph])."
        )
