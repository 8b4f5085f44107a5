"""Quantized products of attention and layers of 4-bit weights beside float16 pictures, as calls and as operators.

No operator of a Program means these yet, so nothing is lowered to them: they are `torch.ops.vqc_triton.matmul_i8` and
`torch.ops.vqc_triton.conv2d_w4a16`, with fake forms, for networks that call them themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from vqc.backends.triton import packing, tiles
from vqc.backends.triton.convolution import Geometry
from vqc.backends.triton.epilogue import Epilogue, Results, finishing, pixels
from vqc.backends.triton.launch import Launch, run
from vqc.ops._common import check, check_dtype, conv_size

SUM_LIMIT = 2**31
BLOCK = 64  # taps of 4-bit levels that are packed together: half of them in the low halves of 32 bytes


def pack_levels(x: Tensor, frames: int = 1) -> Tensor:
    """s8 [Z,L,K] of -8 .. 7 as u8 [Z,L,frames * P/2]: each frame's K/frames taps, zeros up to P, in blocks of BLOCK.

    Raises ValueError for other levels, and where K is no multiple of frames.
    """
    z, lines, k = x.shape
    check(k % frames == 0, f"{k} taps are no multiple of {frames} frames")
    check(packing.fits_four_bits(x), "levels beyond -8 .. 7 do not fit 4 bits")
    size = k // frames
    padded = torch.nn.functional.pad(x.reshape(z * lines, frames, size), (0, -size % BLOCK))
    return packing.halves(padded.reshape(z * lines, -1), BLOCK).reshape(z, lines, -1)


def _sizes(a: Tensor, b: Tensor, taps: int, frames: int, transposed: bool, a_bits: int,
           b_bits: int) -> tuple[int, int, int]:  # fmt: skip
    """(Z, M, N); ValueError where the operands do not fit."""
    op = "vqc_triton::matmul_i8"
    check(a.ndim == 3 and b.ndim == 3 and a.shape[0] == b.shape[0], f"{op}: a and b must be [Z,lines,taps]")
    check(taps > 0 and frames > 0 and taps % frames == 0, f"{op}: {taps} taps in {frames} frames")
    check({a_bits, b_bits} <= {4, 8} and not (transposed and b_bits == 4),
          f"{op}: {a_bits} and {b_bits} bits; it takes 8 or 4, and 4 not of a transposed b")  # fmt: skip
    packed = frames * (taps // frames + -(taps // frames) % BLOCK) // 2
    lines, last = (b.shape[2], b.shape[1]) if transposed else (b.shape[1], b.shape[2])
    for what, given, bits in (("a", a.shape[2], a_bits), ("b", last, b_bits)):
        wanted = packed if bits == 4 else taps
        check(given == wanted, f"{op}: {what} has {given} {'bytes' if bits == 4 else 'taps'} a line, not {wanted}")
    check(taps * 2**15 < SUM_LIMIT, f"{op}: a sum of {taps} products might leave int32")
    return a.shape[0], a.shape[1], lines


def launch_of(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor, steps: Tensor | None, taps: int, frames: int,
              transposed: bool, a_bits: int, b_bits: int) -> tuple[Launch, Tensor]:  # fmt: skip
    """The launch of a product and where its result will be."""
    z, m, n = _sizes(a, b, taps, frames, transposed, a_bits, b_bits)
    size, packed_a, packed_b = taps // frames, a_bits == 4, b_bits == 4
    block = BLOCK if packed_a or packed_b else tiles.power_above(size, 32, 64)
    y = torch.empty((z, m, n), dtype=torch.float32, device=a.device)
    bm, bn = tiles.power_above(m, 16, 64 if packed_b or steps is not None else 128), tiles.power_above(n, 16, 128)
    args = {
        "a_ptr": a.contiguous(), "b_ptr": b.contiguous(), "rows_ptr": rows, "columns_ptr": columns, "steps_ptr": steps,
        "y_ptr": y, "M": m, "N": n, "size": size, "kpad": size + -size % block, "frames": frames,
        "row_frames": rows.shape[1], "row_size": -(-m // rows.shape[1]), "column_frames": columns.shape[1],
        "column_size": -(-n // columns.shape[1]), "a_batch": a.shape[1] * a.shape[2], "a_line": a.shape[2],
        "b_batch": b.shape[1] * b.shape[2], "b_line": 1 if transposed else b.shape[2],
        "b_step": b.shape[2] if transposed else 1,
    }  # fmt: skip
    meta = {"A4": packed_a, "B4": packed_b, "U8": a.dtype == torch.uint8 and not packed_a, "SPLIT": steps is not None,
            "BM": bm, "BN": bn, "BK": block}  # fmt: skip
    return Launch("products.matmul_i8", (-(-m // bm), -(-n // bn), z), args, meta, 8 if bm * bn >= 8192 else 4), y


def _check_scales(a: Tensor, rows: Tensor, columns: Tensor, steps: Tensor | None, m: int, n: int, frames: int) -> None:
    op = "vqc_triton::matmul_i8"
    for what, t, lines in (("rows", rows, m), ("columns", columns, n)):
        check_dtype(t, (torch.float32,), op, what)
        check(t.ndim == 2 and t.shape[0] == a.shape[0] and lines % t.shape[1] == 0,
              f"{op}: {what} is {list(t.shape)}; it holds a scale for each frame of {lines} lines")  # fmt: skip
    if steps is not None:
        check_dtype(steps, (torch.float32,), op, "steps")
        check(tuple(steps.shape) == (a.shape[0], frames), f"{op}: steps is {list(steps.shape)}")


@custom_op("vqc_triton::matmul_i8", mutates_args=())
def matmul_i8(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor, steps: Tensor | None, taps: int, frames: int,
              transposed: bool, a_bits: int = 8, b_bits: int = 8) -> Tensor:  # fmt: skip
    """A product of levels with a scale for each frame: f32 [Z,M,N]; `kernels.products.matmul_i8` has its meaning.

    a: s8, or u8 with zero point 0, [Z,M,taps]; b: s8 [Z,N,taps], or (transposed) [Z,taps,N]; a_bits or b_bits 4:
    u8 as `pack_levels` gives it (b not transposed). rows f32 [Z,frames of a's lines], columns alike of
    b's; steps f32 [Z,frames]: scales along the taps, which split the sum, or None: one sum over all taps.
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit and on a sum that might leave int32.
    """
    _, m, n = _sizes(a, b, taps, frames, transposed, a_bits, b_bits)
    _check_scales(a, rows, columns, steps, m, n, frames)
    check_dtype(a, (torch.uint8,) if a_bits == 4 else (torch.int8, torch.uint8), "matmul_i8", "a")
    check_dtype(b, (torch.uint8,) if b_bits == 4 else (torch.int8,), "matmul_i8", "b")
    made, y = launch_of(a, b, rows, columns, steps, taps, frames, transposed, a_bits, b_bits)
    run(made)
    return y


@matmul_i8.register_fake
def _(a, b, rows, columns, steps, taps, frames, transposed, a_bits=8, b_bits=8):
    return rows.new_empty(_sizes(a, b, taps, frames, transposed, a_bits, b_bits))


class ConvolutionW4A16:
    """A convolution (a linear layer is one of 1x1) of float16 pictures with 4-bit weights.

    Parameters: geometry; weight s8 of -8 .. 7 [O,C/groups,kh,kw]; scale f32 [O], or [P,O] for P parts of equal length
    of a filter's taps (in the order row, column, channel; a part is a multiple of 64 taps); bias f32 [O] or None; the
    epilogue; a device. Raises ValueError for other weights and parts.
    """

    kernel = "conv_w4a16"

    def __init__(self, geometry: Geometry, weight: Tensor, scale: Tensor, bias: Tensor | None, epilogue: Epilogue,
                 device: torch.device):  # fmt: skip
        check(packing.fits_four_bits(weight), "weights beyond -8 .. 7 do not fit 4 bits")
        self.geometry, self.device, self.epilogue = geometry, device, epilogue.to(device)
        self.outputs, self.channels, self.kh, self.kw = weight.shape
        taps = self.channels * self.kh * self.kw
        bk = 64  # of two bytes each: more would not fit the shared memory of gfx942
        self.parts = 1 if scale.ndim == 1 else scale.shape[0]
        if self.parts > 1:
            check(taps % (64 * self.parts) == 0, f"{taps} taps in {self.parts} parts are no multiples of 64")
        self.aligned = self.channels % (bk // 2) == 0
        flat = packing.rows(weight, bk)
        self.weight = packing.halves(flat, bk).to(device)
        self.scale = scale.contiguous().to(device)
        self.bias = None if bias is None else bias.to(device)
        og = self.outputs // geometry.groups
        bits = epilogue.signs is not None
        rows = 128 if geometry.shape[0] * geometry.out[0] * geometry.out[1] >= 8192 else 64
        self.tile = tiles.Tile(rows, tiles.power_above(og, 32 if bits else 16, 64), bk, 8 if rows == 128 else 4, 3)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return self.weight.numel()

    def launches(self, x: Tensor, operands: tuple[Tensor, ...] = ()) -> tuple[list[Launch], Results]:
        """The launch of one step and where its results will be; x f16 [N,C,H,W]."""
        g, t, e = self.geometry, self.tile, self.epilogue
        n, c, h, w = g.shape
        memory, how, results = finishing(e, operands, n, *g.out, self.outputs, self.device)
        laid, wide = pixels(x)
        og = self.outputs // g.groups
        args = {"x_ptr": laid, "w_ptr": self.weight, "scale_ptr": self.scale, "bias_ptr": self.bias,
                **memory, "N": n, "H": h, "W": w, "CT": wide, "HP": g.out[0],
                "WP": g.out[1], "O": self.outputs, "OG": og, "KPAD": 2 * self.weight.shape[1], "parts": self.parts,
                "stride_h": g.stride[0], "stride_w": g.stride[1], "pad_h": g.pad[0], "pad_w": g.pad[1],
                "dil_h": g.dilation[0], "dil_w": g.dilation[1]}  # fmt: skip
        meta = {"C": self.channels, "KH": self.kh, "KW": self.kw, "BIAS": self.bias is not None,
                "ALIGNED": self.aligned, "SPLIT": self.parts > 1, **how, "BM": t.bm, "BN": t.bn,
                "BK": t.bk}  # fmt: skip
        grid = (-(-n * g.out[0] * g.out[1] // t.bm), g.groups * -(-og // t.bn))
        return [Launch("products.conv_w4a16", grid, args, meta, t.warps, t.stages)], results

    def __call__(self, x: Tensor, operands: tuple[Tensor, ...] = ()) -> Results:
        """Run it."""
        check_dtype(x, (torch.float16,), "conv2d_w4a16", "x")
        made, results = self.launches(x, operands)
        run(made[0])
        return results


def _geometry(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
              groups: int) -> Geometry:  # fmt: skip
    out = [conv_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    n, c, h, w = x.shape
    a, b, d = ((p[0], p[1]) for p in (stride, padding, dilation))
    return Geometry((n, c, h, w), (out[0], out[1]), a, b, d, groups)


@custom_op("vqc_triton::conv2d_w4a16", mutates_args=())
def conv2d_w4a16(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                 dilation: list[int], groups: int) -> Tensor:  # fmt: skip
    """A convolution of a float16 picture with weights of 4 bits, float32 sums; f16 [N,O,Ho,Wo].

    Arguments as `ConvolutionW4A16`, which packs the weights once: use that where a layer runs more often.
    """
    where = _geometry(x, weight, stride, padding, dilation, groups)
    layer = ConvolutionW4A16(where, weight.cpu(), scale, bias, Epilogue(dtype=torch.float16), x.device)
    value = layer(x).value
    assert value is not None
    return value.contiguous()


@conv2d_w4a16.register_fake
def _(x, weight, scale, bias, stride, padding, dilation, groups):
    where = _geometry(x, weight, stride, padding, dilation, groups)
    return x.new_empty((x.shape[0], weight.shape[0], *where.out))
