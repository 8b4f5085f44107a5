"""One Program by C and by ONNX Runtime, frame after frame with the state: how far apart their pictures are.

    python -m benchmarks.onnx_agreement rvm --recipe int8 --size 288x512 --frames 48
    python -m benchmarks.onnx_agreement bivm --recipe xnor --frames 4

A row for each pair of engines: mean and largest over the frames of MAD x1e3, the largest difference of a pixel, and how
many decisions differ (signs of one-bit layers, masks), which all engines return beside the picture. `--reference` runs
the reference too, `--exact` the target onnx:exact.
"""

from __future__ import annotations

import argparse
import itertools

import torch

import vqc
from vqc import video
from vqc.cli.work import clip_path, parse_size
from vqc.program import Program, dtype_of
from vqc.report.network import network
from vqc.report.session import recipe_program
from vqc.report.stored import is_stored

DECISIONS = (torch.bool, torch.int8)


def decisions(program: Program) -> list[str]:
    """The nodes whose values are decisions: signs and masks."""
    return [n.name for n in program.calls if isinstance(n.meta["val"], torch.Tensor) and dtype_of(n) in DECISIONS]


def compare(name: str, recipe: str, size: tuple[int, int] | None, frames: int, targets: list[str], clip: str,
            calibration: str, calibration_frames: int) -> list[str]:  # fmt: skip
    """The rows, as text."""
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
    for inputs in net.steps(video.read_clip(clip_path(clip), frames + net.reach, net.size)):
        found = {}
        for target, engine in engines.items():
            found[target] = engine.trace(inputs, states[target])
            states[target] = [found[target][s.output] for s in program.states]
        extras = len(program.result_nodes)
        seen += sum(x.numel() for x in found[targets[0]][extras:])
        for a, b in pairs:
            difference = (found[a][leaf.index] - found[b][leaf.index]).abs()
            mads[a, b].append(float(difference.mean()) * 1e3)
            furthest[a, b] = max(furthest[a, b], float(difference.max()))
            differing[a, b] += sum(
                int((x != y).sum()) for x, y in zip(found[a][extras:], found[b][extras:], strict=True)
            )
    head = f"{name} {recipe}, {net.size[0]}x{net.size[1]}, {frames} frames of {clip}, {len(program.states)} states"
    rows = [f"  {a} and {b}: MAD x1e3 mean {sum(m) / len(m):.4g}, largest {max(m):.4g}; a pixel at most "
            f"{furthest[a, b]:.3g}; decisions that differ {differing[a, b]} of {seen}"
            for (a, b), m in mads.items()]  # fmt: skip
    return [head, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--size", default=None, type=parse_size)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--clip", default="single_face")
    parser.add_argument("--calibration", default="pexels")
    parser.add_argument("--calibration-frames", type=int, default=48)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--exact", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(1)
    targets = [*(["reference"] if o.reference else []), "native", "onnx", *(["onnx:exact"] if o.exact else [])]
    for line in compare(o.network, o.recipe, o.size, o.frames, targets, o.clip, o.calibration, o.calibration_frames):
        print(line)


if __name__ == "__main__":
    main()
