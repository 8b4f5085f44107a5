"""What the commands share: arguments checked before anything slow begins, clips read, both engines played."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from torch import Tensor

from vqc import distributed, video
from vqc.api import pipeline_of
from vqc.backends import backend_for
from vqc.cli.show import Reporter
from vqc.errors import CalibrationError, InputError
from vqc.program import Program
from vqc.report.network import Network, network
from vqc.report.session import (
    Clips,
    Engine,
    Playback,
    eager_engine,
    play,
    program_engine,
    recipe_program,
    strip_rows,
    use_threads,
)
from vqc.report.stored import is_stored
from vqc.report.tables import folder, markdown, write_text


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) out of "288x512"; InputError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or int(found[1]) < 1 or int(found[2]) < 1:
        raise InputError(f"a size cannot be {text!r}", way_out="write HEIGHTxWIDTH, such as 288x512")
    return int(found[1]), int(found[2])


def recipe_for(model: str, recipe: str | None) -> str:
    """The recipe asked for; by default float for a network, and none for a file, whose program has had its own."""
    return recipe if recipe is not None else "" if is_stored(model) else "float"


def clip_path(name: str) -> Path:
    """A file's path, or that of a clip known by name (`vqc.video.CLIPS`)."""
    return video.clip(name) if name in video.CLIPS and not Path(name).exists() else Path(name)


def shared_program(net: Network, recipe: str, clips: Clips | None, report: Reporter, workdir: Path | None = None
                   ) -> Program:  # fmt: skip
    """The network captured and put through a recipe, by all processes that torchrun started.

    Only the first of them goes on after that: in the others typer.Exit ends the command with 0.
    """
    shard = distributed.current()
    program = recipe_program(net, recipe, clips, report, shard, workdir)
    if not shard.first:
        raise typer.Exit(0)
    return program


@dataclass(frozen=True)
class Job:
    """One network, one clip, one recipe, one target; frames of 0 means all. `workdir`: as for `vqc.apply`."""

    model: str
    clip: str
    recipe: str
    target: str
    calibration: str | None = None
    size: str | None = None
    frames: int = 48
    start: int = 0
    calibration_frames: int = 48
    threads: int = 1
    workdir: Path | None = None

    def check(self) -> None:
        """Raise what can be known at once: a wrong recipe, target, size or folder, a missing clip."""
        pipeline = pipeline_of(self.recipe)
        backend_for(self.target)
        parse_size(self.size)
        if self.calibration is None and any(p.name == "observe" for p in pipeline.passes):
            raise CalibrationError(f"recipe {self.recipe!s:.60} needs a calibration clip and none was given",
                                   way_out="add --calibration CLIP, 32 to 256 typical frames")  # fmt: skip
        if self.workdir is not None:
            folder(self.workdir)

    @property
    def calibration_names(self) -> list[str]:
        """The clips that ranges are taken from: `calibration` names a file, or several with commas."""
        if self.calibration is None:
            return []
        whole = self.calibration in video.CLIPS or Path(self.calibration).exists()
        return [self.calibration] if whole else self.calibration.split(",")

    @property
    def calibration_name(self) -> str:
        """These clips as a reader is told of them, without folders and endings."""
        return ", ".join(Path(name).stem for name in self.calibration_names)

    def calibration_clips(self, net: Network) -> list[Tensor] | None:
        """The clips that ranges are taken from, each [T,3,H,W]."""
        if self.calibration is None:
            return None
        return [self.read(name, self.calibration_frames, net.size) for name in self.calibration_names]

    def program(self, net: Network, report: Reporter) -> Program:
        """The network captured and put through the recipe (`shared_program`)."""
        return shared_program(net, self.recipe, self.calibration_clips(net), report, self.workdir)

    def read(self, name: str, frames: int, size: tuple[int, int], start: int = 0) -> Tensor:
        """A clip as [T,3,H,W] in [0,1]."""
        return video.read_clip(clip_path(name), frames or None, size, start)

    def prepare(self, report: Reporter) -> tuple[Network, Tensor, list[Engine]]:
        """The network, the clip, and two engines: eager float and the compiled recipe."""
        self.check()
        clip_file = clip_path(self.clip)
        next(video.iter_frames(clip_file))  # a clip that cannot be read is told before weights are fetched
        net = network(self.model, parse_size(self.size))
        report.say(f"model {net.name}" + (f", weights: {net.licence}" if net.licence else ""))
        clip = video.read_clip(clip_file, self.frames or None, net.size, self.start)
        report.say(f"compile {net.name}: recipe {self.recipe or 'none'}, target {self.target}")
        options = use_threads(self.threads, self.target)
        program = self.program(net, report)
        compiled = program_engine(program, f"vqc {self.target}, {self.recipe or 'as stored'}", self.target, **options)
        return net, clip, [eager_engine(net), compiled]

    def play(self, report: Reporter) -> tuple[Network, Tensor, list[Engine], list[Playback]]:
        """All of it, played."""
        net, clip, engines = self.prepare(report)
        return net, clip, engines, [play(e, net, clip, report) for e in engines]


def save(folder: Path, stem: str, net: Network, clip: Tensor, played: Sequence[Playback], fps: float,
         table: list[dict[str, str]]) -> list[Path]:  # fmt: skip
    """Write the last playback as a video (a matte laid over a colour), the strip against the first, and the table."""
    shown, reference = played[-1], played[0]
    pictures = shown.pictures
    if shown.foregrounds and pictures[0].shape[0] == 1:
        pairs = zip(shown.foregrounds, pictures, strict=True)
        pictures = [video.composite(colours, matte) for colours, matte in pairs]
    offset = net.reach // 2 if net.reach else 0
    columns = ["frame", reference.engine, shown.engine, "|difference| x10"]
    text = markdown(table) + "\nStrip, left to right: " + "; ".join(columns) + ".\n"
    sheet = strip_rows(clip, reference, shown, offset=offset)
    return [
        video.write_video(folder / f"{stem}.mp4", pictures, fps),
        video.write_png(folder / f"{stem}-strip.png", video.strip(sheet)),
        write_text(folder / f"{stem}-table.md", text),
    ]
