"""fold-constants: what is computed once, what is kept because storing it costs more, and what is never touched."""

from __future__ import annotations

import operator

import pytest
import torch
from handmade import Hand, aten, reasons

from vqc import testing
from vqc.passes.fold_constants import SMALL, FoldConstants
from vqc.pipeline import PassContext, parse
from vqc.program import Program

DEBUG = PassContext(debug=True)
CPU = torch.device("cpu")
qd = torch.ops.quantized_decomposed


def fold(before: Program, **options: int) -> Program:
    after = FoldConstants(**options)(before, DEBUG)
    testing.assert_same(before, after)
    return after


def test_before_and_after():
    """Weight normalisation and a sampling grid are computed once; what depends on the input stays."""
    h = Hand("grid")
    x = h.input("x", 1, 3, 4, 4)
    v, g = h.const("conv.v", h.rand(2, 3, 3, 3)), h.const("conv.g", h.rand(2, 1, 1, 1))
    norm = h(aten.linalg_vector_norm, v, 2, [1, 2, 3], True)
    weight = h(aten.mul.Tensor, h(aten.div.Tensor, v, norm), g)
    row = h(aten.linspace, -1.0, 1.0, 4, device=CPU)
    grid = h(aten.add.Tensor, h(aten.unsqueeze, row, 1), row)
    y = h(aten.conv2d, x, weight, None, [1, 1], [1, 1])
    before = h.done(h(aten.mul.Tensor, y, grid))
    after = fold(before)
    testing.assert_text(before, """
        program grid
          input x: f32[1,3,4,4]
          linalg_vector_norm: f32[2,1,1,1] = aten.linalg_vector_norm(conv.v, 2, [1,2,3], True)
          div: f32[2,3,3,3] = aten.div.Tensor(conv.v, linalg_vector_norm)
          mul: f32[2,3,3,3] = aten.mul.Tensor(div, conv.g)
          linspace: f32[4] = aten.linspace(-1, 1, 4, device=cpu)
          unsqueeze: f32[4,1] = aten.unsqueeze(linspace, 1)
          add: f32[4,4] = aten.add.Tensor(unsqueeze, linspace)
          conv2d: f32[1,2,4,4] = aten.conv2d(x, mul, None, [1,1], [1,1])
          mul_1: f32[1,2,4,4] = aten.mul.Tensor(conv2d, add)
          return y = mul_1
    """)  # fmt: skip
    testing.assert_text(after, """
        program grid
          input x: f32[1,3,4,4]
          conv2d: f32[1,2,4,4] = aten.conv2d(x, mul_value, None, [1,1], [1,1])
          mul_1: f32[1,2,4,4] = aten.mul.Tensor(conv2d, add_value)
          return y = mul_1
    """)  # fmt: skip
    assert after.history[-1].rewrites == {"fold": 2, "remove": 6}
    assert sorted(after.constants) == ["add_value", "mul_value"]


def test_states_and_inputs_are_no_constants():
    h = Hand()
    x = h.input("x", 2)
    s = h.state("s", torch.zeros(2))
    c = h.const("c", torch.ones(2))
    y = h(aten.mul.Tensor, h(aten.add.Tensor, s, c), h(aten.exp, c))
    after = fold(h.done(h(aten.add.Tensor, x, y), states=[y]))
    assert [n.name for n in after.calls] == ["add", "mul", "add_1"]
    assert after.history[-1].rewrites == {"fold": 1, "remove": 1}
    assert [s.name for s in after.states] == ["s"]


def test_several_results():
    """The pieces of a constant that are read become constants; the split goes."""
    h = Hand()
    x = h.input("x", 2)
    c = h.const("c", h.rand(6))
    pieces = h(aten.split.Tensor, c, 2)
    y = h(aten.add.Tensor, h(aten.mul.Tensor, x, h(operator.getitem, pieces, 0)), h(operator.getitem, pieces, 2))
    after = fold(h.done(y))
    assert after.history[-1].rewrites == {"fold": 2, "remove": 3}
    assert {k: tuple(v.shape) for k, v in after.constants.items()} == {"getitem_value": (2,), "getitem_1_value": (2,)}


def test_a_result_that_is_constant():
    h = Hand()
    h.input("x", 2)
    c = h.const("c", h.rand(3))
    after = fold(h.done(h(aten.relu, c)))
    assert after.calls == []
    assert after.result_nodes[0].op == "get_attr"


@pytest.mark.parametrize(
    ("op", "args"),
    [(aten.rand_like, ()), (aten.bernoulli, ()), (aten.empty_like, ()), (aten.dropout, (0.5, True))],
    ids=str,
)
def test_never_random(op: object, args: tuple):
    h = Hand()
    x = h.input("x", 3)
    drawn = h(op, h.const("c", torch.full((3,), 0.5)), *args)
    before = h.done(h(aten.add.Tensor, x, h(aten.exp, drawn)))
    after = FoldConstants()(before)
    assert [n.name for n in after.calls] == [n.name for n in before.calls]
    assert after.history[-1].rewrites == {}


def test_a_weight_in_few_bits_stays_so():
    """A dequantized weight is not turned back into floats; quantizing it is done once."""
    h = Hand()
    x = h.input("x", 2, 4)
    w = h.const("w", h.rand(3, 4))
    q = h(qd.quantize_per_tensor, w, 0.02, 0, -127, 127, torch.int8)
    d = h(qd.dequantize_per_tensor, q, 0.02, 0, -127, 127, torch.int8)
    after = fold(h.done(h(aten.linear, x, d)))
    assert [testing.node_text(n) for n in after.calls] == ["quantized_decomposed.dequantize_per_tensor", "aten.linear"]
    assert after.constants["quantize_per_tensor_value"].dtype == torch.int8


# ---- growth ----------------------------------------------------------------------------------------------------------


def spread(size: int) -> Program:
    h = Hand()
    x = h.input("x", size, 4)
    c = h.const("c", h.rand(4))
    e = h(aten.expand, h(aten.exp, c), [size, 4])
    return h.done(h(aten.cat, [x, e], 1))


def test_an_expand_to_something_big_stays_and_its_input_is_folded():
    after = fold(spread(SMALL))
    assert after.history[-1].rewrites == {"fold": 1, "remove": 1}
    assert reasons(after) == {"expand": "it spreads 16 bytes over 1048576: done at every step, not stored"}
    assert list(after.constants) == ["exp_value"]


def test_a_small_expand_is_stored():
    after = fold(spread(8))
    assert after.history[-1].rewrites == {"fold": 1, "remove": 2}
    assert tuple(after.constants["expand_value"].shape) == (8, 4)


def test_zeros_are_stored_only_when_small():
    for size, calls in ((64, ["cat"]), (SMALL, ["zeros", "cat"])):
        h = Hand()
        x = h.input("x", size)
        after = fold(h.done(h(aten.cat, [x, h(aten.zeros, [size], device=CPU)])))
        assert [n.name for n in after.calls] == calls


def outer(max_growth: int, both: bool = False) -> Program:
    """Products [32,32] of two vectors of 32: 4096 bytes out of 256."""
    h = Hand()
    x = h.input("x", 32, 32)
    a, b = h.const("a", h.rand(32, 1)), h.const("b", h.rand(32))
    y = h(aten.add.Tensor, x, h(aten.mul.Tensor, h(aten.exp, a), b))
    if both:
        y = h(aten.add.Tensor, y, h(aten.div.Tensor, h(aten.exp, a), b))
    return fold(h.done(y), max_growth=max_growth)


def test_the_budget():
    """What is too big stays, and what it reads is computed all the same."""
    assert outer(4096 - 256).history[-1].rewrites == {"fold": 1, "remove": 2}
    declined = outer(4096 - 257)
    assert declined.history[-1].rewrites == {"fold": 1, "remove": 1}
    assert reasons(declined) == {"mul": "it would add 3840 bytes of constants, max_growth leaves 3839"}


def test_the_budget_is_one_for_all_and_counts_a_source_once():
    after = outer(4096, both=True)
    assert reasons(after) == {"mul": "it would add 4096 bytes of constants, max_growth leaves 256"}
    assert outer(2 * 4096 - 256, both=True).history[-1].declined == ()


def test_options_as_text():
    assert str(parse("fold-constants{max_growth=0}")) == "fold-constants{max_growth=0}"
    assert parse("fold-constants").passes == (FoldConstants(),)


def test_strides_of_a_computed_constant_are_kept():
    """A transposed weight gives other last bits as contiguous memory; the pass promises equal ones."""
    h = Hand()
    x = h.input("x", 7, 40)
    w = h.const("w", h.rand(40, 16))
    after = fold(h.done(h(aten.linear, x, h(aten.permute, w, [1, 0]))))
    assert after.constants["permute_value"].stride() == (1, 16)
