"""Bilinear resizing and grid sampling, the exact ones and PyTorch's (which they equal within rounding)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import parts_c4, signs
from vqc.backends.c.registry import FLOATS, lowering
from vqc.ops.exact import argument
from vqc.program import shape_of


def _resize(ctx: Lowering, node: fx.Node, align: bool, scales: tuple[float | None, float | None]) -> None:
    if signs.lazy_resize(ctx, node, align, scales) or parts_c4.lazy_resize(ctx, node, align, scales):
        return
    x, out = ctx.dense(node.args[0]), ctx.result(node)
    tables, twice = parts_c4.bilinear_tables(ctx, x.shape, out.shape, align, scales)
    resize(ctx, x, tables, twice, out)


def resize(ctx: Lowering, x: Value, tables: Sequence[Value], twice: bool, out: Value) -> Value:
    """The call that resizes x to out."""
    params = Struct("vqc_resize_params", {"planes": numel(x.shape[:2]), "h": x.shape[2], "w": x.shape[3],
                                          "oh": out.shape[2], "ow": out.shape[3], "twice": int(twice)})  # fmt: skip
    ctx.call("vqc_resize_bilinear_f32", "resample", params, x, *tables, out=[out], scratch=8 * out.shape[3])
    return out


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


def _sample(ctx: Lowering, node: fx.Node) -> None:
    """Volumes, cubic sampling and reflection, by the general kernel."""
    x, grid, out = ctx.dense(node.args[0]), ctx.dense(node.args[1]), ctx.result(node)
    axes = len(x.shape) - 2
    params = Struct("vqc_sample_params", {
        "n": x.shape[0], "c": x.shape[1], "dims": axes, "size": (*(1,) * (3 - axes), *x.shape[2:]),
        "points": numel(out.shape[2:]), "mode": int(argument(node, "interpolation_mode")),
        "edge": int(argument(node, "padding_mode")), "align_corners": bool(argument(node, "align_corners")),
    })  # fmt: skip
    ctx.call("vqc_sample_f32", "sample", params, x, grid, out=[out])


@lowering("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::grid_sampler", check=FLOATS)
def lower_grid_sampler(ctx: Lowering, node: fx.Node) -> None:
    mode, padding = int(argument(node, "interpolation_mode")), int(argument(node, "padding_mode"))
    if len(shape_of(node)) != 4 or mode == 2 or padding == 2:
        _sample(ctx, node)
        return
    _grid(ctx, node, nearest=mode == 1, border=padding == 1, align=bool(argument(node, "align_corners")))


@lowering("vqc::grid_sample", check=FLOATS)
def lower_exact_grid_sample(ctx: Lowering, node: fx.Node) -> None:
    _grid(ctx, node, nearest=False, border=argument(node, "padding_mode") == "border",
          align=bool(argument(node, "align_corners")))  # fmt: skip
