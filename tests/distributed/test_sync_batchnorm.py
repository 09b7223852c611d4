"""Batch normalization with the statistics of all ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from easytorch import DataParallel
from easytorch.distributed.sync_batchnorm import SyncBatchNorm, convert_batchnorm
from tests.many import run_ranks


def test_batchnorm_is_replaced_in_place():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weight, names = net[1].weight, list(net.state_dict())
    convert_batchnorm(net)
    assert type(net[1]) is SyncBatchNorm
    assert net[1].weight is weight
    assert list(net.state_dict()) == names


def normalize_bfloat16():
    DataParallel("cpu")
    x = (torch.randn(601, 4) + 30).bfloat16()
    return SyncBatchNorm(4)(x), functional.batch_norm(x.float(), None, None, training=True)


def test_bfloat16_is_summed_in_float32_and_returned_as_is():
    for output, expected in run_ranks(normalize_bfloat16):
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.02)


def test_without_running_statistics_eval_mode_uses_the_batch():
    norm, x = nn.BatchNorm1d(4, track_running_stats=False).eval(), torch.randn(9, 4)
    net = nn.Sequential(norm)
    expected = net(x)
    convert_batchnorm(net)
    torch.testing.assert_close(net(x), expected)


def outputs_and_gradients(x, dtype):
    """Normalize this rank's rows of ``x``; return outputs, the gradient of the input and the running statistics."""
    strategy = DataParallel("cpu")
    norm = SyncBatchNorm(3).to(dtype)
    rows = x[strategy.group.rank :: 2].clone().requires_grad_()
    outputs = norm(rows)
    (outputs * rows.detach().exp()).sum().backward()
    return outputs.detach(), rows.grad, norm.running_mean, norm.running_var


def test_outputs_and_gradients_equal_one_batch_of_all_rows():
    x = torch.randn(10, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm, rows = nn.BatchNorm1d(3).double(), x.clone().requires_grad_()
    outputs = norm(rows)
    (outputs * rows.detach().exp()).sum().backward()
    for rank, (output, gradient, mean, variance) in enumerate(run_ranks(outputs_and_gradients, x, torch.float64)):
        torch.testing.assert_close(output, outputs.detach()[rank::2])
        torch.testing.assert_close(gradient, rows.grad[rank::2])
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(variance, norm.running_var)
