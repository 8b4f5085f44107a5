"""Every example runs on a tiny clip. Large networks have the stand-ins of `doc_stages`, with their arguments."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from doc_stages import everywhere
from torch import Tensor, nn

import vqc
from vqc import models, pipeline
from vqc.video import write

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Between(nn.Module):
    """Stands for RIFE: two frames -> the one between."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 3, 1)

    def forward(self, img0: Tensor, img1: Tensor) -> Tensor:
        return self.mix(torch.cat((img0, img1), 1)).sigmoid()


class Larger(nn.Module):
    """Stands for SRVGG: a frame -> one four times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.up(self.look(x).relu()), 4) + nn.functional.interpolate(
            x, scale_factor=4.0
        )


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with clips, stand-ins, and passes that are forgotten afterwards."""
    everywhere(tmp_path, monkeypatch, {})
    torch.manual_seed(0)
    monkeypatch.setattr(models, "load_rife", lambda: Between().eval())
    monkeypatch.setattr(models, "load_srvgg", lambda: Larger().eval())
    monkeypatch.setattr(pipeline, "REGISTRY", pipeline.passes())
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, before)


def play(patch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run an example as `python examples/NAME ARGUMENTS` does."""
    patch.setattr(sys, "argv", [name, *arguments])
    patch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_matting(stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    play(monkeypatch, "matting.py", "talk.mp4", "other.mp4", "out.mp4")
    assert vqc.video.read_clip(stage / "out.mp4").shape == (48, 3, 288, 512)
    assert "0 fallbacks" in (said := capsys.readouterr().out) and "48 frames, " in said


def test_matting_is_stopped_while_a_frame_is_written(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def interrupted(image: Tensor) -> Tensor:
        seen.append(image)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return to_bytes(image)

    to_bytes, compile_it = write.to_bytes, vqc.compile
    monkeypatch.setattr(write, "to_bytes", interrupted)
    monkeypatch.setattr(vqc, "apply", lambda program, *_, **__: program)  # what is played is of no matter here
    monkeypatch.setattr(vqc, "compile", lambda program, target: compile_it(program, "reference"))
    play(monkeypatch, "matting.py", "talk.mp4", "other.mp4", "out.mp4")
    assert len(vqc.video.read_clip(stage / "out.mp4")) == 3


def test_interpolation(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vqc.video.write_video(stage / "short.mp4", vqc.video.read_clip(stage / "talk.mp4", frames=4), 12)
    play(monkeypatch, "interpolate.py", "short.mp4", "other.mp4", "out.mp4")
    assert vqc.video.read_clip(stage / "out.mp4").shape == (7, 3, 288, 512)
    assert vqc.video.frame_rate(stage / "out.mp4") == 24


def test_torch_compile(stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    play(monkeypatch, "torch_compile.py", "talk.mp4")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("None PSNR") and second.startswith("int8 PSNR")
    assert float(first.split()[-2]) > 100 and 30 < float(second.split()[-2]) < 100


def test_a_network_of_ones_own(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, "own_network.py")
    assert "state mean" in (said := capsys.readouterr().out) and "vqc.qconv2d" in said


def test_convlstm(stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    play(monkeypatch, "convlstm.py", "talk.mp4")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["0", "1", "2", "4", "8", "16", "32"]
    assert all(float(value.split()[-1]) > 25 for line in lines[:-1] for value in line.split(":")[1].split(","))
    assert [s.name for s in vqc.load(stage / "predict.vqc").states] == ["h", "c"]


def test_a_pass_of_ones_own(stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    play(monkeypatch, "own_pass.py")
    said = capsys.readouterr().out
    assert "open-relu6{margin=1.5}: relu6 x1" in said and "its input came to " in said


def test_camera(stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    play(monkeypatch, "camera.py", "out/camera")
    worst = capsys.readouterr().out.splitlines()[-1]
    assert worst.startswith("largest difference") and float(worst.split()[-3]) <= 1


def test_c_in_a_program_in_cpp(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    model, example = runpy.run_path(str(EXAMPLES / "own_network.py"))["make"]()
    clip = torch.randint(0, 256, (4, 3, 64, 96), dtype=torch.uint8)
    program = vqc.capture(model, example, known_ranges={"frame": (0, 1)})
    program = vqc.apply(program, "int8", calibration=clip / 255)
    net = vqc.export(program, stage / "net", "portable")
    for command in (["cmake", "-S", EXAMPLES / "cpp", "-B", "build", f"-DNET={net}"], ["cmake", "--build", "build"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    raw = clip.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    shown = subprocess.run(["build/denoise_app", net], input=raw, capture_output=True, check=True).stdout
    stream = vqc.Stream(vqc.compile(program, "reference"))
    found = torch.frombuffer(bytearray(shown), dtype=torch.uint8).view(4, 64, 96, 3).permute(0, 3, 1, 2)
    for frame, picture in zip(clip, found, strict=True):
        assert (stream(frame[None] / 255)[0] * 255 - picture).abs().max() <= 0.51
    lost = subprocess.run(["build/denoise_app", stage], capture_output=True, text=True)
    assert lost.returncode == 1 and "cannot read" in lost.stderr


def test_every_example_is_on_the_page() -> None:
    page = (ROOT / "docs" / "howto" / "examples.md").read_text()
    assert all(f"examples/{p.name}" in page for p in EXAMPLES.iterdir() if p.name != "__pycache__")
