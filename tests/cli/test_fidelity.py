"""The fidelity benchmark: its rows, one process a row, results merged by row, its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import fidelity, fidelity_rows, fidelity_tables
from benchmarks.fidelity_rows import Row, Trial
from vqc import metrics
from vqc.pipeline import parse
from vqc.recipes import RECIPES
from vqc.report.network import Network
from vqc.report.session import eager_engine, play


class Matte(nn.Module):
    """A running mean of a matte; its state is its result."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x, r=None):
        y = torch.sigmoid(4 * self.head(torch.relu(self.conv(x))))
        y = 0.5 * y if r is None else 0.5 * y + 0.5 * r
        return y, y


@pytest.fixture
def net() -> Network:
    return Network("matte", Matte().eval(), (torch.rand(1, 3, 8, 12),), {"r": 1})


def clip(frames: int, seed: int) -> Tensor:
    return torch.rand(frames, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def test_every_calibrated_recipe_is_a_row_and_nearest_rounding_differs_in_its_options_alone() -> None:
    found = fidelity_rows.rows()
    calibrated = {n for n, r in RECIPES.items() if r.needs_calibration}
    assert {n for n, r in found.items() if r.kind == "recipe"} == {n for n in calibrated if not n.endswith("-full")}
    texts = {n: r.recipe for n, r in found.items() if r.kind == "nearest"}
    assert len(set(texts.values())) == len(texts) == 9
    for text in texts.values():
        assert str(parse(text)) == text and len(parse(text).passes) == len(parse(RECIPES["int8"].pipeline).passes)
    assert "quantize{weight_bits=4,method=mse,granularity=tensor,headroom=0.0}" in texts["nearest-mse-w4a8"]


def test_a_row_is_measured_against_float_and_against_the_truth(net: Network, tmp_path: Path) -> None:
    alpha = clip(4, 3)[:, :1]
    given = [Trial("seen", "calibration", clip(5, 1)), Trial("drawn", "drawn", clip(4, 2), alpha)]
    record = fidelity_rows.measure(
        Row("r", "recipe", "int8-all"),
        net,
        clip(5, 1),
        given,
        lambda trial: fidelity_rows.float_playback(net, trial, tmp_path),
        strips=tmp_path / "s",
        target="reference",
    )
    first, second = record["trials"]
    assert record["status"] == "ok" and record["computed_by"] == "reference" and record["peak_mb"] > 50
    assert record["calibration_steps"] == 5
    assert 0 < first["metrics"]["MAD x1e3"] < 20 and first["truth"] == {} and first["steps"] == 5
    plain = play(eager_engine(net), net, clip(4, 2)).clip
    assert second["float_truth"]["MAD x1e3"] == pytest.approx(metrics.mad(plain, alpha), abs=1e-5)
    assert 0 < abs(second["truth"]["MAD x1e3"] - second["float_truth"]["MAD x1e3"]) < 20
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"matte-r-seen.png", "matte-r-drawn.png"}


def test_the_float_network_plays_a_trial_once(net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial("a b", "held-out", clip(3, 1))
    played = fidelity_rows.float_playback(net, trial, tmp_path)
    monkeypatch.setattr(fidelity_rows, "play", lambda *_: pytest.fail("played again"))
    assert torch.equal(fidelity_rows.float_playback(net, trial, tmp_path).clip, played.clip)


def test_what_c_declines_runs_on_the_reference(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fidelity_rows.recipe_program(net, "float")
    assert fidelity_rows.compiled(program, "a", "reference").notes == []
    made = fidelity_rows.compiled(program, "a", "no-such-cpu")
    assert made.by == "reference" and "no-such-cpu" in made.notes[0]
    assert len(play(made.engine, net, clip(3, 1)).pictures) == 3


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", "failed (killed by signal 9): it said nothing"),
        ("raise ValueError('no such thing')", "failed (exit 1): ValueError: no such thing"),
        ("pass", "failed (exit 0): it said nothing"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
    ],
)
def test_a_row_that_dies_says_how(code: str, status: str, tmp_path: Path) -> None:
    assert fidelity.run([sys.executable, "-c", code], tmp_path / "a.json", 1 if "sleep" in code else 60) == {
        "status": status
    }


def test_a_row_is_done_only_when_its_process_ends_well(tmp_path: Path) -> None:
    answer = tmp_path / "a.json"
    code = f"import sys; open({str(answer)!r}, 'w').write('{{\"status\": \"ok\"}}'); sys.exit(%d)"
    assert fidelity.run([sys.executable, "-c", code % 0], answer, 60) == {"status": "ok"}
    assert fidelity.run([sys.executable, "-c", code % 3], answer, 60) == {"status": "failed (exit 3): it said nothing"}


def test_a_row_takes_its_old_place_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def run(command: list[str], answer: Path, limit: float) -> dict:
        said.append(" ".join(command[3:5]))
        return {"status": "ok", "seconds": len(said), "cpu_seconds": 1.0, "peak_mb": 1, "trials": []}

    monkeypatch.setattr(fidelity, "run", run)
    monkeypatch.setattr(fidelity, "missing", lambda row: ["torchao"] if row.name == "torchao-pt2e" else [])
    common = ["-o", str(tmp_path), "--models", "rvm"]
    fidelity.main([*common, "--only", "torchao-pt2e", "int8"])
    fidelity.main([*common, "--models", "rife", "--only", "int8"])
    fidelity.main([*common, "--only", "int8", "--pipeline", "mine=fold-bn"])
    found = json.loads((tmp_path / "fidelity.json").read_text())["results"]
    assert [(r["model"], r["row"]) for r in found] == [
        ("rvm", "int8"), ("rvm", "torchao-pt2e"), ("rvm", "mine"), ("rife", "int8"),
    ]  # fmt: skip
    assert said == ["rvm int8", "rife int8", "rvm int8", "rvm mine"] and found[0]["seconds"] == 3
    assert found[1]["status"] == "not installed: torchao" and found[2]["kind"] == "recipe"
    with pytest.raises(SystemExit):
        fidelity.arguments(["--pipeline", "int8=fold-bn"])


@pytest.mark.parametrize("how", ["scenes", "speeds"])
def test_rows_calibrated_otherwise_have_a_name_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            how: str) -> None:  # fmt: skip
    said: list[list[str]] = []
    monkeypatch.setattr(fidelity, "run", lambda command, *_: said.append(command) or {"status": "failed"})
    fidelity.main(["-o", str(tmp_path), "--models", "rvm", "--only", "int8"])
    fidelity.main(["-o", str(tmp_path), "--models", "rvm", "--only", "int8", f"--{how}"])
    found = json.loads((tmp_path / "fidelity.json").read_text())["results"]
    assert [r["row"] for r in found] == ["int8", f"int8@{how}"]
    assert [f"--{how}" in command for command in said] == [False, True]


@pytest.mark.parametrize("given", [["--scenes", "--models", "rife"], ["--scenes", "--speeds"]])
def test_scenes_are_of_people_and_not_at_speeds(given: list[str]) -> None:
    with pytest.raises(SystemExit):
        fidelity.arguments(given)


def test_quick_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "run", lambda *_: {"status": "failed"})
    monkeypatch.setattr(fidelity, "keep", lambda *_: pytest.fail("kept"))
    fidelity.main(["--quick", "--models", "rvm", "--only", "int8"])


def test_the_table() -> None:
    def trial(part: str, mad: float, truth: float | None = None, plain: float = 0) -> dict:
        known = {} if truth is None else {"MAD x1e3": truth}
        return {"clip": part[0], "part": part, "steps": 3, "metrics": {"MAD x1e3": mad, "drift dB/frame": -0.1234},
                "truth": known, "float_truth": {} if truth is None else {"MAD x1e3": plain}}  # fmt: skip

    good = {"model": "rvm", "row": "int8", "kind": "recipe", "size": "8x12", "status": "ok", "seconds": 9.0,
            "cpu_seconds": 2.4, "peak_mb": 700, "computed_by": "C, native", "weight_bytes": 4_000_000, "notes": ["why"],
            "calibration": "c", "trials": [trial("held-out", 0.5), trial("calibration", 0.25), trial("drawn", 1, 6, 5),
                                           trial("drawn", 1, 9, 5)]}  # fmt: skip
    bad = {"model": "rvm", "row": "x", "kind": "peer", "status": "not installed: x"}
    text = fidelity_tables.network("rvm", [good, bad])
    assert "| `int8` | recipe | 3 | 0.50 | -0.123 | 0.25 | 7.50 (+50.0 %) | 2 | 700 | 4.00 |" in text
    assert "- `x`: not installed: x." in text and "drawn: `d` (float itself: 5.00 MAD x1e3)" in text
    assert "- Computed by C, native: `int8`." in text and "- `int8`: 1 fell back: why" in text
    pictures = good | {"model": "rife", "trials": [{
        "clip": "b", "part": "held-out", "steps": 2, "metrics": {"PSNR dB": None},
        "truth": {"PSNR dB to the real frame": 30.0}, "float_truth": {"PSNR dB to the real frame": 30.5},
    }]}  # fmt: skip
    assert "| `int8` | recipe | 2 | equal | 30.00 (-0.50) | 2 | 700 | 4.00 |" in fidelity_tables.network(
        "rife", [pictures]
    )
    assert "Not measured yet" in fidelity_tables.page([])
