"""Range rules that clip: constants that minimise what they should, densities told apart, bins dropped by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import erf

from vqc.calibration import Statistics, find_range
from vqc.calibration.clipping import GAUSS, LAPLACE
from vqc.calibration.search import errors


def laplace(a, bits):
    return 2 * np.exp(-a) + a * a / (3 * 4.0**bits)


def gauss(a, bits):
    tail = (a * a + 1) * (1 - erf(a / np.sqrt(2))) - np.sqrt(2 / np.pi) * a * np.exp(-a * a / 2)
    return tail + a * a / (3 * 4.0**bits)


@pytest.mark.parametrize("bits", range(1, 10))
def test_constants_minimise_the_expected_error(bits):
    for table, error, most in ((LAPLACE, laplace, 30), (GAUSS, gauss, 12)):
        best = minimize_scalar(error, args=(bits,), bounds=(0.1, most), method="bounded", options={"xatol": 1e-9}).x
        assert table[bits - 1] == pytest.approx(best, abs=6e-5)


def drawn(kind, n=1 << 16):
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    if kind == "laplace":
        return -torch.sign(u) * torch.log1p(-2 * u.abs())
    return torch.special.ndtri(u + 0.5)


def seen(x):
    s = Statistics()
    s.update(x.float().view(1, 1, -1, 256))
    return s


@pytest.mark.parametrize(("kind", "table"), [("laplace", LAPLACE), ("gauss", GAUSS)])
def test_the_density_is_told_and_scaled(kind, table):
    s = seen(drawn(kind) * 3 + 0.5)
    low, high = find_range(s, "aciq", 4)
    assert (high + low) / 2 == pytest.approx(0.5, abs=0.1)
    assert (high - low) / 2 == pytest.approx(3 * table[3], rel=0.02)
    ends = np.array([[low, high], find_range(s, "minmax", 4)])
    clipped, whole = errors(s, ends[:, 0], ends[:, 1], 4)
    assert clipped < 0.6 * whole


def test_what_is_never_negative_gives_all_levels_to_its_half():
    s = seen(drawn("laplace").clamp_min(0) * 3)
    low, high = find_range(s, "aciq", 4)
    assert low == 0 and high == pytest.approx(3 * LAPLACE[4], rel=0.02)
    tried = np.linspace(0.3, 1.5, 25) * high
    best = tried[np.argmin(errors(s, np.zeros(25), tried, 4))]
    assert abs(best - high) < 0.15 * high


def test_aciq_never_goes_beyond_what_was_seen():
    s = seen(torch.linspace(-0.1, 1, 1 << 16))
    assert find_range(s, "aciq", 8) == pytest.approx((-0.1, 1.0), abs=1e-6)
    assert find_range(seen(torch.zeros(1 << 16)), "aciq", 4) == (0.0, 0.0)


def test_omse_is_the_best_shrunk_range_for_squares():
    x = drawn("laplace") * 2
    s = seen(x)
    low, high = s.range
    shrinks = 1 - 0.01 * np.arange(80)
    found = errors(s, low * shrinks, high * shrinks, 4)
    assert find_range(s, "omse", 4) == pytest.approx((low * shrinks[found.argmin()], high * shrinks[found.argmin()]))
    assert find_range(s, "omse", 4) != find_range(s, "mse", 4)


def test_dual_clipping_by_hand():
    """Ends of one value each go, the thinner side first, while no more than the share given up is lost."""
    x = torch.cat([torch.linspace(0, 1, 65530), torch.tensor([-9.0, -8.0, 30.0, 31.0, 31.5, 40.0])])
    s = seen(x)
    width = 2.0**s.exponent
    low, high = find_range(s, "dbdc", 4)  # 32 of 65536 may go: all six, then only thin bins
    assert -2 * width <= low <= 0 and 1 - 2 * width <= high <= 1 + 2 * width
    assert find_range(s, "dbdc", 8) == pytest.approx((-9.0, 40.0))  # 0.65 of a value: none
    far = seen(torch.cat([torch.linspace(0, 1, 65500), torch.full((26,), 5.0), torch.full((10,), -5.0)]))
    low, high = find_range(far, "dbdc", 4)  # ten go on the thinner side; the 26 others are too many
    assert abs(low) <= 2.0**far.exponent and high == pytest.approx(5.0, abs=2.0**far.exponent)
