from __future__ import annotations

import pytest
import torch

from tests.loops import mlp


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return mlp()
