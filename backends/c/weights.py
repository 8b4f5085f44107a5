"""The weights file: a 64-byte header, then constants at multiples of 64 bytes, each stored once.

0   8  magic "VQCWGHT\\n"
8   4  version (VQC_ABI), little-endian as everything in the file
12  4  zero
16  8  size of the payload in bytes
24  32 SHA-256 of the payload
56  8  zero
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch

from vqc.backends.c.ir import ALIGN, Buffer, Value, align, dense_strides

MAGIC = b"VQCWGHT\n"
ABI = 2
HEADER = 64


class WeightPool:
    """Collects constants; equal bytes are stored once."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._known: dict[bytes, Buffer] = {}

    def add(self, value: torch.Tensor | np.ndarray, name: str = "constant") -> Value:
        """The value of a constant in the weights; a numpy array or a CPU tensor, stored densely."""
        tensor = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        tensor = tensor.detach().cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        key = hashlib.sha256(raw).digest()
        buffer = self._known.get(key)
        if buffer is None:
            buffer = Buffer(name, len(raw), "weight", self._size)
            self._known[key] = buffer
            padded = raw + bytes(align(len(raw)) - len(raw))
            self._chunks.append(padded)
            self._size += len(padded)
        return Value(buffer, tensor.dtype, tuple(tensor.shape), dense_strides(tensor.shape))

    def tensor(self, value: Value) -> torch.Tensor:
        """The constant of a dense value of this pool."""
        at = 0
        for chunk in self._chunks:
            if at == value.buffer.place:
                raw = torch.frombuffer(bytearray(chunk[: value.buffer.size]), dtype=value.dtype)
                return raw[value.offset : value.offset + value.count].view(value.shape)
            at += len(chunk)
        raise KeyError(value.buffer.name)

    def payload(self) -> bytes:
        return b"".join(self._chunks)


def digest(payload: bytes) -> bytes:
    """The payload's SHA-256, which generated code knows."""
    return hashlib.sha256(payload).digest()


def weights_file(payload: bytes) -> bytes:
    """The file's bytes: header and payload."""
    head = MAGIC + struct.pack("<IIQ", ABI, 0, len(payload)) + digest(payload) + bytes(8)
    assert len(head) == HEADER == ALIGN
    return head + payload
