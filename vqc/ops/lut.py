"""Tables of 256: any function of one 8-bit value."""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op

from vqc.ops._common import check, check_dtype
from vqc.ops._dtypes import F32, I64, U8


def _check(x: Tensor, table: Tensor) -> None:
    check_dtype(x, (U8,), "lut", "x")
    check_dtype(table, (U8, F32), "lut", "table")
    check(tuple(table.shape) == (256,), f"vqc::lut: table is {list(table.shape)}, it must be [256]")


@custom_op("vqc::lut", mutates_args=())
def lut(x: Tensor, table: Tensor) -> Tensor:
    """table[x]. x: u8, any shape; table: u8 or f32 [256]. Returns x's shape in the table's dtype."""
    _check(x, table)
    return table[x.contiguous().to(I64)]


@lut.register_fake
def _(x, table):
    _check(x, table)
    return table.new_empty(x.shape)
