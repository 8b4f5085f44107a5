"""The Program: text, clones, constants, dead code, inputs and states, running."""

from __future__ import annotations

import pytest
import torch
from handmade import Hand, aten, run
from torch.utils import _pytree as pytree

from vqc import testing
from vqc.errors import InputError
from vqc.frames import Frames
from vqc.program import (
    Assumption,
    Input,
    Leaf,
    PassRecord,
    Program,
    Signature,
    evaluate,
    infer,
    meta_of,
    op_text,
    shape_of,
    tensor_text,
)


def recurrent() -> Program:
    """y, s' = relu(conv(x) + s), tanh(...)"""
    h = Hand("cell")
    x = h.input("x", 1, 3, 4, 4, frames=Frames("slot", index=0, count=2))
    s = h.state("s", torch.zeros(1, 2, 4, 4))
    w = h.const("conv.weight", h.rand(2, 3, 3, 3))
    two = h.const("two", torch.tensor(2.0))
    y = h(aten.add.Tensor, h(aten.conv2d, x, w, None, [1, 1], [1, 1]), s)
    return h.done(h(aten.relu, h(aten.mul.Tensor, y, two)), states=[h(aten.tanh, y)])


TEXT = """
    program cell
      input x: f32[1,3,4,4] slot 0 of 2
      state s: f32[1,2,4,4] <- tanh
      conv2d: f32[1,2,4,4] = aten.conv2d(x, conv.weight, None, [1,1], [1,1])
      add: f32[1,2,4,4] = aten.add.Tensor(conv2d, s)
      mul: f32[1,2,4,4] = aten.mul.Tensor(add, 2)
      relu: f32[1,2,4,4] = aten.relu(mul)
      tanh: f32[1,2,4,4] = aten.tanh(add)
      return y = relu
"""


def test_text_is_short_and_stable():
    testing.assert_text(recurrent(), TEXT)
    assert str(recurrent()) == str(recurrent())


def test_text_of_ranges_and_assumptions():
    h = Hand("small")
    x = h.input("x", 2)
    p = h.done(h(aten.relu, x), h(aten.any, h(aten.gt.Scalar, x, 0.0)))
    p.inputs = (Input("x", (2,), torch.float32, known_range=(0.0, 1.0)),)
    p.outputs, p.assumptions = ("y",), (Assumption(1, True, "net.py:3", "x is positive somewhere"),)
    testing.assert_text(p, """
        program small
          input x: f32[2] in [0,1]
          relu: f32[2] = aten.relu(x)
          gt: bool[2] = aten.gt.Scalar(x, 0)
          any_1: bool[] = aten.any(gt)
          return y = relu
          assume any_1 is True  # x is positive somewhere
    """)  # fmt: skip


def test_names_of_operators_and_tensors():
    assert op_text(aten.conv2d.default) == "aten.conv2d"
    assert op_text(aten.add.Tensor) == "aten.add.Tensor"
    assert tensor_text((torch.zeros(2, dtype=torch.uint8), torch.zeros(()))) == "(u8[2], f32[])"


def test_a_clone_is_the_same_and_independent():
    before = recurrent()
    before.node("conv2d").meta["source"] = "net.py:7"
    clone = before.clone()
    assert str(clone) == str(before)
    assert [n.name for n in clone.nodes] == [n.name for n in before.nodes]
    assert clone.node("conv2d").meta["source"] == "net.py:7"
    testing.assert_same(before, clone)

    clone.node("relu").replace_all_uses_with(clone.node("mul"))
    clone.node("conv2d").meta["source"] = "changed"
    clone.add_constant("new", torch.ones(1))
    clone.drop_dead()
    testing.assert_text(before, TEXT)
    assert before.node("conv2d").meta["source"] == "net.py:7"
    assert sorted(before.constants) == ["conv.weight", "two"]


def test_a_clone_keeps_names_of_python_s_own():
    """`forward(self, input)` is what nn.Sequential has."""
    h = Hand()
    p = h.done(h(aten.relu, h.input("input", 2)))
    clone = p.clone()
    assert [n.name for n in clone.nodes] == ["input", "relu", "output"]
    assert torch.equal(clone.to_module()(*p.example)[0], run(p)[0])


def test_a_clone_never_gives_a_name_twice():
    clone = recurrent().clone()
    with clone.graph.inserting_before(clone.output_node):
        fresh = clone.call(aten.relu.default, (clone.node("relu"),), name="relu")
    assert fresh.name == "relu_1"


def test_constants_get_free_names_and_stand_before_the_calls():
    p = recurrent()
    first, second = p.add_constant("a.b", torch.ones(2)), p.add_constant("a.b", torch.zeros(2))
    assert (first.target, second.target) == ("a.b", "a.b_1")
    assert shape_of(first) == (2,)
    names = [n.name for n in p.nodes]
    assert names.index(second.name) < names.index("conv2d")
    assert torch.equal(p.constant(second), torch.zeros(2))
    assert p.constant(p.node("x")) is None


def test_dead_calls_and_constants_go_but_inputs_and_states_stay():
    h = Hand()
    x = h.input("x", 2)
    h.input("unused", 3)
    s = h.state("s", torch.zeros(2))
    c = h.const("c", torch.ones(2))
    h(aten.exp, h(aten.add.Tensor, x, c))
    p = h.done(h(aten.relu, x), states=[h(aten.neg, x)])
    assert s.users == {}
    assert p.drop_dead() == 3
    assert p.constants == {}
    assert [n.name for n in p.nodes] == ["x", "unused", "s", "relu", "neg", "output"]


def test_state_is_carried_and_reset():
    p = recurrent()
    x = p.example
    y0, s1 = evaluate(p, x)
    y1, _ = evaluate(p, x, [s1])
    assert not torch.equal(y0, y1)
    assert torch.equal(evaluate(p, x, p.initial_state())[0], y0)
    p.initial_state()[0].fill_(9)
    assert torch.equal(p.states[0].reset, torch.zeros(1, 2, 4, 4))


def test_observing_sees_every_value_once():
    p = recurrent()
    seen: list[str] = []
    evaluate(p, p.example, observe=lambda n, v: seen.append(f"{n.name} {tensor_text(v)}"))
    assert seen == [
        f"{n.name} {tensor_text(n.meta['val'])}" for n in p.nodes if n.op in ("placeholder", "call_function")
    ]


def test_more_outputs_for_debugging():
    p = recurrent()
    y, s, add = run(p.with_outputs(["add"]))
    assert torch.equal(add.tanh(), s)
    assert len(run(p)) == 2
    assert torch.equal(run(p)[0], y)


def test_as_a_module():
    p = recurrent()
    for a, b in zip(p.to_module()(*p.example, *p.initial_state()), run(p), strict=True):
        assert torch.equal(a, b)


def test_wrong_inputs_and_states_are_named():
    p = recurrent()
    with pytest.raises(InputError, match="takes 1 input tensors a step, 0 were given"):
        p.check_inputs([])
    with pytest.raises(InputError, match=r"input x of program cell is f32\[1,3,8,8\]") as e:
        p.check_inputs([torch.zeros(1, 3, 8, 8)])
    assert "capture the network again" in e.value.way_out
    with pytest.raises(InputError, match=r"is f64\[1,3,4,4\]"):
        p.check_inputs([torch.zeros(1, 3, 4, 4, dtype=torch.float64)])
    with pytest.raises(InputError, match="has 1 states, 2 tensors"):
        p.check_state([torch.zeros(1), torch.zeros(1)])
    with pytest.raises(InputError, match="state s of program cell is f32"):
        p.check_state([torch.zeros(1)])


def test_the_user_s_own_structure():
    p = recurrent()
    spec_in = pytree.tree_structure(((torch.zeros(1), {"gain": 1.0}), {}))
    spec_out = pytree.tree_structure([0, (0, 0), 0])
    leaves = (Leaf("output", 0), Leaf("state", 0), Leaf("constant", value="hello"), Leaf("input", 0))
    p.signature = Signature(spec_in, (Leaf("input", 0), Leaf("constant", value=1.0)), spec_out, leaves)
    x = p.example[0]
    assert p.flatten_inputs((x, {"gain": 1.0})) == [x]
    assert p.unflatten_outputs(["result"], ["next"], [x]) == ["result", ("next", "hello"), x]


def test_shapes_without_data():
    value = meta_of([torch.zeros(2, 3).t(), (torch.zeros(1),)])
    assert value[0].device.type == "meta"
    assert value[0].stride() == (1, 3)
    assert isinstance(value, list)
    p = recurrent()
    node = p.node("relu")
    node.meta.pop("val")
    infer(p, node)
    assert shape_of(node) == (1, 2, 4, 4)


def test_history_and_summary():
    p = recurrent().recorded(PassRecord("fold-bn", {"fold": 2}, notes=("said so",)))
    assert str(p.history[0]) == "fold-bn: fold x2\n    said so"
    assert "5 operators of 5 kinds, 55 weights" in p.summary()
    assert "1 inputs (1 with a time axis), 1 results, 1 states" in p.summary()
