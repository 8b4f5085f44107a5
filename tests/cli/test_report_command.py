"""vqc report on a tiny network and a tiny clip."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import make_place
from typer.testing import CliRunner

from vqc.cli import app
from vqc.report.quantization import QuantizationReport


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("report"), frames=4)


def vqc(*args: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["report", *(str(a) for a in args)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code == 0 else result.output


def common(place: Path) -> list[str | Path]:
    return [f"{place}/nets.py:bright", place / "a.mp4", "--recipe", "int8-all", "--calibration", place / "b.mp4",
            "--calibration-frames", "3", "--frames", "3"]  # fmt: skip


def test_text_page_and_json(place: Path, tmp_path: Path) -> None:
    said = vqc(*common(place), "-o", tmp_path / "deep" / "out.html")
    for piece in (
        "Is the picture the same?",
        "Which layer does it?",
        "drift since reset",
        "quantizers that cut off most",
        "no result falls under 20 dB",
        "wrote ",
    ):
        assert piece in said, piece
    made = (tmp_path / "deep" / "out.html").read_text()
    assert str(place) not in made and str(tmp_path) not in made and "clip a" in made and "calibrated on b" in made
    report = QuantizationReport.from_json(vqc(*common(place), "--json"))
    assert report.frames == 3 and report.picture == "result out_1"  # what the factory says is judged, not the first
    assert [x.weight_bits for x in report.layers] == ["8", "8"] and report.target == ""


def test_bisect_alone(place: Path, tmp_path: Path) -> None:
    said = vqc(*common(place), "--bisect", "--bound", "90")
    assert "first under 90 dB: after pass quantize{tail=quantized,displacements=quantized}, in frame 0" in said
    assert "programs run to find it: " in said and "Which layer" not in said
    assert "--bisect writes no page" in vqc(*common(place), "--bisect", "-o", tmp_path / "out.html", code=2)


@pytest.mark.parametrize(
    ("code", "args", "pieces"),
    [
        (2, ["--recipe", "int8"], ["needs a calibration clip"]),
        (2, ["--recipe", "int9000"], ["no pass called 'int9000'"]),
        (2, ["--recipe", "float", "--target", "toaster"], ["no target called 'toaster'"]),
        (1, ["--recipe", "float", "--frames", "99"], ["99"]),
        (1, ["--recipe", "float", "-o", "{p}/nets.py/x.html"], ["nothing can be written into"]),
    ],
)
def test_what_is_wrong(place: Path, code: int, args: list[str], pieces: list[str]) -> None:
    said = vqc(f"{place}/nets.py:bright", place / "a.mp4", *(a.format(p=place) for a in args), code=code)
    for piece in ("error:", *pieces):
        assert piece in said, (piece, said)
    assert "Traceback" not in said
