"""CBackend: the C code generator behind the targets of targets.py."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import fx

from vqc.backends import Backend
from vqc.backends.c.build import Compiler, build_library, find_compiler
from vqc.backends.c.choices import Choices
from vqc.backends.c.cost import layers
from vqc.backends.c.emit import Model, generate, kernel_files
from vqc.backends.c.lower import lower
from vqc.backends.c.peak import known_peaks, measured_peaks
from vqc.backends.c.registry import why_not
from vqc.backends.c.runtime import CExecutable, CModel
from vqc.backends.c.targets import THREAD_POOL, Target, target_called
from vqc.backends.c.tune import example, tuned
from vqc.errors import TargetError, UnsupportedOp
from vqc.executable import CompileReport, Executable
from vqc.layers import Layer
from vqc.program import Declined, Program, op_text

MEASURING_ROUNDS = 9  # of a step whose calls are timed; the least of each counts
FALLBACKS = ("eager", "none")
OPTIONS = {"cc": (str, type(None)), "threads": (int,), "fallback": (str,), "self_test": (bool,), "tune": (bool,),
           "winograd": (bool,), "licence": (str,)}  # fmt: skip


def runs_here(target: Target) -> None:
    """Raise TargetError for a target whose code cannot run on this machine's kind of CPU."""
    known = {"amd64": "x86_64", "arm64": "aarch64"}
    machine = known.get(platform.machine().lower(), platform.machine().lower())
    if target.triple and (not target.dispatch or target.triple.split("-")[0] != machine):
        raise TargetError(f"target {target.name} is not compiled in this process", why=f"this machine is {machine}",
                          way_out="use vqc.export, or one of native, portable")  # fmt: skip


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their defaults; TargetError for an unknown one or a value of the wrong kind."""
    for key, value in options.items():
        if key not in OPTIONS:
            raise TargetError(f"the C backend has no option {key!r}", way_out="use " + ", ".join(sorted(OPTIONS)))
        if not isinstance(value, OPTIONS[key]):
            raise TargetError(f"option {key} cannot be {value!r}",
                              why="it must be " + " or ".join(t.__name__ for t in OPTIONS[key]))  # fmt: skip
    defaults = {
        "cc": None,
        "threads": 1,
        "fallback": "eager",
        "self_test": True,
        "tune": False,
        "winograd": False,
        "licence": "",
    }
    found = defaults | dict(options)
    if found["fallback"] not in FALLBACKS:
        raise TargetError(f"option fallback cannot be {found['fallback']!r}", way_out="use " + " or ".join(FALLBACKS))
    if not 1 <= found["threads"] <= 256:
        raise TargetError(f"option threads cannot be {found['threads']}", way_out="use 1 to 256")
    return found


def unsupported(program: Program, target: str) -> list[Declined]:
    """Every call the backend has no kernel for, with the reason."""
    reasons = ((n, why_not(program, n, target)) for n in program.calls)
    return [Declined(n.name, reason) for n, reason in reasons if reason is not None]


def refuse(program: Program, missing: list[Declined], way_out: str) -> UnsupportedOp:
    """The error that lists every node without a kernel."""
    lines = []
    for d in missing:
        node = program.node(d.node)
        lines.append(f"{d.node} ({op_text(node.target)}): {d.reason}; {node.meta.get('source', 'source unknown')}")
    return UnsupportedOp(
        f"the C backend cannot take {len(missing)} of {len(program.calls)} operators of {program.name}",
        why="; ".join(lines),
        way_out=way_out,
    )


def generate_model(program: Program, target: str, workers: int = 1, licence: str = "",
                   choices: Choices | None = None, *, winograd: bool = False) -> Model:  # fmt: skip
    """The C of a Program whose every call is supported; the licence of its weights goes into the header."""
    states = {s.output for s in program.states}
    outputs = [n.name for i, n in enumerate(program.result_nodes) if i not in states]
    named = [program.outputs[i] if i < len(program.outputs) else n for i, n in enumerate(outputs)]
    lowered = lower(program, target, workers, choices, winograd=winograd)
    return generate(lowered, [i.name for i in program.inputs], named,
                    (*program.notes, *([f"Licence of the weights: {licence}"] if licence else [])),
                    target_called(target).dispatched)  # fmt: skip


class CBackend(Backend):
    """Whole-model C, ahead of time. Options: cc, threads, fallback (eager, none), tune; self_test, licence (export).

    winograd: float convolutions with three rows of taps and no stride make 4 products where they would make 6
    (winograd.py). Their weights take 4/3 of the bytes, and results differ from PyTorch's in the last bits, as ever.
    """

    name: ClassVar[str] = "c"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        return why_not(program, node, target)

    def ready(self, target: str) -> None:
        runs_here(target_called(target))
        find_compiler()

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        """An Executable on this machine's processor.

        Raises TargetError (no compiler, bad option, a target for other machines) and, with fallback "none",
        UnsupportedOp listing every operator without a kernel. With fallback "eager" those run in PyTorch, and the
        report says which and why.
        """
        opts = read_options(options)
        runs_here(target_called(target))
        missing = unsupported(program, target)
        if missing:
            if opts["fallback"] == "none":
                raise refuse(program, missing, "use option fallback=eager, or rewrite these operators")
            from vqc.backends.c.partition import compile_partitioned

            return compile_partitioned(program, target, missing, find_compiler(opts["cc"]), opts["threads"],
                                       opts["tune"], winograd=opts["winograd"])  # fmt: skip
        return compile_whole(program, target, find_compiler(opts["cc"]), opts["threads"], opts["tune"],
                             winograd=opts["winograd"])  # fmt: skip

    def export(self, program: Program, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write C sources, weights, a CMake file and a self-test into a new folder.

        Raises TargetError for an unknown target, UnsupportedOp for operators without a kernel, ArtifactError when the
        folder cannot be written or holds something else.
        """
        from vqc.backends.c.export import UNKNOWN_LICENCE, export_folder

        opts = read_options(options)
        wanted = target_called(target)
        missing = unsupported(program, target)
        if missing:
            raise refuse(program, missing, "rewrite these operators: exported C cannot fall back to PyTorch")
        opts["licence"] = opts["licence"] or UNKNOWN_LICENCE
        model = generate_model(program, target, opts["threads"], opts["licence"], winograd=opts["winograd"])
        return export_folder(program, model, wanted, Path(folder), opts)

    def layers(self, program: Program, target: str, measured: bool, threads: int) -> Sequence[Layer]:
        """A row a call: predicted for a machine of `cost.DEFAULT` peaks, or measured on this one's processor.

        Raises UnsupportedOp for a program that C does not take whole, and TargetError as `compile` does.
        """
        missing = unsupported(program, target)
        if missing:
            raise refuse(program, missing, "leave them out of the comparison")
        if not measured:
            target_called(target)
            return layers(program, lower(program, target, threads))
        runs_here(target_called(target))
        exe = compile_whole(program, target, find_compiler(), threads)
        return exe.profile([example(program)], rounds=MEASURING_ROUNDS).layers


def compile_whole(program: Program, target: str, compiler: Compiler, threads: int, tune: bool = False, *,
                  winograd: bool = False) -> CExecutable:  # fmt: skip
    """Compile a Program whose every call is supported; `tune`: with what is fastest here, measured if need be."""

    def make(choices: Choices) -> CModel:
        model = generate_model(program, target, threads, choices=choices, winograd=winograd)
        sources = dict(model.sources)
        if threads > 1:
            sources |= kernel_files([THREAD_POOL])
        return CModel(model, build_library(sources, target, compiler), threads)

    loaded = make(tuned(make, example(program), target, compiler) if tune else Choices())
    model = loaded.model
    notes = [f"compiler: {compiler.version}", f"threads: {threads}"]
    instructions = target
    if target_called(target).dispatch:  # levels of x86-64 are targets by themselves
        instructions = loaded.variant
        notes.append(f"instruction set: {instructions}")
    report = CompileReport(
        "c", target, dict(model.lowered.kernels), notes=notes, unfused=model.lowered.unfused,
        arena_bytes=model.arena_size, weight_bytes=len(model.weights), state_bytes=model.state_size,
        live_bytes=model.plan.live, layers=layers(program, model.lowered, known_peaks(instructions, compiler)),
    )  # fmt: skip
    return CExecutable(program, report, loaded, partial(measured_peaks, instructions, compiler))
