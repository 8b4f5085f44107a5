"""The choice of tiles: order on paper, a clock that is a fake, code with objections, choices kept and broken."""

import json

import pytest
import torch
from triton_programs import recurrent

import vqc
from vqc.backends.triton.convolution import Convolution
from vqc.backends.triton.epilogue import Epilogue, Step
from vqc.backends.triton.floats import Channels
from vqc.backends.triton.launch import recording
from vqc.backends.triton.pointwise import Pointwise
from vqc.backends.triton.roofline import H200, Peak, cost_of, peak_of
from vqc.backends.triton.samples import Layer, binary, convolution
from vqc.backends.triton.tiles import Tile
from vqc.backends.triton.tuner import (
    TRIED,
    Choices,
    Tuner,
    candidates,
    example_of,
    known_arch,
    tile_of,
    with_tile,
)

CPU = torch.device("cpu")
SMALL = Layer(20, 24, (5, 7))


class FakeClock:
    """Seconds by a table: what the call launches is looked up, nothing is run."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.asked = seconds, []
        monkeypatch.setattr("vqc.backends.triton.tuner.run", self.asked.append)

    def __call__(self, call):
        call()
        made = self.asked[-1]
        return self.seconds(Tile(made.meta["BM"], made.meta["BN"], made.meta.get("BK", 0), made.warps, made.stages))


def order_of(layer):
    given = example_of(layer)
    return sorted(candidates(layer), key=lambda t: sum(
        cost_of(x).seconds(H200) for x in with_tile(layer, t).launches(*given)[0]))  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
def test_every_candidate_gives_the_same(masked):
    layer = convolution(SMALL, Epilogue((Step("relu"),)), masked=masked)
    given = example_of(layer)
    tiles = candidates(layer)
    assert tiles[0] == tile_of(layer) and len(set(tiles)) == len(tiles) >= 6
    assert not masked or {t.bm for t in tiles} == {128}
    some = {(t.bm, t.bn): t for t in tiles}  # warps and stages do not matter to the interpreter
    results = [with_tile(layer, t)(*given).value for t in some.values()]
    assert len(results) >= 2 and all(torch.equal(r, results[0]) for r in results)


def test_without_a_clock_the_best_on_paper_is_taken():
    layer = convolution(Layer(64, 64, (72, 128)), Epilogue())
    tuner = Tuner(H200)
    chosen = tuner.best(layer)
    assert tile_of(chosen) == order_of(layer)[0] and tuner.found == {"predicted": 1}
    said = "\n".join(tuner.said())
    assert "1 predicted" in said and "no GPU to measure" in said and "not compiled" in said


def test_the_clock_decides_among_the_best_on_paper(monkeypatch, tmp_path):
    layer = convolution(Layer(64, 64, (72, 128)), Epilogue())
    best = order_of(layer)[:TRIED]
    clock = FakeClock(monkeypatch, lambda t: 1e-6 if t == best[3] else 2e-6)
    tuner = Tuner(H200, clock, None, Choices(tmp_path))
    assert tile_of(tuner.best(layer)) == best[3] and len(clock.asked) == TRIED
    again = Tuner(H200, clock, None, Choices(tmp_path))
    assert tile_of(again.best(layer)) == best[3] and again.found == {"kept": 1} and len(clock.asked) == TRIED
    other = Tuner(Peak("another", 1e12, 1e14, 5e13, 1.0), clock, None, Choices(tmp_path))
    other.best(layer)
    assert other.found == {"measured": 1}, "another GPU, another choice"
    wider = Tuner(H200, clock, None, Choices(tmp_path))
    wider.best(convolution(Layer(64, 64, (72, 130)), Epilogue()))
    assert wider.found == {"measured": 1}, "another shape, another choice"


def test_code_with_an_objection_is_never_taken(monkeypatch):
    layer = binary(Layer(64, 64, (72, 128)), Epilogue(), "dot")
    order = order_of(layer)

    def objections(made):
        return "8 bytes of registers are spilled" if made.meta["BN"] == order[0].bn else None

    tuner = Tuner(H200, FakeClock(monkeypatch, lambda t: float(t.bn == order[0].bn)), objections)
    assert tile_of(tuner.best(layer)).bn != order[0].bn
    assert Tuner(H200, None, objections).best(layer).tile.bn != order[0].bn
    assert any("are spilled" in line for line in tuner.said())


@pytest.mark.parametrize("clocked", [False, True])
def test_where_every_candidate_is_refused_the_default_is_taken_and_told(clocked, monkeypatch, tmp_path):
    layer = convolution(SMALL, Epilogue())
    clock = FakeClock(monkeypatch, lambda t: 1.0) if clocked else None
    tuner = Tuner(H200, clock, lambda made: "8 bytes of registers are spilled", Choices(tmp_path))
    assert tile_of(tuner.best(layer)) == tile_of(layer) and list(tmp_path.iterdir()) == []
    assert "1 by default, for every candidate was refused" in tuner.said()[0]


def test_what_does_not_fit_the_device_is_passed_over(monkeypatch):
    from triton.runtime.errors import OutOfResources

    layer = convolution(Layer(64, 64, (72, 128)), Epilogue())
    order = order_of(layer)

    def seconds(tile):
        if tile != order[5]:
            raise OutOfResources(300000, 232448, "shared memory")
        return 1.0

    tuner = Tuner(H200, FakeClock(monkeypatch, seconds))
    assert tile_of(tuner.best(layer)) == order[5] and len(tuner.refused) == TRIED - 1


@pytest.mark.parametrize("content", ["{", "[]", '{"tile": {"bm": 1}}', None, "tile", "float"])
def test_broken_choices_are_made_anew(content, tmp_path, monkeypatch):
    layer = convolution(SMALL, Epilogue())
    tuner = Tuner(H200, FakeClock(monkeypatch, lambda t: 1.0), None, Choices(tmp_path))
    tuner.best(layer)
    (path,) = tmp_path.iterdir()
    entry = json.loads(path.read_text())
    changed = {None: {"key": "of another"}, "tile": {"tile": entry["tile"] | {"bm": 48}},
               "float": {"tile": entry["tile"] | {"bm": float(entry["tile"]["bm"])}}}  # fmt: skip
    path.write_text(json.dumps(entry | changed[content]) if content in changed else content)
    again = Tuner(H200, FakeClock(monkeypatch, lambda t: 1.0), None, Choices(tmp_path))
    with pytest.warns(UserWarning, match="is no choice of a tile"):
        again.best(layer)
    assert again.found == {"measured": 1} and json.loads(path.read_text()) == entry


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    tuner = Tuner(H200, FakeClock(monkeypatch, lambda t: 1.0), None, Choices(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="not kept"):
        tuner.best(convolution(SMALL, Epilogue()))


def test_a_prediction_that_was_kept_gives_way_to_a_clock(tmp_path, monkeypatch):
    layer = Pointwise((1, 8, 9, 9), Epilogue((Step("relu"),)), CPU)
    Tuner(H200, None, None, Choices(tmp_path)).best(layer)
    tuner = Tuner(H200, FakeClock(monkeypatch, lambda t: t.warps), None, Choices(tmp_path))
    assert tuner.best(layer).tile.warps == 2 and tuner.found == {"measured": 1}


def test_a_tuned_program_is_the_same():
    program = recurrent()
    exe = vqc.compile(program, "triton", tune=True)
    wanted = vqc.compile(program, "reference").step(program.example)
    made = exe.step(program.example)
    assert all(torch.equal(a, b) for x, y in zip(made, wanted, strict=True) for a, b in zip(x, y, strict=True))
    assert any(n.startswith("tiles on H200: 3 predicted") for n in exe.report.notes)


def test_costs_on_paper():
    peak = Peak("one", bytes=1e12, s8=1e14, f16=5e13, launch_us=1.0, l2=1e20, processors=10)
    layer = with_tile(convolution(Layer(64, 64, (32, 32)), Epilogue()), Tile(64, 64, 64, 4, 3))
    cost = cost_of(layer.launches(*example_of(layer))[0][0])
    assert (cost.programs, cost.macs, cost.unit) == (16, 1024 * 64 * 64 * 9, "s8")
    arithmetic = 20 / 16 * cost.macs / 1e14  # two rounds of ten multiprocessors
    assert cost.seconds(peak) == pytest.approx(arithmetic + 1e-6)
    assert 1024 * 64 * 5 + 64 * 64 * 9 <= cost.moved <= 1024 * 64 * 5 + 64 * 64 * 9 + 64 * 12
    found = []
    with recording(found.append):
        Channels([(0, 2, 3, 0, 1)], [40])([torch.empty(1, 8, 6, 7, dtype=torch.uint8)])
    assert cost_of(found[0]).moved == 2 * 3 * 42, "three channels, in and out, of larger pictures"
    assert peak_of(80).name == "A100" and peak_of(90, "mine", 7).processors == 7 and peak_of(103).name == "B200"
    assert [known_arch(c) for c in (80, 86, 90, 100, 120)] == ["sm_80", "sm_80", "sm_90", "sm_100", "sm_100"]
    assert isinstance(layer, Convolution)
