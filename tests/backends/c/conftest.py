"""Compiled kernels of these tests go to a folder of the session, unless VQC_CACHE names one."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def c_cache(tmp_path_factory):
    if "VQC_CACHE" in os.environ:
        yield
        return
    os.environ["VQC_CACHE"] = str(tmp_path_factory.mktemp("vqc-cache"))
    yield
    del os.environ["VQC_CACHE"]


@pytest.fixture(autouse=True)
def c_seed():
    """The same numbers in every run; one thread, as the reference sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
