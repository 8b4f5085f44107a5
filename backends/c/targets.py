"""The targets of the C backend, as a table: what each is compiled for, and with which flags.

A target has variants, one for each instruction set that its kernels can be compiled for. On x86-64 a program holds all
variants of its target and takes the best one the CPU has when it starts; on Arm one variant is chosen when the program
is compiled. All variants share one packing of the weights, so that one weights file serves them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vqc.errors import TargetError

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
COMMON = ("-std=c99", "-O3", "-fno-math-errno", "-fno-trapping-math")  # these two change no value
THREAD_POOL = "vqc_pool_threads.c"  # not part of a model: one way to fill its parallel-for hook
ISA_HEADER = "vqc_isa.h"  # gives the kernels' names the suffix of the variant they are compiled for
SHARED = ("vqc_common.c", "vqc_cpu.c", THREAD_POOL)  # compiled once, without a variant's flags, as NAME.c is


@dataclass(frozen=True)
class Variant:
    """One instruction set.

    `flags`: what gcc and clang are told beside the architecture. `zig`: the same for zig cc where it has other words.
    `cpu`: the constant of vqc_cpu.h that says whether a CPU has it.
    """

    name: str
    about: str
    flags: tuple[str, ...]
    cpu: str = "VQC_CPU_BUILT_FOR"
    zig: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What the kernels' names end in."""
        return "_" + self.name.removeprefix("x86-64-").replace("-", "_")


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    `triple`: what zig calls it, "" for the machine we run on. `dispatch`: the program holds all `variants` (best first)
    and chooses when it starts; else one of them (the first, if nothing is said) is chosen when it is compiled.
    """

    name: str
    about: str
    triple: str = ""
    flags: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    dispatch: bool = False

    @property
    def dispatched(self) -> tuple[Variant, ...]:
        """The variants that a program for this target holds side by side; none when it is compiled one way."""
        return self.variants if self.dispatch else ()

    def variant(self, name: str | None = None) -> Variant | None:
        """The variant to compile for when there is one to choose: by name, or the first. TargetError if unknown."""
        if self.dispatch or not self.variants:
            if name is not None:
                raise TargetError(f"target {self.name} has no variant to choose", way_out="leave it out")
            return None
        for v in self.variants:
            if name in (None, v.name):
                return v
        raise TargetError(f"target {self.name} has no variant {name!r}",
                          way_out="use one of " + ", ".join(v.name for v in self.variants))  # fmt: skip


_V2 = ("-mcx16", "-msahf", "-mpopcnt", "-msse3", "-mssse3", "-msse4.1", "-msse4.2")
_V3 = (*_V2, "-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe")
_V4 = (*_V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_VNNI = (*_V4, "-mavx512vnni", "-mavx512vpopcntdq", "-mavx512vbmi", "-mavx512vbmi2", "-mavx512bitalg", "-mavx512ifma")

X86_LEVELS = (
    Variant("x86-64-v4-vnni", "AVX-512 with VNNI and VPOPCNTDQ (Ice Lake server, Zen 4 and later)", _VNNI,
            "VQC_CPU_X86_64_V4_VNNI"),
    Variant("x86-64-v4", "AVX-512 without VNNI (Skylake server)", _V4, "VQC_CPU_X86_64_V4"),
    Variant("x86-64-v3", "AVX2 and FMA (Haswell, Zen and later)", _V3, "VQC_CPU_X86_64_V3"),
    Variant("x86-64-v2", "SSE4.2 (Nehalem and later)", _V2, "VQC_CPU_X86_64_V2"),
)  # fmt: skip

_NEON = Variant("neon", "Armv8-A: every 64-bit Arm CPU", ())
_DOTPROD = Variant("dotprod", "SDOT and UDOT (Armv8.2: Cortex-A55, A75, A76 and later)", ("-march=armv8.2-a+dotprod",),
                   zig=("-mcpu=generic+dotprod",))  # fmt: skip
_I8MM = Variant("i8mm", "SMMLA as well (Armv8.6: Cortex-A510, A710, X2 and later)", ("-march=armv8.2-a+dotprod+i8mm",),
                zig=("-mcpu=generic+dotprod+i8mm",))  # fmt: skip
ARM = (_NEON, _DOTPROD, _I8MM)
APPLE = (_DOTPROD, _I8MM)  # the M1 has SDOT, the M2 SMMLA


def _table(*targets: Target) -> dict[str, Target]:
    return {t.name: t for t in targets}


TARGETS = _table(
    Target("native", "the machine this runs on", flags=("-march=native",)),
    Target("portable", "any machine with C99: no vectors but those a compiler finds by itself",
           flags=("-DVQC_GENERIC",)),
    *(Target(v.name, v.about, "x86_64-linux-gnu", variants=(v,), dispatch=True) for v in reversed(X86_LEVELS)),
    Target("x86-64-linux", "Linux on any x86-64 from v2: all levels, chosen at start", "x86_64-linux-gnu",
           variants=X86_LEVELS, dispatch=True),
    Target("x86-64-linux-musl", "the same without glibc, for static programs", "x86_64-linux-musl",
           variants=X86_LEVELS, dispatch=True),
    Target("aarch64-linux", "Linux on 64-bit Arm, static programs", "aarch64-linux-musl", variants=ARM),
    Target("aarch64-linux-musl", "the same by its longer name", "aarch64-linux-musl", variants=ARM),
    Target("aarch64-linux-gnu", "Linux on 64-bit Arm with glibc", "aarch64-linux-gnu", variants=ARM),
    Target("aarch64-android", "Android on 64-bit Arm (linked with the NDK)", "aarch64-linux-android", variants=ARM),
    Target("aarch64-macos", "macOS on Apple's own CPUs", "aarch64-macos", variants=APPLE),
)  # fmt: skip


def target_called(name: str) -> Target:
    """The target of that name; TargetError that lists the names otherwise."""
    if name not in TARGETS:
        raise TargetError(f"the C backend has no target {name!r}", way_out="use one of " + ", ".join(TARGETS))
    return TARGETS[name]


@dataclass(frozen=True)
class Unit:
    """One run of the compiler: a file, its flags, and which variant it is for (the object's folder)."""

    file: str
    flags: tuple[str, ...]
    variant: str = ""

    @property
    def object(self) -> str:
        """A name for the object file that no other unit has."""
        return f"{self.variant or 'shared'}-{self.file.removesuffix('.c')}.o"


def is_kernel(file: str) -> bool:
    """Whether a C file of a model is compiled for an instruction set; the others are compiled once for any CPU."""
    return file not in SHARED and (file.startswith("vqc_") or file.endswith(("_step.c", "_rows.c")))


def file_flags(file: str, contracted: Iterable[str]) -> tuple[str, ...]:
    """Flags that belong to a file: products and sums may be fused only where the kernel's contract says so."""
    contract = "-ffp-contract=fast" if file in contracted else "-ffp-contract=off"
    return (contract, "-pthread") if file == THREAD_POOL else (contract,)


def isa_flags(variant: Variant) -> tuple[str, ...]:
    """How a kernel file is compiled for one of several variants."""
    return ("-include", ISA_HEADER, f"-DVQC_ISA_SUFFIX={variant.suffix}", *variant.flags)


def units(target: Target, files: Iterable[str], contracted: Iterable[str], choice: str | None = None, zig: bool = False
          ) -> list[Unit]:  # fmt: skip
    """All runs of the compiler, or of `zig` cc, for a model's files; `choice` names the variant where one is chosen.

    Without vqc_isa.h among them the files are no model's, and are compiled for the target's best variant.
    """
    files = list(files)
    chosen = target.variants[0] if target.dispatch and ISA_HEADER not in files else target.variant(choice)
    own_flags = (chosen.zig if zig and chosen.zig else chosen.flags) if chosen else ()
    base = (*COMMON, *target.flags, *own_flags, *WARNINGS)
    made = []
    for file in sorted(f for f in files if f.endswith(".c")):
        own = (*base, *file_flags(file, contracted))
        if chosen is None and target.dispatch and is_kernel(file):
            made += [Unit(file, (*own, *isa_flags(v)), v.name) for v in target.variants]
        else:
            made.append(Unit(file, own, chosen.name if chosen else ""))
    return made
