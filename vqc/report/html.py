"""The report as one page of HTML that needs nothing else: style and drawings inside, pictures as data, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vqc.report.measure import EQUAL
from vqc.report.pictures import WorstFrame
from vqc.report.quantization import QuantizationReport, slope
from vqc.report.ranges import Quantizer
from vqc.report.style import STYLE
from vqc.report.svg import Block, Line, bar, frame_block, heat_map, legend, line_chart, span_bar
from vqc.report.verdict import answers, bits, db_text, judged, percent, shares, state_cost, with_unit

TOP = 10  # layers in the list of those that do most


def page(report: QuantizationReport) -> str:
    """The whole page. Equal reports give equal bytes; it holds no date, no path and no link to elsewhere."""
    title = f"{report.network}, {report.recipe}: quantization report"
    sections = (
        ("worst", "The worst frames", _worst(report)),
        ("drift", "Drift since reset", _drift(report)),
        ("layers", "Layers, frames, passes", _map(report)),
        ("first", f"First fall under {report.bound:g} dB", _first(report)),
        ("ranges", "Ranges and saturation", _ranges(report)),
        ("bits", "Bits and kernels", _bits(report)),
        ("float", "What was kept in float, and why", _kept(report)),
        ("how", "How it was measured", _how()),
    )
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text, body in sections if body)
    told = [
        f"recipe {report.recipe}",
        f"clip {report.clip}" if report.clip else "",
        f"{report.frames} frames from a reset",
        f"calibrated on {report.calibration}" if report.calibration else "",
        f"kernels of target {report.target}" if report.target else "",
    ]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(report.network)}: quantized beside float</h1>",
        f'<p class="soft all">{escape(" · ".join(t for t in told if t))}</p><nav>{links}</nav>',
        *(_what(note) for note in report.notes),
        _cards(report),
        f'<div class="two">{_by_frame(report)}{_doers(report)}</div>',
        *(f'<h2 id="{name}">{escape(text)}</h2>{body}' for name, text, body in sections if body),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns in `numbers` are right aligned."""

    def cell(kind: str, i: int, text: str) -> str:
        return f'<{kind} class="n">{text}</{kind}>' if i in numbers else f"<{kind}>{text}</{kind}>"

    head = "".join(cell("th", i, escape(h)) for i, h in enumerate(heads))
    body = "".join("<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _what(text: str) -> str:
    return f'<p class="what">{escape(text)}</p>'


def _cards(report: QuantizationReport) -> str:
    made = []
    for a in answers(report):
        details = "".join(f"<p>{escape(d)}</p>" for d in a.details)
        made.append(f'<div class="card"><h2>{escape(a.question)}</h2><b>{escape(a.short)}</b>{details}</div>')
    return f'<div class="cards">{"".join(made)}</div>'


def _by_frame(report: QuantizationReport) -> str:
    key = judged(report)
    lines = [Line(f"SQNR of {key}", report.last.outputs[key])]
    if state_cost(report, key) is not None:
        lines.append(Line("with the float network's state", report.fresh[key], "l1", True))
    parts = []
    if report.worst:
        parts += [f"<h3>The worst frame, {report.worst[0].frame}</h3>", _row(report.worst[0], zoom=False)]
    parts += ["<h3>Frame by frame</h3>", line_chart(lines, "dB", "SQNR by frame", report.bound)]
    if report.pictures:
        flicker = [EQUAL, *(p.flicker for p in report.pictures[1:])]  # the first frame has none before it
        lines = [Line("mean error", [p.error for p in report.pictures], "l2"), Line("flicker", flicker, "l3")]
        parts.append(line_chart(lines, "steps", "error and flicker by frame, in 8-bit steps", height=150))
    return f"<div>{''.join(parts)}</div>"


def _doers(report: QuantizationReport) -> str:
    parts = shares(report)
    if not parts:
        return ""
    named = {x.name: x for x in report.layers}
    rows = []
    for name in list(parts)[:TOP]:
        layer = named.get(name)
        rows.append((f"<code>{escape(name)}</code> <span class=soft>{escape(layer.module if layer else '')}</span>",
                     bar(parts[name] / next(iter(parts.values())), percent(parts[name])),
                     db_text(report.alone[name]), bits(layer) if layer else ""))  # fmt: skip
    text = (f"Each layer's own error put into the float network by itself, and what {report.alone_of} of frame "
            f"{report.alone_frame} is then at; shares are of the sum over all layers.")  # fmt: skip
    table = _table(("layer", "share of the error", "dB alone", "bits"), rows, (2,))
    return f"<div><h3>Which layers do most</h3>{_what(text)}{table}</div>"


def _worst(report: QuantizationReport) -> str:
    if not report.worst:
        return _what("No result has one or three channels of picture size: SQNR only.")
    low, high = report.picture_range
    told = "" if (low, high) == (0.0, 1.0) else f" Black is {low:.4g}, white {high:.4g}."
    parts = [_what(f"By mean error of {report.picture}; a frame beside a worse one is left out.{told} The squares show "
                   "the place of the largest difference, enlarged.")]  # fmt: skip
    for i, w in enumerate(report.worst):
        p = report.pictures[w.frame]
        head = (f"Frame {w.frame}: {with_unit(p.sqnr)}, mean error {p.error:.3g} steps, largest {p.peak:.3g}, "
                f"flicker {p.flicker:.3g}")  # fmt: skip
        whole = _what("The whole pictures stand at the top.") if i == 0 else _row(w, zoom=False)
        parts.append(f"<h3>{escape(head)}</h3>{whole}{_row(w, zoom=True)}")
    return "".join(parts)


def _row(worst: WorstFrame, *, zoom: bool) -> str:
    """Float, quantized and difference beside each other."""
    at = f", from row {worst.corner[0]}, column {worst.corner[1]}" if zoom else ""
    figures = []
    for text, data in zip(
        ("float", "quantized", f"|difference| x {worst.gain}"), worst.zoom if zoom else worst.pictures, strict=True
    ):
        alt = escape(f"{text}, frame {worst.frame}{at}")
        figures.append(f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
                       f"<figcaption>{escape(text + at)}</figcaption></figure>")  # fmt: skip
    return f'<div class="side{" zoom" if zoom else ""}">{"".join(figures)}</div>'


def _drift(report: QuantizationReport) -> str:
    outputs = report.last.outputs
    if not any(k.startswith("state ") for k in outputs):
        return _what("The network has no state, so nothing is carried from frame to frame.")
    lines = [Line(k, v, f"l{i % 6}") for i, (k, v) in enumerate(outputs.items())]
    fresh = [Line(k, report.fresh[k], f"l{i % 6}", True) for i, k in enumerate(outputs)]
    count = max(1, report.frames // 4)
    rows = []
    for k, v in outputs.items():
        cost = sum(a - b for a, b in zip(report.fresh[k][-count:], v[-count:], strict=True)) / count
        rows.append((escape(k), db_text(v[0]), db_text(v[-1]), db_text(min(v)), f"{slope(v):+.3f}",
                     db_text(report.fresh[k][-1]), _cost(cost)))  # fmt: skip
    table = _table(
        ("", "first frame", "last", "worst", "dB a frame", "last, float state", "cost of the state, dB"),
        rows,
        (1, 2, 3, 4, 5, 6),
    )
    text = (
        "Left: the program as it runs, its state carried. Right: fed with the float network's state at every frame, "
        "so that only the frame's own error shows. Where the left sinks and the right stays, errors pile up in the "
        "state."
    )
    charts = (line_chart(lines, "dB", "SQNR with the state carried", report.bound)
              + line_chart(fresh, "dB", "SQNR with the float network's state", report.bound))  # fmt: skip
    return f'{_what(text)}<div class="two">{charts}</div>{table}'


def _cost(cost: float) -> str:
    style = "c2" if cost > 3 else "c1" if cost > 0.5 else ""
    return f'<span class="{style}">{cost:.2f}</span>' if style else f"{cost:.2f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _map(report: QuantizationReport) -> str:
    last = report.last
    named = {x.name: x for x in report.layers}
    rows = [(k, k) for k in last.outputs]
    width = 52
    for name in last.layers:
        module = named[name].module if name in named else ""
        short = module if len(module) + len(name) < width else "…" + module[-(width - len(name)) :]
        rows.append((name, f"{short}  {name}" if module else name))
    carried = frame_block("frames, state carried", {**last.outputs, **last.layers})
    lossy = [s for s in report.stages if s.layers or s.outputs]
    tables = [{**s.outputs, **s.layers} for s in lossy]
    passes = Block("passes", tuple(s.name for s in lossy),
                   {k: [_mean(t[k]) if k in t else None for t in tables] for k, _ in rows}, 14)  # fmt: skip
    own = Block("own", ("its own error, mean over frames",), {k: [_mean(v)] for k, v in report.own.items()}, 22)
    parts = shares(report)
    tips = {k: f"{k} alone: {percent(v)} of the error, {db_text(report.alone[k])} dB" for k, v in parts.items()}
    single = Block("alone", ("",), {k: [v] for k, v in parts.items()}, 70, bars=tips)
    kinds = "; ".join(f"{i + 1} {s.name}" + ("" if s.measured else " (as before)") for i, s in enumerate(lossy))
    text = (
        "A row for every result, state and layer, top to bottom as they run; a cell is an SQNR in dB (point at it "
        'for the figure). Warm colours are under the bound. Under "passes": the mean over frames after each pass, in '
        f'order: {kinds}. "own": the layer fed with the float network\'s values. "alone": its share of what all '
        f"layers do to {report.alone_of} of frame {report.alone_frame}, each by itself."
    )
    missing = ""
    if report.unmatched:
        missing = f"<p>Not matched with a node of the last program: {escape(', '.join(report.unmatched))}.</p>"
    chart = heat_map(rows, (carried, passes, own, single), report.bound, "SQNR of layers by frame and by pass")
    return f'{_what(text)}{legend(report.bound)}<div class="scroll">{chart}</div>{missing}{_passes(report)}'


def _passes(report: QuantizationReport) -> str:
    keys = list(report.last.outputs)
    rows = []
    for s in report.stages:
        rows.append((escape(s.name), s.promise, escape(s.did), "yes" if s.measured else "as before",
                     *(f"{db_text(_mean(s.outputs[k]))} <span class=soft>({db_text(min(s.outputs[k]))})</span>"
                       for k in keys)))  # fmt: skip
    text = "Mean over frames, and the worst frame, in dB against the network as captured."
    return f"<h3>Results and states after each pass</h3>{_what(text)}" + _table(
        ("pass", "promise", "did", "run", *keys), rows, tuple(range(4, 4 + len(keys)))
    )


def _first(report: QuantizationReport) -> str:
    f = report.first
    if f is None:
        return f"<p>No result falls under {report.bound:g} dB after any pass, in any of the {report.frames} frames.</p>"
    rows = [("pass", f"{escape(f.name)} <span class=soft>(number {f.index + 1})</span>"),
            ("frame since reset", str(f.frame)), ("result", f"{escape(f.result)}, {with_unit(f.sqnr)}")]  # fmt: skip
    if f.layer:
        rows += [("first layer under the bound", f"<code>{escape(f.layer)}</code> {escape(f.module)}"),
                 ("its SQNR", with_unit(f.layer_sqnr)),
                 ("with the float network's state", with_unit(f.fresh_sqnr)),
                 ("with the float network's values at all layers before", with_unit(f.own_sqnr)),
                 ("so its error is mostly", escape(f.cause)),
                 ("largest error of its own, up to there",
                  f"<code>{escape(f.loudest)}</code>, {with_unit(f.loudest_sqnr)}")]  # fmt: skip
    else:
        rows.append(("first layer under the bound", "none: the result falls behind the last layer"))
    return f'<div class="narrow">{_table(("", ""), rows)}</div>'


def _ranges(report: QuantizationReport) -> str:
    if not report.quantizers:
        return _what("No quantizer of an activation stands in any program of this recipe.")
    phases = sorted({(u.since) for q in report.quantizers for u in q.uses})
    ends = {u.since: u.until for q in report.quantizers for u in q.uses}
    heads = [f"frame {a}" if ends[a] == a else f"{a}-{ends[a]}" for a in phases]
    rows = [_range_row(q, phases) for q in sorted(report.quantizers, key=lambda q: (-q.clipped, q.used))]
    text = ("What each activation's quantizer met on this clip, the worst first. Cut off: share of values beyond its "
            "range, by frames since reset; over 0.1 % and over 1 % are marked. Used: share of its levels that occur; a "
            "channel: mean share of the range that one channel spans.")  # fmt: skip
    table = _table(("feeds", "reads", "range", "codes seen", "used", "a channel", *heads), rows,
                   tuple(range(4, 6 + len(heads))))  # fmt: skip
    return f"{_what(text)}{table}"


def _range_row(q: Quantizer, phases: Sequence[int]) -> list[str]:
    low, high = min(u.low for u in q.uses), max(u.high for u in q.uses)
    feeds = ", ".join(q.layers) or q.node
    scales = f" <span class=soft>x{q.scales}</span>" if q.scales > 1 else ""
    by_phase = {u.since: u.below + u.above for u in q.uses}
    cells = []
    for a in phases:
        cut = by_phase.get(a)
        style = "" if cut is None else "c2" if cut > 0.01 else "c1" if cut > 0.001 else ""
        text = "" if cut is None else percent(cut)
        cells.append(f'<span class="{style}">{text}</span>' if style else text)
    return [f"<code>{escape(feeds)}</code>", f"<code>{escape(q.source)}</code>", f"{q.low:.3g} to {q.high:.3g}{scales}",
            span_bar(q.first, q.last, low, high), percent(q.used), percent(max(u.channel for u in q.uses)),
            *cells]  # fmt: skip


def _bits(report: QuantizationReport) -> str:
    used = {w.layer: bar(w.used, percent(w.used)) for w in report.weights}
    rows = []
    for x in report.layers:
        line, own = report.last.layers.get(x.name), report.own.get(x.name)
        rows.append((f"<code>{escape(x.name)}</code>", escape(x.module), escape(x.operator), escape(x.shape), bits(x),
                     escape(x.granularity), used.get(x.name, ""), escape(x.kernel or "not compiled"),
                     db_text(_mean(line)) if line else "?", db_text(_mean(own)) if own else "?"))  # fmt: skip
    text = (
        "Weight levels: the share of its levels that a weight uses. dB: mean SQNR over frames, the state carried; own "
        "dB: of the layer's own error."
    )
    return _what(text) + _table(
        ("layer", "module", "operator", "result", "bits", "weight scales", "weight levels", "kernel", "dB", "own dB"),
        rows,
        (8, 9),
    )


def _kept(report: QuantizationReport) -> str:
    rows = [(f"<code>{escape(x.name)}</code>", escape(x.module), escape(x.kept)) for x in report.layers if x.kept]
    made = _table(("layer", "module", "why"), rows) if rows else "<p>Every layer is quantized.</p>"
    names = {x.name for x in report.layers if x.kept}
    rest: dict[tuple[str, str], list[str]] = {}
    for d in report.left_alone:
        if d.node not in names:
            rest.setdefault((d.by, d.reason), []).append(d.node)
    if rest:
        made += "<h3>What else passes left alone</h3>" + _table(
            ("pass", "reason", "nodes"), [(escape(a), escape(b), escape(", ".join(n))) for (a, b), n in rest.items()]
        )
    return made


def _how() -> str:
    told = [
        "SQNR is 10 log10(sum x² / sum (y - x)²), x of the float network and y of the quantized one, over one frame.",
        "Results and states are compared with the network as captured; layers with the float program as it was before "
        "the first lossy pass. A layer whose next quantizer is fused into it is compared behind that quantizer, and "
        "behind a relu that is fused into it.",
        "A pass that changed nothing or promises equal bits is not run again; the last one always is.",
        "An 8-bit step is 1/255 of the picture's range. Flicker is mean |change since the last frame, less the float "
        "network's change|.",
    ]
    return "<ul>" + "".join(f"<li>{escape(t)}</li>" for t in told) + "</ul>"
