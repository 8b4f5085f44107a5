"""vqc report on a tiny network and a tiny clip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vqc import video
from vqc.cli import app
from vqc.report.quantization import QuantizationReport

MODEL = '''
import torch
from torch import nn

class Matting(nn.Module):
    """A 4-channel recurrent network: (colours, matte, state)."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, src, r=None):
        y = torch.relu(self.conv(src))
        r = 0.5 * y if r is None else 0.5 * r + 0.5 * y
        return src * 1.5, torch.sigmoid(self.head(r)), r

def matting():
    return Matting(), torch.rand(1, 3, 16, 24), {"r": 2}, 1
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "nets.py").write_text(MODEL)
    g = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        base = torch.rand(3, 16, 24, generator=g)
        video.write_video(folder / f"{name}.mp4", [(base * (0.5 + t / 12)).clamp(0, 1) for t in range(4)], 12)
    return folder


def vqc(*args: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["report", *(str(a) for a in args)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code == 0 else result.output


def common(place: Path) -> list[str | Path]:
    return [f"{place}/nets.py:matting", place / "a.mp4", "--recipe", "int8-all", "--calibration", place / "b.mp4",
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


@pytest.mark.parametrize(
    ("args", "pieces"),
    [
        (["--recipe", "int8"], ["needs a calibration clip"]),
        (["--recipe", "int9000"], ["no pass called 'int9000'"]),
        (["--recipe", "float", "--target", "toaster"], ["no target called 'toaster'"]),
        (["--recipe", "float", "--frames", "99"], ["99"]),
        (["--recipe", "float", "-o", "{p}/nets.py/x.html"], ["nothing can be written into"]),
    ],
)
def test_misuse(place: Path, args: list[str], pieces: list[str]) -> None:
    said = vqc(f"{place}/nets.py:matting", place / "a.mp4", *(a.format(p=place) for a in args), code=2)
    for piece in ("error:", *pieces):
        assert piece in said, (piece, said)
    assert "Traceback" not in said
