"""A network of one's own with a state it writes itself, and a look at what vqc makes of it.

python examples/own_network.py
vqc inspect examples/own_network.py:make --text
"""

import torch
from torch import Tensor, nn

import vqc


class Denoise(nn.Module):
    """Mixes every frame with a running mean that it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.out = nn.Conv2d(16, 3, 3, padding=1)
        self.register_buffer("mean", torch.zeros(1, 3, 64, 96))

    def forward(self, frame: Tensor) -> Tensor:
        """[1,3,64,96] in [0,1] -> the same."""
        self.mean = 0.9 * self.mean + 0.1 * frame
        return torch.sigmoid(self.out(self.conv(torch.cat((frame, self.mean), 1))))


def make() -> tuple[nn.Module, Tensor]:
    """What the command line calls: the network and an example."""
    torch.manual_seed(0)
    return Denoise().eval(), torch.rand(1, 3, 64, 96)


if __name__ == "__main__":
    model, example = make()
    clip = torch.rand(16, 3, 64, 96)
    program = vqc.capture(model, example, known_ranges={"frame": (0, 1)})
    program = vqc.apply(program, "int8", calibration=clip)
    print(program)
    for record in program.history:
        print(record)
    stream = vqc.Stream(vqc.compile(program, "reference"))
    for t, frame in enumerate(clip[:3]):
        print(t, float(stream(frame[None]).mean()))
