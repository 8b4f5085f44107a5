"""The matting losses against their equations, written out plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqc.train.losses import coherence_loss, laplacian_loss, matting_loss, mimicking_loss


def clip(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Laplacian pictures of one picture [h,w], loop by loop."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16

    def blur(p: Tensor) -> Tensor:
        h, w = p.shape
        out = torch.zeros(h, w)
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                ys = [abs(y + dy) if y + dy < h else 2 * (h - 1) - (y + dy) for y in range(h)]
                xs = [abs(i + dx) if i + dx < w else 2 * (w - 1) - (i + dx) for i in range(w)]
                out += row[dy + 2] * row[dx + 2] * p[ys][:, xs]
        return out

    found = []
    for _ in range(levels):
        x = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
        down = blur(x)[::2, ::2]
        up = torch.zeros_like(x)
        up[::2, ::2] = 4 * down
        found.append(x - blur(up))
        x = down
    return found


@pytest.mark.parametrize("size", [(32, 48), (37, 51)])
def test_laplacian_is_the_weighted_distance_of_pyramids(size: tuple[int, int]) -> None:
    a, b = clip(2, 1, *size), clip(2, 1, *size).flip(0)
    want = 0.0
    for level in range(3):
        mean = sum(float((plain_pyramid(p[0], 3)[level] - plain_pyramid(q[0], 3)[level]).abs().mean())
                   for p, q in zip(a, b, strict=True)) / 2  # fmt: skip
        want += 2**level / 3 * mean
    assert float(laplacian_loss(a, b, 3)) == pytest.approx(want, rel=1e-4)


def test_laplacian_of_a_picture_too_small_for_all_levels() -> None:
    a, b = clip(1, 1, 9, 12), clip(1, 1, 9, 12).flip(-1)
    assert torch.isfinite(laplacian_loss(a, b, 5)) and float(laplacian_loss(a, b, 5)) > 0


def test_coherence_sees_changes_and_not_offsets() -> None:
    true = clip(1, 4, 1, 6, 6)
    assert float(coherence_loss(true + 0.3, true)) == pytest.approx(0, abs=1e-12)
    moved = true.clone()
    moved[:, 2] += 0.5  # one frame flickers: two of the three changes are off by 0.5
    assert float(coherence_loss(moved, true)) == pytest.approx(2 / 3 * 0.25, rel=1e-5)
    assert float(coherence_loss(true[:, :1], true[:, :1] + 1)) == 0


def test_total_is_the_sum_of_its_terms_with_their_weights() -> None:
    pf, tf, pa, ta = clip(2, 3, 3, 16, 16), clip(2, 3, 3, 16, 16).flip(0), clip(2, 3, 1, 16, 16), clip(2, 3, 1, 16, 16)
    ta = (ta.flip(1) - 0.4).clamp(min=0)
    terms = matting_loss(pf, pa, tf, ta)
    seen = (ta > 0).float()
    pf, tf = pf * seen, tf * seen
    change = lambda x: x[:, 1:] - x[:, :-1]  # noqa: E731
    want = {
        "pha_l1": (pa - ta).abs().mean(),
        "pha_coherence": 5 * (change(pa) - change(ta)).square().mean(),
        "fgr_l1": (pf - tf).abs().mean(),
        "fgr_coherence": 5 * (change(pf) - change(tf)).square().mean(),
    }
    for name, value in want.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-5), name
    parts = sum(float(v) for k, v in terms.items() if k != "total")
    assert float(terms["total"]) == pytest.approx(parts, rel=1e-6)


def test_the_foreground_counts_where_there_is_some() -> None:
    alpha = torch.zeros(1, 2, 1, 8, 8)
    terms = matting_loss(clip(1, 2, 3, 8, 8), alpha, clip(1, 2, 3, 8, 8).flip(-1), alpha)
    assert float(terms["fgr_l1"]) == 0 and float(terms["total"]) == 0


def test_mimicking_compares_directions_where_the_mask_is() -> None:
    feature, other = clip(2, 8, 4, 6) + 0.1, clip(2, 8, 4, 6).flip(1) + 0.1
    assert float(mimicking_loss([feature * 7], [feature], None)) == pytest.approx(0, abs=1e-9)
    unit = lambda x: x / x.square().sum(1, keepdim=True).sqrt()  # noqa: E731
    want = (unit(feature) - unit(other)).square().sum() / 2
    assert float(mimicking_loss([feature], [other], None)) == pytest.approx(float(want), rel=1e-4)
    mask = torch.zeros(2, 1, 4, 6)
    assert float(mimicking_loss([feature], [other], mask)) == 0
    mask[:, :, 1, 2] = 1
    want = (unit(feature) - unit(other)).square()[:, :, 1, 2].sum() / 2
    assert float(mimicking_loss([feature], [other], mask)) == pytest.approx(float(want), rel=1e-4)
