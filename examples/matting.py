"""Video matting in 8 bits as it comes: a clip or a camera in, the person on green out.

python examples/matting.py TALK.mp4 OTHER.mp4 out.mp4        (the second clip is for calibration)
python examples/matting.py /dev/video0 OTHER.mp4 out.mp4     (a camera of Linux, until Ctrl-C)
"""

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import av
import torch
from torch import Tensor

import vqc
from vqc.models import load_rvm

SIZE = (288, 512)


def camera(device: str) -> Iterator[Tensor]:
    """Frames [3,H,W] in [0,1] of a camera; another system's name for `v4l2` is avfoundation or dshow."""
    with av.open(device, format="v4l2") as source:
        for picture in source.decode(video=0):
            frame = torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
            yield vqc.video.resize(frame, SIZE)


def main(source: str, other: str, result: str) -> None:
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
    live = source.startswith("/dev/")
    stream, spent = vqc.Stream(executable), []
    stopped: list[int] = []

    def stop(number: int, _: Any) -> None:
        """Ctrl-C: the frame at work is finished, wherever it is, and the video closed. A second one breaks off."""
        stopped.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)

    def shown() -> Iterator[Tensor]:
        """One composited frame after another: nothing but the state is held."""
        for frame in camera(source) if live else vqc.video.iter_frames(source, size=SIZE):
            start = time.perf_counter()
            foreground, alpha, *_ = stream(frame[None])
            spent.append(time.perf_counter() - start)
            yield vqc.video.composite(foreground[0], alpha[0])
            if stopped:
                return

    vqc.video.write_video(result, shown(), 30.0 if live else vqc.video.frame_rate(source))
    middle = sorted(spent)[len(spent) // 2]
    print(f"{len(spent)} frames, {1000 * middle:.1f} ms each (median): {1 / middle:.0f} a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
