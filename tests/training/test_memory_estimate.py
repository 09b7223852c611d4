"""What training will hold is foreseen to the byte, without holding it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import report, scaling
from easytorch.training.summary import estimate_memory, format_bytes, format_memory
from tests.loops import blobs, mlp

X, Y = blobs()


def stepped(module, optimizer):
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
def test_the_optimizers_state_is_foreseen_to_the_byte(name, options):
    module = mlp()
    optimizer = getattr(torch.optim, name)(module.parameters(), **options)
    foreseen = estimate_memory(module, optimizer)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert foreseen == estimate_memory(module, stepped(module, optimizer))
    assert foreseen["gradients"] == sum(parameter.grad.nbytes for parameter in module.parameters())


def test_a_module_larger_than_any_memory_is_foreseen_in_no_memory():
    with torch.device("meta"):
        module = nn.Sequential(*[nn.Linear(2**16, 2**16, bias=False) for _ in range(40)])  # 687 GB
    sizes = estimate_memory(module, torch.optim.AdamW(module.parameters()))
    assert sizes["weights"] == sizes["gradients"] == 40 * 2**32 * 4
    assert sizes["optimizer"] == 2 * sizes["weights"] + 40 * 4


def test_what_is_frozen_has_no_gradients_and_buffers_are_weights_that_are_held():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    sizes = estimate_memory(module, torch.optim.SGD(module[1:].parameters(), momentum=0.9))
    assert sizes == {"weights": 4 * (20 + 8 + 10) + 4 * 8 + 8, "gradients": 4 * 18, "optimizer": 4 * 18}
    assert estimate_memory(module, None) == {"weights": sizes["weights"], "gradients": 0, "optimizer": 0}


def test_an_optimizer_that_nobody_can_foresee_is_told():
    module = mlp()
    sizes = estimate_memory(module, torch.optim.LBFGS(module.parameters()))
    assert sizes["optimizer"] is None
    assert "optimizer unknown" in format_memory(sizes)


def test_sizes_are_told_in_words():
    assert [format_bytes(size) for size in (12, 45_700, 999_900, 1.5e6, 107e9, 2e12)] == [
        "12 bytes",
        "45.7 KB",
        "1 MB",
        "1.5 MB",
        "107 GB",
        "2 TB",
    ]


def test_a_process_that_is_alone_computes_all_the_time_and_more_of_them_never_more_of_it():
    for case in scaling.CASES.values():
        for between in scaling.BETWEEN.values():
            shares = [scaling.efficiency(*case, count, between) for count in scaling.PROCESSES]
            assert shares[0] == 1
            assert shares == sorted(shares, reverse=True)
            assert shares[-1] > 0


def test_a_ring_moves_the_gradients_nearly_twice():
    assert scaling.volume(1e6, 2) == 4e6
    assert scaling.volume(1e6, 1024) == pytest.approx(8e6, rel=0.002)


def test_the_guide_shows_the_tables_as_they_are_calculated(capsys):
    page = (Path(__file__).parents[2] / "docs" / "guides" / "how-many.md").read_text()
    for between in scaling.BETWEEN.values():
        report.print_table(scaling.rows(scaling.CASES, between))
        assert capsys.readouterr().out in page
