"""How good the shipped one-bit network is: its matte beside its float teacher's, state carried, frame after frame.

Held-out stretches are of clips it learned from, `single_face` is a clip it never saw, and `astronaut` is a picture of a
person it never saw, under a camera that tilts. What its masks cost: the same network is run once more with masks that
keep everything, which it never had in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import skimage.data
import torch
from torch import Tensor

import vqc
from benchmarks.machine import Record
from vqc import metrics
from vqc.accounting import account, mask_densities
from vqc.models import MODELS, _shb, load_rvm
from vqc.models._bivm_weights import BIVM_FILE, build_packed
from vqc.train.data import HELD_OUT
from vqc.train.evaluate import mattes
from vqc.video import clip, read_clip, strip, write_png

SIZE, FRAMES = (288, 512), 24
EVERY = 8  # frames whose masks are counted


def _cases(teacher: Any) -> list[tuple[str, str, Tensor, Tensor]]:
    """(name, kind, frames, the teacher's alpha)."""
    found: list[tuple[str, str, Tensor, Tensor]] = []
    for name, held in HELD_OUT.items():
        frames = read_clip(clip(name), size=(216, 264) if name == "carphone" else SIZE)
        alpha, _ = mattes(teacher, frames)
        found += [(f"{name} {a}-{b}", "held-out stretch", frames[a:b], alpha[a:b]) for a, b in held]
    frames = read_clip(clip("single_face"), size=SIZE)
    found.append(("single_face", "unseen clip", frames, mattes(teacher, frames)[0]))
    picture = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    frames = torch.stack([picture[:, t : t + SIZE[0]] for t in range(FRAMES)])
    found.append(("astronaut", "unseen person, a camera that tilts", frames, mattes(teacher, frames)[0]))
    return found


def measure(weights: Path | None, pictures: Path | None = None) -> list[Record]:
    """A record a case; `pictures`: a folder for strips (frame, teacher, one bit), one a case."""
    net, _ = build_packed(weights or BIVM_FILE)
    inputs = (torch.zeros(1, 3, *SIZE), None, None, None, None)
    program = vqc.apply(vqc.capture(net, inputs, states=MODELS["bivm"].states, known_ranges={"src": (0, 1)}), "xnor")
    records = []
    for name, kind, frames, truth in _cases(load_rvm()):
        alpha, density = mattes(net, frames)
        with mock.patch.object(_shb, "uncertain", lambda matte, threshold=0.0: torch.ones_like(matte)):
            everywhere, _ = mattes(net, frames)
        record: Record = {
            "case": name, "kind": kind, "frames": len(frames), "density": round(density, 3),
            "empty_mad": round(metrics.mad(torch.zeros_like(truth), truth), 2),
            "mad": round(metrics.mad(alpha, truth), 2), "mse": round(metrics.mse(alpha, truth), 2),
            "dtssd": round(metrics.dtssd(alpha, truth), 2), "mad_everywhere": round(metrics.mad(everywhere, truth), 2),
        }  # fmt: skip
        if frames.shape[-2:] == SIZE:
            seen = mask_densities(program, [[(f[None],) for f in frames[::EVERY]]])
            record["giga_operations"] = round(sum(w.operations for w in account(program, seen).layers) / 1e9, 4)
        records.append(record)
        print(", ".join(f"{k} {v}" for k, v in record.items()), flush=True)
        if pictures is not None:
            at = range(0, len(frames), max(1, len(frames) // 4))
            rows = [[frames[i], *(x[i].expand(3, -1, -1) for x in (truth, alpha))] for i in list(at)[:4]]
            pictures.mkdir(parents=True, exist_ok=True)
            write_png(pictures / f"{name.replace(' ', '-')}.png", strip(rows))
    return records
