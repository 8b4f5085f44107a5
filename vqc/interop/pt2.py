"""`.pt2` files: programs of `torch.export`, written and read by torch.export itself.

A `.pt2` is for code one trusts: torch.export.load unpickles parts of it and hands its shape expressions to SymPy, and
either may run code. Only `vqc.capture`, which runs the user's network anyway, opens one; `vqc.load` never does.
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import torch

import vqc.ops  # noqa: F401  (a file may name them)
from vqc.errors import ArtifactError
from vqc.interop import interface
from vqc.interop.exported import from_exported, same_bits, to_exported
from vqc.program import Program, evaluate

ENDING = ".pt2"
NOTES = "vqc.json"  # the extra file in which a Program's states, ranges and names travel


def pt2_bytes(program: Program, licence: str = "") -> bytes:
    """A `.pt2` of a Program (`to_exported`), with its interface as the extra file `vqc.json`.

    It is read back, and has to give the same bits on the example. Raises UnsupportedOp as `to_exported` does, and
    ArtifactError when torch.export cannot write it.
    """
    out, notes = io.BytesIO(), json.dumps(interface.of(program, licence))
    try:
        torch.export.save(to_exported(program), out, extra_files={NOTES: notes})
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as e:
        raise ArtifactError(f"program {program.name} cannot be written as a .pt2 file",
                            why=f"{type(e).__name__}: {e}", way_out="write it as a .vqc file") from e  # fmt: skip
    again = load_pt2(io.BytesIO(out.getvalue()))
    assert isinstance(again, Program)
    before, after = (evaluate(p, p.example) for p in (program, again))
    if not all(same_bits(a, b) for a, b in zip(before, after, strict=True)):
        raise ArtifactError(f"program {program.name} cannot be written as a .pt2 file",
                            why="it reads back as another program",
                            way_out="write it as a .vqc file, and report this")  # fmt: skip
    return out.getvalue()


def load_pt2(source: str | Path | io.BytesIO) -> Program | torch.export.ExportedProgram:
    """What a `.pt2` holds: a Program when vqc wrote it, else the ExportedProgram as it stands.

    May run code of the file. Raises ArtifactError when torch.export cannot read it, or when it names operators that
    nobody has registered.
    """
    where = str(source) if isinstance(source, (str, Path)) else "memory"
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise ArtifactError("a .pt2 file cannot be read", where=where, why="there is no such file",
                            way_out="check the path")  # fmt: skip
    extra = {NOTES: ""}
    log = logging.getLogger("torch.export")
    silent, log.disabled = log.disabled, True  # it logs a traceback of its own before it raises
    try:
        exported = torch.export.load(source, extra_files=extra)
    except Exception as e:  # whatever is in the file reaches torch.export's readers; it is kept as the cause
        cause: BaseException = e
        while cause.__context__ is not None:
            cause = cause.__context__
        said = str(cause).strip().splitlines()
        raise ArtifactError("a .pt2 file cannot be read", where=where,
                            why=f"{type(cause).__name__}: {said[0] if said else 'no reason given'}",
                            way_out="write it with torch.export.save by this PyTorch; import the package that "
                                    "registers its operators first") from e  # fmt: skip
    finally:
        log.disabled = silent
    if not extra[NOTES]:
        return exported
    try:
        said_of: dict[str, Any] = json.loads(extra[NOTES])
    except ValueError as e:
        raise ArtifactError("a .pt2 file cannot be read", where=where, why=f"its {NOTES} is no JSON: {e}",
                            way_out="write it again with target pt2") from e  # fmt: skip
    return from_exported(exported, said_of)
