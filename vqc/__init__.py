"""vqc: a compiler that makes video networks written in PyTorch small and fast, frame after frame the same picture."""

from vqc import video
from vqc.api import apply, compile, export
from vqc.backend import refresh, vqc_backend
from vqc.errors import VqcError
from vqc.executable import Executable, Stream
from vqc.files import load, save
from vqc.frontend import StateSpec, capture
from vqc.program import Program, State

__version__ = "0.1.0"
__all__ = ["Executable", "Program", "State", "StateSpec", "Stream", "VqcError", "apply", "capture", "compile", "export",
           "load", "refresh", "save", "vqc_backend", "video"]  # fmt: skip
