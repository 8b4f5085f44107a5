"""Modules and functions that people build video networks of: captured with parity on other data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frontend_help import captured, operators
from torch import nn

G = torch.Generator().manual_seed(0)


def r(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=G)


class Of(nn.Module):
    """A function with submodules."""

    def __init__(self, f: Callable[..., Any], **parts: Any):
        super().__init__()
        self.f = f
        for k, v in parts.items():
            setattr(self, k, v)

    def forward(self, *args: Any) -> Any:
        return self.f(self, *args)


@torch.jit.script
def scripted_swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@torch.compile
def compiled_swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@torch.library.custom_op("vqc_test::offset_add", mutates_args=())
def offset_add(x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() + offset.numpy())


@offset_add.register_fake
def _(x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("vqc_test::double_into", mutates_args=("out",))
def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x * 2)


@torch.library.custom_op("vqc_test::counted", mutates_args=("count",))
def counted(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    count.add_(1)
    return x * count


def returns_beside_what_it_writes(m: Any, x: torch.Tensor) -> torch.Tensor:
    count = torch.zeros(())
    return counted(x, count) + counted(x, count)


def writes_through_a_custom_operator(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    torch.ops.vqc_test.double_into(x, out)
    return out + 1


@torch.inference_mode()
def in_inference_mode(m: Any, x: torch.Tensor) -> torch.Tensor:
    return (x * 1).relu_().add_(1)


def in_autocast(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.conv(x)
    return y.float()


def autocast_off(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.conv(x.float())


def shifted_windows(m: Any, x: torch.Tensor) -> torch.Tensor:
    b, h, w, c = x.shape
    regions = torch.zeros(1, h, w, 1)
    for i, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
        for j, columns in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            regions[:, rows, columns] = 3 * i + j
    regions = regions.view(1, 2, 4, 2, 4, 1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16)
    mask = regions.unsqueeze(1) - regions.unsqueeze(2)
    mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
    q = torch.roll(x, (-2, -2), (1, 2)).view(b, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
    q = (q @ q.transpose(-2, -1) + mask).softmax(-1) @ q
    return torch.roll(q.view(b, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c), (2, 2), (1, 2))


def pyramid(m: Any, x: torch.Tensor) -> list[torch.Tensor]:
    out = [F.interpolate(x, size=(7, 9), mode=mode) for mode in ("nearest", "area", "nearest-exact")]
    for scale in (2, 0.5, (1.5, 2.0)):
        for corners in (True, False):
            out.append(F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=corners))
    out.append(F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True))
    return [*out, F.interpolate(x, scale_factor=1.3, mode="bicubic", recompute_scale_factor=True)]


def rotary(m: Any, x: torch.Tensor) -> torch.Tensor:
    turn = torch.polar(torch.ones(4), torch.arange(4.0))
    return torch.view_as_real(torch.view_as_complex(x.reshape(1, 4, 4, 2)) * turn).flatten(2)


def padded(m: Any, x: torch.Tensor) -> list[torch.Tensor]:
    return [F.pad(x, (1, 2, 3, 1), mode=mode) for mode in ("reflect", "replicate", "circular", "constant")]


def statistics(m: Any, x: torch.Tensor) -> list[torch.Tensor]:
    top, place = x.max(1)
    return [
        top,
        place,
        x.amin(1),
        x.std(1),
        x.var(1),
        x.norm(dim=1),
        *torch.var_mean(x, 1),
        x.median(1)[0],
        x.cumsum(1),
    ]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (r(1, 5, 8),) * 3),
    "lstm": (lambda: nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True), (r(2, 3, 8),)),
    "gru": (lambda: nn.GRU(8, 4), (r(3, 2, 8),)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (r(2, 5, 8),)),
    "decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), (r(2, 5, 8), r(2, 3, 8))),
    "scripted": (lambda: Of(lambda m, x: scripted_swish(x) * 2), (r(2, 5),)),
    "traced": (lambda: torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), r(1, 3, 8, 8)),
               (r(1, 3, 8, 8),)),
    "compiled": (lambda: Of(lambda m, x: compiled_swish(x) * 2), (r(2, 5),)),
    "interpolate": (lambda: Of(pyramid), (r(1, 3, 8, 10),)),
    "grid_sample": (lambda: Of(lambda m, x, g: F.grid_sample(x, g * 2 - 1, padding_mode="border", align_corners=True)
                               + F.grid_sample(x, g * 2 - 1, mode="nearest", align_corners=False)),
                    (r(1, 3, 8, 8), r(1, 8, 8, 2))),
    "einsum": (lambda: Of(lambda m, x, y: torch.einsum("bchw,bcij->bhwij", x, y)), (r(1, 3, 4, 4), r(1, 3, 4, 4))),
    "unfold": (lambda: Of(lambda m, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)), (r(1, 3, 8, 8),)),
    "windows": (lambda: Of(lambda m, x: x.unfold(2, 4, 4).unfold(3, 4, 2).sum(-1)), (r(1, 3, 8, 8),)),
    "complex": (lambda: Of(rotary), (r(1, 4, 8),)),
    "fourier": (lambda: Of(lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x) * 2)), (r(1, 3, 8, 8),)),
    "pad": (lambda: Of(padded), (r(1, 3, 8, 8),)),
    "roll": (lambda: Of(lambda m, x: [torch.roll(c, (1, -2), (2, 3)).flip(-1) for c in x.chunk(3, 1)]),
             (r(1, 7, 8, 8),)),
    "index": (lambda: Of(lambda m, x: x[:, torch.tensor([0, 2, 1])][..., torch.arange(4)]), (r(1, 3, 8, 8),)),
    "constant_mask": (lambda: Of(lambda m, x: x[:, torch.ones(8, 8).tril().bool()]), (r(3, 8, 8),)),
    "topk": (lambda: Of(lambda m, x: torch.zeros_like(x).scatter_(1, x.topk(2, 1)[1], x.topk(2, 1)[0].softmax(1))),
             (r(1, 5, 8),)),
    "norms": (lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LayerNorm(8),
                                    nn.RMSNorm(8)),
              (r(2, 4, 8, 8),)),
    "tracked_instance_norm": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (r(2, 4, 8, 8),)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), (r(1, 3, 8, 8),)),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), (r(1, 3, 8, 8),)),
    "custom_operator": (lambda: Of(lambda m, x: torch.ops.vqc_test.offset_add(x, x * 2)), (r(4, 8),)),
    "custom_write_and_result": (lambda: Of(returns_beside_what_it_writes), (r(4, 8),)),
    "custom_write": (lambda: Of(writes_through_a_custom_operator), (r(4, 8),)),
    "inference_mode": (lambda: Of(in_inference_mode), (r(4, 8),)),
    "autocast": (lambda: Of(in_autocast, conv=nn.Conv2d(3, 4, 3)), (r(1, 3, 8, 8),)),
    "autocast_off": (lambda: Of(autocast_off, conv=nn.Conv2d(3, 4, 3)), (r(1, 3, 8, 8),)),
    "same_padding": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 2, padding="same")),
                     (r(1, 3, 8, 8),)),
    "reflect_conv": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (r(1, 3, 8, 8),)),
    "vmap": (lambda: Of(lambda m, x: torch.vmap(lambda a: torch.softmax(a, 0) * a.sum())(x)), (r(3, 8),)),
    "shifted_windows": (lambda: Of(shifted_windows), (r(1, 8, 8, 4),)),
    "statistics": (lambda: Of(statistics), (r(4, 8),)),
    "activations": (lambda: nn.Sequential(nn.ReLU6(True), nn.SiLU(True), nn.Hardswish(True), nn.GELU(), nn.Mish(),
                                          nn.ELU(inplace=True), nn.PReLU(), nn.LeakyReLU(0.1, True), nn.Softplus(),
                                          nn.SELU(True), nn.GLU(1), nn.Hardtanh()), (r(1, 4, 8, 8) * 4 - 2,)),
    "conv_kinds": (lambda: Of(lambda m, x: m.b(m.a(x)), a=nn.Conv3d(1, 4, 3), b=nn.ConvTranspose3d(4, 2, 2, 2)),
                   (r(1, 1, 4, 6, 6),)),
    "rrelu": (lambda: nn.Sequential(nn.RReLU(0.1, 0.5), nn.Conv2d(4, 4, 1), nn.RReLU(inplace=True)),
              (r(1, 4, 8, 8) * 4 - 2,)),
    "embedding": (lambda: nn.Embedding(10, 4), (torch.tensor([[1, 2], [3, 9]]),)),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout1d(0.3)), (r(2, 4, 8),)),
    "numbers": (lambda: Of(lambda m, x: x**2 + 2**x + x**0.5 + 1 / x + (2 - x) + x.rsqrt() - x // 0.3),
                (r(4, 8) + 0.1,)),
    "types": (lambda: Of(lambda m, x: (x.double() + 1).float() + x.to(torch.int64).to(x) + x.half().float()),
              (r(4, 8),)),
    "containers": (lambda: Of(lambda m, d: {"s": d["a"] + d["b"][0], "n": 3}), ({"a": r(2, 2), "b": [r(2, 2), None]},)),
    "deep_copy": (lambda: Of(lambda m, x: __import__("copy").deepcopy(x) + 1), (r(4, 8),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_captured(name: str):
    make, example = CASES[name]
    captured(make, *example)


def test_rrelu_outside_of_training_is_a_leaky_relu():
    make, example = CASES["rrelu"]
    assert operators(captured(make, *example)) == ["leaky_relu", "conv2d", "leaky_relu"]


def test_an_lstm_is_plain_operators():
    make, example = CASES["lstm"]
    assert set(operators(captured(make, *example))) <= {
        "linear", "split", "getitem", "sigmoid", "tanh", "mul", "add", "unbind", "stack", "cat", "permute", "full"
    }  # fmt: skip
