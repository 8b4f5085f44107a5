"""Sphinx's settings of this site: `make docs` builds it into out/site."""

from __future__ import annotations

import re
from typing import Any

import vqc

project = "vqc"
author = "the authors of vqc"
copyright = "the authors of vqc, Apache-2.0"
version = release = vqc.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"vqc {release}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
highlight_language = "text"  # of what is indented in docstrings

myst_heading_anchors = 3

nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures: no other project's site is asked for
autodoc_member_order = "bysource"


def _as_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings here are plain text: `code` in single backticks, examples and lists indented by four."""
    out: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside:
            out += ["", "::", ""]
        elif inside and line.strip() and not indented:
            out.append("")
        inside = indented or (inside and not line.strip())
        if not indented:
            parts = re.split(r"(`[^`]+`)", line)
            line = "".join(f"`{p}`" if p[:1] == "`" else re.sub(r"([*|_\\])", r"\\\1", p) for p in parts)
        out.append(line)
    lines[:] = out


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _as_rst)
