"""Exported steps: the same bytes twice, replayed from the manifest in the interpreter, and the launcher's own calls."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from handmade import Hand
from triton_programs import recurrent

import vqc
from vqc.backends.triton.aot import need_triton
from vqc.backends.triton.launch import function
from vqc.errors import ArtifactError, TargetError, UnsupportedOp
from vqc.executable import Stream

FAKE = Path(__file__).parent / "fake_cuda.c"
DTYPES = {"f32": torch.float32, "u8": torch.uint8, "s8": torch.int8, "s32": torch.int32}
SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
import vqc
from triton_programs import recurrent
for name in ("one", "two"):
    vqc.export(recurrent(), sys.argv[1] + "/" + name, "cuda:sm_90")
vqc.export(recurrent(), sys.argv[1] + "/amd", "hip:gfx942")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two exports of one program for sm_90 and one for gfx942, made in a process that compiles."""
    top = tmp_path_factory.mktemp("exports")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(top), str(here), str(here.parents[1])], env=env,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return top


def view(memory, at, dtype, shape, strides=None):
    size = DTYPES[dtype].itemsize
    count = torch.Size(shape).numel() * size
    flat = memory[at : at + count].view(DTYPES[dtype])
    return flat if strides is None else torch.as_strided(flat, shape, strides)


def replay(manifest, memory, frames):
    """Run a manifest's launches in the interpreter on one block of memory; the results of every step."""
    results = []
    for frame in frames:
        for spec, x in zip(manifest["inputs"], frame, strict=True):
            view(memory, spec["offset"], spec["dtype"], spec["shape"], spec["strides"]).copy_(x)
        for call in manifest["launches"]:
            kernel = function(call["kernel"])
            args = dict.fromkeys(n for n in kernel.arg_names if n not in call["meta"]) | call["fixed"]
            tuples = {}
            for name, value in zip(call["params"], call["args"], strict=False):
                held = memory[value[1] :].view(DTYPES[value[2]]) if value[0] == "memory" else value[1]
                head, _, member = name.partition(".")
                if member:
                    tuples.setdefault(head, {})[int(member)] = held
                else:
                    args[name] = held
            counts = {"OPS": max(1, (len(call["meta"].get("HOW", ())) - 5) // 3), "OUT": 8}
            args |= {name: tuple(tuples.get(name, {}).get(i) for i in range(count)) for name, count in counts.items()}
            meta = {k: tuple(v) if isinstance(v, list) else v for k, v in call["meta"].items()}
            kernel[tuple(call["grid"])](**args, **meta)
        outputs = [view(memory, t["offset"], t["dtype"], t["shape"], t["strides"]).clone() for t in manifest["outputs"]]
        following = [view(memory, s["next"]["offset"], s["dtype"], s["shape"]).clone() for s in manifest["states"]]
        for s, value in zip(manifest["states"], following, strict=True):
            view(memory, s["offset"], s["dtype"], s["shape"]).copy_(value)
        results.append(outputs)
    return results


def test_the_same_bytes_twice(folders):
    one, two = ({f.name: f.read_bytes() for f in sorted((folders / n).iterdir())} for n in ("one", "two"))
    assert one == two
    kinds = {name.rsplit(".", 1)[1] for name in one}
    assert kinds == {"cubin", "ptx", "bin", "json", "txt", "c"}
    for name, content in one.items():
        assert str(Path.cwd()).encode() not in content, f"{name} holds a path of this machine"


@pytest.mark.parametrize("name", ["one", "amd"])
def test_the_manifest_is_the_step(folders, name):
    manifest = json.loads((folders / name / "manifest.json").read_text())
    weights = (folders / name / "weights.bin").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == manifest["weights_sha256"] and len(weights) == manifest["weights"]
    memory = torch.zeros(manifest["memory"] + 64, dtype=torch.uint8)
    memory[: len(weights)] = torch.frombuffer(bytearray(weights), dtype=torch.uint8)
    g = torch.Generator().manual_seed(1)
    frames = [[torch.randn(1, 5, 6, 8, generator=g)] for _ in range(3)]
    judge = Stream(vqc.compile(recurrent(), "reference"))
    for mine, frame in zip(replay(manifest, memory, frames), frames, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, judge.step(frame), strict=True))
    suffix = ".hsaco" if name == "amd" else ".cubin"
    assert all(
        (folders / name / c["file"]).stat().st_size > 0 and c["file"].endswith(suffix) for c in manifest["launches"]
    )
    assert [c["kernel"] for c in manifest["launches"]] == ["pointwise.pointwise", "conv.conv_i8", "conv.conv_i8"]


def test_the_launcher_makes_these_calls(folders, tmp_path):
    """Against a driver that writes down what it is asked for."""
    include = Path(need_triton().__file__).parent / "backends" / "nvidia" / "include"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    program = tmp_path / "step"
    subprocess.run(
        ["gcc", "-w", "-std=gnu99", f"-I{include}", "-c", str(FAKE), "-o", "fake.o"], cwd=tmp_path, check=True
    )
    launcher = folders / "one" / "launcher.c"
    subprocess.run(
        ["gcc", *strict, f"-I{include}", str(launcher), "fake.o", "-o", str(program)], cwd=tmp_path, check=True
    )
    manifest = json.loads((folders / "one" / "manifest.json").read_text())
    env = os.environ | {"FAKE_LOG": str(tmp_path / "log")}
    frame = bytes(manifest["inputs"][0]["bytes"])
    done = subprocess.run(
        [str(program), str(folders / "one"), "9"], input=frame * 2, env=env, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 2 * manifest["outputs"][0]["bytes"], "it stops where its input ends"
    log = (tmp_path / "log").read_text().splitlines()
    assert log.count("load") == len({c["file"] for c in manifest["launches"]})
    wanted = []
    for c in manifest["launches"]:
        numbers = [*c["grid"], c["threads"], c["shared"], c["args"][0][1]]
        wanted.append("launch " + " ".join([c["entry"], *map(str, numbers)]))
    assert [x for x in log if x.startswith("launch")] == wanted * 2
    spec = manifest["inputs"][0]
    assert log.count(f"in {spec['offset']} {spec['bytes']}") == 2
    none = subprocess.run(
        [str(program), str(folders / "one"), "1"], env=env | {"FAKE_NONE": "1"}, capture_output=True, check=False
    )
    assert none.returncode == 1 and b"launcher: no GPU" in none.stderr
    shutil.copytree(folders / "one", tmp_path / "cut")
    (tmp_path / "cut" / "step.txt").write_text((folders / "one" / "step.txt").read_text().rsplit("end", 1)[0])
    cut = subprocess.run([str(program), str(tmp_path / "cut"), "1"], env=env, capture_output=True, check=False)
    assert cut.returncode == 1 and b"cut short" in cut.stderr


def test_what_cannot_be_exported(tmp_path):
    b = Hand("turned")
    x = b.input("x", 1, 3, 4, 4)
    program = b.done(b(torch.ops.aten.flip, x, [3]))
    with pytest.raises(UnsupportedOp, match="no Triton kernel for aten.flip"):
        vqc.export(program, tmp_path / "a", "cuda:sm_90")
    with pytest.raises(TargetError, match="names no architecture"):
        vqc.export(program, tmp_path / "a", "cuda")
    with pytest.raises(TargetError, match="no option 'threads'"):
        vqc.export(program, tmp_path / "a", "cuda:sm_90", threads=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="not an empty folder"):
        vqc.export(recurrent(), tmp_path / "full", "cuda:sm_90")
    assert not (tmp_path / "a").exists()
