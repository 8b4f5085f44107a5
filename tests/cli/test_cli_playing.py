"""A clip played frame by frame is the clip played whole: inputs, pictures, strip; networks that look ahead included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqc import video
from vqc.cli.playing import chosen, played, strip, windows
from vqc.errors import InputError, VideoError
from vqc.report.network import Network
from vqc.report.session import Playback, eager_engine, play, strip_rows


class Between(nn.Module):
    """The mean of two frames, brightened by how many there were."""

    def forward(self, a: Tensor, b: Tensor, n: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n = torch.zeros(1, 1, 1, 1) if n is None else n + 0.05
        return (a + b) / 2 + n, n


class Matte(nn.Module):
    """The last of a window of frames, and its red as a matte."""

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w[:, -1], w[:, -1, :1]


BETWEEN = Network("between", Between().eval(), (torch.zeros(1, 3, 8, 12),) * 2, {"n": 1})
MATTE = Network("matte", Matte().eval(), (torch.zeros(1, 3, 3, 8, 12),), {}, 1, 0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = torch.rand(9, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return video.write_video(tmp_path_factory.mktemp("playing") / "a.mp4", frames, 12)


def silent(text: str, done: int, total: int) -> None:
    return None


@pytest.mark.parametrize("net", [BETWEEN, MATTE], ids=lambda n: n.name)
@pytest.mark.parametrize(("frames", "start"), [(0, 0), (6, 2)])
def test_pictures_and_strip_are_those_of_the_clip_played_whole(path: Path, net: Network, frames: int, start: int
                                                               ) -> None:  # fmt: skip
    clip = video.read_clip(path, frames or None, net.size, start)
    whole = play(eager_engine(net, "whole"), net, clip)
    other = Playback("other", 0, [p * 0.9 for p in whole.pictures])
    board = Playback("frame by frame", 0)
    engine = eager_engine(net)
    found = list(played(engine, net, windows(net, path, frames, start), silent, 0, "", board))
    assert len(found) == len(whole.pictures) == len(clip) - net.reach
    assert torch.equal(board.clip, whole.clip) and len(board.times) == len(found)
    shown = whole.pictures if net is BETWEEN else [
        video.composite(c, p) for c, p in zip(whole.foregrounds, whole.pictures, strict=True)
    ]  # fmt: skip
    assert all(torch.equal(a, b) for (_, a), b in zip(found, shown, strict=True))
    looked = [window for t, (window, _) in enumerate(found) if t in chosen(len(found))]
    rows = strip_rows(clip, board, other, offset=net.reach // 2)
    assert torch.equal(strip(net, looked, board, other), video.strip(rows))
    again = Playback("without pictures", 0)
    assert [torch.equal(a, b) for (_, a), b in zip(
        played(engine, net, windows(net, path, frames, start), silent, 0, "", again, keep=False), shown, strict=True
    )] == [True] * len(found)  # fmt: skip
    assert again.pictures == [] and again.foregrounds == [] and len(again.times) == len(found)


@pytest.mark.parametrize(("frames", "start", "why"), [(10, 0, "9 are there"), (0, 9, "0 are there"),
                                                      (0, 8, "1 are there")])  # fmt: skip
def test_a_clip_that_is_too_short_is_told(path: Path, frames: int, start: int, why: str) -> None:
    with pytest.raises(VideoError, match="too short") as told:
        list(windows(MATTE, path, frames, start))
    assert why in told.value.why


def test_too_few_frames_for_one_step_are_told_before_any_is_read() -> None:
    with pytest.raises(InputError, match="a step looks at 3 frames"):
        list(windows(MATTE, Path("nowhere.mp4"), 2, 0))
