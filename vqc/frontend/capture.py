"""capture: a network in PyTorch becomes a Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vqc import spec
from vqc.errors import CaptureError
from vqc.frontend.build import build
from vqc.frontend.explore import settle
from vqc.frontend.states import declare, discover
from vqc.frontend.target import Target
from vqc.frontend.verify import verify
from vqc.program import PassRecord, Program


def capture(model: Any, example: Any, *, states: Mapping[str, Any] | None = None, name: str | None = None,
            kwargs: Mapping[str, Any] | None = None, known_ranges: Mapping[str, tuple[float, float]] | None = None,
            frames: Mapping[str, Any] | None = None, keep_scan: bool = False) -> Program:  # fmt: skip
    """Capture one step of a network as a Program.

    The network runs on the example as it is (a few times, without gradients) and every operator it calls is recorded.
    The network, its buffers, the random generators and the example are left as they were.

    Parameters
        model: an nn.Module in eval mode, any callable, a torch.export.ExportedProgram, or an fx.GraphModule.
        example: one step's arguments: a tuple of them (tensors, lists, dictionaries, None, numbers), or one argument.
            Every tensor in it is an input; every other value is fixed. Shapes are fixed.
        states: recurrent arguments: {argument name: number of the output leaf that is its next value}. The name may
            also be that of a leaf ("rec_0"), the value a pair (argument, output) or a StateSpec. The example's tensor
            is the state's reset value, zeros when the first call passes None. Buffers and attributes that the
            network writes are found without being declared.
        known_ranges: ranges that hold by mathematics, by input or state name: {"src": (0, 1)}.
        frames: where time is in an input: {"src": vqc.frames.Frames(...)}.
        keep_scan: a scan in the network stays one node with a body graph; by default it is unrolled, so that every
            pass and backend sees its operators.
    Raises CaptureError with the user's line and a way out when the result would not be a function of the inputs, and
    when the captured graph does not give what the network gives.
    """
    args = example if isinstance(example, tuple) else (example,)
    target = Target(model)
    target.check_mode()
    if name is None:
        name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "program")
    session, plan = declare(target, args, dict(kwargs or {}), states)
    session.keep_scan = keep_scan
    with session.restored():
        recording, reads = discover(session)
        settled = settle(session, recording, reads)
        program, notes = build(session, recording, settled, plan, name)
        program = _with_ranges(program, known_ranges or {}, frames or {})
        spec.check(program, "capture")
        notes += verify(session, program, plan)
    program.notes = (program.summary(), *notes)
    return program.recorded(PassRecord("capture", {"operators": len(program.calls)}, notes=program.notes))


def _with_ranges(program: Program, ranges: Mapping[str, tuple[float, float]], frames: Mapping[str, Any]) -> Program:
    known = {i.name for i in program.inputs} | {s.name for s in program.states}
    for given in (*ranges, *frames):
        if given not in known:
            raise CaptureError(f"there is no input or state called {given!r}",
                               way_out="use one of " + ", ".join(sorted(known)))  # fmt: skip
    program.inputs = tuple(
        replace(i, known_range=ranges.get(i.name, i.known_range), frames=frames.get(i.name, i.frames))
        for i in program.inputs
    )
    program.states = tuple(replace(s, known_range=ranges.get(s.name, s.known_range)) for s in program.states)
    return program
