"""One-bit networks as small files: signs packed eight to a byte, everything else float32, in one safetensors file.

A layer's real weights are gone then: what is left are its signs, one factor and one shift for each channel, and its
thresholds. The network computes the same bits as in eval mode before, and is not made for more training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import vqc.ops  # noqa: F401  (registers the operators)

from ..errors import ArtifactError
from .binary import Binarization, BinaryConv2d

v = torch.ops.vqc


def binary_layers(net: nn.Module) -> dict[str, BinaryConv2d]:
    """The one-bit layers of a network by name."""
    return {n: m for n, m in net.named_modules() if isinstance(m, BinaryConv2d) and m.bits == 1}


@torch.no_grad()
def pack(net: nn.Module) -> dict[str, Tensor]:
    """What a network in eval mode is made of: for each one-bit layer `NAME.signs` (uint8, bit 1 is -1, lowest bit
    first), `NAME.factor`, `NAME.shift`, `NAME.tau`; all other parameters and buffers as they are."""
    layers = binary_layers(net)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        factor, shift = layer.affine()
        negative = v.fake_binarize_weight(layer.weight, layer.how.form).reshape(-1) < 0
        padded = torch.zeros(-(-negative.numel() // 8) * 8, dtype=torch.uint8)
        padded[: negative.numel()] = negative
        places = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
        tensors[f"{name}.signs"] = (padded.view(-1, 8) * places).sum(1).to(torch.uint8)
        tensors[f"{name}.factor"], tensors[f"{name}.shift"] = factor.contiguous(), shift.contiguous()
        if layer.tau is not None:
            tensors[f"{name}.tau"] = layer.tau.detach().clone()
    inside = tuple(f"{name}." for name in layers)
    for key, value in net.state_dict().items():
        if not key.startswith(inside) and not key.endswith("num_batches_tracked"):
            tensors[key] = value.detach().clone()
    return tensors


@torch.no_grad()
def unpack(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a network of the same build, in place, and leave it in eval mode. Raises ArtifactError where one is missing
    or has another shape."""
    rest = dict(tensors)

    def take(key: str, shape: tuple[int, ...]) -> Tensor:
        value = rest.pop(key, None)
        if value is None or tuple(value.shape) != shape:
            got = "is missing" if value is None else f"is {tuple(value.shape)}, not {shape}"
            raise ArtifactError(f"packed network: {key} {got}", way_out="load it into the build it was packed from")
        return value

    layers = binary_layers(net)
    for name, layer in layers.items():
        cout, count = layer.weight.shape[0], layer.weight.numel()
        packed = take(f"{name}.signs", (-(-count // 8),))
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        layer.weight.copy_(1 - 2 * bits.reshape(-1)[:count].to(torch.float32).view_as(layer.weight))
        norm = nn.BatchNorm2d(cout, eps=0.0)  # 1 / sqrt(1 + 0) is 1: factor and shift stand as they are
        norm.weight.copy_(take(f"{name}.factor", (cout,)))
        norm.bias.copy_(take(f"{name}.shift", (cout,)))
        layer.norm, layer.shift = norm, None
        layer.how = Binarization("bnn", layer.how.surrogate, layer.how.threshold)
        if layer.tau is not None:
            layer.tau.copy_(take(f"{name}.tau", tuple(layer.tau.shape)))
    inside = tuple(f"{name}." for name in layers)
    for key, value in net.state_dict().items():
        if not key.startswith(inside) and not key.endswith("num_batches_tracked"):
            value.copy_(take(key, tuple(value.shape)))
    if rest:
        raise ArtifactError(f"packed network: {sorted(rest)[0]} belongs to no layer of this build",
                            way_out="load it into the build it was packed from")  # fmt: skip
    net.eval()


def packed_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values themselves."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def save_packed(net: nn.Module, path: str | Path, about: Mapping[str, object]) -> int:
    """Write `pack(net)` with what is known `about` it (JSON values). The file is written beside and renamed. Returns
    its size in bytes. Raises ArtifactError."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(save(pack(net), metadata={"about": json.dumps(about, sort_keys=True)}))
        os.replace(beside, path)
    except (OSError, SafetensorError) as e:
        beside.unlink(missing_ok=True)
        raise ArtifactError("a packed network cannot be written", where=str(path), why=str(e),
                            way_out="give a folder with room") from e  # fmt: skip
    return path.stat().st_size


def read_packed(path: str | Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """(tensors, what is known about them) of a file. Runs no code of it. Raises ArtifactError."""
    try:
        with safe_open(path, framework="pt") as f:
            about = json.loads((f.metadata() or {}).get("about", "{}"))
            return {k: f.get_tensor(k) for k in f.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as e:
        raise ArtifactError("a packed network cannot be read", where=str(path), why=str(e)) from e
