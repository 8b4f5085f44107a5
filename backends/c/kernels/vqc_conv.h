/* Convolutions, direct and transposed, over one, two or three axes (missing axes have size 1). NCDHW, contiguous. */
#ifndef VQC_CONV_H
#define VQC_CONV_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What follows the sum and the bias. */
enum vqc_activation {
    VQC_ACT_NONE = 0,
    VQC_ACT_CLAMP = 1, /* into [lo, hi]; relu is [0, infinity] */
    VQC_ACT_LEAKY = 2, /* y > 0 ? y : y * lo */
    VQC_ACT_PRELU = 3, /* y > 0 ? y : y * slope[channel] */
    VQC_ACT_HARDSIGMOID = 4,
    VQC_ACT_HARDSWISH = 5
};

typedef struct vqc_conv_params {
    int32_t n, c, d, h, w;                      /* input: batch, channels, depth, height, width */
    int32_t o, od, oh, ow;                      /* output: channels, depth, height, width */
    int32_t groups;
    int32_t kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw; /* kernel, stride, padding, dilation */
    int32_t rows;                               /* output rows of one task (of one phase when transposed) */
    int32_t act;                                /* enum vqc_activation */
    float lo, hi;                               /* of the activation */
    int32_t zeros;                              /* integer kernels: zero points of x, 1 or c */
    float inv_scale;                            /* integer kernels with u8 output */
    int32_t zero_point;
    size_t scratch;                             /* bytes of scratch for one worker */
} vqc_conv_params;

/* Weights of the float kernels: for each group (transposed: for each phase, then each group), blocks of 8 output
 * channels ([input channel][tap][8]); the last block of a group has 8, 4 or 1 columns, unused ones zero.
 *   bias [o] or NULL, slope [o] or NULL, scratch p->scratch * m->workers bytes. */
#define VQC_CONV_FLOAT(NAME)                                                                                          \
    void NAME(const vqc_model *m, const vqc_conv_params *p, const float *x, const float *w, const float *bias,        \
              const float *slope, float *y, void *scratch);
VQC_CONV_FLOAT(vqc_conv_f32)                 /* sums may be contracted to fused multiply-adds */
VQC_CONV_FLOAT(vqc_conv_transpose_f32)
VQC_CONV_FLOAT(vqc_conv_exact_f32)           /* product and sum rounded one by one: channel, then row, then column */
VQC_CONV_FLOAT(vqc_conv_transpose_exact_f32)

/* vqc_conv_f32 where mask [n][oh][ow] is not 0, and 0 elsewhere; a mask of NULL is true everywhere. Pictures only (kd 1).
 * More scratch: (3 * rows * pitch + 2 * (packed rows) + taps + 68) * 4 bytes, and from 32 output channels of a
 * group on (48 * planes * taps + 16) * 4 more, as cv_cover of vqc_conv_masked.h divides them. */
void vqc_masked_conv_f32(const vqc_model *m, const vqc_conv_params *p, const float *x, const float *w,
                         const float *bias, const float *slope, const uint8_t *mask, float *y, void *scratch);

/* Weights of the integer kernels: as above, two input channels side by side: [pair][tap][8][2]; an odd last channel has
 * a zero partner. acc = sum (x - zero) * w in 32 bits, y = (float)acc * scale[o] (+ bias[o]); u8 output: activation,
 * then clamp(rint(y * inv_scale) + zero_point, 0, 255). Names: input type, weight type, output type. */
#define VQC_CONV_INT(NAME, X, W, Y)                                                                                   \
    void NAME(const vqc_model *m, const vqc_conv_params *p, const X *x, const W *w, const float *scale,               \
              const float *bias, const int32_t *zero, Y *y, void *scratch);
VQC_CONV_INT(vqc_qconv_u8s8_f32, uint8_t, int8_t, float)
VQC_CONV_INT(vqc_qconv_u8s8_u8, uint8_t, int8_t, uint8_t)
VQC_CONV_INT(vqc_qconv_s8s8_f32, int8_t, int8_t, float)
VQC_CONV_INT(vqc_qconv_s8s8_u8, int8_t, int8_t, uint8_t)
VQC_CONV_INT(vqc_qconv_u8s16_f32, uint8_t, int16_t, float)
VQC_CONV_INT(vqc_qconv_u8s16_u8, uint8_t, int16_t, uint8_t)
VQC_CONV_INT(vqc_qconv_s8s16_f32, int8_t, int16_t, float)
VQC_CONV_INT(vqc_qconv_s8s16_u8, int8_t, int16_t, uint8_t)
VQC_CONV_INT(vqc_qconv_transpose_u8s8_f32, uint8_t, int8_t, float)
VQC_CONV_INT(vqc_qconv_transpose_u8s8_u8, uint8_t, int8_t, uint8_t)
VQC_CONV_INT(vqc_qconv_transpose_s8s8_f32, int8_t, int8_t, float)
VQC_CONV_INT(vqc_qconv_transpose_s8s8_u8, int8_t, int8_t, uint8_t)
VQC_CONV_INT(vqc_qconv_transpose_u8s16_f32, uint8_t, int16_t, float)
VQC_CONV_INT(vqc_qconv_transpose_u8s16_u8, uint8_t, int16_t, uint8_t)
VQC_CONV_INT(vqc_qconv_transpose_s8s16_f32, int8_t, int16_t, float)
VQC_CONV_INT(vqc_qconv_transpose_s8s16_u8, int8_t, int16_t, uint8_t)

/* Convolutions of u8 (layout c4) with s8 under a mask [n][oh][ow] (NULL: true everywhere): where it is 0 the output is 0, or
 * the zero point. The sums and what follows are those of the integer kernels above.
 *   w       as above, but four input channels side by side: [four][tap][8][4]
 *   offset  [2][o]: sum zero * w, and sum (zero - 128) * w
 *   zero    for each word of channels, x outside the picture
 * Channels of a group are multiples of 4 unless there is one group. Scratch as for vqc_masked_conv_f32. */
void vqc_masked_qconv_f32(const vqc_model *m, const vqc_conv_params *p, const void *x, const int8_t *w,
                          const float *scale, const float *bias, const int32_t *offset, const void *zero,
                          const uint8_t *mask, float *y, void *scratch);
void vqc_masked_qconv_u8(const vqc_model *m, const vqc_conv_params *p, const void *x, const int8_t *w,
                         const float *scale, const float *bias, const int32_t *offset, const void *zero,
                         const uint8_t *mask, uint8_t *y, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
