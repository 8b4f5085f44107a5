"""canonicalize: every rule by its name and count, what must not be merged, and that it is quick."""

from __future__ import annotations

import operator
import time
from typing import Any

import pytest
import torch
from handmade import Hand, aten, reasons, run
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc import testing
from vqc.passes.canonicalize import Canonicalize
from vqc.pipeline import PassContext
from vqc.program import Program, shape_of

DEBUG = PassContext(debug=True)


def canonical(before: Program) -> Program:
    after = Canonicalize()(before, DEBUG)
    testing.assert_same(before, after)
    assert Canonicalize()(after, DEBUG).history[-1].rewrites == {}, "not a fixpoint"
    return after


def one(op: Any, *args: Any, shape: tuple[int, ...] = (2, 3, 4), **kwargs: Any) -> dict[str, int]:
    """The rewrites of relu(op(sigmoid(x), ...)); an operator before and after, so that no result is an input."""
    h = Hand()
    x = h.input("x", *shape)
    return dict(canonical(h.done(h(aten.relu, h(op, h(aten.sigmoid, x), *args, **kwargs)))).history[-1].rewrites)


def test_before_and_after():
    h = Hand("tidy")
    x = h.input("x", 2, 3, 4, 4)
    a, b = h.const("a.weight", torch.ones(3, 3, 1, 1)), h.const("b.weight", torch.ones(3, 3, 1, 1))
    flat = h(aten.view, h(aten.clone, x), [2, 3, 16])
    back = h(aten.view, flat, [2, 3, 4, 4])
    swapped = h(aten.transpose.int, h(aten.permute, back, [0, 1, 3, 2]), 2, 3)
    left = h(aten.relu, h(aten.conv2d, swapped, a))
    right = h(aten.relu, h(aten.conv2d, x, b))
    unused = h(aten.sigmoid, right)
    y = h(aten.add.Tensor, left, h(aten.mul.Tensor, h(aten.slice.Tensor, right, 1, 0, 9), 1.0))
    h(aten.exp, unused)
    before = h.done(h(aten.cat, [y], 1))
    after = canonical(before)
    testing.assert_text(after, """
        program tidy
          input x: f32[2,3,4,4]
          conv2d: f32[2,3,4,4] = aten.conv2d(x, a.weight)
          relu: f32[2,3,4,4] = aten.relu(conv2d)
          add: f32[2,3,4,4] = aten.add.Tensor(relu, relu)
          return y = add
    """)  # fmt: skip
    assert after.history[-1].rewrites == {
        "view-as-reshape": 2, "merge-constant": 1, "drop-copy": 1, "merge-reshapes": 1, "drop-reshape": 1,
        "merge-permutes": 1, "merge-equal": 2, "drop-slice": 1, "mul-by-one": 1, "drop-cat": 1, "drop-dead": 4,
    }  # fmt: skip


# ---- rules one by one ------------------------------------------------------------------------------------------------

DROPPED = [
    (aten.clone, (), "drop-copy"),
    (aten.detach, (), "drop-copy"),
    (aten.alias, (), "drop-copy"),
    (aten.contiguous, (), "drop-copy"),
    (aten.lift_fresh_copy, (), "drop-copy"),
    (aten.dropout, (0.5, False), "drop-dropout"),
    (aten._to_copy, (), "drop-cast"),
    (aten.to.dtype, (torch.float32,), "drop-cast"),
    (aten.reshape, ([2, 3, 4],), "drop-reshape"),
    (aten.squeeze.dim, (1,), "drop-reshape"),
    (aten.flatten.using_ints, (2, 2), "drop-reshape"),
    (aten.permute, ([0, -2, 2],), "drop-permute"),
    (aten.transpose.int, (1, -2), "drop-permute"),
    (aten.expand, ([-1, 3, 4],), "drop-expand"),
    (aten.repeat, ([1, 1, 1],), "drop-expand"),
    (aten.slice.Tensor, (1, 0, 9223372036854775807), "drop-slice"),
    (aten.constant_pad_nd, ([0, 0, 0, 0],), "drop-pad"),
    (aten.mul.Tensor, (1,), "mul-by-one"),
    (aten.mul.Scalar, (1.0,), "mul-by-one"),
    (aten.div.Tensor, (1.0,), "div-by-one"),
    (aten.add.Tensor, (0,), "add-zero"),
    (aten.sub.Tensor, (0.0,), "add-zero"),
]


@pytest.mark.parametrize(("op", "args", "name"), DROPPED, ids=lambda v: str(v) if not isinstance(v, tuple) else "")
def test_no_ops_are_dropped(op: Any, args: tuple, name: str):
    rewrites = one(op, *args)
    rewrites.pop("view-as-reshape", None)
    assert rewrites == {name: 1}


KEPT = [
    (aten.reshape, ([3, 2, 4],)),
    (aten.permute, ([0, 2, 1],)),
    (aten.expand, ([5, 2, 3, 4],)),
    (aten.repeat, ([1, 1, 2],)),
    (aten.slice.Tensor, (1, 0, 2)),
    (aten.slice.Tensor, (1, 0, 3, 2)),
    (aten.constant_pad_nd, ([1, -1],)),
    (aten.to.dtype, (torch.float64,)),
    (aten.mul.Tensor, (1.0000001,)),
    (aten.div.Tensor_mode, (1.0,), {"rounding_mode": "floor"}),
    (aten.sub.Tensor, (-0.0,)),
]


@pytest.mark.parametrize("case", KEPT, ids=lambda v: f"{v[0]}{v[1]}")
def test_what_changes_something_is_kept(case: tuple):
    op, args, kwargs = case if len(case) == 3 else (*case, {})
    h = Hand()
    y = h(op, h(aten.mul.Tensor, h.input("x", 2, 3, 4), 0.5), *args, **kwargs)
    assert len(canonical(h.done(y)).calls) == 2


def test_adding_zero_keeps_the_sign_of_zero():
    """-0.0 + 0.0 is +0.0: not a no-op for floats, unless the value is never -0.0. For integers it always is one."""
    h = Hand()
    x = h.input("x", 4)
    z = h.const("zero", torch.zeros(4))
    plain, safe = h(aten.add.Tensor, x, z), h(aten.add.Tensor, h(aten.sigmoid, x), z)
    minus_zero = h(aten.add.Tensor, h(aten.exp, x), z, alpha=-1), h(aten.add.Tensor, h(aten.tanh, x), -0.0)
    after = canonical(h.done(plain, safe, *minus_zero))
    assert [n.name for n in after.calls] == ["add", "sigmoid", "exp", "tanh"]
    minus = [torch.full((4,), -0.0)]
    assert not torch.signbit(run(after, minus)[0]).any()

    h = Hand()
    x = h.input("x", 4, dtype=torch.int32)
    after = canonical(h.done(h(aten.neg, h(aten.add.Tensor, x, 0)), h(aten.add.Tensor, x, 0.0)))
    assert [n.name for n in after.calls] == ["neg", "add_1"]  # the second one makes floats of integers


def test_numbers_that_broadcast_are_no_identity():
    h = Hand()
    x = h.input("x", 1, 4)
    y = h(aten.mul.Tensor, x, h.const("ones", torch.ones(3, 4)))
    z = h(aten.mul.Tensor, h.const("row", torch.ones(4)), x)
    after = canonical(h.done(y, h(aten.exp, z)))
    assert [n.name for n in after.calls] == ["mul", "exp"]


def test_a_cast_to_another_device_is_no_no_op():
    h = Hand()
    x = h.input("x", 2)
    here, there = (h(aten._to_copy, x, device=torch.device(d)) for d in ("cpu", "meta"))
    after = Canonicalize()(h.done(here, there))
    assert after.history[-1].rewrites == {"drop-cast": 1}
    assert [n.kwargs["device"].type for n in after.calls] == ["meta"]


def test_stack_of_one_and_split_into_one():
    h = Hand()
    x = h.input("x", 2, 3)
    y = h(aten.stack, [x], 1)
    z = h(operator.getitem, h(aten.split.Tensor, x, 5), 0)
    after = canonical(h.done(y, h(aten.exp, z)))
    assert after.history[-1].rewrites == {"stack-of-one": 1, "drop-split": 1, "drop-dead": 1}
    testing.assert_ops(after, {"aten.unsqueeze": 1, "aten.exp": 1, "*": 2})


def test_chains_of_views_become_one():
    h = Hand()
    x = h.input("x", 2, 3, 4, 5)
    y = h(aten.unsqueeze, h(aten.flatten.using_ints, h(aten.reshape, x, [6, 4, 5]), 1), 0)
    after = canonical(h.done(y))
    testing.assert_text(after, """
        program hand
          input x: f32[2,3,4,5]
          unsqueeze: f32[1,6,20] = aten.reshape(x, [1,6,20])
          return y = unsqueeze
    """)  # fmt: skip


def test_permutes_in_a_row_become_one():
    h = Hand()
    x = h.input("x", 2, 3, 4)
    y = h(aten.movedim.int, h(aten.transpose.int, h(aten.permute, x, [2, 0, 1]), 0, 1), 0, 2)
    after = canonical(h.done(y))
    testing.assert_ops(after, {"aten.permute": 1, "*": 1})
    assert shape_of(after.result_nodes[0]) == (4, 3, 2)


# ---- copies and memory order -----------------------------------------------------------------------------------------


def transposed_copy(op: Any, *args: Any) -> Program:
    h = Hand()
    x = h.input("x", 2, 8, 8, 3)
    p = h(aten.clone, h(aten.permute, x, [0, 3, 1, 2]), memory_format=torch.contiguous_format)
    w = [h.const("w", h.rand(4, 3, 3, 3))] if op is aten.conv2d else []
    return h.done(h(op, h(aten.relu, p), *w, *args))


def test_a_copy_before_a_view_goes():
    """The view after it then stands on transposed memory: it has become a reshape."""
    after = canonical(transposed_copy(aten.view, [6, 64]))
    testing.assert_ops(after, {"aten.clone": 0, "aten.view": 0, "aten.reshape": 1})
    relu = after.node("relu").meta["val"]
    assert relu.stride() == run_strides(after, "relu")


def run_strides(program: Program, name: str) -> tuple[int, ...]:
    return run(program.with_outputs([name]))[-1].stride()


def test_a_copy_before_a_sum_in_memory_order_stays():
    after = canonical(transposed_copy(aten.conv2d))
    testing.assert_ops(after, {"aten.clone": 1})
    assert reasons(after) == {"clone": "conv2d adds in the order of memory, which this copy sets"}


def test_a_copy_that_changes_no_order_always_goes():
    h = Hand()
    x = h.input("x", 2, 3, 8, 8)
    w = h.const("w", h.rand(4, 3, 3, 3))
    after = canonical(h.done(h(aten.conv2d, h(aten.clone, h(aten.relu, x)), w)))
    testing.assert_ops(after, {"aten.clone": 0})


# ---- equal calls and constants ---------------------------------------------------------------------------------------


def test_equal_calls_need_equal_bits_of_scalars():
    h = Hand()
    x = h.input("x", 3)
    n = h.input("n", 3, dtype=torch.int32)
    same = h(aten.mul.Tensor, x, 2.0), h(aten.mul.Tensor, x, 2.0)
    signs = h(aten.copysign.Scalar, x, 0.0), h(aten.copysign.Scalar, x, -0.0)
    types = h(aten.mul.Tensor, n, 2), h(aten.mul.Tensor, n, 2.0)
    after = canonical(h.done(*same, *signs, *types))
    assert after.history[-1].rewrites == {"merge-equal": 1}


def test_defaults_written_out_are_the_same_call():
    h = Hand()
    x, w = h.input("x", 1, 3, 5, 5), h.const("w", h.rand(4, 3, 3, 3))
    y = h(aten.conv2d, x, w), h(aten.conv2d, x, w, None, [1, 1]), h(aten.conv2d, x, w, groups=1)
    assert canonical(h.done(*y)).history[-1].rewrites == {"merge-equal": 2}


def test_random_calls_are_never_merged():
    h = Hand()
    x = h.input("x", 3)
    before = h.done(h(aten.rand_like, x), h(aten.rand_like, x), h(aten.dropout, x, 0.5, True))
    assert Canonicalize()(before).history[-1].rewrites == {}


def test_pieces_of_equal_splits_are_merged():
    h = Hand()
    x = h.input("x", 4)
    parts = [h(operator.getitem, h(aten.split.Tensor, x, 2), i) for i in (0, 0, 1)]
    after = canonical(h.done(h(aten.cat, parts)))
    assert after.history[-1].rewrites == {"merge-equal": 3}


def test_constants_are_merged_by_bytes():
    h = Hand()
    x = h.input("x", 2)
    base = torch.tensor([0.0, 1.0])
    values = {
        "a": base,
        "same_storage": base,
        "same_bytes": base.clone(),
        "minus": torch.tensor([-0.0, 1.0]),
        "wide": base.double(),
        "row": base[None],
    }
    names = [h.const(k, v) for k, v in values.items()]
    after = canonical(h.done(*(h(aten.copysign.Tensor, x, c) for c in names)))
    assert sorted(after.constants) == ["a", "minus", "row", "wide"]
    assert after.history[-1].rewrites == {"merge-constant": 2, "merge-equal": 2}


# ---- what is always kept ---------------------------------------------------------------------------------------------


def test_states_are_kept_even_when_nothing_reads_them():
    h = Hand()
    x = h.input("x", 2)
    s = h.state("s", torch.zeros(2))
    after = canonical(h.done(h(aten.relu, x), states=[h(aten.clone, s)]))
    assert [s.name for s in after.states] == ["s"]
    assert after.result_nodes[1].name == "s"


def test_what_was_observed_moves_with_the_value():
    h = Hand()
    x = h.input("x", 2, 3)
    y = h(aten.clone, h(aten.relu, x))
    y.meta["observed"] = "range"
    before = h.done(h(aten.exp, y))
    assert canonical(before).node("relu").meta["observed"] == "range"


STEPS = st.sampled_from(["view", "back", "swap", "clone", "one", "zero", "relu", "slice", "expand", "exp"])


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=12), st.lists(STEPS, max_size=6))
def test_random_chains_keep_every_bit(first: list[str], second: list[str]):
    """Two random chains from one input: equal results, a fixpoint, and never more calls than before."""
    h = Hand()
    x = h.input("x", 2, 3, 4)

    def chain(y: Any, steps: list[str]) -> Any:
        for s in steps:
            rank = len(shape_of(y))
            y = {
                "view": lambda y: h(aten.reshape, y, [-1]),
                "back": lambda y: h(aten.reshape, y, [4, 3, 2]),
                "swap": lambda y, r=rank: h(aten.transpose.int, y, 0, r - 1),
                "clone": lambda y: h(aten.clone, y, memory_format=torch.contiguous_format),
                "one": lambda y: h(aten.mul.Tensor, y, 1.0),
                "zero": lambda y: h(aten.sub.Tensor, y, 0.0),
                "relu": lambda y: h(aten.relu, y),
                "slice": lambda y: h(aten.slice.Tensor, y, 0, 0, 100),
                "expand": lambda y: h(aten.expand, y, list(shape_of(y))),
                "exp": lambda y: h(aten.exp, y),
            }[s](y)
        return y

    before = h.done(chain(x, first), chain(x, second))
    assert len(canonical(before).calls) <= len(before.calls)


def test_four_thousand_nodes_in_a_few_seconds():
    h = Hand()
    x = h.input("x", 4, 4)
    y = x
    for _ in range(800):
        y = h(aten.reshape, h(aten.clone, h(aten.transpose.int, y, 0, 1)), [4, 4])
        y = h(aten.add.Tensor, h(aten.tanh, y), x)
    before = h.done(y)
    assert len(before.calls) == 4000
    start = time.process_time()
    after = Canonicalize()(before)
    assert time.process_time() - start < 5
    assert len(after.calls) == 2400
