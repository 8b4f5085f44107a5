"""The one-bit network of our own: weights that lie in the package, trained with `python -m vqc.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bivm import BIMATTING_SHORTCUTS, BIVM_SHORTCUTS, BiVM
from .packed import read_packed, unpack

BIVM_FILE = Path(__file__).parent / "weights" / "bivm.safetensors"
BIVM_LICENCE = "this project's; its teacher was RVM (GPL-3.0), its pictures are named in docs/training.md"


def build_packed(path: Path) -> tuple[BiVM, dict[str, Any]]:
    """The network in a file of `vqc.models.packed`, in eval mode, and what is known about it. Raises ArtifactError."""
    tensors, about = read_packed(path)
    build: Any = about.get("build", {})
    cuts = BIMATTING_SHORTCUTS if build.get("shortcuts") == "bimatting" else BIVM_SHORTCUTS
    net = BiVM(1, build.get("encoder", "ebb"), build.get("decoder", "shb"), cuts=cuts, width=build.get("width", 1.0))
    unpack(net, tensors)
    return net, about


def load_bivm() -> BiVM:
    """The shipped one-bit network. Nothing is fetched. Raises ArtifactError when its file is missing or damaged."""
    return build_packed(BIVM_FILE)[0]
