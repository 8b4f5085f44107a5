"""Bilinear resampling with one exact meaning: on a regular grid (resize) and at given positions (grid sampling)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from vqc.ops._common import check, check_float
from vqc.ops._dtypes import I64

PADDING_MODES = ("border", "zeros")


def bilinear_table(in_size: int, out_size: int, align_corners: bool, scale: float | None
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Where every output sample along one axis comes from: out[d] = in[i0[d]] * w0[d] + in[i1[d]] * w1[d].

    Parameters: sizes in samples; `scale`, the zoom factor the user gave (out / in), or None when they gave a size.
    Returns i0, i1 (int32) and w0, w1 (float32), each of `out_size`, w0 = 1 - w1.
    The position of sample d is that of `aten.upsample_bilinear2d`: its step is a float32 (1 / scale, or in / out;
    (in - 1) / (out - 1) with aligned corners), step * (d + 0.5) - 0.5 is rounded once, and an axis whose size does not
    change is copied whatever the scale.
    """
    index = np.arange(out_size)
    if in_size == out_size:
        ones = np.ones(out_size, np.float32)
        return index.astype(np.int32), np.minimum(index + 1, in_size - 1).astype(np.int32), ones, ones * np.float32(0)
    one = np.float32(1)
    if align_corners:
        step = np.float32(in_size - 1) / np.float32(out_size - 1) if out_size > 1 else np.float32(0)
        position = (np.float64(step) * index).astype(np.float32)
    else:
        step = np.float32(1.0 / scale) if scale else np.float32(in_size) / np.float32(out_size)
        position = np.maximum((np.float64(step) * (index + 0.5) - 0.5).astype(np.float32), np.float32(0))
    i0 = np.minimum(position.astype(np.int32), in_size - 1)
    w1 = np.clip(position - i0.astype(np.float32), np.float32(0), one)
    return i0, np.minimum(i0 + 1, in_size - 1).astype(np.int32), one - w1, w1


def _resize_check(x: Tensor, out_h: int, out_w: int) -> None:
    check_float(x, "resize_bilinear", 4)
    check(out_h >= 1 and out_w >= 1 and x.shape[2] >= 1 and x.shape[3] >= 1,
          f"vqc::resize_bilinear: cannot make {out_h} x {out_w} from {list(x.shape)}")  # fmt: skip


def _blend(x: Tensor, axis: int, size: int, align_corners: bool, scale: float | None) -> Tensor:
    """One axis of a resize: two products, then their sum."""
    table = bilinear_table(x.shape[axis], size, align_corners, scale)
    i0, i1, w0, w1 = (torch.from_numpy(t).to(x.device) for t in table)
    shape = [1] * 4
    shape[axis] = size
    return x.index_select(axis, i0) * w0.view(shape) + x.index_select(axis, i1) * w1.view(shape)


@custom_op("vqc::resize_bilinear", mutates_args=())
def resize_bilinear(x: Tensor, out_h: int, out_w: int, align_corners: bool, scale_h: float | None,
                    scale_w: float | None) -> Tensor:  # fmt: skip
    """Bilinear resize, f32 [N,C,H,W] -> [N,C,out_h,out_w], with the tables of `bilinear_table`.

    t = x[i0,j0] * w0x + x[i0,j1] * w1x;  b = x[i1,j0] * w0x + x[i1,j1] * w1x;  y = t * w0y + b * w1y.
    """
    _resize_check(x, out_h, out_w)
    return _blend(_blend(x.contiguous(), 3, out_w, align_corners, scale_w), 2, out_h, align_corners, scale_h)


@resize_bilinear.register_fake
def _(x, out_h, out_w, align_corners, scale_h, scale_w):
    _resize_check(x, out_h, out_w)
    return x.new_empty((x.shape[0], x.shape[1], out_h, out_w))


def _grid_check(x: Tensor, grid: Tensor, padding_mode: str) -> None:
    check_float(x, "grid_sample", 4)
    check_float(grid, "grid_sample", 4, "grid")
    check(padding_mode in PADDING_MODES,
          f"vqc::grid_sample: padding_mode is {padding_mode!r}, it must be one of {PADDING_MODES}")  # fmt: skip
    check(grid.shape[3] == 2 and grid.shape[0] == x.shape[0],
          f"vqc::grid_sample: grid is {list(grid.shape)} for x {list(x.shape)}, it must be [N,Ho,Wo,2]")  # fmt: skip
    check(x.shape[2] >= 1 and x.shape[3] >= 1, f"vqc::grid_sample: the picture {list(x.shape)} is empty")


def _position(g: Tensor, size: int, padding_mode: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """(sample before, weight of the sample after) of grid coordinates in [-1, 1], both f32."""
    p = ((g + 1.0) * 0.5) * float(size - 1) if align_corners else ((g + 1.0) * float(size) - 1.0) * 0.5
    if padding_mode == "border":
        p = p.clamp_min(0.0).clamp_max(float(size - 1))
    before = torch.floor(p)
    return before, p - before


@custom_op("vqc::grid_sample", mutates_args=())
def grid_sample(x: Tensor, grid: Tensor, padding_mode: str, align_corners: bool) -> Tensor:
    """Bilinear samples of x f32 [N,C,H,W] at grid f32 [N,Ho,Wo,2] (x, y in [-1, 1]) -> [N,C,Ho,Wo].

    ix = ((gx + 1) * 0.5) * (W - 1) with aligned corners, else ((gx + 1) * W - 1) * 0.5; held in [0, W - 1] in mode
    "border". x0 = floor(ix), wx = ix - x0, the same for y. A tap outside the picture is its nearest sample in mode
    "border" (its weight is 0 there) and the value 0 in mode "zeros".
    a = v00 * (1 - wx) + v01 * wx;  b = v10 * (1 - wx) + v11 * wx;  y = a * (1 - wy) + b * wy.
    """
    _grid_check(x, grid, padding_mode)
    n, c, h, w = x.shape
    ho, wo = grid.shape[1:3]
    x0, wx = _position(grid[..., 0], w, padding_mode, align_corners)
    y0, wy = _position(grid[..., 1], h, padding_mode, align_corners)
    flat = x.reshape(n, c, h * w)

    def tap(y: Tensor, at: Tensor) -> Tensor:
        rows, cols = (  # held in float first: a far position has no integer
            v.clamp(0.0, float(size - 1)).to(I64).clamp(0, size - 1) for v, size in ((y, h), (at, w))
        )
        v = flat.gather(2, (rows * w + cols).reshape(n, 1, -1).expand(n, c, -1)).reshape(n, c, ho, wo)
        if padding_mode == "border":
            return v
        inside = (y >= 0) & (y <= h - 1) & (at >= 0) & (at <= w - 1)
        return torch.where(inside.unsqueeze(1), v, torch.zeros_like(v))

    wx, wy = wx.unsqueeze(1), wy.unsqueeze(1)
    ux, uy = 1.0 - wx, 1.0 - wy
    a = tap(y0, x0) * ux + tap(y0, x0 + 1) * wx
    b = tap(y0 + 1, x0) * ux + tap(y0 + 1, x0 + 1) * wx
    return (a * uy + b * wy).contiguous()


@grid_sample.register_fake
def _(x, grid, padding_mode, align_corners):
    _grid_check(x, grid, padding_mode)
    return x.new_empty((x.shape[0], x.shape[1], grid.shape[1], grid.shape[2]))
