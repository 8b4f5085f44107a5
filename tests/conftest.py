"""Settings shared by all tests; its presence makes `handmade` importable from every test file."""

import pytest
import torch

torch.set_num_threads(1)
torch.manual_seed(0)  # for tensors made while tests are collected


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it; hypothesis draws its own."""
    torch.manual_seed(0)
