"""Activations of many frames: in memory up to a budget, on disk beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vqc.errors import CalibrationError


class Store:
    """Values (tensors, tuples of them) by key. What does not fit `budget` bytes goes to files in a folder of its own.

    `folder`: where that folder is made (None: the system's place for temporary files), itself made if it is missing.
    The files go with the Store: use it as a context manager. Raises CalibrationError when the disk cannot take them.
    """

    def __init__(self, budget: int, folder: Path | None = None):
        self.budget = budget
        self.resident = 0
        self.spilled = 0
        self._values: dict[Hashable, Any] = {}
        self._files: dict[Hashable, Path] = {}
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="vqc-activations-", dir=folder)
        except OSError as e:
            raise CalibrationError("there is no place for activations of calibration frames", where=str(folder),
                                   why=str(e), way_out="give a work folder that can be written") from e  # fmt: skip

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: Any) -> None:
        self._values.clear()
        self._folder.cleanup()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values or key in self._files

    def put(self, key: Hashable, value: Any) -> None:
        self.drop(key)
        value = pytree.tree_map_only(torch.Tensor, lambda x: x.detach(), value)
        size = _bytes(value)
        if self.resident + size <= self.budget:
            self._values[key] = value
            self.resident += size
            return
        path = Path(self._folder.name) / f"{self.spilled:08d}.pt"
        try:
            torch.save(pytree.tree_map_only(torch.Tensor, lambda x: x.clone(), value), path)
        except (OSError, RuntimeError) as e:  # torch wraps a full disk in a RuntimeError
            raise CalibrationError("activations of calibration frames cannot be stored", where=str(path), why=str(e),
                                   way_out="give fewer frames, or a work folder with more room") from e  # fmt: skip
        self._files[key] = path
        self.spilled += 1

    def get(self, key: Hashable) -> Any:
        if key in self._values:
            return self._values[key]
        return torch.load(self._files[key], weights_only=True, mmap=True)

    def drop(self, key: Hashable) -> None:
        if key in self._values:
            self.resident -= _bytes(self._values.pop(key))
        elif key in self._files:
            self._files.pop(key).unlink()


def _bytes(value: Any) -> int:
    return sum(x.numel() * x.element_size() for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor))
