"""Windows whose places are a result, and what is put back by them, as ONNX: pooling with indices, unpooling, fold."""

from __future__ import annotations

import operator

import pytest
import torch.nn.functional as F
from handmade import Hand, run
from test_onnx_operators import Case, aten, close
from torch import nn

import vqc


def both(h: Hand, pooled):
    return h(operator.getitem, pooled, 0), h(operator.getitem, pooled, 1)


WINDOWS: dict[str, Case] = {
    "pool": lambda h, x: both(h, h(aten.max_pool2d_with_indices, x, [2, 2])),
    "pool, padded": lambda h, x: both(h, h(aten.max_pool2d_with_indices, x, [3, 2], [2, 1], [1, 1], [1, 2])),
    "pool, beyond the edge": lambda h, x: both(h, h(aten.max_pool2d_with_indices, x, [3, 4], [2, 3], [0, 0], [1, 1],
                                                    True)),
    "pool of equals": lambda h, x: both(h, h(aten.max_pool2d_with_indices, h(aten.sign, x), [2, 3])),
    "adaptive": lambda h, x: both(h, h(aten.adaptive_max_pool2d, x, [2, 3])),
    "adaptive, unlike windows": lambda h, x: both(h, h(aten.adaptive_max_pool2d, x, [3, 4])),
    "adaptive, larger": lambda h, x: both(h, h(aten.adaptive_max_pool2d, x, [7, 2])),
    "adaptive of equals": lambda h, x: both(h, h(aten.adaptive_max_pool2d, h(aten.sign, x), [3, 4])),
    "adaptive, one": lambda h, x: h(operator.getitem, h(aten.adaptive_max_pool2d, x, [1, 1]), 0),
    "unpool": lambda h, x: h(aten.max_unpool2d, *both(h, h(aten.max_pool2d_with_indices, x, [2, 2])), [4, 6]),
    "unpool, larger": lambda h, x: h(aten.max_unpool2d, *both(h, h(aten.max_pool2d_with_indices, x, [2, 3])), [5, 8]),
    "fold": lambda h, x: h(aten.col2im, h(aten.im2col, x, [3, 3], [1, 1], [1, 1], [1, 1]), [4, 6], [3, 3], [1, 1],
                           [1, 1], [1, 1]),
    "fold, apart": lambda h, x: h(aten.col2im, h(aten.im2col, x, [2, 3], [2, 1], [1, 2], [1, 3]), [4, 6], [2, 3],
                                  [2, 1], [1, 2], [1, 3]),
    "fold, what no window reaches": lambda h, x: h(aten.col2im, h(aten.im2col, x, [2, 2], [1, 1], [0, 0], [3, 3]),
                                                   [4, 6], [2, 2], [1, 1], [0, 0], [3, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_and_their_places(name: str) -> None:
    h = Hand(name.replace(" ", "_").replace(",", ""))
    made = WINDOWS[name](h, h.input("x", 2, 4, 4, 6))
    close(h.done(*(made if isinstance(made, tuple) else (made,))))


def test_a_network_that_unpools_and_folds() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            y, places = F.max_pool2d(self.mix(x), 2, return_indices=True)
            y = F.max_unpool2d(y, places, 2) + F.interpolate(F.adaptive_max_pool2d(y, 3), (4, 6))
            return F.fold(F.unfold(y, 3, padding=1), (4, 6), 3, padding=1)

    h = Hand()
    h.input("x", 2, 4, 4, 6)
    program = vqc.capture(Net().eval(), h._example[0])
    close(program, atol=1e-4)
    assert run(program)[0].abs().max() > 0.1
