"""A recurrence over the frames of a clip: a loop when run eagerly, one `scan` node when captured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def recur(step: Callable[[Tensor, Tensor], Tensor], state: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """`state = step(state, frame)` for every frame of `clip` [B,T,...]; gives all states [B,T,...] and the last.

    Under torch.compile and torch.export this is the scan operator, so the graph does not grow with the clip and one
    graph serves every length; eagerly a plain loop, as scan would first trace `step`.
    """
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.scan import scan

        def body(carry: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
            new = step(carry, frame)
            return new, new.clone()  # scan refuses outputs that share memory

        last, states = scan(body, state, clip.movedim(1, 0))
        return states.movedim(0, 1), last
    states = []
    for frame in clip.unbind(1):
        state = step(state, frame)
        states.append(state)
    return torch.stack(states, 1), state
