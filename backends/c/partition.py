"""Programs with operators C cannot take: the largest possible stretches in C, the rest eagerly in PyTorch.

Every call gets a stage: even stages run in C, odd ones in PyTorch. A call's stage is the lowest one of its kind that
comes after all its operands, so that calls of one stage never wait for each other's stage, and there are as few changes
between C and PyTorch as the order of the data allows.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.backends.c.build import Compiler
from vqc.backends.c.runtime import CExecutable, profile
from vqc.executable import CompileReport, Executable
from vqc.program import Declined, Input, Program, dtype_of, shape_of


def stages(program: Program, eager: set[str]) -> dict[fx.Node, int]:
    """The stage of every call; `eager` names the calls C cannot take. Placeholders are there from stage 0 on."""
    found: dict[fx.Node, int] = {}
    for n in program.calls:
        if n.target is operator.getitem:
            found[n] = found[n.args[0]]  # picked where the tuple is made
            continue
        odd = n.name in eager
        stage = 1 if odd else 0
        for a in n.all_input_nodes:
            if a in found:
                stage = max(stage, found[a] + (found[a] % 2 != odd))
        found[n] = stage
    return found


def segment(program: Program, nodes: Sequence[fx.Node], name: str) -> tuple[Program, list[fx.Node], list[fx.Node]]:
    """A Program of some calls; also the nodes it needs from outside and the nodes others need from it."""
    inside = set(nodes)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    needs = list(dict.fromkeys(
        a for n in nodes for a in n.all_input_nodes if a not in inside and a.op != "get_attr"
    ))  # fmt: skip
    for a in needs:
        env[a] = graph.placeholder(a.name)
        env[a].meta = dict(a.meta)
    constants: dict[str, Any] = {}
    for n in nodes:
        for a in n.all_input_nodes:
            if a.op == "get_attr" and a not in env:
                constants[str(a.target)] = program.constants[str(a.target)]
                env[a] = graph.create_node("get_attr", str(a.target), name=a.name)
                env[a].meta = dict(a.meta)
        env[n] = graph.node_copy(n, env.__getitem__)
        env[n].meta = dict(n.meta)
    gives = [n for n in nodes if any(u not in inside for u in n.users) and isinstance(n.meta["val"], torch.Tensor)]
    graph.output(tuple(env[n] for n in gives))
    inputs = [Input(env[a].name, shape_of(a), dtype_of(a)) for a in needs]
    return Program(name, graph, constants, inputs, [env[n].name for n in gives]), needs, gives


class PartitionedExecutable(Executable):
    """A Program that runs partly in C and partly in PyTorch; the report lists what runs in PyTorch and why."""

    def __init__(self, program: Program, report: CompileReport, steps: Sequence[_Step]):
        super().__init__(program, report)
        self.steps = list(steps)
        self._last: dict[fx.Node, int] = {}
        for i, step in enumerate(self.steps):
            for n in step.needs:
                self._last[n] = i
        for r in program.result_nodes:
            self._last[r] = len(self.steps)

    def _run(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        holders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        given = [*inputs, *state]
        env: dict[fx.Node, Any] = dict(zip(holders, given, strict=True))
        with torch.no_grad():
            for i, step in enumerate(self.steps):
                step.run(self.program, env)
                for n in [n for n in env if self._last.get(n, -1) <= i]:
                    del env[n]
        results = []
        theirs = {x.untyped_storage().data_ptr() for x in given}
        for r in self.program.result_nodes:
            x = self.program.constants[str(r.target)] if r.op == "get_attr" else env[r]
            alias = r.op == "get_attr" or x.untyped_storage().data_ptr() in theirs
            results.append(x.clone() if alias else x)
        return results

    def profile(self, steps: Sequence[Sequence[torch.Tensor]], rounds: int = 3) -> CompileReport:
        """As `Executable.profile`; what runs in PyTorch has no rows."""
        return profile(self, [s.compiled for s in self.steps if s.compiled is not None], steps, rounds)


class _Step:
    """One stage: a compiled segment, or calls run one after the other."""

    def __init__(self, nodes: Sequence[fx.Node], needs: Sequence[fx.Node], gives: Sequence[fx.Node],
                 compiled: CExecutable | None):  # fmt: skip
        self.nodes, self.needs, self.gives, self.compiled = nodes, needs, gives, compiled

    def run(self, program: Program, env: dict[fx.Node, Any]) -> None:
        if self.compiled is not None:
            outputs = self.compiled.trace([env[n] for n in self.needs])
            env.update(zip(self.gives, outputs, strict=True))
            return
        local: dict[fx.Node, Any] = {}

        def load(n: fx.Node) -> Any:
            if n.op == "get_attr":
                return program.constants[str(n.target)]
            return local[n] if n in local else env[n]

        for n in self.nodes:
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), load)
            local[n] = n.target(*args, **kwargs)
        env.update((n, local[n]) for n in self.gives)


def compile_partitioned(program: Program, target: str, missing: Sequence[Declined], compiler: Compiler,
                        threads: int, tune: bool = False, *, winograd: bool = False
                        ) -> PartitionedExecutable:  # fmt: skip
    """Compile what C can take and leave the rest (`missing`, with reasons) to PyTorch."""
    from vqc.backends.c.backend import compile_whole

    where = stages(program, {d.node for d in missing})
    report = CompileReport("c", target, fallbacks=list(missing))
    steps = []
    for stage in sorted(set(where.values())):
        nodes = [n for n in program.calls if where[n] == stage]
        part, needs, gives = segment(program, nodes, f"{program.name}_{stage}")
        compiled = None
        if stage % 2 == 0:
            compiled = compile_whole(part, target, compiler, threads, tune, winograd=winograd)
            report.kernels.update(compiled.report.kernels)
            report.unfused += compiled.report.unfused
            report.layers += compiled.report.layers
            report.arena_bytes += compiled.report.arena_bytes
            report.live_bytes += compiled.report.live_bytes
            report.weight_bytes += compiled.report.weight_bytes
            report.notes = compiled.report.notes
        steps.append(_Step(nodes, needs, gives, compiled))
    in_c = sum(s.compiled is not None for s in steps)
    report.notes = [*report.notes, f"{in_c} segments in C, {len(steps) - in_c} in PyTorch"]
    report.state_bytes = sum(s.reset.numel() * s.reset.element_size() for s in program.states)
    return PartitionedExecutable(program, report, steps)
