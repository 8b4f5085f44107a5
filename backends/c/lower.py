"""Lowering: a Program becomes buffers, values and kernel calls, node by node, by the rules of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.choices import Choices
from vqc.backends.c.expand import expanded
from vqc.backends.c.ir import Arg, Buffer, Call, Lowered, Ref, Scratch, Struct, Value, align, dense_strides, numel
from vqc.backends.c.layouts import LAYOUTS
from vqc.backends.c.registry import rule_for
from vqc.backends.c.text import c_name
from vqc.backends.c.weights import WeightPool
from vqc.errors import UnsupportedOp
from vqc.program import Declined, Program, tensor_text

__all__ = ["Lowering", "lower"]


class Lowering:
    """The state of one lowering; rules call its methods.

    `value` and `dense` give a node's tensor, `new` makes an arena tensor, `weight` a constant, `call` adds a kernel
    call, `bind` says what a node's result is.
    """

    def __init__(self, program: Program, target: str, workers: int = 1, choices: Choices | None = None, *,
                 winograd: bool = False):  # fmt: skip
        self.program = program
        self.target = target
        self.workers = workers
        self.choices = choices or Choices()
        self.winograd = winograd  # float convolutions may take it where they can
        self.calls: list[Call] = []
        self.pool = WeightPool()
        self.env: dict[fx.Node, Any] = {}
        self.done: set[fx.Node] = set()  # nodes that went into another one's kernel
        self.kernels: dict[str, str] = {}
        self.node: fx.Node | None = None
        self.following: fx.Node | None = None  # a node whose expression alone is wanted, in `followed` (c4.followers)
        self.followed: ex.Expr | None = None
        self.row_functions: dict[str, str] = {}
        self.unfused: dict[str, str] = {}  # a result that is stored although a reader could have gone on -> why
        self._dense: dict[tuple, Value] = {}

    # ---- tensors ---------------------------------------------------------------------------------------------------

    def value(self, arg: Any) -> Value:
        """The tensor of a node as it lies in memory, possibly strided."""
        found = self.anyhow(arg)
        return found if found.layout is None else self._converted(found, None)

    def anyhow(self, arg: Any) -> Value:
        """The tensor of a node in memory, in whatever layout it was made."""
        if isinstance(arg, Value):
            return arg
        if arg not in self.env and arg.op == "get_attr":
            self.env[arg] = self.pool.add(self.program.constants[str(arg.target)], str(arg.target))
        found = self.env[arg]
        if isinstance(found, ex.Expr):  # a lazy pointwise result somebody needs in memory
            found = self.env[arg] = self.compute(found, arg)
        return found

    def packed(self, arg: Any, layout: str) -> Value:
        """The tensor of a node in a packed layout, converted if need be (once)."""
        found = self.anyhow(arg)
        return found if found.layout == layout else self._converted(self.dense(found), layout)

    def _converted(self, value: Value, layout: str | None) -> Value:
        key = (*ex.key(value), value.layout, layout)
        if key not in self._dense:
            how = LAYOUTS[layout or value.layout or ""]
            made = self.new(value.shape, value.dtype, layout=layout)
            (how.pack if layout else how.unpack)(self, value, made)
            self._dense[key] = made
        return self._dense[key]

    def dense(self, arg: Any) -> Value:
        """The tensor of a node in row-major order without gaps, copied if need be (once)."""
        v = self.value(arg)
        if v.is_dense:
            return Value(v.buffer, v.dtype, v.shape, dense_strides(v.shape), v.offset)
        key = ex.key(v)
        if key not in self._dense:
            copy = self.new(v.shape, v.dtype)
            self.copy(v, copy)
            self._dense[key] = copy
        return self._dense[key]

    def new(self, shape: Sequence[int], dtype: torch.dtype, name: str | None = None, layout: str | None = None
            ) -> Value:  # fmt: skip
        """A fresh tensor in the arena, dense or in a packed layout."""
        value = Value(Buffer(name or self._name(), 0, "arena"), dtype, tuple(shape), dense_strides(shape), 0, layout)
        value.buffer.size = LAYOUTS[layout].size(value.shape, dtype) if layout else value.count * value.item
        return value

    def result(self, node: fx.Node, layout: str | None = None) -> Value:
        """A fresh tensor for a node's result, bound to it."""
        val = node.meta["val"]
        value = self.env[node] = self.new(tuple(val.shape), val.dtype, node.name, layout)
        return value

    def weight(self, tensor: torch.Tensor | np.ndarray, name: str = "constant") -> Value:
        """A constant in the weights file."""
        return self.pool.add(tensor, name)

    def constant(self, arg: Any) -> torch.Tensor | None:
        """The tensor of a `get_attr` node, else None."""
        return self.program.constant(arg)

    def rows(self, geometry: Any, node: str | None = None) -> int:
        """Output rows of one task of a convolution: the geometry's estimate, or what tuning found."""
        return self.choices.rows(geometry, self.workers, node or self._name())

    def bind(self, node: fx.Node, value: Any) -> None:
        self.env[node] = value

    def _name(self) -> str:
        return self.node.name if self.node is not None else "result"

    # ---- calls -----------------------------------------------------------------------------------------------------

    def call(self, kernel: str, family: str, params: Struct, *args: Value | Scratch | None | tuple[Value, ...],
             out: Sequence[Value] = (), scratch: int = 0, comment: str = "", **extra: Any) -> Call:  # fmt: skip
        """Add a kernel call: inputs in order, then outputs, then `scratch` bytes for each worker (0: no argument)."""
        refs: list[Arg] = []
        for a in args:
            if isinstance(a, Value):
                refs.append(Ref(a.buffer, a.start))
            elif isinstance(a, tuple):
                refs.append(tuple(v if isinstance(v, Ref) else Ref(v.buffer, v.start) for v in a))
            else:
                refs.append(a)
        refs += [Ref(v.buffer, v.start, writes=True) for v in out]
        if scratch:
            refs.append(Scratch(align(scratch)))
        name = self._name()
        call = Call(kernel, family, params, tuple(refs), name, comment or self._comment(out), **extra)
        self.calls.append(call)
        if self.node is not None and self.kernels.get(name, "") in ("", "vqc_copy"):
            self.kernels[name] = kernel
        return call

    def _comment(self, out: Sequence[Value]) -> str:
        if self.node is None:
            return ""
        source = str(self.node.meta.get("source", "")).split("\n")[0]
        text = tensor_text(self.node.meta["val"])
        return f"{self.node.name}: {text}" + (f"  {source}" if source else "")

    def copy(self, src: Value, dst: Value, strides: Sequence[int] | None = None, *, only: bool = True) -> None:
        """Copy elements between tensors of one shape.

        `strides`, instead of the source's own, may be negative. `only`: nothing else writes this part of the target, so
        that the plan may let the source live there.
        """
        assert src.item == dst.item
        if dst.count == 0:
            return
        steps = tuple(src.strides) if strides is None else tuple(strides)
        order = sorted(range(len(dst.shape)), key=lambda i: -abs(dst.strides[i]))
        shape, (a, b) = ex.collapse([dst.shape[i] for i in order], [steps[i] for i in order],
                                    [dst.strides[i] for i in order])  # fmt: skip
        if len(shape) > ex.MAX_DIMS:
            raise UnsupportedOp(f"{self._name()} moves over {len(shape)} axes at once", why="the copy kernel has 8",
                                way_out="reshape the tensor to fewer axes")  # fmt: skip
        whole = only and strides is None and src.is_whole and dst.is_dense and src.buffer.kind == "arena"
        call = Call(
            "vqc_copy", "move",
            Struct("vqc_copy_params", {"size": src.item, "dims": len(shape), "shape": shape, "src": a, "dst": b}),
            (Ref(src.buffer, src.start), Ref(dst.buffer, dst.start, writes=True)), self._name(), self._comment([dst]),
            copies=(src.buffer, dst.buffer, dst.start) if whole else None,
        )  # fmt: skip
        self.calls.append(call)
        if self.node is not None:
            self.kernels.setdefault(call.node, "vqc_copy")

    def compute(self, expr: ex.Expr, node: fx.Node | None = None, *, like: Value | None = None) -> Value:
        """Emit a pointwise expression: into a fresh tensor for `node`, or into `like`."""
        if like is not None:
            out = like
        else:
            assert node is not None
            from vqc.backends.c.lowering import c4, parts_c4  # they need this class

            if parts_c4.leaves(expr) and c4.wants_c4(self.program, node):
                return parts_c4.emit(self, expr, node)
            expr = parts_c4.without_leaves(self, expr)
            if expr.op == "load" and expr.value is not None:
                return expr.value
            if c4.by_rows(self, expr, node):
                return c4.emit(self, expr, node)
            plain = c4.emit_plain(self, expr, node)
            if plain is not None:
                return plain
            val = node.meta["val"]
            out = self.new(tuple(val.shape), val.dtype, node.name)
        params, values = ex.program(expr, out)
        shared = ex.can_share(out, values)
        call = self.call(
            "vqc_pointwise_s64" if expr.integer else "vqc_pointwise_f32",
            "pointwise_s64" if expr.integer else "pointwise_f32", params, tuple(values), out=(),
            inplace=(out.buffer, tuple(shared)) if shared else None,
        )  # fmt: skip
        call.args = (*call.args, (Ref(out.buffer, out.start, writes=True),))
        return out

    def row_function(self, text: str) -> str:
        """The name of the row program with this text."""
        return self.row_functions.setdefault(text, f"{c_name(self.program.name)}_row_{len(self.row_functions)}")

    # ---- the whole program -----------------------------------------------------------------------------------------

    def lower(self, node: fx.Node) -> None:
        """Lower one node, whose operands are lowered. Raises UnsupportedOp where there is no rule for it."""
        self.node = node
        rule = rule_for(node.target, self.target)
        if rule is None:
            raise UnsupportedOp(
                f"{node.name} has no C kernel",
                where=str(node.meta.get("source", "")),
                why=f"no rule for {node.target}",
                way_out="compile with fallback=eager",
            )
        rule.lower(self, node)
        self.kernels.setdefault(node.name, "")

    def run(self) -> Lowered:
        program = self.program
        inputs, states, state_size = self._interface()
        for node in program.calls:
            if node in self.done:
                continue
            self.lower(node)
        self.node = None
        outputs = self._finish(states)
        resets = [self.pool.add(s.reset, f"reset_{s.name}") if bool(s.reset.any()) else None for s in program.states]
        return Lowered(
            program.name,
            self.calls,
            b"",
            inputs,
            outputs,
            states,
            resets,
            state_size,
            self.kernels,
            self.row_functions,
            [Declined(n, why) for n, why in self.unfused.items()],
            self.workers,
        )

    def _interface(self) -> tuple[list[Value], list[Value], int]:
        inputs: list[Value] = []
        states: list[Value] = []
        state_size = 0
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            val = node.meta["val"]
            shape = tuple(val.shape)
            if len(inputs) < len(self.program.inputs):
                buffer = Buffer(node.name, 0, "input", len(inputs))
                inputs.append(Value(buffer, val.dtype, shape, dense_strides(shape)))
            else:
                buffer = Buffer(node.name, 0, "state", state_size)
                states.append(Value(buffer, val.dtype, shape, dense_strides(shape)))
                state_size += align(numel(shape) * states[-1].item)
            value = (states or inputs)[-1]
            buffer.size = value.count * value.item
            self.env[node] = value
        return inputs, states, state_size

    def _finish(self, states: list[Value]) -> list[Value]:
        """Copy results to the outputs and next states to the states (the plan removes most of these copies)."""
        results = self.program.result_nodes
        indices = {s.output for s in self.program.states}
        values = [self.value(r) for r in results]  # everything that still reads an old state is computed before
        outputs: list[Value] = []
        for i, v in enumerate(values):
            if i in indices:
                continue
            buffer = Buffer(f"output {len(outputs)}", v.count * v.item, "output", len(outputs))
            outputs.append(Value(buffer, v.dtype, v.shape, dense_strides(v.shape)))
            self.copy(v, outputs[-1])
        held = []
        for s in self.program.states:
            v = values[s.output]
            if v.buffer.kind == "state":  # another state's old value: safe before any state is written
                kept = self.new(v.shape, v.dtype, f"old_{v.buffer.name}")
                self.copy(v, kept)
                v = kept
            held.append(v)
        for v, state in zip(held, states, strict=True):
            self.copy(v, state)
        return outputs


def _named_by_origin(program: Program, lowered: Lowered) -> None:
    """Calls that an expansion made go by the name of the call they come from."""
    origin = {n.name: str(n.meta["origin"]) for n in program.calls if "origin" in n.meta}
    for call in lowered.calls:
        call.node = origin.get(call.node, call.node)
    for name, first in origin.items():
        kernel = lowered.kernels.pop(name, "")
        names = [k for k in lowered.kernels.get(first, "").split(" + ") if k]
        if kernel and kernel not in names:
            names.append(kernel)
        lowered.kernels[first] = " + ".join(names)


def lower(program: Program, target: str, workers: int = 1, choices: Choices | None = None, *,
          winograd: bool = False) -> Lowered:  # fmt: skip
    """Lower a whole Program whose every call is supported; the weights payload is filled in."""
    program = expanded(program)
    lowering = Lowering(program, target, workers, choices, winograd=winograd)
    lowered = lowering.run()
    _named_by_origin(program, lowered)
    lowered.weights = lowering.pool.payload()
    return lowered
