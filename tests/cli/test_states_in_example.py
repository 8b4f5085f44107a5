"""A factory whose example holds a state: it would be filled with frames, so it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqc.errors import InputError
from vqc.report.network import _of_factory


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
