"""vqc.testing: each helper holds when it should and, above all, fails when it should."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from handmade import Hand, aten

from vqc import testing
from vqc.executable import CompileReport, Executable
from vqc.program import Input, evaluate
from vqc.testing import Name

qd = torch.ops.quantized_decomposed


class Eager(Executable):
    """Runs the graph as it is; `change(node, value)` may disturb a value on its way."""

    def __init__(self, program, change=None):
        super().__init__(program, CompileReport("eager", "here"))
        self.change = change

    def _run(self, inputs, state):
        return evaluate(self.program, inputs, state, self.change)


def network(gain: float = 1.0):
    """x -> conv -> relu + r -> sigmoid -> u8; r carries the sum."""
    h = Hand("network")
    x, r = h.input("x", 1, 2, 4, 4), h.state("r", torch.zeros(1, 3, 4, 4))
    w = h.const("w", h.rand(3, 2, 3, 3) * gain)
    y = h(aten.relu, h(aten.conv2d, x, w, None, [1, 1], [1, 1]))
    total = h(aten.add.Tensor, y, r)
    q = h(qd.quantize_per_tensor, h(aten.sigmoid, total), 1 / 255, 0, 0, 255, torch.uint8)
    return h.done(q, h(aten.mul.Tensor, y, y), states=[total])


# ---- operators -------------------------------------------------------------------------------------------------------


def test_count_ops():
    counts = testing.count_ops(network())
    assert counts["aten.relu"] == counts["aten.conv2d"] == counts["aten.add.Tensor"] == 1 and counts["aten.tanh"] == 0
    assert sum(counts.values()) == 6


def test_assert_ops():
    testing.assert_ops(network(), {"aten.conv2d": 1, "aten.*.Tensor": 2, "aten.tanh": 0})
    with pytest.raises(AssertionError, match=r"(?s)aten.relu: 1, expected 0.*1 x aten.conv2d"):
        testing.assert_ops(network(), {"aten.relu": 0, "aten.conv2d": 1})


def test_assert_change():
    before, after = network(), network()
    relu = after.node("relu")
    relu.target = aten.neg.default
    testing.assert_change(before, after, {"aten.relu": -1, "aten.neg": 1, "aten.conv2d": 0})
    for wrong in ({"aten.relu": -1}, {}, {"aten.relu": -1, "aten.neg": 1, "aten.conv2d": 1}):
        with pytest.raises(AssertionError, match="expected"):
            testing.assert_change(before, after, wrong)


# ---- patterns --------------------------------------------------------------------------------------------------------


def names(program, pattern):
    return [m.node.name for m in testing.match(program, pattern)]


def test_match_finds_nested_calls():
    p = network()
    assert names(p, ("aten.relu", ("aten.conv2d", "placeholder", "constant", None, ...))) == ["relu"]
    assert names(p, ("aten.relu", ("aten.conv2d", "constant", ...))) == []
    assert names(p, ("aten.add.Tensor", "aten.relu", Any)) == ["add"]
    assert names(p, ("aten.*", ...)) == [n.name for n in p.calls if not n.name.startswith("quantize")]
    assert names(p, ({"aten.mul.Tensor", aten.add.Tensor}, ...)) == ["add", "mul"]
    assert names(p, (aten.relu.default, Any)) == ["relu"]


def test_match_compares_plain_values_and_lists():
    p = network()
    conv = ("aten.conv2d", Any, Any, None, [1, 1], [1, 1])
    assert names(p, conv) == ["conv2d"]
    assert names(p, (*conv[:-1], [1, Any])) == ["conv2d"]
    assert names(p, (*conv[:-1], [0, 0])) == []
    assert names(p, (*conv, [1, 1])) == []  # more arguments than the call has
    assert names(p, conv[:-1]) == []  # a padding that is no default needs a pattern, or ...
    assert names(p, ("quantized_decomposed.quantize*", Any, 1 / 255, 0, ...)) == ["quantize_per_tensor"]


def test_match_names_parts():
    (m,) = testing.match(
        network(), ("aten.add.Tensor", Name("y", ("aten.relu", Name("conv"))), Name("r", "placeholder"))
    )
    assert (m["y"].name, m["conv"].name, m["r"].name) == ("relu", "conv2d", "r")
    assert [n.name for n in m.nodes] == ["add", "relu", "r"]


def test_one_name_is_one_node():
    p = network()
    assert names(p, ("aten.mul.Tensor", Name("a"), Name("a"))) == ["mul"]
    assert names(p, ("aten.add.Tensor", Name("a"), Name("a"))) == []


def test_match_of_defaults_and_keywords():
    h = Hand()
    x = h.input("x", 2)
    p = h.done(h(aten.add.Tensor, x, x, alpha=2), h(aten.leaky_relu, x, 0.01), h(aten.leaky_relu, x, 0.2))
    assert names(p, ("aten.add.Tensor", Any, Any, {"alpha": 2})) == ["add"]
    assert (
        names(p, ("aten.add.Tensor", Any, Any, {"alpha": 3})) == names(p, ("aten.leaky_relu", ..., {"alpha": 2})) == []
    )
    assert names(p, ("aten.leaky_relu", Any)) == ["leaky_relu"]


# ---- text ------------------------------------------------------------------------------------------------------------

TEXT = """
    program hand
      input x: f32[2]

      relu: f32[2] = aten.relu(x)
      return y = relu
"""


def tiny():
    h = Hand()
    return h.done(h(aten.relu, h.input("x", 2)))


def test_assert_text_ignores_indentation():
    testing.assert_text(tiny(), TEXT)
    testing.assert_text(str(tiny()), TEXT.replace(" = ", "  =   "))


def test_assert_text_shows_the_difference(monkeypatch, capsys):
    monkeypatch.delenv(testing.UPDATE, raising=False)
    with pytest.raises(AssertionError) as e:
        testing.assert_text(tiny(), TEXT.replace("aten.relu", "aten.tanh"))
    assert "-relu: f32[2] = aten.tanh(x)\n+relu: f32[2] = aten.relu(x)" in str(e.value)
    assert "\n-program" not in str(e.value) and capsys.readouterr().out == ""


def test_assert_text_prints_the_new_text_when_asked(monkeypatch, capsys):
    monkeypatch.setenv("VQC_UPDATE_TEXT", "1")
    with pytest.raises(AssertionError):
        testing.assert_text(tiny(), "program other")
    testing.assert_text(tiny(), capsys.readouterr().out)
    assert os.environ[testing.UPDATE] == "1"


# ---- running ---------------------------------------------------------------------------------------------------------


def test_random_steps():
    p = network()
    p.inputs = (
        Input("x", (1, 2, 4, 4), torch.float32, (0.25, 0.5)),
        Input("u", (500,), torch.uint8),
        Input("t", (40,), torch.int64),
        Input("b", (40,), torch.int32),
        Input("n", (400,), torch.float32),
    )
    p.example = (torch.zeros(1, 2, 4, 4), torch.zeros(500, dtype=torch.uint8), torch.tensor([7, 9]))
    steps = testing.random_steps(p, 3, seed=5)
    assert len(steps) == 3 and not torch.equal(steps[0][0], steps[1][0])
    x, u, t, b, n = steps[0]
    assert x.min() >= 0.25 and x.max() <= 0.5 and x.shape == (1, 2, 4, 4)
    assert u.dtype == torch.uint8 and u.min() < 10 and u.max() > 245
    assert set(t.tolist()) == {7, 8, 9} and t.dtype == torch.int64 and set(b.tolist()) == {0, 1}
    assert n.min() < -1 and n.max() > 1
    again = testing.random_steps(p, 3, seed=5)
    assert all(torch.equal(v, w) for s, r in zip(steps, again, strict=True) for v, w in zip(s, r, strict=True))
    assert not torch.equal(testing.random_steps(p, 1, seed=6)[0][0], x)


def test_assert_same_holds():
    testing.assert_same(network(), network())
    testing.assert_same(network(), network(1 + 1e-6), rtol=1e-4, steps=[[torch.zeros(1, 2, 4, 4)]])


def test_assert_same_within_a_bound():
    h, g = Hand("a"), Hand("b")
    a, b = h.done(h(aten.mul.Tensor, h.input("x", 9), 1.0)), g.done(g(aten.mul.Tensor, g.input("x", 9), 1.001))
    testing.assert_same(a, b, rtol=1.01e-3)
    with pytest.raises(AssertionError, match=r"result y of a and b differs at step 0: 9 of 9 values, first at \(0,\)"):
        testing.assert_same(a, b)
    with pytest.raises(AssertionError, match="bound"):
        testing.assert_same(a, b, rtol=0.5e-3)


def test_assert_same_carries_the_state():
    """Equal on the first step, different on the second: only a carried state shows it."""

    def make(factor):
        h = Hand(f"times {factor}")
        x, r = h.input("x", 2), h.state("r", torch.zeros(2))
        return h.done(h(aten.add.Tensor, x, h(aten.mul.Tensor, r, factor)), states=[x])

    testing.assert_same(make(1.0), make(2.0), steps=1)
    with pytest.raises(AssertionError, match="at step 1"):
        testing.assert_same(make(1.0), make(2.0), steps=2)


def test_assert_same_never_bends_integers():
    def make(value):
        h = Hand("integers")
        return h.done(h(aten.add.Tensor, h.input("x", 3, dtype=torch.uint8), value))

    with pytest.raises(AssertionError, match="3 of 3 values"):
        testing.assert_same(make(1), make(2), steps=[[torch.zeros(3, dtype=torch.uint8)]], rtol=1, atol=10)


def test_assert_same_takes_equal_nans_only():
    def make(low):
        h = Hand("nans")
        return h.done(h(aten.sqrt, h(aten.maximum, h.input("x", 1), h.const("c", torch.tensor([low])))))

    below = [[torch.tensor([-5.0])]]
    testing.assert_same(make(-1.0), make(-2.0), below)
    with pytest.raises(AssertionError, match="nan"):
        testing.assert_same(make(-1.0), make(1.0), below, rtol=1.0)


def test_assert_same_wants_the_same_layout():
    with pytest.raises(AssertionError, match="inputs of network and hand differ"):
        testing.assert_same(network(), tiny())


# ---- integers of two backends ----------------------------------------------------------------------------------------


def test_integer_nodes():
    assert testing.integer_nodes(network()) == ["quantize_per_tensor"]
    h = Hand()
    x = h.input("x", 4)
    q = h(aten._to_copy, x, dtype=torch.uint8)
    p = h.done(h(aten.gt.Scalar, x, 0.0), h(aten.add.Tensor, q, 1), h(aten.relu, x))
    assert testing.integer_nodes(p) == ["to_copy", "add"]


def test_assert_integers_equal_holds():
    assert testing.assert_integers_equal(network(), Eager, Eager, steps=3) == ["quantize_per_tensor"]


def bump(name, at_call=0):
    """An executable that adds 1 to one value of a node the `at_call`-th time it is computed."""
    seen = []

    def change(node, value):
        if node.name == name:
            if len(seen) == at_call:
                value.view(-1)[5] += 1
            seen.append(node)

    return lambda program: Eager(program, change)


@pytest.mark.parametrize("step", [0, 2])
def test_assert_integers_equal_names_the_node_and_the_step(step):
    p = network()
    p.node("quantize_per_tensor").meta["source"] = "net.py:9 in forward: q(y)"
    with pytest.raises(AssertionError) as e:
        testing.assert_integers_equal(p, Eager, bump("quantize_per_tensor", step), steps=3)
    text = str(e.value)
    assert text.startswith("quantize_per_tensor (quantized_decomposed.quantize_per_tensor) differs")
    assert f"at step {step}: 1 of 48 values, first at (0, 0, 1, 1)" in text and text.endswith(
        "net.py:9 in forward: q(y)"
    )


def test_assert_integers_equal_names_the_first_of_two_nodes():
    h = Hand("chain")
    a = h(aten.add.Tensor, h.input("x", 8, dtype=torch.uint8), 1)
    p = h.done(h(aten.add.Tensor, a, 1))
    with pytest.raises(AssertionError, match=r"^add \("):
        testing.assert_integers_equal(p, Eager, bump("add"))


def test_assert_integers_equal_carries_one_state_for_both():
    """The second executable's own float state is off, and must not be what the next step starts from."""
    assert testing.assert_integers_equal(network(), Eager, bump("mul"), steps=3)
    p = network()
    with pytest.raises(AssertionError, match="at step 1"):

        def forgets(program):
            class Forgets(Eager):
                def _run(self, inputs, state):
                    return super()._run(inputs, [torch.zeros_like(s) for s in state])

            return Forgets(program)

        testing.assert_integers_equal(p, Eager, forgets, steps=2)


def test_assert_integers_equal_needs_integers():
    with pytest.raises(AssertionError, match="no integer values"):
        testing.assert_integers_equal(tiny(), Eager, Eager)
