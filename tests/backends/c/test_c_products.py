"""Matrix products, attention and what is built on them, with drawn shapes, strides and batches."""

from __future__ import annotations

import pytest
import torch
from c_helpers import Builder, Case, aten, chain, check, compiled, single, together
from c_helpers import In as Input
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c.lowering.matmul import pack_panels
from vqc.program import evaluate

TARGETS = ["native", "portable"]
SIZE = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 49, 65])


def _close(cases: list[Case], target: str, tolerance: float = 1e-5) -> None:
    check(together(cases), rtol=tolerance, atol=tolerance, target=target)


@st.composite
def products(draw) -> Case:
    """a [batch..., m, k] times b [batch..., k, n]: batches broadcast, both possibly permuted or constant."""
    m, k, n = draw(SIZE), draw(SIZE), draw(SIZE)
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    lead = [
        [draw(st.sampled_from([s, 1])) for s in batch][draw(st.integers(0, len(batch))) :] if batch else []
        for _ in range(2)
    ]
    turned = [draw(st.booleans()) for _ in range(2)]
    constant = draw(st.booleans())
    shapes = [[*lead[0], m, k], [*lead[1], k, n]]
    stored = [[*s[:-2], s[-1], s[-2]] if t else s for s, t in zip(shapes, turned, strict=True)]
    tensors = [torch.randn(s) for s in stored]

    def build(b: Builder, x, y=None):
        y = b.const(tensors[1]) if y is None else y
        sides = [b.call(aten.transpose.int, v, -1, -2) if t else v for v, t in zip((x, y), turned, strict=True)]
        return b.call(aten.matmul.default, *sides)

    return (tensors[:1] if constant else tensors), build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(products(), min_size=8, max_size=8))
def test_products(target, cases):
    _close(cases, target)


def _vectors() -> list[Case]:
    m, v = torch.randn(5, 7), torch.randn(7)
    return [
        ([m, v], lambda b, m, v: b.call(aten.matmul.default, m, v)),
        ([v, m], lambda b, v, m: b.call(aten.matmul.default, v, b.call(aten.t.default, m))),
        ([v, v], lambda b, v, w: b.call(aten.matmul.default, v, w)),
        ([v, v], lambda b, v, w: b.call(aten.dot.default, v, w)),
        ([m, v], lambda b, m, v: b.call(aten.mv.default, m, v)),
        ([m], lambda b, m: b.call(aten.matmul.default, m, v)),
        ([torch.randn(4, 5, 7), v], lambda b, a, v: b.call(aten.matmul.default, a, v)),
        ([v, torch.randn(4, 7, 5)], lambda b, v, a: b.call(aten.matmul.default, v, a)),
        ([v], lambda b, v: b.call(aten.linear.default, v, torch.randn(5, 7), torch.randn(5))),
        ([v, torch.randn(5, 7)], lambda b, v, w: b.call(aten.linear.default, v, w)),
        ([torch.randn(2, 3, 7), torch.randn(5, 7), torch.randn(5)], lambda b, *a: b.call(aten.linear.default, *a)),
        ([torch.randn(6, 2, 9)], lambda b, x: b.call(aten.linear.default, b.call(aten.permute.default, x, [1, 0, 2]),
                                                     torch.randn(50, 9), torch.randn(50))),
        ([torch.randn(3, 1500), torch.randn(1500, 20)], lambda b, *a: b.call(aten.mm.default, *a)),
        ([torch.randn(1500, 9), torch.randn(20, 1500)],
         lambda b, x, y: b.call(aten.mm.default, b.call(aten.t.default, x), b.call(aten.t.default, y))),
        ([torch.randn(4, 6), torch.randn(4, 5), torch.randn(5, 6)],
         lambda b, *a: b.call(aten.addmm.default, *a, beta=0.5, alpha=2.0)),
        ([torch.randn(3, 4, 6), torch.randn(3, 4, 5), torch.randn(3, 5, 6)],
         lambda b, *a: b.call(aten.baddbmm.default, *a, beta=1, alpha=0.3)),
        ([torch.randn(1, 4, 6), torch.randn(3, 4, 5), torch.randn(3, 5, 6)],
         lambda b, x, y, z: (b.call(aten.baddbmm.default, x, y, z, beta=0),
                             b.call(aten.addbmm.default, b.call(aten.select.int, x, 0, 0), y, z, alpha=2))),
        ([torch.randn(5), torch.randn(5, 7), torch.randn(7)], lambda b, *a: b.call(aten.addmv.default, *a)),
        ([torch.randn(5, 7), torch.randn(5), torch.randn(7)], lambda b, *a: b.call(aten.addr.default, *a)),
    ]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_vectors_and_sums_with_products(target):
    torch.manual_seed(0)
    _close(_vectors(), target, 1e-4)


def test_panels_hold_every_column_once():
    b = torch.arange(3.0 * 70).reshape(3, 70) + 1
    packed = pack_panels(b)
    assert packed.numel() == 3 * (48 + 32)
    assert torch.equal(packed[: 3 * 48].view(3, 48), b[:, :48])
    assert torch.equal(packed[3 * 48 :].view(3, 32)[:, :22], b[:, 48:])
    assert not packed[3 * 48 :].view(3, 32)[:, 22:].any()


def test_threads_give_the_same_products():
    torch.manual_seed(0)
    x, y = torch.randn(70, 90), torch.randn(90, 20)
    program = single(aten.mm.default, Input(x), Input(y))
    one, two = compiled(program), compiled(program, threads=2)
    assert two.model.model.lowered.calls[0].params.fields["rows"] < 70
    assert torch.equal(one.trace([x, y])[0], two.trace([x, y])[0])


def test_a_permuted_view_is_multiplied_where_it_lies():
    """Heads taken apart from one tensor: no copy before the product."""

    def case(b: Builder, x):
        heads = b.call(aten.permute.default, b.call(aten.view.default, x, [2, 5, 3, 4]), [0, 2, 1, 3])
        return b.call(aten.matmul.default, heads, b.call(aten.transpose.int, heads, -1, -2))

    exe = check(together([([torch.randn(2, 5, 12)], case)]), rtol=1e-5, atol=1e-5)
    assert [c.kernel for c in exe.model.model.lowered.calls] == ["vqc_matmul_f32"]


@st.composite
def attentions(draw) -> Case:
    """Queries of one length, keys of another, batches, heads that share keys, masks of both kinds."""
    heads, per = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    q_len, k_len, width = draw(st.integers(1, 19)), draw(st.integers(1, 19)), draw(st.sampled_from([4, 16, 17]))
    batch = draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["none", "bool", "float", "causal"]))
    scale = draw(st.sampled_from([None, 0.3]))
    q = torch.randn(batch, heads * per, q_len, width)
    k, v = torch.randn(batch, heads, k_len, width), torch.randn(batch, heads, k_len, width + 1)
    masks = []
    if kind == "bool":
        mask = torch.rand(batch, 1, q_len, k_len) < 0.7
        mask[..., 0] = True
        masks = [mask]
    elif kind == "float":
        masks = [torch.randn(heads * per, q_len, k_len)]

    def build(b: Builder, q, k, v, mask=None):
        return b.call(aten.scaled_dot_product_attention.default, q, k, v, mask, 0.0, kind == "causal", scale=scale,
                      enable_gqa=per > 1)  # fmt: skip

    return [q, k, v, *masks], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(attentions(), min_size=4, max_size=4))
def test_attention(target, cases):
    _close(cases, target)


def test_a_row_that_is_masked_whole_gives_zeros():
    q, k, v = (torch.randn(1, 2, 3, 4) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    program = single(aten.scaled_dot_product_attention.default, Input(q), Input(k), Input(v), mask)
    got = compiled(program).trace([q, k, v])[0]
    assert not got[:, :, 1].any()
    torch.testing.assert_close(got[:, :, ::2], evaluate(program, [q, k, v])[0][:, :, ::2], rtol=1e-5, atol=1e-5)


@st.composite
def convolutions(draw) -> Case:
    """Weights and bias computed at run time; one to three axes, groups, transposed or not."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    c, o = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 9))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    stride = [draw(st.integers(1, 3)) for _ in range(axes)]
    padding = [draw(st.integers(0, k - 1)) for k in kernel]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    size = [draw(st.integers((k - 1) * d + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    batch = draw(st.sampled_from([[], [1], [2]]))
    turned = draw(st.booleans())
    bias = [torch.randn(o)] if draw(st.booleans()) else []
    if turned:
        weight = torch.randn(c, o // groups, *kernel)
        overload = aten.conv_transpose2d.input if axes == 2 else aten.conv_transpose3d.input
        op = aten.conv_transpose1d.default if axes == 1 else overload
        padding = [min(p, (k - 1) * d) for p, k, d in zip(padding, kernel, dilation, strict=True)]
    else:
        weight = torch.randn(o, c // groups, *kernel)
        op = [aten.conv1d, aten.conv2d, aten.conv3d][axes - 1].default

    def build(b: Builder, x, w, bias=None):
        if turned:
            return b.call(op, x, w, bias, stride, padding, [0] * axes, groups, dilation)
        return b.call(op, x, w, bias, stride, padding, dilation, groups)

    return [torch.randn(*batch, c, *size), weight, *bias], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(convolutions(), min_size=6, max_size=6))
def test_convolutions_with_weights_of_the_moment(target, cases):
    _close(cases, target, 1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_products_of_nothing(target):
    """Inputs without elements: sums of no products are zeros, whether an input or a call is what is empty."""
    x, y, z = torch.randn(3, 0), torch.randn(0, 5), torch.randn(3, 4)

    def build(b: Builder, x, y, z):
        none = b.call(aten.slice.Tensor, z, 1, 4, 4)
        return (b.call(aten.matmul.default, x, y), b.call(aten.matmul.default, none, y),
                b.call(aten.linear.default, x, torch.zeros(5, 0), torch.randn(5)))  # fmt: skip

    check(chain(build, x, y, z), target=target)
