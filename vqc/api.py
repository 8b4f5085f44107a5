"""The three verbs after capture: apply a recipe, compile, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqc.backends import backend_for, layers_of
from vqc.distributed import Shard
from vqc.errors import CalibrationError
from vqc.executable import Executable
from vqc.pipeline import Callback, PassContext, Pipeline, parse
from vqc.program import Program
from vqc.recipes import RECIPES


def pipeline_of(recipe: str | Pipeline) -> Pipeline:
    """The pipeline of a recipe's name or of a pipeline's text; PipelineError when it is neither."""
    if isinstance(recipe, Pipeline):
        return recipe
    return parse(RECIPES[recipe].pipeline if recipe in RECIPES else recipe)


def apply(program: Program, recipe: str | Pipeline, *, calibration: Any = None, seed: int = 0, debug: bool = False,
          callback: Callback | None = None, progress: Callable[[str, int, int], None] | None = None,
          twin: Program | None = None, labels: Any = None, workdir: str | Path | None = None,
          shard: Shard | None = None) -> Program:  # fmt: skip
    """Run a recipe or a pipeline on a Program and return the new Program; the given one is not changed.

    Parameters: `recipe` - a name of `vqc.recipes.RECIPES`, a pipeline's text ("fold-bn,observe,quantize"), or a
    Pipeline. `calibration` - clips in any form `vqc.calibration.as_clips` takes. `debug` - check every pass's numeric
    promise on a probe sequence. `callback(pass, before, after, seconds)` runs between passes. `twin` - the float
    program that learning passes imitate, when `program` is quantized already. `labels` - what the results should be,
    where that is known. `workdir` - a folder in which long passes leave checkpoints: the same call again goes on where
    it was killed. `shard` - share the work with other processes that make the same call (docs/distributed.md), usually
    `vqc.distributed.current()`; all get the same Program. In `workdir` each but the first has a folder of its own.
    Raises PipelineError, CalibrationError, SpecError, NumericsError, DistributedError.
    """
    pipeline = pipeline_of(recipe)
    if calibration is None and any(p.name == "observe" for p in pipeline.passes):
        raise CalibrationError(f"recipe {recipe!s:.60} needs calibration clips and none were given",
                               way_out="pass calibration=vqc.video.read_clip(...), 32 to 256 frames")  # fmt: skip
    if callback is not None:
        pipeline = Pipeline(pipeline.passes, callback)
    shard = shard or Shard()
    place = None if workdir is None else Path(workdir) if shard.first else Path(workdir) / f"process-{shard.rank}"
    context = PassContext(calibration, seed, debug, progress=progress, twin=twin, labels=labels, workdir=place,
                          shard=shard, costs=layers_of)  # fmt: skip
    return pipeline.run(program, context)


def compile(program: Program, target: str = "native", **options: Any) -> Executable:
    """Make a Program ready to run here.

    `target`: "native" (C for this machine's CPU), "portable" (plain C99), a level of x86-64 (docs/targets.md),
    "inductor", "reference", "onnx" (by ONNX Runtime, docs/onnx.md). What C cannot take runs eagerly in PyTorch and is
    listed with the reason in `Executable.report`. Options of C: `threads` (1), `cc` (a compiler), `tune` (True:
    kernels' bands by the clock), `fallback` ("eager", or "none": an error instead).
    Raises TargetError, UnsupportedOp.
    """
    return backend_for(target).compile(program, target, options)


def export(program: Program, folder: str | Path, target: str = "native", **options: Any) -> Path:
    """Write a Program as sources for another machine into `folder` (whole or not at all); returns the folder.

    `target`: a C target (docs/targets.md), "onnx" or "onnx:exact" (docs/onnx.md). Options: `licence` (of the weights,
    for the README and the header); of C, `threads` (1: those it has scratch memory for) and `self_test` (True: stored
    steps and a program that repeats them).
    Raises TargetError, UnsupportedOp, ArtifactError.
    """
    return backend_for(target).export(program, target, Path(folder), options)
