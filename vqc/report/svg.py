"""Heat maps and lines as SVG text: colours by style classes, a title at every cell, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vqc.report.measure import BROKEN, EQUAL
from vqc.report.verdict import db_text

STEPS = (-15, -10, -5, 0, 5, 10, 15, 20, 30, 40)  # dB from the bound at which the colour changes
MAX_COLUMNS = 64  # more frames than that share a cell, which shows the worst of them
ROW, CHAR = 13, 5.6  # height of a row, and width of a letter, in pixels
NEAR = 12  # a bound further than that from all values would only flatten a chart


def colour_class(value: float, bound: float) -> str:
    """The style class of an SQNR: h0 .. h3 under the bound, h4 .. h10 above, `he` where nothing differs."""
    return "he" if value >= EQUAL else f"h{sum(value >= bound + s for s in STEPS)}"


def legend(bound: float) -> str:
    """What the colours mean."""
    cells, x = [], 0
    texts = [f"< {bound + STEPS[0]:g}", *(f"{bound + s:g}" for s in STEPS), "equal"]
    for i, text in enumerate(texts):
        name = "he" if i == len(texts) - 1 else f"h{i}"
        cells.append(f'<rect class="{name}" x="{x}" y="0" width="34" height="12"/>'
                     f'<text x="{x + 17}" y="24" text-anchor="middle">{escape(text)}</text>')  # fmt: skip
        x += 36
    return (f'<svg class="heat" width="{x}" height="28" viewBox="0 0 {x} 28" role="img" '
            f'aria-label="colours">{"".join(cells)}</svg>')  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Columns that stand together in a heat map: a heading, a name for each column, values by row's name.

    A row without values stays empty, as does a cell of None. `marks`: columns whose name is shown under the block.
    `bars`: values are shares in 0 .. 1 with this text at each, drawn as bars of the largest.
    """

    heading: str
    names: tuple[str, ...]
    values: Mapping[str, Sequence[float | None]]
    width: float
    marks: tuple[int, ...] = ()
    bars: Mapping[str, str] | None = None


def frame_block(heading: str, values: Mapping[str, Sequence[float]], width: float = 600) -> Block:
    """A block of frames; of long clips several in a cell, its worst."""
    count = max((len(v) for v in values.values()), default=0)
    size = max(1, -(-count // MAX_COLUMNS))
    starts = range(0, count, size)
    names = tuple(f"frame {s}" if size == 1 else f"frames {s}-{min(count, s + size) - 1}" for s in starts)
    grouped = {k: tuple(min(v[s : s + size]) for s in starts) for k, v in values.items()}
    every = max(1, len(names) // 12)
    return Block(heading, names, grouped, min(22.0, width / max(1, len(names))), tuple(range(0, len(names), every)))


def heat_map(rows: Sequence[tuple[str, str]], blocks: Sequence[Block], bound: float, label: str) -> str:
    """Rows (name, text beside it) by blocks of columns, coloured by SQNR."""
    left = 12 + CHAR * max((len(text) for _, text in rows), default=0)
    parts, x = [], left
    bottom = 18 + ROW * len(rows)
    for i, (_, text) in enumerate(rows):
        parts.append(f'<text x="{left - 6:.0f}" y="{18 + ROW * i + 10}" text-anchor="end">{escape(text)}</text>')
    for block in blocks:
        parts.append(f'<text class="head" x="{x:.1f}" y="11">{escape(block.heading)}</text>')
        for i, (name, text) in enumerate(rows):
            if block.bars is not None and name in block.bars:
                parts.append(_bar_cell(block, name, x, 18 + ROW * i))
                continue
            for j, value in enumerate(block.values.get(name, ())):
                if value is None:
                    continue
                tip = f"{text}, {block.names[j]}: {db_text(value)}"
                parts.append(f'<rect class="{colour_class(value, bound)}" x="{x + j * block.width:.1f}" '
                             f'y="{18 + ROW * i}" width="{block.width:.1f}" height="{ROW}">'
                             f"<title>{escape(tip)}</title></rect>")  # fmt: skip
        for j in block.marks:
            centre = x + (j + 0.5) * block.width
            parts.append(
                f'<text class="mark" x="{centre:.1f}" y="{bottom + 11}" text-anchor="middle">'
                f"{escape(block.names[j].removeprefix('frame').removeprefix('s').strip())}</text>"
            )
        x += max(block.width * len(block.names), CHAR * len(block.heading)) + 18
    return (f'<svg class="heat" width="{x:.0f}" height="{bottom + 16}" viewBox="0 0 {x:.0f} {bottom + 16}" role="img" '
            f'aria-label="{escape(label)}">{"".join(parts)}</svg>')  # fmt: skip


def _bar_cell(block: Block, name: str, x: float, y: int) -> str:
    share = block.values[name][0] or 0.0
    most = max((v[0] or 0.0 for v in block.values.values()), default=0.0) or 1.0
    assert block.bars is not None
    return (f'<rect class="share" x="{x:.1f}" y="{y + 2}" width="{block.width * share / most:.1f}" height="{ROW - 4}">'
            f"<title>{escape(block.bars[name])}</title></rect>")  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, a value a frame, a style class (l0 .. l5), dashed or not."""

    name: str
    values: Sequence[float]
    style: str = "l0"
    dashed: bool = False


def line_chart(lines: Sequence[Line], unit: str, label: str, bound: float | None = None, height: int = 200,
               width: int = 620) -> str:  # fmt: skip
    """Lines over frames since reset. Values of no difference at all are left out; broken ones lie at the bottom."""
    left, top, bottom = 46, 10, 30
    inner_w, inner_h = width - left - 12, height - top - bottom
    seen = [v for line in lines for v in line.values if BROKEN < v < EQUAL]
    far = bound is not None and bool(seen) and not min(seen) - NEAR <= bound <= max(seen) + NEAR
    ticks = _ticks([*seen, *([bound] if bound is not None and not far else [])])
    low, high = ticks[0], ticks[-1]
    count = max((len(line.values) for line in lines), default=1)

    def px(t: int) -> float:
        return left + (inner_w * t / (count - 1) if count > 1 else inner_w / 2)

    def py(value: float) -> float:
        return top + inner_h * (1 - (min(max(value, low), high) - low) / (high - low))

    parts = []
    for value in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>'
                     f'<text x="{left - 5}" y="{py(value) + 3:.1f}" text-anchor="end">{value:g}</text>')  # fmt: skip
    for t in range(0, count, max(1, count // 12)):
        parts.append(f'<text x="{px(t):.1f}" y="{height - bottom + 14}" text-anchor="middle">{t}</text>')
    parts.append(
        f'<text x="{left + inner_w / 2:.0f}" y="{height - 3}" text-anchor="middle">frames since reset</text>'
        f'<text x="{left - 5}" y="{height - bottom + 14}" text-anchor="end">{escape(unit)}</text>'
    )
    if bound is not None and not far:
        parts.append(f'<line class="bound" x1="{left}" x2="{width - 12}" y1="{py(bound):.1f}" y2="{py(bound):.1f}"/>')
    for line in lines:
        points = [(px(t), py(v), t, v) for t, v in enumerate(line.values) if v < EQUAL]
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        parts.append(f'<polyline class="{line.style}" points="{path}"{dash}/>')
        parts += [
            f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"><title>'
            f"{escape(line.name)}, frame {t}: {v:.4g} {escape(unit)}</title></circle>"
            for x, y, t, v in points
        ]
    keys = "".join(f'<span><svg width="26" height="9"><line class="{n.style}" x1="0" x2="26" y1="5" y2="5"'
                   f'{" stroke-dasharray=" + chr(34) + "5 4" + chr(34) if n.dashed else ""}/></svg> '
                   f"{escape(n.name)}</span>" for n in lines)  # fmt: skip
    if bound is not None:
        drawn = '<span><svg width="26" height="9"><line class="bound" x1="0" x2="26" y1="5" y2="5"/></svg> bound</span>'
        keys += (f"<span>bound {bound:g}: off the chart</span>" if far else drawn)  # fmt: skip
    return (f'<figure class="chart"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
            f'{"".join(parts)}</svg><figcaption>{keys}</figcaption></figure>')  # fmt: skip


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around all values, some five of them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if 0 <= low < 0.35 * high:
        low = 0.0
    rough = max((high - low) / 4, 1e-6 * max(abs(low), abs(high)), 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def bar(share: float, text: str) -> str:
    """A bar of a share in 0 .. 1 with a text behind it, as two elements of HTML."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar"><i style="width:{width:.1f}%"></i></span> {escape(text)}'


def span_bar(first: int, last: int, low: int, high: int) -> str:
    """Which of the codes first .. last are in use: low .. high."""
    count = last - first + 1
    x, width = 100 * (low - first) / count, 100 * (high - low + 1) / count
    return (f'<span class="bar wide"><i style="margin-left:{x:.1f}%;width:{width:.1f}%"></i></span> '
            f"{low} to {high}")  # fmt: skip
