"""Composites: the truth that comes with them is the truth."""

import pytest
import torch

from vqc.errors import InputError
from vqc.video.composites import Composite, compose, drawn, lifted, placed, smooth_motion, smooth_pan
from vqc.video.flow import inside, warp
from vqc.video.sheets import drawn_background, drawn_portrait, smooth_noise

SIZE = (96, 160)


@pytest.fixture(scope="module")
def clip() -> Composite:
    return drawn(6, SIZE, seed=1)


def shift(x: float, y: float, frames: int = 3) -> torch.Tensor:
    """Maps [T,2,3] of a sheet that moves by (x, y) a frame."""
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(frames, 1, 1)
    maps[:, 0, 2], maps[:, 1, 2] = x * torch.arange(frames), y * torch.arange(frames)
    return maps


def test_shapes_and_ranges(clip):
    assert clip.frames.shape == clip.foreground.shape == (6, 3, *SIZE) and clip.alpha.shape == (6, 1, *SIZE)
    assert clip.flow_forward.shape == clip.flow_backward.shape == (5, 2, *SIZE)
    assert clip.valid.shape == clip.matte_valid.shape == (5, 1, *SIZE)
    for x in (clip.frames, clip.alpha, clip.foreground):
        assert x.dtype == torch.float32 and 0 <= x.min() < x.max() <= 1


def test_the_same_seed_gives_the_same_bits_and_another_another_clip(clip):
    again, other = drawn(6, SIZE, seed=1), drawn(6, SIZE, seed=2)
    for name in ("frames", "alpha", "foreground", "flow_forward", "flow_backward", "valid", "matte_valid"):
        assert torch.equal(getattr(clip, name), getattr(again, name))
        assert not torch.equal(getattr(clip, name), getattr(other, name))


def test_a_frame_is_made_of_its_layers(clip):
    """The same alpha, over two backgrounds: their difference is the background's share, alone."""
    white = drawn(6, SIZE, seed=1, background=torch.ones(3, *SIZE))
    black = drawn(6, SIZE, seed=1, background=torch.zeros(3, *SIZE))
    assert torch.equal(white.alpha, clip.alpha) and torch.equal(white.foreground, clip.foreground)
    torch.testing.assert_close(white.frames - black.frames, (1 - clip.alpha).expand_as(clip.frames), rtol=0, atol=1e-6)
    torch.testing.assert_close(black.frames, clip.foreground * clip.alpha, rtol=0, atol=1e-6)


def test_the_next_frame_warped_is_this_frame(clip):
    """Both are sampled from sheets, so only what bilinear sampling blurs is left; without the flow it is much more."""
    error = (warp(clip.frames[1:], clip.flow_forward) - clip.frames[:-1]).abs().mean(1, keepdim=True)
    still = (clip.frames[1:] - clip.frames[:-1]).abs().mean(1, keepdim=True)
    assert clip.valid.float().mean() > 0.75
    assert error[clip.valid].mean() < 0.005 and error[clip.valid].max() < 0.15
    assert error[clip.valid].mean() < 0.3 * still[clip.valid].mean()
    back = (warp(clip.frames[:-1], clip.flow_backward) - clip.frames[1:]).abs().mean(1, keepdim=True)
    assert back[inside(clip.flow_backward)].median() < 0.005


def test_the_matte_moves_along_the_flow_at_its_edges_too(clip):
    error = (warp(clip.alpha[1:], clip.flow_forward) - clip.alpha[:-1]).abs()
    edge = (clip.alpha[:-1] > 0.05) & (clip.alpha[:-1] < 0.95)
    assert edge.float().mean() > 0.03 and (edge & clip.matte_valid).sum() > 0.9 * edge.sum()
    assert not (edge & clip.valid).any()
    assert error[clip.matte_valid].mean() < 0.002
    assert error[edge & clip.matte_valid].mean() < 0.3 * (clip.alpha[1:] - clip.alpha[:-1]).abs()[edge].mean()


def test_whole_pixels_are_exact_and_occlusion_is_what_gets_covered():
    """A hard square moves 4 right a frame over a background that moves 1 left and 2 down."""
    square = torch.zeros(4, *SIZE)
    square[:3], square[3, 40:60, 20:50] = smooth_noise((3, *SIZE), torch.Generator().manual_seed(0), 2.0).sigmoid(), 1
    pan = shift(-1, 2)
    pan[:, 0, 2] -= 4
    pan[:, 1, 2] -= 8
    made = compose(square, drawn_background((SIZE[0] + 16, SIZE[1] + 16), 0), shift(4, 0), pan, SIZE)
    flow = made.flow_forward[0]
    assert flow[:, 50, 30].tolist() == [4, 0] and flow[:, 10, 10].tolist() == [-1, 2]
    assert made.flow_backward[0][:, 50, 30].tolist() == [-4, 0]
    error = (warp(made.frames[1:], made.flow_forward) - made.frames[:-1]).abs().amax(1, keepdim=True)
    assert error[made.valid].max() < 1e-5
    hidden = ~made.valid[0, 0] & inside(made.flow_forward)[0, 0]
    # Of the background's pixels, those are covered that land, one to the left and two down, on the square's next place.
    wanted = torch.zeros(SIZE, dtype=torch.bool)
    wanted[38:58, 25:55] = True
    wanted[40:60, 20:50] = False
    assert torch.equal(hidden, wanted)
    assert error[0, 0][hidden].mean() > 0.05


def test_layers_that_move_by_themselves_are_not_called_known():
    behind = torch.rand(3, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    made = compose(drawn_portrait((60, 64), 0), behind, shift(1, 0), shift(0, 0), (40, 64))
    assert made.valid.any() and not (made.valid & (made.alpha[:-1] < 0.5)).any()
    assert (made.matte_valid & (made.alpha[:-1] == 0)).any()  # nobody is nobody, whatever moves behind


def test_a_person_is_lifted_out_of_the_last_frame():
    clip = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    seen = []

    def matte(frame):
        seen.append(frame)
        return frame * 0.5, frame[:, :1]

    cutout = lifted(matte, clip)
    assert [x.shape[0] for x in seen] == [1, 1, 1] and cutout.shape == (4, 36, 32)
    assert torch.equal(cutout[:3, :24], clip[2] * 0.5) and torch.equal(cutout[3, :24], clip[2, 0])
    assert torch.equal(cutout[:, 30], cutout[:, 23])
    assert placed(cutout, 4, (24, 32), seed=3, about="lifted").about == "lifted"
    with pytest.raises(InputError, match="nobody is found"):
        lifted(lambda f: (f, torch.zeros_like(f[:, :1])), clip)
    with pytest.raises(InputError, match="empty clip"):
        lifted(matte, clip[:0])


def test_motions_are_smooth_and_the_background_always_covers():
    frames, sheet = 200, (110, 180)
    pan = smooth_pan(frames, 4, sheet=sheet, size=SIZE)
    assert pan[:, :, :2].equal(torch.eye(2, dtype=torch.float64).expand(frames, 2, 2))
    assert -(sheet[1] - SIZE[1]) - 1e-6 <= pan[:, 0, 2].min() and pan[:, :, 2].max() <= 1e-6
    motion = smooth_motion(frames, 4, sheet=SIZE, size=SIZE, anchor=(0.5, 0.5), at=(0.5, 0.5))
    speed = (motion[1:] - motion[:-1])[:, :, 2]
    bend = speed[1:] - speed[:-1]
    assert speed.abs().max() > 0.5 and bend.abs().max() < 0.3 * speed.abs().max()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cutout": torch.zeros(3, 8, 8)}, "expected"),
        ({"background": torch.zeros(2, 3, 40, 64)}, "expected"),
        ({"background": torch.zeros(3, 20, 64)}, "does not cover"),
        ({"motion": shift(1, 0, 1), "pan": shift(0, 0, 1)}, "motions of shape"),
    ],
)
def test_what_does_not_fit(change, said):
    given = {"cutout": torch.zeros(4, 40, 64), "background": torch.zeros(3, 40, 64), "motion": shift(1, 0),
             "pan": shift(0, 0)} | change  # fmt: skip
    with pytest.raises(InputError) as caught:
        compose(**given, size=(40, 64))
    assert said in str(caught.value)


def test_sizes_that_do_not_cover_and_motions_of_one_frame():
    with pytest.raises(InputError, match="does not cover"):
        smooth_pan(4, 0, sheet=(90, 200), size=SIZE)
    with pytest.raises(InputError, match="a motion of 1 frames"):
        drawn(1, SIZE)
