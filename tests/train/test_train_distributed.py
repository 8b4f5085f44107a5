"""Training by two processes: the mean of both gradients is learned from, and both end with the same network."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_worker import STAGES, net, sampler

from vqc.train.loop import Trainer

HERE = Path(__file__).resolve().parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
Found = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def found(place: Path) -> Found:
    """What each of the two processes ended with."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, str(HERE / "training_worker.py"), str(place)], capture_output=True, text=True,
                          env=env, timeout=120)  # fmt: skip
    assert (place / "1.pt").exists(), done.stderr
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("what", ["first", "whole"])
def test_both_processes_end_with_the_same_bits(found: Found, what: str) -> None:
    for key, value in found[0][what].items():
        assert torch.equal(value, found[1][what][key]), key


def test_one_file_is_kept_for_a_stage(found: Found, place: Path) -> None:
    assert len(list((place / "runs").glob("train-*"))) == len(STAGES)


def test_a_step_is_adams_on_the_mean_gradient(found: Found) -> None:
    """One step, done here by hand: each process's samples alone, then the mean of their gradients and statistics."""
    stage = replace(STAGES[0], steps=1)
    gradients, buffers, losses = [], [], []
    for rank in (0, 1):
        one = net().train()
        trainer = Trainer(one, sampler)
        sample = sampler(stage.frames, stage.size).batch(0, rank * stage.batch, stage.batch)
        terms, _ = trainer._loss(stage, sample, (None,) * 4)
        terms["total"].backward()
        losses.append(float(terms["total"].detach()))
        gradients.append({k: p.grad for k, p in one.named_parameters() if p.grad is not None})
        buffers.append(dict(one.named_buffers()))
    assert losses[0] != losses[1]  # the processes see different clips
    want = net().train()
    trainer = Trainer(want, sampler)
    optimizer = torch.optim.Adam(trainer._groups(stage), betas=(0.9, 0.99))
    trainer._set_rate(optimizer, stage, 0)
    for key, p in want.named_parameters():
        if key in gradients[0]:
            p.grad = (gradients[0][key] + gradients[1][key]) / 2
    nn.utils.clip_grad_norm_(want.parameters(), stage.clip_norm)
    optimizer.step()
    mine = found[0]["first"]
    for key, p in want.named_parameters():
        assert torch.allclose(mine[key], p, atol=2e-6), key
    for key, value in buffers[0].items():
        if value.is_floating_point() and key in mine:  # the means of colours are no part of a state dict
            assert torch.allclose(mine[key], (value + buffers[1][key]) / 2, atol=1e-5), key
