"""Tuning: what may be chosen changes no result; the fastest is kept, and asked for again only when it is not known."""

from __future__ import annotations

import json

import pytest
import torch
from c_helpers import aten, chain, compiled

from vqc.backends.c import tune
from vqc.backends.c.backend import CBackend
from vqc.backends.c.choices import Asked, Choices, candidates
from vqc.backends.c.packing import Geometry


def network():
    def build(b, x):
        y = b.call(aten.conv2d.default, x, torch.randn(16, 8, 3, 3), torch.randn(16), [1, 1], [1, 1])
        z = b.call(aten.conv_transpose2d.input, y, torch.randn(16, 4, 2, 2), None, [2, 2])
        return b.call(aten.conv2d.default, z, torch.randn(4, 4, 1, 1))

    return chain(build, torch.randn(1, 8, 30, 40))


def test_candidates_are_different_numbers_of_rows_the_estimate_first():
    geometry = Geometry(1, 64, 64, 1, (1, 100, 200), (1, 100, 200), (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1))
    found = candidates(geometry, 1)
    assert found[0] == geometry.rows(1) and len(set(found)) == len(found) > 3 and all(1 <= r <= 100 for r in found)
    up = Geometry(1, 8, 8, 1, (1, 9, 9), (1, 18, 18), (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), transposed=True)
    assert max(candidates(up, 1)) == 9  # rows of a phase


def test_a_candidate_is_kept_only_when_it_gains():
    asked = Asked("k", (8, 4, 16))
    assert tune.best(asked, [1.0, 0.97, 1.2]) == 8
    assert tune.best(asked, [1.0, 0.9, 0.8]) == 16
    assert tune.best(asked, [1.0, 0.9, 1.2, 0.1]) == 4  # another question's fourth candidate


def test_every_candidate_gives_the_same_bits(monkeypatch, tmp_path):
    monkeypatch.setenv("VQC_CACHE", str(tmp_path))
    program = network()
    want = compiled(program).trace(program.example)[0]
    rows = []
    keep = tune._measure

    def measure(models, inputs):
        times = keep(models, inputs)
        for m in models:
            calls = m.model.lowered.calls
            rows.append([c.params.fields["rows"] for c in calls if "rows" in c.params.fields])
            assert torch.equal(m.step(m.new_state(), inputs)[0], want)
        first = dict.fromkeys(times[0], 1.0)
        return [first, *(dict.fromkeys(first, 0.5 if i == 2 else 2.0) for i in range(1, len(models)))]

    monkeypatch.setattr(tune, "_measure", measure)
    exe = compiled(program, tune=True)
    assert len(rows) > 3 and len({tuple(r) for r in rows}) == len(rows)
    calls = exe.model.model.lowered.calls
    assert [c.params.fields["rows"] for c in calls if "rows" in c.params.fields] == rows[2]  # the fastest
    assert torch.equal(exe.trace(program.example)[0], want)
    (file,) = (tmp_path / "c" / "tuned").iterdir()
    assert len(json.loads(file.read_text())) == 3
    monkeypatch.setattr(tune, "_measure", lambda *_: pytest.fail("measured again"))
    again = compiled(program, tune=True)
    assert [c.params.fields for c in again.model.model.lowered.calls] == [c.params.fields for c in calls]
    untuned = [
        c.params.fields["rows"] for c in compiled(program).model.model.lowered.calls if "rows" in c.params.fields
    ]
    assert untuned == rows[0]  # without the option nothing is looked up: the same program gives the same C


def test_tuning_measures_for_real_and_survives_a_damaged_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VQC_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "ROUNDS", 1)
    program = network()
    want = compiled(program).trace(program.example)[0]
    for _ in range(2):
        exe = CBackend().compile(program, "native", {"tune": True, "threads": 2})
        assert torch.equal(exe.trace(program.example)[0], want)
        (file,) = (tmp_path / "c" / "tuned").iterdir()
        assert len(json.loads(file.read_text())) == 3
        file.write_text("[1, 2")


def test_an_answer_that_is_no_candidate_is_not_used():
    geometry = Geometry(1, 8, 8, 1, (1, 20, 20), (1, 20, 20), (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1))
    key = f"{geometry!r} workers=1"
    assert Choices({key: 5}).rows(geometry, 1, "n") == 5 and Choices({key: 77}).rows(geometry, 1, "n") == 20
