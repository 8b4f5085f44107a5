"""Copies of a graph with some inputs bound."""

from __future__ import annotations

import torch
from torch import fx, nn

from vqc.door.rewrite import bind, held_tensors


def graph(fn) -> fx.GraphModule:
    return fx.symbolic_trace(fn)


def test_weights_and_numbers_are_bound():
    gm = graph(lambda x, w, n, b: (x @ w + b, n, x.expand(n, 2), None))
    x, w, b = torch.rand(1, 2), torch.rand(2, 2), torch.rand(2)
    bound, left = bind(gm, {1: w, 2: 3}, {1: "linear.weight"})
    assert left == [0, 3]
    assert bound.get_buffer("linear.weight") is w
    got, want = bound(x, b), gm(x, w, 3, b)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[2], want[2])
    assert (got[1], got[3]) == (3, None)


def test_a_result_may_be_a_bound_input():
    w = nn.Parameter(torch.rand(2))
    bound, left = bind(graph(lambda x, w, n: (w, n, x)), {1: w, 2: 7})
    x = torch.rand(2)
    assert left == [0]
    assert bound(x)[0] is w
    assert bound(x)[1:] == (7, x)


def test_the_original_stays_as_it_was():
    gm = graph(lambda x, w: x + w)
    text = str(gm.graph)
    bound, _ = bind(gm, {1: torch.ones(1)})
    for n in list(bound.graph.nodes):
        n.meta["touched"] = True
    bound.graph.output(None)
    assert str(gm.graph) == text
    assert not any("touched" in n.meta for n in gm.graph.nodes)


def test_attributes_and_subgraphs_come_along():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.rand(2))

        def forward(self, x):
            return x + self.table

    gm = fx.symbolic_trace(Holds())
    assert held_tensors(gm) == [gm.table]
    bound, _ = bind(gm, {})
    assert torch.equal(bound(torch.ones(2)), gm(torch.ones(2)))
    inner = graph(lambda x: x * 2)
    g = fx.Graph()
    x = g.placeholder("x")
    g.output(g.call_function(_call, (g.get_attr("body"), x)))
    outer = fx.GraphModule({"body": inner}, g)
    copied, _ = bind(outer, {})
    assert copied.held_body is not inner
    assert copied(torch.ones(1)).item() == 2.0


def test_a_checkpoint_is_inlined():
    from torch.utils.checkpoint import checkpoint

    class Checks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            a, b = checkpoint(lambda v: (self.inner(v), v + 1), x, use_reentrant=False)
            return self.outer(a) * b

    model, x, found = Checks().eval(), torch.rand(2, 3), []

    def backend(gm, example):
        bound, left = bind(gm, {})
        found.extend(n for n in bound.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator))
        assert len(left) == len(example)
        return bound.forward

    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, backend=backend)(x), model(x))
    assert found == []


def _call(f, x):
    return f(x)
