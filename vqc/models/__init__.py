"""Video networks in plain PyTorch, and loaders of their published weights."""

from ._fetch import cache_dir, fetch
from ._rvm_weights import load_rvm
from .registry import MODELS, ModelEntry
from .rife import RIFE, load_rife
from .rvm import RVM
from .srvgg import SRVGG, load_srvgg

__all__ = [
    "MODELS",
    "RIFE",
    "RVM",
    "SRVGG",
    "ModelEntry",
    "cache_dir",
    "fetch",
    "load_rife",
    "load_rvm",
    "load_srvgg",
]
