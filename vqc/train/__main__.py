"""python -m vqc.train --preset small -o runs/mine: train a one-bit matting network, on two cores or on a GPU.

    torchrun --nproc-per-node 4 -m vqc.train --preset full -o runs/mine
    python -m vqc.train --preset small --clip talk.mp4 --background office.mp4 -o runs/mine

Stopped at any moment, the same command goes on. The folder gets checkpoints, a log (log.jsonl), the float network
(net.safetensors), the packed one (packed.safetensors) and its scores (scores.json).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

from .. import distributed
from ..errors import TrainingError, VqcError
from ..models import load_rvm
from ..models.binary import METHODS
from ..models.bivm import BIMATTING_SHORTCUTS, BIVM_SHORTCUTS, BiVM
from ..models.packed import save_packed
from ..video import read_clip
from .data import HELD_OUT, Material, Sampler, bytes_of, footage, known_material
from .evaluate import score
from .loop import Trainer
from .stages import preset


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the run")],
    preset_name: Annotated[str, typer.Option("--preset", help="tiny, small or full")] = "small",
    bits: Annotated[int, typer.Option(help="1, or 32 for the float twin")] = 1,
    encoder: Annotated[str, typer.Option(help="ebb or mobilenetv3")] = "ebb",
    decoder: Annotated[str, typer.Option(help="shb or vanilla")] = "shb",
    method: Annotated[str, typer.Option(help="how layers are binarized: " + ", ".join(METHODS))] = "bimatting",
    shortcuts: Annotated[str, typer.Option(help="bivm or bimatting")] = "bivm",
    width: Annotated[float, typer.Option(help="1: the paper's")] = 1.0,
    twin: Annotated[Path | None, typer.Option(help="net.safetensors of a float twin, for mimicking")] = None,
    clip: Annotated[list[Path] | None, typer.Option(help="clips of people, in place of the known ones")] = None,
    background: Annotated[list[Path] | None, typer.Option(help="clips of backgrounds")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(help="0: as torch chooses")] = 0,
) -> None:
    """Train a matting network on clips made on the fly; its teacher is the float RVM."""
    if threads:
        torch.set_num_threads(threads)
    stages = list(preset(preset_name).stages)
    shard = distributed.current()
    device = torch.device("cuda", shard.rank % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    if shortcuts not in ("bivm", "bimatting") or method not in METHODS:
        raise TrainingError(f"unknown build: shortcuts {shortcuts!r}, method {method!r}",
                            way_out="bivm or bimatting; " + ", ".join(METHODS))  # fmt: skip
    build: dict[str, Any] = {"encoder": encoder, "decoder": decoder, "width": width}
    cuts = BIVM_SHORTCUTS if shortcuts == "bivm" else BIMATTING_SHORTCUTS

    def make(of_bits: int) -> BiVM:
        torch.manual_seed(seed)
        return BiVM(of_bits, how=METHODS[method], cuts=cuts, **build).to(device)

    net, teacher = make(bits), None
    if twin is not None:
        teacher = make(32)
        teacher.load_state_dict(load_file(twin))
        teacher.eval()
    material = _material(clip or [], background or [])
    out.mkdir(parents=True, exist_ok=True)
    log = _Log(out / "log.jsonl") if shard.first else None
    trainer = Trainer(net, lambda frames, size: Sampler(material, frames, size), seed=seed, twin=teacher,
                      folder=out, shard=shard, log=log)  # fmt: skip
    trainer.run(stages)
    if not shard.first:
        return
    net.cpu()
    save_file({k: t.contiguous() for k, t in net.state_dict().items()}, out / "net.safetensors")
    scores = _scores(net, material) if not clip else {}
    about = {"build": {**build, "bits": bits, "method": method, "shortcuts": shortcuts}, "preset": preset_name,
             "seed": seed, "scores": scores}  # fmt: skip
    if bits == 1:
        about["bytes"] = save_packed(net, out / "packed.safetensors", about)
    (out / "scores.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    typer.echo(json.dumps(about, sort_keys=True))


def _material(clips: list[Path], backgrounds: list[Path]) -> Material:
    teacher = load_rvm()
    size = (288, 512)
    if not clips:
        return known_material(teacher, size)
    made = Material()
    made.footage = [footage(teacher, read_clip(path, size=size)) for path in clips]
    made.backgrounds = [bytes_of(read_clip(path, size=size)) for path in backgrounds]
    return made


def _scores(net: BiVM, material: Material) -> dict[str, Any]:
    """On the stretches that were held out of training, against the teacher's matte."""
    found = {}
    for (name, stretches), clip in zip(HELD_OUT.items(), material.footage, strict=True):
        for begin, end in stretches:
            frames, alpha = (x[begin:end].float() / 255 for x in (clip.frames, clip.alpha))
            found[f"{name} {begin}-{end}"] = vars(score(net, frames, alpha))
    return found


class _Log:
    """A line for every hundredth step: means since the last one."""

    def __init__(self, path: Path):
        self.path, self.count, self.begun = path, 0, time.monotonic()
        self.sums: dict[str, float] = {}

    def __call__(self, step: int, steps: int, terms: dict[str, float]) -> None:
        self.count += 1
        for key, value in terms.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        if self.count < 100 and step < steps:
            return
        line: dict[str, float] = {"step": step, "steps": steps, "seconds": round(time.monotonic() - self.begun, 1)}
        line |= {k: round(t / self.count, 5) for k, t in self.sums.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        typer.echo(json.dumps(line))
        self.sums, self.count = {}, 0


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    try:
        app(standalone_mode=False)
    except VqcError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
