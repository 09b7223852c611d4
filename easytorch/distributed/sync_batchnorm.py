"""BatchNorm over the batches of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronized(module: nn.Module) -> None:
    """Let every BatchNorm in ``module`` measure the batch of all processes; parameters, buffers and names stay."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, (nn.SyncBatchNorm, SyncBatchNorm)):
                on_cpu = all(tensor.device.type == "cpu" for tensor in child.state_dict().values())
                convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
                twin = SyncBatchNorm.__new__(SyncBatchNorm) if on_cpu else convert(child)
                vars(twin).update({**vars(child), **({} if on_cpu else {"process_group": None})})
                setattr(parent, name, twin)


class SyncBatchNorm(_BatchNorm):
    """``torch.nn.SyncBatchNorm`` for a CPU, where torch has none."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, [N, C, ...], by mean and variance of the batch of all processes; outside of training, as usual."""
        if not self.training or not dist.is_initialized():
            return nn.functional.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or self.running_mean is None,
                self.momentum or 0.0,
                self.eps,
            )
        dtype = x.dtype
        x = x.float() if dtype in (torch.bfloat16, torch.float16) else x  # whose sums would lose rows
        others = [i for i in range(x.ndim) if i != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        rows = torch.full((1,), float(x.numel() // x.shape[1]), dtype=x.dtype)
        sums = _sum(torch.cat([x.sum(others), rows]))
        count = sums[-1].detach()
        centred = x - (mean := sums[:-1] / count).reshape(shape)
        variance = _sum(centred.square().sum(others)) / count
        self._remember(mean.detach(), variance.detach(), count)
        normed: Tensor = centred * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            normed = normed * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normed.to(dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Take any number of dimensions from two on."""

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), factor)


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)
    return total


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
