"""Compilation ahead of time, without a GPU: machine code of a launch for an architecture, and facts read from it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vqc.backends.triton.environment import ARCHITECTURES, SHARED_LIMIT, interpreting, need_triton
from vqc.backends.triton.launch import POINTERS, Launch, function
from vqc.errors import TargetError

ALIGN = 16  # bytes: what every tensor's start, and whole numbers that are multiples of it, are told to the compiler
# Instructions that multiply matrices of s8 on each kind of machine.
MATRIX = r"(?:mma\.sync\S*\.s8\.s8|wgmma\.mma_async\S*\.s8\.s8|tcgen05\.mma\S*kind::i8|v_mfma_i32_\S*i8)"
MATRIX_HALF = (
    r"(?:mma\.sync\S*\.f32\.f16\.f16|wgmma\.mma_async\S*\.f16\.f16|tcgen05\.mma\S*kind::f16|v_mfma_f32_\S*f16)"
)
POPCOUNT = r"(?:popc\.b32|v_bcnt_u32_b32)"
# A product and a sum rounded once, in the text before and in the code after the last compiler.
FUSED_TEXT = r"(?:\bfma\.rn(?:\.ftz)?\.f32|\bv_(?:pk_)?(?:fma|fmac|mad|mac)_(?:legacy_)?f32)"
FUSED_CODE = r"\bFFMA\S*"


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code and what is known about it.

    `code`: cubin or hsaco; `text`: PTX or AMD assembly; `name`: the entry point; `shared`: bytes of shared memory a
    program uses; `params`: the names of the run-time arguments in the order of the entry's parameters, tuples'
    members as "OPS.0"; `warps`: warps of a program.
    """

    launch: Launch
    arch: str
    name: str
    code: bytes
    text: str
    shared: int
    params: tuple[str, ...]
    warps: int
    tail: int  # pointers after `params` that Triton adds for scratch memory, all null

    def instructions(self, pattern: str) -> list[str]:
        """The distinct instructions of the text that match."""
        return sorted(set(re.findall(pattern, self.text)))

    @property
    def matrix(self) -> list[str]:
        """Its instructions for products of s8 matrices."""
        return self.instructions(MATRIX)

    @property
    def matrix_half(self) -> list[str]:
        """Its instructions for products of float16 matrices."""
        return self.instructions(MATRIX_HALF)

    @property
    def popcount(self) -> list[str]:
        """Its instructions that count bits."""
        return self.instructions(POPCOUNT)

    @property
    def fused(self) -> list[str]:
        """Products fused with sums, where each should be rounded: in the text and, on NVIDIA, in the machine code."""
        found = self.instructions(FUSED_TEXT)
        return found if self.arch.startswith("gfx") else found + sorted(set(re.findall(FUSED_CODE, sass(self.code))))

    @property
    def spills(self) -> int:
        """Bytes of registers that go through memory."""
        if self.arch.startswith("gfx"):
            # Scalar registers spill into vector registers, and these into memory.
            return sum(4 * int(n) for n in re.findall(r"\.vgpr_spill_count:\s*(\d+)", self.text))
        return _ptxas_spills(self.text, self.arch)


def signature_of(launch: Launch) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any], tuple[str, ...]]:
    """Triton's signature, constants and alignments of a launch, and the run-time arguments in order."""
    names = function(launch.kernel).arg_names
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    aligned: dict[Any, Any] = {}
    params: list[str] = []

    def type_of(value: Any, path: tuple[int, ...], label: str) -> Any:
        if isinstance(value, tuple):
            return tuple(type_of(v, (*path, i), f"{label}.{i}") for i, v in enumerate(value))
        if value is None:
            constants[path] = None
            return "constexpr"
        if isinstance(value, int) and value == 1:  # as Triton's own launcher does: strides of 1 vanish
            constants[path] = 1
            return "constexpr"
        params.append(label)
        if isinstance(value, torch.Tensor):
            if value.storage_offset() * value.element_size() % ALIGN == 0:  # not so: some channels of a picture
                aligned[path] = [["tt.divisibility", ALIGN]]
            return POINTERS[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if value % ALIGN == 0:
            aligned[path] = [["tt.divisibility", ALIGN]]
        return "i32"

    for i, name in enumerate(names):
        if name in launch.meta:
            signature[name] = "constexpr"
            constants[(i,)] = launch.meta[name]
        else:
            signature[name] = type_of(launch.args[name], (i,), name)
    return signature, constants, aligned, tuple(params)


def compile_launch(launch: Launch, arch: str) -> Compiled:
    """Compile a launch for an architecture of `environment.ARCHITECTURES`.

    Raises TargetError when triton is missing, when its kernels are interpreted, or when it cannot compile this one.
    """
    triton = need_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if interpreting():
        raise TargetError("kernels are interpreted in this process and cannot be compiled",
                          way_out="unset TRITON_INTERPRET and start Python again")  # fmt: skip
    kind, number, width = ARCHITECTURES[arch]
    signature, constants, aligned, params = signature_of(launch)
    source = ASTSource(function(launch.kernel), signature, constants, aligned)
    try:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True  # else the code holds paths of this machine
            made = triton.compile(source, target=GPUTarget(kind, number, width), options=launch.options)
    except Exception as e:
        raise TargetError(
            f"triton {triton.__version__} cannot compile {launch.kernel} for {arch}",
            why=_cause(e),
            way_out="report it with this message; target inductor does without these kernels",
        ) from e
    text = made.asm["ptx" if kind == "cuda" else "amdgcn"]
    code = made.asm["cubin" if kind == "cuda" else "hsaco"]
    # Since 3.4 entries end with pointers to scratch memory, which these kernels do not use.
    head = re.search(r"\.entry\s+\S+\((.*?)\)", text, re.S)
    tail = head[1].count(".param") - len(params) if head else 0
    return Compiled(launch, arch, made.metadata.name, code, text, made.metadata.shared, params, made.metadata.num_warps,
                    tail)  # fmt: skip


def _cause(error: BaseException) -> str:
    """The end of an error's text and, first, of the one behind it that began it."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    return f"{first!s:.1500}" if first is error else f"{first!s:.1500}; in\n{str(error)[-1000:]}"


@cache
def tool(name: str) -> str:
    """The path of a program that comes with triton (ptxas, ptxas-blackwell, nvdisasm); TargetError if it is missing."""
    path = Path(need_triton().__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise TargetError(f"triton has no {name}", way_out="install triton from PyPI, whose wheel has it")
    return str(path)


@cache
def sass(code: bytes) -> str:
    """A cubin's machine instructions as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        done = subprocess.run([tool("nvdisasm"), "-c", str(path)], capture_output=True, text=True, check=True)
    return done.stdout


def _ptxas_spills(text: str, arch: str) -> int:
    """Bytes that ptxas says it spills when it compiles a PTX text."""
    name = re.search(r"^\.target\s+(\w+)", text, re.M)
    assert name is not None
    from triton.backends.nvidia.compiler import get_ptxas  # which of its two knows this text depends on its version

    program = get_ptxas(int(arch.removeprefix("sm_"))).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(text)
        done = subprocess.run([program, "-v", "--fmad=false", f"--gpu-name={name[1]}", str(path), "-o", "/dev/null"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr))


def facts(made: Compiled) -> dict[str, Any]:
    """What a table or a test wants to know of a kernel."""
    return {
        "kernel": made.launch.kernel, "arch": made.arch, "matrix": made.matrix,
        "matrix_half": made.matrix_half, "popcount": made.popcount,
        "fused": made.fused, "spills": made.spills, "shared": made.shared, "limit": SHARED_LIMIT[made.arch],
        "code": len(made.code),
    }  # fmt: skip
