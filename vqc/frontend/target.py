"""What is captured: a module, any callable, or a graph from torch.export or Dynamo, made callable in one way."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend.recorder import Recorder
from vqc.frontend.snapshot import modules_of, roots_of


class Target:
    """A callable, the objects it keeps state in, and the names of its parameters."""

    def __init__(self, model: Any):
        self.graph: fx.GraphModule | None = None
        signature_of = model.forward if isinstance(model, nn.Module) else model
        if isinstance(model, torch.export.ExportedProgram):
            names = _exported_names(model)
            model = model.module()
            self.graph, signature_of = model, _takes(names)
        elif isinstance(model, fx.GraphModule):
            self.graph = model
        if not callable(model):
            raise CaptureError(f"a {type(model).__name__} cannot be captured",
                               way_out="give an nn.Module, a function, or a torch.export.ExportedProgram")  # fmt: skip
        self.model: Callable[..., Any] = model
        self.roots = roots_of(model)
        self.modules = modules_of(model)
        try:
            self.signature: inspect.Signature | None = inspect.signature(signature_of)
        except (TypeError, ValueError):  # compiled code may have none
            self.signature = None

    def check_mode(self) -> None:
        """Raise CaptureError when a module is in training mode."""
        if self.graph is not None:
            return
        for name, m in self.modules.items():
            if m.training:
                raise CaptureError(
                    f"module {name or type(m).__name__} is in training mode",
                    why="dropout and batch norm compute something else while training",
                    way_out="call model.eval() first",
                )

    def run(self, recorder: Recorder | None, args: tuple, kwargs: dict) -> Any:
        """Call it; a graph is interpreted, so that its nodes' own places in the user's code are kept."""
        if self.graph is None or recorder is None:
            return self.model(*args, **kwargs)
        return GraphRunner(self.graph, recorder).call(args, kwargs)

    def leaf_names(self, args: tuple, kwargs: dict) -> list[str]:
        """A name for every leaf of the arguments, made of the parameter's name and the path below it."""
        names: list[str] = []
        positions = self._positions(len(args))
        for path, _ in pytree.tree_flatten_with_path((args, kwargs))[0]:
            keys = [_key_text(k) for k in path]
            head = positions[int(keys[1])] if keys[0] == "0" else keys[1]
            names.append(_unique(identifier("_".join([head, *keys[2:]])), names))
        return names

    def leaves_of(self, name: str, args: tuple, kwargs: dict) -> list[int]:
        """The numbers of the leaves below a parameter: of a tuple, list or dictionary, or of all its *arguments."""
        parameter = self.signature.parameters.get(name) if self.signature is not None else None
        several = parameter is not None and parameter.kind is parameter.VAR_POSITIONAL
        positions = self._positions(len(args))
        found = []
        for i, (path, _) in enumerate(pytree.tree_flatten_with_path((args, kwargs))[0]):
            keys = [_key_text(k) for k in path]
            head = positions[int(keys[1])] if keys[0] == "0" else keys[1]
            if head == name or (several and keys[0] == "0" and re.fullmatch(rf"{re.escape(name)}_\d+", head)):
                found.append(i)
        return found

    def containers(self, names: Sequence[str], args: tuple, kwargs: dict) -> dict[str, Any]:
        """Defaults of these parameters that are tuples, lists or dictionaries, of those that are not given."""
        if self.signature is None:
            return {}
        given = {*self._positions(len(args)), *kwargs}
        defaults = {n: p.default for n, p in self.signature.parameters.items() if n in names and n not in given}
        return {n: d for n, d in defaults.items() if isinstance(d, (tuple, list, dict)) and d}

    def accepts(self, name: str) -> bool:
        """Whether the callable has a parameter of this name (or takes any)."""
        if self.signature is None:
            return False
        kinds = [p.kind for p in self.signature.parameters.values()]
        return name in self.signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds

    def _positions(self, count: int) -> list[str]:
        names: list[str] = []
        for p in self.signature.parameters.values() if self.signature is not None else ():
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                names.append(p.name)
            elif p.kind is p.VAR_POSITIONAL:
                names += [p.name if count == len(names) + 1 else f"{p.name}_{i}" for i in range(count - len(names))]
        return (names + [f"arg{i}" for i in range(len(names), count)])[:count]


def _exported_names(ep: torch.export.ExportedProgram) -> list[str]:
    """Parameter names of an exported program's forward, from the names of its inputs."""
    spec = ep.call_spec.in_spec
    first: list[str] = []
    flat = iter([str(n) for n in ep.graph_signature.user_inputs])
    for child in spec.child(0).children() if spec is not None else []:
        own = [next(flat, "arg") for _ in range(child.num_leaves)]
        first.append(own[0] if child.is_leaf() else re.sub(r"_\d+$", "", own[0]) if own else "arg")
    return first


def _takes(names: Sequence[str]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> None:
        """Stands for the signature of an exported forward."""

    parameters = [
        inspect.Parameter(identifier(n), inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in dict.fromkeys(names)
    ]
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*parameters, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
    )
    return forward


def _key_text(key: Any) -> str:
    for field in ("idx", "key", "name"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)


def identifier(text: str) -> str:
    """A Python identifier like the text."""
    clean = re.sub(r"\W", "_", text).strip("_") or "x"
    if keyword.iskeyword(clean):
        clean += "_"
    return clean if not clean[0].isdigit() else f"x{clean}"


def _unique(name: str, taken: Sequence[str]) -> str:
    unique, i = name, 1
    while unique in taken:
        unique, i = f"{name}_{i}", i + 1
    return unique


class GraphRunner(fx.Interpreter):
    """Runs a graph of torch or ATen calls under the recorder."""

    def __init__(self, graph: fx.GraphModule, recorder: Recorder):
        super().__init__(graph)
        self.recorder = recorder

    def call(self, args: tuple, kwargs: dict) -> Any:
        codegen = self.module.graph._codegen
        if kwargs and not isinstance(codegen, fx.graph._PyTreeCodeGen):
            names = [n.name for n in self.module.graph.nodes if n.op == "placeholder"]
            args, kwargs = (*args, *(kwargs[n] for n in names[len(args) :] if n in kwargs)), {}
        if isinstance(codegen, fx.graph._PyTreeCodeGen):
            flat, spec = pytree.tree_flatten((args, kwargs))
            if codegen.pytree_info.in_spec is not None and spec != codegen.pytree_info.in_spec:
                flat = list(codegen.process_inputs(*args, **kwargs))
            return codegen.process_outputs(self.run(*flat, enable_io_processing=False))
        return self.run(*args, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module" and n.target == "_guards_fn":
            return None
        self.recorder.override = {"source": place_text(n), "module": module_text(n), "place": None}
        try:
            return super().run_node(n)
        finally:
            self.recorder.override = None


def place_text(node: fx.Node) -> str:
    """ "file.py:12 in forward: code line" from the stack trace an exported or Dynamo graph's node carries."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*([^\n]*)', node.meta.get("stack_trace") or "")
    own = [f for f in found if not re.search(r"[\\/]torch[\\/](nn|utils|functional|_|export|fx)", f[0])]
    if not own:
        return ""
    filename, line, function, code = own[-1]
    name = re.split(r"[\\/]", filename)[-1]
    return f"{name}:{line} in {function}" + (f": {code.strip()}" if code.strip() else "")


def module_text(node: fx.Node) -> str:
    """The qualified name of the submodule a node of an exported or Dynamo graph comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"^L\[['\"]?\w+['\"]?\]\.?", "", path)
    path = re.sub(r"_modules\['([^']+)'\]", r"\1", path)
    path = re.sub(r"slice\(.*?\)|\(\)|@\d+", "", path)
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).strip(".")
