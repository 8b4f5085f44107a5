"""Weight scales: the search finds what an exhaustive one finds, and never does worse than the largest magnitude."""

import pytest
import torch

from vqc.calibration.weights import weight_scales
from vqc.errors import PipelineError


def error(rows, scale, top, power):
    q = torch.clamp(torch.round(rows / scale[:, None]), -top, top) * scale[:, None]
    return ((rows - q).abs() ** power).sum(1)


@pytest.mark.parametrize(("method", "power"), [("mse", 2.4), ("omse", 2.0)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_search_finds_the_best_candidate_of_every_row(method, power, bits):
    rows, top = torch.randn(5, 40, dtype=torch.float64), 2 ** (bits - 1) - 1
    rows[0, 0] = 12.0
    found = weight_scales(rows, top, method)
    for r in range(5):
        largest = float(rows[r].abs().max()) / top
        steps = largest * (1 - 0.01 * torch.arange(80, dtype=torch.float64))
        tried = error(rows[r : r + 1].expand(80, -1), steps, top, power).tolist()
        assert error(rows[r : r + 1], found[r : r + 1], top, power).item() == pytest.approx(min(tried), rel=1e-12)
    plain = weight_scales(rows, top)
    assert torch.equal(plain, rows.abs().amax(1) / top)
    if bits == 4:
        assert found[0] < plain[0]  # the outlier is given up for the rest


def test_rows_of_zeros_and_unknown_methods():
    assert weight_scales(torch.zeros(2, 3, dtype=torch.float64), 7, "mse").tolist() == [1e-20, 1e-20]
    with pytest.raises(PipelineError, match="no weight method called 'median'"):
        weight_scales(torch.zeros(1, 1), 7, "median")
