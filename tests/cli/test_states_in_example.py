"""A factory or a file whose example holds what is no frame: it would be filled with frames, so it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import vqc
from vqc.errors import InputError
from vqc.report.network import _of_factory, network


class Carried(nn.Module):
    def forward(self, frame, h):
        h = 0.5 * h + frame
        return h, h


def test_a_state_is_no_frame() -> None:
    frame = torch.rand(1, 3, 16, 16)
    made = (Carried(), (frame, torch.zeros(1, 3, 16, 16)), {"h": 1})
    with pytest.raises(InputError, match=r"holds states: h(.|\n)*where it is None"):
        _of_factory("net.py:make", lambda: made, None)
    assert _of_factory("net.py:make", lambda: (made[0], frame, {"h": 1}), None).states == {"h": 1}


def test_a_state_of_any_rank_is_told_as_one() -> None:
    made = (Carried(), (torch.rand(1, 3, 16, 16), torch.zeros(2, 1, 8)), {"h": 1})
    with pytest.raises(InputError, match="holds states: h"):
        _of_factory("net.py:make", lambda: made, None)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (torch.full((1, 1, 1, 1), 0.1), r"tensor 1 is \[1,1,1,1\]"),  # a level of noise
        (torch.zeros(1, 1, 16, 16), r"tensor 1 is \[1,1,16,16\]"),
        (torch.zeros(1, 3, 8, 8), r"tensor 1 is \[1,3,8,8\]"),
        (0.5, "tensor 1 is a float"),
    ],
)
def test_what_is_no_frame_is_named(other: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        _of_factory("net.py:make", lambda: (Carried(), (torch.rand(1, 3, 16, 16), other)), None)


@pytest.mark.parametrize("ending", ["vqc", "pt2"])
def test_a_file_is_held_to_the_same(tmp_path: Path, ending: str) -> None:
    """A plane beside a frame: a clip's three channels would be put there, and fail in the middle of the work."""
    program = vqc.capture(Carried().eval(), (torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)))
    path = tmp_path / f"net.{ending}"
    if ending == "vqc":
        vqc.save(program, path)
    else:
        path = next(vqc.export(program, tmp_path / "net", target="pt2").glob("*.pt2"))
    with pytest.raises(InputError, match=r"does not take frames(.|\n)*tensor 1 is \[1,1,16,16\]"):
        network(str(path))
