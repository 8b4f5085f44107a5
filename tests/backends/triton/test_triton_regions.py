"""What PyTorch's compiler gets of a program, why, and that the step stays the same: with a stand-in for it."""

import operator

import pytest
import torch
from handmade import Hand

import vqc
from vqc.backends.triton import regions
from vqc.backends.triton.backend import TritonExecutable
from vqc.backends.triton.environment import Place
from vqc.backends.triton.graph import GraphedExecutable
from vqc.backends.triton.lowering import Lowerer
from vqc.errors import TargetError
from vqc.executable import CompileReport

CPU = torch.device("cpu")
aten, vops, qd = torch.ops.aten, torch.ops.vqc, torch.ops.quantized_decomposed


def mixed():
    """Quantized layers between PyTorch's operators: a piece of two before them, one alone, a piece of two behind."""
    b = Hand("mixed", seed=2)
    x = b.input("x", 1, 3, 5, 7)
    w = [b.const(f"w{i}", torch.randint(-128, 128, (3, 3, 3, 3), generator=b.generator).to(torch.int8)) for i in (0, 1)]
    s, z = b.const("s", torch.full((3,), 1e-4)), b.const("z", torch.tensor([128], dtype=torch.int32))
    table, shift = b.const("table", torch.arange(255, -1, -1).to(torch.uint8)), b.const("shift", b.rand(3, 5, 7))
    quantize = lambda v: b(qd.quantize_per_tensor, v, 0.03, 128, 0, 255, torch.uint8)  # noqa: E731
    conv = lambda v, k: b(vops.qconv2d, v, w[k], s, None, z, [1, 1], [1, 1], [1, 1], 1)  # noqa: E731
    turned = b(aten.flip, x, [3])
    gate = b(vops.sigmoid, x)  # a kernel that waits for neither
    ordered = b(operator.getitem, b(aten.sort, turned, 3), 0)
    y = conv(quantize(b(aten.mul.Tensor, ordered, gate)), 0)
    lone = quantize(b(aten.neg, y))
    last = conv(b(vops.lut, lone, table), 1)
    flat = b(aten.view, b(aten.roll, last, [1], [2]), [1, 3, 35])
    return b.done(flat, b(aten.maximum, last, shift), gate)


class Recording:
    """An engine that runs a module as it is and keeps what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, gm, inputs):
        names = [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]
        seen = []
        self.asked.append((names, [tuple(x.shape) for x in inputs], seen))

        def run(*given):
            assert all(a.stride() == b.stride() for a, b in zip(given, inputs, strict=True)), "as the example lay"
            seen.append(len(given))
            return gm(*given)

        return run


def executable(program, engine):
    lowered = regions.compiled(program, Lowerer(program, CPU).lower(), CPU, engine)
    report = CompileReport("triton", "cuda", lowered.kernels, lowered.fallbacks)
    return TritonExecutable(program, report, lowered, Place(CPU, True))


def test_pieces_and_their_reasons():
    program, engine = mixed(), Recording()
    exe = executable(program, engine)
    made, wanted = exe.step(program.example)[0], vqc.compile(program, "reference").step(program.example)[0]
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    first, last = engine.asked
    assert first == (["aten.flip.default", "aten.sort.default", "<built-in function getitem>"], [(1, 3, 5, 7)], [1])
    assert last == (["aten.roll.default", "aten.view.default", "aten.maximum.default"], [(1, 3, 5, 7)], [1])
    reasons = {d.node: d.reason for d in exe.report.fallbacks}
    assert reasons == {
        "flip": "there is no Triton kernel for aten.flip; PyTorch's compiler runs it with 1 more",
        "sort": "there is no Triton kernel for aten.sort; PyTorch's compiler runs it with 1 more",
        "neg": "there is no Triton kernel for aten.neg; PyTorch runs it: alone, there is nothing to join it with",
        "lut": "there is no Triton kernel for vqc.lut; PyTorch runs it: its compiler would only call it",
        "roll": "there is no Triton kernel for aten.roll; PyTorch's compiler runs it with 2 more",
        "view": "there is no Triton kernel for aten.view; PyTorch's compiler runs it with 2 more",
        "maximum": "there is no Triton kernel for aten.maximum; PyTorch's compiler runs it with 2 more",
    }
    assert exe.report.kernels["sort"] == "inductor aten.sort" and exe.report.kernels["neg"] == "eager aten.neg"
    assert exe.report.kernels["sigmoid"] == "pointwise"


def test_a_step_with_compiled_pieces_may_be_a_graph():
    program = mixed()
    exe = executable(program, Recording())
    with pytest.raises(TargetError, match=r"1 of its operators that may wait for the host \(lut\)"):
        GraphedExecutable(exe, lambda body: (body(), body))


@pytest.mark.parametrize(("target", "reason"), [
    (aten.nonzero.default, "comes to the host"),
    (aten.rand_like.default, "draws random numbers"),
    (vops.exp.default, "would only call it"),
    (torch.ops.higher_order.cond, "a graph of its own"),
])  # fmt: skip
def test_what_is_not_compiled(target, reason):
    b = Hand("one")
    node = b.program.graph.call_function(target, (b.input("x", 1, 2, 3, 3),))
    assert reason in regions.why_not_compiled(node)


def test_a_compiler_that_fails_is_an_error():
    def engine(gm, inputs):
        raise ValueError("no")

    with pytest.raises(TargetError, match="compiler fails at 3 operators of mixed") as e:
        executable(mixed(), engine)
    assert "fallback=eager" in str(e.value) and "why: no" in str(e.value)


def test_pytorchs_own_compiler():
    """The real one, for this machine's CPU: products, sums and quotients are rounded one by one; nothing differs."""
    b = Hand("real", seed=1)
    v = b.input("v", 3, 50, 8)
    scale, shift = b.const("scale", b.rand(3, 50, 8)), b.const("shift", b.rand(3, 50, 8))
    y = b(aten.add.Tensor, b(aten.mul.Tensor, v, scale), shift)
    program = b.done(y, b(aten.div.Tensor, b(aten.flip, y, [2]), scale))
    exe = vqc.compile(program, "triton", fallback="inductor")
    made, wanted = exe.step(program.example)[0], vqc.compile(program, "reference").step(program.example)[0]
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    assert exe.report.kernels["mul"] == "inductor aten.mul.Tensor" and len(exe.report.fallbacks) == 4
    assert not any("has no setting" in n for n in exe.report.notes)


def test_a_setting_that_this_pytorch_lacks_is_told(monkeypatch):
    monkeypatch.setattr(regions, "EXACT_SETTINGS", {"emulate_precision_casts": True, "of_tomorrow": True})
    b = Hand("older")
    x = b.input("x", 3, 4)
    exe = vqc.compile(b.done(b(aten.neg, b(aten.flip, x, [1]))), "triton", fallback="inductor")
    assert any("has no setting of_tomorrow: what it joins may be rounded otherwise" in n for n in exe.report.notes)
