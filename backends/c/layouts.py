"""Packed layouts: how some kernels want their tensors to lie in memory, beside the strided ones.

A node's result may be bound in a packed layout (`Lowering.result(node, layout)`). Whoever asks for it by
`Lowering.packed(node, layout)` gets it as it is; whoever asks by `value` or `dense` gets it unpacked, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vqc.backends.c.ir import Value
    from vqc.backends.c.lower import Lowering

Convert = Callable[["Lowering", "Value", "Value"], None]


@dataclass(frozen=True)
class Layout:
    """A packed layout.

    `size(shape, dtype)`: bytes of a tensor. `pack(ctx, dense, packed)` and `unpack(ctx, packed, dense)` add the kernel
    call that converts.
    """

    name: str
    size: Callable[[Sequence[int], torch.dtype], int]
    pack: Convert
    unpack: Convert


LAYOUTS: dict[str, Layout] = {}


def register_layout(layout: Layout) -> None:
    """Make a packed layout known by its name."""
    LAYOUTS[layout.name] = layout
