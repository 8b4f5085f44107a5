"""What pictures in half the bits between Triton's kernels change: one step of RVM in int8, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m benchmarks.triton_halves [-o FOLDER]

Needs no GPU and times nothing: the interpreter computes what a GPU would. The step with each `residual_dtype` is held
against the same with float32. Writes benchmarks/results/<processor>/triton-halves.json; `python -m benchmarks.tables`
puts it into docs/triton.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import vqc
from benchmarks.command import begin, command
from benchmarks.machine import Record, write
from vqc import video
from vqc.backends.triton.environment import place_for
from vqc.report.network import network
from vqc.report.session import recipe_program

SIZE = (64, 96)


def measure() -> list[Record]:
    """A record for each kind of half float: mean and largest error of alpha, mean error of each state by its mean."""
    net = network("rvm", SIZE)
    clip = video.read_clip(video.clip("pexels"), 8, SIZE)
    program = recipe_program(net, "int8", clip)
    frame = net.steps(video.read_clip(video.clip("single_face"), 1, SIZE))[0]
    made = {dtype: vqc.compile(program, "triton", residual_dtype=dtype).step(frame)
            for dtype in ("float32", "float16", "bfloat16")}  # fmt: skip
    results, states = made.pop("float32")
    alpha = results[1]
    found = []
    for dtype, (ours, following) in made.items():
        off = (ours[1] - alpha).abs()
        shares = [float((a - b).abs().mean() / b.abs().mean()) for a, b in zip(following, states, strict=True)]
        found.append({"dtype": dtype, "size": f"{SIZE[0]}x{SIZE[1]}", "alpha_mean": round(float(off.mean()), 6),
                      "alpha_largest": round(float(off.max()), 6),
                      "states": [round(s, 6) for s in shares]})  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write, where Triton is interpreted."""
    given, began = begin(command(__doc__), argv)
    if not place_for("triton").interpreted:
        sys.exit("set TRITON_INTERPRET=1")
    records = measure()
    print(records)
    write("triton-halves", records, began, given.output)


if __name__ == "__main__":
    main()
