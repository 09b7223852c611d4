"""set_seed makes two runs equal, and describes what may still differ."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

import easytorch
from easytorch import Model, set_seed
from tests.loops import blobs, mlp


@pytest.fixture(autouse=True)
def restored_settings(monkeypatch):
    """Restore what deterministic=True changes for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    cudnn = torch.backends.cudnn
    settings = cudnn.deterministic, cudnn.benchmark
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield
    cudnn.deterministic, cudnn.benchmark = settings
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_a_seed_determines_python_numpy_and_torch():
    set_seed(1)
    first = draw()
    assert draw() != first
    set_seed(1)
    assert draw() == first
    set_seed(2)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_seed_gives_the_numbers_of_each_library_by_itself():
    set_seed(7)
    numbers = draw()
    random.seed(7)
    assert numbers[0] == random.random()
    assert numbers[1] == np.random.RandomState(7).rand()
    assert numbers[2] == torch.rand(1, generator=torch.Generator().manual_seed(7)).item()


def test_two_runs_with_one_seed_are_equal():
    x, y = blobs()

    def losses():
        set_seed(3)
        return Model(mlp(), device="cpu").compile("adam", "cross_entropy").fit(x, y, epochs=2, verbose=0)["loss"]

    assert losses() == losses()


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(5), torch.tensor(5).item()])
def test_every_seed_of_32_bits_is_valid(seed):
    result = set_seed(seed)
    assert result.seed == int(result) == int(seed)
    assert type(result.seed) is int


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"from 0 to 4294967295, received {seed}\. Pass easytorch\.set_seed\(0\)"):
        set_seed(seed)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [1.5, "0", None, True, torch.tensor(1)])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError, match="seed must be an integer, received"):
        set_seed(seed)


def test_deterministic_switches_torch():
    assert set_seed(0, deterministic=True).deterministic is True
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_warn_only_is_a_choice():
    result = set_seed(0, deterministic="warn")
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert any("run with a warning" in limit for limit in result.limits)


def test_a_seed_alone_changes_no_setting():
    set_seed(0, deterministic=True)
    assert set_seed(1).deterministic is False
    assert torch.are_deterministic_algorithms_enabled()


def test_a_workspace_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_seed(0, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_workspace_that_comes_too_late_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.warns(UserWarning, match=r"Call set_seed\(\) earlier, or set CUBLAS_WORKSPACE_CONFIG=:4096:8 before"):
        set_seed(0, deterministic=True)


@pytest.mark.parametrize("deterministic", [None, 1, "yes"])
def test_another_choice_is_refused(deterministic):
    with pytest.raises(ValueError, match="must be True, False or 'warn', received"):
        set_seed(0, deterministic=deterministic)


def test_the_result_lists_what_may_still_differ(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    torch.use_deterministic_algorithms(False)
    text = str(set_seed(0))
    for part in ("python, numpy, torch", "DataLoader(generator=...)", "PYTHONHASHSEED=0", "Pass deterministic=True"):
        assert part in text
    assert "Pass deterministic=True" not in str(set_seed(0, deterministic=True))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert "PYTHONHASHSEED" not in str(set_seed(0))
    assert len(repr(set_seed(0))) < 100


@pytest.mark.parametrize("name", ["seed_everything", "set_random_seed", "fix_seed", "manual_seed"])
def test_names_of_other_libraries_get_a_hint(name):
    with pytest.raises(AttributeError, match=rf"easytorch has no '{name}'\. Use easytorch\.set_seed\(0\)\."):
        getattr(easytorch, name)
