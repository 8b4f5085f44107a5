"""What a GPU of known peaks could do, on paper: layers of RVM's decoder, and every launch of its int8 step.

    python -m benchmarks.paper [-o FOLDER]

Arithmetic, as `python -m benchmarks.gpu --paper` prints it: nothing runs on a GPU. Writes
benchmarks/results/<processor>/paper.json, and has the tables of docs/triton.md that `python -m benchmarks.tables` makes
of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claim_tables import Row, table
from benchmarks.command import begin, command
from benchmarks.machine import Record, write
from vqc.report.tables import markdown

SIZES = ("288x512", "1080p")
MOST = 11  # launches that are shown one by one
NOT_MEASURED = "not measured"


def measure() -> list[Record]:
    """Records of layers, of launches and of kernels at both sizes."""
    from benchmarks import gpu

    found: list[Record] = [{"what": "layer", **r} for r in gpu.paper()]
    for size in SIZES:
        rows = gpu.paper_network("rvm", size)
        found += [{"what": "launch", "size": size, **r} for r in rows]
        found += [{"what": "kernel", "size": size, **r} for r in gpu.summed(rows)]
    return found


# ---- tables ----------------------------------------------------------------------------------------------------------


def layers(results: Path) -> str:
    """A row for each layer and size of frames."""

    def rows(records: Sequence[Record]) -> list[Row]:
        return [{"frames": r["frames"], "layer": r["layer"], "10^9 multiply-adds": f"{r['GMAC']:.2f}",
                 "MB in s8": f"{r['MB s8']:.1f}", "s8, us": f"{r['s8 us']:.2f}", "float16, us": f"{r['f16 us']:.2f}",
                 "bound in s8": r["bound"], "measured": NOT_MEASURED}
                for r in records if r["what"] == "layer"]  # fmt: skip

    return table(results, "paper", rows)


def _costs(r: Record, size: str) -> Row:
    return {f"{size}: 10^9 multiply-adds": f"{r['GMAC']:.3f}", f"{size}: MB": f"{r['MB']:.1f}",
            f"{size}: least us": f"{r['least us']:.2f}"}  # fmt: skip


def kernels(results: Path) -> str:
    """A row for each kernel, both sizes side by side, and how fast a step can be at best."""

    def rows(records: Sequence[Record]) -> list[Row]:
        found: dict[str, Row] = {}
        for r in (r for r in records if r["what"] == "kernel"):
            row = found.setdefault(r["kernel"], {"kernel": r["kernel"] if r["kernel"] == "all" else f"`{r['kernel']}`"})
            row |= {f"{r['size']}: launches": str(r["launches"]), **_costs(r, r["size"])}
        return [r | {"measured": NOT_MEASURED} for r in found.values()]

    return table(results, "paper", rows) + "\n" + _floors(results)


def _floors(results: Path) -> str:
    def rows(records: Sequence[Record]) -> list[Row]:
        return [{"a step of": r["size"], "launches one by one, least us": f"{r['us with launches']:.0f}",
                 "in one graph, least us": f"{r['least us']:.0f}", "measured": NOT_MEASURED}
                for r in records if r["what"] == "kernel" and r["kernel"] == "all"]  # fmt: skip

    return table(results, "paper", rows)


def launches(results: Path) -> str:
    """The launches that take most at the smaller size, beside the same ones at the larger."""

    def rows(records: Sequence[Record]) -> list[Row]:
        by_size: dict[str, dict[tuple[str, str, int], Record]] = {size: {} for size in SIZES}
        for size, found in by_size.items():
            seen: Counter[tuple[str, str]] = Counter()
            for r in (r for r in records if r["what"] == "launch" and r["size"] == size):
                key = (r["layer"], r["kernel"])
                seen[key] += 1
                found[(*key, seen[key])] = r
        small, large = by_size.values()
        most = sorted(small, key=lambda k: -small[k]["least us"])[:MOST]
        return [{"layer": f"`{k[0]}`", "kernel": f"`{k[1]}`", **_costs(small[k], SIZES[0]),
                 f"{SIZES[0]}: bound": small[k]["bound"],
                 **(_costs(large[k], SIZES[1]) | {f"{SIZES[1]}: bound": large[k]["bound"]} if k in large else {}),
                 "measured": NOT_MEASURED} for k in most]  # fmt: skip

    return table(results, "paper", rows)


BLOCKS = {("docs/triton.md", "layers on paper"): layers, ("docs/triton.md", "kernels on paper"): kernels,
          ("docs/triton.md", "launches on paper"): launches}  # fmt: skip
"""What stands between the markers of a name on a page, by page and name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Work it out and write it."""
    given, began = begin(command(__doc__), argv)
    records = [{k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()} for r in measure()]
    print(markdown([{k: str(v) for k, v in r.items()} for r in records if r["what"] == "kernel"]))
    write("paper", records, began, given.output)


if __name__ == "__main__":
    main()
