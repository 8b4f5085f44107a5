"""Video matting in 8 bits: a clip in, the person on green out.

python examples/matting.py TALK.mp4 OTHER.mp4 out.mp4     (the second clip is for calibration)
"""

import sys

import vqc
from vqc.models import load_rvm

SIZE = (288, 512)
talk, other, result = sys.argv[1:]

clip = vqc.video.read_clip(other, frames=32, size=SIZE)  # [T,3,H,W] in [0,1]
program = vqc.capture(
    load_rvm(),
    clip[:1],
    states={"r1": 2, "r2": 3, "r3": 4, "r4": 5},  # argument -> number of the result that is its next value
    known_ranges={"src": (0, 1)},
)
program = vqc.apply(program, "int8", calibration=clip)
executable = vqc.compile(program, target="native")
print(executable.report)

stream = vqc.Stream(executable)


def frames():
    """One composited frame after another: nothing but the state is held."""
    for frame in vqc.video.iter_frames(talk, size=SIZE):
        foreground, alpha, *_ = stream(frame[None])
        yield vqc.video.composite(foreground[0], alpha[0])


vqc.video.write_video(result, frames(), vqc.video.frame_rate(talk))
