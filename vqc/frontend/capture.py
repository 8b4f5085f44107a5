"""capture: a network in PyTorch becomes a Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vqc import spec
from vqc.errors import CaptureError
from vqc.frontend.build import build
from vqc.frontend.explore import check_second_call, settle
from vqc.frontend.states import declare, discover
from vqc.frontend.target import Target
from vqc.frontend.verify import verify
from vqc.interop.pt2 import load_pt2
from vqc.program import PassRecord, Program


def capture(model: Any, example: Any = None, *, states: Mapping[str, Any] | None = None, name: str | None = None,
            kwargs: Mapping[str, Any] | None = None, known_ranges: Mapping[str, tuple[float, float]] | None = None,
            frames: Mapping[str, Any] | None = None, keep_scan: bool = False) -> Program:  # fmt: skip
    """Capture one step of a network as a Program.

    The network runs on the example as it is (a few times, without gradients) and every operator it calls is recorded.
    The network, its buffers, the random generators and the example are left as they were.

    Parameters
        model: an nn.Module in eval mode, any callable, a torch.export.ExportedProgram, the path of a .pt2 file
            (which may run code of the file, docs/interop.md), or an fx.GraphModule.
        example: one step's arguments: a tuple of them (tensors, lists, dictionaries, None, numbers), or one argument.
            Every tensor in it is an input; every other value is fixed. Shapes are fixed. An exported program brings
            its own when none is given; a .pt2 that vqc wrote brings its states and ranges as well.
        states: recurrent arguments: {argument name: number of the output leaf that is its next value}. The name may
            also be that of a leaf ("rec_0"), or of a tuple, list or dictionary, whose tensors then are states and get
            what stands at their places in the result; the value a pair (argument, output) or a StateSpec. The
            example's tensor is the state's reset value, zeros when the first call passes None. Buffers and attributes
            that the network writes are found without being declared.
        known_ranges: ranges that hold by mathematics, by input or state name: {"src": (0, 1)}.
        frames: where time is in an input: {"src": vqc.frames.Frames(...)}.
        keep_scan: a scan in the network stays one node with a body graph; by default it is unrolled, so that every
            pass and backend sees its operators.
    Raises CaptureError with the user's line and a way out when the result would not be a function of the inputs, and
    when the captured graph does not give what the network gives; ArtifactError for a .pt2 file that cannot be read.
    """
    options = (example, states, name, kwargs, known_ranges, frames)
    if isinstance(model, (str, Path)):
        model = load_pt2(model)
        if isinstance(model, Program):
            if any(o is not None for o in options) or keep_scan:
                raise CaptureError("a .pt2 file that vqc wrote is no network to capture",
                                   why="its example, states and ranges are in it, and it holds no scan",
                                   way_out="give the path alone")  # fmt: skip
            return model
    if isinstance(model, torch.export.ExportedProgram) and example is None:
        example, kwargs = _own_example(model, kwargs)
    if example is None:
        raise CaptureError("there is no example to capture the network with",
                           way_out="give one step's arguments, () for none")  # fmt: skip
    args = example if isinstance(example, tuple) else (example,)
    target = Target(model)
    target.check_mode()
    if name is None:
        name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "program")
    session, plan = declare(target, args, dict(kwargs or {}), states)
    session.keep_scan = keep_scan
    with session.restored():
        recording, reads = discover(session)
        second = check_second_call(session, recording)
        settled = settle(session, recording, reads)
        program, notes = build(session, recording, settled, plan, name)
        program = _with_ranges(program, known_ranges or {}, frames or {})
        spec.check(program, "capture")
        notes += [*second, *verify(session, program, plan)]
    program.notes = (program.summary(), *notes)
    return program.recorded(PassRecord("capture", {"operators": len(program.calls)}, notes=program.notes))


def _own_example(model: torch.export.ExportedProgram, kwargs: Any) -> tuple[tuple[Any, ...], Any]:
    """The arguments an exported program was made with. Raises CaptureError when it has none."""
    if model.example_inputs is None:
        raise CaptureError("an exported program has no example inputs", way_out="give an example")
    args, own = model.example_inputs
    return tuple(args), own if kwargs is None else kwargs


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
