"""No finding in healthy programs."""

from __future__ import annotations

import pytest
import torch

from easytorch import Model
from easytorch.checks import probe
from tests.checks.common import PROGRAMS, lstm, multi_input, quickstart, transfer_learning, vae, wide_table


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_healthy_program_has_no_problem(program, seed):
    torch.manual_seed(seed)
    model, data, settings = program()
    report = model.check(*data, **settings)
    assert not report.problems
    assert not [finding for finding in report if "could not run" in finding.message]


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [quickstart, vae, multi_input, transfer_learning, lstm, wide_table], ids=lambda program: program.__name__
)
def test_trained_program_has_no_problem(program):
    torch.manual_seed(3)
    model, data, settings = program()
    model.fit(*data, **settings, epochs=2, verbose=0)
    assert not model.check(*data, **settings).problems


def test_soft_targets_have_a_loss_above_zero():
    torch.manual_seed(0)
    x = torch.randn(200, 10)
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    teacher = torch.softmax(torch.randn(200, 3) / 4, 1)
    assert not Model(net, device="cpu").compile("adam", "cross_entropy").check(x, teacher).problems
    shares = 0.3 + 0.2 * torch.rand(200, 3)
    assert not Model(net, device="cpu").compile("adam", "bce_with_logits").check(x, shares).problems


def test_two_parameters_need_not_fit_a_batch():
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(500, 1)
        y = (torch.rand(500, 1) < torch.sigmoid(0.3 * x)).float()
        report = Model(torch.nn.Linear(1, 1), device="cpu").compile("adam", "bce_with_logits").check(x, y)
        assert not report.problems


@pytest.mark.parametrize("features", [1, 3])
def test_weak_features_need_not_fit_a_batch(features):
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(500, features)
        y = (torch.rand(500, 1) < torch.sigmoid(0.3 * x[:, :1])).float()
        net = torch.nn.Sequential(torch.nn.Linear(features, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        report = Model(net, device="cpu").compile("adam", "bce_with_logits").check(x, y)
        assert not report.problems, (seed, str(report))


def test_a_trial_that_is_cut_short_is_no_failure(monkeypatch):
    monkeypatch.setattr(probe, "_minimize", lambda loss, optimizer: [2.31 - 0.006 * step for step in range(25)])
    model, data, settings = quickstart()
    report = model.check(*data, **settings)
    assert not report.problems
    assert "too few steps" in report["cannot_fit_batch"].message
