"""Programs as `.pt2` files of torch.export (docs/interop.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import fx

from vqc.backends import Backend
from vqc.backends.folder import MARKER, write_folder
from vqc.errors import TargetError
from vqc.interop import interface, pt2_bytes
from vqc.interop.decomposed import decompose, why_whole
from vqc.interop.forms import for_xnnpack
from vqc.interop.symmetric import for_tensorrt
from vqc.program import Program, op_text

FORMS = {"pt2": lambda program: program, "pt2:decomposed": decompose, "pt2:xnnpack": for_xnnpack,
         "pt2:tensorrt": for_tensorrt}  # fmt: skip


def check_target(target: str) -> None:
    """Raise TargetError for a target that is not one of these."""
    if target not in FORMS:
        raise TargetError(f"there is no target called {target!r}", way_out="use " + ", ".join(FORMS))


class Pt2Backend(Backend):
    """`.pt2` files: `pt2` with the program's own operators, `pt2:decomposed` with quantize and dequantize in place of
    integer layers, `pt2:xnnpack` and `pt2:tensorrt` narrowed down to what ExecuTorch's XNNPACK partitioner and
    TensorRT take. Option: licence.
    """

    name: ClassVar[str] = "pt2"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        """Why a `vqc::` operator stays in a decomposed file; everything else is taken."""
        check_target(target)
        return None if target == "pt2" else why_whole(node)

    def export(self, program: Program, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write NAME.pt2, interface.json and README.txt.

        Raises UnsupportedOp for what torch.export refuses, TargetError for a wrong option or target, ArtifactError
        when the folder cannot be written.
        """
        check_target(target)
        licence = licence_of(options, "pt2")
        taken = FORMS[target](program)
        name = program.name.lower() if program.name.isidentifier() else "model"
        whole = sorted({op_text(n.target) for n in taken.calls if op_text(n.target).startswith("vqc.")})
        said = interface.of(taken, licence)
        files = {f"{name}.pt2": pt2_bytes(taken, licence),
                 "interface.json": (json.dumps({k: said[k] for k in SHOWN}, indent=2) + "\n").encode(),
                 "README.txt": readme_text(taken, f"{name}.pt2", licence, whole).encode(),
                 MARKER: f"exported by vqc: {name} for {target}\n".encode()}  # fmt: skip
        return write_folder(Path(folder), files)


SHOWN = ("inputs", "outputs", "states", "assumptions")


def licence_of(options: Mapping[str, Any], target: str) -> str:
    """The one option there is. Raises TargetError for another."""
    for key, value in options.items():
        if key != "licence" or not isinstance(value, str):
            raise TargetError(f"target {target} cannot take option {key}={value!r}", way_out="use licence")
    return str(options.get("licence", ""))


def readme_text(program: Program, file: str, licence: str, whole: list[str]) -> str:
    """README.txt: what is called with what, and which operators a reader has to have."""
    given = ", ".join([i.name for i in program.inputs] + [s.input for s in program.states])
    results = ", ".join([*program.outputs, *(f"next_{s.name}" for s in program.states),
                         *(f"assumption_{i}" for i in range(len(program.assumptions)))])  # fmt: skip
    needs = f"It calls {', '.join(whole)}: `import vqc.ops` before loading it.\n" if whole else ""
    return (
        f"{file}: one step of a video network, as torch.export writes it.\n\n"
        f"Licence of the weights: {licence or 'unknown: ask who gave you the weights'}\n\n"
        f"{needs}    module = torch.export.load('{file}').module()\n    {results} = module({given})\n\n"
        "Before the first frame a state is what the file's example_inputs hold for it.\n"
        + "".join(f"An assumption must be {a.expected}: {a.text}\n" for a in program.assumptions)
        + "torch.export.load may run code of a file: load only files from people you trust.\n"
        + "".join(f"Note: {n}\n" for n in program.notes)
    )
