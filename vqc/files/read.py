"""A Program out of the bytes of a `.vqc` file. Nothing in a file is code; everything in it is checked.

The hash finds whatever happened to a file by accident. A file that was made to harm has the right hash, so its content
is taken for nothing but data: operators come from a list, names are identifiers, the shape of every node is inferred
again from its arguments, and the finished Program has to keep the rules of `vqc.spec`.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor, fx

from vqc import spec
from vqc.errors import ArtifactError, VqcError
from vqc.files.container import SIZE_LIMIT, read_bytes, refuse, unpack
from vqc.files.inside import CONSTANT_NAME, NODE_NAME, dense
from vqc.files.operators import LIST_LIMIT, find, gives_list
from vqc.files.values import DTYPES, decode, decode_tree, dtype, fields, integer, items, need, sizes, text
from vqc.program import Assumption, Declined, Input, Leaf, PassRecord, Program, Signature, State, infer, meta_of

NODE_LIMIT = 200_000
PARTS = ("name", "inputs", "outputs", "states", "assumptions", "signature", "history", "example", "notes", "constants",
         "nodes", "results")  # fmt: skip
ABOUT = ("recipe", "calibration", "licence", "network", "vqc", "torch")


def load(path: str | Path, *, max_bytes: int = SIZE_LIMIT) -> Program:
    """The Program of a file that `save` wrote. No code of the file runs (docs/files.md).

    Raises ArtifactError, naming the file, the reason and the way out, for a file that is missing, truncated, changed,
    larger than `max_bytes`, of a format this release does not read, or no valid program.
    """
    if str(path).endswith(".pt2"):
        raise refuse(path, "it is called .pt2, which torch.export reads, and that may run code of the file",
                     "vqc.capture(path), if you trust the file")  # fmt: skip
    return program_of(read_bytes(path, max_bytes), path)[1]


def about(path: str | Path, *, max_bytes: int = SIZE_LIMIT) -> dict[str, Any]:
    """What a file says of itself: `recipe`, `calibration`, `licence`, `network`, `vqc` and `torch` (versions).

    Raises ArtifactError as `load` does, but for the program in it, which is not looked at.
    """
    return _about(unpack(read_bytes(path, max_bytes), path)[0], path)


def program_of(data: bytes, path: object) -> tuple[dict[str, Any], Program]:
    """(what the file says of itself, the Program) of a file's bytes. Raises ArtifactError."""
    header, payload = unpack(data, path)
    said = _about(header, path)
    try:
        tensors = safetensors_load(bytes(payload))
        program = _Reader(tensors).program(fields(header["program"], *PARTS))
        spec.check(program, "reading it")
    except ArtifactError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError, RecursionError,
            MemoryError, SafetensorError, VqcError) as e:  # fmt: skip
        wrote = f"it was written by vqc {said['vqc']} with PyTorch {said['torch']}"
        raise refuse(path, f"its content is no program this release takes: {e}", f"{wrote}; write it again") from e
    return said, program


def _about(header: Any, path: object) -> dict[str, Any]:
    try:
        found = fields(fields(header, "about", "program")["about"], *ABOUT)
        for name in ("recipe", "licence", "vqc", "torch"):
            text(found[name])
        need(
            type(found["network"]) is dict and type(found["calibration"]) is dict, "network and calibration are objects"
        )
    except ValueError as e:
        raise refuse(path, f"it does not say what it is: {e}") from e
    return found


class _Reader:
    """One file being read: its tensors, and which of them were used."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        self.used: set[str] = set()
        self.nodes: dict[str, fx.Node] = {}
        self.laid: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        for name, value in self.tensors.items():
            need(value.dtype in DTYPES.values(), f"the tensor {name!r:.60} is {value.dtype}")

    def tensor(self, name: Any, strides: Any = None) -> Tensor:
        need(type(name) is str and name in self.tensors, f"there is no tensor {name!r:.60}")
        self.used.add(name)
        value = self.tensors[name]
        if strides is None:
            return value
        wanted = tuple(integer(s, 0, 2**40) for s in items(strides, value.ndim))
        need(dense(tuple(value.shape), wanted), f"the layout {strides!r:.60} of {name!r:.60}")
        if (name, wanted) not in self.laid:
            laid = torch.empty_strided(tuple(value.shape), wanted, dtype=value.dtype)
            self.laid[name, wanted] = laid.copy_(value)
        return self.laid[name, wanted]

    def value(self, encoded: Any) -> Any:
        return decode(encoded, self.nodes, self.tensor)

    def program(self, p: dict[str, Any]) -> Program:
        constants: dict[str, Any] = {}
        for entry in items(p["constants"]):
            name, stored, strides = items(entry, 3)
            need(CONSTANT_NAME.fullmatch(text(name)) is not None and name not in constants, f"a constant {name!r:.60}")
            constants[name] = self.tensor(stored, strides)
        made = Program(text(p["name"]), fx.Graph(), constants, [self.input(e) for e in items(p["inputs"])], (),
                       [self.state(e) for e in items(p["states"])])  # fmt: skip
        self.graph(made, items(p["nodes"]), items(p["results"]))
        made.outputs = tuple(text(o) for o in items(p["outputs"]))
        made.assumptions = tuple(self.assumption(e, made) for e in items(p["assumptions"]))
        made.history = tuple(self.record(e) for e in items(p["history"]))
        made.notes = tuple(text(n) for n in items(p["notes"]))
        made.example = tuple(self.tensor(*items(e, 2)) for e in items(p["example"]))
        if made.example:
            made.check_inputs(made.example)
        made.signature = self.signature(p["signature"], made)
        for s in made.states:
            need(0 <= s.output < len(made.result_nodes), f"state {s.name} has no next value")
        unused = sorted(set(self.tensors) - self.used)
        need(not unused, f"nothing reads the tensor {unused[:1]!r:.60}")
        return made

    def input(self, entry: Any) -> Input:
        name, shape, kind, known, frames = items(entry, 5)
        return Input(_node_name(name), sizes(shape), dtype(kind), _range(self.value(known)), self.value(frames))

    def state(self, entry: Any) -> State:
        name, node, output, stored, strides, known, origin = items(entry, 7)
        return State(text(name), _node_name(node), integer(output, 0, 2**31), self.tensor(stored, strides),
                     _range(self.value(known)), text(origin))  # fmt: skip

    def assumption(self, entry: Any, p: Program) -> Assumption:
        output, expected, where, said = items(entry, 4)
        integer(output, 0, len(p.result_nodes) - 1)
        need(type(expected) is bool, "an assumption expects true or false")
        val = p.result_nodes[output].meta["val"]
        need(val.dtype == torch.bool and val.numel() == 1, "an assumption is no boolean scalar")
        return Assumption(output, expected, text(where), text(said))

    def record(self, entry: Any) -> PassRecord:
        name, rewrites, declined, notes = items(entry, 4)
        counts = self.value(rewrites)
        need(type(counts) is dict and all(type(v) is int for v in counts.values()), f"rewrites of {name!r:.60}")
        left = tuple(Declined(text(n), text(r)) for n, r in (items(d, 2) for d in items(declined)))
        return PassRecord(text(name), counts, left, tuple(text(n) for n in items(notes)))

    def signature(self, entry: Any, p: Program) -> Signature:
        found = fields(entry, "in_spec", "in_leaves", "out_spec", "out_leaves")
        limits = {"input": len(p.inputs), "output": len(p.outputs), "state": len(p.states), "constant": 0}
        parts: list[Any] = []
        for side in ("in", "out"):
            leaves = []
            for leaf in items(found[f"{side}_leaves"]):
                kind, index, value = items(leaf, 3)
                need(type(kind) is str and kind in limits, f"a leaf of the kind {kind!r:.40}")
                need(-1 <= integer(index) < max(limits[kind], 0), f"leaf {index} of kind {kind}")
                need(kind == "constant" or index >= 0, f"leaf {index} of kind {kind}")
                leaves.append(Leaf(kind, index, self.value(value)))
            tree = None if found[f"{side}_spec"] is None else decode_tree(found[f"{side}_spec"])
            need((0 if tree is None else tree.num_leaves) == len(leaves), f"the {side} structure has other leaves")
            parts += [tree, tuple(leaves)]
        return Signature(*parts)

    # ---- the graph ---------------------------------------------------------------------------------------------------

    def graph(self, p: Program, entries: list[Any], results: list[Any]) -> None:
        """Every node in order with its value inferred, then the output."""
        need(len(entries) <= NODE_LIMIT, f"{len(entries)} nodes; {NODE_LIMIT} are the most")
        resets = {s.input: meta_of(s.reset) for s in p.states}
        shapes = {i.name: torch.empty(i.shape, dtype=i.dtype, device="meta") for i in p.inputs} | resets
        for entry in entries:
            self.node(p, fields(entry, "name", "op", optional=("target", "args", "kwargs", "meta", "strides")), shapes)
        for name in results:
            need(type(name) is str and name in self.nodes, f"there is no node {name!r:.60}")
        p.graph.output(tuple(self.nodes[n] for n in results))

    def node(self, p: Program, entry: dict[str, Any], shapes: Mapping[str, Tensor]) -> None:
        name, op = _node_name(entry["name"]), text(entry["op"])
        need(name not in self.nodes, f"two nodes are called {name}")
        if op == "placeholder":
            need(name in shapes, f"{name} is no input and no state")
            node = p.graph.create_node(op, name, name=name)
            node.meta["val"] = shapes[name]
        elif op == "get_attr":
            key = text(entry["target"])
            need(key in p.constants, f"there is no constant {key!r:.60}")
            node = p.graph.create_node(op, key, name=name)
            node.meta["val"] = meta_of(p.constants[key])
        else:
            need(op == "call_function", f"{name} is a {op!r:.40}")
            node = self.call(p, name, entry)
        node.name = name  # fx renames what is a name of Python's own, like `input`
        node.meta["val"] = _laid(name, node.meta["val"], entry.get("strides"))
        for key, value in fields(entry.get("meta", {}), *entry.get("meta", {})).items():
            need(key != "val", f"{name} brings its own shape")
            node.meta[key] = self.value(value)
        self.nodes[name] = node

    def call(self, p: Program, name: str, entry: dict[str, Any]) -> fx.Node:
        """A call with its shape inferred by running the operator on tensors without storage."""
        target = find(text(entry["target"]))
        need(target is not None, f"{name} calls {entry['target']!r:.80}, which no file may name, or which is not there")
        args = tuple(self.value(a) for a in items(entry.get("args", [])))
        kwargs = self.value({"dict": entry.get("kwargs", [])})
        need(all(type(k) is str for k in kwargs), f"{name} names an argument by a number")
        node = p.graph.create_node("call_function", target, args, kwargs, name)
        if gives_list(target):
            longest = max((d for n in node.all_input_nodes for t in _flat(n.meta["val"]) for d in t.shape), default=0)
            need(longest <= LIST_LIMIT, f"{name} makes a list of an axis of {longest}; {LIST_LIMIT} are the most")
        try:
            infer(p, node)
        except Exception as e:  # an operator may raise anything about arguments that do not fit
            need(False, f"{name} calls {entry['target']} with what it does not take: {str(e)[:300]}")
        for t in _flat(node.meta["val"]):
            sizes(list(t.shape))
            need(t.dtype in DTYPES.values(), f"{name} is {t.dtype}")
        return node


def _node_name(name: Any) -> str:
    need(type(name) is str and NODE_NAME.fullmatch(name) is not None and not keyword.iskeyword(name),
         f"{name!r:.60} is no name of a node")  # fmt: skip
    return name


def _range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    need(type(value) is tuple and len(value) == 2 and all(type(v) in (int, float) for v in value),
         f"{value!r:.60} is no range")  # fmt: skip
    return value


def _flat(val: Any) -> list[Tensor]:
    if isinstance(val, Tensor):
        return [val]
    return [t for v in val for t in _flat(v)] if isinstance(val, (tuple, list)) else []


def _laid(name: str, val: Any, strides: Any) -> Any:
    """The value with the strides it had when it was captured; row-major when nothing else is said."""
    if isinstance(val, Tensor):
        if strides is None:
            return val if val.is_contiguous() else torch.empty(val.shape, dtype=val.dtype, device="meta")
        wanted = [integer(s, 0, 2**40) for s in items(strides, val.ndim)]  # of no memory: a view's are its base's
        return torch.empty_strided(val.shape, wanted, dtype=val.dtype, device="meta")
    if isinstance(val, (tuple, list)):
        parts = [None] * len(val) if strides is None else items(strides, len(val))
        return type(val)(_laid(name, v, s) for v, s in zip(val, parts, strict=True))
    need(strides is None, f"{name} is no tensor")
    return val
