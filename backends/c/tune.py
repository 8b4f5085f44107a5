"""Choosing by the clock: the candidates of `choices.py`, measured in the program itself on this machine, once.

The program is compiled once for every candidate; all run in turn on the same inputs, each call timed. A candidate that
is clearly faster than the estimate is kept, by the convolution's sizes, in the cache: for this CPU, compiler and these
kernels. Results do not depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import torch

from vqc.backends.c.build import Compiler, cache_dir
from vqc.backends.c.build import _hash as digest
from vqc.backends.c.build import _host as host
from vqc.backends.c.choices import Asked, Choices
from vqc.backends.c.emit import KERNELS
from vqc.backends.c.peak import cpu_name, write_json
from vqc.backends.c.runtime import CModel
from vqc.program import Program

ROUNDS = 7
GAIN = 0.95  # a candidate is kept when it takes at most this part of the estimate's time
Make = Callable[[Choices], CModel]


def tuned(make: Make, inputs: Sequence[torch.Tensor], target: str, compiler: Compiler) -> Choices:
    """The choices that are fastest here for the program that `make` compiles; measured where the cache has no answer.

    `inputs`: a step's flat inputs, dense. Raises TargetError when the program does not compile or run.
    """
    path = _path(target, compiler)
    known = _read(path)
    first = Choices(known, turn=0)
    models = [make(first)]
    missing = {a.key: a for a in first.asked.values() if a.key not in known}
    turns = max((len(a.candidates) for a in missing.values()), default=0)
    if turns > 1:
        models += [make(Choices(known, turn=i)) for i in range(1, turns)]
        times = _measure(models, inputs)
        known = known | {key: best(a, _of_key(key, first.asked, times)) for key, a in missing.items()}
    elif missing:
        known = known | {key: a.candidates[0] for key, a in missing.items()}
    if missing:
        write_json(path, known)
    return Choices(known)


def best(asked: Asked, seconds: Sequence[float]) -> int:
    """The candidate to keep, given every candidate's time: the fastest if it gains enough, else the estimate."""
    spent = seconds[: len(asked.candidates)]
    winner = min(range(len(spent)), key=lambda i: spent[i])
    return asked.candidates[winner] if spent[winner] <= GAIN * spent[0] else asked.candidates[0]


def example(program: Program) -> list[torch.Tensor]:
    """Inputs to measure on: the program's example, else numbers in [0, 1] and small integers, always the same."""
    if program.example is not None and len(program.example) == len(program.inputs):
        return [x.contiguous() for x in program.example]
    g = torch.Generator().manual_seed(0)
    return [torch.rand(i.shape, generator=g).to(i.dtype) if i.dtype.is_floating_point
            else torch.randint(0, 2, i.shape, generator=g).to(i.dtype) for i in program.inputs]  # fmt: skip


def _measure(models: Sequence[CModel], inputs: Sequence[torch.Tensor]) -> list[dict[str, float]]:
    """For every model: seconds of one step by node, the least of some rounds of all models in turn."""
    found: list[dict[str, float]] = [{} for _ in models]
    states = [m.new_state() for m in models]
    for turn in range(ROUNDS + 1):
        for model, state, spent in zip(models, states, found, strict=True):
            with model.profiled() as seconds:
                model.step(state, inputs)
            by_node: dict[str, float] = {}
            for call, s in zip(model.model.lowered.calls, seconds, strict=True):
                by_node[call.node] = by_node.get(call.node, 0.0) + s
            if turn:  # the first round warms caches
                spent |= {n: min(s, spent.get(n, s)) for n, s in by_node.items()}
    return found


def _of_key(key: str, asked: dict[str, Asked], times: Sequence[dict[str, float]]) -> list[float]:
    """Seconds of all nodes that asked the same question, by candidate."""
    nodes = [n for n, a in asked.items() if a.key == key]
    return [sum(t.get(n, 0.0) for n in nodes) for t in times]


def _sources(folder: Traversable) -> list[str]:
    files = sorted((f for f in folder.iterdir() if f.name.endswith((".c", ".h"))), key=lambda f: f.name)
    return [f.read_text() for f in files]


def _path(target: str, compiler: Compiler) -> Path:
    key = digest(cpu_name(), host(), compiler.version, target, *_sources(KERNELS))
    return cache_dir() / "tuned" / f"{key}.json"


def _read(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(k): int(v) for k, v in found.items()}
    except (ValueError, AttributeError, TypeError):
        return {}  # damaged: measured again
