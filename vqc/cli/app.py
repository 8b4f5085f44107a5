"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vqc
from vqc import video
from vqc.accounting import account
from vqc.cli.bench import bench as run_bench
from vqc.cli.bench import layer_rows
from vqc.cli.demo import run_demo
from vqc.cli.export import listed, run_export, target_rows
from vqc.cli.files import file_lines, run_apply
from vqc.cli.recipes import recipe_lines, whole_lines
from vqc.cli.report import run_report
from vqc.cli.show import Reporter, out, show_error, show_layers, table
from vqc.cli.work import Job, clip_path, parse_size, recipe_for, save
from vqc.errors import VqcError
from vqc.pipeline import passes as known_passes
from vqc.program import Program, op_text
from vqc.report.network import network
from vqc.report.session import constant_bytes, frame_rows, judge, rows
from vqc.report.stored import is_stored
from vqc.report.tables import folder


class _Group(TyperGroup):
    """Shows vqc's own errors as what, where, why, way out, with exit code 2; `--debug` lets them through."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VqcError as error:
            if ctx.params.get("debug"):
                raise
            show_error(error)
            raise typer.Exit(2) from None


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="A compiler that makes video networks written in PyTorch small and fast.")  # fmt: skip


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False) -> None:
    """Options of all commands."""


Model = Annotated[str, typer.Argument(help="rvm, rife, srvgg, bivm, FILE.vqc, package.module:factory or "
                                      "file.py:factory.")]  # fmt: skip
Clip = Annotated[str, typer.Argument(help="A video file, or a known clip: " + ", ".join(video.CLIPS) + ".")]
Recipe = Annotated[str, typer.Option(help="A recipe's name or a pipeline's text.")]
MaybeRecipe = Annotated[str | None, typer.Option(help="A recipe's name or a pipeline's text; by default float, and "
                                                 "none for a .vqc file.", show_default=False)]  # fmt: skip
Calibration = Annotated[str | None, typer.Option(help="The clip that ranges are taken from, or several: a.mp4,b.mp4.")]
Target = Annotated[str, typer.Option(help="Where it runs; `list` shows all.", callback=listed, is_eager=True)]
Size = Annotated[str | None, typer.Option(help="Frames are resized to this, HxW.")]
Frames = Annotated[int, typer.Option(min=0, help="Frames to run; 0 means all.")]
CalibrationFrames = Annotated[int, typer.Option(min=1, help="Frames of each calibration clip.")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of every engine.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")]
Workdir = Annotated[Path | None, typer.Option(help="Learning passes leave checkpoints here and go on from them.")]
Start = Annotated[int, typer.Option(min=0, help="The first frame to run.")]


@app.command()
def run(model: Model, clip: Clip, recipe: MaybeRecipe = None, calibration: Calibration = None,
        target: Target = "native", frames: Frames = 48, size: Size = None, start: Start = 0,
        calibration_frames: CalibrationFrames = 48, threads: Threads = 1, workdir: Workdir = None,
        output: Output = Path("out")) -> None:  # fmt: skip
    """Run a clip through a compiled network: a video, a strip of frames and a table beside the float network."""
    job = Job(model, clip, recipe_for(model, recipe), target, calibration, size, frames, start, calibration_frames,
              threads, workdir)  # fmt: skip
    job.check()
    where = folder(output)
    with Reporter() as report:
        net, pixels, engines, played = job.play(report)
        result = rows(played, played[0])
        written = save(where, f"{net.name}-{Path(clip).stem}", net, pixels, played, video.frame_rate(clip_path(clip)),
                       result)  # fmt: skip
    table(result, f"{net.name} on {Path(clip).name}, {len(played[0].times)} steps at {net.size[0]}x{net.size[1]}")
    _fallbacks(engines[-1].report)
    for path in written:
        out().print(f"wrote {path}")


@app.command()
def apply(model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, size: Size = None,
          calibration_frames: CalibrationFrames = 48, workdir: Workdir = None,
          output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("out.vqc"),
          ) -> None:  # fmt: skip
    """Put a network through a recipe and write the program as a .vqc file, which every command takes as a model."""
    run_apply(Job(model, "", recipe_for(model, recipe), "reference", calibration, size,
                  calibration_frames=calibration_frames, workdir=workdir), output)  # fmt: skip


@app.command()
def compare(model: Model, clip: Clip, recipe: MaybeRecipe = None, calibration: Calibration = None,
            target: Target = "native", frames: Frames = 48, size: Size = None, start: Start = 0,
            calibration_frames: CalibrationFrames = 48, threads: Threads = 1, workdir: Workdir = None
            ) -> None:  # fmt: skip
    """Compare a compiled network with the float one, frame by frame; nothing is written."""
    job = Job(model, clip, recipe_for(model, recipe), target, calibration, size, frames, start, calibration_frames,
              threads, workdir)  # fmt: skip
    with Reporter() as report:
        net, _, engines, played = job.play(report)
    table(frame_rows(played[1], played[0]), f"{played[1].engine} beside {played[0].engine}")
    table(rows(played, played[0]), f"{net.name} on {Path(clip).name}")
    slope = judge(played[1], played[0])["drift dB/frame"]
    out().print(
        f"drift: SQNR changes by {slope:+.3f} dB a frame" + ("; errors pile up in the state" if slope < -0.5 else "")
    )
    _fallbacks(engines[-1].report)


@app.command()
def inspect(model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, size: Size = None,
            target: Annotated[str, typer.Option(help="Compile for this target; none: do not compile.")] = "native",
            calibration_frames: CalibrationFrames = 8, workdir: Workdir = None,
            text: Annotated[bool, typer.Option("--text", help="Print the program too.")] = False) -> None:  # fmt: skip
    """Show a network as vqc sees it: inputs, states, operators, what each pass did and why not more, kernels."""
    job = Job(model, "", recipe_for(model, recipe), "reference" if target == "none" else target, calibration, size,
              calibration_frames=calibration_frames, workdir=workdir)  # fmt: skip
    job.check()
    net = network(model, parse_size(size))
    with Reporter() as report:
        program = job.program(net, report)
    if is_stored(model):
        for line in file_lines(model):
            out().print(line, markup=False)
    _summary(program)
    if text:
        out().print(str(program), markup=False)
    out().print("\nhistory", style="bold")
    for record in program.history:
        out().print(str(record), markup=False)
    if target == "none":
        return
    compiled = vqc.compile(program, target).report
    out().print("\n" + str(compiled), markup=False)
    kinds: dict[str, int] = {}
    for kernel in compiled.kernels.values():
        kinds[kernel] = kinds.get(kernel, 0) + 1
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    if ordered:
        table([{"kernel": kernel, "nodes": str(count)} for kernel, count in ordered])


@app.command()
def bench(model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, target: Target = "native",
          clip: Annotated[str | None, typer.Option(help="The clip to run; none: the network's example.")] = None,
          frames: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 8, size: Size = None,
          calibration_frames: CalibrationFrames = 8, threads: Threads = 1, workdir: Workdir = None,
          layers: Annotated[bool, typer.Option("--layers", help="A row for every call, not every kernel.")] = False,
          tune: Annotated[bool, typer.Option("--tune", help="Time the variants of each kernel first.")] = False,
          compare_float: Annotated[bool, typer.Option("--compare-float", help="Name integer layers that do not pay.")
                                   ] = False,
          ) -> None:  # fmt: skip
    """Time a compiled network: ms a step, and what each layer's kernel takes of it."""
    job = Job(model, clip or "", recipe_for(model, recipe), target, calibration, size, frames, 0, calibration_frames,
              threads, workdir)  # fmt: skip
    with Reporter() as report:
        executable, row = run_bench(job, report, tune=tune, compare=compare_float)
    if executable.report.layers:
        show_layers(layer_rows(executable, each=layers), "every call" if layers else "every kernel")
    out().print(str(executable.report), markup=False)
    table([row])


@app.command()
def report(model: Model, clip: Clip, recipe: Recipe = "int8", calibration: Calibration = None,
           target: Annotated[str, typer.Option(help="Name the kernels of this target; none: do not compile.")] = "none",
           frames: Frames = 24, size: Size = None, start: Start = 0, calibration_frames: CalibrationFrames = 48,
           threads: Threads = 1, workdir: Workdir = None,
           bound: Annotated[float, typer.Option(help="SQNR in dB whose first fall is sought.")] = 20,
           only_bisect: Annotated[bool, typer.Option("--bisect", help="Only seek that fall.")] = False,
           json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
           output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a page of HTML.")] = None,
           ) -> None:  # fmt: skip
    """Report where, when and why a quantized network differs from float: by layer, frame and pass; text or HTML."""
    job = Job(model, clip, recipe, target, calibration, size, frames, start, calibration_frames, threads, workdir)
    run_report(job, output, bound, json=json, only_bisect=only_bisect)


def _summary(program: Program) -> None:
    counts: dict[str, int] = {}
    for node in program.calls:
        counts[op_text(node.target)] = counts.get(op_text(node.target), 0) + 1
    console = out()
    console.print(f"program {program.name}: {len(program.calls)} operators, {len(program.inputs)} inputs, "
                  f"{len(program.states)} states, {constant_bytes(program) / 1e6:.2f} MB of constants")  # fmt: skip
    for i in program.inputs:
        known = f", in [{i.known_range[0]:g}, {i.known_range[1]:g}]" if i.known_range else ""
        console.print(f"  input {i.name} {list(i.shape)}{known}", markup=False)
    for s in program.states:
        console.print(f"  state {s.name} {list(s.shape)}, {s.origin}", markup=False)
    for a in program.assumptions:
        console.print(f"  assumes {a.text} is {a.expected} ({a.where})", markup=False)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    table([{"operator": name, "count": str(count)} for name, count in ordered])
    table(account(program).rows(), "layers, masks taken as full")


def _fallbacks(report: Any) -> None:
    for declined in report.fallbacks if report is not None else ():
        out().print(f"fallback {declined.node}: {declined.reason}", markup=False)


@app.command()
def demo(name: Annotated[str, typer.Argument(help="bivm: one bit, shipped; rvm: in 8 bits.")] = "bivm",
         output: Output = Path("out/demo"),
         frames: Annotated[int, typer.Option(min=2, help="Frames to run.")] = 48,
         calibration_frames: CalibrationFrames = 48, size: Size = "288x512", threads: Threads = 1,
         teacher: Annotated[bool | None, typer.Option("--teacher/--no-teacher", help="Show the float teacher of the "
                            "one-bit network (150 MB once); neither: if it was fetched before.")] = None,
         ) -> None:  # fmt: skip
    """Matting of a real clip: a one-bit network beside its float teacher, or RVM in float and 8 bits side by side."""
    where = folder(output)
    parsed = parse_size(size)
    assert parsed is not None
    with Reporter() as report:
        title, result, written = run_demo(name, where, parsed, frames, calibration_frames, threads, teacher, report)
    table(result, title)
    for path in written:
        out().print(f"wrote {path}")


@app.command()
def recipes(names: Annotated[list[str] | None, typer.Argument(help="Show these whole; none: all in brief.")] = None,
            ) -> None:  # fmt: skip
    """The recipes and their pipelines."""
    for line in whole_lines(names) if names else recipe_lines():
        out().print(line, markup=False)


@app.command()
def passes() -> None:
    """The passes that a pipeline's text can name."""
    for name, cls in sorted(known_passes().items()):
        first = (cls.__doc__ or "").strip().splitlines()[0]
        out().print(first if first.startswith(f"{name}:") else f"{name}: {first}", markup=False)


@app.command()
def targets() -> None:
    """The targets a program can be compiled for."""
    table(target_rows())


@app.command()
def export(model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, target: Target = "native",
           size: Size = None, calibration_frames: CalibrationFrames = 48, workdir: Workdir = None,
           threads: Annotated[int, typer.Option(min=1, max=256, help="Threads it has scratch memory for.")] = 1,
           build: Annotated[bool, typer.Option("--build", help="Compile it too, with zig.")] = False,
           variant: Annotated[str | None, typer.Option(help="With --build, on Arm: the instruction set.")] = None,
           output: Output = Path("out/c")) -> None:  # fmt: skip
    """Write a network as C for a target: sources, weights, a self-test, a camera loop, build files, a README."""
    job = Job(model, "", recipe_for(model, recipe), target, calibration, size, calibration_frames=calibration_frames,
              threads=threads, workdir=workdir)  # fmt: skip
    run_export(job, output, build, variant)


def main() -> None:
    """The entry point."""
    app()
