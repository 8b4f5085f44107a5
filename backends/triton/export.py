"""A program for a GPU elsewhere: machine code of every launch, weights, a manifest and a launcher in C.

Only programs that run whole in kernels can leave: exported code has no PyTorch to fall back to. The step is what the
executable does, recorded once on empty tensors: each launch with its grid, each tensor as a place in one block of
memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqc.backends.triton import launch as launching
from vqc.backends.triton.aot import Compiled, compile_launch
from vqc.backends.triton.backend import Lowered, refuse
from vqc.backends.triton.environment import SHARED_LIMIT
from vqc.backends.triton.launch import Launch
from vqc.backends.triton.lowering import Lowerer
from vqc.backends.triton.spread import spread
from vqc.errors import ArtifactError, TargetError
from vqc.program import DTYPE_NAMES, Program

ALIGN = 256  # bytes: what cuMemAlloc gives, and more than any kernel assumes
VERSION = 1
OPTIONS = ("licence",)


@dataclass(frozen=True)
class Block:
    """Where a tensor lies in the one block of device memory: constants first, then everything else."""

    offset: int
    size: int


class Recorder:
    """Collects the launches of one step and gives every storage a place.

    Memory is not reused: a step's tensors all have their own.
    """

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.kept: dict[int, Tensor] = {}  # holds storages alive, so that an address never means two tensors
        self.order: list[int] = []

    def __call__(self, made: Launch) -> None:
        self.launches.append(made)
        for value in made.args.values():
            for t in value if isinstance(value, tuple) else (value,):
                if isinstance(t, Tensor):
                    self.see(t)

    def see(self, t: Tensor) -> int:
        """The key of a tensor's storage, which gets a place when it is new."""
        key = t.untyped_storage().data_ptr()
        if key not in self.kept:
            self.kept[key] = t
            self.order.append(key)
        return key


def step_of(program: Program, lowered: Lowered) -> tuple[Recorder, list[Tensor], list[Tensor], list[Tensor]]:
    """The launches of one step, recorded and not run; the tensors of inputs, states and results."""
    recorder = Recorder()
    inputs = [torch.zeros(i.shape, dtype=i.dtype).to(memory_format=_format(len(i.shape))) for i in program.inputs]
    states = [s.reset.clone().to(memory_format=_format(s.reset.ndim)) for s in program.states]
    values: dict[Any, Any] = {n: program.constants[str(n.target)] for n in program.nodes if n.op == "get_attr"}
    holders = [n for n in program.nodes if n.op == "placeholder"]
    values |= dict(zip(holders, [*inputs, *states], strict=True))
    with launching.recording(recorder), _NoCopies():
        for action in lowered.actions:
            action.run(values)
    results = [values[n] for n in program.result_nodes]
    for t in (*inputs, *states, *results):
        recorder.see(t)
    return recorder, inputs, states, results


class _NoCopies(TorchDispatchMode):
    """Refuses what is no launch and yet writes memory: an exported step consists of launches alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.split("::")[1] in ("clone", "copy_", "_to_copy", "fill_", "zero_"):
            raise TargetError("a tensor of the step has to be laid out anew, which no exported kernel does",
                              way_out="run it with target cuda")  # fmt: skip
        return func(*args, **(kwargs or {}))


def _format(ndim: int) -> torch.memory_format:
    return torch.channels_last if ndim == 4 else torch.contiguous_format


def export_folder(program: Program, arch: str, folder: Path, options: Mapping[str, Any]) -> Path:
    """Write the folder, whole or not at all; returns it.

    Raises UnsupportedOp for operators without a kernel, TargetError for an option or a kernel that does not compile,
    ArtifactError when the folder exists and holds something.
    """
    for key in options:
        if key not in OPTIONS:
            raise TargetError(f"export for a GPU has no option {key!r}", way_out="its option is licence")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists and is not an empty folder", way_out="name a new one")
    program, _ = spread(program)
    lowered = Lowerer(program, torch.device("cpu"), whole=True).lower()
    if lowered.fallbacks:
        raise refuse(program, lowered, "rewrite these operators: exported kernels cannot fall back to PyTorch")
    recorder, inputs, states, results = step_of(program, lowered)
    compiled = [compile_launch(made, arch) for made in recorder.launches]
    for c in compiled:
        if c.shared > SHARED_LIMIT[arch]:
            raise TargetError(f"{c.launch.kernel} needs {c.shared} bytes of shared memory, {arch} has "
                              f"{SHARED_LIMIT[arch]}", way_out="export for a larger GPU")  # fmt: skip
    files = _files(program, arch, recorder, compiled, (inputs, states, results), str(options.get("licence", "")))
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in files.items():
        (part / name).write_bytes(content)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return folder


def _files(program: Program, arch: str, recorder: Recorder, compiled: list[Compiled], tensors: tuple,
           licence: str) -> dict[str, bytes]:  # fmt: skip
    inputs, states, results = tensors
    written = {recorder.see(t) for t in inputs}  # all else holds something at the start: constants, states
    for made in recorder.launches:
        out = made.args.get("OUT", (None,) * 8)
        stored = (out[0], out[1], out[6], *(made.args.get(k) for k in ("y_ptr", "tiles_ptr", "count_ptr")))
        written |= {recorder.see(t) for t in stored if isinstance(t, Tensor)}
    keys = [k for k in recorder.order if k not in written] + [k for k in recorder.order if k in written]
    blocks, end, weights = {}, 0, bytearray()
    for key in keys:
        storage = recorder.kept[key].untyped_storage()
        blocks[key] = Block(end, storage.nbytes())
        if key not in written:
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            weights += flat.numpy().tobytes() + bytes(-storage.nbytes() % ALIGN)
        end += storage.nbytes() + -storage.nbytes() % ALIGN
    suffix = "hsaco" if arch.startswith("gfx") else "cubin"
    files: dict[str, bytes] = {"weights.bin": bytes(weights)}
    calls = []
    for c in compiled:
        name = f"{c.name}-{hashlib.sha256(c.code).hexdigest()[:16]}"
        files[f"{name}.{suffix}"] = c.code
        if suffix == "cubin":
            files[f"{name}.ptx"] = c.text.encode()
        calls.append({
            "file": f"{name}.{suffix}", "entry": c.name, "grid": [*c.launch.grid, 1, 1][:3],
            "fixed": {k: 1 for k, v in c.launch.args.items() if isinstance(v, int) and v == 1},
            "kernel": c.launch.kernel, "meta": dict(c.launch.meta), "params": list(c.params),
            "threads": c.warps * (64 if suffix == "hsaco" else 32), "shared": c.shared,
            "args": [_argument(c, p, recorder, blocks) for p in c.params] + [["null"]] * c.tail,
        })  # fmt: skip

    def place(t: Tensor, name: str) -> dict[str, Any]:
        at = blocks[recorder.see(t)].offset + t.storage_offset() * t.element_size()
        return {"name": name, "dtype": DTYPE_NAMES[t.dtype], "shape": list(t.shape), "strides": list(t.stride()),
                "offset": at, "bytes": t.numel() * t.element_size()}  # fmt: skip

    of_state = {s.output for s in program.states}
    plain = [i for i in range(len(results)) if i not in of_state]
    manifest = {
        "version": VERSION, "program": program.name, "arch": arch, "memory": end, "weights": len(weights),
        "weights_sha256": hashlib.sha256(bytes(weights)).hexdigest(), "licence": licence, "notes": list(program.notes),
        "inputs": [place(t, i.name) for t, i in zip(inputs, program.inputs, strict=True)],
        "states": [{**place(t, s.name), "next": place(results[s.output], s.name)}
                   for t, s in zip(states, program.states, strict=True)],
        "outputs": [place(results[i], program.outputs[i] if i < len(program.outputs) else f"assumption {i}")
                    for i in plain],
        "launches": calls,
    }  # fmt: skip
    files["manifest.json"] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    how = _HOW if suffix == "cubin" else "A launcher is not among the files: load the kernels with HIP.\n"
    files["README.txt"] = _README.format(
        program=program.name, arch=arch, count=len(calls), how=how, memory=end, licence=licence or "unknown"
    ).encode()
    files["step.txt"] = "\n".join(_lines(manifest)).encode() + b"\n"
    if suffix == "cubin":
        files["launcher.c"] = (Path(__file__).parent / "launcher.c").read_bytes()
    return files


_README = """{program} for {arch}: {count} launches, made by vqc.

manifest.json says where every input, state and output lies in memory, and what each launch does.
{how}
Device memory: {memory} bytes. Licence of the weights: {licence}
"""
_HOW = """step.txt is the same for C. To run it:

    cc -std=c99 -O2 launcher.c -lcuda -o step
    ./step . STEPS < inputs > outputs
"""


def _argument(c: Compiled, param: str, recorder: Recorder, blocks: Mapping[int, Block]) -> list[Any]:
    """One argument of a launch: ["memory", offset, dtype], ["int", value] or ["float", value]."""
    name, _, member = param.partition(".")
    value = c.launch.args[name]
    value = value[int(member)] if member else value
    if isinstance(value, Tensor):
        at = blocks[recorder.see(value)].offset + value.storage_offset() * value.element_size()
        return ["memory", at, DTYPE_NAMES[value.dtype]]
    return ["float", value] if isinstance(value, float) else ["int", value]


def _lines(manifest: Mapping[str, Any]) -> list[str]:
    """The manifest as lines that C reads with scanf."""
    lines = [f"vqc {manifest['version']} memory {manifest['memory']} weights {manifest['weights']}"]
    for kind in ("inputs", "outputs"):
        lines += [f"{kind[:-1]} {t['offset']} {t['bytes']}" for t in manifest[kind]]
    lines += [f"state {t['offset']} {t['next']['offset']} {t['bytes']}" for t in manifest["states"]]
    for call in manifest["launches"]:
        grid = " ".join(map(str, call["grid"]))
        lines.append(f"launch {call['file']} {call['entry']} {grid} {call['threads']} {call['shared']} "
                     f"{len(call['args'])}")  # fmt: skip
        lines += ["  " + (f"float {a[1]!r}" if a[0] == "float" else " ".join(map(str, a[:2]))) for a in call["args"]]
    return [*lines, "end"]
