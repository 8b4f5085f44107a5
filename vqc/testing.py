"""Helpers for tests of passes, recipes and backends: count, match, print and compare Programs.

    from vqc import testing

    def test_my_pass():
        after = MyPass()(before)
        testing.assert_change(before, after, {"aten.sigmoid": -1, "vqc.sigmoid": +1})
        assert testing.match(after, ("vqc.sigmoid", ("aten.conv2d", Any, "constant", ...)))
        testing.assert_same(before, after, rtol=1e-5)
        testing.assert_integers_equal(after, "reference", "native")

All failures are AssertionErrors that say what differs and where it comes from in the user's model.
"""

from __future__ import annotations

import difflib
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx

from vqc.backends import backend_for
from vqc.executable import Executable
from vqc.program import Program, evaluate, op_text, tensor_text

UPDATE = "VQC_UPDATE_TEXT"  # set to 1: a failing assert_text prints the new text, ready to paste

# ---- operators -------------------------------------------------------------------------------------------------------


def node_text(node: fx.Node) -> str:
    """What a pattern's name is compared with: "aten.conv2d", "placeholder", "constant"."""
    return {"get_attr": "constant"}.get(node.op, node.op) if node.op != "call_function" else op_text(node.target)


def count_ops(program: Program) -> Counter[str]:
    """How often each operator is called, by its text ("aten.conv2d", "aten.add.Tensor", "vqc.qconv2d")."""
    return Counter(op_text(n.target) for n in program.calls)


def assert_ops(program: Program, counts: Mapping[str, int]) -> None:
    """Assert how often operators are called. A name may hold shell wildcards ("vqc.q*"); 0 says there is none."""
    have = count_ops(program)
    wrong = []
    for pattern, want in counts.items():
        found = sum(c for name, c in have.items() if fnmatchcase(name, pattern))
        if found != want:
            wrong.append(f"{pattern}: {found}, expected {want}")
    if wrong:
        listing = "\n".join(f"  {c} x {name}" for name, c in sorted(have.items()))
        raise AssertionError(f"operators of {program.name}:\n  " + "\n  ".join(wrong) + "\nit has\n" + listing)


def assert_change(before: Program, after: Program, change: Mapping[str, int]) -> None:
    """Assert by how much each operator's count changed; an operator that is not named must not have changed."""
    old, new = count_ops(before), count_ops(after)
    have = {name: new[name] - old[name] for name in sorted({*old, *new}) if new[name] != old[name]}
    want = {name: by for name, by in change.items() if by}
    if have != want:
        lines = [f"  {name}: {have.get(name, 0):+d}, expected {want.get(name, 0):+d}"
                 for name in sorted({*have, *want}) if have.get(name, 0) != want.get(name, 0)]  # fmt: skip
        raise AssertionError(f"change of operators in {after.name}:\n" + "\n".join(lines))


# ---- patterns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A part of a pattern under a name: the match tells what stands there; the same name twice is the same thing."""

    name: str
    pattern: Any = Any


@dataclass
class Match:
    """A place where a pattern holds: its root `node`, all `nodes` met (root first), and the named parts."""

    node: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


def match(program: Program, pattern: Any) -> list[Match]:
    """Every place where a pattern holds, in graph order.

    A pattern is a tuple `(operator, argument, ...)`. The operator is a text with shell wildcards ("aten.conv*"), an
    OpOverload, or a set of those. An argument is one of: another such tuple; a text where a node stands (the node's
    operator, or "constant" or "placeholder"); `typing.Any`; `Name("w", pattern)`; a list of patterns; a plain value
    (compared with ==); `...` at the end (any more arguments). Arguments left at their defaults at the end of a call
    need no pattern. A dict at the end holds patterns of keyword arguments.
    """
    found = []
    for node in program.calls:
        m = Match(node)
        if _holds(node, pattern, m):
            found.append(m)
    return found


def _holds(value: Any, pattern: Any, m: Match) -> bool:
    if pattern is Any:
        return True
    if isinstance(pattern, Name):
        if pattern.name in m.names:
            return m.names[pattern.name] is value or (not isinstance(value, fx.Node) and m.names[pattern.name] == value)
        m.names[pattern.name] = value
        return _holds(value, pattern.pattern, m)
    if isinstance(value, fx.Node):
        if not isinstance(pattern, tuple):
            held = _is_op(value, pattern)
            m.nodes += [value] if held else []
            return held
        if value.op != "call_function" or not pattern or not _is_op(value, pattern[0]):
            return False
        m.nodes.append(value)
        return _arguments_hold(value, list(pattern[1:]), m)
    if isinstance(value, (list, tuple)):
        same = isinstance(pattern, list) and len(pattern) == len(value)
        return same and all(_holds(v, p, m) for v, p in zip(value, pattern, strict=True))
    return not isinstance(pattern, (tuple, set, frozenset)) and bool(value == pattern)


def _is_op(node: fx.Node, op: Any) -> bool:
    if op is Any:
        return True
    if isinstance(op, (set, frozenset)):
        return any(_is_op(node, o) for o in op)
    return fnmatchcase(node_text(node), op) if isinstance(op, str) else node.target is op


def _arguments_hold(node: fx.Node, patterns: list[Any], m: Match) -> bool:
    keywords = patterns.pop() if patterns and isinstance(patterns[-1], dict) else {}
    if not all(k in node.kwargs and _holds(node.kwargs[k], p, m) for k, p in keywords.items()):
        return False
    if patterns and patterns[-1] is ...:
        patterns.pop()
    elif not all(_is_default(node, i) for i in range(len(patterns), len(node.args))):
        return False
    if len(patterns) > len(node.args):
        return False
    return all(_holds(a, p, m) for a, p in zip(node.args, patterns, strict=False))


def _is_default(node: fx.Node, index: int) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    declared = node.target._schema.arguments[index]
    value = node.args[index]
    return not isinstance(value, fx.Node) and declared.has_default_value() and value == declared.default_value


# ---- text ------------------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def assert_text(program: Program | str, expected: str) -> None:
    """Assert a Program's text, whatever its indentation and blank lines; a failure shows the difference line by line.

    With VQC_UPDATE_TEXT=1 in the environment a failure also prints the new text, ready to paste into the test.
    """
    text = str(program)
    have, want = _lines(text), _lines(expected)
    if have == want:
        return
    if os.environ.get(UPDATE) == "1":
        print(f"\n{textwrap.indent(text, '    ')}\n")
    diff = "\n".join(difflib.unified_diff(want, have, "expected", "program", lineterm="", n=2))
    raise AssertionError(f"the text differs ({UPDATE}=1 prints the new one):\n{diff}")


# ---- running ---------------------------------------------------------------------------------------------------------

Steps = int | Sequence[Sequence[torch.Tensor]]  # how many random steps, or the flat inputs of each


def random_steps(program: Program, count: int = 2, seed: int = 0) -> list[list[torch.Tensor]]:
    """Random flat inputs for `count` steps.

    Floats are uniform in the input's known range, or normal where none is known; 8-bit integers take all values, wider
    ones those of the captured example (0 and 1 without one).
    """
    g = torch.Generator().manual_seed(seed)
    return [[_random(program, i, g) for i in range(len(program.inputs))] for _ in range(count)]


def _random(program: Program, index: int, g: torch.Generator) -> torch.Tensor:
    spec = program.inputs[index]
    if spec.dtype.is_floating_point:
        if spec.known_range is None:
            return torch.randn(spec.shape, generator=g).to(spec.dtype)
        low, high = spec.known_range
        return (torch.rand(spec.shape, generator=g) * (high - low) + low).to(spec.dtype)
    if spec.dtype in (torch.uint8, torch.int8):
        first, last = torch.iinfo(spec.dtype).min, torch.iinfo(spec.dtype).max
    else:
        example = program.example[index] if index < len(program.example) else torch.tensor([0, 1])
        first, last = int(example.min()), int(example.max())
    return torch.randint(first, last + 1, spec.shape, generator=g).to(spec.dtype)


def assert_same(a: Program, b: Program, steps: Steps = 2, *, rtol: float = 0.0, atol: float = 0.0,
                seed: int = 0) -> None:  # fmt: skip
    """Assert that two Programs give the same results and next states, each carrying its own state.

    `steps`: flat inputs of every step, or how many random ones to take. The bound on |a - b| is
    rtol * max|a| + atol; with both 0, and for integers always, values must be equal (NaN equals NaN).
    """
    feeds = random_steps(a, steps, seed) if isinstance(steps, int) else steps
    _same_layout(a, b)
    labels = [*(f"result {n}" for n in a.outputs), *(f"state {s.name}" for s in a.states)]
    state_a, state_b = a.initial_state(), b.initial_state()
    for t, inputs in enumerate(feeds):
        out_a, out_b = evaluate(a, inputs, state_a), evaluate(b, inputs, state_b)
        state_a, state_b = [out_a[s.output] for s in a.states], [out_b[s.output] for s in b.states]
        for label, x, y in zip(labels, (*out_a[: len(a.outputs)], *state_a), (*out_b[: len(b.outputs)], *state_b),
                               strict=True):  # fmt: skip
            problem = _difference(x, y, rtol, atol)
            if problem:
                raise AssertionError(f"{label} of {a.name} and {b.name} differs at step {t}: {problem}")


def _same_layout(a: Program, b: Program) -> None:
    for what, x, y in (("inputs", [(i.name, i.shape, i.dtype) for i in a.inputs],
                        [(i.name, i.shape, i.dtype) for i in b.inputs]),
                       ("results", a.outputs, b.outputs),
                       ("states", [s.name for s in a.states], [s.name for s in b.states])):  # fmt: skip
        if x != y:
            raise AssertionError(f"{what} of {a.name} and {b.name} differ: {x} and {y}")


def _difference(x: torch.Tensor, y: torch.Tensor, rtol: float = 0.0, atol: float = 0.0) -> str:
    """What differs between two tensors, "" when nothing does."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"{tensor_text(x)} and {tensor_text(y)}"
    if not x.numel():
        return ""
    wrong = (x != y) & ~(x.isnan() & y.isnan())
    bound = 0.0
    if x.dtype.is_floating_point and (rtol or atol):
        bound = rtol * float(x.double().abs().nan_to_num(0, 0, 0).max()) + atol
        wrong = wrong & ~((x.double() - y.double()).abs() <= bound)
    count = int(wrong.sum())
    if not count:
        return ""
    at = tuple(int(i) for i in wrong.nonzero()[0])
    diff = float((x.double() - y.double())[wrong].abs().max())
    over = f", bound {bound:.3g}" if bound else ""
    return f"{count} of {x.numel()} values, first at {at}: {x[at].item()} and {y[at].item()}; max {diff:.3g}{over}"


# ---- integers of two backends ----------------------------------------------------------------------------------------

Factory = str | Callable[[Program], Executable]
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def integer_nodes(program: Program) -> list[str]:
    """Names of all calls whose value is one tensor of integers, in graph order: what backends must agree on."""
    return [n.name for n in program.calls if getattr(n.meta.get("val"), "dtype", None) in INTEGERS]


def _compile(program: Program, factory: Factory) -> Executable:
    return backend_for(factory).compile(program, factory, {}) if isinstance(factory, str) else factory(program)


def assert_integers_equal(program: Program, a: Factory = "reference", b: Factory = "native", steps: Steps = 2, *,
                          seed: int = 0) -> list[str]:  # fmt: skip
    """Assert that two backends compute every integer tensor of a Program bit for bit the same.

    `a`, `b`: targets ("reference", "native"), or functions from a Program to an Executable. Every integer node becomes
    an extra output; both run the same steps from the same state, which `a` carries on, so that a difference is
    reported at the node that makes it. Returns the names compared.
    Raises AssertionError naming the first node that differs, and when the Program has no integers at all.
    """
    names = integer_nodes(program)
    if not names:
        raise AssertionError(f"{program.name} has no integer values to compare")
    wide = program.with_outputs(names)
    one, other = _compile(wide, a), _compile(wide, b)
    first = len(program.result_nodes)
    state = program.initial_state()
    for t, inputs in enumerate(random_steps(program, steps, seed) if isinstance(steps, int) else steps):
        out, out_b = (e.trace(inputs, [s.clone() for s in state]) for e in (one, other))
        for name, x, y in zip(names, out[first:], out_b[first:], strict=True):
            problem = _difference(x, y)
            if problem:
                node = program.node(name)
                source = node.meta.get("source", "")
                raise AssertionError(
                    f"{name} ({node_text(node)}) differs at step {t}: {problem}" + (f"\n  {source}" if source else "")
                )
        state = [out[s.output] for s in program.states]
    return names
