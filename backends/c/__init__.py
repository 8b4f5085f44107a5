"""The C backend: a Program becomes C99 that needs only libc and libm, with a caller-owned arena and state."""

from vqc.backends.c.backend import CBackend
from vqc.backends.c.registry import Rule, register_lowering, supported_ops

__all__ = ["CBackend", "Rule", "register_lowering", "supported_ops"]
