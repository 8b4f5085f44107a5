"""Checkpoints: what is found again, what is another piece of work, what a kill or a damaged file does."""

import os

import pytest
import torch
from handmade import Hand, aten
from safetensors import SafetensorError

from vqc.errors import ArtifactError
from vqc.learning import checkpoint
from vqc.learning.checkpoint import Checkpoint, fingerprint
from vqc.passes.observe import Observe


def program(weight: float = 1.0, shift: float = 1.0):
    h = Hand()
    x = h.input("x", 1, 1, 2, 2)
    a = h(aten.conv2d, x, h.const("w", torch.full((1, 1, 1, 1), weight)), None)
    return h.done(h(aten.add.Scalar, a, shift))


def test_what_was_saved_is_found_again(tmp_path):
    tensors = {
        "a": torch.randn(3),
        "step": torch.tensor([2.0], dtype=torch.float64),
        "rng": torch.Generator().get_state(),
    }
    Checkpoint(tmp_path / "deep", "gac", ["x", 1]).save(7, tensors)
    Checkpoint(tmp_path / "deep", "gac", ["x", 1]).save(
        8, {**tensors, "b": tensors["a"], "c": torch.arange(6).view(2, 3).T}
    )
    step, found = Checkpoint(tmp_path / "deep", "gac", ["x", 1]).load()
    assert step == 8 and set(found) == {"a", "step", "rng", "b", "c"}
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert torch.equal(found["c"], torch.arange(6).view(2, 3).T)
    assert [p.suffix for p in (tmp_path / "deep").iterdir()] == [".safetensors"]


def test_other_work_is_another_file(tmp_path):
    Checkpoint(tmp_path, "gac", ["x", 1]).save(1, {"a": torch.zeros(1)})
    for kind, parts in (("gac", ["x", 2]), ("gac", ["x", 1, None]), ("gac", ["x", 1.0]), ("other", ["x", 1])):
        assert Checkpoint(tmp_path, kind, parts).load() is None
    Checkpoint(None, "gac", ["x", 1]).save(1, {"a": torch.zeros(1)})
    assert Checkpoint(None, "gac", ["x", 1]).load() is None


def test_a_key_sees_everything_a_result_depends_on():
    same = fingerprint(program(), Observe(), [torch.ones(2)])
    assert same == fingerprint(program().clone(), Observe(), [torch.ones(2)])
    others = [
        (program(weight=1 + 1e-7), Observe(), [torch.ones(2)]),  # a constant's last bit
        (program(shift=1 + 1e-12), Observe(), [torch.ones(2)]),  # an argument beyond what the text shows
        (program(), Observe("phase"), [torch.ones(2)]),
        (program(), Observe(), [torch.ones(2, 1)]),
        (program(), Observe(), [torch.ones(2).double()]),
        (program(), Observe(), [torch.ones(1), torch.ones(1)]),
    ]
    assert len({same, *(fingerprint(*o) for o in others)}) == len(others) + 1
    with pytest.raises(TypeError, match="object has no content"):
        fingerprint(object())


def test_a_kill_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    c = Checkpoint(tmp_path, "gac", [])
    c.save(1, {"a": torch.zeros(1)})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        c.save(2, {"a": torch.ones(1)})
    step, found = c.load()
    assert step == 1 and float(found["a"]) == 0


def test_damaged_and_unwritable(tmp_path, monkeypatch):
    c = Checkpoint(tmp_path, "gac", [])
    c.save(1, {"a": torch.zeros(100)})
    c.path.write_bytes(c.path.read_bytes()[:50])
    with pytest.raises(ArtifactError, match="cannot be read[\\s\\S]*delete it"):
        c.load()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ArtifactError, match="cannot be written[\\s\\S]*No space left"):
        c.save(2, {"a": torch.zeros(1)})
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
