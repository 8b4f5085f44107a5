"""The Program: one step of a video network as a graph, with its state, its frames and its history.

A Program is ATen-level and functional. Its graph holds, in this order, a placeholder for every input, a placeholder
for every state, `get_attr` nodes for constants (looked up in `Program.constants`), `call_function` nodes, and one
output: a flat tuple of the results followed by the next value of every state and the value of every assumption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from vqc.errors import InputError
from vqc.program_text import DTYPE_NAMES, op_text, program_text, short_name, summary_text, tensor_text

__all__ = [
    "DTYPE_NAMES", "Assumption", "Declined", "Input", "Leaf", "PassRecord", "Program", "Signature", "State",
    "dtype_of", "evaluate", "infer", "meta_of", "op_text", "replace", "shape_of", "short_name", "tensor_text",
]  # fmt: skip


@dataclass(frozen=True)
class Input:
    """One tensor the user gives at every step.

    `name` is the placeholder's name. `known_range` is a range given by mathematics or by the user ((0, 1) for an
    image), never calibrated. `frames` says where time is in it (`vqc.frames.Frames`), None when it holds one frame.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    known_range: tuple[float, float] | None = None
    frames: Any = None


@dataclass(frozen=True)
class State:
    """A recurrent tensor: read at the start of a step, replaced at its end.

    `input` is the placeholder's name; `output` the index of the next value among the graph's outputs; `reset` the value
    at the first frame (its shape and dtype are the state's); `known_range` a range that holds by mathematics.
    `origin` says where it came from: "argument", "buffer NAME", "attribute NAME".
    """

    name: str
    input: str
    output: int
    reset: torch.Tensor
    known_range: tuple[float, float] | None = None
    origin: str = "argument"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.reset.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.reset.dtype


@dataclass(frozen=True)
class Assumption:
    """A fact about the data that held at capture and is checked at every step.

    `output` is the index of a boolean scalar among the graph's outputs, `expected` the value it must have.
    """

    output: int
    expected: bool
    where: str
    text: str


@dataclass(frozen=True)
class Leaf:
    """What stands at one leaf of the user's arguments or result: kind "input", "output", "state" or "constant"."""

    kind: str
    index: int = -1
    value: Any = None


@dataclass(frozen=True)
class Signature:
    """How the user's call maps to the flat inputs and outputs of the graph (pytree specs with their leaves)."""

    in_spec: pytree.TreeSpec | None = None
    in_leaves: tuple[Leaf, ...] = ()
    out_spec: pytree.TreeSpec | None = None
    out_leaves: tuple[Leaf, ...] = ()


@dataclass(frozen=True)
class Declined:
    """A candidate that a pass or backend left alone, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class PassRecord:
    """One line of a Program's history: the pass as text, how often each rewrite fired, what was left alone and why."""

    name: str
    rewrites: Mapping[str, int] = field(default_factory=dict)
    declined: tuple[Declined, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        did = ", ".join(f"{k} x{v}" for k, v in self.rewrites.items()) or "nothing"
        lines = [f"{self.name}: {did}", *(f"    {n}" for n in self.notes)]
        lines += [f"    left {d.node}: {d.reason}" for d in self.declined]
        return "\n".join(lines)


class Program:
    """One step of a video network: graph, constants, inputs, states, results, assumptions and history.

    Passes work on a clone (`Program.clone`), so a Program a user holds never changes under their hands.
    """

    def __init__(
        self,
        name: str,
        graph: fx.Graph,
        constants: dict[str, Any],
        inputs: Sequence[Input],
        outputs: Sequence[str],
        states: Sequence[State] = (),
        assumptions: Sequence[Assumption] = (),
        signature: Signature | None = None,
        history: Sequence[PassRecord] = (),
        example: Sequence[torch.Tensor] = (),
        notes: Sequence[str] = (),
    ):
        self.name = name
        self.graph = graph
        self.constants = constants
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)  # names of the user's results; graph outputs 0 .. len-1
        self.states = tuple(states)
        self.assumptions = tuple(assumptions)
        self.signature = signature or Signature()
        self.history = tuple(history)
        self.example = tuple(example)  # one step's inputs, the probe of debug mode
        self.notes = tuple(notes)  # licence and provenance, carried into artifacts

    # ---- reading -------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.graph.nodes)

    def node(self, name: str) -> fx.Node:
        """The node of this name; KeyError when there is none."""
        for n in self.graph.nodes:
            if n.name == name:
                return n
        raise KeyError(name)

    @property
    def calls(self) -> list[fx.Node]:
        """All `call_function` nodes, in order."""
        return [n for n in self.graph.nodes if n.op == "call_function"]

    @property
    def output_node(self) -> fx.Node:
        return next(n for n in reversed(self.graph.nodes) if n.op == "output")

    @property
    def result_nodes(self) -> tuple[fx.Node, ...]:
        """The flat tuple of the graph's outputs: results, next states, assumptions."""
        return tuple(self.output_node.args[0])

    def constant(self, node: Any) -> torch.Tensor | None:
        """The tensor behind a `get_attr` node, or None when the node is something else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            value = self.constants[str(node.target)]
            return value if isinstance(value, torch.Tensor) else None
        return None

    def state_inputs(self) -> set[str]:
        return {s.input for s in self.states}

    # ---- changing (passes only) --------------------------------------------------------------------------------------

    def clone(self) -> Program:
        """A copy with its own graph; constants are shared tensors and must never be written in place."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for n in self.graph.nodes:  # node by node, so that names stay: a clone prints exactly as its original
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), copies.__getitem__)
            copies[n] = graph.create_node(n.op, n.target, args, kwargs, n.name)
            copies[n].name = n.name  # fx renames what is a name of Python's own, like `input`
            copies[n].meta = dict(n.meta)
        return Program(
            self.name, graph, dict(self.constants), self.inputs, self.outputs, self.states, self.assumptions,
            self.signature, self.history, self.example, self.notes,
        )  # fmt: skip

    def add_constant(self, name: str, value: torch.Tensor, before: fx.Node | None = None) -> fx.Node:
        """Register a constant under a free name like `name` and return its `get_attr` node.

        The node is placed before the first call (constants come right after the placeholders).
        """
        key, i = name, 1
        while key in self.constants:
            key, i = f"{name}_{i}", i + 1
        self.constants[key] = value
        anchor = before or next(n for n in self.graph.nodes if n.op not in ("placeholder", "get_attr"))
        with self.graph.inserting_before(anchor):
            node = self.graph.create_node("get_attr", key, name=key.replace(".", "_"))
        node.meta["val"] = meta_of(value)
        return node

    def call(self, target: Any, args: tuple, kwargs: dict | None = None, *, like: fx.Node | None = None,
             name: str | None = None) -> fx.Node:  # fmt: skip
        """Insert a call at the graph's insertion point, infer its shape and dtype, keep `like`'s source."""
        node = self.graph.create_node("call_function", target, args, kwargs or {}, name or short_name(target))
        if like is not None:
            node.meta.update({k: v for k, v in like.meta.items() if k in ("source", "module", "frames")})
        infer(self, node)
        return node

    def drop_dead(self) -> int:
        """Remove calls and constants nobody reads; returns how many nodes went. State and inputs always stay."""
        removed = 0
        for n in reversed(self.graph.nodes):
            if not n.users and n.op in ("call_function", "get_attr"):
                self.graph.erase_node(n)
                removed += 1
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        for key in [k for k in self.constants if k not in used]:
            del self.constants[key]
        return removed

    def recorded(self, record: PassRecord) -> Program:
        self.history = (*self.history, record)
        return self

    def with_outputs(self, names: Iterable[str]) -> Program:
        """A clone that also returns these nodes, after all others: for debugging and for comparing backends."""
        clone = self.clone()
        by_name = {n.name: n for n in clone.graph.nodes}
        out = clone.output_node
        out.args = ((*out.args[0], *(by_name[n] for n in names)),)  # type: ignore[misc]
        return clone

    # ---- running --------------------------------------------------------------------------------------------------

    def to_module(self) -> fx.GraphModule:
        """A GraphModule of the graph: flat tensors in (inputs, then states), flat tuple out."""
        return fx.GraphModule(dict(self.constants), self.clone().graph, class_name="Program")

    def initial_state(self) -> list[torch.Tensor]:
        """Fresh copies of every state's reset value."""
        return [s.reset.clone() for s in self.states]

    def flatten_inputs(self, args: tuple, kwargs: dict | None = None) -> list[torch.Tensor]:
        """The flat input tensors of a call in the user's own structure (state arguments may be left out or None)."""
        kwargs = kwargs or {}
        if self.signature.in_spec is None:
            flat = list(args)
        else:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            if spec != self.signature.in_spec:
                tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
                flat = tensors[: len(self.inputs)] if len(tensors) >= len(self.inputs) else tensors
            else:
                flat = [leaves[i] for i, leaf in enumerate(self.signature.in_leaves) if leaf.kind == "input"]
        self.check_inputs(flat)
        return flat

    def check_inputs(self, flat: Sequence[Any]) -> None:
        """Raise InputError unless the tensors match the declared inputs in number, shape and dtype."""
        if len(flat) != len(self.inputs):
            raise InputError(
                f"program {self.name} takes {len(self.inputs)} input tensors a step, {len(flat)} were given",
                way_out="give " + ", ".join(f"{i.name} {list(i.shape)}" for i in self.inputs),
            )
        for spec, x in zip(self.inputs, flat, strict=True):
            if not isinstance(x, torch.Tensor) or tuple(x.shape) != spec.shape or x.dtype != spec.dtype:
                got = tensor_text(x) if isinstance(x, torch.Tensor) else type(x).__name__
                raise InputError(
                    f"input {spec.name} of program {self.name} is {got}",
                    why=f"it was captured as {DTYPE_NAMES.get(spec.dtype, spec.dtype)}{list(spec.shape)}",
                    way_out="resize or convert the frame, or capture the network again at this size",
                )

    def check_state(self, state: Sequence[Any]) -> None:
        """Raise InputError unless the tensors match the declared states."""
        if len(state) != len(self.states):
            raise InputError(f"program {self.name} has {len(self.states)} states, {len(state)} tensors were given",
                             way_out="start from Program.initial_state()")  # fmt: skip
        for spec, x in zip(self.states, state, strict=True):
            if not isinstance(x, torch.Tensor) or tuple(x.shape) != spec.shape or x.dtype != spec.dtype:
                got = tensor_text(x) if isinstance(x, torch.Tensor) else type(x).__name__
                raise InputError(
                    f"state {spec.name} of program {self.name} is {got}",
                    why=f"it is declared as {tensor_text(spec.reset)}",
                    way_out="reset the state when the frame size changes (Program.initial_state())",
                )

    def unflatten_outputs(self, results: Sequence[Any], state: Sequence[torch.Tensor], inputs: Sequence[Any]) -> Any:
        """The user's own result structure from flat results, next states and this step's inputs."""
        sig = self.signature
        if sig.out_spec is None:
            return tuple(results) if len(results) != 1 else results[0]
        sources = {"output": results, "state": state, "input": inputs}
        leaves = [leaf.value if leaf.kind == "constant" else sources[leaf.kind][leaf.index] for leaf in sig.out_leaves]
        return pytree.tree_unflatten(leaves, sig.out_spec)

    # ---- text -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return program_text(self)

    def summary(self) -> str:
        """One line: operators, weights, states, frames (what was captured)."""
        return summary_text(self)


def meta_of(value: Any) -> Any:
    """The same structure with every tensor replaced by a storage-free one on the meta device (strides kept)."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return (
            type(value)(meta_of(v) for v in value)
            if not hasattr(value, "_fields")
            else tuple(meta_of(v) for v in value)
        )
    return value


def infer(program: Program, node: fx.Node) -> Any:
    """Compute `node.meta["val"]` (shape and dtype) from the arguments' by running the operator on the meta device."""

    def load(n: fx.Node) -> Any:
        if n.op == "get_attr" and not isinstance(program.constants[str(n.target)], torch.Tensor):
            return program.constants[str(n.target)]
        return n.meta["val"]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), load)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    with torch.no_grad():
        node.meta["val"] = meta_of(node.target(*args, **kwargs))
    return node.meta["val"]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    return node.meta["val"].dtype


def evaluate(program: Program, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor] | None = None,
             observe: Callable[[fx.Node, Any], None] | None = None) -> tuple[Any, ...]:  # fmt: skip
    """Run one step of the graph eagerly and return the flat tuple of its outputs.

    `observe(node, value)` is called for every placeholder and call as soon as its value is known; values are freed
    after their last use, so a long graph needs little more memory than its widest cut.
    """
    feeds: Iterator[torch.Tensor] = iter([*inputs, *(program.initial_state() if state is None else state)])
    last = _last_uses(program)
    env: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for n in program.graph.nodes:
            if n.op == "placeholder":
                env[n] = next(feeds)
            elif n.op == "get_attr":
                env[n] = program.constants[str(n.target)]
            elif n.op == "call_function":
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), env.__getitem__)
                env[n] = n.target(*args, **kwargs)
            else:
                return fx.node.map_arg(n.args[0], env.__getitem__)
            if observe is not None and n.op != "get_attr":
                observe(n, env[n])
            for dead in last.get(n, ()):
                del env[dead]
    raise AssertionError("a graph without an output")


def _last_uses(program: Program) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for n in program.graph.nodes:
        for a in n.all_input_nodes:
            last[a] = n
    result: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        if user.op != "output":
            result.setdefault(user, []).append(value)
    return result


replace = dataclasses.replace
