"""Whether the C code of BiVM decides as the training graph does: every sign, mask and state, over many frames.

`python -m benchmarks.bivm exact` runs it: on the real clip at 288x512 with the state carried, on this CPU and on 64-bit
Arm under qemu. The training graph is the captured network with batch norms folded and float sums in order, evaluated by
PyTorch; nothing in it is binary. Arm's values are compared by checksums of their bytes, alpha itself.
tests/backends/c/test_c_bivm.py does the same on small frames.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

import vqc
from benchmarks import bivm_arm
from benchmarks.bivm_speed import SIZE, as_network, frames_of, one_bit
from benchmarks.machine import Record
from vqc.backends.c import CBackend
from vqc.backends.c.registry import op_name
from vqc.program import Program, evaluate
from vqc.report.session import captured

TRAINING = "canonicalize,fold-constants,fold-bn{scales=false},canonicalize,exact-float"  # recipe xnor without its bits
CLOSE = 1e-4  # of alpha


def _signs(program: Program, target: Any) -> list[fx.Node]:
    return [n for n in program.calls if n.target is target]


def _pairs(training: Program, lowered: Program) -> list[tuple[str, str, bool]]:
    """(node of the training graph, node of the lowered one, whether it is compared with zero first) of decisions."""
    before, after = (_signs(p, op.default) for p, op in
                     ((training, torch.ops.vqc.fake_binarize), (lowered, torch.ops.vqc.binarize)))  # fmt: skip
    if len(before) != len(after):
        raise RuntimeError(f"{len(before)} signs in training, {len(after)} after lowering")
    found = [(a.name, b.name, False) for a, b in zip(before, after, strict=True)]
    names = {n.name for n in training.calls}
    for n in lowered.calls:
        if not isinstance(v := n.meta["val"], Tensor) or v.dtype != torch.bool:
            continue
        if n.name in names:
            found.append((n.name, n.name, False))
        elif op_name(n.target) in ("aten::ne.Scalar", "aten::gt.Scalar") and n.args[0].name in names:
            found.append((n.args[0].name, n.name, True))
        else:
            raise RuntimeError(f"{n.name}: the training graph has nothing like it")
    return found


def _as_stored(x: Tensor, against_zero: bool) -> Tensor:
    """A decision of the training graph as the lowered graph holds it: signs of int8, or bool."""
    if against_zero:
        return x != 0
    return x if x.dtype == torch.bool else x.to(torch.int8)


def measure(frames: int, weights: Path | None, size: tuple[int, int] = SIZE) -> list[Record]:
    """One record a machine: tensors compared, those that differ, and the largest distance of alpha."""
    torch.set_num_threads(1)
    model, about = one_bit(weights)
    net = as_network(model, size)
    program = captured(net)
    training, lowered = vqc.apply(program, TRAINING), vqc.apply(program, "xnor")
    pairs = _pairs(training, lowered)
    first = len(training.result_nodes)
    want = training.with_outputs([a for a, _, _ in pairs])
    watched = lowered.with_outputs([b for _, b, _ in pairs])
    exe: Any = CBackend().compile(watched, "native", {"fallback": "none"})
    clip = frames_of("single_face", frames, size)
    state_a, state_c = want.initial_state(), watched.initial_state()
    differ, worst, kept = 0, 0.0, []
    sums: list[list[int]] = []
    alphas = []
    for t, frame in enumerate(clip):
        a, c = evaluate(want, [frame[None]], state_a), exe.trace([frame[None]], state_c)
        state_a, state_c = [a[s.output] for s in want.states], [c[s.output] for s in watched.states]
        decisions = [_as_stored(x, zero) for x, (_, _, zero) in zip(a[first:], pairs, strict=True)]
        wrong = [b for x, y, (_, b, _) in zip(decisions, c[first:], pairs, strict=True) if not torch.equal(x, y)]
        wrong += [s.name for s, x, y in zip(want.states, state_a, state_c, strict=True) if not torch.equal(x, y)]
        if wrong:
            print(f"frame {t}: {', '.join(wrong)} differ", flush=True)
        differ += len(wrong)
        worst = max(worst, float((a[1] - c[1]).abs().max()))
        kept += [
            float(x.float().mean()) for x in decisions if x.dtype == torch.bool and x.shape[-2:] == frame.shape[-2:]
        ]
        state = torch.cat([s.reshape(-1) for s in state_a])
        sums.append([*(bivm_arm.checksum(x) for x in decisions), bivm_arm.checksum(state)])
        alphas.append(a[1].reshape(-1))
    common = {"weights": about, "frames": len(clip), "size": f"{size[0]}x{size[1]}",
              "tensors": len(pairs) + len(want.states), "kept": round(sum(kept) / max(1, len(kept)), 3)}  # fmt: skip
    records = [common | {"machine": "this CPU", "differ": differ, "alpha": worst}]
    print(records[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found, alpha = bivm_arm.play(bivm_arm.player(watched, clip, Path(folder) / "out"), len(clip))
    differ = sum(x != y for row, other in zip(sums, found, strict=True) for x, y in zip(row, other, strict=True))
    worst = float((alpha - torch.stack(alphas)).abs().max())
    records.append(common | {"machine": "aarch64 under qemu", "differ": differ, "alpha": worst})
    records[-1]["tensors"] = len(pairs) + 1  # all states together
    print(records[-1], flush=True)
    for r in records:
        r["holds"] = r["differ"] == 0 and r["alpha"] <= CLOSE
    return records
