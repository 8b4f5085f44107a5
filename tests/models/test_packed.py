"""Packed one-bit networks: the same bits as before, small, and refused when they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vqc.errors import ArtifactError
from vqc.models.binary import METHODS, BinaryConv2d
from vqc.models.bivm import BiVM, binary_rvm
from vqc.models.packed import binary_layers, pack, packed_bytes, read_packed, save_packed, unpack


def trained(make=lambda: BiVM(width=0.25)) -> BiVM:  # type: ignore[no-untyped-def]
    """With statistics, slopes and thresholds that are none of the starting ones."""
    torch.manual_seed(1)
    net = make()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    net.train()
    net(torch.rand(1, 2, 3, 32, 48))
    return net.eval()


@pytest.mark.parametrize("make", [lambda: BiVM(width=0.25), lambda: BiVM(width=0.25, decoder="vanilla"),
                                  lambda: binary_rvm("xnor")])  # fmt: skip
def test_a_packed_network_computes_the_same_bits(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    net = trained(make)
    size = save_packed(net, tmp_path / "n.safetensors", {"seed": 3})
    tensors, about = read_packed(tmp_path / "n.safetensors")
    again = make()
    unpack(again, tensors)
    clip = torch.rand(1, 3, 3, 34, 50)
    with torch.no_grad():
        for a, b in zip(net(clip), again(clip), strict=True):
            assert torch.equal(a, b)
    assert about == {"seed": 3} and size == (tmp_path / "n.safetensors").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


@pytest.mark.parametrize("form", sorted(METHODS))
def test_signs_of_every_form_survive(form: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(BinaryConv2d(5, 3, 3, how=METHODS[form])).eval()  # 135 signs: the last byte is not full
    with torch.no_grad():
        net[0].weight[0] = 0.25  # one sign alone
        net[0].weight[1, 0] = 0.0
    again = nn.Sequential(BinaryConv2d(5, 3, 3, how=METHODS[form]))
    unpack(again, pack(net))
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        assert torch.equal(net(x), again(x))


def test_a_sign_takes_a_bit() -> None:
    net = BiVM(width=0.25)
    signs = sum(layer.weight.numel() for layer in binary_layers(net).values())
    tensors = pack(net.eval())
    rest = sum(4 * t.numel() for k, t in tensors.items() if not k.endswith(".signs"))
    assert packed_bytes(tensors) - rest == sum(-(-m.weight.numel() // 8) for m in binary_layers(net).values())
    assert packed_bytes(tensors) < signs / 8 + rest + len(binary_layers(net))


def test_a_float_twin_has_nothing_to_pack() -> None:
    assert not binary_layers(BiVM(32, width=0.25))


def test_what_does_not_fit_is_refused() -> None:
    tensors = pack(BiVM(width=0.25).eval())
    key = next(k for k in tensors if k.endswith(".signs"))
    with pytest.raises(ArtifactError, match="is missing"):
        unpack(BiVM(width=0.25), {k: t for k, t in tensors.items() if k != key})
    with pytest.raises(ArtifactError, match="not"):
        unpack(BiVM(width=0.25), tensors | {key: tensors[key][:-1]})
    with pytest.raises(ArtifactError, match="belongs to no layer"):
        unpack(BiVM(width=0.25), tensors | {"stranger": torch.zeros(1)})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_packed(BiVM(width=0.25).eval(), path, {})
    whole = path.read_bytes()
    for broken in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_packed(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_packed(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_packed(BiVM(width=0.25).eval(), tmp_path / "no" / "folder", {})
