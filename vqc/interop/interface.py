"""What a Program knows beside its graph, as JSON that travels with an exported program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vqc.errors import ArtifactError
from vqc.files.values import Unfit, decode, decode_tree, encode, encode_tree
from vqc.frames import Frames
from vqc.program import Assumption, Declined, Input, Leaf, PassRecord, Program, Signature, State, op_text

FORMAT = 1


def of(program: Program, licence: str = "") -> dict[str, Any]:
    """Names, ranges, frames, states, results, assumptions, structure, history and notes; the tensors stay outside."""
    return {
        "format": FORMAT, "name": program.name, "licence": licence,
        "inputs": [{"name": i.name, "range": i.known_range, "frames": _frames(i.frames)} for i in program.inputs],
        "outputs": list(program.outputs),
        "states": [{"name": s.name, "input": s.input, "output": s.output, "range": s.known_range, "origin": s.origin}
                   for s in program.states],
        "assumptions": [dataclasses.asdict(a) for a in program.assumptions],
        "signature": _structure(program.signature),
        "history": [{"name": r.name, "rewrites": dict(r.rewrites), "notes": list(r.notes),
                     "declined": [[d.node, d.reason] for d in r.declined]} for r in program.history],
        "notes": list(program.notes),
        "calls": [{"name": n.name, "target": op_text(n.target), "source": str(n.meta.get("source") or ""),
                   "module": str(n.meta.get("module") or "")} for n in program.calls],
    }  # fmt: skip


def check(said: Any) -> None:
    """Raise ArtifactError for notes of a format this release does not know, or that are not made as `of` makes them."""
    found = said.get("format") if isinstance(said, Mapping) else None
    if found != FORMAT:
        raise ArtifactError("an exported program has notes of another release",
                            why=f"they are of format {found}, this release reads {FORMAT}",
                            way_out="write it again with target pt2")  # fmt: skip
    calls, keys = said.get("calls"), {"name", "target", "source", "module"}
    if not isinstance(calls, list) or not all(isinstance(c, dict) and set(c) == keys for c in calls):
        raise ArtifactError("an exported program has notes that do not fit it", why="they do not list its calls",
                            way_out="write it again with target pt2")  # fmt: skip


def apply(program: Program, said: Mapping[str, Any], example: Sequence[Tensor]) -> None:
    """Give a Program that has only its graph the rest. `example`: the inputs, then the states' reset values.

    Raises ArtifactError when it does not fit the graph.
    """
    try:
        given = list(example)
        inputs, resets = given[: len(said["inputs"])], given[len(said["inputs"]) :]
        program.name, program.outputs = str(said["name"]), tuple(said["outputs"])
        program.inputs = tuple(
            Input(i["name"], tuple(x.shape), x.dtype, _range(i["range"]), i["frames"] and Frames(**i["frames"]))
            for i, x in zip(said["inputs"], inputs, strict=True))  # fmt: skip
        program.states = tuple(
            State(s["name"], s["input"], s["output"], x, _range(s["range"]), s["origin"])
            for s, x in zip(said["states"], resets, strict=True))  # fmt: skip
        program.assumptions = tuple(Assumption(**a) for a in said["assumptions"])
        program.signature = _signature(said["signature"])
        program.history = tuple(
            PassRecord(r["name"], r["rewrites"], tuple(Declined(*d) for d in r["declined"]), tuple(r["notes"]))
            for r in said["history"])  # fmt: skip
        program.notes, program.example = tuple(said["notes"]), tuple(inputs)
    except (LookupError, AttributeError, TypeError, ValueError) as e:
        raise ArtifactError("an exported program has notes that do not fit it", why=f"{type(e).__name__}: {e}",
                            way_out="write it again with target pt2") from e  # fmt: skip


def _range(value: Any) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))


def _frames(frames: Any) -> dict[str, Any] | None:
    return None if frames is None else dataclasses.asdict(frames)


def _structure(signature: Signature) -> dict[str, Any] | None:
    """The user's own call and result; None when it holds tensors or classes, and the Program is called flat."""

    def keep(value: Tensor) -> str:
        raise Unfit("a tensor among the user's fixed arguments")

    if signature.in_spec is None or signature.out_spec is None:
        return None
    try:
        return {
            "in": encode_tree(signature.in_spec), "out": encode_tree(signature.out_spec),
            "in_leaves": [[x.kind, x.index, encode(x.value, keep)] for x in signature.in_leaves],
            "out_leaves": [[x.kind, x.index, encode(x.value, keep)] for x in signature.out_leaves],
        }  # fmt: skip
    except Unfit:
        return None


def _signature(said: Mapping[str, Any] | None) -> Signature:
    if said is None:
        return Signature()

    def leaves(found: Any) -> tuple[Leaf, ...]:
        return tuple(Leaf(kind, index, decode(value, {}, {}.__getitem__)) for kind, index, value in found)

    return Signature(decode_tree(said["in"]), leaves(said["in_leaves"]), decode_tree(said["out"]),
                     leaves(said["out_leaves"]))  # fmt: skip
