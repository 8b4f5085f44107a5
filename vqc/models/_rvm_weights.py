"""Weights for RVM: the published checkpoint, or the TensorFlow.js graph that a public package carries.

The graph is quantized per tensor (w = q * scale + min) and most of its batch norms are folded, so a "float" network
made of it is an 8-bit one in disguise; it is the best that a package registry ships.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArtifactError
from ._fetch import fetch
from ._state_dict import load_checked
from .rvm import RVM

_WIDTH = {"uint8": 1, "uint16": 2, "float16": 2, "float32": 4, "int32": 4, "bool": 1}
_REFINER_KEYS = "refiner."


def load_rvm(weights: str | Path = "registry", refiner: str | None = None) -> RVM:
    """RVM (MobileNetV3) in eval mode with trained weights. Licence of all of them: GPL-3.0.

    `weights` is "registry" (the TensorFlow.js graph of a pinned package: no segmentation head, no learned refiner) or
    the path of a published checkpoint (`rvm_mobilenetv3.pth`). `refiner` defaults to what the weights have:
    "fast_guided_filter" for the registry's, "deep_guided_filter" for a checkpoint's.
    Raises ArtifactError if a file cannot be had, is damaged, or holds other tensors than this network has.
    """
    if str(weights) != "registry":
        return _from_checkpoint(Path(weights), refiner)
    if refiner not in (None, "fast_guided_filter"):
        raise ArtifactError(
            f"the registry's RVM weights have no {refiner}",
            why="the graph was exported with the training-free refiner",
            way_out='refiner="fast_guided_filter", or the path of the published checkpoint',
        )
    return _from_graph(fetch("rvm.json"), fetch("rvm.bin"))


def _from_checkpoint(path: Path, refiner: str | None) -> RVM:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ArtifactError(
            "the checkpoint cannot be read",
            where=str(path),
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            way_out="give the path of an intact rvm_mobilenetv3.pth",
        ) from error
    net = RVM(refiner or "deep_guided_filter")
    if refiner == "fast_guided_filter" and isinstance(found, dict):
        found = {key: value for key, value in found.items() if not str(key).startswith(_REFINER_KEYS)}
    load_checked(net, found, str(path))
    return net.eval()


def read_tfjs(manifest: Path, data: Path) -> dict[str, np.ndarray]:
    """The weights of a TensorFlow.js graph model: name -> array in TensorFlow's layout; float32 where declared so."""
    try:
        groups = json.loads(manifest.read_text())["weightsManifest"]
        raw = data.read_bytes()
        weights: dict[str, np.ndarray] = {}
        offset = 0
        for entry in (entry for group in groups for entry in group["weights"]):
            shape, quant = entry["shape"], entry.get("quantization")
            stored = quant["dtype"] if quant else entry["dtype"]
            array = np.frombuffer(raw, stored, math.prod(shape), offset)
            offset += array.size * _WIDTH[stored]
            if quant and "scale" in quant:
                array = array.astype(np.float64) * quant["scale"] + quant["min"]
            weights[entry["name"]] = array.reshape(shape).astype(entry["dtype"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            "the TensorFlow.js weights cannot be read",
            where=f"{manifest}, {data}",
            why=str(error),
            way_out="delete both files and fetch again",
        ) from error
    if offset != len(raw):
        raise ArtifactError(
            "the TensorFlow.js weights do not fit their manifest",
            where=str(data),
            why=f"the manifest names {offset} bytes, the file has {len(raw)}",
            way_out="delete both files and fetch again",
        )
    return weights


def _from_graph(manifest: Path, data: Path) -> RVM:
    """Fill RVM from the exported graph; its layers are numbered in the order in which the network lists them."""
    weights = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in read_tfjs(manifest, data).items()}
    used: set[str] = set()

    def take(*suffixes: str) -> Tensor:
        names = [name for name in weights if any(name.endswith("/" + suffix) for suffix in suffixes)]
        if len(names) != 1:
            raise ArtifactError(
                f"the graph has {len(names)} tensors called {' or '.join(suffixes)}",
                where=str(manifest),
                why="exactly one is expected",
                way_out="delete the file and fetch again",
            )
        used.add(names[0])
        return weights[names[0]]

    net = RVM("fast_guided_filter", segmentation=False).eval()
    dense = depthwise = norms = 0
    with torch.no_grad():
        for conv, norm in _convolutions(net):
            if conv.groups > 1:
                layer = _numbered("depthwise_conv2d", depthwise)
                depthwise += 1
                # TensorFlow keeps depthwise kernels as [kh, kw, C, 1], others as [kh, kw, in, out].
                _put(
                    conv.weight,
                    take(f"{layer}/depthwise_weights", f"{layer}/depthwise/ReadVariableOp").permute(2, 3, 0, 1),
                )
            else:
                layer = _numbered("conv2d", dense)
                dense += 1
                _put(conv.weight, take(f"{layer}/Conv2D_weights", f"{layer}/Conv2D/ReadVariableOp").permute(3, 2, 0, 1))
            if conv.bias is not None:
                _put(conv.bias, take(f"{layer}/BiasAdd/ReadVariableOp"))
            if norm is None:
                continue
            _make_affine(norm)
            whole = f"batch_normalization_{norms}/FusedBatchNormV3"
            norms += 1
            if any(name.endswith(f"{whole}/Scaled") for name in weights):  # one the exporter left unfolded
                _put(norm.weight, take(f"{whole}/Scaled"))
                _put(norm.bias, take(f"{whole}/Offset"))
            else:
                _put(norm.bias, take(f"{layer}/Conv2D_bn_offset", f"{layer}/depthwise_bn_offset"))
        encoder = "mobile_net_v3_encoder"
        _put(net.backbone.mean, take(f"{encoder}/Const").view(3, 1, 1))
        _put(net.backbone.std, take(f"{encoder}/truediv_recip").view(3, 1, 1).reciprocal())
    # What is left over must be scalars of the graph's arithmetic and the refiner's constant box of thirds.
    forgotten = [
        name
        for name, value in weights.items()
        if name not in used
        and value.is_floating_point()
        and value.numel() > 1
        and not (value == value.flatten()[0]).all()
    ]
    if forgotten:
        raise ArtifactError(
            f"{len(forgotten)} tensors of the graph have no place in RVM",
            where=str(manifest),
            why=", ".join(forgotten[:3]),
        )
    return net


def _convolutions(net: RVM) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Every convolution in the order of definition, with the batch norm right behind it, if any."""
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for layer, follower in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            pairs.append((layer, follower if isinstance(follower, nn.BatchNorm2d) else None))
    return pairs


def _make_affine(norm: nn.BatchNorm2d) -> None:
    """Statistics that make the norm exactly x * weight + bias: a folded norm keeps its place and adds its offset."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)


def _put(target: Tensor, value: Tensor) -> None:
    if target.shape != value.shape:
        raise ArtifactError(
            "a tensor of the graph has the wrong shape",
            why=f"expected {tuple(target.shape)}, found {tuple(value.shape)}",
        )
    target.copy_(value)


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name
