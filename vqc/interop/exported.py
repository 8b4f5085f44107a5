"""A Program as a `torch.export.ExportedProgram`, and back: operator for operator, with nothing recorded anew."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

import vqc.ops  # noqa: F401  (a graph may call them)
from vqc import spec
from vqc.errors import ArtifactError, UnsupportedOp
from vqc.interop import interface
from vqc.program import Program, evaluate, infer, meta_of, op_text


def to_exported(program: Program) -> ExportedProgram:
    """One step as an ExportedProgram: inputs then states in; results, next states and assumptions out, all flat.

    Weights are buffers under the names of the constants. `vqc::` operators stay what they are, so a reader has to
    `import vqc.ops` first. Its `example_inputs` are the Program's own example and the states' values at the first
    frame.
    Raises UnsupportedOp for a program that holds a sub-graph, whose operators torch.export refuses, or that gives other
    bits once it is exported.
    """
    bodies = [k for k, v in program.constants.items() if not isinstance(v, torch.Tensor)]
    if bodies:
        raise UnsupportedOp(f"program {program.name} cannot be exported by torch.export",
                            why=f"{', '.join(bodies)}: a sub-graph (scan, cond)",
                            way_out="capture it without keep_scan")  # fmt: skip
    if len(program.example) != len(program.inputs):
        raise UnsupportedOp(f"program {program.name} cannot be exported by torch.export", why="it has no example",
                            way_out="capture it from the network again")  # fmt: skip
    given = (*program.example, *program.initial_state())
    try:
        with torch.no_grad():
            exported = torch.export.export(program.to_module().eval(), given)
            found = exported.module()(*given)
    except Exception as e:  # torch.export raises whatever it meets; it is kept as the cause
        raise UnsupportedOp(f"program {program.name} cannot be exported by torch.export",
                            why=f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}",
                            way_out="write it as a .vqc file") from e  # fmt: skip
    wanted = evaluate(program, program.example)
    names = [*program.outputs, *(s.name for s in program.states)]
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if not same_bits(a, b):
            raise UnsupportedOp(f"program {program.name} changes when torch.export takes it",
                                why=f"{names[k] if k < len(names) else f'output {k}'} has other bits",
                                way_out="write it as a .vqc file, and report this")  # fmt: skip
    return exported


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have equal shapes, dtypes and values, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b)) or bool(torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True))


def from_exported(exported: ExportedProgram, said: Mapping[str, Any]) -> Program:
    """The Program that `to_exported` was given, by what `interface.of` said of it.

    Nodes have their names back where the graph still has the same calls in the same order, else those of the graph.
    Raises ArtifactError when the graph is not one that vqc wrote (it writes in place, or its arguments or results are
    not flat tensors), or the notes are not its own; SpecError when both are well made and do not belong together.
    """
    interface.check(said)
    signature, example = exported.graph_signature, exported.example_inputs
    values = dict(exported.state_dict) | dict(exported.constants)
    if example is None:
        raise ArtifactError("an exported program has lost its example", way_out="write it again with target pt2")
    foreign = _why_foreign(exported)
    if foreign is not None:
        raise ArtifactError("an exported program has notes of vqc, and vqc did not write its graph", why=foreign,
                            way_out="write it again with target pt2, or torch.export.load it and give that to "
                                    "vqc.capture, which asks no notes")  # fmt: skip
    program = Program("exported", fx.Graph(), {}, (), ())
    nodes: dict[fx.Node, fx.Node] = {}
    tensors = iter(example[0])
    held = {s.arg.name: s for s in signature.input_specs if s.kind != InputKind.USER_INPUT}
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    for n in (p for p in placeholders if p.name not in held):  # inputs and states first, then constants
        nodes[n] = program.graph.placeholder(str(n.target))
        nodes[n].name = str(n.target)
        nodes[n].meta["val"] = meta_of(next(tensors))
    for n in (p for p in placeholders if p.name in held):
        key = str(held[n.name].target)
        program.constants[key] = values[key].detach()
        nodes[n] = program.graph.create_node("get_attr", key, name=key.replace(".", "_"))
        nodes[n].meta["val"] = meta_of(program.constants[key])
    calls = [n for n in exported.graph.nodes if n.op == "call_function"]
    known = said["calls"] if [op_text(n.target) for n in calls] == [c["target"] for c in said["calls"]] else None
    for k, n in enumerate(calls):
        if not isinstance(n.target, torch._ops.OpOverload) and n.target is not operator.getitem:
            raise ArtifactError(f"an exported program calls {n.target}, which no Program holds",
                                way_out="write it again with target pt2")  # fmt: skip
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), nodes.__getitem__)
        name = known[k]["name"] if known else n.name
        nodes[n] = program.graph.create_node("call_function", n.target, args, kwargs, name)
        nodes[n].name = name
        nodes[n].meta.update({"source": known[k]["source"], "module": known[k]["module"]} if known else {})
        infer(program, nodes[n])
    (end,) = (n for n in exported.graph.nodes if n.op == "output")
    program.graph.output(tuple(nodes[a] for a in end.args[0]))
    program.drop_dead()
    interface.apply(program, said, [x.detach() for x in example[0]])
    spec.check(program, "reading it from an exported program")
    return program


def _why_foreign(exported: ExportedProgram) -> str | None:
    """None when a graph is made as those of `to_exported`: flat tensors in and out, nothing is written in place."""
    signature, (args, kwargs) = exported.graph_signature, exported.example_inputs
    held = {s.arg.name for s in signature.input_specs if s.kind != InputKind.USER_INPUT}
    written = [s for s in signature.output_specs if s.kind != OutputKind.USER_OUTPUT]
    if written:
        return f"it writes {written[0].target or written[0].arg.name}: {written[0].kind.name}"
    given = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name not in held]
    if kwargs or len(given) != len(args) or not all(isinstance(a, torch.Tensor) for a in args):
        return f"its {len(given)} inputs are not tensors, one an argument"
    values = {**exported.state_dict, **exported.constants}
    for s in signature.input_specs:
        if s.kind != InputKind.USER_INPUT and not isinstance(values.get(str(s.target)), torch.Tensor):
            return f"it holds {s.target or s.arg.name}, which is no tensor: {s.kind.name}"
    for n in exported.graph.nodes:
        if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable:
            return f"{n.name} writes in place: {op_text(n.target)}"
        if n.op == "output" and not all(isinstance(a, fx.Node) for a in n.args[0]):
            return "one of its results is no tensor"
    return None
