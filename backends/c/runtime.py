"""Running a generated model in this process: the compiled library through ctypes."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vqc.backends.c.cost import Peaks
from vqc.backends.c.emit import Model
from vqc.backends.c.interface import STATE_HEAD
from vqc.backends.c.ir import ALIGN
from vqc.errors import ArtifactError, InputError, TargetError
from vqc.executable import CompileReport, Executable
from vqc.layers import measured
from vqc.program import Program

# vqc_error in vqc_common.h
WEIGHT_ERRORS = range(4, 9)
CPU_ERROR = 12


MARK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)  # vqc_mark


class ModelStruct(ctypes.Structure):
    """vqc_model."""

    _fields_ = (
        ("weights", ctypes.c_void_p), ("arena", ctypes.c_void_p), ("parallel", ctypes.c_void_p),
        ("pool", ctypes.c_void_p), ("mark", ctypes.c_void_p), ("mark_arg", ctypes.c_void_p),
        ("program", ctypes.c_uint64), ("workers", ctypes.c_int32), ("variant", ctypes.c_int32),
    )  # fmt: skip


def aligned(size: int) -> torch.Tensor:
    """A u8 tensor of `size` bytes (at least one) that starts at a multiple of 64."""
    raw = torch.empty(max(size, 1) + ALIGN, dtype=torch.uint8)
    shift = -raw.data_ptr() % ALIGN
    return raw[shift : shift + max(size, 1)]


class Rooms:
    """Memory for tensors of `size` bytes, given out again once no tensor is left in it.

    A room of fresh memory costs a page fault for every 4 KB written. The memory belongs to a Python object, which
    every storage over it holds; its count of references says whether one is left, in whatever views or arrays.
    """

    KEPT = 2  # rooms that are remembered: a caller has the last result while the next one is made

    def __init__(self, size: int):
        self.size, self._rooms = size, [self._new(0)]
        self._alone = self._holders(0)  # of a room without tensors
        self._rooms.clear()

    @staticmethod
    def _new(size: int) -> ctypes.Array[ctypes.c_uint8]:
        return (ctypes.c_uint8 * (max(size, 1) + ALIGN))()

    def _holders(self, index: int) -> int:
        return sys.getrefcount(self._rooms[index])

    def take(self) -> torch.Tensor:
        """A u8 tensor of `size` bytes (at least one) that starts at a multiple of 64; no other tensor shares it."""
        free = [i for i in range(len(self._rooms)) if self._holders(i) <= self._alone]
        if free:
            self._rooms.append(self._rooms.pop(free[0]))
        else:
            self._rooms = [*self._rooms[1 - self.KEPT :], self._new(self.size)]
        room = self._rooms[-1]
        start = -ctypes.addressof(room) % ALIGN
        return torch.frombuffer(room, dtype=torch.uint8, count=max(self.size, 1), offset=start)

    def has(self, address: int) -> bool:
        """Whether a remembered room's tensor starts at this address."""
        starts = (ctypes.addressof(r) for r in self._rooms)
        return any(a + -a % ALIGN == address for a in starts)


class CModel:
    """One loaded model with its own arena and weights; `run` steps a state held by the caller.

    Not safe for two threads at once: load a second one (the library is shared).
    """

    def __init__(self, model: Model, library: Path, threads: int = 1):
        self.model, self.threads = model, threads
        self.library = ctypes.CDLL(str(library))
        self._struct = ModelStruct()
        self._weights = aligned(len(model.weights))
        self._weights.copy_(torch.frombuffer(bytearray(model.weights), dtype=torch.uint8))
        self._arena = aligned(model.arena_size)
        self._run = self._function("run_to", [ctypes.c_void_p] * 5)
        self._reset = self._function("reset", [ctypes.c_void_p] * 2)
        self._pool = self._start(threads)
        self._results = [Rooms(v.count * v.item) for v in model.lowered.outputs]
        self._states = Rooms(model.state_size)
        self._head: torch.Tensor | None = None
        self.init(self._weights, len(model.weights), self._arena, model.arena_size)

    def _function(self, name: str, arguments: list[Any], result: type = ctypes.c_int) -> Any:
        f = getattr(self.library, f"{self.model.name}_{name}")
        f.argtypes, f.restype = arguments, result
        return f

    def _start(self, threads: int) -> ctypes.c_void_p | None:
        if threads <= 1:
            return None
        start = self.library.vqc_pool_start
        start.argtypes, start.restype = [ctypes.c_int], ctypes.c_void_p
        pool = start(threads)
        if not pool:
            raise TargetError(f"{threads} threads could not be started", way_out="use fewer (option threads)")
        return pool

    def __del__(self) -> None:
        if getattr(self, "_pool", None):
            stop = self.library.vqc_pool_stop
            stop.argtypes, stop.restype = [ctypes.c_void_p], None
            stop(self._pool)
            self._pool = None

    def strerror(self, code: int) -> str:
        return self._function("strerror", [ctypes.c_int], ctypes.c_char_p)(code).decode()

    def _check(self, code: int, what: str) -> None:
        if code == 0:
            return
        kind = ArtifactError if code in WEIGHT_ERRORS else TargetError
        way_out = "choose a target that this CPU has" if code == CPU_ERROR else "generate and compile the model again"
        raise kind(f"{self.model.name}: {what} failed", why=self.strerror(code), way_out=way_out)

    def init(self, weights: torch.Tensor, weights_size: int, arena: torch.Tensor, arena_size: int) -> None:
        """NAME_init on given memory; ArtifactError when the weights are not this program's, whole and undamaged."""
        f = self._function(
            "init", [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
        )
        code = f(ctypes.byref(self._struct), weights.data_ptr(), weights_size, arena.data_ptr(), arena_size)
        self._check(code, "loading the weights")
        if self._pool is not None:
            self._struct.parallel = ctypes.cast(self.library.vqc_pool_for, ctypes.c_void_p)
            self._struct.pool = self._pool

    @property
    def variants(self) -> list[str]:
        """The instruction sets the library holds, best first."""
        count = self._function("variants", [])()
        names = self._function("variant_name", [ctypes.c_int], ctypes.c_char_p)
        return [names(i).decode() for i in range(count)]

    @property
    def variant(self) -> str:
        """The instruction set in use."""
        return self.variants[self._struct.variant]

    def select(self, variant: str) -> None:
        """Use another instruction set of `variants`; TargetError when this CPU lacks it."""
        select = self._function("select", [ctypes.c_void_p, ctypes.c_int])
        self._check(select(ctypes.byref(self._struct), self.variants.index(variant)), f"choosing {variant}")

    def new_state(self) -> torch.Tensor:
        """A state block at its reset value."""
        state = aligned(self.model.state_size)
        self._check(self._reset(ctypes.byref(self._struct), state.data_ptr()), "reset")
        return state

    def block_of(self, states: Sequence[torch.Tensor]) -> tuple[int, torch.Tensor]:
        """(address of a block with these states, the block for the next ones): one and the same, or the block in which
        a step of this model made them, which then need no copy."""
        block = self._states.take()
        if not states:
            return block.data_ptr(), block
        places = [STATE_HEAD + (v.buffer.place or 0) for v in self.model.lowered.states]
        start = states[0].data_ptr() - places[0]
        ours = self._states.has(start) and all(
            x.data_ptr() == start + at and x.dtype == v.dtype and x.is_contiguous()
            for x, v, at in zip(states, self.model.lowered.states, places, strict=True)
        )
        if ours:
            return start, block
        if self._head is None:
            self._head = self.new_state()[:STATE_HEAD].clone()
        block[:STATE_HEAD] = self._head
        for mine, given in zip(self.state_tensors(block), states, strict=True):
            # Not Tensor.copy_: it wakes PyTorch's threads, which then spin on the cores that the model's threads need.
            dense = given.to(mine.dtype).contiguous()
            ctypes.memmove(mine.data_ptr(), dense.data_ptr(), mine.numel() * mine.element_size())
        return block.data_ptr(), block

    def step(self, state: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One step: `state` (from `new_state`) is replaced in place; returns the outputs, which nothing else shares."""
        return self.step_to(state.data_ptr(), state, inputs)

    def step_to(self, state: int, following: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `step`, from the state block at an address, which stays as it is, to another block or the same."""
        lowered = self.model.lowered
        held = [x.contiguous() for x in inputs]
        outputs = [rooms.take()[: math.prod(v.shape) * v.item].view(v.dtype).view(v.shape)
                   for rooms, v in zip(self._results, lowered.outputs, strict=True)]  # fmt: skip
        given = (ctypes.c_void_p * max(len(held), 1))(*[x.data_ptr() for x in held])
        wanted = (ctypes.c_void_p * max(len(outputs), 1))(*[x.data_ptr() for x in outputs])
        code = self._run(ctypes.byref(self._struct), state, following.data_ptr(), given, wanted)
        self._check(code, "a step")
        return outputs

    @contextmanager
    def profiled(self) -> Iterator[list[float]]:
        """Within this context every step adds to the yielded list: seconds of each call, in the order they run."""
        calls = len(self.model.lowered.calls)
        seconds = [0.0] * calls
        at = 0.0
        clock = time.perf_counter

        def mark(_: int | None, call: int) -> None:
            nonlocal at
            now = clock()
            if call >= 0:
                seconds[call] += now - at
            at = clock()

        hook = MARK(mark)
        self._struct.mark = ctypes.cast(hook, ctypes.c_void_p)
        try:
            yield seconds
        finally:
            self._struct.mark = None

    def state_tensors(self, state: torch.Tensor) -> list[torch.Tensor]:
        """The states as tensors in the block's memory."""
        return [
            state[at : at + v.buffer.size].view(v.dtype).view(v.shape)
            for v in self.model.lowered.states
            for at in (STATE_HEAD + (v.buffer.place or 0),)
        ]


class CExecutable(Executable):
    """A Program compiled to C, run in this process on CPU tensors. `peaks`: measures what the machine can do.

    Results and states are the caller's for as long as it has them, or any view or array of their memory; then the
    memory serves a later step (`Rooms`). The state given to a step is never written, and one that this executable made
    is read where it lies.
    """

    def __init__(self, program: Program, report: CompileReport, model: CModel, peaks: Callable[[], Peaks]):
        super().__init__(program, report)
        self.model, self.peaks = model, peaks
        self._lock = threading.Lock()  # one arena: steps from several threads take turns

    def _run(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        for x in (*inputs, *state):
            if x.device.type != "cpu":
                raise InputError(f"a tensor is on {x.device}", why="C code runs on the CPU", way_out="use x.cpu()")
        with self._lock:
            at, block = self.model.block_of(state)
            results = iter(self.model.step_to(at, block, inputs))
        held = self.model.state_tensors(block)
        next_state = dict(zip((s.output for s in self.program.states), held, strict=True))
        count = len(self.program.result_nodes)
        return [next_state[i] if i in next_state else next(results) for i in range(count)]

    def profile(self, steps: Sequence[Sequence[torch.Tensor]], rounds: int = 3) -> CompileReport:
        """As `Executable.profile`."""
        return profile(self, [self], steps, rounds)


def profile(executable: Executable, parts: Sequence[CExecutable], steps: Sequence[Sequence[torch.Tensor]],
            rounds: int) -> CompileReport:  # fmt: skip
    """Time the calls of an executable's parts, whose layers stand in its report one part after the other."""
    if not steps or rounds < 1:
        raise InputError("nothing to profile", why=f"{len(steps)} steps, {rounds} rounds", way_out="give one or more")
    best: list[float] = []
    for turn in range(rounds):
        with ExitStack() as stack:
            times = [stack.enter_context(m.profiled()) for m in (p.model for p in parts)]
            state = None
            for inputs in steps:
                _, state = executable.step(inputs, state)
        spent = [t / len(steps) for part in times for t in part]
        best = spent if turn <= 1 else [min(a, b) for a, b in zip(best, spent, strict=True)]
    report = executable.report
    peaks = dict(parts[0].peaks().macs) if parts else {}
    together = {kind: speed * parts[0].model.threads for kind, speed in peaks.items()}
    return replace(report, layers=measured(report.layers, best, together), peaks=peaks)
