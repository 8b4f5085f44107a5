"""What each process of test_distributed.py runs, and what the test runs alone to compare with.

torchrun ... distributed_worker.py FOLDER COMMAND.. runs a command of the command line too, writes FOLDER/RANK.json, and
fails on purpose in process 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from handmade import Hand, aten

import vqc
from vqc import distributed
from vqc.calibration.wire import to_bytes
from vqc.distributed import Shard
from vqc.errors import DistributedError
from vqc.program import Program


def recurrent() -> Program:
    """relu(conv(cat[x, h])) is the next state; a head that no state needs makes the result."""
    h = Hand()
    x, s = h.input("x", 1, 3, 6, 8), h.state("h", torch.zeros(1, 2, 6, 8))
    a = h(aten.conv2d, h(aten.cat, [x, s], 1), h.const("w0", h.rand(2, 5, 3, 3) / 5), None, [1, 1], [1, 1])
    new = h(aten.relu, a)
    head = h(aten.conv2d, h(aten.mul.Tensor, new, x.meta["val"].shape[-1]), h.const("w1", h.rand(4, 2, 1, 1)), None)
    return h.done(h(aten.conv2d, head, h.const("w2", h.rand(1, 4, 3, 3)), None), states=[new])


def stateless() -> Program:
    h = Hand()
    x = h.input("x", 1, 3, 6, 8)
    a = h(aten.conv2d, x, h.const("w0", h.rand(2, 3, 3, 3)), None, [1, 1], [1, 1])
    return h.done(h(aten.conv2d, h(aten.relu, a), h.const("w1", h.rand(1, 2, 1, 1)), None))


def logarithm() -> Program:
    """Its layer sees NaN where a frame is negative."""
    h = Hand()
    x = h.input("x", 1, 1, 4, 4)
    return h.done(h(aten.conv2d, h(aten.log, x), h.const("w", h.rand(1, 1, 1, 1)), None))


def clips(*lengths: int) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(7)
    return [[torch.randn(1, 3, 6, 8, generator=g) * (1 + c + t) for t in range(n)] for c, n in enumerate(lengths)]


CASES: dict[str, tuple[Program, tuple[int, ...], str]] = {
    "three uneven clips": (recurrent(), (5, 3, 7), "tensor"),
    "three uneven clips by phase": (recurrent(), (5, 3, 7), "phase"),
    "one clip": (recurrent(), (7,), "tensor"),
    "one clip by phase": (recurrent(), (7,), "phase"),
    "as few frames as processes": (recurrent(), (2,), "tensor"),
    "without a state": (stateless(), (2, 3), "phase"),
}


def observed(case: str, shard: Shard) -> str:
    """What a case's program observes, and what its history says of that, as text."""
    program, lengths, policy = CASES[case]
    seen = vqc.apply(program, f"observe{{policy={policy}}}", calibration=clips(*lengths), shard=shard)
    told = "\n".join(seen.history[-1].notes)
    return to_bytes({n.name: n.meta["observed"] for n in seen.nodes if "observed" in n.meta}).decode() + told


def learned(shard: Shard, samples: int) -> dict[str, Any]:
    """Gradients of a mean loss over a batch, shared or not, and the loss."""
    torch.manual_seed(3)
    used, unused = torch.nn.Linear(4, 3), torch.nn.Linear(2, 2)
    late = torch.nn.Parameter(torch.ones(3))  # part of the first process's loss alone
    batch, wanted = torch.randn(samples, 4), torch.randn(samples, 3)
    x, y = shard.share(batch), shard.share(wanted)
    loss = torch.zeros(())
    if len(x):
        loss = (used(x) - y).square().mean()
        loss.backward()
    if shard.first:
        (late * len(x)).sum().backward()
    shard.average([*used.parameters(), *unused.parameters(), late], weight=len(x))
    return {
        "weight": used.weight.grad.tolist(), "bias": used.bias.grad.tolist(), "late": late.grad.tolist(),
        "unused": unused.weight.grad, "loss": shard.mean(float(loss.detach()), len(x)),
    }  # fmt: skip


def reconstructed(shard: Shard) -> list[str]:
    """What a program became that learned roundings and grids, with fewer windows in a batch than processes and more."""
    twin, seen = stateless(), clips(4, 5)
    low = vqc.apply(twin, "observe,quantize{weight_bits=2,tail=quantized}", calibration=seen)
    found = []
    for text in ("batch=1,method=brecq", "batch=3"):
        p = vqc.apply(low, f"reconstruct{{iterations=16,{text}}}", calibration=seen, twin=twin, shard=shard)
        found.append(f"{p.history[-1].rewrites} {[v.tolist() for k, v in p.constants.items() if k.endswith('_int2')]}")
    return found


def refused(shard: Shard) -> dict[str, str]:
    """The texts of errors that all processes get and survive."""
    said = {}
    try:
        vqc.apply(recurrent(), "observe", calibration=clips(1), shard=shard)
    except vqc.VqcError as e:
        said["too few frames"] = f"{type(e).__name__}: {e}"
    changed = recurrent()
    if not shard.first:
        changed.constants["w1"] = changed.constants["w1"].nextafter(torch.tensor(9.0))
    try:
        shard.check_equal(changed, "the test")
    except DistributedError as e:
        said["different constants"] = str(e)
    shard.check_equal(recurrent(), "the test")
    return said


def command(arguments: list[str]) -> dict[str, Any]:
    """What `python -m vqc ARGUMENTS` prints, and its exit code."""
    sys.argv = ["vqc", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("vqc", run_name="__main__", alter_sys=True)
        except SystemExit as e:
            code = e.code
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def main(folder: Path, arguments: list[str]) -> None:
    shard = distributed.current()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what this process says when another fails is tested too
    found: dict[str, Any] = {"observed": {case: observed(case, shard) for case in CASES}}
    found |= {"learned": [learned(shard, n) for n in (5, 1)], "refused": refused(shard)}
    found["reconstructed"] = reconstructed(shard)
    found["command"] = command(arguments)
    try:
        bad = [[torch.ones(1, 1, 4, 4)] * 3, [torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)]]
        vqc.apply(logarithm(), "observe", calibration=bad, shard=shard)
    except vqc.VqcError as e:
        found["failed"] = f"{type(e).__name__}: {e}"
        raise
    finally:
        (folder / f"{shard.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
