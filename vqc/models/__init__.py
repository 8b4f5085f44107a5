"""Video networks in plain PyTorch, and loaders of their published weights."""

from ._bivm_weights import load_bivm
from ._fetch import cache_dir, cached, fetch
from ._rvm_weights import load_rvm
from .bivm import BiVM
from .registry import MODELS, ModelEntry
from .rife import RIFE, load_rife
from .rvm import RVM
from .srvgg import SRVGG, load_srvgg

__all__ = [
    "BiVM",
    "MODELS",
    "RIFE",
    "RVM",
    "SRVGG",
    "ModelEntry",
    "cache_dir",
    "cached",
    "fetch",
    "load_bivm",
    "load_rife",
    "load_rvm",
    "load_srvgg",
]
