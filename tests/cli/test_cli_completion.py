"""Completion of recipes, passes, targets, models and clips, as bash, zsh and fish ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vqc.cli import app
from vqc.recipes import RECIPES


def complete(shell: str, line: str) -> list[str]:
    """What a shell is offered at the end of a line."""
    words = line.split(" ")
    env = {"_VQC_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
           "_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    done = CliRunner().invoke(app, [], env=env, prog_name="vqc")
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered", "others"),
    [
        ("vqc co", {"compare", "compile"}, {"run"}),
        ("vqc run m --recipe int", {"int8", "int8-all"}, {"float", "observe"}),
        ("vqc run m --recipe fold-", {"fold-bn", "fold-constants"}, {"float"}),
        ("vqc run m --recipe fold-bn,obs", {"fold-bn,observe"}, {"observe"}),
        ("vqc apply m --recipe observe,", {"observe,quantize", "observe,gptq"}, {"observe,int8"}),
        ("vqc export m --target aarch64-", {"aarch64-linux", "aarch64-macos"}, {"native"}),
        ("vqc inspect m --target on", {"onnx"}, {"native"}),
        ("vqc recipes gptq", {"gptq-w4", "gptq-w4-full"}, {"int8"}),
        ("vqc run r", {"rife", "rvm"}, {"bivm"}),
        ("vqc run rvm sing", {"single_face"}, {"bikes"}),
        ("vqc report rvm --calibration pe", {"pexels"}, {"bikes"}),
        ("vqc demo b", {"bivm"}, {"rvm"}),
        ("vqc compare m c --max", {"--max-mad", "--max-dtssd"}, {"--min-psnr"}),
    ],
)
def test_what_bash_is_offered(line: str, offered: set[str], others: set[str]) -> None:
    found = set(complete("bash", line))
    assert offered <= found and not others & found, found


def test_zsh_and_fish_get_what_a_word_means() -> None:
    (fish,) = complete("fish", "vqc run m --recipe int8-a")
    assert fish == f"int8-all\t{RECIPES['int8-all'].about}"
    zsh = "\n".join(complete("zsh", "vqc export m --target x86-64-v3"))
    assert '"x86-64-v3":"AVX2 and FMA' in zsh


def test_a_list_is_not_printed_while_a_line_is_completed() -> None:
    assert all("SSE4.2" not in x for x in complete("bash", "vqc export m --target list --thr"))


@pytest.mark.parametrize(("shell", "piece"), [("bash", "complete -o default -F"), ("zsh", "#compdef vqc"),
                                              ("fish", "complete --command vqc")])  # fmt: skip
def test_the_scripts(shell: str, piece: str) -> None:
    done = CliRunner().invoke(app, [], env={"_VQC_COMPLETE": f"source_{shell}"}, prog_name="vqc")
    assert done.exit_code == 0 and piece in done.stdout
    assert f"=complete_{shell}" in done.stdout


def test_bash_itself(tmp_path: Path) -> None:
    script = CliRunner().invoke(app, [], env={"_VQC_COMPLETE": "source_bash"}, prog_name="vqc").stdout
    (tmp_path / "vqc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vqc "$@"\n')
    (tmp_path / "vqc").chmod(0o755)
    (tmp_path / "script").write_text(script)
    asked = "source script; COMP_WORDS=(vqc compile m --recipe int8-); COMP_CWORD=4; _vqc_completion vqc; "
    asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "--norc", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})  # fmt: skip
    assert done.stdout.split() == ["int8-all"]
