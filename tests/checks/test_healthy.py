"""No finding in healthy programs."""

from __future__ import annotations

import pytest
import torch

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
