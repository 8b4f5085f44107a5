"""Convolutions whose weights fit 4 bits: kept two in a byte, the same integers."""

from __future__ import annotations

import pytest
import torch
from c_helpers import chain, check

import vqc.ops  # noqa: F401

vops = torch.ops.vqc


def _build(low: int, high: int):
    g = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (2, 11, 13, 37), generator=g).to(torch.uint8)
    w = torch.randint(low, high + 1, (21, 11, 3, 3), generator=g).to(torch.int8)
    t = torch.randint(low, high + 1, (11, 9, 4, 4), generator=g).to(torch.int8)
    zero, scale = torch.tensor([7], dtype=torch.int32), torch.rand(21, generator=g) * 1e-3

    def build(b, x):
        conv = b.call(vops.qconv2d.default, x, w, scale, None, zero, [2, 1], [1, 1], [1, 1], 1)
        up = b.call(vops.qconv_transpose2d.default, x, t, scale[:9], None, zero, [2, 2], [1, 1], [0, 0], 1, [1, 1])
        return conv, up

    return chain(build, x)


@pytest.mark.parametrize("target", ["native", "portable"])
def test_weights_of_4_bits_take_half_the_space_and_give_the_same(target):
    narrow = check(_build(-8, 7), exact=True, target=target)
    wide = check(_build(-9, 7), exact=True, target=target)
    saved = wide.report.weight_bytes - narrow.report.weight_bytes
    assert saved == pytest.approx((24 * 12 * 9 + 4 * 12 * 12 * 4) / 2, abs=256)
