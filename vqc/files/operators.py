"""The operators a `.vqc` file may name. What is not here is refused, whatever PyTorch would do with it."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch

import vqc.ops
from vqc.arguments import is_random

# Names of aten operators that a capture gives and passes make: those with a kernel of their own for dense tensors on a
# CPU and a rule for shapes without data. Each stands for those of its overloads that neither write their arguments nor
# draw random numbers, and return tensors. Left out are those that trust numbers in a tensor without a check, such as
# the pivots of linalg_lu_solve: a file may not be able to do more than compute.
_ATEN_NAMES = """
__and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _addmm_activation _cdist_forward
_conj _conj_physical _convolution _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _linalg_det _linalg_eigh _linalg_eigvals
_linalg_slogdet _linalg_solve_ex _linalg_svd _log_softmax _native_batch_norm_legit_no_training _pdist_forward
_prelu_kernel _reshape_copy _safe_softmax _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_index
_unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm_interface abs acos acosh adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv
addcmul addmm addmv addr affine_grid_generator alias alias_copy all amax amin aminmax angle any arange argmax argmin
argsort as_strided as_strided_copy asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm
binary_cross_entropy binary_cross_entropy_with_logits bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor block_diag bmm bucketize cat cdist ceil celu channel_shuffle cholesky cholesky_inverse
cholesky_solve chunk clamp clamp_max clamp_min clip clone col2im complex concat conj_physical constant_pad_nd contiguous
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign cos cosh count_nonzero
cummax cummin cumprod cumsum deg2rad detach diag_embed diagonal diagonal_copy diagonal_scatter digamma dist div divide
dot einsum elu embedding eq erf erfc erfinv exp exp2 expand expand_as expand_copy expm1 eye fill flatten flip
float_power floor floor_divide fmax fmin fmod frac frexp full full_like gather gcd ge gelu glu greater grid_sampler
grid_sampler_2d grid_sampler_3d group_norm gt hardshrink hardsigmoid hardswish hardtanh heaviside huber_loss hypot i0
igamma igammac im2col imag index index_add index_copy index_fill index_put index_reduce index_select instance_norm
isfinite isin isinf isnan isneginf isposinf kthvalue layer_norm lcm ldexp le leaky_relu lerp less lgamma lift_fresh_copy
linalg_cholesky_ex linalg_cross linalg_eig linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex linalg_lu
linalg_lu_factor_ex linalg_matrix_exp linalg_qr linalg_solve_triangular linalg_vector_norm linear linspace log log10
log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logical_and logical_not
logical_or logical_xor logit logspace logsumexp lt lu_unpack masked_fill masked_scatter matmul max max_pool1d max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min
minimum mish mm mode movedim mse_loss mul multiply mv mvlgamma nan_to_num nanmedian nansum narrow narrow_copy
native_group_norm native_layer_norm ne neg negative new_full new_ones new_zeros nextafter norm ones ones_like pad
permute permute_copy pixel_shuffle pixel_unshuffle polar polygamma positive pow prelu prod rad2deg real reciprocal
reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave
replication_pad1d replication_pad2d replication_pad3d reshape rms_norm roll rot90 round rsqrt rsub scalar_tensor
scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid sign
signbit silu sin sinc sinh slice slice_scatter slow_conv_transpose2d smooth_l1_loss soft_margin_loss softmax softplus
softshrink sort special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_entr
special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_modified_bessel_i0 special_modified_bessel_i1
special_modified_bessel_k0 special_modified_bessel_k1 special_ndtri special_scaled_modified_bessel_k0
special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_xlog1py special_zeta split split_with_sizes
split_with_sizes_copy sqrt square squeeze squeeze_copy stack std std_mean sub subtract sum t t_copy take take_along_dim
tan tanh threshold to topk trace transpose transpose_copy triangular_solve tril tril_indices triu triu_indices
true_divide trunc unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk unsafe_split unsafe_split_with_sizes
unsqueeze unsqueeze_copy upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d var var_mean vdot view view_as view_as_complex view_as_real view_copy where
xlogy zeros zeros_like
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
