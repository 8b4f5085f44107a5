"""`vqc apply` writes a file, and every command takes it where a network is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import make_place
from cli_helpers import vqc as run_vqc

from vqc import files
from vqc import load as load_file


def vqc(*args: str | Path, code: int = 0) -> str:
    return " ".join(run_vqc(*args, code=code).split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nets.py, the clip a.mp4 of six frames, and m.vqc: the network in 8 bits."""
    folder = make_place(tmp_path_factory.mktemp("stored"), clips=("a",))
    said = vqc("apply", f"{folder}/nets.py:matting", "--recipe", "int8-all", "--calibration", folder / "a.mp4",
               "--calibration-frames", "6",
               "-o", folder / "m.vqc")  # fmt: skip
    assert f"wrote {folder}/m.vqc" in said
    return folder


def test_a_file_knows_what_made_it(place: Path) -> None:
    said = files.about(place / "m.vqc")
    assert said["recipe"] == "int8-all" and said["network"]["picture"] == 1
    assert said["calibration"]["names"] == ["a.mp4"] and said["calibration"]["steps"] == 6
    assert "speeds" not in said["calibration"]
    shown = vqc("inspect", place / "m.vqc", "--target", "none")
    assert "recipe: int8-all" in shown and "calibrated on 6 steps of a.mp4" in shown and "quantize" in shown


def test_compare_and_run_play_a_file_as_it_is(place: Path, tmp_path: Path) -> None:
    shown = vqc("compare", place / "m.vqc", place / "a.mp4", "--target", "portable", "--frames", "6")
    assert "vqc portable, as stored beside PyTorch, the file's program" in shown
    assert "compared with the file's own program" in shown
    assert "drift" in shown
    vqc("run", place / "m.vqc", place / "a.mp4", "--target", "reference", "--frames", "3", "-o", tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".md", ".mp4", ".png"]


def test_a_quantized_file_has_nothing_to_report_on(place: Path) -> None:
    """Its float self is not in it: a report would call integer layers float and find no difference."""
    call = ["report", place / "m.vqc", place / "a.mp4", "--recipe", "float", "--frames", "3"]
    assert "is quantized already" in vqc(*call, code=2)


def test_a_recipe_goes_on_top(place: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.vqc"
    vqc("apply", f"{place}/nets.py:matting", "--recipe", "canonicalize", "-o", plain)
    vqc("apply", plain, "--recipe", "int8-all", "--calibration", place / "a.mp4", "--calibration-frames", "6",
        "-o", tmp_path / "m.vqc")  # fmt: skip
    assert files.about(tmp_path / "m.vqc")["recipe"] == "canonicalize,int8-all"
    assert str(load_file(tmp_path / "m.vqc")) == str(load_file(place / "m.vqc"))


def test_export_is_the_same_with_and_without_a_file(place: Path, tmp_path: Path) -> None:
    vqc("export", place / "m.vqc", "--target", "portable", "-o", tmp_path / "file")
    vqc("export", f"{place}/nets.py:matting", "--recipe", "int8-all", "--calibration", place / "a.mp4",
        "--calibration-frames", "6", "--target",
        "portable", "-o", tmp_path / "network")  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "file").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "network").iterdir())
    for name in names:
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "network" / name).read_bytes(), name


def test_what_is_wrong_is_told(place: Path, tmp_path: Path) -> None:
    assert "captured at 16x24" in vqc("inspect", place / "m.vqc", "--size", "32x48", code=2)
    assert "file ends in .vqc" in vqc("apply", f"{place}/nets.py:matting", "-o", tmp_path / "m.onnx", code=2)
    damaged = tmp_path / "d.vqc"
    damaged.write_bytes((place / "m.vqc").read_bytes()[:-3])
    assert "truncated" in vqc("bench", damaged, code=1)


def test_a_file_is_made_of_clips_at_several_speeds(place: Path, tmp_path: Path) -> None:
    network, out = f"{place}/nets.py:matting", tmp_path / "fast.vqc"
    given = ("apply", network, "--calibration", place / "a.mp4", "-o", out)
    vqc(*given, "--recipe", "fold-bn,observe{clips=1},quantize,lower-integer", "--calibration-speeds", "1,2",
        "--calibration-frames", "6")  # fmt: skip
    known = files.about(out)["calibration"]
    assert known["steps"] == 6 and known["speeds"] == [1, 2]  # three of every frame, three of every second
    assert "calibrated on 6 steps of a.mp4 at speeds 1, 2" in vqc("inspect", out, "--target", "none")
    again = tmp_path / "again.vqc"
    vqc("apply", out, "--recipe", "canonicalize", "-o", again)  # without clips: those of the file before
    assert files.about(again)["calibration"] == known
    observed = next(r for r in load_file(out).history if r.name.startswith("observe"))
    assert observed.notes[0] == "3 frames of 1 clips, state carried, reset before each clip"
    short = vqc(*given, "--recipe", "int8", "--calibration-speeds", "1,8", "--calibration-frames", "6", code=1)
    assert "6 frames of a calibration clip are too few at 8 times its speed" in short
    assert "use --calibration-frames 9 or more, or lower --calibration-speeds" in short
    assert "speeds cannot be '1,x'" in vqc(*given, "--recipe", "int8", "--calibration-speeds", "1,x", code=2)
