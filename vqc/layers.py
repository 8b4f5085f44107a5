"""What a compiled program spends on each layer: one row a kernel call, predicted, and measured once it was profiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layer:
    """One kernel call.

    `node`: the node of the Program it computes; `operator`: that node's operator; `kernel`: the function called;
    `shape`: the dtype and shape of the result. `kind`: what its arithmetic is measured against, "f32", "int8" or
    "binary" for multiply-adds, "" for everything else. `macs`: multiply-adds of one step; `ops`: operations on single
    elements where there are no multiply-adds; `bytes`: all buffers it reads or writes, each once, its weights
    included. `predicted_ms`, `measured_ms`: one call, None where nobody predicted or measured. `share`: part of the
    step's measured time. `peak`: part of the machine's measured peak of this kind of arithmetic.
    """

    node: str
    operator: str
    kernel: str
    shape: str
    kind: str = ""
    macs: int = 0
    ops: int = 0
    bytes: int = 0
    predicted_ms: float | None = None
    measured_ms: float | None = None
    share: float | None = None
    peak: float | None = None

    @property
    def speed(self) -> float | None:
        """Measured 10^9 multiply-adds a second, None where there are none or nothing was measured."""
        return self.macs / self.measured_ms / 1e6 if self.macs and self.measured_ms else None

    def row(self) -> dict[str, str]:
        """The row of a table; what is not known is left out."""
        found = {"node": self.node, "operator": self.operator, "kernel": self.kernel, "result": self.shape,
                 "Mop": f"{(self.macs or self.ops) / 1e6:.2f}", "MB": f"{self.bytes / 1e6:.2f}"}  # fmt: skip
        for name, value in (("predicted ms", self.predicted_ms), ("ms", self.measured_ms)):
            if value is not None:
                found[name] = f"{value:.3f}"
        if self.share is not None:
            found["share"] = f"{100 * self.share:.1f} %"
        if self.speed is not None:
            found["GMAC/s"] = f"{self.speed:.1f}"
        if self.peak is not None:
            found["of peak"] = f"{100 * self.peak:.0f} %"
        return found


def measured(layers: Sequence[Layer], seconds: Sequence[float], peaks: dict[str, float]) -> list[Layer]:
    """The layers with the measured time of one call each.

    `seconds`: as many as layers. `peaks`: 10^9 multiply-adds a second by kind; a kind that is missing gets no part.
    """
    total = sum(seconds)
    found = []
    for layer, time in zip(layers, seconds, strict=True):
        made = replace(layer, measured_ms=time * 1e3, share=time / total if total > 0 else 0.0)
        if made.speed is not None and layer.kind in peaks:
            made = replace(made, peak=made.speed / peaks[layer.kind])
        found.append(made)
    return found


def by_kernel(layers: Sequence[Layer]) -> list[dict[str, str]]:
    """One row a kernel: calls, operations, bytes and time, the most expensive first."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.kernel, []).append(layer)
    rows = []
    for kernel, group in groups.items():
        macs, spent = sum(x.macs for x in group), sum(x.measured_ms or 0.0 for x in group)
        row = {"kernel": kernel, "calls": str(len(group)), "Mop": f"{sum(x.macs or x.ops for x in group) / 1e6:.1f}",
               "MB": f"{sum(x.bytes for x in group) / 1e6:.1f}"}  # fmt: skip
        if all(x.measured_ms is not None for x in group):
            row |= {"ms": f"{spent:.3f}", "share": f"{100 * sum(x.share or 0.0 for x in group):.1f} %"}
            row |= {"GMAC/s": f"{macs / spent / 1e6:.1f}"} if macs and spent else {}
        rows.append((spent, sum(x.predicted_ms or 0.0 for x in group), row))
    rows.sort(key=lambda item: (-item[0], -item[1], item[2]["kernel"]))
    return [row for _, _, row in rows]


def text(rows: Sequence[dict[str, str]]) -> str:
    """Rows as plain text in columns; the first column is left aligned, as are those that hold names."""
    names: dict[str, None] = {}
    for row in sorted(rows, key=len, reverse=True):
        names |= dict.fromkeys(row)
    if not names:
        return ""
    width = {n: max(len(n), *(len(row.get(n, "")) for row in rows)) for n in names}
    left = {"node", "operator", "kernel", "result"}
    lines = []
    for cells in [list(names), *([row.get(n, "-") for n in names] for row in rows)]:
        padded = [c.ljust(width[n]) if n in left else c.rjust(width[n]) for c, n in zip(cells, names, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
