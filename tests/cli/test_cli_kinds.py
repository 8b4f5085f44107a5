"""What `vqc apply` says of the numbers a program computes with."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqc.accounting import Account, Work
from vqc.cli.files import kinds_line


def layers(**macs: int) -> Account:
    return Account(tuple(Work(k, "conv2d", k, n, (8, 8)) for k, n in macs.items()),
                   {"float": 0, "integer": 0, "binary": 0})  # fmt: skip


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (layers(float=5), "multiply-adds: 100.0 % float; vqc inspect a.vqc says why"),
        (layers(float=10, integer=990), "multiply-adds: 1.0 % float, 99.0 % integer; vqc inspect a.vqc says why"),
        (layers(integer=1, binary=3), "multiply-adds: 25.0 % integer, 75.0 % binary"),
        (layers(), "no convolutions or linear layers"),
    ],
)
def test_shares_of_the_multiply_adds(made, line):
    assert kinds_line(made, Path("a.vqc")) == line
