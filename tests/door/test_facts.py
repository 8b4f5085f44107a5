"""What a graph does with its inputs, found by running it on fake tensors."""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from vqc.door.facts import Facts, plain, study


def facts(fn, *args) -> Facts:
    return study(fx.symbolic_trace(fn), args)


def test_a_pure_graph_writes_nothing():
    def pure(x, w):
        y = x.clone()
        y.add_(1)
        return F.conv2d(y, w)

    assert facts(pure, torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)) == Facts()


def test_writes_of_every_kind_are_seen():
    def writes(a, b, c, d, e):
        a.copy_(e)
        b[0:1].mul_(2)
        torch.add(e, 1, out=c)
        d.detach().zero_()
        return e + 1

    assert facts(writes, *(torch.rand(2, 2) for _ in range(5))).written == {0, 1, 2, 3}


def test_batch_norm_writes_its_statistics_only_while_training():
    def norm(x, mean, var, training):
        return F.batch_norm(x, mean, var, training=training)

    x, mean, var = torch.rand(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    assert facts(lambda x, m, v: norm(x, m, v, True), x, mean, var).written == {1, 2}
    assert facts(lambda x, m, v: norm(x, m, v, False), x, mean, var).written == set()
    with torch.inference_mode():
        assert facts(lambda x, m, v: norm(x, m, v, True), x, mean, var).written == {1, 2}


def test_what_depends_on_gradients():
    x, w = torch.rand(3), torch.rand(3, requires_grad=True)
    assert facts(lambda x, w: x * w, x, w).differentiable
    assert not facts(lambda x, w: x * w.detach(), x, w).differentiable
    assert not facts(lambda x, w: x * 2, x, w).differentiable
    with torch.no_grad():
        assert not facts(lambda x, w: x * w, x, w).differentiable
    into = torch.rand(3)
    assert facts(lambda into, w: (into.add_(w), 1)[1], into, w).differentiable


def test_shared_memory_spreads_a_write():
    base = torch.rand(4)
    found = facts(lambda a, b, c: (a.add_(1), b + c)[1], base, base[1:3].detach(), torch.rand(2))
    assert (found.written, found.aliased) == ({0, 1}, True)
    apart = facts(lambda a, b, c: (a.add_(1), b + c)[1], base.clone(), base[1:3], torch.rand(2))
    assert (apart.written, apart.aliased) == ({0}, False)


def test_a_branch_on_the_data_makes_nothing_known():
    def pools(x, size):
        return F.avg_pool1d(x, size.item())

    assert facts(lambda x: torch.nonzero(x), torch.rand(3)).unknown == ""
    assert facts(lambda x, t: x * t.item(), torch.rand(3), torch.tensor(0.5)).unknown == ""
    assert "depends on the data" in facts(pools, torch.rand(1, 2, 8), torch.tensor(2)).unknown


def test_strange_tensors_make_nothing_known():
    sparse = torch.rand(3, 3).to_sparse()
    assert "sparse" in facts(lambda x: x * 2, sparse).unknown
    assert not plain(sparse)
    assert not plain(torch.rand(2, device="meta"))
    assert not plain(3)


def test_nothing_real_is_touched():
    x, before = torch.rand(3), torch.get_rng_state()
    kept, version = x.clone(), x._version
    facts(lambda x: x.add_(torch.rand_like(x)), x)
    assert torch.equal(x, kept)
    assert x._version == version
    assert torch.equal(torch.get_rng_state(), before)
