"""How long the observing pass takes in one process and in two, and whether both see the same.

    python -m benchmarks.calibration [--only CASE ..] [--repeats 4] [-o FOLDER]

Every case runs in processes of its own: one with one thread, one with two threads, two with one thread each. Writes
benchmarks/results/<processor>/calibration.json; `python -m benchmarks.tables` puts the figures into the documents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import vqc
from benchmarks.machine import Record, folder, machine, write
from vqc import distributed, video
from vqc.calibration.wire import to_bytes
from vqc.passes.observe import Observe
from vqc.pipeline import PassContext
from vqc.report.network import network
from vqc.report.session import captured

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """A network, its frames' size, and clips as (name, first frame, frames)."""

    model: str
    size: tuple[int, int]
    clips: tuple[tuple[str, int, int], ...]


CASES = {
    "clips": Case("rvm", (288, 512), (("pexels", 0, 6), ("pexels", 24, 6), ("single_face", 0, 6),
                                      ("single_face", 24, 6))),
    "one clip": Case("rvm", (288, 512), (("pexels", 0, 24),)),
    "one clip, no state": Case("rife", (288, 640), (("pexels", 0, 14),)),
}  # fmt: skip
WAYS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each


def worker(case: Case, threads: int, repeats: int, out: Path) -> None:
    """What each process does: observe `repeats` times, begin together; write a digest, and the slower one's seconds by
    the wall and of its processor (which other work on the machine lengthens less)."""
    torch.set_num_threads(threads)
    shard = distributed.current()
    net = network(case.model, case.size)
    program = vqc.apply(captured(net), "canonicalize,fold-constants,fold-bn,canonicalize")
    clips = [net.steps(video.read_clip(video.clip(n), frames, net.size, start)) for n, start, frames in case.clips]
    record: Record = {"frames": sum(len(clip) for clip in clips), "seconds": [], "cpu": []}
    for _ in range(repeats):
        shard.gather(b"")
        began, cpu = time.perf_counter(), time.process_time()
        seen = Observe()(program, PassContext(clips, shard=shard))
        taken = [time.perf_counter() - began, time.process_time() - cpu]
        both = [json.loads(part) for part in shard.gather(json.dumps(taken).encode())]
        record["seconds"].append(max(wall for wall, _ in both))
        record["cpu"].append(max(busy for _, busy in both))
        data = to_bytes({n.name: n.meta["observed"] for n in seen.nodes if "observed" in n.meta})
        record["digest"] = hashlib.sha256(data).hexdigest()
    if shard.first:
        out.write_text(json.dumps(record), encoding="utf-8")


def environments(processes: int, threads: int) -> list[dict[str, str]]:
    """What torchrun would tell every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": str(threads), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def measure(name: str, repeats: int = 4) -> list[Record]:
    """One record a way of running a case: seconds of the pass (least of the repeats), of the whole run, the digest."""
    case, records = CASES[name], []
    for processes, threads in WAYS:
        run = ["-m", "benchmarks.calibration", "--worker", name, "--threads", str(threads), "--repeats", str(repeats)]
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "record.json"
            began = time.perf_counter()
            started = [subprocess.Popen([sys.executable, *run, "-o", str(out)], cwd=ROOT, env=env)
                       for env in environments(processes, threads)]  # fmt: skip
            if sum(p.wait() != 0 for p in started):
                raise RuntimeError(f"{name} by {processes} processes failed")
            whole = time.perf_counter() - began
            found = json.loads(out.read_text(encoding="utf-8"))
        records.append({
            "case": name, "model": case.model, "size": f"{case.size[0]}x{case.size[1]}", "clips": len(case.clips),
            "frames": found["frames"], "processes": processes, "threads": threads, "s": round(min(found["seconds"]), 3),
            "cpu_s": round(min(found["cpu"]), 3),
            "speedup": round((records[0]["s"] if records else min(found["seconds"])) / min(found["seconds"]), 2),
            "whole_s": round(whole, 1), "digest": found["digest"],
            "same": found["digest"] == (records[0]["digest"] if records else found["digest"]),
        })  # fmt: skip
        print(", ".join(f"{k} {v}" for k, v in records[-1].items() if k != "digest"), flush=True)
    return records


def main() -> None:
    """Measure and write; with --worker be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--note", default="", help="A sentence for the table, such as what else ran.")
    given = parser.parse_args()
    if given.worker:
        worker(CASES[given.worker], given.threads, given.repeats, given.output)
        return
    began = machine()
    records = [r for name in given.only for r in measure(name, given.repeats)]
    print("wrote", write("calibration", records, began, given.output or folder(), given.note))


if __name__ == "__main__":
    main()
