"""Training clips: reproducible, in range, composed as they say, and never from what is held out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vqc.errors import CalibrationError
from vqc.train.data import Footage, Material, Sampler, _sampling, bytes_of, cutout_of, empty_parts, footage


def matte(frame: Tensor, *states: Tensor | None) -> tuple[Tensor, ...]:
    """A teacher that finds bright red, and counts its frames in its state."""
    seen = states[0] if states and states[0] is not None else torch.zeros(1)
    alpha = (frame[:, :1] > 0.8).float() * (frame[:, 1:2] < 0.5)
    return frame, alpha, seen + 1, seen, seen, seen


def street(frames: int = 40, height: int = 48, width: int = 64) -> Tensor:
    """A red square that walks from left to right over gray noise."""
    clip = torch.rand(frames, 1, height, width, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1) * 0.6
    clip = clip.clone()
    for t in range(frames):
        x = 2 + t
        clip[t, :, 16:40, x : x + 16] = torch.tensor([1.0, 0.1, 0.1]).view(3, 1, 1)
    return clip


def material() -> Material:
    clip = street()
    return Material([footage(matte, clip, [(10, 20)], margin=2)], [cutout_of(matte, clip[20], looks=2)],
                    [bytes_of(clip[:, :, :12].repeat(1, 1, 4, 1))])  # fmt: skip


def test_samples_have_the_same_bits_for_the_same_seed_and_number() -> None:
    sampler = Sampler(material(), 5, (32, 48), drawn=0.3)
    for number in range(12):
        a, b = sampler.sample(3, number), sampler.sample(3, number)
        assert torch.equal(a.frames, b.frames) and torch.equal(a.alpha, b.alpha)
        assert a.frames.shape == (5, 3, 32, 48) and a.alpha.shape == (5, 1, 32, 48)
        assert a.foreground.shape == a.frames.shape
        for x in (a.frames, a.foreground, a.alpha):
            assert float(x.min()) >= 0 and float(x.max()) <= 1
    one, two = sampler.sample(3, 0), sampler.sample(3, 1)
    assert not torch.equal(one.frames, two.frames)
    batch = sampler.batch(3, 0, 2)
    assert torch.equal(batch.frames[0], one.frames) and torch.equal(batch.frames[1], two.frames)


def test_placed_people_are_composed_as_their_alpha_says() -> None:
    """Away from noise and blur the frame is the foreground where alpha is 1."""
    sampler = Sampler(Material([], [cutout_of(matte, street()[20], looks=1)], []), 3, (32, 48), drawn=0.0)
    found = 0
    for number in range(20):
        s = sampler.sample(0, number)
        solid = (s.alpha > 0.999).expand_as(s.frames)
        if bool(solid.any()):
            found += float((s.frames - s.foreground)[solid].abs().mean()) < 1e-6
    assert found >= 10  # the others have noise or blur


def test_held_out_frames_are_never_given_out() -> None:
    """Frames carry their number as their brightness; the sampler is looked at before colours are changed."""
    count = 60
    numbers = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    clip = Footage(numbers.expand(-1, 3, 32, 48).clone(), numbers.expand(-1, 3, 32, 48).clone(),
                   torch.full((count, 1, 32, 48), 255, dtype=torch.uint8), ((0, 18), (32, count)))  # fmt: skip
    sampler = Sampler(Material([clip], [], []), 8, (32, 48), drawn=0.0)
    seen = set()
    for number in range(200):
        made = sampler._real(torch.Generator().manual_seed(number), over=False)
        seen |= {round(float(v) * 255) for v in made.frames.mean((1, 2, 3))}
    assert not seen & set(range(18, 32))
    assert len(seen) > 40  # and nearly all others are


def test_footage_runs_its_teacher_with_the_state_carried() -> None:
    counted = []

    def teacher(frame: Tensor, *states: Tensor | None) -> tuple[Tensor, ...]:
        fgr, pha, *new = matte(frame, *states)
        counted.append(float(new[0]))
        return fgr, pha, *new

    made = footage(teacher, street(6), [(2, 3)], margin=1)
    assert counted == [1, 2, 3, 4, 5, 6]
    assert made.stretches == ((0, 1), (4, 6))


def test_empty_parts_hold_nobody() -> None:
    clip = footage(matte, street())
    parts = empty_parts(clip, at_least=4)
    assert parts
    for part in parts:
        assert not bool(((part[:, 0] > 250) & (part[:, 1] < 60)).any())


@pytest.mark.parametrize("flip", [False, True])
def test_a_sheet_is_seen_where_it_is_put(flip: bool) -> None:
    """A sheet with one bright pixel, at scale 2: its centre comes to the place asked for, sides turned by `flip`."""
    sheet = torch.zeros(1, 1, 21, 31)
    sheet[..., 10, 20] = 1  # five to the right of the centre
    theta = _sampling(torch.zeros(1, 4), 2.0, (40.5, 30.5), (21, 31), (60, 80), flip)
    grid = torch.nn.functional.affine_grid(theta, [1, 1, 60, 80], align_corners=False)
    seen = torch.nn.functional.grid_sample(sheet, grid, align_corners=False)[0, 0]
    y, x = divmod(int(seen.argmax()), 80)
    assert abs(y - 30) <= 1 and abs(x - (30 if flip else 50)) <= 1


def test_a_turn_is_a_turn() -> None:
    """After a quarter turn what was to the right of the centre is above or below it, as far away."""
    sheet = torch.zeros(1, 1, 41, 41)
    sheet[..., 20, 30] = 1
    theta = _sampling(torch.tensor([[math.pi / 2, 0, 0, 0]]), 1.0, (40.5, 30.5), (41, 41), (60, 80), False)
    grid = torch.nn.functional.affine_grid(theta, [1, 1, 60, 80], align_corners=False)
    y, x = divmod(int(torch.nn.functional.grid_sample(sheet, grid, align_corners=False)[0, 0].argmax()), 80)
    assert abs(x - 40) <= 1 and abs(abs(y - 30) - 10) <= 1


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="nothing to train on"):
        Sampler(Material(), 4, (32, 32), drawn=0.0)
