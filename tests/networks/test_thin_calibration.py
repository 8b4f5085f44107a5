"""What tells thin calibration from good, on networks with real weights and real clips."""

import pytest
import torch

import vqc
from vqc.calibration.thin import MARK, warnings
from vqc.models import MODELS
from vqc.video import clip, read_clip

pytestmark = pytest.mark.network
CLIPS = ("pexels", "bikes", "carphone")


@pytest.mark.parametrize(("name", "size"), [("bivm", (96, 160)), ("rife", (64, 96)), ("srvgg", (48, 64))])
def test_a_frozen_frame_and_a_short_clip_are_thin_and_three_clips_are_not(name: str, size: tuple[int, int]) -> None:
    entry = MODELS[name]
    pictures = [read_clip(clip(c), frames=14, size=size) for c in CLIPS]

    def steps(frames: torch.Tensor, count: int) -> list[tuple[torch.Tensor, ...]]:
        return [entry.step_inputs(frames, t) for t in range(count)]

    first = (*steps(pictures[0], 1)[0], *(None for _ in entry.states))
    program = vqc.capture(entry.load(), first, states=entry.states or None, known_ranges=entry.known_ranges)

    def told(*clips: list[tuple[torch.Tensor, ...]]) -> list[str]:
        return warnings(vqc.apply(program, "fold-bn,observe", calibration=list(clips)))

    frozen = pictures[1][:1].expand(14, -1, -1, -1)
    for thin in (told(steps(frozen, 12)), told(steps(pictures[0], 12)), told(*[steps(frozen, 6)] * 3)):
        assert len(thin) == 1 and thin[0].startswith(MARK) and "little more than one frame" in thin[0]
    assert told(*(steps(p, 4) for p in pictures)) == []
