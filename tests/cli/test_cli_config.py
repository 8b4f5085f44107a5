"""The configuration file: what it gives, what wins over it, what is refused and how."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_helpers import make_place, vqc, vqc_json

from vqc.cli import app
from vqc.cli.config import COMMANDS, options_of, read_config
from vqc.errors import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nets.py, b.mp4, and clips/ with a.mp4 and c.mp4."""
    folder = make_place(tmp_path_factory.mktemp("config"), clips=("a", "b", "c"), frames=4)
    (folder / "clips").mkdir()
    for name in ("a.mp4", "c.mp4"):
        shutil.move(folder / name, folder / "clips" / name)
    return folder


WHOLE = """
model = "nets.py:matting"
clips = "clips"
calibration = ["b.mp4"]
calibration-frames = 3
recipe = "int8-all"
target = "reference"

[run]
output = "videos"

[apply]
output = "net.vqc"

[compile]
target = "portable"

[export]
target = "portable"
output = "c"

[compare]
max-mad = 1000

[report]
clip = "clips/c.mp4"
frames = 3
output = "report.html"
bisect = false

[bench]
frames = 2
"""


def write(place: Path, text: str) -> Path:
    path = place / "vqc.toml"
    path.write_text(text)
    return path


def test_one_file_for_a_whole_pipeline(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = write(place, WHOLE)
    monkeypatch.chdir(tmp_path)  # paths are meant from the file's folder
    ran = vqc_json("run", "--config", config)
    assert [Path(c["clip"]).name for c in ran["clips"]] == ["a.mp4", "c.mp4"]
    assert ran["clips"][0]["engines"][1]["engine"] == "vqc reference, int8-all"
    assert (place / "videos" / "matting-c.mp4").is_file()
    made = vqc_json("apply", "--config", config)
    assert made["about"]["recipe"] == "int8-all" and made["about"]["calibration"]["steps"] == 3
    assert (place / "net.vqc").is_file()
    assert vqc_json("compile", "--config", config)["compiled"]["target"] == "portable"
    assert vqc_json("export", "--config", config)["folder"] == str(place / "c")
    compared = vqc_json("compare", "--config", config, "--frames", "4")
    assert compared["bounds"] == {"--max-mad": 1000} and compared["clip"] == str(place / "clips" / "a.mp4")
    report = vqc_json("report", "--config", config)
    assert report["clip"] == "c" and report["frames"] == 3 and (place / "report.html").is_file()
    assert vqc_json("bench", "--config", config)["steps"] == 2
    assert not list(tmp_path.iterdir())


def test_what_is_given_on_the_command_line_wins(place: Path, tmp_path: Path) -> None:
    config = write(place, WHOLE)
    ran = vqc_json("run", f"{place}/nets.py:bright", place / "b.mp4", "--config", config, "--recipe", "float",
                   "--frames", "2", "-o", tmp_path)  # fmt: skip
    (clip,) = ran["clips"]
    assert Path(clip["clip"]).name == "b.mp4" and clip["frames"] == 2
    assert clip["engines"][1]["engine"] == "vqc reference, float" and (tmp_path / "bright-b.mp4").is_file()
    ran = vqc_json("run", f"{place}/net.vqc", "--config", config, "--recipe", "", "-o", tmp_path)
    assert ran["clips"][0]["engines"][1]["engine"] == "vqc reference, as stored"
    assert vqc_json("compare", "--config", config, "--frames", "4", "--max-mad", "0", code=3)["exceeded"]


def values(place: Path, text: str, command: str) -> dict[str, Any]:
    group = typer.main.get_command(app)
    return read_config(write(place, text), {n: options_of(group.commands[n]) for n in COMMANDS}, command)


def test_forms_of_values(place: Path) -> None:
    assert values(place, 'pipeline = ["fold-bn", "observe"]\nsize = [16, 24]', "run") == {
        "recipe": "fold-bn,observe", "size": "16x24"}  # fmt: skip
    assert values(place, "calibration_frames = 5\n[run]\nfloat = false\nagain = true", "run") == {
        "calibration_frames": 5, "beside": False, "again": True}  # fmt: skip
    assert values(place, 'clip = "pexels"\nmodel = "rvm"', "run") == {"clips": ["pexels"], "model": "rvm"}
    assert values(place, 'clips = ["x.mp4", "y.mp4"]\nmodel = "pack.nets:f"', "compare") == {
        "clip": f"{place}/x.mp4", "model": "pack.nets:f"}  # fmt: skip
    assert values(place, 'clips = ["x.mp4"]\n[run]\nclip = "y.mp4"', "run") == {"clips": [f"{place}/y.mp4"]}
    assert values(place, 'calibration = ["x.mp4,y.mp4", "pexels"]', "run") == {
        "calibration": [f"{place}/x.mp4", f"{place}/y.mp4", "pexels"]}  # fmt: skip
    assert values(place, 'clips = "x.mp4"', "export") == {}  # it takes none
    assert values(place, 'output = "a"\n[run]\noutput = "/b"', "run") == {"output": "/b"}
    assert values(place, 'output = "a"\n[run]\noutput = "/b"', "export") == {"output": f"{place}/a"}
    assert values(place, "bound = 30\n[report]\nbisect = true", "report") == {"bound": 30, "only_bisect": True}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ('recip = "int8"', ["the key 'recip' of a configuration file is not known", "the nearest is 'recipe'"]),
        ("[run]\ntreads = 2", ["the key 'treads' in [run]", "the nearest is 'threads'"]),
        ("[export]\nframes = 2", ["the key 'frames' in [export]"]),
        ("[exprot]\nbuild = true", ["[exprot] of a configuration file", "the nearest is 'export'"]),
        ("json = true", ["the key 'json'"]),
        ('threads = "2"', ["the value of threads is not understood", "it is '2'", "a whole number"]),
        ("threads = true", ["the value of threads", "a whole number"]),
        ("frames = 2.5", ["the value of frames", "a whole number"]),
        ('[report]\nbound = "low"', ["the value of bound", "a number", "[report]"]),
        ('[run]\nagain = "yes"', ["the value of again", "true or false"]),
        ("recipe = 8", ["the value of recipe", "a text"]),
        ("clips = []", ["the value of clips", "a text or a list of texts"]),
        ('clip = ["a", "b"]', ["the value of clip ", "several go under clips"]),
        ('recipe = "int8"\npipeline = "observe"', ["both a recipe and a pipeline"]),
        ("recipe = ", ["cannot be read", "vqc.toml", "Invalid value"]),
        ("threads = 0", ["threads"]),
    ],
)
def test_what_is_refused(place: Path, text: str, pieces: list[str]) -> None:
    said = " ".join(vqc("run", "m", "c", "--config", write(place, text), code=2).replace("│", " ").split())
    for piece in pieces:
        assert piece in said, (piece, said)
    assert "Traceback" not in said


def test_a_file_that_is_not_there_and_one_that_is_no_text(place: Path) -> None:
    assert "No such file" in vqc("run", "m", "c", "--config", place / "none.toml", code=2)
    (place / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in vqc("run", "m", "c", "--config", place / "binary.toml", code=2)
    with pytest.raises(InputError):
        values(place, "x = 1", "run")


def test_commands_that_read_a_file_say_so() -> None:
    group = typer.main.get_command(app)
    have = {name for name, command in group.commands.items() if any(p.name == "config" for p in command.params)}
    assert have == set(COMMANDS)
