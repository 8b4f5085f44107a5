"""Recurrent tensors: declared arguments, buffers, attributes; and what cannot be a state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frontend_help import portrait, same, seeded
from torch import nn
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend import StateSpec, capture
from vqc.program import Program, evaluate

X = (1, 2, 8, 8)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def next(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z, n = torch.sigmoid(self.gate(torch.cat([x, h], 1))), torch.tanh(self.new(torch.cat([x, h], 1)))
        return (1 - z) * h + z * n


class Explicit(Cell):
    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.next(x, x.new_zeros(x.shape) if h is None else h)
        return h * 2, h


class WrittenBuffer(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.full(X, 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h.copy_(self.next(x, self.h))
        return self.h * 2


class PartlyWrittenBuffer(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(X))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h[:, :1] = self.next(x, self.h)[:, :1]
        self.h.mul_(0.5)
        return self.h + 1


class ReboundBuffer(WrittenBuffer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = self.next(x, self.h)
        return self.h * 2


class LazyAttribute(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.h: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.h is None:
            self.h = torch.zeros_like(x)
        self.h = self.next(x, self.h)
        self.shown = self.h * 3  # kept for a debugger, never read
        return self.h * 2


class ListAttribute(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.memory: list[torch.Tensor | None] = [None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (torch.zeros_like(x) if m is None else m for m in self.memory)
        a = self.next(x, a)
        self.memory[0], self.memory[1] = a, b * 0.5 + a
        return a + self.memory[1]


class Holder:
    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}


class ObjectAttribute(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.next(x, self.holder.kept.get("h", torch.zeros_like(x)))
        self.holder.kept = {"h": h}
        return h


class TensorCounter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("t", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.t += 1
        return x * self.t


def steps(program: Program, model: nn.Module, count: int = 4) -> None:
    """The Program and the network, both from their start, over steps of different data."""
    state = program.initial_state()
    for t in range(count):
        x = torch.rand(X, generator=torch.Generator().manual_seed(t))
        out = evaluate(program, [x], state)
        state = [out[s.output] for s in program.states]
        with torch.no_grad():
            want = model(x)
        same(pytree.tree_leaves(program.unflatten_outputs(out, state, [x])), pytree.tree_leaves(want))


KEPT_INSIDE = [
    (WrittenBuffer, ["buffer h"], 0.5),
    (PartlyWrittenBuffer, ["buffer h"], 0.0),
    (ReboundBuffer, ["buffer h"], 0.5),
    (LazyAttribute, ["attribute h"], 0.0),
    (ListAttribute, ["attribute memory", "attribute memory"], 0.0),
    (ObjectAttribute, ["attribute holder.kept"], 0.0),
    (TensorCounter, ["buffer t"], 0.0),
]


@pytest.mark.parametrize(("make", "origins", "reset"), KEPT_INSIDE, ids=lambda v: getattr(v, "__name__", None))
def test_found_in_the_model(make: Any, origins: list[str], reset: float):
    model = seeded(make)
    before = portrait(model)
    program = capture(model, torch.rand(X))
    assert portrait(model) == before
    assert [s.origin for s in program.states] == origins
    assert all(float(s.reset.mean()) == reset for s in program.states)
    assert [i.name for i in program.inputs] == ["x"]
    steps(program, model)


def test_kept_but_never_read_is_said():
    program = capture(seeded(LazyAttribute), torch.rand(X))
    assert any("never read" in n and "shown" in n for n in program.notes)


def test_declared_with_a_first_call_without_state():
    program = capture(seeded(Explicit), torch.rand(X), states={"h": 1})
    assert program.outputs == ("out_0",)
    assert [leaf.kind for leaf in program.signature.out_leaves] == ["output", "state"]
    state, model = program.initial_state(), seeded(Explicit)
    h = None
    for t in range(3):
        x = torch.rand(X, generator=torch.Generator().manual_seed(t))
        out = evaluate(program, [x], state)
        state = [out[s.output] for s in program.states]
        with torch.no_grad():
            y, h = model(x, h)
        same([out[0], state[0]], [y, h])


def test_a_given_tensor_is_the_reset_value():
    h = torch.rand(X)
    program = capture(seeded(Explicit), (torch.rand(X), h), states={"memory": StateSpec("h", 1, known_range=(-1, 1))})
    assert torch.equal(program.states[0].reset, h) and program.states[0].reset is not h
    assert program.states[0].name == "memory" and program.states[0].input == "h"
    assert program.states[0].known_range == (-1, 1)


def test_none_in_the_example_and_leaves_of_lists():
    def network(x: torch.Tensor, past: list[torch.Tensor]) -> dict[str, Any]:
        return {"y": x + past[0], "past": [past[0] * 0.5 + x, past[1] + 1]}

    example = (torch.rand(2), [torch.zeros(2), torch.ones(2)])
    program = capture(network, example, states={"past_0": 1, "past_1": 2})
    assert [s.input for s in program.states] == ["past_0", "past_1"]
    assert program.outputs == ("y",)


class Nested(Cell):
    """Takes its states in one dictionary, and gives them back in one that it fills in another order."""

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        if state is None:
            state = {"low": torch.zeros_like(x), "high": [torch.zeros_like(x)]}
        low = self.next(x, state["low"])
        high = self.next(low, state["high"][0])
        return high + x, {"high": [high], "low": low}


def played(program: Program, clip: list[torch.Tensor]) -> list[torch.Tensor]:
    state, found = program.initial_state(), []
    for x in clip:
        out = evaluate(program, [x], state)
        found.append(out[0])
        state = [out[s.output] for s in program.states]
    return found


def test_a_dictionary_of_states_goes_by_its_own_name():
    model, clip, zero = seeded(Nested), [torch.rand(X) for _ in range(4)], torch.zeros(X)
    program = capture(model, (clip[0], {"low": zero, "high": [zero]}), states={"state": 1})
    assert [(s.input, s.name) for s in program.states] == [("state_low", "state_low"), ("state_high_0", "state_high_0")]
    state, want = None, []
    for x in clip:
        y, state = model(x, state)
        want.append(y)
    for a, b in zip(played(program, clip), want, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_dictionary_of_states_that_begins_as_none_is_asked_for():
    with pytest.raises(CaptureError) as e:
        capture(seeded(Nested), torch.rand(X), states={"state": 1})
    for text in ("does not take output 1 alone as state", "dictionary of 2", "states={'state': 1}"):
        assert text in str(e.value)


def test_states_that_are_none_in_a_default_container():
    class Levels(nn.Module):
        def forward(self, x: torch.Tensor, states: Any = ((None, None), None)) -> Any:
            (a, b), c = (tuple(torch.zeros_like(x) if h is None else h for h in states[0]), states[1])
            c = torch.zeros_like(x) if c is None else c
            y = x + 0.5 * a + 0.25 * b - c
            return y, ((y, a), 0.5 * y)

    program = capture(Levels().eval(), torch.rand(X), states={"states": 1})
    assert [s.name for s in program.states] == ["states_0_0", "states_0_1", "states_1"]


def test_a_container_of_states_that_come_back_one_by_one():
    class Levels(nn.Module):
        def forward(self, x: torch.Tensor, states: Any = (None,) * 3) -> Any:
            found = []
            for h in states:
                x = x + 0.5 * (torch.zeros_like(x) if h is None else h)
                found.append(x)
            return 2 * x, *found

    program = capture(Levels().eval(), torch.rand(X), states={"states": 1})
    assert [(s.name, s.output) for s in program.states] == [("states_0", 1), ("states_1", 2), ("states_2", 3)]


def test_a_container_of_states_that_is_not_given_is_asked_for():
    def step(x: torch.Tensor, states: Any) -> Any:
        low, high = states
        return x + low, (x + high, low)

    with pytest.raises(CaptureError, match="(?s)not take None as states.*at the first frame.*or let forward make it"):
        capture(step, torch.rand(X), states={"states": 1})


class Shifts(nn.Module):
    """Takes any number of states behind the frame, and gives them back behind the result."""

    def forward(self, x: torch.Tensor, *pasts: torch.Tensor) -> Any:
        first, second = pasts
        return x + 0.5 * first - second, x, first


def test_states_behind_the_frame_go_by_one_name():
    clip, zero = [torch.rand(X) for _ in range(4)], torch.zeros(X)
    program = capture(Shifts().eval(), (clip[0], zero, zero), states={"pasts": 1})
    assert [s.input for s in program.states] == ["pasts_0", "pasts_1"]
    got = played(program, clip)
    assert torch.allclose(got[2], clip[2] + 0.5 * clip[1] - clip[0])


def test_a_container_whose_next_value_is_another_is_refused():
    zero = torch.zeros(X)
    with pytest.raises(CaptureError, match="made of 2 tensors, and its next value, from output 0 on, is not"):
        capture(seeded(Nested), (zero, {"low": zero, "high": [zero]}), states={"state": 0})
    with pytest.raises(CaptureError, match="declare each of state_low, state_high_0"):
        spec = StateSpec("state", 1, reset=zero)
        capture(seeded(Nested), (zero, {"low": zero, "high": [zero]}), states={"state": spec})


@pytest.mark.parametrize(
    ("states", "message"),
    [({"q": 1}, "no argument 'q'"), ({"h": 7}, "returns 2 values"), ({"h": 0, "x": 1}, "")],
)
def test_wrong_declarations(states: dict[str, int], message: str):
    if not message:
        program = capture(seeded(Explicit), torch.rand(X), states=states)  # every tensor may be a state
        assert not program.inputs
        return
    with pytest.raises(CaptureError, match=message):
        capture(seeded(Explicit), torch.rand(X), states=states)


class FirstFrameIsOther(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = x if self.last is None else self.last
        self.last = x
        return x - last + 1


def test_a_first_frame_that_is_not_zeros_is_refused_and_works_warm():
    model = seeded(FirstFrameIsOther)
    with pytest.raises(CaptureError, match="after its first frame"):
        capture(model, torch.rand(X))
    model(torch.rand(X))
    steps(capture(model, torch.rand(X)), model)


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return torch.stack(self.seen).sum(0)


class CountsInPython(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.t += 1
        return x * self.t


@pytest.mark.parametrize(
    ("make", "message"), [(Grows, "keep its shape"), (CountsInPython, "t, which is 0 at the first call")]
)
def test_refused(make: Any, message: str):
    model = seeded(make)
    before = portrait(model)
    with pytest.raises(CaptureError, match=message):
        capture(model, torch.rand(X))
    assert portrait(model) == before


def test_one_buffer_in_two_modules_is_one_state():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = WrittenBuffer(), WrittenBuffer()
            self.b.h = self.a.h

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    model = seeded(Pair)
    program = capture(model, torch.rand(X))
    assert [s.name for s in program.states] == ["a_h"]
    steps(program, model)
