"""The memory plan: nothing alive is overwritten, copies go away only where they may, states keep their old value."""

from __future__ import annotations

import random

import torch
from c_helpers import aten, chain, check
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c.ir import ALIGN, align
from vqc.backends.c.lower import lower
from vqc.backends.c.plan import Life, _fit, _orders, make_plan, most_alive, place


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 12)), max_size=40))
def test_lives_that_meet_never_share_bytes(items):
    lives = [Life(size, first, first + length) for size, first, length in items]
    total = place(lives)
    for i, a in enumerate(lives):
        assert a.offset % ALIGN == 0 and a.offset >= 0 and a.offset + a.size <= total
        for b in lives[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
    # no plan can be smaller than the most that is alive at once
    most = max((sum(align(x.size) for x in lives if x.first <= t <= x.last) for t in range(43)), default=0)
    assert most_alive(lives) == most <= total
    again = [Life(size, first, first + length) for size, first, length in items]
    assert place(again) == total and [x.offset for x in again] == [x.offset for x in lives]


def test_the_search_finds_a_tight_placement_that_greedy_orders_miss():
    """Random lives of many sizes: within 3 % of what is alive at once, where one greedy order alone is worse."""
    rng = random.Random(5)
    worst, greedy = 0.0, 0.0
    for _ in range(8):
        lives = [
            Life(64 * rng.randint(1, 400), a, a + rng.randint(1, 9)) for a in (rng.randrange(60) for _ in range(80))
        ]
        bound = most_alive(lives)
        worst = max(worst, place(lives) / bound)
        first = _fit(lives, next(_orders(lives)))
        greedy = max(greedy, max(o + x.size for o, x in zip(first, lives, strict=True)) / bound)
    assert worst <= 1.03 < greedy


@st.composite
def graphs(draw):
    """Random graphs of pointwise calls, concatenations, slices and convolutions, with states and several results."""
    op = st.sampled_from(["relu", "add", "cat", "half", "conv", "pad", "sigmoid"])
    number = st.integers(0, 30)
    ops = draw(st.lists(st.tuples(op, number, number), min_size=3, max_size=14))
    return ops, draw(st.lists(number, min_size=1, max_size=3)), draw(st.lists(number, min_size=2, max_size=2))


def build_graph(case):
    ops, results, nexts = case
    weight = torch.randn(4, 4, 3, 3) * 0.2

    def build(b, x, s0, s1):
        have = [x, s0, s1]  # all [1,4,5,6]
        for op, i, j in ops:
            a, c = have[i % len(have)], have[j % len(have)]
            if op == "relu" or op == "sigmoid":
                y = b.call(getattr(aten, op).default, a)
            elif op == "add":
                y = b.call(aten.add.Tensor, a, c)
            elif op == "conv":
                y = b.call(aten.conv2d.default, a, weight, None, [1, 1], [1, 1], [1, 1], 1)
            elif op == "cat":
                y = b.call(
                    aten.cat.default, [b.call(aten.slice.Tensor, a, 1, 0, 1), b.call(aten.slice.Tensor, c, 1, 1, 4)], 1
                )
            elif op == "pad":
                y = b.call(aten.slice.Tensor, b.call(aten.constant_pad_nd.default, a, [0, 0, 0, 0, 1, 0]), 1, 0, 4)
            else:
                both = b.call(aten.cat.default, [a, c], 1)
                y = b.call(aten.slice.Tensor, both, 1, 2, 6)
            have.append(y)
        return [have[r % len(have)] for r in results], [have[n % len(have)] for n in nexts]

    return chain(build, torch.randn(1, 4, 5, 6), states=[torch.randn(1, 4, 5, 6), torch.zeros(1, 4, 5, 6)])


@settings(max_examples=15, deadline=None)
@given(graphs())
def test_random_graphs_with_states_give_the_reference_result(case):
    check(build_graph(case), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_no_call_writes_over_what_is_read_later(case):
    """A simulation on the plan itself: every read must find the bytes its buffer's writers left there."""
    lowered = lower(build_graph(case), "native")
    plan = make_plan(lowered)
    owner: dict[tuple, object] = {}  # (memory, 4-byte slot) -> the buffer that wrote it last

    def slots(buffer):
        root, offset = buffer.root()
        if root.kind == "arena":
            at, where = plan.offsets[buffer], "arena"
        else:
            at, where = (root.place or 0) * (1 if root.kind in ("state", "weight") else 10**6) + offset, root.kind
        return [(where, b) for b in range(at, at + buffer.size, 4)]

    for v in (*lowered.inputs, *lowered.states):
        for s in slots(v.buffer):
            owner[s] = v.buffer
    for c in lowered.calls:
        if c in plan.scratch:
            for b in range(plan.scratch[c], plan.scratch[c] + c.scratch, 4):
                owner[("arena", b)] = "scratch"
        for r in c.reads:
            if r.kind != "weight":
                family = _family(lowered, r)
                assert all(owner.get(s) in family for s in slots(r) if s in owner or r.kind == "arena"), (
                    c.node,
                    r.name,
                )
        for w in c.writes:
            for s in slots(w):
                owner[s] = w


def _family(lowered, buffer):
    """Who may have written the buffer's bytes: itself, parts of it, and a whole it is a part of.

    A buffer of the same size in the same place is no relative: it took the memory over.
    """
    found = {buffer}
    for b in {b for c in lowered.calls for b in (*c.reads, *c.writes)}:
        for part, whole in ((b, buffer), (buffer, b)):
            up = part
            while up.home is not None:
                up = up.home[0]
                if up is whole and part.size < whole.size:
                    found.add(b)
    return found


def test_states_that_move_on_and_swap():
    """A shift register, a swap and a state that stays: the old values are all read before any is replaced."""

    def build(b, x, a, c, d, e):
        return [b.call(aten.add.Tensor, a, e)], [x, a, e, d]

    check(chain(build, torch.randn(2, 3), states=[torch.full((2, 3), float(i)) for i in range(4)]), exact=True)


def test_a_state_is_written_in_place_only_after_its_last_reader():
    def late(b, x, h):
        new = b.call(aten.sigmoid.default, b.call(aten.add.Tensor, x, h))
        return [b.call(aten.mul.Tensor, b.call(aten.relu.default, new), h)], [new]  # h is read after `new` is there

    exe = check(chain(late, torch.randn(2, 3), states=[torch.ones(2, 3)]))
    assert [c.kernel for c in exe.model.model.lowered.calls].count("vqc_copy") == 1

    def early(b, x, h):
        new = b.call(aten.conv2d.default, b.call(aten.add.Tensor, x, h), torch.ones(1, 1, 3, 3), None, [1, 1], [1, 1])
        return [b.call(aten.relu.default, new)], [new]

    exe = check(chain(early, torch.randn(1, 1, 4, 4), states=[torch.ones(1, 1, 4, 4)]))
    assert [c.kernel for c in exe.model.model.lowered.calls].count("vqc_copy") == 0


def test_pointwise_results_take_over_dying_operands():
    def build(b, x):
        y = b.call(aten.conv2d.default, x, torch.randn(8, 3, 3, 3), None, [1, 1], [1, 1])
        z = b.call(aten.sub.Tensor, y, b.call(aten.mean.dim, y, [2, 3], True))
        return b.call(aten.conv2d.default, z, torch.randn(2, 8, 3, 3), None, [1, 1], [1, 1])

    exe = check(chain(build, torch.randn(1, 3, 40, 50)), atol=1e-4)
    plan = exe.model.model.plan
    offsets = {b.name: o for b, o in plan.offsets.items()}
    assert offsets["conv2d_default"] == offsets["sub_tensor"]


def test_a_result_that_grows_call_by_call_takes_over_nothing():
    """A fold adds to zeros that stand before its columns are read: they must not lie in each other."""

    def build(b, x):
        columns = b.call(aten.mul.Tensor, x, 2.0)
        return b.call(
            aten.mul.Tensor, b.call(aten.col2im.default, columns, [6, 8], [1, 1], [1, 1], [0, 0], [1, 1]), 3.0
        )

    check(chain(build, torch.randn(1, 4, 48)))
