"""Programs as ONNX: standard operators, QuantizeLinear and DequantizeLinear, functions of `ai.vqc` (docs/onnx.md)."""

from __future__ import annotations

from vqc.backends import Backend
from vqc.errors import TargetError


def OnnxBackend() -> Backend:
    """The backend. Raises TargetError when the onnx package is missing."""
    try:
        import onnx  # noqa: F401
    except ImportError as e:
        raise TargetError("the onnx package is not installed", way_out="pip install vqc[onnx]") from e
    from vqc.backends.onnx.backend import OnnxBackend as Real

    return Real()
