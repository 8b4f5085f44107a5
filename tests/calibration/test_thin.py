"""Thin calibration: what a frame adds to the ones before, counted; the note, and where it is told."""

import logging
from pathlib import Path

import pytest
import torch
from cli_helpers import make_place, vqc, vqc_json
from handmade import Hand, aten
from torch import nn

import vqc as package
from vqc.calibration import Observed, as_clips
from vqc.calibration.statistics import Statistics
from vqc.calibration.thin import FRAMES, MARK, moved, spread, thin, warnings
from vqc.files import load
from vqc.program import Program

PICTURE = torch.linspace(-1, 3, 192).view(1, 3, 8, 8)
FRAME = (torch.linspace(0, 1, 192).view(1, 3, 8, 8),)


def seen(*frames: torch.Tensor) -> Statistics:
    found = Statistics()
    for x in frames:
        found.update(x)
    return found


def layer() -> Program:
    h = Hand()
    return h.done(h(aten.conv2d, h.input("x", 1, 3, 8, 8), h.const("w", h.rand(2, 3, 1, 1)), None))


def notes(*clips: list[torch.Tensor]) -> list[str]:
    return warnings(package.apply(layer(), "observe", calibration=list(clips)))


def test_spread_is_the_range_of_all_over_that_of_one() -> None:
    assert spread(seen(PICTURE)) == 1 == spread(seen(PICTURE, PICTURE))
    assert spread(seen(PICTURE, 2 * PICTURE)) == pytest.approx(8 / 6)
    assert spread(seen(PICTURE, PICTURE + 4)) == pytest.approx(8 / 4)


def test_what_says_nothing_of_a_clip_is_left_out() -> None:
    signs = torch.ones(1, 3, 4, 4)
    signs[0, 0] = -1
    assert spread(Statistics()) is None
    assert spread(seen(signs, signs)) is None
    assert spread(seen(torch.zeros(1, 3, 4, 4))) is None
    nothing = as_clips([[PICTURE]], layer())
    assert thin([], nothing) == thin([Observed(groups={0: seen(signs)})], nothing) == ""


def test_a_frozen_frame_is_told_with_what_was_seen_and_the_way_out() -> None:
    (note,) = notes([PICTURE] * 40)
    assert note.startswith(f"{MARK}40 frames of 1 clip, each 0 % of the pictures' range from the one before; at 1 of ")
    assert "less than 10 % wider than an average frame's, so they say little more than one frame does" in note
    assert "may be cut off: give several clips, with the motion and the light of what will be played" in note
    assert "alone needs" not in note
    (two,) = notes([PICTURE] * 20, [1.05 * PICTURE] * 20)
    assert "40 frames of 2 clips" in two and "give clips that differ more" in two
    (one,) = notes([PICTURE])
    assert one.startswith(f"{MARK}1 frame of 1 clip; at 1 of 1 tensor the")


def test_one_clip_is_enough_when_it_is_long_and_several_short_ones_are() -> None:
    clip = [PICTURE * (1 + t / 40) for t in range(FRAMES)]
    assert notes(clip) == []
    (short,) = notes(clip[:-1])
    assert f"{FRAMES - 1} frames of 1 clip, each 0.45 % of the pictures' range" in short
    assert "at 0 of 1 tensor the" in short and "say little" not in short
    assert f"one clip alone needs {FRAMES} frames or more" in short
    assert notes(clip[:4], clip[-4:]) == []


def test_motion_is_within_clips_and_a_part_of_the_range() -> None:
    program, flat = layer(), torch.zeros(1, 3, 8, 8)
    assert moved(as_clips([[PICTURE], [PICTURE + 1]], program)) is None
    assert moved(as_clips([[PICTURE, PICTURE + 1], [PICTURE + 4]], program)) == pytest.approx(1 / 8)
    assert moved(as_clips([[flat, flat]], program)) == 0


def test_nothing_else_changes() -> None:
    """The note is one more note: graph and ranges are those of before, and a pipeline goes on from them."""
    before = layer()
    after = package.apply(before, "observe", calibration=[[PICTURE] * 2])
    assert len(after.history[-1].notes) == 2 and str(after) == str(before)
    assert after.nodes[0].meta["observed"].total.range == (-1, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("thin"))


def test_commands_warn_in_text_and_json(place: Path, tmp_path: Path) -> None:
    net = f"{place}/nets.py:matting"
    common = ["--recipe", "int8-all", "--calibration", place / "a.mp4", "--calibration-frames", "4"]
    play = [place / "b.mp4", *common, "--frames", "3", "--target", "reference"]
    stored = tmp_path / "m.vqc"
    said = vqc("apply", net, *common, "-o", stored)
    assert f"warning: {MARK}4 frames of 1 clip" in said
    (told,) = warnings(load(stored))
    for call in (
        ["apply", net, *common, "-o", tmp_path / "again.vqc"],
        ["compare", net, *play],
        ["run", net, *play, "-o", tmp_path / "run"],
        ["report", net, place / "b.mp4", *common, "--frames", "3", "--bisect"],
        ["compile", net, *common, "--target", "reference"],
        ["export", net, *common, "--target", "portable", "-o", tmp_path / "c"],
        ["export", stored, "--target", "portable", "-o", tmp_path / "stored"],
    ):
        assert vqc_json(*call)["warnings"] == [told], call[0]
    float_ = [net, place / "b.mp4", "--frames", "3", "--target", "reference"]
    assert vqc_json("compare", *float_)["warnings"] == []


def test_where_the_history_is_shown_and_where_nothing_hangs_on_ranges(place: Path) -> None:
    call = [f"{place}/nets.py:matting", "--recipe", "int8-all", "--calibration", place / "a.mp4",
            "--calibration-frames", "4", "--target", "reference"]  # fmt: skip
    shown = vqc("inspect", *call)
    assert f"    {MARK}4 frames" in shown and "warning:" not in shown
    assert "warning:" not in vqc("bench", *call, "--frames", "1")


def test_the_report_tells_it_first(place: Path, tmp_path: Path) -> None:
    call = ["report", f"{place}/nets.py:matting", place / "b.mp4", "--recipe", "int8-all", "--calibration",
            place / "a.mp4", "--calibration-frames", "4", "--frames", "3"]  # fmt: skip
    (told,) = notes_of_report(*call)
    assert told.startswith(MARK)
    assert f"warning: {MARK}" in vqc(*call, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count(MARK) == 1 and page.index(MARK) < page.index("Is the picture the same")


def notes_of_report(*call: str | Path) -> list[str]:
    return vqc_json(*call)["notes"]


def test_torch_compile_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    options = {"recipe": "int8-all", "calibration": [FRAME] * 2, "target": "reference"}
    with caplog.at_level(logging.WARNING, logger="vqc"), torch.no_grad():
        torch.compile(model, backend="vqc", options=options)(*FRAME)
    assert f"{MARK}2 frames of 1 clip" in caplog.text
