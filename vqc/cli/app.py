"""The application: its commands, what an error becomes, the exit code."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vqc
from vqc.cli.bench import bench
from vqc.cli.compare import compare
from vqc.cli.compile import compile
from vqc.cli.demo import demo
from vqc.cli.exits import Exit, Misuse
from vqc.cli.export import export
from vqc.cli.files import apply
from vqc.cli.inspect import inspect
from vqc.cli.lists import passes, recipes, targets
from vqc.cli.report import report
from vqc.cli.run import run
from vqc.cli.show import error_data, print_json, show_error
from vqc.errors import VqcError

_Refused: Any = typer.BadParameter.__base__  # UsageError, which is click's or typer's own by typer's release


class _Group(TyperGroup):
    """Shows vqc's own errors as what, where, why, way out; `--debug` lets them through. With `--json` they are the
    document on stdout too, and so is what the parser refuses."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = {"json": "--json" in args}
        try:
            return super().parse_args(ctx, args)
        except _Refused as refused:
            _refusal(ctx, refused)
            raise

    def invoke(self, ctx: Any) -> Any:
        def told(error: VqcError, code: Exit) -> typer.Exit:
            show_error(error)
            if ctx.obj["json"]:
                print_json(ctx.invoked_subcommand or "", False, {"error": error_data(error)})
            return typer.Exit(code)

        debug = ctx.params.get("debug")
        try:
            return super().invoke(ctx)
        except Misuse as wrong:
            if debug:
                raise wrong.error from None
            raise told(wrong.error, Exit.USAGE) from None
        except VqcError as error:
            if debug:
                raise
            raise told(error, Exit.WORK) from None
        except _Refused as refused:
            _refusal(ctx, refused)
            raise


def _refusal(ctx: Any, refused: Any) -> None:
    """The document of what the parser refuses; the parser itself prints the usage."""
    if ctx.obj["json"]:
        said = {"kind": "UsageError", "what": refused.format_message(), "where": "", "why": "", "way_out": ""}
        print_json(ctx.invoked_subcommand or "", False, {"error": said})


HELP = """A compiler that makes video networks written in PyTorch small and fast.

Exit codes: 0 done, 1 the work failed, 2 the command line or the configuration is wrong, 3 a bound does not hold."""
app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP,
                  rich_markup_mode="markdown",
                  context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip


def _version(value: bool) -> None:
    if value:
        print(f"vqc {vqc.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version."
                                          )] = False,
) -> None:  # fmt: skip
    """Options of all commands."""


for _command in (run, compare, report, inspect, bench, apply, compile, export, recipes, passes, targets, demo):
    app.command()(_command)


def main() -> None:
    """The entry point, of `python -m vqc` too."""
    app(prog_name="vqc")
