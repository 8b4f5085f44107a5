"""The `vqc::` operators. Importing this module registers them, and the `quantized_decomposed` ones they stand beside.

Each has one exact meaning, written in its docstring and run by its eager implementation: integers are exact, every
written float operation is rounded once to float32, ties go to even, nothing is contracted. Every backend must equal it.
Only the float sums of masked_conv2d have no order, as those of aten.conv2d.
"""

from __future__ import annotations

import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers quantized_decomposed::*)

from vqc.ops.binary import bconv2d, bconv2d_threshold, binarize
from vqc.ops.conv import qconv2d, qconv2d_requantize, qconv_transpose2d, qconv_transpose2d_requantize
from vqc.ops.exact import EXACT, exp, hardsigmoid, hardswish, is_exact, sigmoid, silu, tanh
from vqc.ops.fake_binary import binary_scale, fake_binarize, fake_binarize_weight
from vqc.ops.linear import qlinear, qlinear_requantize
from vqc.ops.lut import lut
from vqc.ops.masked import masked_bconv2d, masked_conv2d, masked_qconv2d, masked_qconv2d_requantize
from vqc.ops.ordered import conv2d, conv_transpose2d
from vqc.ops.pool import avg_pool2d, mean_hw, pool_windows
from vqc.ops.resample import bilinear_table, grid_sample, resize_bilinear

__all__ = [
    "EXACT", "avg_pool2d", "bconv2d", "bconv2d_threshold", "bilinear_table", "binarize", "binary_scale", "conv2d",
    "conv_transpose2d", "exp", "fake_binarize", "fake_binarize_weight", "grid_sample", "hardsigmoid", "hardswish",
    "is_exact", "lut", "masked_bconv2d", "masked_conv2d", "masked_qconv2d", "masked_qconv2d_requantize", "mean_hw",
    "pool_windows", "qconv2d", "qconv2d_requantize", "qconv_transpose2d", "qconv_transpose2d_requantize", "qlinear",
    "qlinear_requantize", "resize_bilinear", "sigmoid", "silu", "tanh",
]  # fmt: skip
