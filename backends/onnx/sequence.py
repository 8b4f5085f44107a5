"""A whole clip in one call: the step as the body of a Scan over its frames, the states carried inside.

Inputs are the states and, for every input of the step, its frames behind one another: [T, *shape], T whatever it is.
Outputs are the last states, called as those of a step are, and every result and assumption with T in front. Weights
stand outside of the body.
"""

from __future__ import annotations

import onnx
from onnx import helper

from vqc.program import Program

TIME = "frames"


def sequence_of(step: onnx.ModelProto, program: Program) -> onnx.ModelProto:
    """The model of a step as a model of a clip, checked by ONNX's own checker."""
    model = onnx.ModelProto()
    model.CopyFrom(step)
    graph = model.graph
    states = {s.input: s.output for s in program.states}
    inside = {i.name: i for i in graph.input}
    results = [o for k, o in enumerate(graph.output) if k not in states.values()]
    nexts = {name: graph.output[k] for name, k in states.items()}
    entered = [*states, *(name for name in inside if name not in states)]
    body = helper.make_graph(
        graph.node, "step", [_renamed(inside[n], _inner(n)) for n in entered],
        [*(_renamed(nexts[n], _inner(nexts[n].name)) for n in states), *(_renamed(o, _inner(o.name)) for o in results)],
        value_info=list(graph.value_info),
    )  # fmt: skip
    renamed = {*inside, *(o.name for o in graph.output)}
    for node in body.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name in renamed:
                    names[k] = _inner(name)
    scan = helper.make_node(
        "Scan", entered, [*(nexts[n].name for n in states), *(o.name for o in results)], name="clip", body=body,
        num_scan_inputs=len(entered) - len(states),
    )  # fmt: skip
    given = [inside[n] if n in states else _timed(inside[n]) for n in entered]
    whole = helper.make_graph([scan], graph.name, given, [*nexts.values(), *(_timed(o) for o in results)],
                              list(graph.initializer), doc_string=graph.doc_string)  # fmt: skip
    model.graph.CopyFrom(whole)
    onnx.checker.check_model(model, full_check=True)
    return model


def _inner(name: str) -> str:
    return f"{name}@step"


def _renamed(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(info)
    made.name = name
    return made


def _timed(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The same with the frames in front."""
    kind = info.type.tensor_type
    return helper.make_tensor_value_info(info.name, kind.elem_type, [TIME, *(d.dim_value for d in kind.shape.dim)])
