"""A network with a ConvLSTM: what its two states cost in 8 bits, frame by frame, and the program as a file.

python examples/convlstm.py CLIP.mp4
vqc compare examples/convlstm.py:make CLIP.mp4 --recipe int8 --calibration CLIP.mp4
"""

import sys

import torch
from torch import Tensor, nn

import vqc
from vqc.metrics import sqnr_db

SIZE = (64, 96)


class Cell(nn.Module):
    """Convolutional LSTM (Shi et al., NeurIPS 2015), without peepholes. The gates of one frame are one convolution."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x [1,inputs,H,W]; h and c [1,hidden,H,W] -> the next h and c."""
        i, f, o, g = self.gates(torch.cat((x, h), 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Predict(nn.Module):
    """Guesses the next frame from this one and what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 4, stride=4)
        self.cell = Cell(16, 16)
        self.up = nn.Conv2d(16, 48, 3, padding=1)

    def forward(self, frame: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[1,3,H,W] in [0,1] and the states -> the next frame, the next states."""
        x = torch.relu(self.down(frame))
        h, c = (torch.zeros_like(x) if s is None else s for s in (h, c))
        h, c = self.cell(x, h, c)
        return torch.sigmoid(nn.functional.pixel_shuffle(self.up(h), 4)), h, c


def make() -> tuple[nn.Module, Tensor, dict[str, int]]:
    """For the command line: the network, an example, and which argument gets which result back."""
    torch.manual_seed(0)
    return Predict().eval(), torch.rand(1, 3, *SIZE), {"h": 1, "c": 2}


def main(source: str) -> None:
    clip = vqc.video.read_clip(source, size=SIZE)
    model, example, states = make()
    program = vqc.capture(model, example, states=states, known_ranges={"frame": (0, 1)})
    quantized = vqc.apply(program, "int8", calibration=clip)
    exact, small = vqc.Stream(vqc.compile(program, "reference")), vqc.Stream(vqc.compile(quantized, "native"))
    for t, frame in enumerate(clip):
        of_float, of_int8 = exact(frame[None]), small(frame[None])
        if t in (0, 1, 2, 4, 8, 16, 32):
            names = ("frame", "h", "c")
            found = (f"{n} {sqnr_db(b, a):.1f}" for n, a, b in zip(names, of_float, of_int8, strict=True))
            print(f"{t} frames since reset, dB to float:", ", ".join(found))
    vqc.save(quantized, "predict.vqc", recipe="int8", calibration=clip)
    print("wrote predict.vqc")


if __name__ == "__main__":
    main(*sys.argv[1:])
