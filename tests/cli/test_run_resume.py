"""`vqc run` over many clips: what is done stays, what changed is run again, killed runs go on, bad clips are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import make_place, vqc, vqc_json, write_clip

from vqc import video
from vqc.cli import batch, hidden, record
from vqc.cli.show import Reporter


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nets.py, and a folder `clips` with three of 4 frames and a text file; b.mp4 outside of it."""
    folder = make_place(tmp_path_factory.mktemp("resume"), clips=("b",), frames=4)
    (folder / "clips").mkdir()
    g = torch.Generator().manual_seed(1)
    for name in ("one.mp4", "three.mkv", "two.mp4"):
        write_clip(folder / "clips" / name, 4, g)
    (folder / "clips" / "notes.txt").write_text("not a clip")
    return folder


def command(place: Path, out: Path, *more: str | Path) -> list[str | Path]:
    return ["run", f"{place}/nets.py:matting", place / "clips", "--recipe", "int8-all",
            "--calibration", place / "b.mp4", "--calibration-frames", "3", "--target", "reference",
            "-o", out, *more]  # fmt: skip


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("unbroken")
    said = vqc(*command(place, out))
    assert "notes" not in said and "3 clips into" in said
    return bytes_of(out)


def test_every_clip_of_a_folder_has_its_files(unbroken: dict[str, bytes]) -> None:
    ends = ("-strip.png", "-table.md", ".json", ".mp4")
    assert set(unbroken) == {f"matting-{clip}{end}" for clip in ("one", "two", "three") for end in ends}
    record = json.loads(unbroken["matting-one.json"])
    assert record["frames"] == 4 and record["size"] == [16, 24] and record["fps"] == 12
    assert record["made_from"]["recipe"].startswith("canonicalize,") and record["made_from"]["target"] == "reference"
    assert record["engines"][1]["mad_x1e3"] > 0


def killed(child: Callable[[], Any]) -> None:
    """Run something in a process of its own and see it killed."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(7)  # it was to be killed
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(target: Any, name: str, call: int) -> Callable[[], None]:
    """Makes a function of this process kill it when it is called for this time, from 1."""

    def arm() -> None:
        real, seen = getattr(target, name), [0]

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            return die() if seen[0] == call else real(*args, **kwargs)

        setattr(target, name, watched)

    return arm


def dying_in_a_video() -> None:
    """Kills this process when the third frame of a video is to be encoded."""
    real = video.write_video

    def watched(path: Path, frames: Iterator[torch.Tensor], fps: float) -> Path:
        return real(path, (frame if t < 2 else die() for t, frame in enumerate(frames)), fps)

    video.write_video = watched


def dying_with_an_empty_folder() -> None:
    """Kills this process when it has made its hidden folder, and nothing in it."""
    real = hidden.tempfile.mkdtemp

    def watched(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **kwargs) and die()

    hidden.tempfile.mkdtemp = watched


@pytest.mark.parametrize(
    ("arm", "complete"),
    [
        (dying_in_a_video, set()),
        (dying_with_an_empty_folder, set()),
        (dying(hidden, "_locked", 1), set()),  # a folder with a file that is not locked yet
        (dying(Path, "rename", 1), set()),  # that has the name it begins with
        (dying(batch.os, "replace", 4), set()),  # the record is written, beside its place (3 files were before)
        (dying(batch.os, "replace", 6), set()),  # while files are moved to their places
        (dying(batch.os, "replace", 8), set()),  # all moved, and no record
        (dying(video, "write_png", 2), {"one"}),  # in the second clip
        (dying(batch, "read_record", 3), {"one", "three"}),  # between two clips
        (dying(Reporter, "forget", 3), {"one", "three", "two"}),  # all is done
    ],
)
def test_killed_and_called_again_it_ends_with_the_same_bytes(
    place: Path, tmp_path: Path, unbroken: dict[str, bytes], arm: Callable[[], None], complete: set[str]
) -> None:
    def child() -> None:
        arm()
        vqc(*command(place, tmp_path))

    killed(child)
    left = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert all(unbroken[name] == data for name, data in left.items())  # whole, or not there
    assert {n for n in left if n.endswith(".json")} == {f"matting-{clip}.json" for clip in complete}
    assert len(hidden_in(tmp_path)) == 1  # what it was at
    found = vqc_json(*command(place, tmp_path))
    assert {Path(c["clip"]).stem for c in found["clips"] if c["status"] == "kept"} == complete
    assert bytes_of(tmp_path) == unbroken and not hidden_in(tmp_path)  # and nothing else: what was left is gone


def hidden_in(folder: Path) -> list[Path]:
    return list(folder.glob(".vqc-*"))


def test_a_run_at_work_keeps_its_folder(tmp_path: Path) -> None:
    with hidden.work_folder(tmp_path) as first:
        with hidden.work_folder(tmp_path) as second:
            assert first.is_dir() and second.is_dir() and first != second
        assert first.is_dir() and not second.exists()
    assert not list(tmp_path.iterdir())


def leave(output: Path) -> list[Path]:
    """What killed runs can leave: folders of both names, with and without a lock, and one at which a run is."""
    left = [output / name for name in (".vqc-begun-a", ".vqc-begun-b", ".vqc-run-c", ".vqc-run-d")]
    for folder in left:
        folder.mkdir()
    (left[1] / hidden.LOCK).touch()
    (left[2] / hidden.LOCK).touch()
    (left[2] / "files").mkdir()
    (left[2] / "files" / "half.mp4").write_bytes(b"half")
    return left


def test_what_killed_runs_left_is_removed_and_told_and_a_live_one_stays(tmp_path: Path) -> None:
    left = leave(tmp_path)
    (tmp_path / ".vqc-begun-mine").write_text("a file of the user's")
    said: list[str] = []
    (tmp_path / ".vqc-begun-live").mkdir()
    with open(tmp_path / ".vqc-begun-live" / hidden.LOCK, "w") as lock:
        assert hidden._locked(lock)
        with hidden.work_folder(tmp_path) as first, hidden.work_folder(tmp_path, said.append):
            assert first.is_dir() and (tmp_path / ".vqc-begun-live").is_dir()
            assert not any(folder.exists() for folder in left) and said == []  # the first was not asked to tell
        leave(tmp_path)
        with hidden.work_folder(tmp_path, said.append):
            pass
    (told,) = said
    assert "removed what a killed run left" in told and "nothing that was finished is lost" in told
    assert {p.name for p in tmp_path.iterdir()} == {".vqc-begun-live", ".vqc-begun-mine"}


def test_the_command_tells_what_it_removed(place: Path, done: Path, unbroken: dict[str, bytes]) -> None:
    leave(done)
    said = vqc(*command(place, done))
    assert "removed what a killed run left" in said and "one.mp4 is done" in said
    assert bytes_of(done) == unbroken and not hidden_in(done)
    assert "removed" not in vqc(*command(place, done))


def test_runs_that_begin_and_end_at_once_do_not_take_each_others_folders(tmp_path: Path) -> None:
    def often() -> None:
        for k in range(60):
            with hidden.work_folder(tmp_path) as mine:
                (mine / "files").mkdir()
                (mine / "files" / f"{k}").touch()
                shutil.rmtree(mine / "files")

    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            try:
                often()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def done(place: Path, tmp_path: Path, unbroken: dict[str, bytes]) -> Path:
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def statuses(place: Path, out: Path, *more: str | Path) -> dict[str, tuple[str, str]]:
    found = vqc_json(*command(place, out, *more))
    return {Path(c["clip"]).stem: (c["status"], c["run_again_because"]) for c in found["clips"]}


def test_what_is_done_is_kept_and_neither_calibrated_nor_compiled(place: Path, done: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("vqc.api.Pipeline.run", lambda *_: 1 / 0)
    before = {p: p.stat().st_mtime_ns for p in done.iterdir()}
    assert set(statuses(place, done).values()) == {("kept", "")}
    assert "one.mp4 is done" in vqc(*command(place, done))
    assert {p: p.stat().st_mtime_ns for p in done.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--recipe", "int8-all", "--start", "1"], "start"),
        (["--frames", "3"], "frames"),
        (["--recipe", "float"], "recipe"),
        (["--calibration-frames", "4"], "calibration frames"),
        (["--no-float"], "beside float"),
    ],
)
def test_what_was_made_with_other_options_is_made_again(place: Path, done: Path, more: list[str], why: str) -> None:
    found = statuses(place, done, *more)
    assert set(found.values()) == {("done", f"it was made with another {why}")}
    assert set(statuses(place, done, *more).values()) == {("kept", "")}
    if why == "beside float":  # the strips and tables of before would belong to other videos
        assert {p.suffix for p in done.iterdir()} == {".json", ".mp4"}


def test_what_other_sources_made_is_made_again(place: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "sources_key", lambda: "of another commit")
    assert set(statuses(place, done).values()) == {("done", "it was made with another vqc")}


def test_another_network_or_clip_or_a_damaged_result_is_seen(
    place: Path, done: Path, tmp_path_factory: pytest.TempPathFactory, unbroken: dict[str, bytes]
) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(place / "clips", other / "clips")
    shutil.copy(place / "b.mp4", other)
    shutil.copy(place / "nets.py", other)
    assert set(statuses(other, done).values()) == {("kept", "")}  # the same things in another place
    text = (other / "nets.py").read_text()
    (other / "nets.py").write_text(
        text.replace("0.5 * r + 0.5 * y", "0.25 * r + 0.5 * y").replace("0.5 * y if", "0.5 * y if")
    )
    assert set(statuses(other, done).values()) == {("done", "it was made with another model")}
    (other / "nets.py").write_text(text)
    assert set(statuses(other, done).values()) == {("done", "it was made with another model")}
    assert bytes_of(done) == unbroken
    write_clip(other / "clips" / "two.mp4", 4, torch.Generator().manual_seed(9))
    assert statuses(other, done) == {"one": ("kept", ""), "three": ("kept", ""),
                                     "two": ("done", "it was made with another clip")}  # fmt: skip
    assert statuses(place, done)["two"] == ("done", "it was made with another clip")
    (done / "matting-one.mp4").write_bytes(b"half a vid")
    (done / "matting-three-strip.png").unlink()
    assert statuses(place, done) == {"one": ("done", "matting-one.mp4 is not what was written"),
                                     "three": ("done", "matting-three-strip.png is gone"),
                                     "two": ("kept", "")}  # fmt: skip
    assert bytes_of(done) == unbroken
    without = unbroken["matting-two.json"].replace(b'"files": {', b'"f": {')
    for no_record in (b'{"form": 1}', b"half a rec", b"[]", without):
        (done / "matting-two.json").write_bytes(no_record)
        assert statuses(place, done)["two"] == ("done", "") and bytes_of(done) == unbroken
    assert set(statuses(place, done, "--again").values()) == {("done", "")}


def test_a_bad_clip_is_named_and_the_others_are_run(place: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(place / "clips", clips)
    whole = (clips / "one.mp4").read_bytes()
    (clips / "half.mp4").write_bytes(whole[: len(whole) // 2])
    write_clip(clips / "short.mp4", 2, torch.Generator())
    common = ["run", f"{place}/nets.py:matting", clips, "--target", "reference", "--frames", "3",
              "-o", tmp_path / "out"]  # fmt: skip
    found = vqc_json(*common, code=1)
    assert found["ok"] is False
    assert {Path(c["clip"]).name: c["status"] for c in found["clips"]} == {
        "half.mp4": "failed", "one.mp4": "done", "short.mp4": "failed", "three.mkv": "done", "two.mp4": "done",
    }  # fmt: skip
    wrong = {Path(c["clip"]).name: c["error"] for c in found["clips"] if c["status"] == "failed"}
    assert wrong["short.mp4"]["kind"] == "VideoError" and "2 are there" in wrong["short.mp4"]["why"]
    assert not list((tmp_path / "out").glob("*short*")) and not list((tmp_path / "out").glob(".*"))
    said = vqc(*common, code=1)
    assert "error: half.mp4: the clip cannot be read" in said and "error: short.mp4: the clip is too short" in said
    assert "one.mp4 is done" in said


def test_without_float_there_is_a_video_and_a_record(place: Path, tmp_path: Path) -> None:
    vqc(*command(place, tmp_path / "a", "--no-float"))
    vqc(*command(place, tmp_path / "b"))
    assert {p.suffix for p in (tmp_path / "a").iterdir()} == {".json", ".mp4"}
    for video_file in (tmp_path / "a").glob("*.mp4"):
        assert video_file.read_bytes() == (tmp_path / "b" / video_file.name).read_bytes()


def test_an_example_of_random_numbers_is_no_other_network(place: Path, tmp_path: Path) -> None:
    """A factory is called anew by each run: its weights count, the frame it shows does not."""
    net = (place / "nets.py").read_text() + "\n\ndef loose():\n    net = Matting()\n    torch.seed()\n"
    (tmp_path / "loose.py").write_text(net + "    return net, torch.rand(1, 3, 16, 24), {'r': 2}, 1\n")
    call = ["run", f"{tmp_path}/loose.py:loose", place / "b.mp4", "--target", "reference", "-o", tmp_path / "out"]
    assert vqc_json(*call)["clips"][0]["status"] == "done"
    again = vqc_json(*call)["clips"][0]
    assert again["status"] == "kept", again


def test_several_paths_and_each_clip_once(place: Path, tmp_path: Path) -> None:
    found = vqc_json("run", f"{place}/nets.py:matting", place / "b.mp4", place / "clips", place / "clips" / "one.mp4",
                     "--target", "reference", "-o", tmp_path)  # fmt: skip
    assert [Path(c["clip"]).name for c in found["clips"]] == ["b.mp4", "one.mp4", "three.mkv", "two.mp4"]


def test_results_overwrite_neither_clips_nor_each_other(place: Path, tmp_path: Path) -> None:
    net = f"{place}/nets.py:matting"
    assert "it is the folder of the clips" in vqc("run", net, place / "clips", "-o", place / "clips", code=2)
    for name in ("x.mp4", "x.mkv", "matting-x.mp4"):
        shutil.copy(place / "b.mp4", tmp_path / name)
    both = vqc("run", net, tmp_path / "x.mp4", tmp_path / "x.mkv", "-o", tmp_path / "out", code=2)
    assert "would both become matting-x.mp4" in both
    over = vqc("run", net, tmp_path / "x.mp4", tmp_path / "matting-x.mp4", "-o", tmp_path, code=2)
    assert "would overwrite the clip matting-x.mp4" in over
    assert (tmp_path / "matting-x.mp4").read_bytes() == (place / "b.mp4").read_bytes()
    (tmp_path / "empty").mkdir()
    assert "has no clips" in vqc("run", net, tmp_path / "empty", code=2)
