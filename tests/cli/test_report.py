"""Networks by name, engines with state, playbacks and tables."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from vqc.errors import ArtifactError, InputError
from vqc.report.network import Network
from vqc.report.session import Playback, compiled_engine, eager_engine, frame_rows, play, rows, strip_rows
from vqc.report.tables import folder, markdown, write_text


class Counter(nn.Module):
    """Shows how many frames it saw: its state is a buffer, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 0.125
        return x[:, :1] * 0 + self.seen


def matte(*values: float) -> Playback:
    return Playback("p", 1_500_000, [torch.full((1, 4, 4), v) for v in values], [], [9.0, 1.0, 1.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("compiled", [False, True])
def test_every_video_starts_from_the_reset_state(compiled: bool) -> None:
    net = Network("counter", Counter().eval(), (torch.zeros(1, 3, 4, 4),))
    before = copy.deepcopy(net.module.state_dict())
    engine = compiled_engine(net, "float", "reference") if compiled else eager_engine(net)
    for _ in range(2):
        played = play(engine, net, torch.rand(3, 3, 4, 4))
        assert [float(p.max()) for p in played.pictures] == [0.125, 0.25, 0.375]
    assert torch.equal(before["seen"], net.module.state_dict()["seen"])


def test_steps_of_two_frames_and_of_a_window() -> None:
    clip = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    pair = Network("pair", nn.Identity(), (torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)))
    assert [(float(a.max()), float(b.max())) for a, b in pair.steps(clip)] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    window = Network("window", nn.Identity(), (torch.zeros(1, 3, 3, 2, 2),))
    assert [tuple(w[0].shape) for w in window.steps(clip)] == [(1, 3, 3, 2, 2)] * 3
    with pytest.raises(InputError, match="too short"):
        window.steps(clip[:2])


def test_rows_hold_times_distances_and_sizes() -> None:
    reference, other = matte(0.5, 0.5, 0.5), matte(0.5, 0.5, 0.503)
    first, second = rows([reference, other], reference)
    assert first == {"engine": "p", "ms a frame": "1.5", "weights MB": "1.50"}
    assert second["MAD x1e3"] == "1.00" and second["dtSSD x1e2"] == "0.1"
    assert [r["MAD x1e3"] for r in frame_rows(other, reference)] == ["0", "0", "3.00"]


def test_a_strip_has_four_columns_and_shows_the_difference_ten_times() -> None:
    clip = torch.rand(3, 3, 4, 4)
    sheet = strip_rows(clip, matte(0.5, 0.5, 0.5), matte(0.5, 0.5, 0.52), count=2)
    assert len(sheet) == 2 and all(len(row) == 4 for row in sheet)
    assert torch.equal(sheet[1][0], clip[2])
    assert float(sheet[1][3].max()) == pytest.approx(0.2, abs=1e-5)


def test_a_result_that_is_no_picture_is_refused() -> None:
    net = Network("flat", nn.Flatten(), (torch.zeros(1, 3, 4, 4),))
    with pytest.raises(InputError, match="no picture"):
        play(eager_engine(net), net, torch.rand(1, 3, 4, 4))


def test_markdown_marks_what_a_row_lacks() -> None:
    assert markdown([{"a": "1"}, {"a": "2", "b": "3"}]) == "| a | b |\n|---|---:|\n| 1 | – |\n| 2 | 3 |\n"


def test_text_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "t.md", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["t.md"]
    with pytest.raises(ArtifactError):
        write_text(tmp_path / "none" / "t.md", "x")
    with pytest.raises(ArtifactError):
        folder(tmp_path / "t.md" / "deeper")
