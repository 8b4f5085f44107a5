"""Every `vqc::` operator passes torch.library.opcheck and traces into a graph as one node."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from vqc import ops
from vqc.program import infer

U8, S8 = torch.uint8, torch.int8
x8 = torch.arange(2 * 4 * 6 * 5, dtype=torch.int64).remainder(256).to(U8).view(2, 4, 6, 5)
xf = torch.linspace(-3, 3, 2 * 4 * 6 * 5).view(2, 4, 6, 5)
w8 = torch.arange(-54, 54).to(S8).view(3, 4, 3, 3)
t8 = torch.arange(-72, 72).to(S8).view(4, 4, 3, 3)
scale, zero = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([7], dtype=torch.int32)
one, pad = [1, 1], [1, 1]
conv = (x8, w8, scale, scale, zero, one, pad, one, 1)
transposed = (x8, t8, torch.ones(4), None, zero, [2, 2], pad, one, 1, one)
linear = (x8, torch.ones(3, 5, dtype=S8), scale, scale, zero)
mask = torch.arange(2 * 6 * 5).remainder(3).view(2, 1, 6, 5) > 0
masked = (*conv[:5], mask, one, pad, one, 1)
signs, sw = 1 - 2 * (x8 & 1).to(S8), 1 - 2 * (w8 & 1)

CASES = {
    "qconv2d": conv,
    "qconv2d_requantize": (*conv, "relu", 0.1, 3),
    "qconv_transpose2d": transposed,
    "qconv_transpose2d_requantize": (*transposed, "none", 0.1, 3),
    "qlinear": linear,
    "qlinear_requantize": (*linear, "none", 0.5, 9),
    "lut": (x8, torch.arange(256).to(U8)),
    "exp": (xf,), "sigmoid": (xf,), "tanh": (xf,), "hardsigmoid": (xf,), "hardswish": (xf,), "silu": (xf,),
    "mean_hw": (xf,),
    "avg_pool2d": (xf, [3, 2], [2, 2], [1, 1], True, False),
    "resize_bilinear": (xf, 9, 4, False, 1.5, None),
    "grid_sample": (xf, torch.linspace(-1.2, 1.2, 2 * 3 * 3 * 2).view(2, 3, 3, 2), "zeros", True),
    "conv2d": (xf, w8.float(), scale, one, pad, one, 1),
    "conv_transpose2d": (xf, t8.float(), None, [2, 2], pad, one, 1, one),
    "masked_conv2d": (xf, w8.float(), scale, mask, one, pad, one, 1),
    "masked_qconv2d": masked,
    "masked_qconv2d_requantize": (*masked, "relu", 0.1, 3),
    "masked_bconv2d": (signs, sw, scale, scale, mask, one, pad, one),
    "binarize": (xf, torch.linspace(-1, 1, 4)),
    "fake_binarize": (xf, torch.linspace(-1, 1, 4), "clip"),
    "fake_binarize_weight": (w8.float(), "xnor"),
    "binary_scale": (w8.float(), "xnor"),
    "bconv2d": (signs, sw, scale, scale, one, pad, one),
    "bconv2d_threshold": (signs, sw, torch.arange(3, dtype=torch.int32), scale > 0.15, one, pad, one),
}  # fmt: skip


def registered() -> set[str]:
    """Every operator of the namespace in the dispatcher's own list, however it was registered."""
    names = (n.removeprefix("vqc::").split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n[:5] == "vqc::")
    return set(names)


def test_every_operator_has_a_case():
    assert registered() == set(CASES)


def test_a_new_operator_without_a_case_is_noticed():
    library = torch.library.Library("vqc", "FRAGMENT")
    library.define("of_tomorrow(Tensor x) -> Tensor")
    try:
        assert registered() - set(CASES) == {"of_tomorrow"}
    finally:
        library._destroy()


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.vqc, name).default, CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_a_graph_knows_its_shape(name):
    target = getattr(torch.ops.vqc, name).default
    node = fx.Graph().call_function(
        target, tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in CASES[name])
    )
    val, real = infer(None, node), target(*CASES[name])
    assert (val.shape, val.dtype, val.stride(), val.device.type) == (real.shape, real.dtype, real.stride(), "meta")


def test_importing_the_operators_registers_the_quantizers_beside_them():
    q = torch.ops.quantized_decomposed.quantize_per_tensor.default(xf, 0.05, 128, 0, 255, U8)
    assert q.dtype == U8 and ops.lut(q, torch.arange(256).to(U8)).equal(q)
