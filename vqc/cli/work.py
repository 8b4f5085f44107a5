"""What the commands share: arguments checked before anything slow begins, clips read, both engines played."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import typer
from torch import Tensor

import vqc
from vqc import distributed, video
from vqc.api import pipeline_of
from vqc.backends import Backend, backend_for
from vqc.calibration import at_speeds
from vqc.calibration.thin import warnings
from vqc.cli.clips import clip_path, expand
from vqc.cli.exits import misuse
from vqc.cli.playing import enough, fewer
from vqc.cli.show import Reporter
from vqc.errors import CalibrationError, InputError, TargetError
from vqc.program import Program
from vqc.report.network import Network, network
from vqc.report.session import Clips, Playback, as_list, captured, strip_rows
from vqc.report.stored import is_stored
from vqc.report.tables import folder, markdown, write_text
from vqc.video.read import too_short

__all__ = ["Job", "announce", "clip_path", "parse_size", "parse_speeds", "recipe_for", "save", "shared_program"]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) out of "288x512"; InputError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or int(found[1]) < 1 or int(found[2]) < 1:
        raise InputError(f"a size cannot be {text!r}", way_out="write HEIGHTxWIDTH, such as 288x512")
    return int(found[1]), int(found[2])


def parse_speeds(text: str | None) -> tuple[int, ...]:
    """(1, 2, 4) out of "1,2,4"; InputError for anything else."""
    found = () if text is None else tuple(text.replace(" ", "").split(","))
    if not all(re.fullmatch("[1-9][0-9]*", s) for s in found):
        raise InputError(f"speeds cannot be {text!r}", way_out="write whole numbers, such as 1,2,4,8")
    return tuple(int(s) for s in found)


def recipe_for(model: str, recipe: str | None) -> str:
    """The recipe asked for; by default float for a network, and none for a file, whose program has had its own."""
    return recipe if recipe is not None else "" if is_stored(model) else "float"


def check_verb(target: str, verb: str) -> None:
    """Raise TargetError for a target that is not known, or whose backend cannot do this ("compile" or "export")."""
    if getattr(type(backend_for(target)), verb) is not getattr(Backend, verb):
        return
    if verb == "export":
        raise TargetError(f"target {target} cannot be exported", why="it only runs programs here",
                          way_out="choose another (`vqc targets`), or keep the program with `vqc apply`")  # fmt: skip
    raise TargetError(f"target {target} cannot run programs here", why="it only writes files",
                      way_out="write them with `vqc export`, or choose another (`vqc targets`)")  # fmt: skip


def announce(net: Network, report: Reporter, beside: bool = True) -> None:
    """Say which network it is; with `beside`, what a file is compared with."""
    report.say(f"model {net.name}" + (f", weights: {net.licence}" if net.licence else ""))
    if beside and net.program is not None:
        report.say("it is compared with the file's own program, run by PyTorch: the file holds no other network")


def shared_program(net: Network, recipe: str, clips: Clips | None, report: Reporter, workdir: Path | None = None,
                   program: Program | None = None, *, warn: bool = True) -> Program:  # fmt: skip
    """The network captured (unless `program` is that already) and put through a recipe, by all processes of torchrun.

    `warn`: `report` warns of thin calibration, a file's own included.
    Only the first of them goes on after that: in the others typer.Exit ends the command with 0.
    """
    shard = distributed.current()
    steps = None if clips is None else [net.steps(clip) for clip in as_list(clips)]
    program = vqc.apply(program or captured(net), recipe, calibration=steps, progress=report, shard=shard,
                        workdir=workdir)  # fmt: skip
    if not shard.first:
        raise typer.Exit(0)
    if warn:
        report.warn(warnings(program))
    return program


@dataclass(frozen=True)
class Job:
    """One network, one clip, one recipe, one target; frames of 0 means all. `workdir`: as for `vqc.apply`.

    `calibration`: clips, folders of them, or several with commas between. `calibration_speeds`: where given, the
    clips' frames are taken at these speeds (`vqc.calibration.at_speeds`).
    """

    model: str
    clip: str
    recipe: str
    target: str
    calibration: Sequence[str] | None = None
    size: str | None = None
    frames: int = 48
    start: int = 0
    calibration_frames: int = 48
    threads: int = 1
    workdir: Path | None = None
    calibration_speeds: tuple[int, ...] = ()

    def check(self, verb: str = "compile") -> None:
        """Raise what can be known at once, before weights are fetched and clips are read.

        As a Misuse: a wrong recipe or size, a target that cannot do this (`verb` of `vqc.backends.Backend`), a recipe
        without its clips. Else TargetError for a target that cannot run here (no compiler), VideoError for a clip that
        cannot be read, ArtifactError for a folder that cannot be written.
        """
        with misuse():
            pipeline = pipeline_of(self.recipe)
            check_verb(self.target, verb)
            parse_size(self.size)
            if not self.calibration_names and any(p.name == "observe" for p in pipeline.passes):
                raise CalibrationError(f"recipe {self.recipe!s:.60} needs a calibration clip and none was given",
                                       way_out="add --calibration CLIP, 32 to 256 typical frames")  # fmt: skip
            names = [*([self.clip] if self.clip else []), *self.calibration_names]
        if verb == "compile":
            backend_for(self.target).ready(self.target)
        for name in names:
            next(video.iter_frames(clip_path(name)))
        if self.workdir is not None:
            folder(self.workdir)

    def network(self) -> Network:
        """The network. Raises a Misuse when its name or size is not understood, else what `network` raises."""
        with misuse(InputError):
            return network(self.model, parse_size(self.size))

    @property
    def calibration_names(self) -> list[str]:
        """The clips that ranges are taken from; with commas, a text names several unless it is a file's own name."""
        names: list[str] = []
        for text in self.calibration or ():
            whole = text in video.CLIPS or Path(text).exists()
            names += [text] if whole else text.split(",")
        return expand(names)

    @property
    def calibration_name(self) -> str:
        """These clips as a reader is told of them, without folders and endings."""
        return ", ".join(Path(name).stem for name in self.calibration_names)

    def calibration_clips(self, net: Network) -> list[Tensor] | None:
        """The clips that ranges are taken from, each [T,3,H,W]. Raises VideoError for one that is too short."""
        names, speeds = self.calibration_names, self.calibration_speeds
        if not names:
            return None
        option, frames = "--calibration-frames", self.calibration_frames
        enough(net, frames, option)
        each = max(net.reach + 1, 2 if speeds else 1)  # what the shortest stretch needs
        least = (each - 1) * max(speeds, default=1) + 1
        if frames < least:
            raise CalibrationError(
                f"{frames} frames of a calibration clip are too few at {max(speeds)} times its speed",
                why=f"{each} frames at that speed are {least} of the clip",
                way_out=f"use {option} {least} or more, or lower --calibration-speeds",
            )
        clips = [_read(name, frames, net, 0, lambda count: fewer(count, least, option=option)) for name in names]
        return at_speeds(clips, speeds) if speeds else clips

    def program(self, net: Network, report: Reporter, program: Program | None = None, *, warn: bool = True
                ) -> Program:  # fmt: skip
        """The network (or its `program`, captured before) put through the recipe (`shared_program`)."""
        clips = self.calibration_clips(net)
        return shared_program(net, self.recipe, clips, report, self.workdir, program, warn=warn)

    def read(self, net: Network, ahead: int = 0) -> Tensor:
        """The clip to be run, `ahead` frames longer than --frames says (0: all): [T,3,H,W] in [0,1].

        Raises VideoError if it is too short, InputError if --frames is less than a step looks at.
        """
        frames = self.frames + ahead if self.frames else 0
        enough(net, frames)
        least = net.reach + 1
        return _read(self.clip, frames, net, self.start, lambda count: fewer(count, least, self.start, ahead))

    @property
    def engine_name(self) -> str:
        """What the compiled program is called in tables."""
        return f"vqc {self.target}, {self.recipe or 'as stored'}"


def _read(name: str, frames: int, net: Network, start: int, way_out: Callable[[int], str]) -> Tensor:
    """As many frames (0: all), one step's at least; `way_out`: what is said when there are only so many."""
    path = clip_path(name)
    found = list(islice(video.iter_frames(path, net.size, start), frames or None))
    if len(found) < max(frames, net.reach + 1):
        raise too_short(path, frames or net.reach + 1, start, len(found), way_out(len(found)))
    return torch.stack(found)


def save(folder: Path, stem: str, net: Network, clip: Tensor, played: Sequence[Playback], fps: float,
         table: list[dict[str, str]]) -> list[Path]:  # fmt: skip
    """Write the last playback as a video (a matte laid over a colour), the strip against the first, and the table."""
    shown, reference = played[-1], played[0]
    pictures = shown.pictures
    if shown.foregrounds and pictures[0].shape[0] == 1:
        pairs = zip(shown.foregrounds, pictures, strict=True)
        pictures = [video.composite(colours, matte) for colours, matte in pairs]
    offset = net.reach // 2 if net.reach else 0
    sheet = strip_rows(clip, reference, shown, offset=offset)
    return [
        video.write_video(folder / f"{stem}.mp4", pictures, fps),
        video.write_png(folder / f"{stem}-strip.png", video.strip(sheet)),
        write_text(folder / f"{stem}-table.md", table_text(table, reference.engine, shown.engine)),
    ]


def table_text(table: Sequence[dict[str, str]], reference: str, shown: str) -> str:
    """A table as Markdown, and the columns of the strip beside it."""
    columns = ["frame", reference, shown, "|difference| x10"]
    return markdown(table) + "\nStrip, left to right: " + "; ".join(columns) + ".\n"
