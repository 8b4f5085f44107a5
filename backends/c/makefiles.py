"""How an exported model is built: CMakeLists.txt, and a Makefile that says the same in fewer words."""

from __future__ import annotations

from collections.abc import Sequence

from vqc.backends.c.emit import CONTRACTED, Model
from vqc.backends.c.targets import COMMON, THREAD_POOL, Target, Variant, is_kernel, isa_flags

WARN = "-Wall -Wextra -Wconversion"
OPTIONS = [f for f in COMMON if not f.startswith("-std")]
CHOICE = "VQC_VARIANT"  # the variable that names the variant where one is chosen


def programs(model: Model, self_test: bool, camera: bool) -> list[str]:
    """The programs beside the library: the self-test and the camera loop."""
    return [f"{model.name}_{what}" for what, there in (("test", self_test), ("camera", camera)) if there]


def _files(model: Model) -> tuple[list[str], list[str]]:
    files = [f for f in model.c_files if f != THREAD_POOL]
    return [f for f in files if not is_kernel(f)], [f for f in files if is_kernel(f)]


def _for_compiler(v: Variant) -> str:
    """A variant's flags in make: zig cc has other words than gcc and clang."""
    flags = " ".join(v.flags)
    return f"$(if $(findstring zig,$(CC)),{' '.join(v.zig)},{flags})" if v.zig else flags


def cmake_text(model: Model, target: Target, programs: Sequence[str], threads: bool) -> str:
    """CMakeLists.txt: the model as a static library, its programs, and the self-test as a test."""
    name = model.name
    shared, kernels = _files(model)
    fast = [f for f in kernels if f in CONTRACTED]
    flags = " ".join((*OPTIONS, "-ffp-contract=off", *WARN.split(), *target.flags))
    lines = ["cmake_minimum_required(VERSION 3.13)", f"project({name} C)", "set(CMAKE_C_STANDARD 99)", ""]
    if target.dispatch:
        lines += ["# Compiled for any CPU: they look at it first.", f"add_library({name} STATIC {' '.join(shared)})",
                  "", "# The kernels, once for each instruction set; the library takes the best one the CPU has.",
                  "function(add_variant variant)",
                  f"  add_library({name}_${{variant}} OBJECT", *(f"    {f}" for f in kernels), "  )",
                  f"  target_compile_options({name}_${{variant}} PRIVATE {flags} ${{ARGN}})",
                  f"  target_sources({name} PRIVATE $<TARGET_OBJECTS:{name}_${{variant}}>)",
                  "endfunction()"]  # fmt: skip
        for v in target.variants:
            text = " ".join(isa_flags(v)).replace("-include ", "-include${CMAKE_CURRENT_SOURCE_DIR}/")
            lines.append(f"add_variant({v.name} {text})")
    else:
        lines += [f"add_library({name} STATIC", *(f"  {f}" for f in (*shared, *kernels)), ")"]
    lines += ["", f"target_compile_options({name} PRIVATE {flags})"]
    if not target.dispatch and target.variants:
        lines += ["include(CheckCCompilerFlag)",
                  f'set({CHOICE} {target.variants[0].name} CACHE STRING "instruction set: '
                  f'{", ".join(v.name for v in target.variants)}")']  # fmt: skip
        for i, v in enumerate(target.variants):
            lines.append(f'{"else" if i else ""}if({CHOICE} STREQUAL "{v.name}")')
            if v.flags:
                lines += [f"  check_c_compiler_flag({' '.join(v.flags)} VQC_KNOWS_{v.name})  # zig cc has other words",
                          f"  target_compile_options({name} PRIVATE $<IF:$<BOOL:${{VQC_KNOWS_{v.name}}}>,"
                          f"{' '.join(v.flags)},{' '.join(v.zig or v.flags)}>)"]  # fmt: skip
        lines += ["else()", f'  message(FATAL_ERROR "{CHOICE} is none of: '
                  f'{", ".join(v.name for v in target.variants)}")', "endif()"]  # fmt: skip
    lines += ["# Products and sums must not be fused, but in these files: the exact kernels' meaning depends on it.",
              f"set_source_files_properties({' '.join(fast)} PROPERTIES COMPILE_OPTIONS -ffp-contract=fast)"
              ] * bool(fast)  # fmt: skip
    lines += [f"target_include_directories({name} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})",
              f"target_link_libraries({name} PUBLIC m)", ""]  # fmt: skip
    if threads:
        lines += ["find_package(Threads REQUIRED)", f"add_library({name}_threads STATIC {THREAD_POOL})",
                  f"target_link_libraries({name}_threads PUBLIC {name} Threads::Threads)", ""]  # fmt: skip
    for p in programs:
        lines += [f"add_executable({p} {p}.c)", f"target_compile_options({p} PRIVATE {WARN})",
                  f"target_link_libraries({p} PRIVATE {name}{'_threads' if threads else ''})"]  # fmt: skip
    if f"{name}_test" in programs:
        lines += ["enable_testing()", f"add_test(NAME {name} COMMAND {name}_test ${{CMAKE_CURRENT_SOURCE_DIR}})"]
    return "\n".join([*lines, ""])


def makefile_text(model: Model, target: Target, programs: Sequence[str], threads: bool) -> str:
    """Makefile, for GNU make: `make CC=...` builds libNAME.a and the programs into build/."""
    name = model.name
    shared, kernels = _files(model)
    if threads:
        shared.append(THREAD_POOL)
    lines = [
        f"# Builds build/lib{name}.a and its programs; `make test` runs the self-test. CC and CFLAGS are yours.",
        "CFLAGS = -O3",
        f"FLAGS = -std=c99 {' '.join(f for f in OPTIONS if f != '-O3')} {WARN} {' '.join(target.flags)}".rstrip(),
        f"SHARED = {' '.join(shared)}", f"KERNELS = {' '.join(kernels)}", f"PROGRAMS = {' '.join(programs)}",
    ]  # fmt: skip
    rules = []
    objects = ["$(SHARED:%.c=build/%.o)"]
    stamp = ""
    if target.dispatch:
        for v in target.variants:
            objects.append(f"$(KERNELS:%.c=build/{v.name}/%.o)")
            rules += [f"build/{v.name}/%.o: %.c", "\t@mkdir -p $(@D)",
                      f"\t$(CC) $(CFLAGS) $(FLAGS) $(CONTRACT) {' '.join(isa_flags(v))} -c $< -o $@"]  # fmt: skip
    else:
        objects.append("$(KERNELS:%.c=build/%.o)")
        if target.variants:
            lines.append(f"# The instruction set: {', '.join(v.name for v in target.variants)}.")
            lines.append(f"{CHOICE} = {target.variants[0].name}")
            lines += [f"FLAGS_{v.name} = {_for_compiler(v)}".rstrip() for v in target.variants]
            lines.append(f"FLAGS += $(FLAGS_$({CHOICE}))")
            stamp = " build/variant"  # what is built already is built anew for another instruction set
            rules += [".PHONY: look", "build/variant: look", "\t@mkdir -p $(@D)",
                      f'\t@test "$$(cat $@ 2>/dev/null)" = $({CHOICE}) || echo $({CHOICE}) > $@']  # fmt: skip
    lines += ["LIBS = -lm" + (" -pthread" if threads else ""), f"OBJECTS = {' '.join(objects)}", "",
              "all: $(PROGRAMS:%=build/%)", "",
              "# Products and sums must not be fused, but where a file's meaning allows it.",
              "CONTRACT = -ffp-contract=off"]  # fmt: skip
    fast = [f.removesuffix(".c") for f in kernels if f in CONTRACTED]
    folders = [f"build/{v.name}" for v in target.variants] if target.dispatch else ["build"]
    if fast:
        lines.append(" ".join(f"{d}/{f}.o" for d in folders for f in fast) + ": CONTRACT = -ffp-contract=fast")
    lines += ["", f"build/%.o: %.c{stamp}", "\t@mkdir -p $(@D)",
              "\t$(CC) $(CFLAGS) $(FLAGS) $(CONTRACT) -c $< -o $@", *rules,
              f"build/lib{name}.a: $(OBJECTS)", "\t$(AR) rcs $@ $^",
              f"build/%: build/%.o build/lib{name}.a", "\t$(CC) $(CFLAGS) $^ $(LIBS) -o $@"]  # fmt: skip
    if f"{name}_test" in programs:
        lines += [f"test: build/{name}_test", f"\tbuild/{name}_test ."]
    lines += ["clean:", "\trm -rf build", ".PHONY: all test clean", ".SECONDARY:", ""]
    return "\n".join(lines)
