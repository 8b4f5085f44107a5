"""Clips run one after the other into a folder; what is there already, from the same things, is not run again.

The files of a clip are written into a hidden folder beside their places and renamed when all are complete, the record
(`vqc.cli.record`) last. Killed at any moment, the same call goes on with the clip it was at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import vqc
from vqc import video
from vqc.cli import figures
from vqc.cli.clips import clip_path, identity
from vqc.cli.exits import Misuse
from vqc.cli.hidden import work_folder
from vqc.cli.playing import chosen, played, strip, windows
from vqc.cli.record import made_from, read_record, text_of, why_anew
from vqc.cli.show import Reporter
from vqc.cli.work import Job, announce, table_text
from vqc.errors import ArtifactError, InputError, VqcError
from vqc.report.network import Network
from vqc.report.session import Engine, Playback, captured, eager_engine, program_engine, rows, use_threads
from vqc.report.tables import write_text


@dataclass
class Outcome:
    """What became of one clip. `status`: "done", "kept" (it was done before), "failed" (`error`).

    `result`: what the record says of it. `files`: paths. `table`: with times, of this run only. `why`: why it was run
    although there is a record.
    """

    clip: str
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    table: list[dict[str, str]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)
    error: VqcError | None = None
    why: str = ""


class Batch:
    """Clips to be run by one network into one folder. `beside`: the float network is run too, and compared with.

    The network is loaded when the first clip that can be read asks for it, and put through its recipe and compiled when
    the first clip has to be run.
    """

    def __init__(self, job: Job, output: Path, report: Reporter, *, beside: bool = True, again: bool = False):
        self.job, self.output, self.report, self.beside, self.again = job, output, report, beside, again
        self.options = use_threads(job.threads, job.target)  # before the network is captured, which computes

    def run(self, clips: Sequence[str]) -> Iterator[Outcome]:
        """Run clips in order. What is wrong with a clip is its outcome; what is wrong with the network is raised.

        Raises Misuse when results would overwrite each other or a clip.
        """
        failed = {}
        for clip in clips:  # so that a wrong name is told before weights are fetched
            try:
                next(video.iter_frames(clip_path(clip)))
                break
            except VqcError as error:
                failed[clip] = error
        if len(failed) < len(clips):
            self._check_names(clips)
        with work_folder(self.output, self.report.say) as work:
            for number, clip in enumerate(clips):
                if len(clips) > 1:
                    self.report(f"clips, now {Path(clip).name}", number + 1, len(clips))
                try:
                    outcome = self._one(clip, work, failed.get(clip))
                except _Broken as broken:
                    outcome = Outcome(clip, "failed", error=broken.error)
                self.report.forget()  # before others print
                yield outcome

    @cached_property
    def net(self) -> Network:
        net = self.job.network()
        announce(net, self.report, self.beside)
        return net

    @cached_property
    def program(self) -> vqc.Program:
        """The network as captured."""
        return captured(self.net)

    @cached_property
    def origin(self) -> dict[str, Any]:
        return made_from(self.job, self.net, self.program, self.beside)

    @cached_property
    def engines(self) -> list[Engine]:
        """The compiled program, and before it the float network where it is run beside."""
        job = self.job
        self.report.say(f"compile {self.net.name}: recipe {job.recipe or 'none'}, target {job.target}")
        program = job.program(self.net, self.report, self.program)
        compiled = program_engine(program, job.engine_name, job.target, **self.options)
        return [eager_engine(self.net), compiled] if self.beside else [compiled]

    def stem(self, clip: str) -> str:
        """What the files of a clip are called."""
        return f"{self.net.name}-{Path(clip).stem}"

    def _check_names(self, clips: Sequence[str]) -> None:
        taken: dict[str, str] = {}
        given = {Path(c).resolve() for c in clips}
        for clip in clips:
            name = f"{self.stem(clip)}.mp4"
            if name in taken:
                raise Misuse(InputError(f"{taken[name]} and {clip} would both become {name}",
                                        way_out="run them one by one, into two folders"))  # fmt: skip
            if (self.output / name).resolve() in given:
                raise Misuse(InputError(f"the result of {clip} would overwrite the clip {name}",
                                        way_out="choose another folder with -o"))  # fmt: skip
            taken[name] = clip

    def _one(self, clip: str, work: Path, known_error: VqcError | None) -> Outcome:
        if known_error is not None:
            raise _Broken(known_error)
        stem = self.stem(clip)
        place = self.output / f"{stem}.json"
        with _broken():
            path = clip_path(clip)
            next(video.iter_frames(path))
            known = identity(path)
        said = {"name": Path(clip).stem, "sha256": known.sha256, "bytes": known.size}
        record, why = read_record(place), ""
        if record is not None and not self.again:
            why = why_anew(record, self.origin, said, self.output)
            if not why:
                kept = [self.output / name for name in record["files"]]
                return Outcome(clip, "kept", _shown(record), [*kept, place], engines=record.get("engines", []))
            self.report.say(f"{Path(clip).name} is run again: {why}")
        engines = self.engines  # outside of the block below: a program that does not compile fails for every clip
        files = work / "files"
        shutil.rmtree(files, ignore_errors=True)  # of a clip that failed
        files.mkdir()
        with _broken():
            result, table, timed = self._play(engines, path, files, stem)
        made = {p.name: p for p in sorted(files.iterdir())}
        text = text_of(result, self.origin, said, made)
        old = set() if record is None else {Path(name).name for name in record["files"]} - set(made)
        self._publish(made | {place.name: write_text(work / place.name, text)}, old)
        return Outcome(clip, "done", result, [*(self.output / name for name in made), place], table, timed, why=why)

    def _publish(self, made: Mapping[str, Path], old: set[str]) -> None:
        """Remove files of before that were not made this time, and move those of a clip to their places, in order."""
        try:
            for name in old:
                (self.output / name).unlink(missing_ok=True)
            for name, path in made.items():
                os.replace(path, self.output / name)
        except OSError as e:
            raise ArtifactError(f"nothing can be written into {self.output}", where=str(self.output),
                                why=e.strerror or str(e), way_out="choose another folder with -o") from e  # fmt: skip

    def _play(self, engines: Sequence[Engine], path: Path, work: Path, stem: str
              ) -> tuple[dict[str, Any], list[dict[str, str]], list[dict[str, Any]]]:  # fmt: skip
        """Write the files of one clip into `work`; what the record says of them, a table with times, and it as data."""
        job, net = self.job, self.net
        boards = [Playback(e.name, e.weight_bytes) for e in engines]
        label = f"{path.name}, run " if self.beside else f"{path.name}, "
        total = max(0, job.frames - net.reach)

        def steps(k: int, total: int) -> Iterator[Any]:
            seen = windows(net, path, job.frames, job.start)
            return played(engines[k], net, seen, self.report, total, label + engines[k].name, boards[k], self.beside)

        if self.beside:
            for _ in steps(0, total):
                pass
            total = len(boards[0].pictures)
        looked = []
        shown = chosen(total) if self.beside else []

        def pictures() -> Iterator[Any]:
            for t, (window, picture) in enumerate(steps(len(engines) - 1, total)):
                if t in shown:
                    looked.append(window)
                yield picture

        rate = video.frame_rate(path)
        video.write_video(work / f"{stem}.mp4", pictures(), rate)
        result = {"frames": len(boards[-1].times), "size": list(net.size), "fps": rate}
        if not self.beside:
            entry = {"engine": boards[0].engine, "weight_bytes": boards[0].weight_bytes}
            timed = [entry | {"ms_a_frame": boards[0].ms}]
            table = [{"engine": boards[0].engine, "ms a frame": f"{boards[0].ms:.1f}",
                      "weights MB": f"{boards[0].weight_bytes / 1e6:.2f}"}]  # fmt: skip
            return result | {"engines": [entry]}, table, timed
        table = rows(boards, boards[0])
        still = [{k: v for k, v in row.items() if k != "ms a frame"} for row in table]  # equal runs, equal bytes
        write_text(work / f"{stem}-table.md", table_text(still, boards[0].engine, boards[1].engine))
        video.write_png(work / f"{stem}-strip.png", strip(net, looked, boards[0], boards[1]))
        return result | {"engines": figures.engines(boards, times=False)}, table, figures.engines(boards)


class _Broken(Exception):
    """Something is wrong with one clip, and the others go on."""

    def __init__(self, error: VqcError):
        self.error = error
        super().__init__(str(error))


@contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except VqcError as error:
        raise _Broken(error) from error


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k in ("frames", "size", "fps", "engines")}
