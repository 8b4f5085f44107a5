"""The operators a `.vqc` file may name. What is not here is refused, whatever PyTorch would do with it."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch

import vqc.ops
from vqc.arguments import is_random

# Names of aten operators that a capture gives and passes make. Each stands for those of its overloads that neither
# write their arguments nor draw random numbers, and return tensors.
_ATEN_NAMES = """
__and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _conj
_conj_physical _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _log_softmax _native_batch_norm_legit_no_training
_prelu_kernel _reshape_copy _safe_softmax _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_index
_unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr
affine_grid_generator alias alias_copy all amax amin aminmax angle any arange argmax argmin argsort as_strided asin
asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_left_shift bitwise_not
bitwise_or bitwise_right_shift bitwise_xor bmm bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max
clamp_min clip clone col2im complex concat conj_physical constant_pad_nd contiguous conv1d conv2d conv3d
conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign cos cosh count_nonzero cumprod cumsum
deg2rad detach diagonal diagonal_scatter digamma div divide dot einsum elu embedding eq erf erfc erfinv exp exp2
expand expand_as expm1 eye fill flatten flip float_power floor floor_divide fmax fmin fmod frac full full_like gather
ge gelu glu greater grid_sampler grid_sampler_2d grid_sampler_3d group_norm gt hardshrink hardsigmoid hardswish
hardtanh heaviside hypot im2col imag index index_add index_copy index_fill index_put index_select instance_norm
isfinite isinf isnan isneginf isposinf kthvalue layer_norm le leaky_relu lerp less lgamma lift_fresh_copy
linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp
logaddexp2 logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill masked_scatter matmul max
max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum
mean median meshgrid min minimum mish mm movedim mul multiply mv nan_to_num narrow native_group_norm native_layer_norm
ne neg negative new_full new_ones new_zeros nextafter norm ones ones_like pad permute pixel_shuffle pixel_unshuffle
polar positive pow prelu prod rad2deg real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
remainder repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape rms_norm roll rot90
round rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select
select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_scatter softmax softplus softshrink sort
split split_with_sizes sqrt square squeeze stack std std_mean sub subtract sum t take take_along_dim tan tanh
threshold to topk transpose tril triu true_divide trunc unbind unflatten unfold unsafe_chunk unsafe_split
unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view view_as view_as_complex view_as_real
where xlogy zeros zeros_like
"""

_QUANTIZED = frozenset({"quantize_per_tensor", "dequantize_per_tensor", "quantize_per_channel",
                        "dequantize_per_channel", "dequantize_per_channel_group"})  # fmt: skip
_VQC = frozenset(n for n in vqc.ops.__all__ if hasattr(torch.ops.vqc, n))
# They draw random numbers where a dropout is asked for, which a capture refuses.
_DRAWS_IF_ASKED = frozenset({"aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"})
_ALLOWED = {
    "aten": frozenset(_ATEN_NAMES.split()),
    "quantized_decomposed": _QUANTIZED,
    "vqc": _VQC,
    "torchvision": frozenset({"deform_conv2d"}),
}
_RETURNS = ("Tensor", "List[Tensor]")
# An operator that gives a list is asked for its results' shapes before anyone can count them: no axis of its input may
# be longer than this.
LIST_LIMIT = 1 << 16


def name_of(target: Any) -> str | None:
    """What a file calls an operator ("aten::add.Tensor", "getitem"), None when it may not stand in one."""
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload) and find(target.name()) is target:
        return target.name()
    return None


def find(name: str) -> Any:
    """The operator of this name; None when a file may not name it, or this PyTorch does not have it."""
    if name == "getitem":
        return operator.getitem
    found = re.fullmatch(r"([a-z_]+)::([a-z_0-9A-Z]+)(?:\.([a-zA-Z_0-9]+))?", name)
    if found is None or found[2] not in _ALLOWED.get(found[1], ()):
        return None
    packet = getattr(getattr(torch.ops, found[1]), found[2], None)
    overload = found[3] or "default"
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        return None
    op = getattr(packet, overload)
    return op if _harmless(op) else None


def _harmless(op: Any) -> bool:
    schema = op._schema
    draws = is_random(op) and op.name() not in _DRAWS_IF_ASKED
    seeded = any("Generator" in str(a.type) for a in schema.arguments)
    returns = {str(r.type) for r in schema.returns}
    return not (schema.is_mutable or draws or seeded) and bool(returns) and returns <= set(_RETURNS)


def gives_list(op: Any) -> bool:
    """Whether an operator's one result is a list whose length depends on its arguments."""
    return isinstance(op, torch._ops.OpOverload) and any(str(r.type) == "List[Tensor]" for r in op._schema.returns)
