"""A memory of the last frames in a ring, with the position as a tensor or as a number of Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frontend_help import portrait, seeded
from torch import nn

import vqc
from vqc.errors import CaptureError
from vqc.frontend import capture

X = (1, 3, 8, 8)


class Ring(nn.Module):
    """Four slots of features in `ring` [1,4,3,8,8]; `pos` says which is next."""

    def __init__(self, pos: Any = None):
        super().__init__()
        self.look, self.mix = nn.Conv2d(3, 3, 1), nn.Conv2d(12, 3, 1)
        self.register_buffer("ring", torch.zeros(1, 4, 3, 8, 8))
        if isinstance(pos, int):
            self.pos = pos
        else:
            self.register_buffer("pos", torch.zeros((), dtype=torch.long) if pos is None else pos)

    def seen(self) -> torch.Tensor:
        return self.mix(self.ring.flatten(1, 2))


class Writes(Ring):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ring[:, self.pos % 4] = self.look(x)
        self.pos += 1
        return self.seen()


class Reads(Ring):
    """The oldest slot is read and cloned, then written; other forms of index at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = self.ring[:, self.pos % 4].clone()
        self.ring[0, self.pos % 4 - 4] = self.look(x)[0]
        self.pos = self.pos + 1
        newest = self.ring[:, (self.pos - 1) % 4, ..., None, :, :].squeeze(-3)
        column = self.ring[..., self.pos % 4, :, :, 2][..., None]
        return self.seen() + 2 * old + newest + column


class Fills(Ring):
    """A number, and a value of fewer dimensions, are written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ring[:, self.pos % 4] = 0.5
        self.ring[:, (self.pos + 1) % 4] = self.look(x)[0, 0]
        self.pos = self.pos + 1
        return self.seen()


@pytest.mark.parametrize("target", ["reference", "native"])
@pytest.mark.parametrize("make", [Writes, Reads, Fills])
@pytest.mark.parametrize("pos", [torch.zeros((), dtype=torch.long), torch.tensor(2, dtype=torch.int32)])
def test_a_position_in_a_tensor_is_a_state(make: Any, target: str, pos: torch.Tensor):
    model, clip = seeded(lambda: make(pos.clone())), torch.rand(7, *X, generator=torch.Generator().manual_seed(3))
    before = portrait(model)
    program = capture(model, clip[0])
    assert portrait(model) == before
    assert {s.name for s in program.states} == {"ring", "pos"} and not program.assumptions
    stream = vqc.Stream(vqc.compile(program, target))
    with torch.no_grad():
        for x in clip:
            torch.testing.assert_close(stream(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_position_as_an_argument():
    def step(x: torch.Tensor, ring: torch.Tensor, pos: torch.Tensor) -> Any:
        ring = ring.clone()
        ring[:, pos % 4] = x
        return ring.mean(1), ring, pos + 1

    example = (torch.rand(X), torch.zeros(1, 4, *X[1:]), torch.zeros((), dtype=torch.long))
    program = capture(step, example, states={"ring": 1, "pos": 2})
    assert [s.name for s in program.states] == ["ring", "pos"]
    with pytest.raises(CaptureError, match="(?s)no tensor but of type int.*tensor of one element"):
        capture(step, (*example[:2], 0), states={"ring": 1, "pos": 2})


class Adds(Ring):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ring[:, self.pos % 4] += self.look(x)
        self.pos += 1
        return self.seen()


class Copies(Ring):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ring[:, self.pos % 4].copy_(self.look(x))
        self.pos += 1
        return self.seen()


class Stale(Ring):
    """PyTorch's `old` is a view, which shows what is written after it was taken."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = self.ring[:, self.pos % 4]
        self.ring[:, self.pos % 4] = self.look(x)
        self.pos += 1
        return old + x


class Reading(Ring):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ring[:, int(self.pos) % 4] = self.look(x)
        self.pos += 1
        return self.seen()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Adds, r"written in place.*ring\[:, pos\] = ring\[:, pos\] \+ x"),
        (Copies, r"written in place.*ring\[:, pos\] = ring\[:, pos\] \+ x"),
        (Stale, r"read after the tensor was written.*clone\(\)"),
        (Reading, r"item\(\) reads a value.*if it is an index, use the tensor itself"),
    ],
)
def test_what_cannot_be_followed_names_the_way_out(make: Any, text: str):
    with pytest.raises(CaptureError, match=f"(?s){text}"):
        capture(seeded(make), torch.rand(X))


class Long(nn.Module):
    """Eight slots, of which the oldest is read: for seven frames that is a slot nobody has written."""

    def __init__(self):
        super().__init__()
        self.look, self.pos = nn.Conv2d(3, 3, 1), 0
        self.register_buffer("ring", torch.zeros(1, 8, 3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = self.ring[:, (self.pos + 1) % 8].clone()
        self.ring[:, self.pos % 8] = self.look(x)
        self.pos += 1
        return old + x


class InADictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.look, self.memory = nn.Conv2d(3, 3, 1), {"ring": torch.zeros(1, 8, 3, 8, 8), "pos": 0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ring, pos = self.memory["ring"], self.memory["pos"]
        old = ring[:, (pos + 1) % 8].clone()
        ring[:, pos % 8] = self.look(x)
        self.memory["pos"] += 1
        return old + x


@pytest.mark.parametrize(("make", "name"), [(Long, "pos"), (InADictionary, "memory"), (lambda: Writes(0), "pos")])
def test_a_position_that_python_keeps_is_refused_by_name(make: Any, name: str):
    """Even where the first frames do not show that one slot alone would be written."""
    model = seeded(make)
    before = portrait(model)
    with pytest.raises(CaptureError) as e:
        capture(model, torch.rand(X))
    for text in (f"{name}, which is 0 at the first call and 1 at the second", "register_buffer", "backend='vqc'"):
        assert text in str(e.value)
    assert portrait(model) == before


def test_a_flag_of_the_first_call_is_refused_by_name():
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.h = True, None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.first:
                self.h, self.first = torch.zeros_like(x), False
            self.h = 0.5 * self.h + x
            return self.h

    with pytest.raises(CaptureError, match="(?s)first, which is True at the first call.*after its first frame"):
        capture(Lazy().eval(), torch.rand(X))


def test_numbers_without_effect_on_the_result_are_no_matter():
    class Logs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look, self.calls, self.times, self.doubled = nn.Conv2d(3, 3, 1), 0, [], None
            self.register_buffer("mean", torch.zeros(X))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.times.append(self.calls)
            if self.doubled is None:
                self.doubled = (2 * self.look.weight).sum()
            self.mean = 0.5 * self.mean + self.look(x * self.doubled)
            return self.mean

    program = capture(seeded(Logs), torch.rand(X))
    assert [s.name for s in program.states] == ["mean"]


@pytest.mark.parametrize("make", [Writes, Adds, Stale, Reading, lambda: Writes(0), Long])
def test_torch_compile_takes_every_one_of_them(make: Any):
    """What a capture refuses, Dynamo breaks or compiles anew: the results are the network's."""
    torch._dynamo.reset()
    model, twin = seeded(make), seeded(make)
    fast = torch.compile(model, backend="vqc", options={"target": "reference"})
    with torch.no_grad():
        for x in torch.rand(5, *X, generator=torch.Generator().manual_seed(5)):
            torch.testing.assert_close(fast(x), twin(x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
