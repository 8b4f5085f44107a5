"""The private names of torch that capture needs, in one place (tried on torch 2.13).

Recording happens at the PreDispatch key: there an operator is still whole (`linear`, `layer_norm`, `matmul`), and an
operator we do not want whole can be opened by running its composite kernel with the recorder still listening.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C import DispatchKey
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Handler = Callable[[Any, tuple, dict], Any]
_COMPOSITE = DispatchKey.CompositeImplicitAutograd
_PRE = DispatchKey.PreDispatch


class PreDispatchMode(SchemaCheckMode):
    """Calls `handler(op, args, kwargs)` for every operator before autograd and autocast have seen it.

    It derives from SchemaCheckMode because torch lets only its own modes listen at this key. While the handler runs,
    the mode is off; `with mode:` inside the handler turns it on again.
    """

    def __init__(self, handler: Handler):
        super().__init__()
        self._dispatch_key = _PRE
        self.handler = handler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handler(func, tuple(args), kwargs or {})


class LowMode(TorchDispatchMode):
    """Calls `handler` for every operator below autograd and autocast, where casts and batching rules are operators."""

    def __init__(self, handler: Handler):
        super().__init__()
        self.handler = handler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handler(func, tuple(args), kwargs or {})


def listen() -> contextlib.AbstractContextManager[Any]:
    """Without this guard the dispatcher never looks at the PreDispatch key from Python."""
    return torch._C._EnablePythonDispatcher()


def plain() -> contextlib.AbstractContextManager[Any]:
    """Run operators by their C++ kernels, not by torch's Python decompositions of them."""
    return torch._C._DisablePythonDispatcher()


def is_composite(op: Any) -> bool:
    """Whether the operator is a program of other operators, without a kernel of its own."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _COMPOSITE))


def open_composite(op: Any, args: tuple, kwargs: dict) -> Any:
    """Run a composite operator's C++ kernel; the operators inside it are dispatched from the top again."""
    return op._op_dk(_COMPOSITE, *args, **kwargs)


def is_wrapped(value: Any) -> bool:
    """Whether a tensor is a functorch wrapper (inside vmap or grad), which stands for no memory of its own."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def storage_key(tensor: torch.Tensor) -> int:
    """A number that two tensors share exactly when they share memory; -1 when the tensor has no storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and quantized-opaque tensors
        return -1


def weak_storage(tensor: torch.Tensor) -> Any:
    """A weak reference to the tensor's storage: while it is held, the storage's key is given to no other storage."""
    from torch.multiprocessing.reductions import StorageWeakRef

    return StorageWeakRef(tensor.untyped_storage())


@contextlib.contextmanager
def higher_order(mode: type, rules: dict[str, Callable[..., Any]], default: Callable[..., Any]) -> Iterator[None]:
    """Within this context every higher-order operator calls our rule (`rule(op, mode, *args)`) while `mode` listens."""
    ops = list(torch._ops._higher_order_ops.values())
    added = []
    for op in ops:
        rule = rules.get(op._name, default)
        if mode not in op.python_key_table:

            def run(active: Any, *args: Any, _op: Any = op, _rule: Any = rule, **kwargs: Any) -> Any:
                return _rule(_op, active, args, kwargs)

            op.python_key_table[mode] = run
            added.append(op)
    try:
        yield
    finally:
        for op in added:
            op.python_key_table.pop(mode, None)
            op._dispatch_cache.clear()


def run_higher_order(op: Any, args: tuple, kwargs: dict) -> Any:
    """The eager meaning of a higher-order operator."""
    kernel = op.py_kernels.get(DispatchKey.CompositeExplicitAutograd) or op.py_kernels[DispatchKey.CPU]
    return kernel(*args, **kwargs)


def eager_stance() -> contextlib.AbstractContextManager[Any]:
    """torch.compile regions inside the user's model run eagerly, so that their operators are seen."""
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def without_mkldnn() -> Iterator[None]:
    """nn.LSTM opens into plain operators instead of one opaque kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about a flag of other hardware
        flags = torch.backends.mkldnn.flags(enabled=False)
        flags.__enter__()
    try:
        yield
    finally:
        flags.__exit__(None, None, None)


def flatten_with_path(tree: Any) -> tuple[list[tuple[Any, Any]], pytree.TreeSpec]:
    """pytree's flatten with key paths; plain numbers where a class was registered without names for its parts."""
    try:
        return pytree.tree_flatten_with_path(tree)
    except ValueError:
        leaves, spec = pytree.tree_flatten(tree)
        return [((pytree.SequenceKey(i),), x) for i, x in enumerate(leaves)], spec
