"""Binary convolutions as calls: signs in words, sums on tensor cores or by counting bits, by predicted cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqc.backends.triton import packing, tiles
from vqc.backends.triton.convolution import Geometry
from vqc.backends.triton.epilogue import Epilogue, Results, bits_of, finishing
from vqc.backends.triton.launch import Launch, run
from vqc.backends.triton.tiles import TILE, Tile

WAYS = ("dot", "popcount")
# 10^12 multiply-adds a second of an H200 by its clocks and units (docs/triton.md): s8 on tensor cores, and 16 POPC of
# 32 bits each a clock and multiprocessor. Predicted, not measured: only their ratio matters here.
DOT_RATE, POPCOUNT_RATE = 990.0, 124.0


def choose(outputs: int, channels: int, taps: int, positions: int, masked: bool) -> str:
    """The way that should be faster, padding of tiles counted: tensor cores but where most of their tile is empty."""
    words = -(-channels // 32)
    dot = tiles.binary_dot(positions, outputs, words, masked, False)
    pop = tiles.binary_popcount(outputs, masked, False)
    columns = {"dot": -(-outputs // dot.bn) * dot.bn, "popcount": -(-outputs // pop.bn) * pop.bn}
    work = {"dot": columns["dot"] * -(-words // dot.bk) * dot.bk / DOT_RATE,
            "popcount": columns["popcount"] * words / POPCOUNT_RATE}  # fmt: skip
    return min(WAYS, key=lambda way: work[way] * taps)


class BinaryConvolution:
    """`vqc::bconv2d`, its masked form and `vqc::bconv2d_threshold` on packed signs.

    Parameters: geometry of x [N,C,H,W] (no groups); weight s8 +1 and -1 [O,C,kh,kw]; scale f32 [O]; bias f32 [O] or
    None; masked; the epilogue; a device; `way`, "dot" or "popcount" (None: the one that should be faster);
    `threshold`: scale is the threshold s32 [O], bias the flip, bool [O], and the value before the epilogue is 1 or -1.
    """

    def __init__(self, geometry: Geometry, weight: Tensor, scale: Tensor, bias: Tensor | None, epilogue: Epilogue,
                 device: torch.device, *, masked: bool = False, way: str | None = None,
                 threshold: bool = False, tile: Tile | None = None):  # fmt: skip
        n, c, _, _ = geometry.shape
        self.geometry, self.masked, self.threshold, self.device = geometry, masked, threshold, device
        self.outputs, _, self.kh, self.kw = weight.shape
        positions = n * geometry.out[0] * geometry.out[1]
        self.way = way or choose(self.outputs, c, self.kh * self.kw, positions, masked)
        self.words = -(-c // 32)
        self.epilogue = epilogue.to(device)
        self.scale = scale.to(device)
        self.bias = None if bias is None else bits_of(bias).to(device)
        bits = epilogue.signs is not None
        if self.way == "dot":
            self.tile = tile or tiles.binary_dot(positions, self.outputs, self.words, masked, bits)
            self.weight = packing.binary_rows(weight, self.tile.bk).to(device)
        else:
            self.tile = tile or tiles.binary_popcount(self.outputs, masked, bits)
            self.weight = packing.binary_words(weight).to(device)

    @property
    def kernel(self) -> str:
        """What a report calls it."""
        return f"bconv_{self.way}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return self.weight.numel() * self.weight.element_size()

    def launches(self, x: Tensor, operands: Sequence[Tensor] = (), mask: Tensor | None = None,
                 tiles_of_mask: tuple[Tensor, Tensor] | None = None,
                 into: Mapping[str, Tensor] | None = None) -> tuple[list[Launch], Results]:  # fmt: skip
        """The launch of one step and where its results will be; x: int32 words [N,H,W,ceil(C/32)]."""
        g, e, tile = self.geometry, self.epilogue, self.tile
        n, c, h, w = g.shape
        memory, how, results = finishing(e, operands, n, *g.out, self.outputs, self.device, into)
        listed, count = tiles_of_mask or (None, None)
        args = {
            "x_ptr": x.contiguous(), "w_ptr": self.weight, "scale_ptr": self.scale, "bias_ptr": self.bias,
            "mask_ptr": mask, "tiles_ptr": listed, "count_ptr": count, **memory,
            "N": n, "H": h, "W": w, "WC": self.words, "HP": g.out[0], "WP": g.out[1], "O": self.outputs,
            "stride_h": g.stride[0], "stride_w": g.stride[1], "pad_h": g.pad[0], "pad_w": g.pad[1],
            "dil_h": g.dilation[0], "dil_w": g.dilation[1],
        }  # fmt: skip
        meta = {"KH": self.kh, "KW": self.kw, "BIAS": self.bias is not None, "THRESHOLD": self.threshold,
                "MASKED": self.masked, **how, "BM": tile.bm, "BN": tile.bn, "TW": TILE[1]}  # fmt: skip
        if self.way == "dot":
            meta |= {"BW": tile.bk}
        else:
            args |= {"C": c}
        if self.masked:
            blocks = n * -(-g.out[0] // TILE[0]) * -(-g.out[1] // TILE[1])
        else:
            blocks = -(-n * g.out[0] * g.out[1] // tile.bm)
        grid = (blocks, -(-self.outputs // tile.bn))
        return [Launch(f"binary.bconv_{self.way}", grid, args, meta, tile.warps, tile.stages)], results

    def __call__(self, x: Tensor, operands: Sequence[Tensor] = (), mask: Tensor | None = None,
                 tiles_of_mask: tuple[Tensor, Tensor] | None = None,
                 into: Mapping[str, Tensor] | None = None) -> Results:  # fmt: skip
        """Run it; arguments as `launches`."""
        made, results = self.launches(x, operands, mask, tiles_of_mask, into)
        for launch in made:
            run(launch)
        return results
