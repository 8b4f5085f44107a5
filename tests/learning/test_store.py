"""Activations in memory and on disk are the same activations."""

import shutil

import pytest
import torch

from vqc.errors import CalibrationError
from vqc.learning.store import Store


def test_what_does_not_fit_goes_to_disk_and_comes_back(tmp_path):
    values = {(i,): torch.randn(10, 10) for i in range(10)}
    values[("pair",)] = (torch.randn(3), torch.randn(2))
    with Store(1000, tmp_path) as store:  # 400 bytes each: two stay
        for key, value in values.items():
            store.put(key, value)
        assert store.resident <= 1000 and store.spilled == 8
        assert any(tmp_path.rglob("*.pt"))
        for key, value in values.items():
            got = store.get(key)
            assert key in store and all(torch.equal(a, b) for a, b in zip(got, value, strict=True))
        assert (99,) not in store
    assert not list(tmp_path.iterdir())


def test_dropping_makes_room(tmp_path):
    with Store(400, tmp_path) as store:
        store.put("a", torch.ones(100))
        store.put("b", torch.zeros(100))
        assert store.spilled == 1
        store.drop("a")
        store.drop("b")
        assert store.resident == 0 and not any(tmp_path.rglob("*.pt"))
        store.put("c", torch.ones(100))
        store.put("c", torch.zeros(100))  # the same key: replaced
        assert store.resident == 400 and store.spilled == 1 and float(store.get("c").sum()) == 0


def test_values_keep_no_graph(tmp_path):
    x = torch.ones(3, requires_grad=True)
    with Store(100, tmp_path) as store:
        store.put("x", x * 2)
        assert not store.get("x").requires_grad


def test_a_part_of_a_tensor_takes_the_room_of_the_part(tmp_path):
    with Store(0, tmp_path) as store:
        store.put("x", torch.ones(1000, 1000)[:, 0])
        (file,) = tmp_path.rglob("*.pt")
        assert file.stat().st_size < 100_000


def test_a_disk_that_takes_nothing_is_said(tmp_path):
    with Store(0, tmp_path) as store:
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
        with pytest.raises(CalibrationError, match="activations of calibration frames cannot be stored"):
            store.put("x", torch.ones(3))


def test_a_folder_that_is_missing_is_made_and_one_that_cannot_be_is_said(tmp_path):
    with Store(0, tmp_path / "a" / "b") as store:
        store.put("x", torch.ones(3))
        assert list((tmp_path / "a" / "b").rglob("*.pt"))
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match="no place for activations.*\n.*file"):
        Store(0, tmp_path / "file")
