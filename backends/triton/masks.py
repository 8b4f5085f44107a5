"""A mask as the masked kernels want it: a byte a position, and the list of tiles in which it is true somewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from vqc.backends.triton.launch import Launch, run
from vqc.backends.triton.tiles import TILE

BLOCK = 64  # tiles that are looked at together


def launch_of(mask: Tensor) -> tuple[Launch, Tensor, tuple[Tensor, Tensor]]:
    """The launch, the mask as u8 [N,Ho,Wo], and where (tiles, how many are active) will be. mask: bool [N,1,Ho,Wo]."""
    n, _, h, w = mask.shape
    plain = mask.reshape(n, h, w).contiguous().view(torch.uint8)
    total = n * -(-h // TILE[0]) * -(-w // TILE[1])
    tiles = torch.empty(total, dtype=torch.int32, device=mask.device)
    count = torch.empty(1, dtype=torch.int32, device=mask.device)
    args = {"mask_ptr": plain, "tiles_ptr": tiles, "count_ptr": count, "N": n, "HO": h, "WO": w}
    return Launch("masks.active_tiles", (1,), args, {"TH": TILE[0], "TW": TILE[1], "BT": BLOCK}), plain, (tiles, count)


def find(mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(mask as u8, (tiles, count)) of a mask bool [N,1,Ho,Wo]."""
    launch, plain, listed = launch_of(mask)
    run(launch)
    return plain, listed
