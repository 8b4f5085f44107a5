"""RVM, RIFE and SRVGG as networks: shapes, names, recurrence, capture; with random weights."""

import pytest
import torch

from vqc.errors import InputError
from vqc.models import RIFE, RVM, SRVGG
from vqc.models._recurrence import recur
from vqc.models._refine import FastGuidedFilter
from vqc.models.rife import warp

torch.set_num_threads(1)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def rvm():
    torch.manual_seed(0)
    net = RVM().eval()
    for module in net.modules():  # statistics as a trained network has: not the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_numbers_of_parameters(rvm):
    assert count(rvm) == 3_748_633
    assert count(rvm.refiner) == 740 + 4 + 64  # convolutions, one bias, two batch norms
    assert count(RVM("fast_guided_filter", segmentation=False)) == 3_748_633 - 808 - 17
    assert count(RIFE()) == 2_277_600
    assert count(SRVGG()) == 621_424


def test_rvm_has_the_names_of_the_published_checkpoint(rvm):
    names = rvm.state_dict().keys()
    for name in (
        "backbone.features.0.0.weight",
        "backbone.features.0.1.running_var",
        "backbone.features.1.block.0.0.weight",
        "backbone.features.4.block.2.fc1.bias",
        "backbone.features.15.block.3.1.num_batches_tracked",
        "backbone.features.16.0.weight",
        "aspp.aspp1.0.weight",
        "aspp.aspp2.1.weight",
        "decoder.decode4.gru.ih.0.weight",
        "decoder.decode4.gru.hh.0.bias",
        "decoder.decode3.conv.0.weight",
        "decoder.decode1.gru.ih.0.weight",
        "decoder.decode0.conv.3.weight",
        "decoder.decode0.conv.4.running_mean",
        "project_mat.conv.bias",
        "project_seg.conv.weight",
        "refiner.box_filter.weight",
        "refiner.conv.6.bias",
    ):
        assert name in names
    assert not any("mean" in name.split(".")[1] for name in names)  # the normalisation is no part of a checkpoint


def test_rvm_batch_norms_have_their_two_eps(rvm):
    for name, module in rvm.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.eps == (1e-3 if name.startswith("backbone") else 1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (67, 49)])
def test_rvm_shapes(rvm, height, width):
    with torch.no_grad():
        fgr, pha, *states = rvm(rand(2, 3, height, width))
    assert fgr.shape == (2, 3, height, width)
    assert pha.shape == (2, 1, height, width)
    assert 0 <= fgr.min() <= fgr.max() <= 1
    for level, (state, channels) in enumerate(zip(states, (16, 20, 40, 64), strict=True), 1):
        assert state.shape == (2, channels, -(-height // 2**level), -(-width // 2**level))
        assert state.abs().max() < 1


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_rvm_clip_equals_its_steps(rvm, ratio):
    clip = rand(2, 3, 3, 66, 50)
    with torch.no_grad():
        whole = rvm(clip, downsample_ratio=ratio)
        states = [None] * 4
        for t in range(3):
            fgr, pha, *states = rvm(clip[:, t], *states, downsample_ratio=ratio)
            torch.testing.assert_close(whole[0][:, t], fgr, rtol=0, atol=2e-5)
            torch.testing.assert_close(whole[1][:, t], pha, rtol=0, atol=2e-5)
        for found, wanted in zip(whole[2:], states, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_rvm_states_matter_and_reset(rvm):
    frame = rand(1, 3, 32, 48)
    with torch.no_grad():
        first = rvm(frame)
        second = rvm(frame, *first[2:])
        zeros = rvm(frame, *(torch.zeros_like(state) for state in first[2:]))
    assert not torch.equal(first[5], second[5])
    for a, b in zip(first, zeros, strict=True):
        assert torch.equal(a, b)  # None means zeros


def test_rvm_segmentation(rvm):
    with torch.no_grad():
        logits, *states = rvm.segment(rand(1, 2, 3, 32, 48))
    assert logits.shape == (1, 2, 1, 32, 48)
    assert len(states) == 4
    with pytest.raises(InputError, match="segmentation"):
        RVM(segmentation=False).segment(rand(1, 3, 32, 32))


def test_rvm_refuses_other_shapes_and_refiners(rvm):
    with pytest.raises(InputError, match="src"):
        rvm(rand(3, 32, 32))
    with pytest.raises(InputError, match="deep_guided_filter"):
        RVM(refiner="sharp")


def test_fast_guided_filter_by_hand():
    """Against the formulas, pixel by pixel, with zero padding at the border."""
    small, fgr, pha, src = (
        rand(1, 3, 5, 6),
        rand(1, 3, 5, 6, seed=1),
        rand(1, 1, 5, 6, seed=2),
        rand(1, 3, 10, 12, seed=3),
    )
    found = torch.cat(FastGuidedFilter()(src, small, fgr, pha, rand(1, 16, 5, 6)), 1)
    x = torch.cat((small, small.mean(1, keepdim=True)), 1)[0]
    y = torch.cat((fgr, pha), 1)[0]

    def box(a):
        padded = torch.zeros(4, 7, 8)
        padded[:, 1:-1, 1:-1] = a
        return sum(padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)) / 9

    slope = (box(x * y) - box(x) * box(y)) / (box(x * x) - box(x) ** 2 + 1e-5)
    offset = box(y) - slope * box(x)
    up = torch.nn.Upsample(size=(10, 12), mode="bilinear")
    guide = torch.cat((src, src.mean(1, keepdim=True)), 1)
    torch.testing.assert_close(found, up(slope[None]) * guide + up(offset[None]), rtol=1e-4, atol=1e-4)


def test_recurrence_under_scan_equals_the_loop():
    def step(h, x):
        return 0.5 * h + x

    clip, start = rand(2, 5, 3, 4), rand(2, 3, 4, seed=1)
    eager = recur(step, start, clip)
    torch._dynamo.reset()
    compiled = torch.compile(lambda h, x: recur(step, h, x), backend="eager", fullgraph=True)(start, clip)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(eager[0][:, -1], eager[1])


def test_rvm_clip_export_does_not_unroll(rvm):
    clip = rand(1, 3, 3, 32, 48)
    length = torch.export.Dim("length", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(rvm, (clip,), dynamic_shapes={"src": {1: length}})
        scans = [node for node in program.graph.nodes if "scan" in str(node.target) and node.op == "call_function"]
        assert len(scans) == 4
        longer = rand(1, 6, 3, 32, 48, seed=5)
        for found, wanted in zip(program.module()(longer), rvm(longer), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_warp_moves_whole_pixels_and_repeats_the_border():
    image = rand(1, 2, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0], flow[:, 1] = 2, -1
    found = warp(image, flow)
    rows = torch.arange(6).sub(1).clamp(0, 5)
    columns = torch.arange(8).add(2).clamp(0, 7)
    torch.testing.assert_close(found, image[:, :, rows][:, :, :, columns], rtol=1e-4, atol=1e-5)


def test_rife_shapes_and_refusals():
    net = RIFE().eval()
    with torch.no_grad():
        assert net(rand(2, 3, 32, 64), rand(2, 3, 32, 64)).shape == (2, 3, 32, 64)
    with pytest.raises(InputError, match="32"):
        net(rand(1, 3, 40, 64), rand(1, 3, 40, 64))
    with pytest.raises(InputError):
        net(rand(1, 3, 32, 64), rand(1, 3, 32, 32))


def test_rife_flow_test_doubles_the_scales_of_large_motion_only():
    torch.manual_seed(1)
    tested, fixed, coarse = RIFE(flow_test=True).eval(), RIFE().eval(), RIFE(scales=(8, 4, 2)).eval()
    a, b = rand(1, 3, 64, 64), rand(1, 3, 64, 64, seed=1)
    for bias, like in ((0.0, fixed), (20.0, coarse)):  # 20 at an eighth of the size: a flow of 160 pixels
        tested.block0.conv1[2].bias.data.fill_(bias)
        like.load_state_dict(tested.state_dict())
        with torch.no_grad():
            assert torch.equal(tested(a, b), like(a, b))


def test_rife_without_flow_test_is_one_graph_and_with_it_is_none():
    frames = (rand(1, 3, 32, 32), rand(1, 3, 32, 32, seed=1))
    torch.export.export(RIFE().eval(), frames)
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(RIFE(flow_test=True).eval(), frames)


def test_srvgg_starts_from_the_nearest_enlargement():
    net = SRVGG().eval()
    for parameter in net.body[-1].parameters():
        torch.nn.init.zeros_(parameter)
    x = rand(1, 3, 5, 6)
    with torch.no_grad():
        assert torch.equal(net(x), x.repeat_interleave(4, 2).repeat_interleave(4, 3))
