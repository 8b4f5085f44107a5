"""Slow second opinions on the operators: loops over outputs and taps, integers in int64, floats as float32 scalars."""

from __future__ import annotations

import numpy as np
import torch

F = np.float32


def run(op, *args):
    """Call an operator and check that its meta form has the same shape, dtype and strides."""
    result = op(*args)
    meta = op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
    assert (meta.shape, meta.dtype, meta.stride()) == (result.shape, result.dtype, result.stride())
    assert result.is_contiguous()
    return result


def same_bits(got: torch.Tensor, want: np.ndarray) -> None:
    """Equal shape, dtype and bits (so +0 and -0 differ, and equal NaN are equal)."""
    have = got.numpy()
    assert (have.shape, have.dtype) == (want.shape, want.dtype)
    view = {4: np.uint32, 1: np.uint8}[have.dtype.itemsize]
    np.testing.assert_array_equal(np.ascontiguousarray(have).view(view), np.ascontiguousarray(want).view(view))


def conv_taps(x_shape, w_shape, out_hw, stride, padding, dilation, groups, transposed):
    """Yield (o, y, x, [(ci, iy, ix, kh, kw), ...]): the real taps of every output, in the order ci, kh, kw.

    `ci` counts inside the group.
    """
    channels, (h, w), (kh, kw) = x_shape[1], x_shape[2:], w_shape[2:]
    per_in = channels // groups
    outs = w_shape[1] * groups if transposed else w_shape[0]
    for o in range(outs):
        for y in range(out_hw[0]):
            for x in range(out_hw[1]):
                taps = []
                for ci in range(per_in):
                    for i in range(kh):
                        for j in range(kw):
                            if transposed:
                                ty, tx = y + padding[0] - i * dilation[0], x + padding[1] - j * dilation[1]
                                if ty % stride[0] or tx % stride[1]:
                                    continue
                                iy, ix = ty // stride[0], tx // stride[1]
                            else:
                                iy = y * stride[0] - padding[0] + i * dilation[0]
                                ix = x * stride[1] - padding[1] + j * dilation[1]
                            if 0 <= iy < h and 0 <= ix < w:
                                taps.append((ci, iy, ix, i, j))
                yield o, y, x, taps


def weight_index(o, ci, w_shape, groups, transposed):
    """(first, second) weight index and the input channel of tap `ci` of output channel `o`."""
    if transposed:
        per_in, per_out = w_shape[0] // groups, w_shape[1]
        c = o // per_out * per_in + ci
        return c, o % per_out, c
    per_in, per_out = w_shape[1], w_shape[0] // groups
    return o, ci, o // per_out * per_in + ci


def conv_out_hw(x_shape, w_shape, stride, padding, dilation, output_padding, transposed):
    """Output size of a convolution or a transposed one, from the taps' geometry."""
    sizes = []
    for i in (0, 1):
        reach = dilation[i] * (w_shape[2 + i] - 1) + 1
        if transposed:
            sizes.append((x_shape[2 + i] - 1) * stride[i] + reach + output_padding[i] - 2 * padding[i])
        else:
            sizes.append(len(range(0, x_shape[2 + i] + 2 * padding[i] - reach + 1, stride[i])))
    return sizes


def integer_conv(x, w, scale, bias, x_zero, stride, padding, dilation, groups, output_padding=None):
    """qconv2d (or qconv_transpose2d, when output_padding is given) by loops; numpy arrays in, float32 out."""
    transposed = output_padding is not None
    hw = conv_out_hw(x.shape, w.shape, stride, padding, dilation, output_padding, transposed)
    outs = w.shape[1] * groups if transposed else w.shape[0]
    result = np.zeros((x.shape[0], outs, *hw), F)
    zero = np.broadcast_to(x_zero.astype(np.int64), (x.shape[1],))
    for o, y, xx, taps in conv_taps(x.shape, w.shape, hw, stride, padding, dilation, groups, transposed):
        for n in range(x.shape[0]):
            acc = 0
            for ci, iy, ix, i, j in taps:
                a, b, c = weight_index(o, ci, w.shape, groups, transposed)
                acc += (int(x[n, c, iy, ix]) - int(zero[c])) * int(w[a, b, i, j])
            v = F(acc) * scale[o]
            result[n, o, y, xx] = v if bias is None else v + bias[o]
    return result


def float_conv(x, w, bias, stride, padding, dilation, groups, output_padding=None):
    """vqc::conv2d (or conv_transpose2d) by float32 scalars, tap after tap."""
    transposed = output_padding is not None
    hw = conv_out_hw(x.shape, w.shape, stride, padding, dilation, output_padding, transposed)
    outs = w.shape[1] * groups if transposed else w.shape[0]
    result = np.zeros((x.shape[0], outs, *hw), F)
    for o, y, xx, taps in conv_taps(x.shape, w.shape, hw, stride, padding, dilation, groups, transposed):
        for n in range(x.shape[0]):
            acc = F(0)
            for ci, iy, ix, i, j in taps:
                a, b, c = weight_index(o, ci, w.shape, groups, transposed)
                acc = acc + x[n, c, iy, ix] * w[a, b, i, j]
            result[n, o, y, xx] = acc if bias is None else acc + bias[o]
    return result


def requantized(y, activation, inv_scale, zero_point):
    """f32 -> u8, value by value, with Python's own half-to-even rounding."""
    out = np.zeros(y.shape, np.uint8)
    for i, v in np.ndenumerate(y):
        if activation == "relu":
            v = max(v, F(0))
        out[i] = min(max(round(float(v * F(inv_scale))) + zero_point, 0), 255)
    return out
