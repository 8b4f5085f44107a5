"""Several processes: the same observations to the bit, gradients of the whole batch, failures that nobody misses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import CASES, clips, learned, observed, reconstructed, recurrent
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import vqc
from vqc import distributed, video
from vqc.calibration import Stretch, as_clips, rollout
from vqc.calibration.deal import CARRIED, cuts, deal
from vqc.cli import app
from vqc.distributed import Shard
from vqc.errors import CalibrationError, DistributedError

HERE = Path(__file__).resolve().parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = Shard()

NET = """
import torch
from torch import nn

class Matting(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, src, r=None):
        y = torch.relu(self.mid(torch.relu(self.conv(src))))
        r = 0.5 * y if r is None else 0.5 * r + 0.5 * y
        return torch.sigmoid(self.head(r)), r

def matting():
    return Matting(), torch.rand(1, 3, 16, 24), {"r": 1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets.py and two clips of five frames."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "nets.py").write_text(NET)
    g = torch.Generator().manual_seed(0)
    for name in "ab":
        video.write_video(folder / f"{name}.mp4", [torch.rand(3, 16, 24, generator=g) for _ in range(5)], 12)
    return folder


def export(place: Path, into: str) -> list[str]:
    return ["export", f"{place}/nets.py:matting", "--recipe", "int8", "--target", "portable", "--calibration",
            f"{place}/a.mp4,{place}/b.mp4", "--calibration-frames", "5", "-o", f"{place}/{into}"]  # fmt: skip


@pytest.fixture(scope="module")
def worker(place: Path) -> subprocess.CompletedProcess[str]:
    """distributed_worker.py, run by two processes of one thread."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    script = [str(HERE / "distributed_worker.py"), str(place), *export(place, "two")]
    return subprocess.run([*TORCHRUN, *script], capture_output=True, text=True, env=env, timeout=120)


@pytest.fixture(scope="module")
def found(place: Path, worker: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each of the two found."""
    assert (place / "1.json").exists(), worker.stderr
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]


# ---- two processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_two_processes_observe_what_one_does(found: list[dict[str, Any]], case: str) -> None:
    alone = observed(case, ALONE)
    assert '"counts":[' in alone
    assert found[0]["observed"][case] == alone
    assert found[1]["observed"][case] == alone


@pytest.mark.parametrize("number, samples", [(0, 5), (1, 1)])
def test_averaged_gradients_are_those_of_the_whole_batch(found: list[dict[str, Any]], number: int, samples: int):
    alone = learned(ALONE, samples)
    both = [f["learned"][number] for f in found]
    assert both[0] == both[1]
    for name in ("weight", "bias", "loss"):
        torch.testing.assert_close(torch.tensor(both[0][name]), torch.tensor(alone[name]), rtol=1e-6, atol=1e-7)
    assert both[0]["unused"] is None
    held = len(Shard(0, 2).share(range(samples)))  # late is in the first process's loss alone, held times
    assert both[0]["late"] == pytest.approx([held * held / samples] * 3)


def test_two_processes_reconstruct_what_one_does(found: list[dict[str, Any]]) -> None:
    """The pass manager compares the two; one alone draws the same windows, and its sums differ by rounding alone."""
    alone = reconstructed(ALONE)
    assert any("'block': " in text for text in alone)
    assert found[0]["reconstructed"] == found[1]["reconstructed"] == alone


def test_refusals_reach_every_process(found: list[dict[str, Any]]) -> None:
    for rank, f in enumerate(found):
        said = f["refused"]
        assert said["too few frames"].startswith("CalibrationError: 1 frames of calibration cannot be shared by 2")
        assert f"processes {rank} and {1 - rank} have different programs after the test" in said["different constants"]
        assert "where: constant w1\n" in said["different constants"]


def test_the_failure_of_one_is_the_failure_of_all(worker: subprocess.CompletedProcess[str], found: list[Any]) -> None:
    assert worker.returncode != 0
    assert "log holds NaN or infinity during calibration" in worker.stderr
    assert found[1]["failed"].startswith("CalibrationError: log holds NaN")
    assert found[0]["failed"].startswith("DistributedError: process 0 of 2 lost the others while merging observers")
    assert "why: process 1: observe: log holds NaN or infinity" in found[0]["failed"]


def test_a_command_by_two_processes_writes_what_one_writes(place: Path, found: list[dict[str, Any]]) -> None:
    first, second = (f["command"] for f in found)
    alone = CliRunner().invoke(app, export(place, "one"))
    assert (alone.exit_code, first["code"], second["code"]) == (0, 0, 0), (alone.output, first["err"], second["err"])
    assert first["out"] == alone.stdout.replace(f"{place}/one", f"{place}/two")
    assert "observe: 5 of 5" in first["err"] and "observe: 10 of 10" in alone.stderr
    assert second == {"code": 0, "out": "", "err": ""}
    files = {p.relative_to(place / "one"): p.read_bytes() for p in (place / "one").rglob("*.*")}
    assert len(files) > 5
    for name, content in files.items():
        assert (place / "two" / name).read_bytes() == content, name


# ---- what each does ------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 8), st.booleans())
def test_every_frame_is_dealt_once(lengths: list[int], world: int, recurrent: bool) -> None:
    if sum(lengths) < world:
        return
    dealt = deal(lengths, world, recurrent)
    assert len(dealt) == world and all(dealt)
    frames = [(s.clip, t) for mine in dealt for s in mine for t in range(s.first, s.last)]
    assert sorted(frames) == [(c, t) for c, n in enumerate(lengths) for t in range(n)]
    if recurrent and len(lengths) >= world:
        assert all(s.first == 0 and s.last == lengths[s.clip] for mine in dealt for s in mine)
    if not recurrent:
        counts = [sum(s.last - s.first for s in mine) for mine in dealt]
        assert max(counts) - min(counts) <= 1


def test_a_clip_is_cut_where_both_are_done_at_once() -> None:
    for length, parts in ((48, 2), (100, 3), (256, 8)):
        bounds = cuts(length, parts)
        costs = [CARRIED * a + b - a for a, b in zip(bounds, bounds[1:], strict=False)]
        assert max(costs) - min(costs) <= 2
    assert cuts(48, 2) == [0, 34, 48]
    assert deal([4, 48], 3, True) == [(Stretch(0, 0, 4),), (Stretch(1, 0, 34),), (Stretch(1, 34, 48),)]
    assert [len(mine) for mine in deal([9, 3, 3, 3], 2, True)] == [1, 3]


def test_carried_frames_leave_the_bits_of_later_ones_alone() -> None:
    program, data = recurrent(), as_clips(clips(7), recurrent())
    whole: dict[tuple[str, int], torch.Tensor] = {}
    part: dict[tuple[str, int], torch.Tensor] = {}
    rollout(program, data, lambda n, v, t: whole.__setitem__((n.name, t), v.clone()))
    told: list[tuple[int, int]] = []
    rollout(program, data, lambda n, v, t: part.__setitem__((n.name, t), v.clone()),
            lambda done, total: told.append((done, total)), [Stretch(0, 4, 6)])  # fmt: skip
    assert {t for _, t in part} == {4, 5} and told[-1] == (6, 6)
    assert all(torch.equal(v, whole[key]) for key, v in part.items())


def test_more_processes_than_frames() -> None:
    with pytest.raises(CalibrationError, match="5 frames of calibration cannot be shared by 6 processes"):
        Shard(0, 6).shard_clips(as_clips(clips(2, 3), recurrent()), True)


# ---- the group -----------------------------------------------------------------------------------------------------


def test_the_place_of_a_process_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.current() == Shard(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert distributed.current() == Shard(2, 3) and not distributed.current().first
    for rank in ("3", "-1", "two"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(DistributedError, match="names no process of a group"):
            distributed.current()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1"), ("VQC_DISTRIBUTED_TIMEOUT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"process 1 of 2 cannot find the others\n  where: 127.0.0.1:1\n"):
        vqc.apply(recurrent(), "canonicalize", shard=Shard(1, 2))
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(DistributedError, match=r"MASTER_ADDR[\s\S]*way out: start all of them with torchrun"):
        Shard(1, 2).gather(b"")


@pytest.mark.parametrize("gpus, local, chosen", [(0, 2, "gloo"), (1, 2, "gloo"), (2, 2, "cpu:gloo,cuda:nccl")])
def test_nccl_where_every_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int, local: int, chosen: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert distributed.backend() == chosen


def test_a_world_of_one_starts_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, 2.0])
    ALONE.average([p], weight=0)
    ALONE.check_equal(recurrent(), "nothing")
    assert p.grad.tolist() == [1.0, 2.0] and ALONE.mean(3.0, 0) == 3.0 and ALONE.gather(b"x") == [b"x"]
    assert not torch.distributed.is_initialized()
