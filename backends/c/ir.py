"""What lowering makes of a Program: buffers of memory, strided values in them, and kernel calls in order.

A Buffer is a stretch of memory of one kind: "arena" (placed by the memory plan), "input", "output", "state" (given by
the caller) or "weight" (at an offset of the weights file). A Value is a strided tensor in a buffer, so a view costs
nothing. A Call runs one kernel; its arguments say what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vqc.program import Declined

ALIGN = 64  # bytes; VQC_ALIGN in vqc_common.h

# vqc_dtype in vqc_common.h, the C type, and the size in bytes.
DTYPES: dict[torch.dtype, tuple[str, str, int]] = {
    torch.float32: ("VQC_F32", "float", 4),
    torch.uint8: ("VQC_U8", "uint8_t", 1),
    torch.int8: ("VQC_S8", "int8_t", 1),
    torch.int16: ("VQC_S16", "int16_t", 2),
    torch.int32: ("VQC_S32", "int32_t", 4),
    torch.int64: ("VQC_S64", "int64_t", 8),
    torch.bool: ("VQC_BOOL", "uint8_t", 1),
    torch.complex64: ("VQC_C64", "float", 8),  # pairs of floats; kernels see them as such, or move them whole
}


def align(size: int, to: int = ALIGN) -> int:
    """`size` rounded up to a multiple of `to`."""
    return -(-size // to) * to


def numel(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    strides, step = [], 1
    for s in reversed(shape):
        strides.append(step)
        step *= s
    return tuple(reversed(strides))


@dataclass(eq=False)
class Buffer:
    """A stretch of memory.

    `place`: the index of an input or output, or the byte offset of a state or weight; None in the arena until the plan
    is made. `home`: another buffer and a byte offset in it where this one lives (a part of a concatenation).
    """

    name: str
    size: int
    kind: str
    place: int | None = None
    home: tuple[Buffer, int] | None = None

    def root(self) -> tuple[Buffer, int]:
        """The buffer this one finally lives in, and the byte offset there."""
        buffer, offset = self, 0
        while buffer.home is not None:
            offset += buffer.home[1]
            buffer = buffer.home[0]
        return buffer, offset


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in memory: strides and offset in elements of `dtype`.

    `layout`: None for a strided tensor, else the name of a packed layout (layouts.py), which says where the elements
    lie; strides mean nothing then.
    """

    buffer: Buffer
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    layout: str | None = None

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype][2]

    @property
    def count(self) -> int:
        return numel(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie in row-major order without gaps (axes of size 1 may have any stride)."""
        if self.layout is not None:
            return False
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def is_whole(self) -> bool:
        """Whether it is dense and fills its buffer."""
        return self.is_dense and self.offset == 0 and self.count * self.item == self.buffer.size

    @property
    def start(self) -> int:
        """Byte offset in the buffer."""
        return self.offset * self.item


@dataclass(frozen=True)
class Ref:
    """An argument that is memory: a byte offset in a buffer."""

    buffer: Buffer
    offset: int = 0
    writes: bool = False


@dataclass(frozen=True)
class Scratch:
    """An argument that is scratch memory, for the duration of the call: bytes for each worker."""

    size: int


@dataclass(frozen=True)
class Struct:
    """The constant parameters of a call: a C type and its fields (numbers, lists, or named constant arrays)."""

    ctype: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Array:
    """A constant array of structures or numbers a field points to."""

    ctype: str
    items: tuple[Any, ...]


Arg = Ref | Scratch | tuple[Ref, ...] | None


@dataclass(eq=False)
class Call:
    """One kernel call: name, the family (file) it is in, parameters, arguments, and the node it stems from.

    `copies`: for a copy of a whole dense value, (source, target, byte offset in the target), so that the source may be
    placed right there. `inplace`: the output, and the inputs whose memory it may take over, element on element.
    """

    kernel: str
    family: str
    params: Struct
    args: tuple[Arg, ...]
    node: str
    comment: str = ""
    copies: tuple[Buffer, Buffer, int] | None = None
    inplace: tuple[Buffer, tuple[Buffer, ...]] | None = None

    def refs(self) -> Iterator[Ref]:
        for a in self.args:
            if isinstance(a, Ref):
                yield a
            elif isinstance(a, tuple):
                yield from a

    @property
    def reads(self) -> list[Buffer]:
        return [r.buffer for r in self.refs() if not r.writes]

    @property
    def writes(self) -> list[Buffer]:
        return [r.buffer for r in self.refs() if r.writes]

    @property
    def scratch(self) -> int:
        return sum(a.size for a in self.args if isinstance(a, Scratch))


@dataclass
class Lowered:
    """A lowered Program: calls in order, the weights file's payload, and the tensors of the interface."""

    name: str
    calls: list[Call]
    weights: bytes
    inputs: list[Value]
    outputs: list[Value]
    states: list[Value]
    resets: list[Value | None]  # reset value of every state, in the weights; None: zeros
    state_size: int
    kernels: dict[str, str] = field(default_factory=dict)  # node -> kernel, "" for a view
    row_functions: dict[str, str] = field(default_factory=dict)  # text of a row program -> its name (rows.py)
    unfused: list[Declined] = field(default_factory=list)  # stored results, and why no reader went on
    workers: int = 1
