"""A Program as the header and the tensors of a `.vqc` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, fx

from vqc.calibration.clips import as_clips
from vqc.errors import ArtifactError
from vqc.files.container import pack, write_bytes
from vqc.files.inside import CONSTANT_NAME, NODE_NAME, dense
from vqc.files.operators import name_of
from vqc.files.read import program_of
from vqc.files.values import Unfit, dtype_text, encode, encode_tree
from vqc.learning.checkpoint import fingerprint
from vqc.program import Leaf, Program, op_text

# What a node is noted with that is not the program's: shapes are inferred again, the rest belongs to a capture, to
# Dynamo or to a backend at work.
NOT_STORED = {"val", "place", "grapharg", "stack_trace", "nn_module_stack", "origin", "tensor_meta", "example_value",
              "from_node", "seq_nr", "torch_fn", "original_aten", "partitioner_tag"}  # fmt: skip


class _Tensors:
    """The tensors of a file by name, each once: two that are one tensor in memory are one in the file."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def keep(self, value: Tensor, name: str = "value") -> str:
        if id(value) in self._names:
            return self._names[id(value)]
        dtype_text(value.dtype)
        key, i = name, 1
        while key in self.found:
            key, i = f"{name}~{i}", i + 1
        self.found[key], self._names[id(value)] = value, key
        return key

    def payload(self) -> bytes:
        owned = {k: v.detach().cpu().resolve_conj().resolve_neg().contiguous().clone() for k, v in self.found.items()}
        return safetensors_bytes(owned)


def save(program: Program, path: str | Path, *, recipe: str = "", calibration: Any = None, licence: str = "",
         network: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
    """Write a Program into one file, beside its place and renamed; returns the path (docs/files.md).

    Parameters: `recipe` - what was applied, for readers (default: the passes of the history). `calibration` - the
    clips, in any form `vqc.calibration.as_clips` takes, or a mapping: a summary of them is kept, not the pictures.
    `licence` - of the weights. `network` - how a clip becomes this program's inputs and which result is the picture,
    for the command line.
    The file is read back and compared before it is written. Raises ArtifactError for a program that a file cannot hold
    (a sub-graph, an operator of the user's own), and when the file cannot be written.
    """
    path = Path(path)
    summary = dict(calibration) if isinstance(calibration, Mapping) else summary_of(program, calibration)
    about = {"recipe": recipe or ",".join(r.name for r in program.history), "calibration": summary,
             "licence": licence, "network": dict(network or {}), **_versions()}  # fmt: skip
    tensors = _Tensors()
    try:
        header = {"about": about, "program": _program(program, tensors)}
        data = pack(header, tensors.payload())
    except ValueError as e:
        raise ArtifactError(f"program {program.name} cannot be written as a .vqc file", where=str(path), why=str(e),
                            way_out="keep the PyTorch model and the recipe instead") from e  # fmt: skip
    _, again = program_of(data, path)
    if content_key(again) != content_key(program):
        raise ArtifactError(f"program {program.name} cannot be written as a .vqc file", where=str(path),
                            why="it reads back as another program",
                            way_out="report it with the program's text")  # fmt: skip
    return write_bytes(path, data)


def content_key(program: Program) -> str:
    """A hash of all that a program is: its text and arguments in full, bits, layouts, interface and history."""
    layouts = [(n.name, _strides(n.meta.get("val"))) for n in program.graph.nodes]
    interface = [repr((program.inputs, program.outputs, program.assumptions, program.history, program.notes)),
                 repr([(s.name, s.input, s.output, s.known_range, s.origin) for s in program.states])]  # fmt: skip
    outputs = [str(n) for n in program.result_nodes]
    return fingerprint(program, str(program), repr(layouts), interface, outputs, list(program.example))


def summary_of(program: Program, calibration: Any) -> dict[str, Any]:
    """What is kept of calibration clips: steps, the range and mean of every input, and a hash of the pictures."""
    if calibration is None:
        return {}
    clips = as_clips(calibration, program)
    inputs = {}
    for k, spec in enumerate(program.inputs):
        seen = torch.stack([step[k].double() for clip in clips for step in clip])
        inputs[spec.name] = {"low": float(seen.min()), "high": float(seen.max()), "mean": float(seen.mean())}
    content = fingerprint([[list(step) for step in clip] for clip in clips])
    return {"clips": len(clips.clips), "steps": clips.frames, "inputs": inputs, "sha256": content}


def _versions() -> dict[str, str]:
    import vqc  # whose own import reaches this module

    return {"vqc": vqc.__version__, "torch": torch.__version__}


def _program(program: Program, tensors: _Tensors) -> dict[str, Any]:
    constants = []
    for name, value in program.constants.items():
        if not isinstance(value, Tensor):
            raise Unfit(f"the constant {name} is a sub-graph ({type(value).__name__}), which a file does not hold yet")
        if not CONSTANT_NAME.fullmatch(name):
            raise Unfit(f"the constant {name!r} has a name with other characters than letters, digits and . _ - : /")
        constants.append([name, tensors.keep(value, name), _layout(value)])
    return {
        "name": program.name,
        "inputs": [[i.name, list(i.shape), dtype_text(i.dtype), _value(i.known_range, tensors),
                    _value(i.frames, tensors)] for i in program.inputs],
        "outputs": list(program.outputs),
        "states": [[s.name, s.input, s.output, tensors.keep(s.reset, f"state {s.name}"), _layout(s.reset),
                    _value(s.known_range, tensors), s.origin] for s in program.states],
        "assumptions": [[a.output, a.expected, a.where, a.text] for a in program.assumptions],
        "signature": _signature(program, tensors),
        "history": [[r.name, _value(dict(r.rewrites), tensors), [[d.node, d.reason] for d in r.declined],
                     list(r.notes)] for r in program.history],
        "example": [[tensors.keep(x, f"example {k}"), _layout(x)] for k, x in enumerate(program.example)],
        "notes": list(program.notes),
        "constants": constants,
        "nodes": [_node(n, tensors) for n in program.graph.nodes if n.op != "output"],
        "results": [n.name for n in program.result_nodes],
    }  # fmt: skip


def _signature(program: Program, tensors: _Tensors) -> dict[str, Any]:
    def leaves(found: tuple[Leaf, ...]) -> list[Any]:
        return [[leaf.kind, leaf.index, _value(leaf.value, tensors)] for leaf in found]

    s = program.signature
    return {"in_spec": None if s.in_spec is None else encode_tree(s.in_spec), "in_leaves": leaves(s.in_leaves),
            "out_spec": None if s.out_spec is None else encode_tree(s.out_spec),
            "out_leaves": leaves(s.out_leaves)}  # fmt: skip


def _value(value: Any, tensors: _Tensors) -> Any:
    return encode(value, tensors.keep)


def _node(n: fx.Node, tensors: _Tensors) -> dict[str, Any]:
    if not NODE_NAME.fullmatch(n.name):
        raise Unfit(f"a node is called {n.name!r}, which is no identifier")
    found: dict[str, Any] = {"name": n.name, "op": n.op}
    if n.op == "get_attr":
        found["target"] = str(n.target)
    elif n.op == "call_function":
        name = name_of(n.target)
        if name is None:
            raise Unfit(f"{n.name} calls {op_text(n.target)}, which is not among the operators a file may name")
        found["target"] = name
        found["args"] = [_value(a, tensors) for a in n.args]
        if n.kwargs:
            found["kwargs"] = _value(dict(n.kwargs), tensors)["dict"]
    meta = {}
    for key, value in n.meta.items():
        if key in NOT_STORED:
            continue
        try:
            meta[key] = _value(value, tensors)
        except Unfit as e:
            raise Unfit(f"{n.name} is noted with {key!r}, which cannot be stored: {e}") from e
    if meta:
        found["meta"] = meta
    strides = _strides(n.meta.get("val"))
    if strides is not None:
        found["strides"] = strides
    return found


def _strides(val: Any) -> Any:
    """The strides of a tensor, or of every tensor in a tuple; None when all of them are row-major."""
    if isinstance(val, Tensor):
        return None if val.is_contiguous() else list(val.stride())
    if isinstance(val, (tuple, list)):
        found = [_strides(v) for v in val]
        return found if any(f is not None for f in found) else None
    return None


def _layout(value: Tensor) -> Any:
    """The strides of a constant that is laid out in memory otherwise than row by row; None for the others."""
    strides = tuple(value.stride())
    return None if value.is_contiguous() or not dense(tuple(value.shape), strides) else list(strides)
