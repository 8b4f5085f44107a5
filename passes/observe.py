"""observe: watch what flows into every convolution and linear layer while calibration clips run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from vqc.calibration import Clips, Observed, as_clips, phase_of, rollout
from vqc.calibration.slots import slot_parts
from vqc.calibration.thin import thin
from vqc.errors import CalibrationError, PipelineError
from vqc.frames import frame_layout
from vqc.known_ranges import known_ranges
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

aten = torch.ops.aten

# The operators worth an integer kernel, with the index of their weight argument.
QUANTIZABLE: dict[Any, int] = {aten.conv2d.default: 1, aten.conv_transpose2d.input: 1, aten.linear.default: 1}


def quantizable(program: Program) -> list[fx.Node]:
    """Convolutions and linear layers in float32 whose weight is a constant."""
    return [
        n for n in program.calls
        if n.target in QUANTIZABLE and program.constant(n.args[1]) is not None and n.meta["val"].dtype == torch.float32
    ]  # fmt: skip


@register
@dataclass(frozen=True)
class Observe(Pass):
    """observe: put an observer on the input of every convolution and linear layer, and run the calibration clips.

    Clips run in order, frame by frame, with the state carried from its reset value and reset again for each clip;
    nothing of a clip stays in the program but ranges and histograms. Processes of one `context.shard` observe a part
    each and merge, which gives what one process would have seen, to the bit. One short clip, and
    frames that hardly differ for the network, leave a note that begins with "thin calibration".

    Preconditions: (1) the context holds calibration clips; (2) the program computes in float.
    Valid before: any program. Valid after: the same graph; observed nodes carry `meta["observed"]`.

    Options: `policy` - "tensor": one group a tensor; "frame": apart for every frame slot that the tensor holds
    (`vqc.calibration.slots`); "phase": apart by frames since reset (0, 1, 2-3, 4-7, 8-15, 16 and later). `clips` - the
    first so many of the calibration clips alone, the others being there for passes that learn; 0: all.
    """

    name: ClassVar[str] = "observe"
    numerics: ClassVar[Numerics] = Exact()
    policy: Literal["tensor", "frame", "phase"] = "tensor"
    clips: int = 0

    def apply(self, program: Program, context: PassContext) -> PassResult:
        if self.policy not in ("tensor", "frame", "phase"):
            raise PipelineError(f"observe has no policy {self.policy!r}", way_out="use tensor, frame or phase")
        result = PassResult(program)
        clips = as_clips(context.calibration, program)
        if not 0 <= self.clips <= len(clips.clips):
            raise PipelineError(f"observe cannot take the first {self.clips} of {len(clips.clips)} calibration clips",
                                way_out="give more clips, or a smaller number; 0 takes all")  # fmt: skip
        if self.clips:
            clips = Clips(clips.clips[: self.clips])
        known = known_ranges(program)
        watched: dict[fx.Node, Observed] = {}
        for n in quantizable(program):
            x = n.args[0]
            assert isinstance(x, fx.Node)
            if x in known:
                result.decline(n, f"the range of its input {x} is known: [{known[x][0]:g}, {known[x][1]:g}]")
            else:
                watched.setdefault(x, Observed(self.policy))
        layout = frame_layout(program) if self.policy == "frame" else {}

        def visit(node: fx.Node, value: Any, t: int) -> None:
            observed = watched.get(node)
            if observed is None:
                return
            parts = [(phase_of(t) if self.policy == "phase" else 0, value)]
            if node.name in layout:
                parts = slot_parts(value, node, layout)
            try:
                for key, part in parts:
                    observed.update(key, part)
            except CalibrationError as e:
                raise CalibrationError(f"{node} holds NaN or infinity during calibration",
                                       where=f"step {t} since reset", why="the network itself gives it on this clip",
                                       way_out="look at the clip, or at the weights (vqc compare)") from e  # fmt: skip

        mine = context.shard.shard_clips(clips, bool(program.states))
        rollout(program, clips, visit, lambda done, total: context.report("observe", done, total), mine)
        merged = context.shard.merge_observed({node.name: observed for node, observed in watched.items()})
        for node in watched:
            node.meta["observed"] = merged[node.name]
            result.count("observer")
        result.notes.append(f"{clips.frames} frames of {len(clips.clips)} clips, state carried, reset before each clip")
        told = thin(merged.values(), clips)
        if told:
            result.notes.append(told)
        return result
