"""sdist and wheel: built, installed beside the other packages of this environment, used from outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {"vqc": "vqc", "passes": "vqc/passes", "backends": "vqc/backends"}
NET = """import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid()), \\
        torch.rand(1, 3, 32, 48)
"""
COMPILE = """import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()
x = torch.rand(1, 3, 16, 16)
with torch.no_grad():
    difference = (torch.compile(model, backend="vqc")(x) - model(x)).abs().max()
import sys
print(float(difference) < 1e-5, "vqc" in sys.modules)
"""


def sh(*command: Any, cwd: Path, **more: Any) -> str:
    """Run a command; its output, or an AssertionError with it."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def in_wheel() -> set[str]:
    """Every file of the packages, by its place in the wheel."""
    found = set()
    for top, place in PLACES.items():
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{place}/{path.relative_to(ROOT / top)}")
    return found


@dataclass(frozen=True)
class Built:
    """What was built, and the programs of an environment in which the wheel is installed."""

    sdist: Path
    wheel: Path
    bin: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An sdist of the sources, a wheel of the sdist, and an environment of Python, the wheel, and our packages."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for name in PLACES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta as b; import sys; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
    sh(sys.executable, "-c", build, "sdist", folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    sh(sys.executable, "-c", build, "wheel", folder, cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    made = folder / "env" / "bin" / "python"
    sh(sys.executable, "-m", "pip", "--python", made, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(sh(made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Folders named in a .pth are searched, and the .pth files in them are not read: an editable vqc stays out.
    ours = [p for p in sys.path if Path(p).name == "site-packages"]
    (site / "zz_ours.pth").write_text("\n".join(ours) + "\n")
    return Built(sdist, wheel, made.parent)


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, Any]:
    """Where a command runs that shall not find the repository: an empty folder, no path of ours."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {"cwd": tmp_path, "env": kept | {"OMP_NUM_THREADS": "1"}}


def test_the_wheel_holds_every_file(built: Built) -> None:
    names = {n for n in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in n}
    assert names == in_wheel()
    for kind in (
        "vqc/py.typed",
        "vqc/models/weights/",
        "vqc/backends/c/kernels/vqc_common.c",
        "vqc/backends/triton/kernels/",
    ):
        assert any(n.startswith(kind) for n in names), kind


def test_the_sdist_holds_every_file_and_the_licence(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    held = {f"{top}/{name.removeprefix(place + '/')}" for name in in_wheel() for top, place in PLACES.items()
            if name.startswith(place + "/") and (ROOT / top / name.removeprefix(place + "/")).is_file()}  # fmt: skip
    assert held | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_what_the_wheel_says_of_itself(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        info = {n.rpartition("/")[2]: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {line.partition(": ")[2] for line in info["METADATA"].splitlines() if line.startswith("Provides-Extra")}
    assert extras == set(project["optional-dependencies"])
    assert (
        "vqc = vqc.cli:main" in info["entry_points.txt"] and "vqc = vqc.backend:vqc_backend" in info["entry_points.txt"]
    )
    assert "Requires-Python: >=3.11" in info["METADATA"] and "LICENSE" in info


def test_the_command_works_outside_the_repository(built: Built, outside: dict[str, Any]) -> None:
    assert "compare" in sh(built.bin / "vqc", "--help", **outside)
    (outside["cwd"] / "net.py").write_text(NET)
    clip = "import torch, vqc; vqc.video.write_video('clip.mp4', torch.rand(4, 3, 32, 48), 12); print(vqc.__file__)"
    assert str(built.bin.parent) in sh(built.bin / "python", "-c", clip, **outside)
    command = "run net.py:make clip.mp4 --recipe int8 --calibration clip.mp4 --frames 4 --calibration-frames 4 -o out"
    sh(built.bin / "vqc", *command.split(), **outside)
    assert len(list((outside["cwd"] / "out").rglob("*.mp4"))) == 1


def test_pytorch_finds_the_backend_by_itself(built: Built, outside: dict[str, Any]) -> None:
    (outside["cwd"] / "model.py").write_text(COMPILE)
    assert sh(built.bin / "python", "model.py", **outside) == "True True\n"


def test_the_tutorial_works_as_printed(built: Built, outside: dict[str, Any]) -> None:
    """Every block, pasted in order, by the wheel; what is printed is compared with the page."""
    said = sh(built.bin / "python", Path(__file__).with_name("play_tutorial.py"), ROOT, outside["cwd"], **outside)
    assert str(built.bin.parent) in said.splitlines()[-1], "another vqc was found"
    assert (outside["cwd"] / "report.html").is_file()
    assert (outside["cwd"] / "out" / "matte" / "build" / "matte_test").is_file()
