"""An ONNX graph under construction, and the table of rules by which a Program's calls become its nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from vqc.arguments import bind
from vqc.program import Program, dtype_of, shape_of

OPSET = 21  # the first with 4-bit integers and with 16-bit ones in QuantizeLinear
DOMAIN = "ai.vqc"

ELEMENT = {
    torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE, torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16, torch.uint8: TensorProto.UINT8, torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}  # fmt: skip


class CannotExport(Exception):
    """Why a call has no form in ONNX."""


Results = str | Sequence[str]
Rule = Callable[["Graph", fx.Node], Results]
RULES: dict[str, Rule] = {}
EXACT: dict[str, Rule] = {}  # those that stand before them where the reference's own bits are asked for


def rule(*names: str, exact: bool = False) -> Callable[[Rule], Rule]:
    """Decorator: register a function as the rule of these operators, by names like "aten::add.Tensor"."""

    def wrap(f: Rule) -> Rule:
        (EXACT if exact else RULES).update(dict.fromkeys(names, f))
        return f

    return wrap


def key_of(target: Any) -> str:
    """An operator's name in the table."""
    if isinstance(target, torch._ops.OpOverload):
        return target.name()
    return "getitem" if target is operator.getitem else str(target)


def need(ok: bool, why: str) -> None:
    """Raise CannotExport unless `ok`."""
    if not ok:
        raise CannotExport(why)


def array_of(value: torch.Tensor) -> np.ndarray:
    """A tensor's values, row by row."""
    return np.asarray(value.detach().cpu().numpy(), order="C")


class Graph:
    """Nodes and initializers of one model. Values go by the names of the Program's nodes.

    `functions`: names of the ai.vqc functions that its nodes call. Equal constants are stored once. `exact`: the rules
    of EXACT come first.
    """

    def __init__(self, program: Program, exact: bool = False):
        self.program, self.exact = program, exact
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.functions: set[str] = set()
        self.values: dict[fx.Node, Results] = {}
        self._taken = {n.name for n in program.graph.nodes}
        self._known: dict[tuple[Any, ...], str] = {}
        self._at: fx.Node | None = None

    # ---- what rules use ----------------------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """A node with one result; the name of the result. An input "" is one left out."""
        return self.emit_many(op, inputs, [out], domain, **attributes)[0]

    def emit_many(self, op: str, inputs: Sequence[str], outs: Sequence[str | None], domain: str = "",
                  **attributes: Any) -> list[str]:  # fmt: skip
        """A node with several results. A result that is given no name gets one like the call's."""
        base = self._at.name if self._at is not None else "value"
        names = [o if o is not None else self.free(f"{base}/{op}") for o in outs]
        if domain == DOMAIN:
            self.functions.add(op)
        kept = {k: v for k, v in attributes.items() if v is not None}
        made = helper.make_node(op, list(inputs), names, name=self.free(f"{base}/{op}/node"), domain=domain, **kept)
        if self._at is not None:
            source = str(self._at.meta.get("source", "")).split("\n")[0]
            made.doc_string = source
        self.nodes.append(made)
        return names

    def constant(self, value: np.ndarray | Sequence[int], name: str = "constant", kind: int | None = None) -> str:
        """An initializer of these values; `kind`: an ONNX element type NumPy has not (4-bit integers)."""
        array = np.asarray(value, np.int64 if isinstance(value, (list, tuple)) else None, order="C")
        key = (array.dtype.str, array.shape, kind, array.tobytes())
        if key not in self._known:
            unique = self.free(name)
            if kind is None:
                tensor = numpy_helper.from_array(array, unique)
            else:
                tensor = helper.make_tensor(unique, kind, array.shape, array.reshape(-1).tolist())
            self.initializers[unique] = tensor
            self._known[key] = unique
        return self._known[key]

    def number(self, value: float | bool, dtype: torch.dtype) -> str:
        """A scalar of a dtype. Raises CannotExport for one that NumPy does not have."""
        need(dtype in ELEMENT and dtype != torch.bfloat16, f"a constant of {dtype}")
        return self.constant(torch.tensor(value, dtype=dtype).numpy(), "number")

    def value(self, argument: Any, dtype: torch.dtype | None = None) -> str:
        """The value of an argument: a node, cast if it has another dtype, or a number of that dtype."""
        if isinstance(argument, fx.Node):
            found = self.values[argument]
            need(isinstance(found, str), f"{argument.name} is a list")
            assert isinstance(found, str)
            if dtype is not None and dtype_of(argument) != dtype:
                return self.emit("Cast", found, to=ELEMENT[dtype])
            return found
        need(isinstance(argument, (bool, int, float)) and dtype is not None, f"an argument {argument!r:.40}")
        assert dtype is not None
        return self.number(argument, dtype)

    def bound(self, node: fx.Node) -> dict[str, Any]:
        """The call's arguments by name."""
        return bind(node)

    def known(self, argument: Any, what: str) -> torch.Tensor:
        """A constant's tensor; CannotExport for anything that is computed."""
        found = self.program.constant(argument)
        need(found is not None, f"{what} is no constant")
        assert found is not None
        return found

    def free(self, name: str) -> str:
        unique, i = name, 1
        while unique in self._taken:
            unique, i = f"{name}_{i}", i + 1
        self._taken.add(unique)
        return unique

    # ---- what the exporter uses --------------------------------------------------------------------------------------

    def call(self, node: fx.Node) -> None:
        """Take one call by its rule. The result is called as the node is. Raises CannotExport."""
        key = key_of(node.target)
        found = EXACT.get(key, RULES.get(key)) if self.exact else RULES.get(key)
        need(found is not None, "there is no rule for it")
        assert found is not None
        for n in (node, *node.all_input_nodes):
            for t in _flat(n.meta.get("val")):
                need(t.dtype in ELEMENT, f"{n.name} is {t.dtype}")
        self._at = node
        self.values[node] = found(self, node)
        self._at = None

    def constant_node(self, node: fx.Node) -> None:
        """A `get_attr` node, by the name of its constant."""
        value = self.program.constants[str(node.target)]
        need(isinstance(value, torch.Tensor) and value.dtype in ELEMENT, f"{node.target} is no tensor ONNX has")
        need(value.dtype != torch.bfloat16, f"{node.target} is bfloat16")
        self.values[node] = self.constant(array_of(value), str(node.target))

    def prune(self, wanted: Sequence[str]) -> None:
        """Drop nodes and initializers nothing reads: constants that rules took apart."""
        alive, kept = set(wanted), []
        for n in reversed(self.nodes):
            if alive & set(n.output):
                alive |= set(n.input)
                kept.append(n)
        self.nodes = kept[::-1]
        self.initializers = {k: v for k, v in self.initializers.items() if k in alive}


def _flat(val: Any) -> list[torch.Tensor]:
    if isinstance(val, torch.Tensor):
        return [val]
    return [t for v in val for t in _flat(v)] if isinstance(val, (tuple, list)) else []


def pair(value: Any, default: int) -> list[int]:
    """Two numbers out of one, two or none."""
    values = [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])] or [default]
    return values * 2 if len(values) == 1 else values


def axis_of(node: fx.Node, axis: int) -> int:
    """A dimension counted from the front."""
    return axis % max(1, len(shape_of(node)))
