"""BatchNorm over the batches of all ranks, on a CPU too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm in ``module`` by one that uses the statistics of all ranks' batches.

    Parameters, buffers and their names stay the same. Modules on a CPU get ``SyncBatchNorm``, others torch's own.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if _is_local(child):
                setattr(parent, name, _synchronized_copy(child))


def has_local_batchnorm(module: nn.Module) -> bool:
    """Return whether ``module`` has a BatchNorm that uses the statistics of this rank's batch only."""
    return any(map(_is_local, module.modules()))


def _is_local(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and not isinstance(module, SyncBatchNorm)


class SyncBatchNorm(nn.BatchNorm1d):
    """``torch.nn.SyncBatchNorm`` for a CPU, which torch does not support.

    Attributes:
        is_padding: Whether the batch is padding, whose rows are left out of the statistics.
    """

    is_padding = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, [N, C, ...], by the mean and variance of all ranks' batches; in eval mode as ``BatchNorm`` does."""
        if not self.training or not dist.is_initialized():
            return self._normalize_alone(x)
        return _normalize_padding(self, x, self._normalize) if self.is_padding else self._normalize(x)

    def _normalize(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if dtype in (torch.bfloat16, torch.float16):
            # A sum in half precision would lose rows.
            x = x.float()
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        local_count = torch.full((1,), float(x.numel() // x.shape[1]), dtype=x.dtype)
        sums = all_reduce_sum(torch.cat([x.sum(dims), local_count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = x - mean.reshape(shape)
        variance = all_reduce_sum(centered.square().sum(dims)) / count
        self._update_running_statistics(mean.detach(), variance.detach(), count)
        output: Tensor = centered * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            output = output * self.weight.reshape(shape) + self.bias.reshape(shape)
        return output.to(dtype)

    def _normalize_alone(self, x: Tensor) -> Tensor:
        uses_batch = self.training or self.running_mean is None
        return nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            uses_batch,
            self.momentum or 0.0,
            self.eps,
        )

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics; they hold the unbiased variance, as in torch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), factor)


class DeviceSyncBatchNorm(nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm``, with the attribute ``is_padding`` of ``SyncBatchNorm``."""

    is_padding = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, [N, C, ...], by the mean and variance of all ranks' batches."""
        if self.training and self.is_padding:
            return _normalize_padding(self, x, super().forward)
        output: Tensor = super().forward(x)
        return output


SYNCHRONIZED = (SyncBatchNorm, DeviceSyncBatchNorm)


def _normalize_padding(norm: Any, x: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``x`` normalized by the running statistics, and ``normalize`` no rows together with the batches of other ranks."""
    nothing = normalize(x[:0]).sum()
    mean, variance = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    if norm.running_mean is not None and norm.running_var is not None:
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()  # the next forward pass changes them
    output = nn.functional.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
    return output + nothing.to(output.dtype)  # so that the backward pass communicates too


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the differentiable sum of ``value`` over all ranks."""
    total: Tensor = AllReduceSum.apply(value)
    return total


class AllReduceSum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of the gradients of all ranks.

    torch deprecates its own ``torch.distributed.nn.functional.all_reduce`` in favor of a private function.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Return the sum."""
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        return all_reduce_sum(gradient)


def _synchronized_copy(norm: nn.Module) -> nn.Module:
    """Return a synchronized BatchNorm that shares the parameters, buffers and settings of ``norm``."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in norm.state_dict().values())
    if on_cpu:
        copy: nn.Module = SyncBatchNorm.__new__(SyncBatchNorm)
        vars(copy).update(vars(norm))
    else:
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        copy = convert(norm)
        vars(copy).update(vars(norm), process_group=None)
        copy.__class__ = DeviceSyncBatchNorm
    return copy
