"""vqc as a backend of torch.compile: super-resolution of one frame, in float32 and in 8 bits.

python examples/torch_compile.py CLIP.mp4
"""

import sys

import torch

import vqc
from vqc.metrics import psnr
from vqc.models import load_srvgg

clip = vqc.video.read_clip(sys.argv[1], frames=5, size=(90, 160))
model = load_srvgg()
int8 = {"recipe": "int8", "calibration": clip[:4], "target": "native"}

with torch.no_grad():
    truth = model(clip[4:])
    for options in (None, int8):
        torch.compiler.reset()
        fast = torch.compile(model, backend="vqc", options=options)
        large = fast(clip[4:])
        print(options and options["recipe"], f"PSNR against eager: {psnr(large, truth):.2f} dB")
