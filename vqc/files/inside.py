"""What both directions know of names and layouts in a file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

# Names reach Python code that torch.fx generates, so they may hold nothing but these.
NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,300}")
CONSTANT_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,600}")


def dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether these strides are a permutation of row-major ones: every place of the memory is one element."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return expected == math.prod(shape)
