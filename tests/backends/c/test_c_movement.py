"""Views, copies, pads and shuffles in C: every element where PyTorch puts it, for every element size."""

from __future__ import annotations

import pytest
import torch
from c_helpers import In, aten, chain, check, single
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool, torch.int16]


def _numbers(shape, dtype):
    n = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return (n % 2 == 0) if dtype == torch.bool else (n * 7 % 251).to(dtype) if dtype != torch.float32 else n / 3


MOVES = {
    "pixel_shuffle": ((2, 12, 3, 5), lambda b, x: b.call(aten.pixel_shuffle.default, x, 2)),
    "pixel_unshuffle": ((2, 3, 4, 6), lambda b, x: b.call(aten.pixel_unshuffle.default, x, 2)),
    "channel_shuffle": ((2, 6, 4, 3), lambda b, x: b.call(aten.channel_shuffle.default, x, 3)),
    "cat": ((2, 3, 4, 5), lambda b, x: b.call(aten.cat.default, [x, b.call(aten.slice.Tensor, x, 1, 1, 2), x], 1)),
    "cat_last": ((2, 3, 4), lambda b, x: b.call(aten.cat.default, [x, x], -1)),
    "stack": ((2, 3, 4), lambda b, x: b.call(aten.stack.default, [x, x, x], 1)),
    "repeat": ((2, 3, 4), lambda b, x: b.call(aten.repeat.default, x, [2, 1, 3, 2])),
    "interleave": ((2, 3, 4), lambda b, x: b.call(aten.repeat_interleave.self_int, x, 3, 1)),
    "expand": ((2, 1, 4), lambda b, x: b.call(aten.expand.default, x, [3, 2, 5, 4])),
    "flip": ((2, 3, 4, 5), lambda b, x: b.call(aten.flip.default, x, [1, 3])),
    "roll": ((2, 3, 4, 5), lambda b, x: b.call(aten.roll.default, x, [1, -2], [2, 3])),
    "pad": ((2, 3, 4, 5), lambda b, x: b.call(aten.constant_pad_nd.default, x, [1, 2, 0, 3], 1)),
    "crop": ((2, 3, 6, 7), lambda b, x: b.call(aten.constant_pad_nd.default, x, [-1, 2, 1, -2], 0)),
    "reflect": ((2, 3, 6, 7), lambda b, x: b.call(aten.reflection_pad2d.default, x, [3, 1, 2, 4])),
    "replicate": ((2, 3, 6, 7), lambda b, x: b.call(aten.replication_pad2d.default, x, [3, 1, 0, 4])),
    "nearest": ((2, 3, 5, 7), lambda b, x: b.call(aten.upsample_nearest2d.default, x, [10, 21], None, None)),
    "nearest_scale": ((1, 3, 5, 7), lambda b, x: b.call(aten.upsample_nearest2d.default, x, [7, 10], 1.5, 1.5)),
    "index_select": ((3, 4, 5), lambda b, x: b.call(aten.index_select.default, x, 1, torch.tensor([3, 0, 0, 2]))),
    "scatter": (
        (3, 6, 5),
        lambda b, x: b.call(aten.slice_scatter.default, x, b.call(aten.slice.Tensor, x, 1, 0, 3), 1, 1, 6, 2),
    ),
    "select_scatter": (
        (3, 6, 5),
        lambda b, x: b.call(aten.select_scatter.default, x, b.call(aten.select.int, x, 1, 0), 1, -1),
    ),
    "transpose_view": (
        (3, 6, 5),
        lambda b, x: b.call(aten.reshape.default, b.call(aten.transpose.int, x, 0, 2), [-1, 9]),
    ),
}
FLOAT_ONLY = {
    "reflect": (torch.float32,),
    "replicate": (torch.float32,),
    "nearest": (torch.float32, torch.uint8),
    "nearest_scale": (torch.float32, torch.uint8),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_move(dtype):
    moves = [m for n, m in MOVES.items() if dtype in FLOAT_ONLY.get(n, DTYPES)]
    program = chain(lambda b, *xs: tuple(build(b, x) for (_, build), x in zip(moves, xs, strict=True)),
                    *[_numbers(shape, dtype) for shape, _ in moves])  # fmt: skip
    check(program, exact=True)


def test_one_axis_edge_pads():
    check(single(aten.reflection_pad1d.default, In(torch.randn(2, 3, 9)), [2, 4]), exact=True)
    check(single(aten.replication_pad1d.default, In(torch.randn(2, 3, 9)), [2, 4]), exact=True)


def test_views_cost_no_call():
    def build(b, x):
        parts = b.call(aten.split.Tensor, x, 2, 1)
        first, second = (
            b.call(torch.ops.aten.alias.default, b.call(__import__("operator").getitem, parts, i)) for i in (0, 1)
        )
        rows = b.call(aten.unbind.int, x, 0)
        row = b.call(aten.unsqueeze.default, b.call(__import__("operator").getitem, rows, 0), 0)
        y = b.call(aten.add.Tensor, first, second)
        return b.call(aten.view.default, y, [-1]), b.call(aten.mul.Tensor, row, 2.0)

    exe = check(chain(build, torch.randn(1, 4, 3, 5)), exact=True)
    assert {c.kernel for c in exe.model.model.lowered.calls} == {"vqc_pointwise_f32"}


def test_concatenation_of_computed_parts_copies_nothing():
    def build(b, x, y):
        parts = [b.call(aten.relu.default, x), b.call(aten.sigmoid.default, y)]
        return b.call(aten.relu6.default, b.call(aten.cat.default, parts, 1))

    exe = check(chain(build, torch.randn(1, 3, 4, 5), torch.randn(1, 2, 4, 5)))
    assert [c.kernel for c in exe.model.model.lowered.calls] == ["vqc_pointwise_f32"] * 3


def test_one_tensor_in_two_concatenations_and_an_output():
    def build(b, x):
        y = b.call(aten.relu.default, x)
        one = b.call(aten.cat.default, [y, x], 1)
        two = b.call(aten.cat.default, [x, y, y], 1)
        return y, b.call(aten.add.Tensor, one, 1.0), two, y

    check(chain(build, torch.randn(1, 3, 4, 5)), exact=True)


def test_inputs_and_constants_as_results():
    def build(b, x):
        return (
            x,
            b.call(aten.permute.default, x, [1, 0]),
            b.const(torch.arange(6.0)),
            b.call(aten.full.default, [2, 3], 4),
        )

    check(chain(build, torch.randn(3, 4)), exact=True)


@st.composite
def view_chains(draw):
    """A random tensor and random views and moves of it, ending in arithmetic."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    steps = draw(st.lists(st.sampled_from(["permute", "slice", "flip", "unsqueeze", "flatten", "pad", "cat", "mul"]),
                          min_size=1, max_size=6))  # fmt: skip
    return shape, steps, draw(st.integers(0, 1000))


@settings(max_examples=15, deadline=None)
@given(view_chains())
def test_random_chains_of_views(case):
    shape, steps, seed = case
    g = torch.Generator().manual_seed(seed)

    def build(b, x):
        for step in steps:
            have = list(x.meta["val"].shape)
            k = int(torch.randint(0, len(have), (1,), generator=g))
            if step == "permute":
                x = b.call(aten.permute.default, x, torch.randperm(len(have), generator=g).tolist())
            elif step == "slice":
                x = b.call(aten.slice.Tensor, x, k, 0, max(1, have[k] - 1), 1 + seed % 2)
            elif step == "flip":
                x = b.call(aten.flip.default, x, [k])
            elif step == "unsqueeze" and len(have) < 6:
                x = b.call(aten.unsqueeze.default, x, k)
            elif step == "flatten":
                x = b.call(aten.reshape.default, x, [have[0], -1])
            elif step == "pad":
                x = b.call(aten.constant_pad_nd.default, x, [1, 0, 0, 1] if len(have) > 1 else [1, 0], 3.0)
            elif step == "cat":
                x = b.call(aten.cat.default, [x, x], k)
            else:
                x = b.call(aten.mul.Tensor, x, 2.0)
        return x

    check(chain(build, torch.randn(shape, generator=g)), exact=True)
