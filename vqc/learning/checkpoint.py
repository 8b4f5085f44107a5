"""What a long pass has reached, on disk: the same call goes on there after a kill, and ends with the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx

from vqc.errors import ArtifactError
from vqc.program import Program

FORMAT = "2"  # of the key: another number makes all older checkpoints strangers


class Checkpoint:
    """One file in `workdir` for one piece of work, found again by what the work depends on.

    `kind`: a word for the file's name. `key_parts`: everything the result depends on (the program, its twin, clips,
    labels, options, the seed), as `fingerprint` takes it; another key is another file. Without a `workdir` nothing is
    stored and nothing is found.
    """

    def __init__(self, workdir: Path | None, kind: str, key_parts: Sequence[Any]):
        self.path: Path | None = None
        if workdir is not None:
            self.path = Path(workdir) / f"{kind}-{fingerprint(FORMAT, kind, *key_parts)[:24]}.safetensors"

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, tensors) of the last `save`, None when there was none. Raises ArtifactError for a damaged file."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as f:
                return int((f.metadata() or {})["step"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as e:
            raise ArtifactError("a checkpoint cannot be read", where=str(self.path), why=str(e),
                                way_out="delete it: the pass then begins anew") from e  # fmt: skip

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace what is stored. The file is written beside and renamed: a kill leaves the old one or the new one.

        Raises ArtifactError when the folder cannot be written.
        """
        if self.path is None:
            return
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        owned = {k: v.detach().contiguous().clone() for k, v in tensors.items()}  # two of one storage are refused
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(owned, beside, metadata={"step": str(step)})
            os.replace(beside, self.path)
        except (OSError, SafetensorError) as e:
            beside.unlink(missing_ok=True)
            raise ArtifactError("a checkpoint cannot be written", where=str(self.path), why=str(e),
                                way_out="give a work folder with room, or none") from e  # fmt: skip


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hexadecimal) of Programs, tensors, numbers, texts, None, dataclasses, and lists or mappings of them.

    Programs count with every argument and constant. Raises TypeError for what has no defined content.
    """
    digest = hashlib.sha256()
    for part in parts:
        _add(digest, part)
    return digest.hexdigest()


def _add(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        value = part.detach().contiguous().cpu()
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(part, Program):
        _add(digest, list(_lines(part)))
        _add(digest, part.constants)
        _add(digest, [s.reset for s in part.states])
    elif part is None or isinstance(part, (str, int, float, bool, torch.dtype, Path)):
        digest.update(f"{type(part).__name__} {part!r};".encode())
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        _add(digest, type(part).__name__)
        _add(digest, {f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)};".encode())
        for key in sorted(part, key=str):
            _add(digest, str(key))
            _add(digest, part[key])
    elif isinstance(part, Iterable):
        items = list(part)
        digest.update(f"list {len(items)};".encode())
        for item in items:
            _add(digest, item)
    else:
        raise TypeError(f"a {type(part).__name__} has no content to make a key of")


def _lines(program: Program) -> Iterable[str]:
    """Every node with its arguments in full (a Program's own text rounds numbers)."""
    for n in program.graph.nodes:
        args = fx.node.map_arg((n.args, n.kwargs), lambda a: f"%{a.name}")
        yield f"{n.op} {n.name} {n.target} {args!r}"
