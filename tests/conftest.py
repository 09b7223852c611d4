from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # tiny modules gain nothing from threads, and busy machines lose much


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
