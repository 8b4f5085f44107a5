"""What the recorder has to know about single operators: which stay whole, which make memory, which read data."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vqc.frontend.emit import aten

# Composite operators that are recorded whole, because passes and kernels know them by this name.
WHOLE = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose1d.default,
    aten.conv_transpose2d.input, aten.conv_transpose3d.input, aten.linear.default, aten.matmul.default,
    aten.layer_norm.default, aten.group_norm.default, aten.batch_norm.default, aten.instance_norm.default,
    aten.rms_norm.default, aten.scaled_dot_product_attention.default, aten.softmax.int, aten.log_softmax.int,
    aten.prelu.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten.avg_pool1d.default, aten.reshape.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
    aten.upsample_trilinear3d.vec, aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec, aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
    aten.is_nonzero.default, aten.item.default, aten.nonzero_numpy.default, aten.channel_shuffle.default,
}  # fmt: skip

# Operators whose result depends on their tensor arguments' shapes only.
FACTORIES = {
    "aten::" + n
    for n in (
        "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
        "new_empty_strided", "zeros", "ones", "full", "empty", "empty_strided", "empty_permuted",
    )
}  # fmt: skip
EMPTIES = {n for n in FACTORIES if "empty" in n}
ONES = {"aten::ones", "aten::ones_like", "aten::new_ones"}
FULLS = {"aten::full", "aten::full_like", "aten::new_full"}

# Checks and hints that compute nothing.
IGNORED = {"aten::_assert_tensor_metadata", "aten::_assert_async", "aten::_assert_scalar", "aten::sym_constrain_range",
           "aten::sym_constrain_range_for_size", "aten::_nnpack_available", "aten::requires_grad_",
           "aten::_backward", "aten::retain_grad"}  # fmt: skip

# The shape of the result depends on the values in a tensor.
SHAPE_FROM_DATA = {
    "aten::" + n
    for n in (
        "nonzero", "nonzero_numpy", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive",
        "unique_dim_consecutive", "bincount", "repeat_interleave", "argwhere", "_nested_tensor_from_mask",
    )
}  # fmt: skip

CHANGES_METADATA = {"aten::" + n for n in ("squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "swapaxes_",
                                           "swapdims_", "detach_")}  # fmt: skip
REPLACES_MEMORY = {"aten::set_", "aten::resize_", "aten::resize_as_", "aten::resize_output_"}

READS = {
    torch.Tensor.numpy: "numpy()", torch.Tensor.__array__: "numpy conversion", torch.Tensor.tolist: "tolist()",
    torch.Tensor.data_ptr: "data_ptr()", torch.Tensor.__dlpack__: "DLPack export",
    torch.Tensor.__reduce_ex__: "pickling", torch.Tensor.storage: "storage()",
}  # fmt: skip

_RENAMED = {
    "aten::__iand__": "bitwise_and", "aten::__ior__": "bitwise_or", "aten::__ixor__": "bitwise_xor",
    "aten::__ilshift__": "__lshift__", "aten::__irshift__": "__rshift__", "aten::_index_put_impl_": "index_put",
}  # fmt: skip


def is_random(func: Any, bound: dict[str, Any]) -> bool:
    """Whether this call draws random numbers (dropout and attention do so only with a positive probability)."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    probability = bound.get("dropout_p")
    return not (probability is not None and probability == 0.0)


def without_noise(func: Any, args: tuple, kwargs: dict) -> tuple[Any, tuple, dict]:
    """RReLU outside of training as the leaky ReLU it then is; any other call as it stands.

    Its operator claims to draw random numbers, and to write them to an argument, whether it is training or not.
    """
    if func._schema.name not in ("aten::rrelu_with_noise", "aten::rrelu_with_noise_"):
        return func, args, kwargs
    bound = bind(func, args, kwargs)
    if bound["training"]:
        return func, args, kwargs
    leaky = torch.ops.aten.leaky_relu_ if func._schema.name.endswith("_") else torch.ops.aten.leaky_relu
    return leaky.default, (bound["self"], (float(bound["lower"]) + float(bound["upper"])) / 2), {}


def bind(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments by the schema's names, defaults filled in."""
    bound = {}
    for i, a in enumerate(func._schema.arguments):
        if i < len(args) and not a.kwarg_only:
            bound[a.name] = args[i]
        elif a.name in kwargs:
            bound[a.name] = kwargs[a.name]
        elif a.has_default_value():
            bound[a.name] = a.default_value
    return bound


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors of a nested structure."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


@cache
def written_names(func: Any) -> tuple[str, ...]:
    """Names of the arguments an operator writes to, in the schema's order."""
    return tuple(a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def functional_form(func: Any) -> Any:
    """The operator that computes what `func` writes, as a new tensor; None when torch has none."""
    schema = func._schema
    writes = written_names(func)
    if len(writes) != 1:
        return None
    space, _, name = schema.name.partition("::")
    if writes[0] == schema.arguments[0].name and (name.endswith("_") or schema.name in _RENAMED):
        base = _RENAMED.get(schema.name, name[:-1])
        inputs = [a.name for a in schema.arguments]
    elif schema.arguments[-1].kwarg_only and writes[0] in [a.name for a in schema.arguments if a.is_out]:
        base, inputs = name, [a.name for a in schema.arguments if not a.is_out]
    else:
        return None
    packet = getattr(getattr(torch.ops, space), base, None)
    if packet is None:
        return None
    overloads = packet.overloads()
    preferred = [func._overloadname, *overloads] if func._overloadname in overloads else overloads
    for overload in preferred:
        candidate = getattr(packet, overload)
        if not candidate._schema.is_mutable and [a.name for a in candidate._schema.arguments][: len(inputs)] == inputs:
            same = all(
                str(a.type) == str(b.type)
                for a, b in zip(
                    [a for a in schema.arguments if not a.is_out], candidate._schema.arguments, strict=False
                )
            )
            if same:
                return candidate
    return None
