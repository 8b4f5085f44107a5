"""What each process of test_train_distributed.py runs: torchrun ... training_worker.py FOLDER writes FOLDER/RANK.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from vqc import distributed
from vqc.models.bivm import BiVM
from vqc.train.data import Material, Sampler
from vqc.train.loop import Schedule, Trainer
from vqc.video.sheets import drawn_portrait

STAGES = [Schedule("a", 2, batch=2, frames=2, window=2, size=(32, 48), backbone_rate=2e-3, decoder_rate=2e-3),
          Schedule("b", 2, batch=1, frames=2, window=1, burn_in=2, size=(32, 48))]  # fmt: skip


def net() -> BiVM:
    torch.manual_seed(0)
    return BiVM(width=0.25)


def sampler(frames: int, size: tuple[int, int]) -> Sampler:
    return Sampler(Material([], [drawn_portrait((60, 64), 1)], []), frames, size, drawn=0.0)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    shard = distributed.current()
    first, whole = net(), net()
    Trainer(first, sampler, shard=shard).run([Schedule(**{**vars(STAGES[0]), "steps": 1})])
    Trainer(whole, sampler, shard=shard, folder=place / "runs").run(STAGES)
    torch.save({"first": first.state_dict(), "whole": whole.state_dict()}, place / f"{shard.rank}.pt")
