"""The one-bit network that is shipped, a step in the interpreter: no layer is left to PyTorch but two by choice."""

import torch

import vqc
from vqc.program import op_text
from vqc.report.network import network
from vqc.report.session import recipe_program


def test_bivm_in_kernels():
    program = recipe_program(network("bivm", (32, 32)), "xnor")
    ours, judge = vqc.compile(program, "triton"), vqc.compile(program, "reference")
    g = torch.Generator().manual_seed(5)
    frame = [torch.rand(i.shape, generator=g) for i in program.inputs]
    state = [torch.rand(s.shape, generator=g) * 2 - 1 for s in program.states]
    (made, following), (wanted, theirs) = ours.step(frame, state), judge.step(frame, state)
    assert len(theirs) == 4 and all(torch.equal(a, b) for a, b in zip(following, theirs, strict=True))
    for a, b in zip(made, wanted, strict=True):  # behind convolutions of floats, whose sums have no order
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    left = [op_text(program.node(d.node).target) for d in ours.report.fallbacks]
    assert left == ["aten.conv2d", "aten.conv2d"]
    assert {d.reason.partition(":")[0] for d in ours.report.fallbacks} == {
        "a float convolution whose sums have no order"}  # fmt: skip
    kernels = {n.name: ours.report.kernels[n.name] for n in program.calls}
    signs = [n for n in program.calls if "bconv2d" in op_text(n.target)]
    assert len(signs) == 59 and {kernels[n.name] for n in signs} == {"bconv_dot"}
    masked = [n.name for n in program.calls if op_text(n.target) == "vqc.masked_conv2d"]
    assert [kernels[name] for name in masked] == ["conv_f32"]
