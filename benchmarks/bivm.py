"""One-bit matting: an ablation in small of BiVM's table I, and the network beside its float twin in every engine.

    python -m benchmarks.bivm ablation [--steps 600] [--rows 1 2 ...]    minutes a row
    python -m benchmarks.bivm speed [--frames 24] [--speed-threads 1 2] [--jobs engines masks arm] [--weights FILE]
    python -m benchmarks.bivm exact [--frames 48] [--weights FILE]
    python -m benchmarks.bivm network [--weights FILE] [--pictures FOLDER]

`ablation` trains every row from the same seed on the same clips for the same number of steps, far fewer than the
paper's: its figures are no figures of the paper's networks, but their order may be compared. It is judged twice: on
stretches held out of the clips that were learned from, as they are or over backgrounds that nobody learned from, beside
the teacher's matte; and on composites of people and drawings that no row was trained on, whose matte is exact. A row
that is trained is kept, so a stopped run goes on.
`speed` runs the networks at 288x512 with the state carried, all engines in turn (bivm_speed.py).
`exact` compares every sign, every mask and every state of the C code with the training graph's, on this CPU and on
64-bit Arm under qemu (bivm_exact.py).
`network` judges the shipped network's mattes beside its teacher's (bivm_network.py).
All write benchmarks/results/<processor>/bivm-*.json; `python -m benchmarks.tables` puts them into
docs/binary.md and docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Record, folder, machine, write
from vqc.models import load_rvm
from vqc.models.binary import METHODS
from vqc.models.bivm import BiVM
from vqc.train.data import HELD_OUT, Material, Sampler, known_material
from vqc.train.evaluate import score
from vqc.train.loop import Schedule, Trainer
from vqc.video.sheets import drawn_portrait

UNSEEN = 3  # cut-outs of people that are kept for the test
CLIPS, FRAMES, SIZE = 10, 8, (96, 160)
NOBODY = 8  # of 255, the mean of a matte
JUDGED = ("stretches", "people")


@dataclass(frozen=True)
class Row:
    """A row of BiVM's table I, with its MAD on VideoMatte 512x288. `twin`: the row whose features are mimicked."""

    number: int
    encoder: str
    decoder: str
    bits: int
    paper: float
    twin: int = 0

    @property
    def name(self) -> str:
        text = (
            {"mobilenetv3": "MBV3", "ebb": "EBB"}[self.encoder]
            + " + "
            + {"vanilla": "vanilla", "shb": "SHB"}[self.decoder]
        )
        return f"{text}{', LBM' if self.twin else ''}, {self.bits} bit{'s' if self.bits > 1 else ''}"


ROWS = (
    Row(1, "mobilenetv3", "vanilla", 32, 6.08),
    Row(2, "mobilenetv3", "vanilla", 1, 28.49),
    Row(3, "mobilenetv3", "vanilla", 1, 24.65, twin=1),
    Row(4, "ebb", "vanilla", 32, 5.91),
    Row(5, "ebb", "vanilla", 1, 13.46),
    Row(6, "mobilenetv3", "shb", 32, 9.69),
    Row(7, "mobilenetv3", "shb", 1, 191.89),
    Row(8, "ebb", "shb", 32, 7.43),
    Row(9, "ebb", "shb", 1, 11.82, twin=8),
)
# What the paper's table says, as "row a is better than row b", with the least ratio asked of it here (1: any).
DIRECTIONS = ((9, 2, 2.0, "one-bit BiVM against ReActNet-style RVM"), (5, 2, 1.0, "EBB against MBV3, one bit"),
              (3, 2, 1.0, "LBM against none"), (5, 7, 1.0, "SHB without EBB collapses"), (9, 7, 1.0, "SHB wants EBB"),
              (9, 5, 1.0, "SHB and LBM against a dense decoder, one bit"),
              (8, 9, 1.0, "the float twin against one bit"))  # fmt: skip


def built(row: Row, seed: int) -> BiVM:
    """A fresh network of a row: ReActNet's signs in MobileNet, BiMatting's in EBB, as the paper has them."""
    torch.manual_seed(seed)
    how = METHODS["reactnet" if row.encoder == "mobilenetv3" else "bimatting"]
    return BiVM(row.bits, row.encoder, row.decoder, how)


@dataclass(frozen=True)
class Held:
    """What no row learns from. `stretches`: of the clips that rows learn from, people in them; `people`: of others."""

    stretches: Material
    people: Material


def materials() -> tuple[Material, Held]:
    """(to learn from, to be judged on): no person of `people`, figure, stretch or background frame is in both."""
    whole = known_material(load_rvm())
    people = len(whole.cutouts) - 12
    unseen = Material([], [*whole.cutouts[:UNSEEN], drawn_portrait((432, 512), 77), drawn_portrait((432, 512), 78)], [])
    learned = replace(whole, cutouts=whole.cutouts[UNSEEN:people] + whole.cutouts[people:], backgrounds=[])
    for clip in whole.backgrounds:
        cut = len(clip) * 3 // 4
        learned.backgrounds.append(clip[:cut])
        if len(clip) - cut >= FRAMES:
            unseen.backgrounds.append(clip[cut:])
    held = [replace(f, stretches=s) for f, s in zip(whole.footage, HELD_OUT.values(), strict=True)]
    shown = [f for f in held if min(float(f.alpha[a:b].float().mean()) for a, b in f.stretches) > NOBODY]
    return learned, Held(Material(shown, [], unseen.backgrounds), unseen)


def trained(row: Row, learned: Material, steps: int, seed: int, workdir: Path) -> tuple[BiVM, float]:
    """The network of a row and the processor time its training took, in s; from `workdir`, if it is there already."""
    net, twin = built(row, seed), None
    kept, cost = (workdir / f"row{row.number}-{steps}-{seed}.{kind}" for kind in ("pt", "json"))
    if kept.exists():
        net.load_state_dict(torch.load(kept, weights_only=True))
        return net.eval(), json.loads(cost.read_text())["cpu_s"]
    began = time.process_time()
    shared: dict[str, Any] = {"batch": 8, "frames": 1, "window": 1, "size": SIZE, "amp": True}
    images = Schedule("images", steps * 3 // 5, backbone_rate=2e-3, decoder_rate=2e-3, last_rate=0.4, **shared)
    moving = Schedule("clips", steps - steps * 3 // 5, burn_in=3, backbone_rate=8e-4, decoder_rate=8e-4,
                      last_rate=0.05, **shared)  # fmt: skip
    if row.twin:
        twin = built(next(r for r in ROWS if r.number == row.twin), seed)
        twin.load_state_dict(torch.load(workdir / f"row{row.twin}-{steps}-{seed}.pt", weights_only=True))
        twin.eval()
    stages = [replace(s, mimic=1e-4 if twin else 0.0) for s in (images, moving)]
    Trainer(net, lambda frames, size: Sampler(learned, frames, size), seed=seed, twin=twin,
            folder=workdir / f"row{row.number}").run(stages)  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    cost.write_text(json.dumps({"cpu_s": round(time.process_time() - began, 1)}) + "\n")
    torch.save(net.state_dict(), kept)
    return net, json.loads(cost.read_text())["cpu_s"]


def ablation(rows: tuple[Row, ...], steps: int, seed: int, workdir: Path) -> list[Record]:
    """One record a row, in the order given: a twin comes before who mimics it."""
    learned, held = materials()
    judges = {kind: Sampler(getattr(held, kind), FRAMES, SIZE, drawn=0.0) for kind in JUDGED}
    clips = {kind: [judge.sample(4711, i) for i in range(CLIPS)] for kind, judge in judges.items()}
    records = []
    for row in rows:
        net, cpu = trained(row, learned, steps, seed, workdir)
        record = {"row": row.number, "name": row.name, "steps": steps, "seed": seed, "paper_mad": row.paper,
                  "cpu_s": cpu}  # fmt: skip
        for kind, shown in clips.items():
            found = [score(net, c.frames, c.alpha) for c in shown]
            kept = ("mad", "mse", "dtssd") + (("density",) if row.decoder == "shb" else ())
            record[kind] = {k: round(sum(getattr(f, k) for f in found) / len(found), 3) for k in kept}
        records.append(record)
        print(", ".join(f"{k} {v}" for k, v in record.items()), flush=True)
    return records


def directions(records: list[Record]) -> list[Record]:
    """What the paper's table says row by row, and whether it holds here."""
    mad = {kind: {r["row"]: r[kind]["mad"] for r in records} for kind in JUDGED}
    paper = {r.number: r.paper for r in ROWS}
    return [{"better": a, "worse": b, "what": what, "paper_ratio": round(paper[b] / paper[a], 2), "asked": least,
             **{kind: round(of[b] / of[a], 2) for kind, of in mad.items()}}
            for a, b, least, what in DIRECTIONS if all(n in mad[JUDGED[0]] for n in (a, b))]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("topic", choices=("ablation", "speed", "exact", "network"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs="+", default=[r.number for r in ROWS])
    parser.add_argument("--workdir", type=Path, default=Path("build/bivm"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of training")
    parser.add_argument("--frames", type=int, help="of a clip")
    parser.add_argument("--speed-threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--jobs", nargs="+", choices=("engines", "masks", "arm"), default=["engines", "masks", "arm"])
    parser.add_argument("--weights", type=Path, help="a packed one-bit network instead of the shipped one")
    parser.add_argument("--pictures", type=Path, help="network: a folder for strips of frame, teacher, one bit")
    parser.add_argument("-o", "--output", type=Path, help="folder of the results, instead of benchmarks/results/")
    given = parser.parse_args(argv)
    began, where = machine(), given.output or folder()
    if given.topic == "speed":
        from benchmarks import bivm_speed

        records, note = bivm_speed.measure(given.speed_threads, given.frames or 24, given.weights, given.jobs)
        print("wrote", write("bivm-speed", records, began, where, note))
        return
    if given.topic == "exact":
        from benchmarks import bivm_exact

        records = bivm_exact.measure(given.frames or 48, given.weights)
        print("wrote", write("bivm-exact", records, began, where))
        return
    torch.set_num_threads(given.threads)
    if given.topic == "network":
        from benchmarks import bivm_network

        records = bivm_network.measure(given.weights, given.pictures)
        print("wrote", write("bivm-network", records, began, where))
        return
    rows = tuple(r for number in given.rows for r in ROWS if r.number == number)
    records = ablation(rows, given.steps, given.seed, given.workdir)
    records.sort(key=lambda r: r["row"])
    found = [*records, *directions(records)]
    for line in found[len(records) :]:
        print(", ".join(f"{k} {v}" for k, v in line.items()))
    print("wrote", write("bivm-ablation", found, began, where))


if __name__ == "__main__":
    main()
