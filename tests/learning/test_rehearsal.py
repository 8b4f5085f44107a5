"""Rehearsal: scenes count alike, whether they are hard or easy."""

import math

import pytest
import torch

from vqc.learning.rehearsal import Score, _Errors, _units


def test_a_score_is_the_geometric_mean_over_clips():
    assert Score(((1.0, 0.0), (4.0, 0.0))).total(0.0) == pytest.approx(2.0)
    assert Score(((1.0, 2.0), (3.0, 1.0))).total(0.5) == pytest.approx(math.sqrt(2.0 * 3.5))
    assert Score(((0.5, 9.0),)).total(0.0) == pytest.approx(0.5)
    assert math.isnan(Score(((math.nan, 0.0), (1.0, 0.0))).total(0.0))
    assert 0 < Score(((0.0, 0.0),)).total(1.0) < 1e-6


def seen(*squares, flicker=()):
    """Errors of one clip: for each step the error of results 3 and 5, whose powers are 1 and 4."""
    found = _Errors([3, 5])
    for a, b in squares:
        found.add({3: torch.full((2, 2), a), 5: torch.full((2, 2), b)}, {3: 1.0, 5: 4.0})
    found.flicker += flicker
    return found


def test_every_clip_has_units_of_its_own_unless_it_has_hardly_an_error():
    hard, easy, empty = seen((2.0, 4.0), (4.0, 4.0), flicker=[3.0, 5.0]), seen((1.0, 2.0)), seen((0.0, 0.0))
    assert hard.steps == 2 and hard.of() == [10.0, 4.0, 4.0] and easy.of() == [1.0, 1.0, 0.0]
    units = _units([hard, easy, empty])
    assert units[0] == hard.of() and units[1] == pytest.approx([1.0, 1.0, 0.4 / 3])
    assert units[2] == pytest.approx([1.1 / 3, 0.5 / 3, 0.4 / 3])  # a tenth of what clips have in the mean
    assert _units([seen((0.0, 0.0))]) == [[1.0, 1.0, 1.0]]
