"""Float layers as calls: resampling, averages, ordered convolutions; and channels moved between pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqc.backends.triton import tiles
from vqc.backends.triton.epilogue import Epilogue, Results, bits_of, finishing, pixels
from vqc.backends.triton.launch import Launch, run
from vqc.ops.pool import pool_windows
from vqc.ops.resample import bilinear_table

MOVE_BLOCK = (64, 32)
MEAN_BLOCK = 32


class FloatLayer:
    """One kernel that reads a picture f32 [N,C,H,W], gives [N,O,Ho,Wo], and ends in an epilogue.

    Parameters: the kernel's name; the input's shape and the result's; the epilogue; a device; `args` and `meta`, the
    kernel's own arguments, tensors on the CPU; `more`, names of pointers that are given at run time after the
    epilogue's operands; groups of output channels, which no block of channels crosses; masked: None for a kernel that
    knows no mask, else whether it has one.
    """

    def __init__(self, kernel: str, shape: Sequence[int], out: Sequence[int], epilogue: Epilogue, device: torch.device,
                 args: Mapping[str, Any], meta: Mapping[str, Any], more: tuple[str, ...] = (),
                 groups: int = 1, masked: bool | None = None):  # fmt: skip
        self.name, self.shape, self.out, self.device = kernel, tuple(shape), tuple(out), device
        self.epilogue, self.meta, self.more, self.groups = epilogue.to(device), dict(meta), more, groups
        self.args = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in args.items()}
        self.masked = masked
        self.stride = "CT" if kernel == "windows.conv_f32" else "XS"  # what its kernel calls x's stride
        self.tile = tiles.pointwise(self.out[1] // groups, epilogue.signs is not None)
        if masked:
            self.tile = replace(self.tile, bm=tiles.TILE[0] * tiles.TILE[1], bn=min(self.tile.bn, 32), warps=8)

    @property
    def kernel(self) -> str:
        """What a report calls it."""
        return self.name.partition(".")[2]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and tables."""
        return sum(v.numel() * v.element_size() for v in self.args.values() if isinstance(v, Tensor))

    def launches(self, x: Tensor, operands: Sequence[Tensor] = (), mask: Tensor | None = None,
                 tiles_of_mask: tuple[Tensor, Tensor] | None = None,
                 into: Mapping[str, Tensor] | None = None) -> tuple[list[Launch], Results]:  # fmt: skip
        """The launch of one step and where its results will be; operands: the epilogue's, then those of `more`; mask
        and its tiles as `Convolution.launches`."""
        (n, _, h, w), (_, o, ho, wo) = self.shape, self.out
        own = len(operands) - len(self.more)
        memory, how, results = finishing(self.epilogue, operands[:own], n, ho, wo, o, self.device, into)
        laid, wide = pixels(x)
        extra = {k: v.contiguous() for k, v in zip(self.more, operands[own:], strict=True)}
        args = {"x_ptr": laid, **memory, **self.args, **extra, "N": n, "H": h, "W": w, "HO": ho, "WO": wo, "O": o,
                self.stride: wide}  # fmt: skip
        meta = {**self.meta, **how, "BM": self.tile.bm, "BN": self.tile.bn}
        rows = -(-n * ho * wo // self.tile.bm)
        if self.masked is not None:
            listed, count = tiles_of_mask or (None, None)
            args |= {"mask_ptr": mask, "tiles_ptr": listed, "count_ptr": count}
            meta |= {"MASKED": self.masked, "TW": tiles.TILE[1]}
        if self.masked:
            rows = n * -(-ho // tiles.TILE[0]) * -(-wo // tiles.TILE[1])
        grid = (rows, self.groups * -(-(o // self.groups) // self.tile.bn))
        return [Launch(self.name, grid, args, meta, self.tile.warps, self.tile.stages)], results

    def __call__(self, x: Tensor, operands: Sequence[Tensor] = (), mask: Tensor | None = None,
                 tiles_of_mask: tuple[Tensor, Tensor] | None = None,
                 into: Mapping[str, Tensor] | None = None) -> Results:  # fmt: skip
        """Run it; arguments as `launches`."""
        made, results = self.launches(x, operands, mask, tiles_of_mask, into)
        run(made[0])
        return results


def resize(shape: Sequence[int], out: tuple[int, int], align: bool, scales: tuple[float | None, float | None],
           epilogue: Epilogue, device: torch.device) -> FloatLayer:  # fmt: skip
    """`vqc::resize_bilinear`."""
    args: dict[str, Tensor] = {}
    for name, axis in (("row", 0), ("column", 1)):
        i0, i1, w0, w1 = bilinear_table(shape[2 + axis], out[axis], align, scales[axis])
        args |= {f"{name}s_ptr": torch.from_numpy(np.stack([i0, i1])),
                 f"{name}_weights_ptr": torch.from_numpy(np.stack([w0, w1]))}  # fmt: skip
    return FloatLayer("resample.resize_bilinear", shape, (shape[0], shape[1], *out), epilogue, device, args, {})


def grid_sample(shape: Sequence[int], out: tuple[int, int], border: bool, align: bool, epilogue: Epilogue,
                device: torch.device) -> FloatLayer:  # fmt: skip
    """`vqc::grid_sample`; the grid is the last operand."""
    sizes = {"size_h": float(shape[2]), "size_w": float(shape[3])}
    return FloatLayer("resample.grid_sample", shape, (shape[0], shape[1], *out), epilogue, device, sizes,
                      {"ALIGN": align, "BORDER": border}, ("grid_ptr",))  # fmt: skip


def average(shape: Sequence[int], out: tuple[int, int], kernel: Sequence[int], stride: Sequence[int],
            pad: Sequence[int], ceil: bool, count_pad: bool, epilogue: Epilogue,
            device: torch.device) -> FloatLayer:  # fmt: skip
    """`vqc::avg_pool2d`."""
    counts = [pool_windows(shape[2 + i], kernel[i], stride[i], pad[i], ceil, count_pad)[2] for i in (0, 1)]
    factors = torch.from_numpy((1.0 / np.outer(counts[0], counts[1])).astype(np.float32))
    args = {"factors_ptr": factors, "stride_h": stride[0], "stride_w": stride[1], "pad_h": pad[0], "pad_w": pad[1]}
    return FloatLayer("windows.avg_pool2d", shape, (shape[0], shape[1], *out), epilogue, device, args,
                      {"KH": kernel[0], "KW": kernel[1]})  # fmt: skip


def conv(shape: Sequence[int], out: tuple[int, int], weight: Tensor, bias: Tensor | None, stride: Sequence[int],
         pad: Sequence[int], dilation: Sequence[int], groups: int, epilogue: Epilogue, device: torch.device,
         masked: bool = False) -> FloatLayer:  # fmt: skip
    """`vqc::conv2d`, or (masked) `vqc::masked_conv2d` with its sums in that order; weight [O,C/groups,kh,kw]."""
    o, c, kh, kw = weight.shape
    args = {"w_ptr": weight.reshape(o, -1).t().contiguous(), "bias_ptr": bias, "OG": o // groups,
            "stride_h": stride[0], "stride_w": stride[1], "pad_h": pad[0], "pad_w": pad[1], "dil_h": dilation[0],
            "dil_w": dilation[1]}  # fmt: skip
    meta = {"C": c, "KH": kh, "KW": kw, "BIAS": bias is not None}
    return FloatLayer("windows.conv_f32", shape, (shape[0], o, *out), epilogue, device, args, meta, groups=groups,
                      masked=masked)  # fmt: skip


class Mean:
    """`vqc::mean_hw` of f32 [N,C,H,W]."""

    kernel = "mean_hw"
    weight_bytes = 0

    def __call__(self, x: Tensor, operands: Sequence[Tensor] = ()) -> Results:
        """Run it."""
        n, c, h, w = x.shape
        y = torch.empty((n, c), dtype=torch.float32, device=x.device)
        laid, wide = pixels(x)
        args = {"x_ptr": laid, "y_ptr": y, "HW": h * w, "XS": wide, "O": c, "factor": 1.0 / (h * w)}
        run(Launch("windows.mean_hw", (n, -(-c // MEAN_BLOCK)), args, {"BN": MEAN_BLOCK}))
        return Results(y.reshape(n, c, 1, 1))


class Channels:
    """Channels of some pictures put into others: `parts` says (input, its first channel, count, output, where to).

    `outputs`: the number of channels of each picture that is made; `dtypes`: theirs, if not the first input's; `crop`:
    (top, left, rows, columns) of the inputs' part that is taken, if not all.
    """

    kernel = "move_channels"
    weight_bytes = 0

    def __init__(self, parts: Sequence[tuple[int, int, int, int, int]], outputs: Sequence[int],
                 dtypes: Sequence[torch.dtype] | None = None,
                 crop: tuple[int, int, int, int] | None = None):  # fmt: skip
        self.parts, self.outputs, self.dtypes, self.crop = tuple(parts), tuple(outputs), dtypes, crop

    def __call__(self, inputs: Sequence[Tensor], into: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Run it on pictures [N,C_i,H,W]; the results in the channels_last format, in `into` [N,H,W,C] if given."""
        first = inputs[0]
        n, _, high, wide = first.shape
        top, left, h, w = self.crop or (0, 0, high, wide)
        dtypes = self.dtypes or [first.dtype] * len(self.outputs)
        made = list(into or [torch.empty((n, h, w, c), dtype=d, device=first.device)
                             for c, d in zip(self.outputs, dtypes, strict=True)])  # fmt: skip
        laid = [pixels(x) for x in inputs]
        bm, bn = MOVE_BLOCK
        for source, at, count, target, to in self.parts:
            args = {"x_ptr": laid[source][0], "y_ptr": bits_of(made[target]), "P": n * h * w, "H": high, "W": wide,
                    "HO": h, "WO": w, "top": top, "left": left, "count": count, "x_from": at,
                    "x_channels": laid[source][1], "y_from": to,
                    "y_channels": self.outputs[target]}  # fmt: skip
            grid = (-(-n * h * w // bm), -(-count // bn))
            run(Launch("moves.move_channels", grid, args, {"CROP": (h, w) != (high, wide), "BM": bm, "BN": bn}))
        return [y.permute(0, 3, 1, 2) for y in made]
