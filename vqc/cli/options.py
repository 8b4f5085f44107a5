"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqc import video
from vqc.cli import complete
from vqc.cli.config import configure
from vqc.cli.lists import Json, targets

__all__ = ["Calibration", "CalibrationFrames", "Clip", "Clips", "Config", "Frames", "Json", "MaybeRecipe", "Model",
           "Recipe", "Size", "Start", "Target", "TargetOrNone", "Threads", "Winograd", "Workdir"]  # fmt: skip


def _listed(context: typer.Context, value: str) -> str:
    """The callback of --target: `list` does what `vqc targets` does, and ends."""
    if value == "list" and not context.resilient_parsing:
        targets(json=context.obj["json"])
        raise typer.Exit
    return value


_KNOWN = ", ".join(video.CLIPS)
_RECIPE = "A recipe's name (`vqc recipes`) or a pipeline's text (`vqc passes`)"

Model = Annotated[str, typer.Argument(metavar="MODEL", show_default=False, autocompletion=complete.models,
                                      help="rvm, rife, srvgg, bivm, FILE.vqc, package.module:factory or "
                                      "file.py:factory.")]  # fmt: skip
Clip = Annotated[str, typer.Argument(metavar="CLIP", show_default=False, autocompletion=complete.clips,
                                     help=f"A video file, or a known clip: {_KNOWN}.")]  # fmt: skip
Clips = Annotated[list[str] | None, typer.Argument(
    metavar="CLIP", show_default=False, autocompletion=complete.clips,
    help=f"Video files, folders of them (all videos directly in it), or known clips: {_KNOWN}.",
)]  # fmt: skip
Recipe = Annotated[str, typer.Option(autocompletion=complete.recipes, help=f"{_RECIPE}.")]
MaybeRecipe = Annotated[str | None, typer.Option(autocompletion=complete.recipes, show_default=False,
                                                 help=f"{_RECIPE}; by default float, and none for a .vqc file."
                                                 )]  # fmt: skip
Calibration = Annotated[list[str] | None, typer.Option(
    metavar="CLIP", show_default=False, autocompletion=complete.clips,
    help="What ranges are taken from: a clip, a folder of clips, or several (a.mp4,b.mp4, or the option again).",
)]  # fmt: skip
Target = Annotated[str, typer.Option(help="Where it runs; `list` shows all.", callback=_listed, is_eager=True,
                                     autocompletion=complete.targets)]  # fmt: skip
TargetOrNone = Annotated[str, typer.Option(help="Name the kernels of this target; none: do not compile.",
                                           callback=_listed, is_eager=True, autocompletion=complete.targets
                                           )]  # fmt: skip
Size = Annotated[str | None, typer.Option(metavar="HxW", show_default=False,
                                          help="Frames are resized to this; by default 288x512, or as the model's "
                                          "example or file says.")]  # fmt: skip
Frames = Annotated[int, typer.Option(min=0, help="Frames to run; 0 means all.")]
Start = Annotated[int, typer.Option(min=0, help="The first frame to run.")]
CalibrationFrames = Annotated[int, typer.Option(min=1, help="Frames of each calibration clip.")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of every engine.")]
Workdir = Annotated[Path | None, typer.Option(metavar="FOLDER", show_default=False,
                                              help="Passes that learn leave checkpoints here and go on from them."
                                              )]  # fmt: skip
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", show_default=False, callback=configure,
                                             is_eager=True, help="Take arguments and options from this file; those "
                                             "given here win.")]  # fmt: skip
Winograd = Annotated[bool, typer.Option("--winograd", help="C: float convolutions of three rows with a third fewer "
                                        "products, and a third more bytes of weights.")]  # fmt: skip
