"""--json on every command, exit codes, bounds, and progress on a terminal and in a log."""

from __future__ import annotations

import json
import math
import os
import pty
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from cli_helpers import make_place, vqc, vqc_json
from typer.testing import CliRunner

import vqc as package
from vqc.backends import TARGETS
from vqc.cli import app
from vqc.cli.compare import worst_sqnr
from vqc.cli.show import plain
from vqc.errors import TargetError
from vqc.pipeline import passes
from vqc.recipes import RECIPES
from vqc.report.session import Playback


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("json"), frames=4)


def test_every_command_has_json() -> None:
    help_of = {name: CliRunner().invoke(app, [name, "--help"]).output for name in _commands()}
    assert all("--json" in text for text in help_of.values()), [n for n, t in help_of.items() if "--json" not in t]


def _commands() -> list[str]:
    return [c.callback.__name__ for c in app.registered_commands]


def test_the_lists() -> None:
    found = vqc_json("recipes")
    assert found["vqc"] == package.__version__ and found["command"] == "recipes" and found["ok"] is True
    assert [r["name"] for r in found["recipes"]] == list(RECIPES)
    (int8,) = vqc_json("recipes", "int8")["recipes"]
    assert int8["pipeline"] == RECIPES["int8"].pipeline and int8["needs_calibration"] is True
    known = {p["name"]: p for p in vqc_json("passes")["passes"]}
    assert set(known) == set(passes())
    assert known["quantize"]["options"]["weight_bits"] == {"type": "int", "default": 8}
    assert known["lower-integer"]["promise"].startswith("Lossy") and known["observe"]["about"]
    targets = vqc_json("targets")["targets"]
    assert [t["target"] for t in targets] == list(TARGETS) and all(t["what"] for t in targets), "vqc/cli/lists.py"


def test_the_targets_of_an_option() -> None:
    assert vqc_json("run", "--target", "list")["targets"] == vqc_json("targets")["targets"]
    assert "x86-64-v4" in vqc("run", "--target", "list")


def test_run_inspect_bench_apply_export(place: Path, tmp_path: Path) -> None:
    net = f"{place}/nets.py:matting"
    ran = vqc_json("run", net, place / "a.mp4", "--target", "reference", "-o", tmp_path / "out")
    (clip,) = ran["clips"]
    assert clip["status"] == "done" and clip["frames"] == 4 and clip["engines"][1]["ms_a_frame"] > 0
    assert clip["engines"][1]["mad_x1e3"] < 1e-3
    assert all(Path(f).is_file() for f in clip["files"]) and len(clip["files"]) == 4
    seen = vqc_json("inspect", net, "--target", "reference", "--text")
    assert seen["operators"]["aten.conv2d"] == 2 and seen["states"][0]["shape"] == [1, 4, 16, 24]
    assert seen["inputs"][0]["known_range"] == [0.0, 1.0] and "conv2d" in seen["text"]
    assert seen["compiled"]["backend"] == "reference" and seen["history"][1]["name"] == "canonicalize"
    assert vqc_json("inspect", net, "--target", "none")["compiled"] is None
    timed = vqc_json("bench", net, "--target", "portable", "--frames", "2")
    assert timed["steps"] == len(timed["ms"]) == 2 and timed["least_ms"] <= timed["ms_a_step"]
    assert {x["operator"] for x in timed["compiled"]["layers"]} >= {"aten.conv2d"}
    made = vqc_json("apply", net, "-o", tmp_path / "m.vqc")
    assert made["bytes"] == (tmp_path / "m.vqc").stat().st_size and made["about"]["recipe"] == "float"
    assert made["multiply_adds"]["float"] > 0 == made["multiply_adds"]["integer"] == made["multiply_adds"]["binary"]
    assert vqc_json("inspect", tmp_path / "m.vqc", "--target", "none")["file"]["recipe"] == "float"
    out = vqc_json("export", net, "--target", "onnx", "--sequence", "-o", tmp_path / "onnx")
    assert set(out["files"]) >= {"matting.onnx", "interface.json"} and out["programs"] == []
    assert json.loads((tmp_path / "onnx" / "interface.json").read_text())["sequence"] is True
    whole = onnxruntime.InferenceSession(tmp_path / "onnx" / "matting.onnx")
    given = {i.name: i.shape for i in whole.get_inputs()}
    assert given["src"] == ["frames", 1, 3, 16, 24] and given["r"] == [1, 4, 16, 24]


def test_a_bisect_is_json_too(place: Path) -> None:
    common = ["report", f"{place}/nets.py:bright", place / "a.mp4", "--recipe", "int8-all", "--calibration",
              place / "b.mp4", "--calibration-frames", "3", "--frames", "3", "--bisect"]  # fmt: skip
    assert vqc_json(*common, "--bound", "90")["first"]["frame"] == 0
    assert vqc_json(*common, "--bound", "1")["first"] is None


@pytest.mark.parametrize(
    ("net", "bound", "code"),
    [
        ("matting", ["--max-mad", "0.001"], 3),
        ("matting", ["--max-mad", "1000", "--max-dtssd", "1000", "--min-sqnr", "1"], 0),
        ("matting", ["--max-dtssd", "0"], 3),
        ("matting", ["--min-sqnr", "150"], 3),
        ("matting", ["--min-psnr", "10"], 2),
        ("picture", ["--min-psnr", "99", "--min-ssim", "0.1"], 3),
        ("picture", ["--min-psnr", "1", "--min-ssim", "0.1"], 0),
        ("picture", ["--max-mad", "1"], 2),
    ],
)
def test_a_bound_that_does_not_hold_is_exit_code_3(place: Path, net: str, bound: list[str], code: int) -> None:
    common = ["compare", f"{place}/nets.py:{net}", place / "a.mp4", "--size", "16x24", "--recipe", "int8-all",
              "--calibration", place / "b.mp4", "--calibration-frames", "3", "--target", "reference", "--frames", "3",
              *bound]  # fmt: skip
    found = vqc_json(*common, code=code)
    assert found["ok"] is (code == 0)
    if code == 2:
        assert found["error"]["what"] == f"{bound[0]} cannot be judged"
        return
    assert len(found["frames"]) == 3 and len(found["exceeded"]) == (1 if code else 0)
    if code:
        assert found["exceeded"][0].startswith(f"{bound[0]} {bound[1]} does not hold")
        assert "bound: " + bound[0] in vqc(*common, code=3)


def test_an_error_is_json_too(place: Path) -> None:
    found = vqc_json("inspect", f"{place}/nets.py:matting", "--target", "vax", code=2)
    assert found["command"] == "inspect" and found["ok"] is False
    assert found["error"]["kind"] == TargetError.__name__ and "vax" in found["error"]["what"]
    assert found["error"]["way_out"].startswith("use one of ")
    work = vqc_json("inspect", f"{place}/nets.py:broken", code=1)
    assert work["error"]["kind"] == "CaptureError" and work["error"]["why"] == "RuntimeError: no weights today"
    for command, *clip in (("inspect",), ("compare", f"{place}/a.mp4", "--recipe", "float", "--frames", "2")):
        net = vqc_json(command, f"{place}/nets.py:narrow", *clip, code=1)
        assert net["error"]["kind"] == "CaptureError" and net["error"]["why"].startswith("RuntimeError: Given groups=1")
    usage = vqc_json("run", "--nothing", code=2)
    assert usage["error"]["kind"] == "UsageError" and "--nothing" in usage["error"]["what"]
    assert vqc_json("rum", code=2)["error"]["kind"] == "UsageError"
    assert "Missing argument" in vqc_json("run", code=2)["error"]["what"]
    assert "--nothing" in vqc_json("--nothing", "run", code=2)["error"]["what"]


def test_a_frame_that_is_no_number_is_the_worst() -> None:
    right = [torch.rand(1, 4, 6) for _ in range(3)]
    reference, shown = Playback("float", 0, pictures=right), Playback("int8", 0, pictures=[p + 0.01 for p in right])
    assert worst_sqnr(shown, reference) > 20
    shown.pictures[1] = right[1] * float("nan")
    assert math.isnan(worst_sqnr(shown, reference))


def test_what_no_json_has_is_text() -> None:
    odd = {1: float("inf"), "b": (float("-inf"), float("nan")), "c": Path("x"), "d": [None, True, 2, 0.5], "e": ...}
    assert plain(odd) == {"1": "inf", "b": ["-inf", "nan"], "c": "x", "d": [None, True, 2, 0.5], "e": "Ellipsis"}
    json.dumps(plain(odd), allow_nan=False)


def test_the_version() -> None:
    assert vqc("--version") == f"vqc {package.__version__}\n"


def on_a_terminal(args: list[Any], stdout: Path | None = None) -> tuple[int, str]:
    """Run a command in a process whose standard streams (but stdout, if a file is given) are a terminal; its exit code
    and what the terminal got."""
    pid, terminal = pty.fork()
    if pid == 0:
        if stdout is not None:
            os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
        os.environ["TERM"] = "xterm"
        os.environ["COLUMNS"] = "120"
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        try:
            app([str(a) for a in args])
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(99)
    got = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        got += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), got.decode()


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(place: Path, tmp_path: Path) -> None:
    args = [f"{place}/nets.py:matting", place / "a.mp4", "--target", "reference", "--frames", "4"]
    code, shown = on_a_terminal(["compare", *args])
    assert code == 0 and "\x1b[" in shown and "━" in shown and "4/4" in shown
    assert on_a_terminal(["run", *args, "-o", tmp_path / "a"])[0] == 0
    log = CliRunner().invoke(app, [str(a) for a in ["run", *args, "--frames", "0", "-o", tmp_path / "b"]])
    assert "\x1b" not in log.output and "━" not in log.stderr
    assert "a.mp4, run vqc reference, float: 4 of 4\n" in log.stderr and "4 of 4" not in log.stdout
    assert "a.mp4, run PyTorch eager, float32: 1 so far\n" in log.stderr  # nobody knows how long a clip is


def test_results_go_where_stdout_goes_while_bars_are_on_the_terminal(place: Path, tmp_path: Path) -> None:
    args = ["run", f"{place}/nets.py:matting", place, "--target", "reference", "-o", tmp_path / "a"]
    code, shown = on_a_terminal(args, tmp_path / "text")
    text = (tmp_path / "text").read_text()
    assert code == 0 and "wrote" not in shown and "clips" in shown
    assert f"wrote {tmp_path}/a/matting-b.mp4\n" in text and "2 clips into" in text and "\x1b" not in text
    code, shown = on_a_terminal([*args, "--json"], tmp_path / "json")
    assert code == 0 and [c["status"] for c in json.loads((tmp_path / "json").read_text())["clips"]] == ["kept", "kept"]
