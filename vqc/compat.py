"""The only file that touches private names of torch.

Everything here was tried on torch 2.11 to 2.13; `tests/door/test_compat.py` says at once which name went away.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from vqc.errors import BackendError, TargetError

STATIC_MARK = "_dynamo_static_input_type"


def is_static_input(value: Any) -> bool:
    """Whether Dynamo passes this tensor from a module's own attributes (its address is stable) and not from the user.

    A static address is no constant value: a recurrent buffer is static, too.
    """
    return getattr(value, STATIC_MARK, None) is not None


# How Dynamo writes the tables of a module that is assigned to in forward: `.__dict__['_parameters']['weight']`.
_TABLE = re.compile(r"\.__dict__\['_(modules|parameters|buffers)'\]")


def source_name(node: fx.Node) -> str:
    """Where Dynamo found a graph input, as a Python expression: `L['self']._modules['conv']._parameters['weight']`.

    "" when the graph does not come from Dynamo.
    """
    grapharg = node.meta.get("grapharg")
    source = getattr(grapharg, "source", None) or getattr(node, "_dynamo_source", None)
    if source is None:
        return ""
    name = source.name
    text = str(name() if callable(name) else name)  # a method up to 2.9, an attribute since
    return _TABLE.sub(r"._\1", text)


def weight_paths(nodes: Sequence[fx.Node]) -> list[str]:
    """The qualified names of the parameters and buffers behind graph inputs: `backbone.conv.weight`; "" for others.

    All are "" when they come from more than one object: their names might clash.
    """
    sources = [source_name(n) if is_registered(n) else "" for n in nodes]
    if len({s.split("._", 1)[0] for s in sources if s}) > 1:
        return [""] * len(sources)
    return [".".join(re.findall(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", s)) for s in sources]


def is_registered(node: fx.Node) -> bool:
    """Whether a graph input is a registered parameter or buffer, and not a plain attribute that may be reassigned."""
    return "._parameters[" in (name := source_name(node)) or "._buffers[" in name


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Hide Dynamo's tracing context, so that a compilation inside a backend call is like one outside.

    Without this, a graph that differs from the traced one (weights bound) would be mixed up with its metadata.
    """
    from torch._guards import tracing

    with tracing(None):
        yield


def fakes(inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A fake mode, and fake copies of a graph's inputs in it, of fixed sizes; numbers may be read from them.

    A number that is read (`item`, or the counter of the loop that Inductor makes of a scan) becomes a symbol; without
    a shape environment reading one is an error.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    mode.allow_scalar_outputs = True
    return mode, [mode.from_tensor(x, static_shapes=True) if isinstance(x, torch.Tensor) else x for x in inputs]


def data_errors() -> tuple[type[Exception], ...]:
    """What is raised when a graph cannot be run on fake tensors because it depends on the data."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode


def inductor_compiler() -> str:
    """The C++ compiler that Inductor takes for the CPU; TargetError when it finds none."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as e:
        raise TargetError(
            "PyTorch's compiler finds no C++ compiler",
            why=str(e).strip(),
            way_out="install g++ or clang++, or set the variable CXX, or use another target",
        ) from e


@contextmanager
def scalars_in_scan() -> Iterator[None]:
    """Let Inductor read a scan's counter while it compiles within Dynamo's trace (see above)."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    mode = context.fake_mode if context is not None else None
    if mode is None or mode.allow_scalar_outputs:
        yield
        return
    mode.allow_scalar_outputs = True
    try:
        yield
    finally:
        mode.allow_scalar_outputs = False


@contextmanager
def sums_out_of_place() -> Iterator[None]:
    """Let Inductor give `conv(x) + y` memory of its own, where it would add a oneDNN convolution into y's.

    It loses sight of that (torch 2.13): a later reader of the sum may be put into one loop with what makes y, before
    the convolution has run, and then reads y in its place.
    """
    if not torch.backends.mkldnn.is_available():
        yield
        return
    from torch._inductor.fx_passes import mkldnn_fusion

    allowed = mkldnn_fusion._can_be_inplace
    mkldnn_fusion._can_be_inplace = lambda other: False
    try:
        yield
    finally:
        mkldnn_fusion._can_be_inplace = allowed


@contextmanager
def own_random_state() -> Iterator[None]:
    """Leave the CPU and CUDA random generators as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def prepares_freezing() -> bool:
    """Whether Dynamo makes weights graph attributes without a guard (a second instance would run the first's)."""
    import torch._dynamo.config as config

    return bool(config.prepare_freezing)


def inductor_mode(mode: str) -> dict[str, Any] | None:
    """Inductor's settings of a `torch.compile` mode, None when it knows no such mode."""
    from torch._inductor import list_mode_options

    modes = list_mode_options()
    return dict(modes[mode]) if mode in modes else None


def unknown_inductor_settings(names: list[str]) -> list[str]:
    """Those of `names` that are no setting of `torch._inductor.config`."""
    from torch._inductor import config

    known = config.get_config_copy()
    return [n for n in names if n not in known]


def frame_signature() -> tuple[inspect.Signature, str] | None:
    """The signature of the Python function Dynamo is compiling right now, and the name of its module argument or "".

    None when Dynamo is not compiling a function.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.symbolic_convert import tls as translator_state

    if getattr(translator_state, "current_tx", None) is None:
        return None
    tx = InstructionTranslator.current_tx()
    code, values = tx.f_code, tx.f_locals
    function = types.FunctionType(code, {}, closure=tuple(types.CellType() for _ in code.co_freevars))
    signature = inspect.signature(function)
    first = next(iter(signature.parameters), "")
    return signature, first if isinstance(values.get(first), torch.nn.Module) else ""


def frame_name() -> str:
    """The name of the Python function Dynamo is compiling right now, as a user knows it; "" when there is none."""
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.symbolic_convert import tls as translator_state

    if getattr(translator_state, "current_tx", None) is None:
        return ""
    return str(InstructionTranslator.current_tx().f_code.co_qualname).rsplit("<locals>.", 1)[-1]


def require_supported_torch() -> None:
    """Raise BackendError on a torch this file was not tried on."""
    major, minor = (int(x) for x in torch.__version__.split(".")[:2])
    if not (2, 11) <= (major, minor) < (2, 14):
        raise BackendError(
            f"vqc does not know torch {torch.__version__}", why="the door reads private names of torch 2.11 to 2.13",
            way_out="install a torch of that range",
        )  # fmt: skip
