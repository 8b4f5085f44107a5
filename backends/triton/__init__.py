"""The Triton backend: int8 and binary networks on GPUs, and in Triton's interpreter without one."""

from vqc.backends.triton.backend import TritonBackend, TritonExecutable

__all__ = ["TritonBackend", "TritonExecutable"]
