"""Filling a network from a state dict that came out of a file, with a typed error where they differ."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ArtifactError

_SHOWN = 4


def load_checked(net: nn.Module, found: Any, where: str) -> None:
    """Copy `found` into `net`; every tensor must be there, in its shape, and no other.

    Raises ArtifactError naming the keys that are missing, left over or of another shape; `net` is untouched then.
    """
    wanted = net.state_dict()
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ArtifactError(
            "this file holds no state dict",
            where=where,
            why=f"expected a mapping of names to tensors, found {type(found).__name__}",
            way_out="give the checkpoint of the network itself, without optimizer or wrapper",
        )
    faults = []
    for word, keys in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
        if keys:
            faults.append(f"{len(keys)} {word}: {', '.join(sorted(keys)[:_SHOWN])}")
    faults += [
        f"{key} has shape {tuple(found[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ][:_SHOWN]
    if faults:
        raise ArtifactError(
            f"the checkpoint does not fit {type(net).__name__}",
            where=where,
            why="; ".join(faults),
            way_out="give the checkpoint of this very variant",
        )
    net.load_state_dict(found)
