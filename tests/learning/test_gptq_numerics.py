"""GPTQ and its relatives against a plain column-by-column form, and how much they help on correlated inputs."""

import pytest
import torch

from vqc.calibration.weights import weight_scales
from vqc.errors import CalibrationError
from vqc.learning.gptq import compensate, nearest, output_error


def correlated(inputs, n, rho, seed):
    """Columns of an AR(1) process along the inputs: neighbours correlate by rho."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, n, generator=g, dtype=torch.float64)
    for i in range(1, inputs):
        x[i] = rho * x[i - 1] + (1 - rho**2) ** 0.5 * x[i]
    return x


def case(rows=32, inputs=144, n=4096, rho=0.9, bits=4, groups=1):
    w = torch.randn(groups, rows, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    top = 2 ** (bits - 1) - 1
    scale = weight_scales(w.flatten(0, 1), top, "mse").view(groups, rows, 1)
    x = [torch.stack([correlated(inputs, n, rho, s + 10 * g) for g in range(groups)]) for s in (1, 2)]
    learned, held = (v @ v.mT / n for v in x)
    return w, scale, top, learned, held


def textbook(w, h, scale, top, damp=0.01, beta=None):
    """Algorithm 1 of the paper for one group, column by column over the whole inverse; beta: FOEM's next column."""
    h = h + torch.eye(len(h), dtype=h.dtype) * damp * h.diagonal().mean()
    t = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w, original, q = w.clone(), w.clone(), torch.zeros_like(w)
    for j in range(w.shape[1]):
        q[:, j] = torch.clamp(torch.round(w[:, j] / scale[:, 0]), -top, top)
        lost = w[:, j] - q[:, j] * scale[:, 0]
        e = (lost if beta is None else lost - beta * (w[:, j] - original[:, j])) / t[j, j]
        w[:, j:] -= torch.outer(e, t[j, j:])
        if beta is not None and j + 1 < w.shape[1]:
            w[:, j + 1] -= beta * (w[:, j + 1] - original[:, j + 1])
    return q


def left_over(integers, w, scale, hessian):
    return float(output_error(integers * scale - w, hessian).sum())


@pytest.mark.parametrize(("bits", "beta", "less"), [(4, 0.0, 0.7), (3, 0.0, 0.7), (4, 0.1, 0.7), (3, 0.1, 0.5)])
@pytest.mark.parametrize("order", ["natural", "act"])
def test_correlated_inputs_lose_far_less(bits, beta, less, order):
    w, scale, top, learned, held = case(bits=bits)
    plain = left_over(nearest(w, scale, top), w, scale, held)
    got = compensate(w, learned, scale, top, order=order, beta=beta)
    assert got.integers.abs().max() <= top and torch.equal(got.integers, got.integers.round())
    assert left_over(got.integers, w, scale, held) < (1 - less) * plain


def test_white_inputs_gain_nothing():
    """Without correlation nothing beats nearest rounding; the error measured must not pretend otherwise."""
    w, scale, top, learned, held = case(rho=0.0)
    plain = left_over(nearest(w, scale, top), w, scale, held)
    assert plain < left_over(compensate(w, learned, scale, top).integers, w, scale, held) < 1.1 * plain


def test_beta_of_zero_is_gptq_to_the_bit():
    w, scale, top, learned, _ = case(inputs=40, bits=3)
    want = textbook(w[0], learned[0], scale[0], top)
    got = compensate(w, learned, scale, top, beta=0.0).integers[0]
    assert torch.equal(got, want)
    assert not torch.equal(compensate(w, learned, scale, top, beta=0.1).integers[0], want)
    assert torch.equal(compensate(w, learned, scale, top, beta=0.1).integers[0],
                       textbook(w[0], learned[0], scale[0], top, beta=0.1))  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"alpha": 0.5}, {"order": "act"}])
def test_blocks_of_columns_change_nothing(options):
    w, scale, top, learned, _ = case(rows=8, inputs=50, bits=3)
    shift = 0.1 * learned + 0.05 * torch.randn(learned.shape, dtype=torch.float64)
    results = [compensate(w, learned, scale, top, shift=shift, block=b, **options).integers for b in (1, 7, 50, 128)]
    assert all(torch.equal(results[0], r) for r in results[1:])


def test_groups_are_problems_side_by_side():
    w, scale, top, learned, _ = case(rows=3, inputs=9, groups=4)
    for options in ({}, {"order": "act", "beta": 0.1}):
        together = compensate(w, learned, scale, top, **options).integers
        for g in range(4):
            alone = compensate(w[g : g + 1], learned[g : g + 1], scale[g : g + 1], top, **options).integers
            assert torch.equal(together[g : g + 1], alone)


def test_scales_of_groups_of_inputs_move_with_their_columns():
    """Every column has its own scale; rounding inputs of most energy first must not mix them up."""
    w, scale, top, learned, held = case(inputs=32)
    w[:, :, 16:] *= 30
    energy = torch.linspace(0.2, 3, 32, dtype=torch.float64)
    learned, held = (h * energy[:, None] * energy for h in (learned, held))
    scales = weight_scales(w.reshape(-1, 16), top).view(1, 32, 2).repeat_interleave(16, 2)
    plain = left_over(nearest(w, scales, top), w, scales, held)
    for order in ("natural", "act"):
        got = compensate(w, learned, scales, top, order=order).integers
        assert left_over(got, w, scales, held) < 0.5 * plain


def test_the_asymmetric_term_aims_at_the_float_inputs():
    """Inputs that a quantized prefix bends: GPTAQ's result is nearer to the float layer on float inputs."""
    torch.manual_seed(3)
    w, scale, top, _, _ = case(inputs=48)
    bend = torch.eye(48, dtype=torch.float64) + 0.03 * torch.randn(48, 48, dtype=torch.float64)
    (f, f_held) = (correlated(48, 4096, 0.9, s)[None] for s in (1, 2))
    x, x_held = bend @ f, bend @ f_held
    learned, shift = x @ x.mT / 4096, (f - x) @ x.mT / 4096

    def error(alpha):
        q = compensate(w, learned, scale, top, alpha=alpha, shift=shift).integers
        return float((q * scale @ x_held - w @ f_held).square().mean())

    errors = [error(a) for a in (0.0, 0.25, 0.5)]
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.9 * errors[1]


def test_inputs_that_are_always_zero_are_rounded_to_nearest():
    w, scale, top, learned, held = case(inputs=24)
    learned = learned.clone()
    learned[:, 5], learned[:, :, 5] = 0, 0
    got = compensate(w, learned, scale, top)
    assert torch.equal(got.integers[..., 5], nearest(w, scale, top)[..., 5])
    assert not torch.equal(got.integers, nearest(w, scale, top)) and got.damp == 0.01


def test_inputs_that_depend_on_each_other_get_more_damping():
    w, scale, top, learned, _ = case(inputs=24)
    doubled = learned.clone()
    doubled[:, 1], doubled[:, :, 1] = doubled[:, 0], doubled[:, :, 0]
    doubled[:, 1, 1] = doubled[:, 0, 0] * 0.98  # rounding of sums made it a bit indefinite
    got = compensate(w, doubled, scale, top, damp=1e-4)
    assert got.damp > 1e-4 and bool(torch.isfinite(got.integers).all())
    with pytest.raises(CalibrationError, match="no Cholesky factor"):
        compensate(w, -learned * 1e9 + 2e9 * torch.diag_embed(learned.diagonal(dim1=1, dim2=2)), scale, top, damp=1e-9)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        compensate(w, learned * torch.nan, scale, top)


def test_saturation_is_counted():
    w, scale, top, learned, _ = case(inputs=24)
    q = compensate(w, learned, scale * 0.3, top)
    assert q.saturated > 0.1 * w.numel()
    assert compensate(w, learned, scale * 10, top).saturated == 0
