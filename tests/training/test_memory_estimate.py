"""Estimates of the memory of training, and of the efficiency of many ranks."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import report, scaling
from easytorch import Model
from easytorch.optimizer_group import OptimizerGroup
from easytorch.training.summary import estimate_memory, format_bytes, format_memory
from tests.loops import blobs, mlp

X, Y = blobs()


def step_once(module, optimizer):
    nn.functional.cross_entropy(module(X), Y).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9}),
        ("Adam", {}),
        ("Adam", {"fused": True}),
        ("AdamW", {"amsgrad": True}),
        ("RMSprop", {"momentum": 0.5, "centered": True}),
        ("Adadelta", {"foreach": True}),
        ("NAdam", {}),
        ("Rprop", {}),
    ],
)
def test_the_estimate_of_the_optimizer_state_is_exact(name, options):
    module = mlp()
    optimizer = getattr(torch.optim, name)(module.parameters(), **options)
    estimate = estimate_memory(module, optimizer)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert estimate == estimate_memory(module, step_once(module, optimizer))
    assert estimate["gradients"] == sum(parameter.grad.nbytes for parameter in module.parameters())


def test_the_estimate_of_several_optimizers_is_their_sum():
    module = mlp()
    first, *others = module.parameters()
    optimizer = OptimizerGroup(
        {"first": torch.optim.Adam([first]), "others": torch.optim.SGD(others, lr=0.1, momentum=0.9)}
    )
    estimate = estimate_memory(module, optimizer)
    assert estimate["optimizer"] == 2 * first.nbytes + 4 + sum(other.nbytes for other in others)
    assert estimate == estimate_memory(module, step_once(module, optimizer))


def test_a_table_in_a_notebook_names_the_rates_of_all_optimizers():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = Model(net, device="cpu").compile({"0": "adam", "*": ("sgd", {"lr": 0.5})}, "mse", lr=0.1)
    assert "OptimizerGroup, lr_0 0.1, lr_* 0.5" in model._repr_html_()


def test_the_estimate_of_a_huge_module_needs_no_memory():
    with torch.device("meta"):
        # 687 GB of weights.
        module = nn.Sequential(*[nn.Linear(2**16, 2**16, bias=False) for _ in range(40)])
    sizes = estimate_memory(module, torch.optim.AdamW(module.parameters()))
    assert sizes["weights"] == sizes["gradients"] == 40 * 2**32 * 4
    assert sizes["optimizer"] == 2 * sizes["weights"] + 40 * 4


def test_the_estimate_counts_frozen_weights_and_buffers():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    sizes = estimate_memory(module, torch.optim.SGD(module[1:].parameters(), momentum=0.9))
    assert sizes == {"weights": 4 * (20 + 8 + 10) + 4 * 8 + 8, "gradients": 4 * 18, "optimizer": 4 * 18}
    assert estimate_memory(module, None) == {"weights": sizes["weights"], "gradients": 0, "optimizer": 0}


def test_an_optimizer_without_an_estimate_is_reported():
    module = mlp()
    sizes = estimate_memory(module, torch.optim.LBFGS(module.parameters()))
    assert sizes["optimizer"] is None
    assert "optimizer unknown" in format_memory(sizes)


def test_sizes_are_formatted_with_units():
    assert [format_bytes(size) for size in (12, 45_700, 999_900, 1.5e6, 107e9, 2e12)] == [
        "12 bytes",
        "45.7 KB",
        "1 MB",
        "1.5 MB",
        "107 GB",
        "2 TB",
    ]


def test_efficiency_starts_at_1_and_falls_with_more_processes():
    for case in scaling.CASES.values():
        for link in scaling.BETWEEN.values():
            shares = [scaling.efficiency(*case, count, link) for count in scaling.PROCESSES]
            assert shares[0] == 1
            assert shares == sorted(shares, reverse=True)
            assert shares[-1] > 0


def test_a_ring_all_reduce_moves_gradients_nearly_twice():
    assert scaling.volume(1e6, 2) == 4e6
    assert scaling.volume(1e6, 1024) == pytest.approx(8e6, rel=0.002)


def test_the_guide_shows_the_calculated_tables(capsys):
    page = (Path(__file__).parents[2] / "docs" / "guides" / "how-many.md").read_text()
    for link in scaling.BETWEEN.values():
        report.print_table(scaling.rows(scaling.CASES, link))
        assert capsys.readouterr().out in page
