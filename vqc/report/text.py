"""The report as tables and sentences for a terminal."""

from __future__ import annotations

from vqc.report.bisect import First
from vqc.report.quantization import QuantizationReport, slope
from vqc.report.verdict import answers, bits, db_text, percent, shares, with_unit

Rows = list[dict[str, str]]


def sentences(report: QuantizationReport) -> list[str]:
    """The three answers, a line each, and the figures behind them, indented."""
    lines = []
    for a in answers(report):
        lines += [f"{a.question} {a.short}", *(f"  {d}" for d in a.details)]
    return lines


def pass_rows(report: QuantizationReport) -> Rows:
    """A row a pass: the mean (worst) SQNR of results and states over the frames."""
    rows = []
    for s in report.stages:
        row = {"pass": s.name}
        row |= {k: f"{db_text(sum(v) / len(v))} ({db_text(min(v))})" for k, v in s.outputs.items()}
        rows.append(row)
    return rows


def drift_rows(report: QuantizationReport) -> Rows:
    """A row a result or state: SQNR at first and last frame, its trend, and with the float network's state."""
    return [{"output": k, "first dB": db_text(v[0]), "last dB": db_text(v[-1]), "worst dB": db_text(min(v)),
             "dB a frame": f"{slope(v):+.3f}", "last, float state": db_text(report.fresh[k][-1])}
            for k, v in report.last.outputs.items()]  # fmt: skip


def layer_rows(report: QuantizationReport, count: int = 12) -> Rows:
    """The layers that do most, the worst first; without that, those with the lowest SQNR of their own."""
    named = {x.name: x for x in report.layers}
    parts = shares(report)
    names = list(parts) or sorted(report.own, key=lambda k: min(report.own[k]))
    rows = []
    for name in names[:count]:
        layer, own, all_ = named.get(name), report.own[name], report.last.layers[name]
        row = {"layer": name, "module": layer.module if layer else "", "bits": bits(layer) if layer else ""}
        row |= {"share": percent(parts[name]), "alone dB": db_text(report.alone[name])} if name in parts else {}
        rows.append(row | {"own dB": db_text(min(own)), "dB": db_text(min(all_))})
    return rows


def range_rows(report: QuantizationReport, count: int = 12) -> Rows:
    """The quantizers that cut off most, the worst first."""
    found = sorted(report.quantizers, key=lambda q: (-q.clipped, q.used))[:count]
    return [
        {
            "feeds": ", ".join(q.layers) or q.node,
            "reads": q.source,
            "range": f"{q.low:.3g} to {q.high:.3g}",
            "levels": str(q.levels),
            "used": percent(q.used),
            "cut off": percent(q.clipped),
        }
        for q in found
    ]


def kept_rows(report: QuantizationReport) -> Rows:
    """The layers kept in float, and why."""
    return [{"kept in float": x.name, "module": x.module, "why": x.kept} for x in report.layers if x.kept]


def first_lines(first: First | None, bound: float) -> list[str]:
    """What the bisect found."""
    if first is None:
        return [f"no result falls under {bound:g} dB"]
    lines = [f"first under {first.bound:g} dB: after pass {first.name}, in frame {first.frame} since reset: "
             f"{first.result}, {with_unit(first.sqnr)}"]  # fmt: skip
    if first.layer:
        module = f" ({first.module})" if first.module else ""
        lines += [
            f"  first layer under it: {first.layer}{module}, {with_unit(first.layer_sqnr)}",
            f"  its error is mostly {first.cause}: {with_unit(first.fresh_sqnr)} with the float network's state, "
            f"{with_unit(first.own_sqnr)} with its values at all layers before",
            f"  largest error of its own up to there: {first.loudest}, {with_unit(first.loudest_sqnr)}",
        ]
    else:
        lines.append("  no layer is under it: the result falls behind the last one")
    if first.ran:
        lines.append(f"  programs run to find it: {len(first.ran)}")
    return lines
