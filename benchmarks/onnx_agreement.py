"""One Program by several engines, frame after frame with the state: how far apart their pictures are.

    python -m benchmarks.onnx_agreement rvm --recipe int8 --size 288x512 --frames 48 --targets reference native onnx
    python -m benchmarks.onnx_agreement bivm --recipe xnor --size 288x512 --targets native onnx openvino

A row for each pair of engines: mean and largest over the frames of MAD x1e3, the largest difference of a pixel, and how
many decisions differ (signs of one-bit layers, masks), which all engines return beside the picture. Targets: those of
`vqc.compile`. Rows are printed, and kept in benchmarks/results/<processor>/agreement.json: a program that is run
again takes its old place.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch

import vqc
from benchmarks.machine import Record, folder, machine, write
from vqc import video
from vqc.cli.work import parse_size
from vqc.program import Program, dtype_of
from vqc.report.network import network
from vqc.report.session import recipe_program
from vqc.report.stored import is_stored

TOPIC = "agreement"
DECISIONS = (torch.bool, torch.int8)


def clip_path(name: str) -> Path:
    """A known clip's path, or a file's own."""
    return video.clip(name) if name in video.CLIPS else Path(name)


def decisions(program: Program) -> list[str]:
    """The nodes whose values are decisions: signs and masks."""
    return [n.name for n in program.calls if isinstance(n.meta["val"], torch.Tensor) and dtype_of(n) in DECISIONS]


def compare(name: str, recipe: str, size: tuple[int, int] | None, frames: int, targets: list[str], clip: str,
            calibration: str, calibration_frames: int, own: bool) -> list[Record]:  # fmt: skip
    """A record for each pair of targets. `own`: each carries its own states, else all get those of the first."""
    net = network(name, size)
    needed = not is_stored(name) and "observe" in str(vqc.api.pipeline_of(recipe))
    calibrate = video.read_clip(clip_path(calibration), calibration_frames, net.size) if needed else None
    program = recipe_program(net, "" if is_stored(name) else recipe, calibrate)
    watched = decisions(program)
    full = program.with_outputs(watched)
    leaf = program.signature.out_leaves[net.picture]
    engines = {target: vqc.compile(full, target) for target in targets}
    states = {target: program.initial_state() for target in targets}
    pairs = list(itertools.combinations(targets, 2))
    mads: dict[tuple[str, str], list[float]] = {p: [] for p in pairs}
    furthest, differing, seen = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0), 0
    steps = net.steps(video.read_clip(clip_path(clip), frames + net.reach, net.size))
    for inputs in steps:
        found = {}
        for target, engine in engines.items():
            found[target] = engine.trace(inputs, states[target])
            states[target] = [found[target if own else targets[0]][s.output] for s in program.states]
        extras = len(program.result_nodes)
        seen += sum(x.numel() for x in found[targets[0]][extras:])
        for a, b in pairs:
            difference = (found[a][leaf.index] - found[b][leaf.index]).abs()
            mads[a, b].append(float(difference.mean()) * 1e3)
            furthest[a, b] = max(furthest[a, b], float(difference.max()))
            differing[a, b] += sum(
                int((x != y).sum()) for x, y in zip(found[a][extras:], found[b][extras:], strict=True)
            )
    common = {"program": f"{Path(name).name} {recipe}", "size": f"{net.size[0]}x{net.size[1]}", "steps": len(steps),
              "clip": clip, "calibration": calibration if needed else "", "states": len(program.states), "own": own,
              "decisions": seen}  # fmt: skip
    return [common | {"a": a, "b": b, "mad_mean": sum(m) / len(m), "mad_largest": max(m), "pixel": furthest[a, b],
                      "differ": differing[a, b]} for (a, b), m in mads.items()]  # fmt: skip


def shown(record: Record) -> str:
    """A record in one line."""
    states = "" if record["own"] else ", states of the first"
    return (f"{record['program']} {record['size']}, {record['steps']} steps{states}: {record['a']} and {record['b']}: "
            f"MAD x1e3 mean {record['mad_mean']:.4g}, largest {record['mad_largest']:.4g}; a pixel at most "
            f"{record['pixel']:.3g}; decisions that differ {record['differ']} of {record['decisions']}")  # fmt: skip


def merged(old: list[Record], new: list[Record]) -> list[Record]:
    """Records by program, size and pair, the new ones in the places of the old."""
    by_key = {(r["program"], r["size"], r["own"], r["a"], r["b"]): r for r in [*old, *new]}
    return [by_key[k] for k in sorted(by_key, key=lambda k: (k[0], k[1], not k[2], k[3:]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--size", default=None, type=parse_size)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--clip", default="single_face")
    parser.add_argument("--calibration", default="pexels")
    parser.add_argument("--calibration-frames", type=int, default=48)
    parser.add_argument("--targets", nargs="+", default=["native", "onnx"])
    parser.add_argument(
        "--same-states", action="store_true", help="all engines get the first one's states at each step"
    )
    o = parser.parse_args()
    torch.set_num_threads(1)
    began, file = machine(), folder() / f"{TOPIC}.json"
    found = compare(o.network, o.recipe, o.size, o.frames, o.targets, o.clip, o.calibration, o.calibration_frames,
                    not o.same_states)  # fmt: skip
    for record in found:
        print(shown(record), flush=True)
    old = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else []
    print(f"wrote {write(TOPIC, merged(old, found), began, folder())}")


if __name__ == "__main__":
    main()
