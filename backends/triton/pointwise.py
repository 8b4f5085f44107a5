"""Chains of pointwise steps as calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqc.backends.triton import tiles
from vqc.backends.triton.epilogue import Epilogue, Results, finishing, pixels
from vqc.backends.triton.launch import Launch, run


class Pointwise:
    """Steps and results on one tensor [N,C,H,W]: f32, f16, bf16, or bool, s8 and u8, which are taken as numbers."""

    kernel = "pointwise"
    weight_bytes = 0

    def __init__(self, shape: tuple[int, int, int, int], epilogue: Epilogue, device: torch.device):
        self.shape, self.epilogue, self.device = shape, epilogue.to(device), device
        self.tile = tiles.pointwise(shape[1], epilogue.signs is not None)

    def launches(self, x: Tensor, operands: Sequence[Tensor] = (),
                 into: Mapping[str, Tensor] | None = None) -> tuple[list[Launch], Results]:  # fmt: skip
        """The launch of one step and where its results will be."""
        n, c, h, w = self.shape
        memory, how, results = finishing(self.epilogue, operands, n, h, w, c, self.device, into)
        laid, wide = pixels(x)
        args = {"x_ptr": laid, **memory, "P": n * h * w, "HW": h * w, "XS": wide, "O": c}
        meta = {**how, "BM": self.tile.bm, "BN": self.tile.bn}
        grid = (-(-n * h * w // self.tile.bm), -(-c // self.tile.bn))
        return [Launch("pointwise.pointwise", grid, args, meta, self.tile.warps, self.tile.stages)], results

    def __call__(self, x: Tensor, operands: Sequence[Tensor] = (),
                 into: Mapping[str, Tensor] | None = None) -> Results:  # fmt: skip
        """Run it on x [N,C,H,W]."""
        made, results = self.launches(x, operands, into)
        run(made[0])
        return results
