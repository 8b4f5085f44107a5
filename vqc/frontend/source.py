"""Where the user's code stands: the line that called an operator, and the submodule whose forward runs."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep
_OURS: dict[str, bool] = {}  # file name -> whether it belongs to the machinery and not to the user


def _is_machinery(filename: str) -> bool:
    known = _OURS.get(filename)
    if known is None:
        known = filename.startswith((_TORCH, _HERE, "<frozen", "<string>", "<eval_with_key>")) or filename.endswith(
            ("contextlib.py", "functools.py")
        )
        _OURS[filename] = known
    return known


class Place:
    """One line of the user's code. `str()` gives "file.py:12 in forward: code line"; equal places are one line."""

    __slots__ = ("filename", "function", "line")

    def __init__(self, filename: str, line: int, function: str):
        self.filename, self.line, self.function = filename, line, function

    def __str__(self) -> str:
        code = linecache.getline(self.filename, self.line).strip()
        return f"{os.path.basename(self.filename)}:{self.line} in {self.function}" + (f": {code}" if code else "")

    def key(self) -> tuple[str, int]:
        return self.filename, self.line


def user_place() -> Place | None:
    """The innermost line on the stack that is neither torch's nor the recorder's; None when there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not _is_machinery(frame.f_code.co_filename):
            return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return None


class ModuleTrail:
    """Follows which submodule's forward is running, by global hooks that live only inside `watching()`."""

    def __init__(self, names: dict[int, str]):
        self.names = names  # id(module) -> fully qualified name
        self.stack: list[str] = [""]

    @property
    def current(self) -> str:
        return self.stack[-1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        def enter(module: nn.Module, args: Any) -> None:
            self.stack.append(self.names.get(id(module), self.stack[-1]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if len(self.stack) > 1:
                self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        self.stack = [""]
        try:
            yield
        finally:
            for h in handles:
                h.remove()
