"""Clips that are missing or too short: told at once, by the name of the option to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import make_place, vqc

from vqc.backends.c import build

PAIRS = """
import torch
from torch import nn

class Between(nn.Module):
    def forward(self, a, b):
        return (a + b) / 2

def pair():
    return Between(), (torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24))
"""
LEARN = ["--recipe", "int8-all", "--calibration", "{b}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nets.py, pairs.py with a network that takes two frames, clips a.mp4 and b.mp4 of six frames."""
    folder = make_place(tmp_path_factory.mktemp("inputs"))
    (folder / "pairs.py").write_text(PAIRS)
    return folder


def said_of(place: Path, out: Path, args: list[str], code: int) -> str:
    names = {"m": f"{place}/nets.py:matting", "pair": f"{place}/pairs.py:pair", "broken": f"{place}/nets.py:broken",
             "a": place / "a.mp4", "b": place / "b.mp4", "none": place / "none.mp4", "py": place / "nets.py",
             "out": out}  # fmt: skip
    return " ".join(vqc(*(a.format(**names) for a in args), code=code).split())


@pytest.mark.parametrize("bad", ["{none}", "{py}"])
@pytest.mark.parametrize(
    "args",
    [
        ["bench", "{broken}", "--clip", "BAD"],
        ["bench", "{broken}", "--calibration", "BAD"],
        ["compare", "{broken}", "BAD"],
        ["compare", "{broken}", "{a}", "--calibration", "{b},BAD"],
        ["report", "{broken}", "BAD", "--calibration", "{b}"],
        ["report", "{broken}", "{a}", "--calibration", "BAD"],
        ["run", "{broken}", "{a}", "--calibration", "BAD", "-o", "{out}"],
        ["apply", "{broken}", "--calibration", "BAD", "-o", "{out}/n.vqc"],
        ["compile", "{broken}", "--calibration", "BAD"],
        ["inspect", "{broken}", "--calibration", "BAD"],
        ["export", "{broken}", "--calibration", "BAD", "--target", "onnx", "-o", "{out}/n"],
    ],
)  # fmt: skip
def test_a_clip_that_cannot_be_read_is_told_before_the_network_is_made(
    place: Path, tmp_path: Path, args: list[str], bad: str
) -> None:
    said = said_of(place, tmp_path, [a.replace("BAD", bad) for a in args], 1)
    assert "error: the clip cannot be read" in said and bad.strip("{}").replace("py", "nets") in said
    assert "no weights today" not in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "args", "pieces"),
    [
        (1, ["run", "{m}", "{a}", "--frames", "5", "--start", "4", "-o", "{out}"],
         ["use --frames 2 or fewer, or an earlier --start"]),
        (1, ["run", "{m}", "{a}", "--start", "9", "-o", "{out}"], ["give a longer clip, or an earlier --start"]),
        (1, ["run", "{pair}", "{a}", "--frames", "1", "-o", "{out}"], ["too few", "use --frames 2 or more"]),
        (1, ["compare", "{m}", "{a}", "--frames", "7"], ["7 frames", "6 are there", "use --frames 6 or fewer"]),
        (1, ["compare", "{pair}", "{a}", "--frames", "1"], ["looks at 2 frames", "use --frames 2 or more"]),
        (1, ["compare", "{pair}", "{a}", "--start", "5", "--frames", "0"], ["1 are there", "an earlier --start"]),
        (1, ["compare", "{m}", "{a}", "--frames", "6", *LEARN, "--calibration-frames", "7"],
         ["use --calibration-frames 6 or fewer"]),
        (1, ["report", "{m}", "{a}", *LEARN, "--calibration-frames", "5", "--frames", "7"],
         ["use --frames 6 or fewer"]),
        (1, ["report", "{pair}", "{a}", *LEARN, "--calibration-frames", "5", "--frames", "6"],
         ["7 frames", "use --frames 5 or fewer"]),
        (1, ["bench", "{pair}", "--clip", "{a}", "--frames", "6"], ["6 are there", "use --frames 5 or fewer"]),
        (1, ["apply", "{m}", *LEARN, "-o", "{out}/n.vqc"], ["48 frames", "use --calibration-frames 6 or fewer"]),
        (1, ["apply", "{pair}", *LEARN, "--calibration-frames", "1", "-o", "{out}/n.vqc"],
         ["looks at 2 frames", "use --calibration-frames 2 or more"]),
        (1, ["apply", "{pair}", *LEARN, "--calibration-frames", "5", "--calibration-speeds", "1,5",
             "-o", "{out}/n.vqc"], ["use --calibration-frames 6 or more, or lower --calibration-speeds"]),
        (1, ["apply", "{m}", *LEARN, "--calibration-frames", "12", "--calibration-speeds", "1,8",
             "-o", "{out}/n.vqc"], ["6 are there", "give a longer clip"]),
        (2, ["export", "{broken}", "--target", "inductor"], ["target inductor cannot be exported", "vqc apply"]),
        (2, ["compile", "{broken}", "--target", "pt2"], ["target pt2 cannot run programs here", "vqc export"]),
    ],
)  # fmt: skip
def test_too_few_frames_are_told_by_the_option_to_change(
    place: Path, tmp_path: Path, code: int, args: list[str], pieces: list[str]
) -> None:
    said = said_of(place, tmp_path, args, code)
    for piece in ("error:", *pieces):
        assert piece in said, (piece, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ["apply", "{pair}", *LEARN, "--calibration-frames", "6", "--calibration-speeds", "1,5", "-o", "{out}/n.vqc"],
        ["bench", "{pair}", "--clip", "{a}", "--frames", "5", "--target", "reference"],
        ["compare", "{pair}", "{a}", "--frames", "2", "--target", "reference"],
    ],
)  # fmt: skip
def test_what_the_messages_advise_is_enough(place: Path, tmp_path: Path, args: list[str]) -> None:
    assert "error" not in said_of(place, tmp_path, args, 0)


def test_bench_reads_its_clip_before_the_recipe(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqc.api.Pipeline.run", lambda *_: 1 / 0)
    args = ["bench", "{m}", "--clip", "{a}", "--frames", "7", *LEARN, "--calibration-frames", "6"]
    assert "use --frames 6 or fewer" in said_of(place, tmp_path, args, 1)


def test_the_demo_knows_how_long_its_clips_are(place: Path, tmp_path: Path) -> None:
    for option in ("--frames", "--calibration-frames"):
        assert option in vqc("demo", option, "473", "-o", tmp_path / "out", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ["run", "{broken}", "{a}", "-o", "{out}"],
        ["compare", "{broken}", "{a}"],
        ["report", "{broken}", "{a}"],
        ["bench", "{broken}"],
        ["compile", "{broken}"],
        ["inspect", "{broken}"],
    ],
    ids=lambda args: args[0],
)
def test_a_missing_compiler_is_told_before_the_network_is_made(
    place: Path, tmp_path: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a compiler is named that is none, or nothing is there; the network itself would raise."""
    calibrated = ["--recipe", "int8", "--calibration", "{b}"]
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    said = said_of(place, tmp_path, [*args, *calibrated, "--target", "x86-64-v2"], 1)
    assert "does not run" in said and "way out: set option cc or the variable CC" in said
    monkeypatch.delenv("CC")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    said = said_of(place, tmp_path, [*args, *calibrated, "--target", "native"], 1)
    assert "there is no C compiler" in said and "way out: pip install vqc[compiler]" in said


def test_what_only_writes_files_needs_no_compiler(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    assert "README.txt says how to build" in said_of(place, tmp_path, ["export", "{m}", "-o", "{out}/c"], 0)
    assert "wrote " in said_of(place, tmp_path, ["apply", "{m}", "-o", "{out}/m.vqc"], 0)
    said_of(place, tmp_path, ["compare", "{m}", "{a}", "--frames", "4", "--target", "reference"], 0)
