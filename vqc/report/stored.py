"""A file as a network: its program stands in for the module; notes in a `.vqc` say how clips become inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import vqc
from vqc.errors import ArtifactError, InputError
from vqc.files import about
from vqc.models import MODELS
from vqc.program import Program
from vqc.report.network import Network, no_frames

ENDING = ".vqc"


def is_stored(name: str) -> bool:
    """Whether a model's name is that of a `.vqc` file."""
    return name.endswith(ENDING)


def notes_of(net: Network) -> dict[str, Any]:
    """What `vqc.save` is told of a network, for `stored_network` to read."""
    return {"name": net.name, "picture": net.picture, "foreground": net.foreground,
            "entry": net.entry.name if net.entry is not None else None}  # fmt: skip


class Stored(nn.Module):
    """A program called as the network it was captured from, its state kept; run by PyTorch, operator for operator."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.stream = vqc.Stream(vqc.compile(program, "reference"))

    def forward(self, *frames: Tensor) -> Any:
        return self.stream(*frames)

    def __deepcopy__(self, memo: Any) -> Stored:
        return Stored(self.program)  # a video of its own: from the reset values


def stored_network(name: str, size: tuple[int, int] | None) -> Network:
    """The network in a file. Raises ArtifactError for a file that is not taken, InputError when `size` is another."""
    path = Path(name)
    program, said = vqc.load(path), about(path)
    found = _notes(path, said["network"])
    entry = MODELS.get(found["entry"] or "")
    net = Network(str(found["name"] or path.stem), Stored(program), program.example, {}, found["picture"],
                  found["foreground"], said["licence"], entry, program)  # fmt: skip
    return _of_frames(path, net, size)


def exported_network(name: str, size: tuple[int, int] | None) -> Network:
    """The network in a `.pt2` file, its first result the picture; the file may run code (`vqc.interop.pt2`).

    Raises as `stored_network` and `vqc.capture` do.
    """
    path = Path(name)
    program = vqc.capture(path)
    return _of_frames(path, Network(path.stem, Stored(program), program.example, program=program), size)


def _of_frames(path: Path, net: Network, size: tuple[int, int] | None) -> Network:
    """The network itself. Raises InputError when it does not take frames, or frames of another size."""
    wrong = no_frames(net.example)
    if wrong:
        raise InputError(f"{path.name} does not take frames", where=str(path), why=wrong,
                         way_out="run it by vqc.load or vqc.capture, and vqc.compile")  # fmt: skip
    if size is not None and size != net.size:
        raise InputError(f"{path.name} cannot take frames of {size[0]}x{size[1]}",
                         why=f"it was captured at {net.size[0]}x{net.size[1]}",
                         way_out=f"leave --size out, or write it anew: vqc apply NETWORK --size {size[0]}x{size[1]} "
                                 f"-o {path.name}")  # fmt: skip
    return net


def _notes(path: Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    found = {"name": None, "picture": 0, "foreground": None, "entry": None} | dict(notes)
    kinds = {"name": (str, type(None)), "picture": (int,), "foreground": (int, type(None)), "entry": (str, type(None))}
    for key, allowed in kinds.items():
        if type(found[key]) not in allowed:
            raise ArtifactError("a .vqc file cannot be read", where=str(path),
                                why=f"its note {key} is {found[key]!r:.60}",
                                way_out="write it again with `vqc apply`")  # fmt: skip
    return found
