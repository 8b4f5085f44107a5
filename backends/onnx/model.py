"""A Program as one ONNX model, with its states as inputs and outputs."""

from __future__ import annotations

import json

import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

import vqc
from vqc.backends.onnx import (  # noqa: F401  (register the rules)
    binary,
    layers,
    moves,
    norms,
    picks,
    places,
    plain,
    quantized,
    reference,
    spaces,
    windows,
)
from vqc.backends.onnx.graph import DOMAIN, ELEMENT, OPSET, RULES, CannotExport, Graph, key_of
from vqc.errors import UnsupportedOp
from vqc.program import Declined, Program, op_text

IR_VERSION = 10  # the one that came with opset 21
NEXT = "_next"  # what the next value of a state is called


def why_not(program: Program, node: fx.Node, exact: bool = False) -> str | None:
    """None when a call has a form in ONNX, else the reason there is none."""
    if key_of(node.target) not in RULES:
        return f"there is no rule for {op_text(node.target)}"
    g = Graph(program, exact)
    try:
        for n in node.all_input_nodes:
            if n.op == "get_attr":
                g.constant_node(n)
            else:
                val = n.meta["val"]
                g.values[n] = [f"{n.name}.{i}" for i in range(len(val))] if isinstance(val, (tuple, list)) else n.name
        g.call(node)
    except CannotExport as e:
        return str(e)
    return None


def unsupported(program: Program, exact: bool = False) -> list[Declined]:
    """Every call that has no form in ONNX, with the reason."""
    reasons = ((n, why_not(program, n, exact)) for n in program.calls)
    return [Declined(n.name, reason) for n, reason in reasons if reason is not None]


def output_names(program: Program) -> list[str]:
    """What the model's outputs are called: the results, `STATE_next` for every state, `assumption_N`."""
    names = list(program.outputs)
    named = {s.output: s.input + NEXT for s in program.states} | {
        a.output: f"assumption_{i}" for i, a in enumerate(program.assumptions)
    }
    names += [named.get(i, f"extra_{i}") for i in range(len(names), len(program.result_nodes))]
    taken = {s.input for s in program.states} | {i.name for i in program.inputs}
    return [f"{n}_out" if n in taken else n for n in names]


def model_of(program: Program, licence: str = "", exact: bool = False) -> onnx.ModelProto:
    """The model, checked by ONNX's own checker.

    `exact`: with the reference's own order of operations, else in the form that runtimes look for. Raises UnsupportedOp
    that lists every operator without a form.
    """
    missing = unsupported(program, exact)
    if missing:
        lines = [f"{d.node} ({op_text(program.node(d.node).target)}): {d.reason}; "
                 f"{program.node(d.node).meta.get('source') or 'source unknown'}" for d in missing]  # fmt: skip
        raise UnsupportedOp(f"{len(missing)} of {len(program.calls)} operators of {program.name} have no form in ONNX",
                            why="; ".join(lines), way_out="rewrite these operators, or use "
                            + ("target onnx" if exact else "a C target"))  # fmt: skip
    g = Graph(program, exact)
    for n in program.graph.nodes:
        if n.op == "placeholder":
            g.values[n] = n.name
        elif n.op == "get_attr":
            g.constant_node(n)
        elif n.op == "call_function":
            g.call(n)
    names = output_names(program)
    outputs = []
    for name, node in zip(names, program.result_nodes, strict=True):
        source = g.value(node)
        g.nodes.append(helper.make_node("Identity", [source], [name], name=f"{name}/output"))
        outputs.append(_info(name, node.meta["val"]))
    g.prune(names)
    inputs = [_info(n.name, n.meta["val"]) for n in program.graph.nodes if n.op == "placeholder"]
    graph = helper.make_graph(g.nodes, program.name, inputs, outputs, list(g.initializers.values()),
                              doc_string="\n".join(program.notes))  # fmt: skip
    for n in program.calls:
        val = n.meta["val"]
        if isinstance(val, torch.Tensor) and isinstance(g.values.get(n), str):
            graph.value_info.append(_info(str(g.values[n]), val))
    opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(DOMAIN, 1)] if g.functions else [])
    functions = [binary.function(name) for name in sorted(g.functions)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION,
                              producer_name="vqc", producer_version=vqc.__version__)  # fmt: skip
    helper.set_model_props(model, {"vqc.interface": json.dumps(interface(program, names)), "vqc.licence": licence,
                                   "vqc.history": "\n".join(r.name for r in program.history)})  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def interface(program: Program, names: list[str]) -> dict[str, object]:
    """What a caller has to know: inputs, results, which output goes into which input at the next step, assumptions."""
    return {
        "inputs": [{"name": i.name, "range": i.known_range} for i in program.inputs],
        "outputs": names[: len(program.outputs)],
        "states": [{"input": s.input, "output": names[s.output], "origin": s.origin,
                    "reset": "zeros" if not bool(s.reset.any()) else "file"} for s in program.states],
        "assumptions": [{"output": names[a.output], "expected": a.expected, "text": a.text}
                        for a in program.assumptions],
    }  # fmt: skip


def _info(name: str, val: torch.Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENT.get(val.dtype, TensorProto.UNDEFINED), list(val.shape))
