"""All-reduce of gradients without DDP, for updates in which each optimizer has a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from easytorch.distributed.process_group import SingleProcess

# The bytes of one message, as in DDP.
BUCKET_BYTES = 25 * 2**20


class Reduction:
    """Averages the gradients of one optimizer over the ranks, after the backward passes of a window.

    Args:
        group: The ranks that train together.
        control: Its flags travel with the gradients.
        finds_unused: Whether a step may leave parameters without gradients; they are found with a synchronization of the host.

    Attributes:
        has_gradients: Whether this rank had a batch since the last reduction.
    """

    def __init__(self, group: SingleProcess, control: Any, *, finds_unused: bool) -> None:
        self.group, self.control, self.finds_unused = group, control, finds_unused
        self.has_gradients = False
        self._not_finite: Any = 0.0
        self._agreed: dict[tuple[Any, ...], list[bool]] = {}

    def watch(self, loss: Any) -> None:
        """Record that ``loss`` has a backward pass, and whether it is finite."""
        value = (loss[0] if isinstance(loss, tuple) else loss).detach()
        self.has_gradients, self._not_finite = True, self._not_finite + value * 0

    def agree(self, key: tuple[Any, ...], values: Sequence[bool]) -> list[bool]:
        """Return which of ``values`` are true on any rank, as found in the first update with this ``key``."""
        if key not in self._agreed:
            self._agreed[key] = [self.group.any_rank(value) for value in values]
        return self._agreed[key]

    def reduce(self, parameters: list[nn.Parameter]) -> None:
        """Replace the gradients of ``parameters`` by their means over the ranks; those of a rank without a batch are zero.

        Raises:
            ValueError: If a gradient is sparse.
        """
        flags = self.control.pack(self._not_finite)
        used = flags.new_tensor([float(p.grad is not None) for p in parameters]) if self.finds_unused else None
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad.is_sparse:
                raise ValueError(
                    "A gradient is sparse, which strategy='ddp' cannot reduce with several optimizers and a custom step. Create "
                    "the embedding with sparse=False."
                )
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in _buckets([*gradients, flags, *([] if used is None else [used])]):
            self._all_reduce(bucket)
        if used is not None:
            for parameter, share in zip(parameters, used.tolist(), strict=True):
                if not share:
                    parameter.grad = None
        self.control.flags.grad = flags
        self.has_gradients, self._not_finite = False, 0.0

    def _all_reduce(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).div_(self.group.world_size)
        self.group.all_reduce_tensor(flat)
        means = torch.split(flat, [tensor.numel() for tensor in bucket])
        for tensor, mean in zip(bucket, means, strict=True):
            tensor.copy_(mean.view(tensor.shape))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield ``tensors`` of one dtype together, as real numbers, in lists of about ``BUCKET_BYTES``."""
    real = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    for dtype in dict.fromkeys(tensor.dtype for tensor in real):
        bucket: list[Tensor] = []
        size = 0
        for tensor in (tensor for tensor in real if tensor.dtype == dtype):
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket
