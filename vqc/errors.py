"""The typed errors of vqc.

Every error says what (an operator, a file, an option), where it stands, why, and the way out.
"""

from __future__ import annotations


class VqcError(Exception):
    """Base of every error that vqc raises on purpose.

    Parameters are kept as attributes so that a tool can show them apart: `what`, `where`, `why`, `way_out`.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", way_out: str = ""):
        self.what, self.where, self.why, self.way_out = what, where, why, way_out
        parts = [what]
        if where:
            parts.append(f"  where: {where}")
        if why:
            parts.append(f"  why: {why}")
        if way_out:
            parts.append(f"  way out: {way_out}")
        super().__init__("\n".join(parts))


class CaptureError(VqcError):
    """A network could not be captured as one graph."""


class SpecError(VqcError):
    """A Program breaks a rule of `vqc.spec`; raised after the pass that broke it."""


class NumericsError(VqcError):
    """A pass broke the numeric promise it declares (debug mode)."""


class PipelineError(VqcError):
    """A pipeline text, a recipe or an option is not understood."""


class CalibrationError(VqcError):
    """Calibration clips are missing, empty, or hold values no range can be made of."""


class UnsupportedOp(VqcError):
    """A backend has no kernel for an operator of the program."""


class TargetError(VqcError):
    """A target or its compiler is unknown or does not work."""


class InputError(VqcError):
    """A call to an executable has the wrong number, shape or dtype of tensors."""


class AssumptionError(VqcError):
    """An input breaks an assumption under which the network was captured."""


class VideoError(VqcError):
    """A clip cannot be read or written."""


class ArtifactError(VqcError):
    """A weight file or an artifact is missing, truncated, or not what its hash says."""


class DistributedError(VqcError):
    """Processes of one run cannot find each other, lost one, or hold different programs."""


class TrainingError(VqcError):
    """A network cannot be trained as asked, or its training diverged."""


class BackendError(VqcError):
    """torch.compile(backend="vqc") was given something it refuses."""
