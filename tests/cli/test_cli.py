"""The commands on a tiny network and a tiny clip, and what they say when they are misused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import make_place, vqc
from typer.testing import CliRunner

from vqc import video
from vqc.backends import TARGETS
from vqc.cli import app
from vqc.errors import PipelineError
from vqc.learning.block import BlockLearner
from vqc.recipes import RECIPES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets.py, and clips a.mp4 and b.mp4 of six frames, 16x24."""
    return make_place(tmp_path_factory.mktemp("cli"))


def test_run_writes_a_video_a_strip_and_a_table(place: Path, tmp_path: Path) -> None:
    said = vqc("run", f"{place}/nets.py:matting", place / "a.mp4", "--recipe", "int8", "--calibration", place / "b.mp4",
               "--calibration-frames", "4", "--target", "reference", "--frames", "5",
               "-o", tmp_path / "out")  # fmt: skip
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["matting-a-strip.png", "matting-a-table.md", "matting-a.json", "matting-a.mp4"]
    assert video.read_clip(tmp_path / "out" / "matting-a.mp4").shape == (5, 3, 16, 24)
    table = (tmp_path / "out" / "matting-a-table.md").read_text()
    assert table.splitlines()[0].startswith("| engine | MAD x1e3 |")
    assert "vqc reference, int8" in table and "vqc reference, int8" in said
    assert "Traceback" not in said


def test_compare_of_the_float_recipe_finds_no_difference(place: Path) -> None:
    said = vqc("compare", f"{place}/nets.py:matting", place / "a.mp4", "--target", "reference", "--frames", "4")
    cells = [line for line in said.splitlines() if "vqc reference, float" in line][-1].split("│")
    assert float(cells[3]) < 1e-3, said  # MAD x1e3
    assert "drift: SQNR changes by" in said


def test_compare_judges_a_picture_by_psnr(place: Path) -> None:
    said = vqc("compare", f"{place}/nets.py:picture", place / "a.mp4", "--size", "16x24", "--frames", "3",
               "--recipe", "int8-all", "--calibration", place / "b.mp4", "--calibration-frames", "3",
               "--target", "reference")  # fmt: skip
    assert "PSNR dB" in said and "SSIM" in said and "MAD" not in said


def test_inspect_shows_states_history_text_and_kernels(place: Path) -> None:
    said = vqc("inspect", f"{place}/nets.py:matting", "--target", "reference", "--text")
    for piece in (
        "state r ",
        "input src",
        "fold-bn: ",
        "program ",
        "eager aten.conv2d",
        "reference for reference",
        "M multiply-adds",
    ):
        assert piece in said, piece


def test_a_killed_learning_pass_goes_on_where_it_was(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:  # fmt: skip
    recipe = "fold-bn,observe,quantize{tail=quantized,weight_bits=3},reconstruct{iterations=4,method=adaround}"
    work = tmp_path / "work"
    common = [f"{place}/nets.py:matting", "--recipe", recipe, "--calibration", place / "b.mp4",
              "--calibration-frames", "5", "--workdir", work]  # fmt: skip
    learned: list[str] = []
    learn = BlockLearner.learn
    killed = True

    def watched(self: BlockLearner, *args: Any) -> bool:
        if killed and learned:
            raise KeyboardInterrupt
        learned.append(self.block.name)
        return learn(self, *args)

    monkeypatch.setattr(BlockLearner, "learn", watched)
    vqc("inspect", *common, "--target", "none", code=130)  # after the first block
    assert learned == ["conv2d"] and [p.suffix for p in work.iterdir()] == [".safetensors"]
    killed = False
    vqc("inspect", *common, "--target", "none")
    assert learned == ["conv2d", "conv2d_1"]  # the first block not again
    played = [common[0], place / "a.mp4", *common[1:], "--frames", "2"]
    vqc("report", *played)
    vqc("report", *played, "--bisect")
    vqc("run", *played, "--target", "reference", "-o", tmp_path / "out")
    vqc("compare", *played, "--target", "reference")
    vqc("bench", *common, "--target", "reference", "--frames", "1")
    vqc("export", *common, "--target", "portable", "-o", tmp_path / "c")
    assert learned == ["conv2d", "conv2d_1"]  # every command found what was learned


def test_recipes_in_brief_and_whole() -> None:
    said = vqc("recipes")
    for name in RECIPES:
        assert name in said
    brief = said.splitlines()
    at = next(i for i, line in enumerate(brief) if line.startswith("gptq-w4 | gptq-w4-full: "))
    assert brief[at + 1] == "  observe,quantize{weight_bits=4,weight_method=mse,edge_bits=8},gptq{alpha=0.25}"
    assert brief[at + 2] == "  full: gptq{alpha=0.25,waves=24}"
    whole = vqc("recipes", "foem-w3", "int8").splitlines()
    assert [line.strip() for line in whole[1::2]] == [RECIPES["foem-w3"].pipeline, RECIPES["int8"].pipeline]
    assert "no recipe called 'int9'" in vqc("recipes", "int8", "int9", code=2)


def test_a_network_of_several_files(place: Path, tmp_path: Path) -> None:
    """What `vqc` the program does, not this process, whose path pytest made."""
    (tmp_path / "own_parts.py").write_text((place / "nets.py").read_text())
    (tmp_path / "own_net.py").write_text("from own_parts import picture as make\n")
    (tmp_path / "elsewhere").mkdir()
    command = [Path(sys.executable).with_name("vqc"), "inspect", "--size", "16x24", "--target", "none"]
    for where, name in ((tmp_path / "elsewhere", f"{tmp_path}/own_net.py:make"), (tmp_path, "own_net:make")):
        done = subprocess.run([*command, name], cwd=where, capture_output=True, text=True)
        assert done.returncode == 0 and "aten.conv2d" in done.stdout, done.stdout + done.stderr


def test_lists(place: Path) -> None:
    names = [line.split(":")[0] for line in vqc("passes").splitlines()]
    assert {"observe", "quantize", "lower-integer"} <= set(names)
    assert vqc("targets") == vqc("export", "--target", "list") == vqc("run", "--target", "list")
    for target in TARGETS:
        assert target in vqc("targets")


def test_export_writes_a_folder_that_tests_itself(place: Path, tmp_path: Path) -> None:
    said = vqc("export", f"{place}/nets.py:matting", "--recipe", "int8", "--calibration", place / "b.mp4",
               "--calibration-frames", "4", "--target", "portable", "--build", "-o", tmp_path / "out")  # fmt: skip
    assert "unknown: ask who gave you the weights" in (tmp_path / "out" / "README.txt").read_text()
    program = tmp_path / "out" / "build" / "portable" / "matting_test"
    assert str(program) in said and f"{tmp_path}/out/README.txt says" in said
    assert subprocess.run([program, tmp_path / "out"], capture_output=True, text=True).stdout.endswith("matting: ok\n")


@pytest.mark.parametrize(
    ("code", "args", "pieces"),
    [
        (1, ["run", "{m}", "{p}/none.mp4"], ["none.mp4: the clip cannot be read", "way out:"]),
        (1, ["run", "{m}", "{p}/nets.py"], ["the clip cannot be read", "nets.py"]),
        (2, ["export", "{m}", "--target", "vax"], ["there is no target called 'vax'", "aarch64-linux", "x86-64-v3"]),
        (2, ["export", "{m}", "--target", "aarch64-linux", "--build", "--variant", "sve"], ["neon, dotprod, i8mm"]),
        (2, ["export", "{m}", "--variant", "neon"], ["--variant does nothing without --build"]),
        (2, ["export", "{m}", "--target", "onnx", "--build"], ["target onnx has no --build", "targets of C"]),
        (2, ["export", "{m}", "--sequence"], ["target native has no --sequence", "targets of ONNX"]),
        *((2, ["export", "{p}/nets.py:broken", "--target", target, "--threads", "2"],
           [f"target {target} has no --threads", "the program that reads it chooses", "vqc apply --threads"])
          for target in ("onnx", "onnx:exact", "pt2", "tensorrt", "cuda:90")),
        (2, ["run", "{m}", "{a}", "--recipe", "int9000"], ["no pass called 'int9000'", "way out:"]),
        (2, ["run", "{m}", "{a}", "--recipe", "int8"], ["needs a calibration clip", "--calibration"]),
        (2, ["run", "{m}", "{a}", "--target", "toaster"], ["no target called 'toaster'", "portable"]),
        (2, ["run", "{m}", "{a}", "--size", "12by9"], ["a size cannot be '12by9'", "288x512"]),
        (1, ["run", "{m}", "{a}", "--frames", "99", "--target", "reference"],
         ["a.mp4", "99", "6 are there", "use --frames 6 or fewer"]),
        (2, ["compare", "nobody", "{a}"], ["no model called 'nobody'", "rvm"]),
        (2, ["compare", "{p}/nets.py:nothing", "{a}"], ["has no factory called 'nothing'"]),
        (1, ["compare", "{p}/nets.py:broken", "{a}"], ["RuntimeError: no weights today"]),
        (2, ["compare", "{p}/nets.py:number", "{a}"], ["gave int"]),
        (1, ["inspect", "{p}/gone.py:net"], ["cannot be loaded", "gone.py"]),
        (2, ["inspect", "rife", "--size", "30x64"], ["multiples of 32", "--size 32x64"]),
        (2, ["compile", "{m}", "--target", "reference", "--tune"], ["target reference has no --tune"]),
        (2, ["bench", "{m}", "--target", "reference", "--compare-float"], ["reference has no --compare-float"]),
        (2, ["export", "{m}", "--target", "onnx", "--winograd", "-o", "x"], ["target onnx has no --winograd"]),
        (2, ["compile", "{m}", "--target", "inductor", "-o", "x"], ["target inductor has no -o", "vqc apply"]),
        (1, ["compile", "{m}", "--target", "aarch64-linux"], ["is not compiled in this process", "vqc.export"]),
        (1, ["compile", "{p}/nets.py:tall", "--size", "16x24", "--no-fallback", "--target", "portable"],
         ["cannot take 1 of", "linalg_svd"]),
        (2, ["demo", "rwm"], ["there is no demo of 'rwm'", "bivm, rvm"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_a_way_out_and_without_a_traceback(
    place: Path, tmp_path: Path, code: int, args: list[str], pieces: list[str]
) -> None:
    filled = [a.format(m=f"{place}/nets.py:matting", p=place, a=place / "a.mp4") for a in args]
    said = vqc(*filled, *(["-o", str(tmp_path / "out")] if args[0] == "run" else []), code=code)
    for piece in ("error:", *pieces):
        assert piece in said, (piece, said)
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def test_an_unwritable_folder_is_told_before_anything_runs(place: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where the folder should be")
    said = vqc("run", f"{place}/nets.py:matting", place / "a.mp4", "-o", taken, code=1)
    assert "nothing can be written into" in said and "another folder" in said and "compile" not in said
    assert taken.read_text().startswith("a file")


def test_debug_lets_the_error_through(place: Path) -> None:
    result = CliRunner().invoke(app, ["--debug", "run", f"{place}/nets.py:matting", "x.mp4", "--recipe", "int9000"])
    assert isinstance(result.exception, PipelineError)


def test_winograd_is_an_option_of_what_makes_c(place: Path, tmp_path: Path) -> None:
    """Of compile, export and bench: the kernel is there when it is asked for, and only then."""
    layers = "nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)"
    (place / "wide.py").write_text(f"from torch import nn\ndef net():\n    return nn.Sequential({layers})\n")
    for command in (["compile"], ["bench", "--frames", "1"], ["export", "--target", "native", "-o", tmp_path / "out"]):
        for option in ([], ["--winograd"]):
            said = vqc(command[0], f"{place}/wide.py:net", "--size", "16x24", *command[1:], *option)
            if command[0] == "export":
                said = next((tmp_path / "out").glob("*_step.c")).read_text()
            assert ("vqc_conv_winograd_f32" in said) == bool(option)


def test_bench_shows_kernels_or_every_call(place: Path) -> None:
    said = vqc("bench", f"{place}/nets.py:matting", "--frames", "2")  # of the example
    assert "vqc_conv_f32" in said and "of what is alive at once" in said and "ms a step" in said
    assert "aten.conv2d" not in said
    said = vqc("bench", f"{place}/nets.py:matting", "--frames", "2", "--layers", "--clip", place / "a.mp4",
               "--recipe", "int8", "--calibration", place / "b.mp4", "--calibration-frames", "4",
               "--compare-float", "--tune")  # fmt: skip
    assert "vqc.qconv2d" in said and "share" in said
    assert "in float: keep it in float with quantize{keep=[" in said or "no integer layer is slower" in said
    said = vqc("bench", f"{place}/nets.py:matting", "--frames", "2", "--target", "reference")
    assert "ms a step" in said and "every kernel" not in said
