"""Every metric against an independent implementation (SciPy, scikit-image) or a case worked by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqc import metrics
from vqc.errors import InputError
from vqc.metrics.connectivity import largest_component


def blob(height: int = 40, width: int = 52, seed: int = 0, frames: int = 2) -> torch.Tensor:
    """Soft random mattes [T,1,H,W] with several parts, holes and flat areas."""
    noise = np.random.default_rng(seed).normal(size=(frames, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 2.5, 2.5))
    return torch.from_numpy(np.clip(smooth * 5 + 0.4, 0, 1)).float()[:, None]


def test_mad_and_mse_by_hand():
    true = torch.zeros(2, 1, 2, 2)
    pred = true.clone()
    pred[0, 0, 0, 0] = 1.0
    pred[1] = 0.5
    assert metrics.mad(pred, true) == pytest.approx(1000 * (1 + 4 * 0.5) / 8)
    assert metrics.mse(pred, true) == pytest.approx(1000 * (1 + 4 * 0.25) / 8)


def test_mattes_are_taken_with_two_three_and_four_axes():
    pred, true = blob(seed=1), blob(seed=2)
    assert metrics.mad(pred[:, 0], true[:, 0]) == metrics.mad(pred, true)
    assert metrics.mad(pred[0, 0], true[0, 0]) == metrics.mad(pred[:1], true[:1])


def test_dtssd_counts_the_first_frame_as_zero():
    true = torch.zeros(4, 1, 3, 3)
    pred = torch.tensor([0.9, 0.9, 0.6, 0.6]).view(4, 1, 1, 1).expand(4, 1, 3, 3)
    assert metrics.dtssd(pred, true) == pytest.approx(100 * 0.3 / 4, rel=1e-5)
    assert metrics.dtssd(pred[:1], true[:1]) == 0


def test_foreground_errors_see_only_where_the_true_matte_is_above_zero():
    alpha = torch.zeros(2, 1, 2, 2)
    alpha[0, 0, 0, 1] = 0.01  # a faint pixel counts as much as a solid one
    pred, true = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    pred[0, :, 0, 1] = torch.tensor([0.3, 0.0, 0.0])
    pred[0, :, 1, 1] = 1.0  # outside
    assert metrics.fg_mad(pred, true, alpha) == pytest.approx(100.0)  # the empty second frame does not dilute it
    assert metrics.fg_mse(pred, true, alpha) == pytest.approx(30.0)
    assert metrics.fg_mad(pred, true, alpha * 0) == 0


def scipy_grad(pred: np.ndarray, true: np.ndarray, normalise: bool) -> float:
    sigma, half = 1.4, 4
    x = np.arange(-half, half + 1)
    g = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    kernel = np.outer(g, -x * g / sigma**2)
    kernel /= np.linalg.norm(kernel)

    def slope(a: np.ndarray) -> np.ndarray:
        if normalise:
            a = (a - a.min()) / (a.max() - a.min())
        dx = ndimage.correlate(a, kernel, mode="nearest")
        dy = ndimage.correlate(a, kernel.T, mode="nearest")
        return np.hypot(dx, dy)

    return float(((slope(true) - slope(pred)) ** 2).sum() / 1000)


@pytest.mark.parametrize("normalise", [True, False])
def test_grad_against_scipy(normalise):
    pred, true = blob(seed=3) * 0.8 + 0.1, blob(seed=4) * 0.9
    frames = zip(pred[:, 0].double().numpy(), true[:, 0].double().numpy(), strict=True)
    expected = np.mean([scipy_grad(p, t, normalise) for p, t in frames])
    assert metrics.grad(pred, true, normalise) == pytest.approx(expected, rel=1e-9)


def test_grad_of_a_flat_frame_is_finite():
    flat = torch.full((1, 1, 12, 12), 0.5)
    assert metrics.grad(flat, flat) == 0
    assert math.isfinite(metrics.grad(flat, blob(12, 12, frames=1)))


def scipy_largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)  # 4-connected by default
    if count == 0:
        return np.zeros_like(mask)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1


def scipy_conn(pred: np.ndarray, true: np.ndarray) -> float:
    steps = [i / 10 for i in range(11)]
    level = np.full(pred.shape, -1.0)
    for i in range(1, 11):
        omega = scipy_largest((pred >= steps[i]) & (true >= steps[i]))
        level[(level == -1) & ~omega] = steps[i - 1]
    level[level == -1] = 1
    d_true, d_pred = true - level, pred - level
    phi_true, phi_pred = 1 - d_true * (d_true >= 0.15), 1 - d_pred * (d_pred >= 0.15)
    return float(np.abs(phi_true - phi_pred).sum() / 1000)


@pytest.mark.parametrize("seed", range(4))
def test_conn_against_scipy(seed):
    pred, true = blob(seed=seed), blob(seed=seed + 10)
    frames = zip(pred[:, 0].double().numpy(), true[:, 0].double().numpy(), strict=True)
    assert metrics.conn(pred, true) == pytest.approx(np.mean([scipy_conn(p, t) for p, t in frames]), rel=1e-12)


def test_conn_of_empty_and_equal_mattes():
    empty, full = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    assert metrics.conn(full, full) == 0
    assert metrics.conn(empty, empty) == 0
    # Nothing is in both: all of the truth stands one above the level 0, so each of the 64 pixels is lost.
    assert metrics.conn(empty, full) == pytest.approx(64 / 1000)


@pytest.mark.parametrize("density", [0.3, 0.55, 0.6, 0.7])
def test_largest_component_against_scipy(density):
    generator = np.random.default_rng(7)
    for shape in [(1, 9), (9, 1), (23, 31), (64, 64)]:
        mask = generator.random(shape) < density
        np.testing.assert_array_equal(largest_component(mask), scipy_largest(mask))


def test_largest_component_of_a_spiral():
    # One part in a long winding, the worst case for labels that travel a run at a time.
    mask = np.zeros((41, 41), bool)
    y, x, step = 0, 0, 40
    mask[0, 0] = True
    for turn in range(36):
        dy, dx = [(0, 1), (1, 0), (0, -1), (-1, 0)][turn % 4]
        for _ in range(step):
            y, x = y + dy, x + dx
            mask[y, x] = True
        if turn and turn % 2 == 0:
            step -= 2
    np.testing.assert_array_equal(largest_component(mask), scipy_largest(mask))


def test_psnr_against_skimage_and_by_hand():
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 3, 16, 20, generator=generator).double()
    pred = (true + 0.05 * torch.randn(true.shape, generator=generator)).clamp(0, 1)
    pairs = zip(true.numpy(), pred.numpy(), strict=True)
    expected = np.mean([peak_signal_noise_ratio(t, p, data_range=1) for t, p in pairs])
    assert metrics.psnr(pred, true) == pytest.approx(expected, rel=1e-9)
    assert metrics.psnr(torch.full((1, 4, 4), 0.6), torch.full((1, 4, 4), 0.5)) == pytest.approx(20, rel=1e-5)
    assert metrics.psnr(true, true) == math.inf


def test_luma_is_that_of_skimage():
    from skimage.color import rgb2ycbcr

    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1)).double()
    expected = rgb2ycbcr(image.permute(1, 2, 0).numpy())[..., 0] / 255
    np.testing.assert_allclose(metrics.luma(image)[0].numpy(), expected, rtol=1e-9)


def test_ssim_against_skimage():
    generator = torch.Generator().manual_seed(2)
    true = torch.rand(2, 3, 24, 33, generator=generator).double()
    pred = (true + 0.1 * torch.randn(true.shape, generator=generator)).clamp(0, 1)

    def reference(a: np.ndarray, b: np.ndarray) -> float:
        return float(
            structural_similarity(
                a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0
            )
        )

    for on, a, b in (("rgb", pred, true), ("y", metrics.luma(pred), metrics.luma(true))):
        expected = np.mean([reference(p, t) for p, t in zip(a.numpy(), b.numpy(), strict=True)])
        assert metrics.ssim(pred, true, on) == pytest.approx(expected, rel=1e-9)
    assert metrics.ssim(true, true) == pytest.approx(1)


def test_sqnr_by_hand():
    true = torch.tensor([3.0, 4.0])
    assert metrics.sqnr_db(torch.tensor([3.0, 4.5]), true) == pytest.approx(20)
    assert metrics.sqnr_db(true, true) == math.inf
    assert metrics.sqnr_db(true, true * 0) == -math.inf


def test_drift_finds_the_slope_and_pools_over_resets():
    # Noise that grows by 10 dB every frame after each reset at 3 frames.
    true = torch.ones(6, 4)
    pred = true + 0.001 * torch.tensor([1.0, 10**0.5, 10, 1, 10**0.5, 10])[:, None]
    found = metrics.drift(pred, true, reset_every=3)
    assert found.sqnr == pytest.approx([60, 50, 40], abs=0.01)
    assert found.slope == pytest.approx(-10, abs=0.01)
    assert len(metrics.drift(pred, true).sqnr) == 6


def test_drift_leaves_perfect_frames_out_of_the_slope():
    true = torch.ones(3, 4)
    found = metrics.drift(true, true)
    assert found.sqnr == [math.inf] * 3
    assert found.slope == 0


def test_drift_takes_one_tensor_a_frame():
    true = torch.rand(3, 4, generator=torch.Generator().manual_seed(3)) + 1
    assert metrics.drift(iter(true * 1.1), list(true)) == metrics.drift(true * 1.1, true)


def test_eight_bit_rounds_and_clamps():
    assert metrics.eight_bit(torch.tensor([-1.0, 0.5, 2.0])).tolist() == pytest.approx([0, 128 / 255, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.mad(torch.zeros(4, 4), torch.zeros(4, 5)),
        lambda: metrics.mse(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4)),
        lambda: metrics.conn(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)),
        lambda: metrics.dtssd(torch.zeros(4), torch.zeros(4)),
        lambda: metrics.fg_mad(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2, 2)),
        lambda: metrics.psnr(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)),
        lambda: metrics.psnr(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), on="hsv"),
        lambda: metrics.ssim(torch.zeros(3, 8, 20), torch.zeros(3, 8, 20)),
        lambda: metrics.drift([], []),
        lambda: metrics.drift(torch.zeros(3, 2), torch.zeros(4, 2)),
        lambda: metrics.drift(torch.zeros(3, 2), torch.zeros(3, 2), reset_every=0),
    ],
)
def test_wrong_arguments_are_told_apart(call):
    with pytest.raises(InputError):
        call()
