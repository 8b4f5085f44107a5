"""The choices that docs/quantization.md, docs/learning.md and docs/binary.md tell of, each beside what was not chosen.

    python -m benchmarks.choices [--only GROUP ...] [-o FOLDER]

A choice is a pipeline on a network of real weights, calibrated and played as benchmarks/fidelity_rows.py does it, at
sizes that take a minute or some. Nothing is timed. Each is kept in benchmarks/results/<processor>/choices.json as soon
as it is done, in the place of what it was before; `python -m benchmarks.tables` puts them into the pages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.command import begin, command
from benchmarks.fidelity_rows import _rounded, _scenes, _stretches
from benchmarks.machine import Record, machine, write
from benchmarks.networks import truth
from vqc import video
from vqc.accounting import WORD, account, mask_densities
from vqc.learning.upward import area, downstream
from vqc.passes.displacements import displacements
from vqc.passes.observe import quantizable
from vqc.program import Program, op_text
from vqc.recipes import RECIPES
from vqc.report.network import Network, network
from vqc.report.session import eager_engine, judge, play, program_engine, recipe_program

TOPIC = "choices"
SMALL, MIDDLE, LARGE = (96, 160), (144, 256), (288, 512)
FULL = (288, 640)  # of RIFE
W4A8 = "observe,quantize{weight_bits=4,weight_method=mse,edge_bits=8}"
_FEW = "weight_bits=4,activation_bits=4,weight_method=mse,headroom=0.0,edge_bits=8"
W4A4 = f"observe,quantize{{method=mse,{_FEW}}}"
GAC = "affine-calibrate{iterations=40,rate=0.001}"
OFA = "affine-calibrate{iterations=40,rate=0.001,flow=still,flow_weight=1.0}"
TELLING, TELL = ("allocate-bits", "affine-calibrate", "bias-correct"), 3  # passes whose first notes are kept
GUESSES = "GUESSES"  # in a pipeline: the layers of the first guess of a displacement


@dataclass(frozen=True)
class Choice:
    """One way, in a group of them. `middle`: the passes between those of `float` and those of integers, or a recipe.

    `how`: what it is calibrated on, `stretches` of the network's clips with inputs for `count` steps together, `eight`
    stretches, or `scenes` made of them. `frames`: played, of the clip that calibration never saw. `kept`: whatever the
    held-out clips say against `bias-correct`, it stays. `seed`: of what learns.
    """

    group: str
    name: str
    model: str
    size: tuple[int, int]
    middle: str
    how: str = "stretches"
    count: int = 48
    frames: int = 48
    kept: bool = False
    also: tuple[str, int, int] | None = None
    seed: int = 0


def _rife(group: str, name: str, middle: str) -> Choice:
    return Choice(group, name, "rife", FULL, middle, count=24, frames=24)


def _bias(name: str, middle: str, *, corrected: bool = True, kept: bool = False) -> Choice:
    middle += ",bias-correct{rounds=1}" if corrected else ""
    return Choice("bias", name, "rvm", MIDDLE, middle, "scenes", kept=kept)


_QDROP = W4A4 + ",reconstruct{iterations=60}"
_STEPS = {"to nearest": W4A4, "BRECQ": W4A4 + ",reconstruct{iterations=60,drop=0.0}", "QDrop": _QDROP,
          "QDrop + GAC": f"{_QDROP},{GAC}", "QDrop + GAC + OFA": f"{_QDROP},{OFA}"}  # fmt: skip


def _ablation(size: tuple[int, int], frames: int, seeds: Sequence[int]) -> list[Choice]:
    """PTQ4VM's steps one by one; nearest rounding has no seed."""
    group = "x".join(map(str, size))
    return [Choice(f"ablation {group}", f"{name}, seed {s}" if name != "to nearest" else name, "rvm", size, middle,
                   "scenes", frames=frames, seed=s)
            for s in seeds for name, middle in _STEPS.items() if name != "to nearest" or s == seeds[0]]  # fmt: skip


def _bits(name: str, middle: str) -> Choice:
    return Choice("bits", name, "rvm", MIDDLE, middle, count=24, frames=16)


_HELD = ("pexels", 420, 24)
_BITS = "observe,allocate-bits{size=2.97,weights=%s,like=quantize{weight_method=mse}},quantize{weight_method=mse}"
CHOICES = (
    _rife("displacements", "all in 8 bits but the tail", "observe,quantize{displacements=quantized}"),
    _rife("displacements", "first guess in float", f"observe,quantize{{displacements=quantized,keep=[{GUESSES}]}}"),
    _rife("displacements", "recipe `int8`", "observe,quantize"),
    _rife("displacements", "readers and first guess in float", f"observe,quantize{{keep=[{GUESSES}]}}"),
    _rife("channels", "one scale a tensor", "observe,quantize{granularity=tensor}"),
    _rife("four-bits", "W4A8, to nearest", W4A8),
    _rife("four-bits", "W4A4, `btbi`, by frames",
          f"observe{{policy=frame}},quantize{{method=btbi,{_FEW},frames=true}}"),
    _rife("four-bits", "W4A4, `percentile`", f"observe,quantize{{method=percentile,{_FEW}}}"),
    Choice("pictures", "the frame's own grid", "rvm", LARGE, "observe,quantize{tail=quantized}"),
    Choice("pictures", "calibrated as any input", "rvm", LARGE, "observe,quantize{tail=quantized,pixels=0}"),
    Choice("dropping", "to nearest", "rvm", SMALL, W4A8),
    Choice("dropping", "`drop=0.0`", "rvm", SMALL, W4A8 + ",reconstruct{iterations=60,drop=0.0}"),
    Choice("dropping", "`drop=0.5`", "rvm", SMALL, W4A8 + ",reconstruct{iterations=60}"),
    _bias("8 bits", "observe,quantize", corrected=False),
    _bias("8 bits, `bias-correct`", "observe,quantize"),
    _bias("8 bits, `bias-correct` kept", "observe,quantize", kept=True),
    _bias("4-bit weights", W4A8, corrected=False),
    _bias("4-bit weights, `bias-correct`", W4A8),
    _bias("4-bit weights, `bias-correct` kept", W4A8, kept=True),
    *_ablation(MIDDLE, 64, (0,)),
    *_ablation(LARGE, 48, (0, 1)),
    _bits("8 everywhere", "observe,quantize{weight_method=mse}"),
    _bits("4 everywhere", "observe,quantize{weight_bits=4,weight_method=mse}"),
    _bits("8, 6 or 4", _BITS % "[8,6,4]"),
    _bits("8 or 4", _BITS % "[8,4]"),
    Choice("signs", "`float`", "rvm", LARGE, "float", "eight", 32, 72, also=_HELD),
    Choice("signs", "`bivm-decoder`", "rvm", LARGE, "bivm-decoder", "eight", 32, 72, also=_HELD),
    Choice("signs", "`shb-decoder{sparse=2}` in its place", "rvm", LARGE,
           RECIPES["bivm-decoder"].pipeline.replace("sparse=0", "sparse=2"), "eight", 32, 72, also=_HELD),
)  # fmt: skip
CLIPS = {"rvm": ("single_face", ("pexels",)), "rife": ("bikes", ("bigbuckbunny", "pexels"))}


# ---- one choice ------------------------------------------------------------------------------------------------------


def pipeline(choice: Choice, program: Program) -> str:
    """The whole pipeline as text. `program`: the float one, whose layers have the names that `keep` is told."""
    if choice.middle in RECIPES or choice.middle.startswith("canonicalize"):
        return choice.middle
    text = RECIPES["int8"].pipeline.replace("observe,quantize", choice.middle)
    found = displacements(program, quantizable(program)).guesses
    return text.replace(GUESSES, ",".join(n.name for n in program.calls if n in found))


def calibration(choice: Choice, net: Network) -> list[Tensor]:
    """The clips [T,3,H,W] that a choice is calibrated on."""
    names = CLIPS[choice.model][1]
    if choice.how == "eight":
        each = choice.count // 8
        starts = [(_HELD[1] - each) * i // 7 for i in range(8)]
        return [_read(names[0], s, each, choice.size) for s in starts]
    clips = [c for n in names for c in _stretches(n, choice.count, net.reach, choice.size)]
    return _scenes(net, clips) if choice.how == "scenes" else clips


def _read(name: str, start: int, count: int, size: tuple[int, int]) -> Tensor:
    return video.read_clip(video.clip(name), count, size, start=start)


def operations(program: Program, clips: Any) -> Record:
    """Multiply-adds of a step, the share of them in float, and millions of operations behind the first upsample and in
    all: 8 bits count as float, 64 signs as one, masked layers by what their masks keep on `clips`."""
    ups = [n for n in program.calls if ("upsample" in op_text(n.target) or "resize" in op_text(n.target))
           and area(n) > area(n.args[0])]  # fmt: skip
    behind = {n.name for n in downstream(program, ups)}
    works = account(program, mask_densities(program, clips)).layers
    cost = {w.node: w.macs * w.density * (1 / WORD if w.kind == "binary" else 1) for w in works}
    macs = sum(w.macs for w in works)
    return {"multiply_adds": macs, "float_share": round(sum(w.macs for w in works if w.kind == "float") / macs, 4),
            "m_operations": round(sum(cost.values()) / 1e6, 1),
            "m_operations_behind": round(sum(c for n, c in cost.items() if n in behind) / 1e6, 1)}  # fmt: skip


def measure(choice: Choice) -> Record:
    """One choice's record: distances to the float network on an unseen clip, and to the truth where it is known."""
    net = network(choice.model, choice.size)
    text = pipeline(choice, recipe_program(net, "float"))
    clips = calibration(choice, net)
    with contextlib.ExitStack() as stack:
        if choice.kept:
            stack.enter_context(mock.patch("vqc.passes.bias_correct.keep_better", lambda *_: None))
        program = recipe_program(net, text, clips, seed=choice.seed)
    engine, reference = program_engine(program, choice.name, "native"), eager_engine(net)
    trials = [(CLIPS[choice.model][0], 0, choice.frames), *([choice.also] if choice.also else [])]
    played = []
    for name, start, count in trials:
        frames = _read(name, start, count + net.reach, choice.size)
        plain, ours = play(reference, net, frames), play(engine, net, frames)
        real, at_best = truth(net, frames, ours), truth(net, frames, plain)
        played.append({"clip": name, "start": start, "steps": len(ours.pictures),
                       "metrics": _rounded(judge(ours, plain)), "truth": _rounded(real),
                       "float_truth": _rounded(at_best)})  # fmt: skip
    size = "x".join(map(str, choice.size))
    notes = [d.reason for r in program.history for d in r.declined if d.node == "results"]
    notes += [n for r in program.history if r.name.partition("{")[0] in TELLING for n in r.notes[:TELL]]
    return {"group": choice.group, "name": choice.name, "model": choice.model, "size": size, "pipeline": text,
            "calibration": f"{choice.how}, {choice.count} steps of {', '.join(CLIPS[choice.model][1])}",
            "kept": choice.kept, "seed": choice.seed, "weight_bytes": engine.weight_bytes, "notes": notes,
            "trials": played,
            "fallbacks": len(engine.report.fallbacks) if engine.report else 0,
            **operations(program, [net.steps(clips[0])])}  # fmt: skip


# ---- all of them -----------------------------------------------------------------------------------------------------


def keep(record: Record, began: Record, where: Path) -> None:
    """Put a record into the file at once, in the place of its older self."""
    file = where / f"{TOPIC}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"results": [], "note": ""}
    by_key = {(r["group"], r["name"]): r for r in [*old["results"], record]}
    order = [(c.group, c.name) for c in CHOICES]
    write(TOPIC, [by_key[k] for k in order if k in by_key], began, where, old["note"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the chosen groups."""
    parser = command(__doc__)
    groups = list(dict.fromkeys(c.group for c in CHOICES))
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--names", nargs="+", default=[], help="of the groups, these choices alone")
    given, _ = begin(parser, argv)
    for group in given.only:
        for choice in CHOICES:
            if choice.group == group and (not given.names or choice.name in given.names):
                began = machine()
                record = measure(choice)
                shown = [f"{t['clip']} {t['metrics']} {t['truth']}" for t in record["trials"]]
                print(f"{group}, {choice.name}: {'; '.join(shown)} {record['notes']}", flush=True)
                keep(record, began, given.output)


if __name__ == "__main__":
    main()
