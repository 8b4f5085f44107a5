"""The inductor backend on Programs, and its engine where plain frozen Inductor is wrong."""

from __future__ import annotations

import pytest
import torch
from handmade import Hand
from torch import fx, nn

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.api import compile as vqc_compile
from vqc.backends.inductor.engine import can_freeze, compile_frozen, compile_plain
from vqc.errors import InputError, PipelineError
from vqc.executable import Stream

aten = torch.ops.aten


def cell():
    h = Hand("cell")
    x, s = h.input("x", 1, 2, 6, 6), h.state("s", torch.zeros(1, 2, 6, 6))
    w = h.const("w", h.rand(2, 4, 3, 3))
    both = h(aten.cat, [x, s], 1)
    y = h(aten.tanh, h(aten.conv2d, both, w, None, [1, 1], [1, 1]))
    return h.done(h(aten.mul.Tensor, y, 2.0), y, h(aten.view, y, [2, 36]), states=[y])


def test_equals_the_reference_with_its_state():
    program = cell()
    fast, slow = vqc_compile(program, "inductor"), vqc_compile(program, "reference")
    g = torch.Generator().manual_seed(0)
    a = b = None
    for _ in range(3):
        step = [torch.rand(1, 2, 6, 6, generator=g)]
        got, a = fast.step(step, a)
        want, b = slow.step(step, b)
        for p, q in zip([*got, *a], [*want, *b], strict=True):
            assert torch.allclose(p, q, atol=1e-6)
    memory = [t.untyped_storage().data_ptr() for t in [*got, *a]]
    assert len(set(memory)) == len(memory), "results share memory"
    assert fast.report.state_bytes == 2 * 36 * 4
    assert fast.report.weight_bytes == 2 * 4 * 9 * 4
    assert set(fast.report.kernels) == {n.name for n in program.calls}
    with pytest.raises(InputError):
        Stream(fast)(torch.rand(1, 2, 5, 6))
    with pytest.raises(PipelineError, match="no option 'threads'"):
        vqc_compile(program, "inductor", threads=2)


def test_own_operators_run_as_they_are():
    h = Hand("exact")
    x = h.input("x", 1, 2, 4, 4)
    program = h.done(h(torch.ops.vqc.sigmoid, h(aten.relu, x)))
    fast, slow = vqc_compile(program, "inductor"), vqc_compile(program, "reference")
    step = list(program.example)
    assert torch.equal(fast.step(step)[0][0], slow.step(step)[0][0])
    assert "opaque vqc.sigmoid" in fast.report.kernels.values()


class TransposedNorm(nn.Module):
    """As many channels in as out, so that nothing but the numbers can tell that the wrong axis was scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.bn = nn.BatchNorm2d(4)
        self.bn.running_mean.uniform_()
        self.bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        return self.bn(self.up(x))


class AlongTheWidth(nn.Module):
    """A factor for every column, as many columns as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 1)
        self.columns = nn.Parameter(torch.rand(1, 8))

    def forward(self, x):
        return self.conv(x) * self.columns


class AddsAMultiple(nn.Module):
    """torch.add with alpha, behind a norm that is folded first (the chain is looked at, not its first link)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8, affine=False)
        self.offset = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        return torch.add(self.bn(self.conv(x)), self.offset, alpha=3)


class TwoNumbers(nn.Module):
    """Two layers, each times a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x) * 2.5)) * 0.5


@pytest.mark.parametrize("kind", [TransposedNorm, AlongTheWidth, AddsAMultiple, TwoNumbers])
def test_frozen_folding_is_right(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        (got,) = compile_frozen(_traced(model), [x])(x)
        assert torch.allclose(got, model(x), atol=1e-5)


class AddsToWhatIsReadLater(nn.Module):
    """Two residuals, as of a network with branches; the second one's sum is mixed with a resized picture.

    Inductor goes wrong where the factor of the resizing is no whole number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))

    def forward(self, x):
        a, b, c, d, last = self.layers
        gate = torch.sigmoid(torch.relu(a(x)) + b(x))
        y = x.flip(2) * x.flip(3)
        z = d(c(y)) + y
        small = nn.functional.interpolate(x[..., ::4, ::4], x.shape[2:], mode="bilinear")
        return last(gate * z + (1 - gate) * small)


def test_a_sum_is_not_written_over_what_is_added():
    torch.manual_seed(0)
    model, x = AddsToWhatIsReadLater().eval(), torch.rand(1, 4, 23, 40)
    with torch.no_grad():
        (got,) = compile_frozen(_traced(model, x), [x])(x)
        assert torch.allclose(got, model(x), atol=1e-5)


def test_a_users_pass_runs_before_the_barrier():
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Counts(CustomGraphPass):
        seen = 0

        def __call__(self, graph):
            Counts.seen += 1

        def uuid(self):
            return "counts"

    with torch.no_grad():
        compile_frozen(
            _traced(nn.Conv2d(4, 4, 1).eval()), [torch.rand(1, 4, 8, 8)], {"joint_custom_post_pass": Counts()}
        )
    assert Counts.seen == 1


def test_double_filters_are_not_frozen():
    assert can_freeze(torch.rand(4))
    assert can_freeze(torch.rand(4, 3, 3, 3))
    assert not can_freeze(torch.rand(4, 3, 3, 3, dtype=torch.float64))


def test_plain_takes_weights_as_inputs():
    gm = fx.symbolic_trace(lambda x, w: (x @ w,))
    x, w = torch.rand(2, 3), torch.rand(3, 4)
    fast = compile_plain(gm, [x, w])
    for other in (w, torch.rand(3, 4)):
        assert torch.allclose(fast(x, other)[0], x @ other, atol=1e-6)


def _traced(model: nn.Module, x: torch.Tensor | None = None) -> fx.GraphModule:
    """A graph with the module's weights as attributes and one flat result, as the door makes them."""
    gm = torch.export.export(model, (torch.rand(1, 4, 8, 8) if x is None else x,)).module()
    graph, values = fx.Graph(), {}
    for n in gm.graph.nodes:
        if n.op == "call_module":
            continue
        if n.op == "output":
            graph.output((values[n.args[0][0]],))
        else:
            values[n] = graph.node_copy(n, values.__getitem__)
    return fx.GraphModule(gm, graph)
