"""TritonBackend: Triton kernels for integer and binary layers with what follows them, PyTorch for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.backends import Backend
from vqc.backends.triton.environment import (
    Place,
    architecture,
    check_device,
    check_memory,
    need_triton,
    place_for,
)
from vqc.backends.triton.halves import DTYPES
from vqc.backends.triton.lowering import Action, Lowered, Lowerer, why_not
from vqc.backends.triton.spread import spread
from vqc.backends.triton.tuner import tuner_for
from vqc.errors import TargetError, UnsupportedOp
from vqc.executable import CompileReport, Executable
from vqc.program import Program, op_text

OPTIONS: dict[str, tuple[Any, ...]] = {
    "fallback": (None, "eager", "inductor", "none"), "binary": (None, "dot", "popcount"), "graph": (False, True),
    "residual_dtype": tuple(DTYPES), "tune": (False, True),
}  # fmt: skip


class TritonExecutable(Executable):
    """A Program whose step runs on one device. Inputs must lie there; states are brought there."""

    def __init__(self, program: Program, report: CompileReport, lowered: Lowered, place: Place):
        super().__init__(program, report)
        self.place = place
        self._actions: Sequence[Action] = lowered.actions
        self._constants = {n: self._held(program.constants[str(n.target)]) for n in program.nodes if n.op == "get_attr"}
        self._last: dict[fx.Node, int] = {}
        for i, action in enumerate(self._actions):
            self._last |= dict.fromkeys((*action.reads, *action.gives), i)
        self._last |= dict.fromkeys(program.result_nodes, len(self._actions))

    def _held(self, value: Any) -> Any:
        return value.to(self.place.device) if isinstance(value, torch.Tensor) else value

    def _run(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        check_device(inputs, self.place, self.program.name)
        given = [*inputs, *(s.to(self.place.device) for s in state)]
        holders = [n for n in self.program.nodes if n.op == "placeholder"]
        values: dict[Any, Any] = {**self._constants, **dict(zip(holders, given, strict=True))}
        ends: dict[int, list[fx.Node]] = {}
        for n, i in self._last.items():
            if n not in self._constants:
                ends.setdefault(i, []).append(n)
        with torch.no_grad():
            for i, action in enumerate(self._actions):
                action.run(values)
                for n in ends.get(i, ()):
                    values.pop(n, None)
        theirs = {x.untyped_storage().data_ptr() for x in (*given, *self._constants.values()) if torch.is_tensor(x)}
        out: list[torch.Tensor] = []
        for r in self.program.result_nodes:  # results are fresh: a caller may write to them
            x = values[r]
            x = x if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
            x = x.clone() if x.untyped_storage().data_ptr() in theirs else x
            theirs.add(x.untyped_storage().data_ptr())
            out.append(x)
        return out


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their defaults; TargetError for an unknown one or a value that is none of its."""
    for key, value in options.items():
        if key not in OPTIONS:
            raise TargetError(f"the triton backend has no option {key!r}", way_out="use " + ", ".join(sorted(OPTIONS)))
        if value not in OPTIONS[key]:
            raise TargetError(f"option {key} cannot be {value!r}",
                              way_out="use " + " or ".join(str(v) for v in OPTIONS[key]))  # fmt: skip
    return {key: values[0] for key, values in OPTIONS.items()} | dict(options)


def _bytes(program: Program) -> int:
    """Bytes of all constants, inputs, states and values of a step: more than it holds at any moment."""
    total = 0
    for n in program.nodes:
        val = n.meta.get("val")
        for t in val if isinstance(val, (tuple, list)) else (val,):
            total += t.numel() * t.element_size() if isinstance(t, torch.Tensor) else 0
    return total


class TritonBackend(Backend):
    """Options: `fallback` for operators without a kernel ("inductor": PyTorch's compiler where it can join some, the
    default on a GPU; "eager": PyTorch's operators one by one, the default without; "none": an error instead), `binary`
    ("dot" or "popcount" for binary convolutions; None: the cheaper one by prediction), `graph` (True: a step is one
    CUDA graph), `residual_dtype` ("float16" or "bfloat16": float pictures between kernels lie in these), `tune` (True:
    tiles are chosen by the clock, without a GPU on paper)."""

    name: ClassVar[str] = "triton"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        return why_not(program, node)

    def ready(self, target: str) -> None:
        need_triton()
        place_for(target)

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        """An Executable on this machine's GPU, or on its CPU when Triton interprets (TRITON_INTERPRET=1).

        Raises TargetError (no triton, no GPU, one that is too old or too small, a bad option) and, with fallback
        "none", UnsupportedOp.
        """
        opts = read_options(options)
        need_triton()
        place = place_for(target)
        if opts["graph"] and place.interpreted:
            raise TargetError("option graph needs a GPU", why="kernels are interpreted on the CPU",
                              way_out="leave it out")  # fmt: skip
        if place.device.type == "cuda":
            check_memory(_bytes(program), torch.cuda.mem_get_info(place.device)[0], program.name)
        program, gone = spread(program)
        tuner = tuner_for(place) if opts["tune"] else None
        lowerer = Lowerer(program, place.device, opts["binary"], stored=DTYPES[opts["residual_dtype"]], tuner=tuner)
        lowered = lowerer.lower()
        if lowered.fallbacks and opts["fallback"] == "none":
            raise refuse(program, lowered, "use option fallback=eager, or rewrite these operators")
        fallback, told = opts["fallback"] or ("eager" if place.interpreted else "inductor"), list[str]()
        if fallback == "inductor" and lowered.fallbacks:
            from vqc.backends.triton import regions

            lowered, told = regions.compiled(program, lowered, place.device), regions.notes()
        kernels = lowered.kernels | dict.fromkeys(gone, "quantized in parts")
        report = CompileReport(self.name, target, kernels, lowered.fallbacks)
        report.weight_bytes = sum(a.layer.weight_bytes for a in lowered.actions if a.layer is not None)
        report.state_bytes = sum(s.reset.numel() * s.reset.element_size() for s in program.states)
        made = sum(a.layer is not None for a in lowered.actions)
        report.notes.append(f"{made} calls of Triton kernels, {len(lowered.fallbacks)} operators left to PyTorch")
        if lowerer.half:
            report.notes.append(f"{len(lowerer.half)} values between kernels are rounded to {opts['residual_dtype']}")
        report.notes += told + ([] if tuner is None else tuner.said())
        if place.interpreted:
            report.notes.append("kernels are interpreted on the CPU: right, and slow")
        made_ready = TritonExecutable(program, report, lowered, place)
        if not opts["graph"]:
            return made_ready
        from vqc.backends.triton.graph import GraphedExecutable

        return GraphedExecutable(made_ready)

    def export(self, program: Program, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
        """Compiled kernels, weights, a manifest and a launcher (docs/triton.md); the target names an architecture."""
        from vqc.backends.triton.export import export_folder

        arch = architecture(target)
        if arch is None:
            raise TargetError(f"target {target} names no architecture", way_out="use cuda:sm_90, for example")
        return export_folder(program, arch, folder, options)


def refuse(program: Program, lowered: Lowered, way_out: str) -> UnsupportedOp:
    """The error that lists every operator without a kernel."""
    lines = [f"{d.node} ({op_text(program.node(d.node).target)}): {d.reason}" for d in lowered.fallbacks]
    return UnsupportedOp(
        f"the triton backend cannot take {len(lines)} of {len(program.calls)} operators of {program.name}",
        why="; ".join(lines), way_out=way_out)  # fmt: skip
