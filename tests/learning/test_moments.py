"""Moments of paired results, and the affine map that matches them."""

import torch

from vqc.learning.moments import ChannelStats, PairedMoments, match_moments


def pairs():
    f = torch.randn(2, 3, 5, 7) * torch.tensor([1.0, 20.0, 0.01]).view(1, 3, 1, 1) + 3
    return f, f * 0.7 + 0.2 + torch.randn(2, 3, 5, 7) * 0.01


def test_matched_results_have_the_float_ones_mean_and_variance():
    seen = PairedMoments()
    batches = [pairs() for _ in range(3)]
    for f, q in batches:
        seen.update(f, q)
    gamma, beta = match_moments(seen.stats("f"), seen.stats("q"))
    f, q = (torch.cat([b[i] for b in batches]).double().transpose(0, 1).flatten(1) for i in (0, 1))
    mended = gamma[:, None] * q + beta[:, None]
    torch.testing.assert_close(mended.mean(1), f.mean(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mended.var(1), f.var(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(seen.error(), (f - q).square().mean(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(seen.error(gamma, beta), (f - mended).square().mean(1), rtol=1e-4, atol=1e-9)


def test_channels_that_do_not_vary_keep_their_factor():
    flat = ChannelStats(torch.tensor([2.0, 2.0, 0.0]).double(), torch.tensor([0.0, 1.0, 0.0]).double())
    other = ChannelStats(torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([1.0, 0.0, 0.0]).double())
    gamma, beta = match_moments(flat, other)
    assert gamma.tolist() == [1, 1, 1] and beta.tolist() == [1, 1, 0]


def test_channels_of_the_last_dimension():
    f, q = torch.randn(4, 6), torch.randn(4, 6)
    seen = PairedMoments(axis=1)
    seen.update(f, q)
    torch.testing.assert_close(seen.mean("f"), f.double().mean(0))
    assert seen.count == 4
