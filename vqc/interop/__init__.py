"""Other tools' forms of a network: `torch.export` programs in `.pt2` files, `quantized_decomposed` graphs."""

from __future__ import annotations

from vqc.interop.exported import from_exported, to_exported
from vqc.interop.pt2 import load_pt2, pt2_bytes

__all__ = ["from_exported", "load_pt2", "pt2_bytes", "to_exported"]
