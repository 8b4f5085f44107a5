"""The style of the report's page: light and dark by the reader's system, and on paper."""

LIGHT = ("#7a0c16", "#b3202a", "#dc5a3c", "#f4a26a", "#4a86bd", "#74a5d0", "#9bc1de", "#bdd7ea", "#d8e7f2", "#e8f0f6",
         "#f3f6f9")  # fmt: skip
DARK = ("#ff6a55", "#e8503c", "#c9492f", "#a8562c", "#2f6ea8", "#295c8c", "#234c73", "#1e3f5e", "#1a3349", "#182a3a",
        "#16222d")  # fmt: skip


def _heat(colours: tuple[str, ...], equal: str) -> str:
    return "".join(f".h{i}{{fill:{c};background:{c}}}" for i, c in enumerate(colours)) + f".he{{fill:{equal}}}"


_LIGHT = """--ink:#1b2127;--soft:#5c6771;--page:#fff;--card:#f5f7f9;--rule:#d9dfe4;--blue:#1f6fb2;--warm:#b3202a;
--green:#2b7a4b;--violet:#7b4ea3;--gold:#a66b00;--teal:#0b7d84"""
_DARK = """--ink:#e6eaee;--soft:#9aa6b1;--page:#12171c;--card:#1a2129;--rule:#303a44;--blue:#6bb1ea;--warm:#ff7a66;
--green:#6fcf97;--violet:#c39af0;--gold:#e5b454;--teal:#5fd0d6"""

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
{_heat(LIGHT, "#e3ead9")}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}
{_heat(DARK, "#26301f")}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:1180px;padding:18px 22px 60px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;print-color-adjust:exact;
-webkit-print-color-adjust:exact}}
h1{{font-size:22px;margin:0}} h2{{font-size:18px;margin:38px 0 6px;border-bottom:1px solid var(--rule)}}
h3{{font-size:15px;margin:18px 0 4px}}
p,li{{max-width:78ch}} p{{margin:6px 0}} .soft,figcaption,.what{{color:var(--soft);font-size:13px}}
nav{{font-size:13px;margin:4px 0 0}} nav a{{margin-right:12px}} a{{color:var(--blue)}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:12px;margin:14px 0}}
.card{{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 14px}}
.card h2{{all:unset;display:block;color:var(--soft);font-size:13px}}
.card b{{display:block;font-size:18px;line-height:1.25;margin:2px 0 4px}} .card p{{font-size:13px;margin:3px 0}}
.two{{display:grid;grid-template-columns:repeat(auto-fit,minmax(430px,1fr));gap:14px}}
.chart{{margin:0}} .chart svg{{width:100%;height:auto;display:block}} 
figcaption span{{margin-right:14px;white-space:nowrap}}
.chart figcaption svg{{display:inline;width:26px;vertical-align:middle}}
svg text{{font:10.5px system-ui,sans-serif;fill:var(--soft)}} svg.heat text{{font-size:10px;fill:var(--ink)}}
svg.heat text.head{{font-weight:600}} svg.heat text.mark{{fill:var(--soft)}} 
svg.heat rect{{stroke:var(--page);stroke-width:.4}}
.scroll{{overflow-x:auto}} .grid{{stroke:var(--rule)}} .bound{{stroke:var(--warm);stroke-dasharray:2 3}}
polyline,figcaption line{{fill:none;stroke-width:1.8}} circle{{stroke:none}}
{
    "".join(
        f".l{i}{{stroke:var(--{c});}} circle.l{i}{{fill:var(--{c})}}"
        for i, c in enumerate(("blue", "green", "violet", "gold", "teal", "soft"))
    )
}
.what{{max-width:100ch}}
table{{border-collapse:collapse;font-size:12.5px;margin:8px 0;width:100%}} th{{text-align:left;color:var(--soft);
font-weight:600;border-bottom:1px solid var(--rule);vertical-align:bottom}} td,th{{padding:2px 8px 2px 0}}
td{{border-bottom:1px solid var(--rule);vertical-align:top;overflow-wrap:break-word}}
.n{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;overflow-wrap:normal}}
p.all{{max-width:none}} .narrow{{max-width:760px}} rect.share{{fill:var(--blue)}}
.c1{{color:var(--gold)}} .c2{{color:var(--warm);font-weight:600}}
.bar{{display:inline-block;width:70px;height:9px;background:var(--rule);border-radius:2px;overflow:hidden}}
.bar.wide{{width:110px}} .bar i{{display:block;height:100%;background:var(--blue)}}
.side{{display:grid;grid-template-columns:repeat(3,1fr);gap:8px;margin:6px 0}} .side figure{{margin:0}}
.side img{{width:100%;display:block;border:1px solid var(--rule)}} .zoom img{{image-rendering:pixelated}}
.zoom{{max-width:640px}} code{{font-size:12.5px}}
@media print{{body{{max-width:none;padding:0;font-size:11px}} h2{{break-after:avoid}} nav{{display:none}}
.card,figure,.side,tr{{break-inside:avoid}} svg.heat{{max-width:100%;height:auto}} .scroll{{overflow:visible}}}}
"""
