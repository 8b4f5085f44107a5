"""The memory of results and states: given out again when nobody can reach it, never before; states are not copied."""

from __future__ import annotations

import ctypes
import gc

import pytest
import torch
from c_helpers import Builder, aten, compiled
from c_programs import tiny

from vqc.backends.c.runtime import Rooms
from vqc.executable import Stream
from vqc.program import evaluate


def exchange():
    """Two states that change places, one of them with the input added: old values are read after new ones are made."""
    b = Builder([torch.rand(1, 2, 3, 5)], [torch.zeros(1, 2, 3, 5), torch.ones(1, 2, 3, 5)], "exchange")
    added = b.call(aten.add.Tensor, b.states[0], b.inputs[0])
    doubled = b.call(aten.mul.Tensor, added, 2.0)
    return b.done(b.call(aten.sub.Tensor, doubled, b.states[1]), states=[b.states[1], added])


@pytest.fixture(scope="module")
def exe():
    return compiled(exchange())


def frames(count):
    torch.manual_seed(count)
    return [[torch.rand(1, 2, 3, 5)] for _ in range(count)]


def expected(program, steps):
    state, found = program.initial_state(), []
    for inputs in steps:
        out = evaluate(program, inputs, state)
        state = [out[s.output] for s in program.states]
        found.append((out[0], state))
    return found


def test_results_that_somebody_has_stay(exe):
    steps = frames(12)
    want = expected(exe.program, steps)
    stream, kept = Stream(exe), []
    for i, inputs in enumerate(steps):
        out = stream.step(inputs)[0]
        ways = (out, out.numpy(), out[0, 1:], out.untyped_storage(), torch.from_dlpack(out))
        kept.append((i, ways[i % len(ways)], stream.state if i % 3 == 0 else None))
        del out, ways
    gc.collect()
    for i, thing, state in kept:
        made, held = want[i]
        if isinstance(thing, torch.UntypedStorage):
            assert bytes(thing)[: made.nbytes] == made.numpy().tobytes(), i
        else:
            whole = made[0, 1:] if i % 5 == 2 else made
            assert torch.equal(torch.as_tensor(thing), whole), i
        assert state is None or all(torch.equal(a, b) for a, b in zip(state, held, strict=True)), i


def test_memory_nobody_has_is_used_again(exe):
    stream, results, states = Stream(exe), set(), set()
    for inputs in frames(10):
        out = stream.step(inputs)[0]
        results.add(out.data_ptr())
        states.add(stream.state[0].data_ptr())
    assert len(results) == len(states) == Rooms.KEPT
    rooms = Rooms(100)
    a, b, c = rooms.take(), rooms.take(), rooms.take()
    places = {x.data_ptr() for x in (a, b, c)}
    assert len(places) == 3 and all(p % 64 == 0 for p in places) and [len(x) for x in (a, b, c)] == [100] * 3
    part, first = b[3:], b.data_ptr()
    del b
    assert rooms.take().data_ptr() not in places
    del part
    again = rooms.take()
    assert again.data_ptr() != a.data_ptr() and again.data_ptr() != c.data_ptr() and not rooms.has(first + 1)


def test_any_state_may_be_given_and_stays_as_it_is(exe):
    steps = frames(6)
    want = expected(exe.program, steps)
    found = [None]
    for inputs in steps:
        found.append(exe.step(inputs, found[-1])[1])
    mixed = [found[3][0], found[4][1]]  # of two blocks
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in found[2]]
    turned = [found[2][1], found[2][0]]  # of one block, and not in their places
    for state in (found[5], found[1], mixed, strided, turned, [x.clone() for x in found[3]], found[2]):
        before = [x.clone() for x in state]
        out = evaluate(exe.program, steps[0], state)
        results, after = exe.step(steps[0], state)
        assert torch.equal(results[0], out[0]) and all(map(torch.equal, after, out[1:]))
        assert all(map(torch.equal, state, before))
    for held, (_, state) in zip(found[1:], want, strict=True):
        assert all(map(torch.equal, held, state))


def test_a_state_written_over_by_hand_counts(exe):
    steps = frames(2)
    state = exe.step(steps[0])[1]
    state[0].fill_(3.0)
    out = evaluate(exe.program, steps[1], state)
    results, after = exe.step(steps[1], state)
    assert torch.equal(results[0], out[0]) and all(map(torch.equal, after, out[1:]))


def test_the_next_state_in_a_block_of_its_own(exe):
    model, inputs = exe.model, frames(1)[0]
    old, inplace = model.new_state(), model.new_state()
    before, following = old.clone(), model.new_state().fill_(7)  # as if never reset
    want = model.step(inplace, inputs)
    got = model.step_to(old.data_ptr(), following, inputs)
    assert torch.equal(old, before) and torch.equal(got[0], want[0])
    assert all(map(torch.equal, model.state_tensors(following), model.state_tensors(inplace)))
    assert torch.equal(following[:64], old[:64])


def test_what_is_no_block_is_refused(exe):
    model = exe.model
    run, struct = model.library.exchange_run_to, ctypes.byref(model._struct)
    state, other = model.new_state(), compiled(tiny()).model.new_state()
    codes = [run(struct, *(ctypes.c_void_p(p) for p in blocks), None, None) for blocks in (
        (state.data_ptr(), None), (None, state.data_ptr()), (state.data_ptr(), state.data_ptr() + 16),
        (other.data_ptr(), state.data_ptr()))]  # fmt: skip
    assert [model.strerror(c) for c in codes] == [model.strerror(c) for c in (1, 1, 2, 11)]
