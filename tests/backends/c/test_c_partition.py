"""Operators without a C kernel: refused with reasons, or left to PyTorch and reported."""

from __future__ import annotations

import operator

import pytest
import torch
from c_helpers import aten, chain
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c import CBackend, Rule, register_lowering, supported_ops
from vqc.backends.c.partition import stages
from vqc.errors import UnsupportedOp
from vqc.program import evaluate


def mixed():
    def build(b, x, s):
        y = b.call(aten.relu.default, x)
        z = b.call(aten.special_bessel_j0.default, y)  # no C kernel
        pair = b.call(aten.cummax.default, b.call(aten.mul.Tensor, z, 2.0), 1)  # nor for this one
        top = b.call(operator.getitem, pair, 0)
        out = b.call(aten.add.Tensor, b.call(aten.sub.Tensor, top, y), s)
        return [out], [b.call(aten.mul.Tensor, out, 0.5)]

    return chain(build, torch.randn(2, 30), states=[torch.zeros(2, 30)])


def test_strict_mode_lists_every_operator_with_reason_source_and_way_out():
    with pytest.raises(UnsupportedOp) as e:
        CBackend().compile(mixed(), "native", {"fallback": "none"})
    text = str(e.value)
    assert "2 of 8 operators" in text and "fallback=eager" in text
    for name in ("special_bessel_j0_default (aten.special_bessel_j0)", "cummax_default (aten.cummax)",
                 "test.py: aten.cummax.default"):  # fmt: skip
        assert name in text


def test_fallback_runs_the_rest_in_pytorch_and_reports_it():
    p = mixed()
    exe = CBackend().compile(p, "native", {})
    assert [d.node for d in exe.report.fallbacks] == ["special_bessel_j0_default", "cummax_default"]
    assert all("no C kernel" in d.reason for d in exe.report.fallbacks)
    assert "segments in C" in str(exe.report)
    state = p.initial_state()
    for _ in range(3):
        want = evaluate(p, p.example, state)
        results, state = exe.step(p.example, state)
        torch.testing.assert_close(results[0], want[0])
        torch.testing.assert_close(state[0], want[1])


def test_a_network_in_half_precision_is_told_what_to_do():
    p = chain(lambda b, x: (b.call(aten.relu.default, x),), torch.randn(2, 30, dtype=torch.float16))
    with pytest.raises(UnsupportedOp, match=r"is f16, which the C kernels do not know \(.*module\.float\(\)\)"):
        CBackend().compile(p, "native", {"fallback": "none"})


def test_results_never_share_memory_with_what_was_given():
    def build(b, x):
        return (
            b.call(aten.relu.default, x),
            b.call(aten.special_bessel_j0.default, x),
            x,
            b.call(aten.view.default, x, [-1]),
        )

    x = torch.randn(3, 4)
    exe = CBackend().compile(chain(build, x), "native", {})
    for r in exe.trace([x]):
        r.fill_(7.0)
    assert not torch.equal(x, torch.full_like(x, 7.0))


def test_unsupported_dtype_and_shape_have_a_reason():
    p = chain(lambda b, x: b.call(aten.add.Tensor, x, 1.0), torch.randn(3, dtype=torch.float64))
    assert "f64" in (CBackend().supports(p, p.calls[0], "native") or "")
    p = chain(lambda b, x: b.call(aten.trunc.default, x), torch.arange(3))
    assert "s64" in (CBackend().supports(p, p.calls[0], "native") or "")
    p = chain(lambda b, x: b.call(aten.max_pool2d.default, x, [2, 2], [1, 1], [0, 0], [2, 2]),
              torch.zeros(1, 1, 9, 9, dtype=torch.uint8))  # fmt: skip
    assert "dilated" in (CBackend().supports(p, p.calls[0], "native") or "")


def test_a_targets_own_rule_wins():
    def refuse(program, node):
        return "not on this one"

    p = chain(lambda b, x: b.call(aten.relu.default, x), torch.randn(3))
    assert CBackend().supports(p, p.calls[0], "somewhere") is None
    register_lowering("aten::relu", Rule(refuse, lambda ctx, node: None), target="somewhere")
    assert CBackend().supports(p, p.calls[0], "somewhere") == "not on this one"
    assert CBackend().supports(p, p.calls[0], "native") is None
    assert {"aten::conv2d", "vqc::qconv2d", "getitem"} <= set(supported_ops())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=14))
def test_stages_follow_the_data(ops):
    def build(b, x):
        have = [x]
        for odd, i, j in ops:
            op = aten.atan2.default if odd else aten.add.Tensor
            have.append(b.call(op, have[i % len(have)], have[j % len(have)]))
        return have[-1]

    p = chain(build, torch.ones(2))
    eager = {n.name for n in p.calls if n.target is aten.atan2.default}
    where = stages(p, eager)
    for n in p.calls:
        assert where[n] % 2 == (n.name in eager)
        for a in n.all_input_nodes:
            assert a not in where or where[a] <= where[n]
