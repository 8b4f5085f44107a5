"""Programs run by OpenVINO, one-bit layers on its binary kernels where that is asked for (docs/onnx.md)."""

from __future__ import annotations

from vqc.backends import Backend
from vqc.errors import TargetError


def OpenVinoBackend() -> Backend:
    """The backend. Raises TargetError when the onnx or openvino package is missing."""
    try:
        import onnx  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as e:
        raise TargetError(f"the {e.name} package is not installed", way_out="pip install vqc[peers]") from e
    from vqc.backends.openvino.backend import OpenVinoBackend as Real

    return Real()
