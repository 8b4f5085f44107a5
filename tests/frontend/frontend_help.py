"""What the tests of capture share: seeded networks, parity over steps, a picture of a network's Python state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from vqc.frontend import capture
from vqc.program import Program, evaluate


def seeded(make: Any, seed: int = 0) -> Any:
    """A module in eval mode with the same weights every time."""
    torch.manual_seed(seed)
    model = make()
    return model.eval() if isinstance(model, nn.Module) else model


def copied(args: Any) -> Any:
    """The same structure with fresh containers and fresh tensors."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args)


def eager(model: Any, args: tuple) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*copied(args)))


def run(program: Program, args: tuple, state: Sequence[torch.Tensor] | None = None) -> list[Any]:
    """The user's result leaves of one step."""
    feeds = [x for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor)][: len(program.inputs)]
    state = program.initial_state() if state is None else list(state)
    out = evaluate(program, feeds, state)
    return pytree.tree_leaves(program.unflatten_outputs(out, [out[s.output] for s in program.states], feeds))


def same(got: Sequence[Any], want: Sequence[Any], rtol: float = 1e-5) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if isinstance(b, torch.Tensor):
            assert isinstance(a, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-5)
        else:
            assert a == b


def captured(make: Any, *example: Any, **options: Any) -> Program:
    """Capture a seeded network and check it on other data than the example."""
    program = capture(seeded(make), copied(example), **options)
    other = pytree.tree_map(
        lambda x: (x * 0.7 + x.flip(0) * 0.2) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, example
    )
    if not program.states:
        same(run(program, other), eager(seeded(make), other))
    return program


def operators(program: Program) -> list[str]:
    """Operator names in order, overloads left out."""
    return [
        n.target._schema.name.split("::")[1] if hasattr(n.target, "_schema") else n.target.__name__
        for n in program.calls
    ]


def portrait(model: nn.Module) -> dict[str, Any]:
    """Everything in a module's dictionaries by identity, tensors with their values."""
    picture: dict[str, Any] = {}
    for name, m in model.named_modules():
        for key, value in m.__dict__.items():
            picture[f"{name}.{key}"] = id(value)
            if isinstance(value, (dict, list)):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                picture[f"{name}.{key}()"] = [(k, id(v)) for k, v in items]
        for key, t in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]:
            picture[f"{name}.{key} value"] = (t.detach().clone().numpy().tobytes(), t.requires_grad, t.data_ptr())
    return picture
