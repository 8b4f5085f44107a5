"""The three answers of the report in sentences: is the picture the same, where is it worst, which layer does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vqc.report.measure import BROKEN, EQUAL
from vqc.report.quantization import Layer, QuantizationReport, slope
from vqc.report.ranges import Quantizer

PILES_UP = 0.5  # dB that the state may cost at the end of a clip before it is said that it carries errors
GROWS = -0.05  # dB a frame under which they are said to pile up
CUT = 0.001  # share of values cut off from which a quantizer is named


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a few words, and the figures behind it, a sentence each."""

    question: str
    short: str
    details: tuple[str, ...]


def db_text(value: float) -> str:
    """`31.2`, or `equal`, or `broken`, of an SQNR in dB."""
    if value >= EQUAL:
        return "equal"
    return "broken" if value <= BROKEN else f"{value:.1f}"


def with_unit(value: float) -> str:
    """`31.2 dB`, or a word."""
    return db_text(value) if value >= EQUAL or value <= BROKEN else f"{value:.1f} dB"


def percent(share: float) -> str:
    """`12 %`, `1.2 %`, `0.012 %`, `0 %`, `97.9 %`, `99.98 %`: the digits that count, and never a full 100 for less."""
    value = 100 * share
    if value >= 99 and value < 100:
        gap = max(float(f"{100 - value:.1g}"), 1e-4)
        return f"{100 - gap:.{max(0, -math.floor(math.log10(gap)))}f} %"
    if 0 < value < 0.001:
        return "< 0.001 %"
    return f"{value:.1f} %" if 90 <= value < 99 else f"{value:.2g} %" if value < 90 else "100 %"


def shares(report: QuantizationReport) -> dict[str, float]:
    """Each layer's part of the sum of what all layers do to the picture by themselves, the largest first."""
    noise = {k: 10 ** (-v / 10) for k, v in report.alone.items() if v < EQUAL}
    total = sum(noise.values())
    return {k: noise[k] / total for k in sorted(noise, key=lambda k: -noise[k])} if total else {}


def judged(report: QuantizationReport) -> str:
    """The output that is judged: the picture, or else the one that is worst."""
    if report.picture:
        return report.picture
    outputs = report.last.outputs
    results = [k for k in outputs if k.startswith("result ")] or list(outputs)
    return min(results, key=lambda k: min(outputs[k]))


def answers(report: QuantizationReport) -> tuple[Answer, ...]:
    """The three answers."""
    return _same(report), _where(report), _who(report)


def _same(report: QuantizationReport) -> Answer:
    question = "Is the picture the same?"
    key = judged(report)
    line = report.last.outputs[key]
    ratio = f"SQNR of {key}: {with_unit(sum(line) / len(line))} on average, {with_unit(min(line))} in its worst frame."
    if not report.pictures:
        return Answer("Is the result the same?", f"{with_unit(min(line))} at worst", (ratio, "No result is a picture."))
    count = len(report.pictures)
    equal, near = (sum(getattr(p, a) for p in report.pictures) / count for a in ("equal", "near"))
    peak = max(report.pictures, key=lambda p: p.peak)
    return Answer(question, "yes, to the last 8-bit step" if equal == 1 else f"{percent(near)} within one 8-bit step", (
        f"{percent(equal)} of its values are equal in 8 bits, {percent(near)} at most one step of 255 apart.",
        f"The mean error is {sum(p.error for p in report.pictures) / count:.3g} steps, "
        f"the largest {peak.peak:.3g} (frame {peak.frame}).",
        ratio,
    ))  # fmt: skip


def _where(report: QuantizationReport) -> Answer:
    key = judged(report)
    line = report.last.outputs[key]
    frame = report.alone_frame if report.pictures else line.index(min(line))
    details = [f"Of {report.frames} frames since reset, frame {frame} is off most: {with_unit(line[frame])}."]
    if report.pictures:
        details[0] = (f"Of {report.frames} frames since reset, frame {frame} is off most: {with_unit(line[frame])}, "
                      f"{report.pictures[frame].error:.3g} steps on average.")  # fmt: skip
        mean = sum(p.flicker for p in report.pictures[1:]) / max(1, report.frames - 1)
        shaky = max(report.pictures, key=lambda p: p.flicker)
        if report.frames > 1:
            details.append(f"Flicker (change that the float network does not show) is {mean:.3g} steps on average, "
                           f"at most {shaky.flicker:.3g}, from frame {shaky.frame - 1} to {shaky.frame}.")  # fmt: skip
    cost = state_cost(report, key)
    if cost is None:
        details.append("The network has no state: nothing can pile up.")
    else:
        trend = slope(line)
        verb = "Errors do not pile up" if cost <= PILES_UP else "The state carries errors, but they do not grow"
        verb = "Errors pile up in the state" if cost > PILES_UP and trend < GROWS else verb
        details.append(f"{verb}: in the last quarter of the clip the state costs {cost:.1f} dB against the float "
                       f"network's; SQNR changes by {trend:+.2f} dB a frame.")  # fmt: skip
    if report.first is not None:
        f = report.first
        details.append(f"First under {report.bound:g} dB: after pass {f.name}, frame {f.frame}, {f.result}"
                       + (f", from layer {f.layer}." if f.layer else "."))  # fmt: skip
    else:
        details.append(f"No result of any pass falls under {report.bound:g} dB.")
    return Answer("Where and when is it worst?", f"frame {frame}, {with_unit(line[frame])}", tuple(details))


def state_cost(report: QuantizationReport, key: str) -> float | None:
    """dB that carried errors take from an output in the last quarter of the clip; None without states."""
    if not any(k.startswith("state ") for k in report.last.outputs):
        return None
    count = max(1, report.frames // 4)
    pairs = list(zip(report.fresh[key], report.last.outputs[key], strict=True))[-count:]
    return sum(a - b for a, b in pairs) / count


def _who(report: QuantizationReport) -> Answer:
    question = "Which layer does it?"
    parts = shares(report)
    if not parts:
        return Answer(question, "none", ("No layer by itself changes anything, or none was tried by itself.",))
    by_name = {x.name: x for x in report.layers}
    names = list(parts)
    first = names[0]
    module = by_name[first].module if first in by_name else ""
    total = report.fresh[report.alone_of][report.alone_frame]
    details = [
        f"{first}" + (f" ({module})" if module else "") + f": with its error alone {report.alone_of} of frame "
        f"{report.alone_frame} is at {with_unit(report.alone[first])}; with all layers' at {with_unit(total)}."
    ]
    q = next((q for q in report.quantizers if first in q.layers), None)
    details += [cut_text(q)] if q is not None and q.clipped >= CUT else []
    if len(names) > 1:
        rest = ", ".join(f"{n} ({percent(parts[n])})" for n in names[1:4])
        half = next(i for i in range(1, len(names) + 1) if sum(parts[n] for n in names[:i]) >= 0.5)
        details.append(f"Next: {rest}. Half of the error comes from {half} of {len(report.alone)} layers.")
    return Answer(question, f"{first}, {percent(parts[first])} of the error", tuple(details))


def cut_text(q: Quantizer) -> str:
    """What a quantizer cuts off, in a sentence."""
    u = max(q.uses, key=lambda u: u.below + u.above)
    when = f"frame {u.since}" if u.since == u.until else f"frames {u.since} to {u.until}"
    return (
        f"The quantizer at its input ({q.source}, {q.low:.4g} to {q.high:.4g}) cuts off "
        f"{percent(u.below + u.above)} of the values in {when}: its range, from calibration, ends there."
    )


def bits(layer: Layer) -> str:
    """`W8 A8`, or `float`."""
    return f"W{layer.weight_bits} A{layer.activation_bits or '32'}" if layer.weight_bits else "float"
