"""When a part compiles for certain weights, again, or not any more: decided with an engine that only counts."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from door_helpers import CountingDoor, Recurrent, Small, frames
from torch import nn

from vqc.door.binding import Binding
from vqc.door.part import CHANGES, INSTANCES


@pytest.fixture(autouse=True)
def _clean():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def test_second_instance_shares_the_graph_and_not_the_weights():
    door, (x,) = CountingDoor(), frames(1)
    first, second = Small(0), Small(1)
    fast_first, fast_second = torch.compile(first, backend=door), torch.compile(second, backend=door)
    for _ in range(3):
        assert same(fast_first(x), first(x))
        assert same(fast_second(x), second(x))
    assert (len(door.parts), door.engine.bound_count) == (1, 2)
    assert "another instance" in door.notes()


@pytest.mark.parametrize("change", ["load_state_dict", "in_place", "replaced", "data_swap", "buffer_and_parameter"])
def test_changed_weights_are_noticed(change):
    door, (x,) = CountingDoor(), frames(1)
    model = Small()
    fast = torch.compile(model, backend=door)
    before = fast(x)
    if change == "load_state_dict":
        model.load_state_dict(Small(5).state_dict())
    elif change == "in_place":
        model.conv.weight.mul_(2)
    elif change == "replaced":
        model.scale = nn.Parameter(torch.full((4, 1, 1), 3.0))
    elif change == "data_swap":
        model.scale.data = torch.full((4, 1, 1), 3.0)
    else:
        model.bn.running_mean.add_(1)
        model.bn.weight.add_(1)
    assert not same(before, model(x))
    assert same(fast(x), model(x))
    assert same(fast(x), model(x))
    assert door.engine.bound_count == 2


def test_the_memory_of_a_replaced_tensor_is_not_mistaken_for_the_old():
    door, (x,) = CountingDoor(), frames(1)
    model = Small()
    fast = torch.compile(model, backend=door)
    fast(x)
    for i in range(20):  # a freed address is likely to come back within a few rounds
        model.scale = nn.Parameter(torch.full((4, 1, 1), float(i)))
        assert same(fast(x), model(x))


def test_data_writes_need_refresh():
    door, (x,) = CountingDoor(), frames(1)
    model = Small()
    fast = torch.compile(model, backend=door)
    fast(x)
    for i in range(INSTANCES + 2):
        model.scale.data.mul_(1.1)
        door.parts[0].refresh()
        assert same(fast(x), model(x))
        assert door.engine.bound_count == i + 2
    assert door.engine.generic_count == 0


def test_training_like_loop_stops_compiling():
    door, (x,) = CountingDoor(), frames(1)
    model = Small()
    fast = torch.compile(model, backend=door)
    for _ in range(CHANGES + 10):
        assert same(fast(x), model(x))
        model.conv.weight.mul_(0.9)
    assert (door.engine.bound_count, door.engine.generic_count) == (1 + CHANGES, 1)
    assert f"changed more than {CHANGES} times" in door.notes()


def test_replacing_a_weight_for_ever_stops_compiling():
    door, (x,) = CountingDoor(), frames(1)
    model = Small()
    fast = torch.compile(model, backend=door)
    for _ in range(INSTANCES + 5):
        assert same(fast(x), model(x))
        model.scale = nn.Parameter(model.scale * 0.9)
    assert (door.engine.bound_count, door.engine.generic_count) == (INSTANCES, 1)


def test_parts_that_share_some_weights_are_instances():
    door, (x,) = CountingDoor(), frames(1)
    shared = nn.Conv2d(3, 3, 3, padding=1)

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.own = shared, nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.own(self.shared(x))

    branches = [Branch().eval() for _ in range(5)]
    fast = [torch.compile(b, backend=door) for b in branches]
    for _ in range(3):
        for b, f in zip(branches, fast, strict=True):
            assert same(f(x), b(x))
    assert (door.engine.bound_count, door.engine.generic_count) == (5, 0)


def test_many_instances_end_in_one_code_for_all_and_the_first_keep_theirs():
    door, (x,) = CountingDoor(), frames(1)
    models = [Small(i) for i in range(INSTANCES + 3)]
    fast = [torch.compile(m, backend=door) for m in models]
    for _ in range(2):
        for m, f in zip(models, fast, strict=True):
            assert same(f(x), m(x))
    assert (door.engine.bound_count, door.engine.generic_count) == (INSTANCES, 1)


def test_written_buffer_is_no_constant():
    door = CountingDoor()
    model = Recurrent()
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=door)
    for x in frames(4):
        assert same(fast(x), twin(x))
        assert same(model.hidden, twin.hidden)
    model.hidden.zero_()
    twin.hidden.zero_()
    assert same(fast(x), twin(x))
    assert door.engine.bound_count == 1
    assert door.engine.constants == [["conv.weight", "conv.bias"]]
    assert (door.reports[0].constants, door.reports[0].states) == (2, 1)


def test_weight_that_shares_memory_with_a_written_buffer_is_no_constant():
    class Sharing(Recurrent):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("view", self.hidden[:, :2])

        def forward(self, x):
            return super().forward(x) + self.view.mean()

    model, x = Sharing(), frames(1)[0]
    door = CountingDoor()
    torch.compile(model, backend=lambda gm, ex: (seen.append(study_of(gm, ex)), gm.forward)[1])(x)
    (facts,) = seen
    assert facts.aliased
    assert door.engine.bound_count == 0


seen: list = []


def study_of(gm, example):
    from vqc.door.facts import study

    return study(gm, example)


def test_state_outside_of_the_graph_becomes_an_input():
    class Outside(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offset", torch.zeros(1))

    class Reads(Outside):
        def forward(self, x):
            return super().forward(x) + self.offset

    door, model = CountingDoor(), Reads()
    fast = torch.compile(model, backend=door)
    for i, x in enumerate(frames(6)):
        assert same(fast(x), model(x))
        model.offset.fill_(float(i))  # as the part after a graph break would
    assert door.engine.bound_count == 2
    assert "offset" in door.notes()
    assert "offset" in door.engine.constants[0]
    assert "offset" not in door.engine.constants[1]


def test_plain_attribute_is_a_state_and_no_constant():
    class Attribute(Small):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(1, 4, 8, 8)

        def forward(self, x):
            self.last = super().forward(x) + 0.5 * self.last
            return self.last

    door, model = CountingDoor(), Attribute()
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=door)
    for x in frames(4):
        assert same(fast(x), twin(x))
    assert door.engine.bound_count == 1


def test_sizes_get_code_of_their_own_then_one_for_all():
    door, model = CountingDoor(sizes=2), Small()
    fast = torch.compile(model, backend=door)
    for size in (8, 10, 12, 14, 16, 10, 8):
        for x in frames(2, size):
            assert same(fast(x), model(x))
    assert len(door.parts) == 2  # one static graph, one for every further size
    assert (door.engine.bound_count, door.engine.generic_count) == (3, 1)


def test_changed_weights_at_several_sizes_count_once():
    door, model = CountingDoor(sizes=4), Small()
    fast = torch.compile(model, backend=door)
    for _ in range(CHANGES):
        for size in (8, 10, 12):
            for x in frames(2, size):
                assert same(fast(x), model(x))
        model.conv.weight.mul_(0.9)
    dynamic = door.parts[1]
    assert (dynamic.changes, dynamic.instances) == (CHANGES - 1, 1)
    assert door.engine.generic_count == 0


def test_written_inputs_that_share_memory_run_eagerly():
    def step(a, b, w):
        a.add_(1)
        return a * b + w

    door = CountingDoor()
    fast = torch.compile(step, backend=door)
    a, b, w = torch.ones(4), torch.ones(4), torch.ones(4)
    assert fast(a, b, w).tolist() == [3.0] * 4
    base = torch.ones(8)
    assert fast(base[:4], base[2:6], w).tolist() == [5.0, 5.0, 3.0, 3.0]
    assert "share memory" in door.notes()


def test_dead_weights_drop_the_code():
    x = torch.ones(2)
    weight = nn.Parameter(torch.ones(2))
    binding = Binding(lambda *a: a, [0], (weight, x))
    assert binding.matches((weight, x))
    assert not binding.matches((nn.Parameter(torch.ones(2)), x))
    del weight
    assert not binding.alive


def test_check_reads_an_id_a_pointer_and_a_version_of_each_weight_and_no_more():
    weights = tuple(nn.Parameter(torch.zeros(3)) for _ in range(300))
    binding = Binding(lambda *a: a, list(range(300)), weights)
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        assert binding.matches(weights)
    finally:
        sys.setprofile(None)
    assert calls <= 4 * len(weights)
