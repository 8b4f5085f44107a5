"""The benchmarks' own machinery: turns carry the state, ratios are against the right peers, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cpu, layers, machine, masked_layers
from benchmarks.command import begin, command
from benchmarks.networks import Runner, race
from vqc.report.network import Network
from vqc.report.session import Engine, Playback, compiled_engine, eager_engine, play


class Recurrent(nn.Module):
    """A running mean of what a convolution makes of the frames."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, r=None):
        y = torch.sigmoid(self.conv(x))
        y = 0.25 * y if r is None else 0.25 * y + 0.75 * r
        return y, y


@pytest.fixture
def net() -> Network:
    return Network("recurrent", Recurrent().eval(), (torch.rand(1, 3, 8, 12),), {"r": 1})


@pytest.mark.parametrize("frames", [5, 6, 7])
def test_taking_turns_plays_the_same_pictures_as_playing_alone(net: Network, frames: int) -> None:
    clip = torch.rand(frames, 3, 8, 12, generator=torch.Generator().manual_seed(frames))
    engines = [eager_engine(net, "a"), compiled_engine(net, "float", "reference", "b")]
    alone = [play(e, net, clip) for e in engines]
    runners = [Runner("float32", e, Playback(e.name, 0)) for e in engines]
    race(runners, net, clip, turn=3)
    for r, p in zip(runners, alone, strict=True):
        assert torch.equal(r.played.clip, p.clip) and len(r.played.pictures) == frames
        assert len(r.played.times) == frames - -(-frames // 3)  # the first of each turn finds cold caches


def test_runners_take_turns(net: Network) -> None:
    said: list[str] = []

    def engine(name: str) -> Engine:
        def step(inputs):
            said.append(name)
            return [inputs[0], inputs[0]]

        return Engine(name, step, lambda: None, 0)

    race([Runner("k", engine(n), Playback(n, 0)) for n in "ab"], net, torch.rand(4, 3, 8, 12), turn=2)
    assert "".join(said) == "aabbaabb"


def test_layers_of_vqc_alone() -> None:
    there, back = layers.Shape(8, 8, 3, 6, 10), layers.Shape(8, 4, 1, 6, 10)
    assert (there.name, there.macs) == ("8->8 3x3 @6x10", 8 * 8 * 9 * 60) and back.name == "8<->4 1x1 @6x10"
    assert back.chain(4)(back.inputs(1)[0]).shape == (1, 8, 6, 10)
    records = layers.measure((there, back), rounds=2, peers=False)
    assert [r["engine"] for r in records] == ["vqc C, float32", "vqc C, int8"] * 2
    assert all("ratio" not in r and r["threads"] == 1 for r in records)  # nobody to compare with


def test_the_command_line_and_the_file_of_a_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = cpu.arguments(["--quick", "--only", "build", "--threads", "1", "--models", "rvm", "-o", str(tmp_path)])
    assert given.quick and given.only == ["build"] and given.threads == [1] and given.peers
    monkeypatch.setitem(cpu.JOBS, "build", lambda _: [{"model": "rvm"}])
    cpu.main(["--only", "build", "-o", str(tmp_path)])
    found = json.loads((tmp_path / "build.json").read_text())
    assert found["results"] == [{"model": "rvm"}] and found["machine"]["processor"] == machine.cpu_name()
    cpu.main(["--only", "build", "--quick"])  # quick figures are not kept
    assert [p.name for p in tmp_path.iterdir()] == ["build.json"]
    with pytest.raises(SystemExit):
        cpu.arguments(["--only", "nothing"])


def test_a_benchmark_begins_with_one_thread_and_knows_where_it_writes(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        given, began = begin(command("What it measures."), [])
        assert torch.get_num_threads() == 1 and given.output == machine.folder()
        assert began.keys() == machine.machine().keys()
        parser = command("What it measures.")
        parser.add_argument("--seeds", type=int, default=3)
        assert (
            begin(parser, ["-o", str(tmp_path)])[0].output == tmp_path and "What it measures." in parser.format_help()
        )
    finally:
        torch.set_num_threads(before)


def test_masked_layers_tells_of_itself_and_measures_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def measure(*given, **more):
        calls.append((*given, more))
        return [{"kind": "binary", "layer": "8->8@4x4", "density": 0.5, "dense_ms": 1, "masked_ms": 0.5, "ratio": 0.5}]

    monkeypatch.setattr(masked_layers, "measure", measure)
    for wrong, code in (["--help"], 0), (["--repeats", "0"], 2), (["--kinds", "int3"], 2):
        with pytest.raises(SystemExit) as ended:
            masked_layers.main(wrong)
        assert ended.value.code == code and not calls
    assert "--repeats" in capsys.readouterr().out
    masked_layers.main([])
    masked_layers.main(["--quick", "--kinds", "binary"])
    every = ["float32", "int8", "binary", "unit"]
    assert calls == [(every, masked_layers.LAYERS, {"repeats": 30}), (["binary"], masked_layers.LAYERS[:1],
                                                                      {"repeats": 3})]  # fmt: skip
    assert "8->8@4x4" in capsys.readouterr().out


def test_the_binary_unit_is_measured_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_layers, "measure_units", lambda *_: [{"kind": "binary unit"}])
    assert masked_layers.measure(["unit"]) == [{"kind": "binary unit"}]
    assert masked_layers.measure([]) == []
