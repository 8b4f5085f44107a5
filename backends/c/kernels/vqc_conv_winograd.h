/* Float convolutions by Winograd's minimal filtering. */
#ifndef VQC_CONV_WINOGRAD_H
#define VQC_CONV_WINOGRAD_H

#include "vqc_conv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* vqc_conv_f32 where kernels have three rows, without a stride, and without dilation along the height; pictures only (kd 1).
 * p->rows is even. Weights: the rows of taps g0, g1, g2 become four kernels of one row, g0, (g0 + g1 + g2) / 2,
 * (g0 - g1 + g2) / 2 and g2, each packed as those of vqc_conv_f32, one behind the other.
 * Scratch for one worker: kw numbers; f32 [rows + 2][pitch]; f32 [4][c / groups][rows / 2][pitch], pitch = ow + (kw - 1) dw. */
VQC_CONV_FLOAT(vqc_conv_winograd_f32)

#ifdef __cplusplus
}
#endif
#endif
