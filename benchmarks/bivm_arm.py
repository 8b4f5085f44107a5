"""BiVM on 64-bit Arm under qemu: an exported program plays frames and tells what it computed, or what it executed.

No Arm processor is needed, and none was timed. `model_ms` turns executed instructions into the time of a core of
Cortex-A76's class by what its ports could do at best: 4 instructions a cycle, 2 of them on vectors, 2 loads or stores,
1 of them a store (Cortex-A76 software optimization guide); caches and dependences are left out, a real core needs more.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import vqc
from benchmarks.neon_count import EMULATOR
from vqc.backends.c.cross import build_export
from vqc.program import Program

GHZ = 2.86  # Kirin 990, the phone of the paper
WIDTH, VECTOR, MEMORY, STORE = 4, 2, 2, 1
KINDS = ("vector", "load", "store", "other")
NOT_ITS_OWN = ("checksum", "main", "read_all")  # functions of the player

PLAYER = r"""/* Plays frames: checksums of all outputs but the floats, and of the states; alpha into a file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bivm.h"

#define OUTPUTS %(outputs)d
static const size_t sizes[OUTPUTS] = {%(sizes)s};
static const int exact[OUTPUTS] = {%(exact)s};

static uint64_t __attribute__((noinline)) checksum(const unsigned char *x, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += (uint64_t)x[i] * (2u * (uint64_t)i + 1u);
    return sum;
}

static unsigned char *read_all(const char *name, size_t *size) {
    FILE *f = fopen(name, "rb");
    unsigned char *data;
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) exit(2);
    *size = (size_t)ftell(f);
    rewind(f);
    data = (unsigned char *)aligned_alloc(64, (*size + 127) / 64 * 64);
    if (data == NULL || fread(data, 1, *size, f) != *size) exit(2);
    fclose(f);
    return data;
}

/* WEIGHTS FRAMES COUNT [ALPHA] */
int main(int argc, char **argv) {
    size_t weights_size, frames_size;
    bivm_model model;
    void *outputs[OUTPUTS];
    FILE *alpha = NULL;
    if (argc < 4) return 2;
    unsigned char *weights = read_all(argv[1], &weights_size), *frames = read_all(argv[2], &frames_size);
    unsigned char *arena = (unsigned char *)aligned_alloc(64, bivm_arena_size() / 64 * 64 + 64);
    unsigned char *state = (unsigned char *)aligned_alloc(64, bivm_state_size() / 64 * 64 + 64);
    if (argc > 4) alpha = fopen(argv[4], "wb");
    for (int i = 0; i < OUTPUTS; i++) outputs[i] = aligned_alloc(64, sizes[i] / 64 * 64 + 64);
    if (bivm_init(&model, weights, weights_size, arena, bivm_arena_size()) != VQC_OK) return 2;
    if (bivm_reset(&model, state) != VQC_OK) return 2;
    for (int t = 0; t < atoi(argv[3]); t++) {
        const void *inputs[1];
        inputs[0] = frames + (size_t)t * %(input)d;
        if (bivm_run(&model, state, inputs, outputs) != VQC_OK) return 2;
        if (alpha == NULL) continue;
        for (int i = 0; i < OUTPUTS; i++)
            if (exact[i]) printf("%%llu ", (unsigned long long)checksum((const unsigned char *)outputs[i], sizes[i]));
        printf("%%llu\n", (unsigned long long)checksum(state + %(head)d, bivm_state_size() - %(head)d));
        if (fwrite(outputs[1], 1, sizes[1], alpha) != sizes[1]) return 2;
    }
    if (alpha != NULL) fclose(alpha);
    return 0;
}
"""


@dataclass(frozen=True)
class Player:
    """A static aarch64 program that plays frames, with its files."""

    program: Path
    folder: Path

    def command(self, count: int, *more: str) -> list[str]:
        files = [str(self.folder / "bivm.weights.bin"), str(self.folder / "frames.bin")]
        return [str(self.program), *files, str(count), *more]


def player(program: Program, frames: Tensor, folder: Path) -> Player:
    """Export a program of the name "bivm" and build what plays `frames` [T,3,H,W] on it."""
    from vqc.backends.c.interface import STATE_HEAD

    held = {s.output for s in program.states}
    values = [n.meta["val"] for i, n in enumerate(program.result_nodes) if i not in held]
    out = Path(vqc.export(program, folder, "aarch64-linux"))
    text = PLAYER % {
        "outputs": len(values), "sizes": ", ".join(str(v.numel() * v.element_size()) for v in values),
        "exact": ", ".join(str(int(not v.is_floating_point())) for v in values), "input": frames[0].numel() * 4,
        "head": STATE_HEAD,
    }  # fmt: skip
    (out / "player_test.c").write_text(text)
    (out / "frames.bin").write_bytes(frames.contiguous().numpy().tobytes())
    return Player(build_export(out, "aarch64-linux")["player_test"], out)


def checksum(x: Tensor) -> int:
    """The player's checksum of a tensor's bytes."""
    data = x.contiguous().reshape(-1).view(torch.uint8).to(torch.int64)
    return int((data * (2 * torch.arange(len(data)) + 1)).sum()) % 2**64


def play(made: Player, count: int) -> tuple[list[list[int]], Tensor]:
    """Checksums of every frame, and alpha, flat. Raises RuntimeError when the program fails."""
    file = made.folder / "alpha.bin"
    done = subprocess.run([EMULATOR, *made.command(count, str(file))], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the program ended with {done.returncode}: {done.stderr}")
    sums = [[int(x) for x in line.split()] for line in done.stdout.splitlines()]
    return sums, torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32).view(count, -1)


# ---- what is executed ----------------------------------------------------------------------------------------------


def kind_of(text: str) -> str:
    """The port of an instruction of a disassembly: "vector", "load", "store" or "other"."""
    name, _, operands = text.partition(" ")
    if name.startswith("ld"):
        return "load"
    if name.startswith("st"):
        return "store"
    first = operands.strip().split(",")[0]
    return "vector" if first[:1] in "vqdsbh" and first[1:2].isdigit() else "other"


def executed(command: Sequence[str]) -> Counter[tuple[str, str]]:
    """How many instructions a run executes, by function and kind."""
    run = subprocess.Popen([EMULATOR, "-d", "in_asm,exec,nochain", "-D", "/dev/stderr", *command],
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert run.stderr is not None
    blocks: dict[str, Counter[tuple[str, str]]] = {}
    times: Counter[str] = Counter()
    name, block = "", Counter[tuple[str, str]]()
    for line in run.stderr:
        if line.startswith("Trace"):  # Trace 0: host [flags/address/flags/flags] name
            times[line.split("/", 2)[1]] += 1
        elif line.startswith("IN:"):  # a block is translated, and listed
            name, block = line[3:].strip(), Counter()
        elif line.startswith("0x"):
            at, _, text = line.partition(":")
            if not block:
                blocks[f"{int(at, 16):016x}"] = block
            block[name, kind_of(text.split(maxsplit=1)[1].strip())] += 1
    if run.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}")
    found: Counter[tuple[str, str]] = Counter()
    for address, count in times.items():
        for key, n in blocks[address].items():
            found[key] += n * count
    return found


def a_frame(made: Player) -> Counter[tuple[str, str]]:
    """What the second frame executes: a run of two frames less one of the first alone."""
    found = executed(made.command(2)) - executed(made.command(1))
    return Counter({k: n for k, n in found.items() if k[0] not in NOT_ITS_OWN})


def model_ms(counts: Counter[tuple[str, str]]) -> float:
    """The time on a core of Cortex-A76's class at GHZ, of what was executed, function by function."""
    cycles = 0.0
    for function in {f for f, _ in counts}:
        n = {k: counts[function, k] for k in KINDS}
        cycles += max(sum(n.values()) / WIDTH, n["vector"] / VECTOR, (n["load"] + n["store"]) / MEMORY,
                      n["store"] / STORE)  # fmt: skip
    return cycles / GHZ / 1e6
