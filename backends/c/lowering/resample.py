"""Bilinear resizing and grid sampling, the exact ones and PyTorch's (which they equal within rounding)."""

from __future__ import annotations

import numpy as np
from torch import fx

from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.registry import FLOATS, all_of, lowering
from vqc.ops.exact import argument
from vqc.ops.resample import bilinear_table
from vqc.program import Program, shape_of


def _resize(ctx: Lowering, node: fx.Node, align: bool, scales: tuple[float | None, float | None]) -> None:
    x, out = ctx.dense(node.args[0]), ctx.result(node)
    tables: list[Value] = []
    for i in (0, 1):
        i0, i1, w0, w1 = bilinear_table(x.shape[2 + i], out.shape[2 + i], align, scales[i])
        tables += [ctx.weight(np.concatenate([i0, i1]), "indices"), ctx.weight(np.concatenate([w0, w1]), "weights")]
    params = Struct("vqc_resize_params", {"planes": numel(x.shape[:2]), "h": x.shape[2], "w": x.shape[3],
                                          "oh": out.shape[2], "ow": out.shape[3]})  # fmt: skip
    ctx.call("vqc_resize_bilinear_f32", "resample", params, x, *tables, out=[out], scratch=8 * out.shape[3])


@lowering("aten::upsample_bilinear2d", check=FLOATS)
def lower_bilinear(ctx: Lowering, node: fx.Node) -> None:
    scales = (argument(node, "scales_h"), argument(node, "scales_w"))
    _resize(ctx, node, bool(argument(node, "align_corners")), scales)


@lowering("vqc::resize_bilinear", check=FLOATS)
def lower_exact_bilinear(ctx: Lowering, node: fx.Node) -> None:
    _resize(ctx, node, bool(argument(node, "align_corners")), (argument(node, "scale_h"), argument(node, "scale_w")))


def _grid(ctx: Lowering, node: fx.Node, *, nearest: bool, border: bool, align: bool) -> None:
    x, grid, out = ctx.dense(node.args[0]), ctx.dense(node.args[1]), ctx.result(node)
    n, c, h, w = x.shape
    params = Struct("vqc_grid_params", {"n": n, "c": c, "h": h, "w": w, "oh": out.shape[2], "ow": out.shape[3],
                                        "nearest": nearest, "border": border, "align_corners": align})  # fmt: skip
    ctx.call("vqc_grid_sample_f32", "resample", params, x, grid, out=[out], scratch=24 * out.shape[3])


def _known_modes(program: Program, node: fx.Node) -> str | None:
    if int(argument(node, "interpolation_mode")) not in (0, 1):
        return "it samples bicubically"
    if int(argument(node, "padding_mode")) not in (0, 1):
        return "it reflects at the border"
    return None if len(shape_of(node)) == 4 else "it samples volumes"


@lowering("aten::grid_sampler_2d", "aten::grid_sampler", check=all_of(FLOATS, _known_modes))
def lower_grid_sampler(ctx: Lowering, node: fx.Node) -> None:
    _grid(ctx, node, nearest=int(argument(node, "interpolation_mode")) == 1,
          border=int(argument(node, "padding_mode")) == 1, align=bool(argument(node, "align_corners")))  # fmt: skip


@lowering("vqc::grid_sample", check=FLOATS)
def lower_exact_grid_sample(ctx: Lowering, node: fx.Node) -> None:
    _grid(ctx, node, nearest=False, border=argument(node, "padding_mode") == "border",
          align=bool(argument(node, "align_corners")))  # fmt: skip
