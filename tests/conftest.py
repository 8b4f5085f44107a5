"""Settings shared by all tests; its presence makes `handmade` importable from every test file."""

import os

import pytest
import torch

# Triton decides when it is first imported, by whichever test's imports that is, whether its functions are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
torch.manual_seed(0)  # for tensors made while tests are collected


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it; hypothesis draws its own."""
    torch.manual_seed(0)
