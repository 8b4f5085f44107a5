"""Numbers and names as C text."""

from __future__ import annotations

import keyword
import math
import re

import numpy as np

_C_WORDS = {
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
    "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof",
    "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "main",
}  # fmt: skip


def number(value: float) -> str:
    """A float32 as a C constant that reads back as the same bits."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    single = np.float32(value)
    text = next(t for t in (f"{float(single):.{p}g}" for p in (6, 7, 8, 9)) if np.float32(float(t)) == single)
    return (text if "." in text or "e" in text else text + ".0") + "f"


def c_name(name: str) -> str:
    """A C identifier from a program's name."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII).lower() or "model"
    if text[0].isdigit() or text.startswith("_") or text in _C_WORDS or keyword.iskeyword(text):
        text = "m_" + text
    return text
