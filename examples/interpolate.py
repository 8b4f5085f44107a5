"""Twice the frames: RIFE in 8 bits makes one between every two.

python examples/interpolate.py CLIP.mp4 OTHER.mp4 out.mp4     (the second clip is for calibration: give one with motion)
"""

import sys
from collections.abc import Iterator

from torch import Tensor

import vqc
from vqc.models import load_rife

SIZE = (288, 512)  # sides are multiples of 32


def main(source: str, other: str, result: str) -> None:
    clip = vqc.video.read_clip(other, frames=25, size=SIZE)
    pairs = [(clip[t : t + 1], clip[t + 2 : t + 3]) for t in range(0, len(clip) - 2, 2)]  # the arguments of each step
    program = vqc.capture(load_rife(), pairs[0], known_ranges={"img0": (0, 1), "img1": (0, 1)})
    program = vqc.apply(program, "int8", calibration=pairs)
    between = vqc.Stream(vqc.compile(program, target="native"))

    def doubled() -> Iterator[Tensor]:
        last = None
        for frame in vqc.video.iter_frames(source, size=SIZE):
            if last is not None:
                yield between(last[None], frame[None])[0]
            yield frame
            last = frame

    vqc.video.write_video(result, doubled(), 2 * vqc.video.frame_rate(source))
    print(f"{between.frame} frames were made, into {result}")


if __name__ == "__main__":
    main(*sys.argv[1:])
