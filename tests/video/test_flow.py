"""Flow: one convention for all sources, translations that are known, what is hidden is masked."""

import pytest
import torch

from vqc.errors import InputError
from vqc.models import load_rife
from vqc.models.rife import RIFE
from vqc.video.composites import drawn
from vqc.video.flow import DenseFlow, KnownFlow, RifeFlow, clip_flows, consistent, flow_source, inside, warp
from vqc.video.sheets import drawn_background


def shifted(size=(64, 96), by=(3, 2)):
    """Two views of one picture: what is at p in the first is at p + `by` (x, y) in the second."""
    sheet = drawn_background((size[0] + 16, size[1] + 16), 3)
    height, width = size
    return sheet[None, :, 8 : 8 + height, 8 : 8 + width], sheet[
        None, :, 8 - by[1] : 8 - by[1] + height, 8 - by[0] : 8 - by[0] + width
    ]


def constant(flow, size=(64, 96)):
    return torch.tensor(flow, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, *size)


def test_warping_the_second_frame_by_the_flow_gives_the_first():
    a, b = shifted()
    flow = constant((3.0, 2.0))
    seen = inside(flow)
    assert torch.equal(seen[0, 0, :-2, :-3], torch.ones(62, 93, dtype=torch.bool)) and not seen[0, 0, -2:].any()
    torch.testing.assert_close(warp(b, flow) * seen, a * seen, rtol=0, atol=1e-6)
    assert ((warp(b, -flow) - a) * seen).abs().max() > 0.1  # the other direction is another picture


def test_warp_between_pixels_borders_and_gradients():
    z = torch.tensor([[0.0, 1.0, 5.0]]).view(1, 1, 1, 3).requires_grad_()
    half = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    out = warp(z, half)
    assert out.flatten().tolist() == [0.5, 3.0, 5.0]  # the last looks beyond the border
    out.sum().backward()
    assert z.grad.flatten().tolist() == [0.5, 1.0, 1.5]
    with pytest.raises(InputError, match="warp got"):
        warp(z, half[:, :1])


def test_the_mask_leaves_out_what_does_not_come_back():
    forward, backward = constant((4.0, 0.0)).clone(), constant((-4.0, 0.0)).clone()
    assert torch.equal(consistent(forward, backward), inside(forward))
    backward[:, :, 10:20, 30:40] = 0  # something else is seen there in the second frame
    mask = consistent(forward, backward)[0, 0]
    assert not mask[10:20, 27:35].any() and mask[:10, :90].all() and mask[21:, :90].all()


@pytest.mark.parametrize("by", [(3, 2), (-6, 4), (0, 0)])
def test_the_classical_flow_finds_translations(by):
    a, b = shifted(by=by)
    error = (DenseFlow()(a, b) - constant(by)).norm(dim=1)
    assert error[:, 8:-8, 8:-8].mean() < 0.1
    assert (DenseFlow(finest=1)(a, b) - constant(by)).norm(dim=1)[:, 8:-8, 8:-8].mean() < 0.3


def test_the_classical_flow_where_there_is_nothing_to_see():
    flat = torch.full((2, 3, 33, 47), 0.5)
    assert torch.equal(DenseFlow()(flat, flat), torch.zeros(2, 2, 33, 47))


def test_the_classical_flow_follows_a_turning_cut_out():
    truth = drawn(5, (96, 160), seed=1)
    forward, backward, mask = clip_flows(DenseFlow(), truth.frames)
    error = (forward - truth.flow_forward).norm(dim=1, keepdim=True)
    assert truth.flow_forward.norm(dim=1).mean() > 0.4
    assert error[truth.valid & mask].mean() < 0.1
    back = (backward - truth.flow_backward).norm(dim=1, keepdim=True)
    assert back[:, :, 8:-8, 8:-8].mean() < 0.3
    with pytest.raises(InputError, match="has no flow"):
        clip_flows(DenseFlow(), truth.frames[:1])


def test_the_known_flow_knows_its_clip_and_no_other():
    truth = drawn(4, (48, 64), seed=2)
    known = flow_source("known", (truth.frames, truth.flow_forward, truth.flow_backward))
    assert isinstance(known, KnownFlow)
    forward, backward, _ = clip_flows(known, truth.frames)
    assert torch.equal(forward, truth.flow_forward) and torch.equal(backward, truth.flow_backward)
    with pytest.raises(InputError, match="not known"):
        known(truth.frames[:1], truth.frames[2:3])
    with pytest.raises(InputError, match="no flow is called"):
        flow_source("raft")


def test_the_flow_halfway_is_brought_to_the_first_frame():
    """A motion that grows with x: for F(p) = 0.1 x, m = p + F/2 stands at 1.05 x, and D(m) = 0.1 x = 0.1 m / 1.05."""
    x = torch.arange(96.0).expand(64, 96)

    def halfway(a, b):
        whole = torch.stack((x * 0.1 / 1.05, torch.zeros_like(x)))[None]
        return torch.cat((-0.3 * whole, 0.7 * whole), 1)

    found = RifeFlow(halfway)(torch.zeros(1, 3, 64, 96), torch.zeros(1, 3, 64, 96))
    torch.testing.assert_close(found[0, 0, :, :90], 0.1 * x[:, :90], rtol=0, atol=1e-4)


def test_frames_are_padded_for_the_network():
    sizes = []

    def halfway(a, b):
        sizes.append(tuple(a.shape[-2:]))
        return torch.zeros(1, 4, *a.shape[-2:])

    assert RifeFlow(halfway)(torch.zeros(1, 3, 40, 70), torch.zeros(1, 3, 40, 70)).shape == (1, 2, 40, 70)
    assert sizes == [(64, 96)]


def test_the_flow_of_rife_is_what_its_picture_is_made_of():
    torch.manual_seed(0)
    net = RIFE().eval()
    a, b = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        flow = net.halfway_flow(a, b)
        # With a mask of +-inf one warped frame is the whole picture.
        net.block2.conv2[2].bias.fill_(1e4)
        picture = net(a, b)
    torch.testing.assert_close(picture, warp(a, flow[:, :2]), rtol=0, atol=1e-4)


@pytest.mark.network
def test_rife_finds_a_translation():
    a, b = shifted((96, 128), (5, -3))
    error = (RifeFlow(load_rife().halfway_flow)(a, b) - constant((5.0, -3.0), (96, 128))).norm(dim=1)
    assert error[:, 16:-16, 16:-16].mean() < 0.7
