"""A network leaves Python: exported as C, compiled by zig, and run on raw frames as a camera would give them.

python examples/camera.py out/camera                    # for this machine; plays some frames through it
python examples/camera.py out/camera aarch64-linux      # for a board; copy build/ and the weights there
"""

import subprocess
import sys
from pathlib import Path

import torch
from own_network import make

import vqc
from vqc.backends.c.cross import build_export

if __name__ == "__main__":
    folder, target = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "portable"
    model, example = make()
    frames = torch.randint(0, 256, (8, 64, 96, 3), dtype=torch.uint8)
    clip = frames.permute(0, 3, 1, 2) / 255
    program = vqc.apply(vqc.capture(model, example, known_ranges={"frame": (0, 1)}), "int8", calibration=clip)
    vqc.export(program, folder, target, licence="mine")
    programs = build_export(folder, target)
    print(f"{folder} holds {', '.join(p.name for p in sorted(folder.iterdir()))}")
    print(f"compiled: {', '.join(map(str, programs.values()))}")
    if target == "portable":
        camera = next(p for name, p in programs.items() if name.endswith("_camera"))
        raw = subprocess.run([camera, folder], input=frames.numpy().tobytes(), capture_output=True, check=True).stdout
        shown = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(8, 64, 96, 3)
        stream = vqc.Stream(vqc.compile(program, "reference"))
        worst = max(float((stream(x[None])[0] * 255 - y.permute(2, 0, 1)).abs().max())
                    for x, y in zip(clip, shown, strict=True))  # fmt: skip
        print(f"largest difference to the reference over 8 frames: {worst:.2f} of 255")
