"""The one-bit network that is shipped: small, whole, and as good on a real clip as its own notes say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vqc import metrics
from vqc.errors import ArtifactError
from vqc.models import load_bivm, load_rvm
from vqc.models._bivm_weights import BIVM_FILE, build_packed
from vqc.models.packed import packed_bytes
from vqc.train.data import HELD_OUT
from vqc.train.evaluate import mattes
from vqc.video import clip, read_clip


def test_it_is_as_small_as_promised() -> None:
    assert BIVM_FILE.stat().st_size <= 720_000
    net = load_bivm()
    floats = sum(p.numel() for p in net.parameters()) * 4
    assert floats / packed_bytes(load_file(BIVM_FILE)) >= 21.6


def test_it_says_how_it_was_made() -> None:
    _, about = build_packed(BIVM_FILE)
    assert about["preset"] == "small" and about["seed"] == 0
    assert set(about["scores"]) == {f"{name} {a}-{b}" for name, held in HELD_OUT.items() for a, b in held}
    assert sum(s["mad"] for s in about["scores"].values()) / len(about["scores"]) < 25


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "bivm.safetensors"
    broken.write_bytes(BIVM_FILE.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="cannot be read"):
        build_packed(broken)


@pytest.mark.network
def test_it_finds_the_person_of_a_clip_it_never_saw() -> None:
    """Against the float teacher, state carried, and steadier than a matte that is drawn anew for every frame."""
    frames = read_clip(clip("single_face"), 6, (288, 512))
    torch.set_num_threads(1)
    truth, _ = mattes(load_rvm(), frames)
    alpha, density = mattes(load_bivm(), frames)
    assert metrics.mad(alpha, truth) < 0.25 * metrics.mad(torch.zeros_like(truth), truth)
    assert 0.05 < density < 0.6
