"""Operators that published video networks use, as ONNX: windows that roll, unfolded pictures, 3-D layers, norms."""

from __future__ import annotations

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from handmade import Hand, run
from test_onnx_operators import Case, aten, close
from torch import nn

import vqc
from vqc.errors import UnsupportedOp

PLACES: dict[str, Case] = {
    "rolls": lambda h, x: (h(aten.roll, x, [-1, 2], [2, -1]), h(aten.roll, x, [5]), h(aten.roll, x, [7], [3])),
    "written parts": lambda h, x: (
        h(aten.select_scatter, x, h.const("one", h.rand(2, 4, 6)), 1, -3),
        h(aten.slice_scatter, x, h.const("row", h.rand(2, 4, 4, 2)), -1, 1, 4, 2),
        h(aten.slice_scatter, x, h.const("end", h.rand(2, 4, 2, 6)), 2, -2, 9223372036854775807)),
    "largest": lambda h, x: (h(aten.argmax, x, 1), h(aten.argmin, x, -1, True), h(aten.argmax, x),
                             h(operator.getitem, h(aten.max.dim, x, 1, True), 0),
                             h(operator.getitem, h(aten.min.dim, x, 2), 1),
                             h(operator.getitem, h(aten.topk, x, 3, -1), 0), h(aten.max, x), h(aten.min, x)),
    "indices": lambda h, x: (h(aten.index_select, x, 2, h.const("i", torch.tensor([3, 0, 0]))),
                             h(aten.index.Tensor, x, [None, h.const("j", torch.tensor([[1, -1], [0, 2]]))]),
                             h(aten.embedding, h.const("rows", h.rand(7, 3)), h.const("k", torch.tensor([[6, 0]])))),
    "gathered": lambda h, x: h(aten.gather, x, 3, h.const("g", torch.arange(64).view(2, 4, 4, 2) % 6)),
    "sorted": lambda h, x: (h(operator.getitem, h(aten.sort, x, 2), 0),
                            h(operator.getitem, h(aten.sort, x, 1, True), 1),
                            h(operator.getitem, h(aten.sort.stable, h(aten.relu, x), stable=True, dim=3), 1)),
    "marks": lambda h, x: (h(aten.any, h(aten.gt.Scalar, x, 9)), h(aten.any.dim, h(aten.gt.Scalar, x, 1), 1),
                           h(aten.all.dim, h(aten.lt.Scalar, x, 1), -1, True), h(aten.all, h(aten.lt.Scalar, x, 9)),
                           h(aten.any.dims, x, [2, 3]),
                           h(aten.mul.Tensor, h(aten.gt.Scalar, x, 0), h(aten.lt.Scalar, x, 1))),
    "scattered": lambda h, x: (
        h(aten.scatter.src, x, 3, h.const("s", torch.tensor([3, 1, 0, 5]).view(2, 1, 1, 2)),
          h.const("v", h.rand(2, 1, 1, 2))),
        h(aten.scatter.value, x, 1, h.const("one", torch.arange(96).view(2, 1, 8, 6)[:, :, :4] % 4), 7.5)),
    "a memory": lambda h, x: (
        h(aten.index_put, x, [None, h.const("at", torch.tensor([2, -4]))], h.const("rows", h.rand(2, 2, 1, 6))),
        h(aten.index_put, x, [None, None, h.const("row", torch.tensor([1]))], h.const("zero", 0.0)),
        h(aten.remainder.Scalar, h.const("places", torch.tensor([-7, 5, 9])), 4)),
    "a ring": lambda h, x: (
        h(aten.index_copy, x, 2, h.const("slot", torch.tensor([3, 0])), h.const("news", h.rand(2, 4, 2, 6))),
        h(aten.index_add, x, -1, h.const("bin", torch.tensor([3, 0, 3])), h.const("more", h.rand(2, 4, 4, 3)))),
    "rounded divisions": lambda h, x: (
        h(aten.floor_divide, h.const("at", torch.tensor([-7, 5, 9])), h.const("by", torch.tensor([4, -4, 3]))),
        h(aten.div.Tensor_mode, h.const("at", torch.tensor([-7, 5, 9])), h.const("w", torch.tensor(4)),
          rounding_mode="trunc"),
        h(aten.div.Scalar_mode, x, -0.3, rounding_mode="floor"), h(aten.floor_divide.Scalar, x, 0.1),
        h(aten.div.Tensor_mode, x, x, rounding_mode="floor"), h(aten.div.Scalar_mode, x, 0.3, rounding_mode="trunc")),
    "sums so far": lambda h, x: (h(aten.cumsum, x, -2), h(aten.addcmul, x, x, h(aten.relu, x), value=0.5),
                                 h(aten.addcdiv, x, x, h(aten.exp, x))),
    "unfolded": lambda h, x: (h(aten.im2col, x, [3, 2], [1, 2], [1, 0], [1, 2]), h(aten.unfold, x, 2, 3, 1),
                              h(aten.unfold, x, -1, 2, 3), h(aten.im2col, x, [2, 2], [1, 1], [0, 0], [2, 2])),
    "shuffled": lambda h, x: (h(aten.channel_shuffle, x, 2), h(aten.repeat_interleave.self_int, x, 3, 1)),
}  # fmt: skip
NORMS: dict[str, Case] = {
    "instance norm": lambda h, x: (
        h(aten.instance_norm, x, h.const("w", h.rand(4)), h.const("b", h.rand(4)), None, None, True, 0.1, 1e-5, True),
        h(aten.instance_norm, x, None, None, None, None, True, 0.1, 1e-3, True),
        h(aten.instance_norm, x, None, None, h.const("m", h.rand(4)), h.const("v", torch.ones(4) * 2), False, 0.1, 1e-5,
          True)),
    "rms norm": lambda h, x: (h(aten.rms_norm, x, [4, 6], h.const("w", h.rand(4, 6)), 1e-5), h(aten.rms_norm, x, [6])),
    "vector norms": lambda h, x: (h(aten.linalg_vector_norm, x, 2, [-1], True), h(aten.linalg_vector_norm, x, 1, [1]),
                                  h(aten.linalg_vector_norm, x, math.inf, [2, 3]), h(aten.linalg_vector_norm, x)),
    "variance": lambda h, x: (h(aten.var.correction, x, [1], correction=1), h(aten.std.correction, x, keepdim=True),
                              h(aten.var.correction, x, [2, 3], correction=0, keepdim=True)),
    "attention": lambda h, x: (
        h(aten.scaled_dot_product_attention, x, h.const("k", h.rand(2, 4, 5, 6)), h.const("v", h.rand(2, 4, 5, 3))),
        h(aten.scaled_dot_product_attention, x, x, x, h.const("mask", torch.eye(4) < 0.5), scale=0.3),
        h(aten.scaled_dot_product_attention, x, x, x, h.const("bias", h.rand(4, 4)))),
    "functions": lambda h, x: tuple(
        h(op, x) for op in (aten.expm1, aten.tan, aten.atan, aten.sinh, aten.cosh, aten.selu, aten.log_sigmoid)),
    "of numbers": lambda h, x: (h(aten.pow.Scalar, 0.7, x), h(aten.glu, x, 1), h(aten.log1p, h(aten.exp, x)),
                              h(aten.log2, h(aten.exp, x)), h(aten.log10, h(aten.exp, x))),
}  # fmt: skip
SPACES: dict[str, Case] = {
    "a line": lambda h, x: (
        h(aten.conv1d, h(aten.view, x, [2, 4, 24]), h.const("w", h.rand(6, 2, 3)), h.const("b", h.rand(6)), [2], [1],
          [2], 2),
        h(aten.conv_transpose1d, h(aten.view, x, [2, 4, 24]), h.const("t", h.rand(4, 3, 4)), None, [2], [1], [1]),
        h(aten.avg_pool1d, h(aten.view, x, [2, 4, 24]), [3], [2], [1]),
        h(aten.max_pool1d, h(aten.view, x, [2, 4, 24]), [3], [2], [1])),
    "adaptive": lambda h, x: (h(aten.adaptive_avg_pool2d, x, [3, 4]), h(aten.adaptive_avg_pool2d, x, [1, 1]),
                              h(aten.adaptive_avg_pool2d, x, [7, 2]), h(aten.adaptive_avg_pool2d, x, [2, 3])),
    "thirds": lambda h, x: (h(aten.upsample_bilinear2d, h(aten.slice.Tensor, x, 3, 0, 3), [4, 20], False),
                            h(aten.upsample_bicubic2d, h(aten.slice.Tensor, x, 3, 0, 3), [4, 20], False)),
    "cubic": lambda h, x: (h(aten.upsample_bicubic2d, x, [8, 13], False), h(aten.upsample_bicubic2d, x, [8, 9], True),
                           h(aten.upsample_bicubic2d, x, [9, 13], False, 2.4, 2.2)),
    "antialiased": lambda h, x: (
        h(aten._upsample_bilinear2d_aa, x, [2, 3], False), h(aten._upsample_bilinear2d_aa, x, [9, 2], False),
        h(aten._upsample_bicubic2d_aa, x, [3, 2], False), h(aten._upsample_bilinear2d_aa, x, [3, 4], False, 0.8, 0.7)),
    "nearest exact": lambda h, x: (h(aten._upsample_nearest_exact2d, x, [7, 15]),
                                   h(aten._upsample_nearest_exact2d, x, [3, 4])),
}  # fmt: skip
VOLUMES: dict[str, Case] = {
    "convolution": lambda h, x: (
        h(aten.conv3d, x, h.const("w", h.rand(6, 2, 3, 2, 3)), h.const("b", h.rand(6)), [1, 2, 1], [1, 0, 2], [1, 1, 2],
          2),
        h(aten.conv_transpose3d.input, x, h.const("t", h.rand(4, 3, 2, 4, 3)), None, [2, 2, 1], [0, 1, 1], [1, 0, 0])),
    "pools": lambda h, x: (h(aten.avg_pool3d, x, [2, 3, 2], [1, 2, 2], [1, 1, 0], False, False),
                           h(aten.max_pool3d, x, [1, 3, 2], [], [0, 1, 1]),
                           h(aten.adaptive_avg_pool3d, x, [1, 1, 1]), h(aten.adaptive_avg_pool3d, x, [3, 3, 4])),
    "resized": lambda h, x: (h(aten.upsample_trilinear3d, x, [6, 7, 9], False),
                             h(aten.upsample_trilinear3d, x, [3, 8, 6], True),
                             h(aten.upsample_nearest3d, x, [6, 8, 9])),
}  # fmt: skip


@pytest.mark.parametrize(("table", "name"), [(t, n) for t in (PLACES, NORMS, SPACES) for n in t])
def test_pictures(table: dict[str, Case], name: str) -> None:
    h = Hand(name)
    made = table[name](h, h.input("x", 2, 4, 4, 6))
    close(h.done(*(made if isinstance(made, tuple) else (made,))))


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(name: str) -> None:
    h = Hand(name)
    close(h.done(*VOLUMES[name](h, h.input("x", 1, 4, 3, 4, 5))))


@pytest.mark.parametrize(("mode", "padding", "corners"), [(0, 1, True), (0, 0, False), (1, 2, False)])
def test_a_volume_is_sampled(mode: int, padding: int, corners: bool) -> None:
    h = Hand("sampled")
    at = h.const("at", 1.4 * h.rand(1, 2, 3, 7, 3))
    program = h.done(h(aten.grid_sampler_3d, h.input("x", 1, 4, 3, 4, 5), at, mode, padding, corners))
    (found,) = vqc.compile(program, "onnx").trace(list(program.example), [])
    assert torch.allclose(found, run(program)[0], atol=2e-5)
    with pytest.raises(UnsupportedOp, match="OpenVINO cannot read sampled") as caught:
        vqc.compile(program, "openvino")
    assert caught.value.why is not None and "GridSample is only supported for 4D" in caught.value.why


class Published(nn.Module):
    """What published networks have side by side: a window that rolls, cosine attention, unfolded costs, a 3-D layer."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Conv3d(8, 8, (2, 1, 1))
        self.norm, self.show = nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8 + 9 + 8, 3, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(3)

    def forward(self, frame: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.elu(self.norm(self.look(frame)))
        rolled = torch.roll(x, (-2, 2), (2, 3))
        costs = F.unfold(past, 3, padding=1).view(1, 8, 9, *x.shape[2:])
        costs = (F.normalize(rolled, dim=1).unsqueeze(2) * costs).mean(1)
        both = self.time(torch.stack((x, past), 2)).squeeze(2)
        both[:, 0] *= 0.5
        seen = F.interpolate(self.pool(both), size=x.shape[2:], mode="bicubic")
        return self.show(torch.cat((both, costs, seen), 1)), x


@pytest.mark.parametrize("recipe", ["float", "int8"])
def test_a_published_network_runs_as_its_reference_does(recipe: str) -> None:
    torch.manual_seed(0)
    clip = torch.rand(4, 3, 16, 20)
    program = vqc.capture(Published().eval(), (clip[:1], torch.zeros(1, 8, 16, 20)), states={"past": 1},
                          known_ranges={"frame": (0, 1)})  # fmt: skip
    program = vqc.apply(program, recipe, calibration=clip)
    exact, other = (vqc.Stream(vqc.compile(program, target)) for target in ("reference", "onnx"))
    for frame in clip:
        want, got = exact(frame[None])[0], other(frame[None])[0]
        assert float((want - got).abs().max()) < (1e-5 if recipe == "float" else 0.02)
