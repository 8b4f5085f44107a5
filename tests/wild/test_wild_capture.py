"""Networks of the kinds people publish, captured unmodified: parity on two inputs, the model left as it was."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from wild_kit import Registry

import vqc
from vqc.program import evaluate

CASES: Registry = {}
for _room in ("restore", "align", "flow", "pyramids", "matting", "tokens", "memory", "prompted", "recurrent"):
    CASES |= importlib.import_module(f"networks_{_room}").CASES


def again(example: Any, seed: int = 1) -> Any:
    """Arguments of the same shapes with other numbers (integers and booleans stay: they are indices and masks)."""
    g = torch.Generator().manual_seed(seed)

    def other(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            return torch.rand(x.shape, generator=g).to(x.dtype)
        return x.clone() if isinstance(x, torch.Tensor) else x

    return pytree.tree_map(other, example)


def clones(tree: Any) -> Any:
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tree)


def eager(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """What PyTorch gives, on copies: some of these networks write to their arguments."""
    args = clones(example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = copy.deepcopy(model)(*args)
    return clones(out)


def close(got: Any, want: Any, what: str, tolerance: float = 1e-4) -> None:
    """The same structure, and every tensor within the tolerance times its largest value (1 at least)."""
    a, b = pytree.tree_flatten(got), pytree.tree_flatten(want)
    assert a[1] == b[1], f"{what}: structure {a[1]} is not {b[1]}"
    for g, w in zip(a[0], b[0], strict=True):
        if not isinstance(w, torch.Tensor):
            assert type(g) is type(w), f"{what}: {g!r} is not {w!r}"
            assert g == w or isinstance(w, object) and type(w).__eq__ is object.__eq__, f"{what}: {g!r} is not {w!r}"
            continue
        assert g.shape == w.shape, f"{what}: {tuple(g.shape)} is not {tuple(w.shape)}"
        assert g.dtype == w.dtype, f"{what}: {g.dtype} is not {w.dtype}"
        if w.numel() == 0:
            continue
        g, w = (torch.view_as_real(x) if x.is_complex() else x for x in (g, w))
        error = float((g.double() - w.double()).abs().max())
        assert error <= tolerance * max(1.0, float(w.double().abs().max())), f"{what}: off by {error}"


def run(program: vqc.Program, example: tuple[Any, ...]) -> Any:
    """One step of the graph in the user's own structure."""
    inputs = program.flatten_inputs(example)
    flat = evaluate(program, inputs)
    state = [flat[s.output] for s in program.states]
    for a in program.assumptions:
        assert bool(flat[a.output]) == a.expected, a.text
    return program.unflatten_outputs(flat[: len(program.outputs)], state, inputs)


def photograph(model: nn.Module) -> dict[str, Any]:
    """Everything visible of a model: parameters and buffers by name, and the names of all modules' attributes."""
    tensors = {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}
    kept = {n: {k: type(v) for k, v in vars(m).items() if k[0] != "_"} for n, m in model.named_modules()}
    return {"tensors": tensors, "attributes": kept}


def make(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return CASES[name]()


def captured(model: nn.Module, example: tuple[Any, ...]) -> vqc.Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vqc.capture(model, example)


@pytest.mark.parametrize("name", CASES)
def test_capture(name: str) -> None:
    model, example = make(name)
    second = again(example)
    wants = eager(model, example), eager(model, second)
    before, given = photograph(model), clones(example)
    program = captured(model, example)
    after = photograph(model)
    assert before["attributes"] == after["attributes"], "capture left attributes on the model"
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(torch.equal(after["tensors"][k], v) for k, v in before["tensors"].items()), "capture changed weights"
    for x, y in zip(pytree.tree_leaves(given), pytree.tree_leaves(example), strict=True):
        assert not isinstance(x, torch.Tensor) or torch.equal(x, y), "capture changed the example"
    close(run(program, example), wants[0], "example")
    close(run(program, second), wants[1], "second input")
    close(eager(model, second), wants[1], "the model after capture", 0.0)
    simple = vqc.apply(program, "float")
    close(run(simple, second), wants[1], "recipe float")


@pytest.mark.parametrize("name", CASES)
def test_native(name: str) -> None:
    """Compiled to C where that is within reach; the rest runs in PyTorch, so parity must hold for all."""
    model, example = make(name)
    second = again(example)
    want = eager(model, second)
    program = captured(model, example)
    stream = vqc.Stream(vqc.compile(program, target="native"))
    close(stream(*clones(second)), want, "native")


def test_a_grid_cache_of_the_python_module_keeps_no_tensor_of_a_capture() -> None:
    import networks_flow

    networks_flow.backwarp_tenGrid.clear()
    model, example = make("cached_warps")
    captured(model, example)
    cold = eager(model, again(example))
    networks_flow.backwarp_tenGrid.clear()
    close(cold, eager(model, again(example)), "a cache filled during capture", 0.0)


def door(name: str, options: dict[str, Any]) -> str:
    """Run a network through torch.compile; a line on what became of it. For use by hand: Dynamo is slow."""
    from vqc.backend import reports

    model, example = make(name)
    second = again(example)
    wants = [eager(model, e) for e in (example, second)]
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = torch.compile(copy.deepcopy(model), backend="vqc", options=options)
        args = [
            pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, e) for e in (example, second)
        ]
        for a, want in zip(args, wants, strict=True):
            close(fast(*a), want, "door")
    return f"{len(reports())} graphs: " + ", ".join(sorted({r.route for r in reports()}))
