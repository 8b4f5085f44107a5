/* A 1x1 convolution of what a row program makes, which may read another one's result and that of a convolution under a mask:
 * none of them is stored whole. */
#ifndef VQC_CONV_ROWS_H
#define VQC_CONV_ROWS_H

#include "vqc_c4.h"
#include "vqc_conv.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VQC_CONV_ROWS_RUN 512 /* positions of one task */

typedef struct vqc_conv_rows_params {
    vqc_conv_params conv; /* one group, stride 1, no padding */
    vqc_rows rest;        /* gives one channel of f32 */
    const vqc_conv_params *first; /* NULL, or a 1x1 convolution whose result is the row program's operand `at` */
    int32_t at;
    const vqc_conv_params *masked; /* NULL, or a convolution under a mask, of one group, whose result is operand `masked_at`;
                                    * its bands of rows are the tasks then */
    int32_t masked_at;
    size_t scratch; /* bytes of scratch for one worker: f32 [c][VQC_CONV_ROWS_RUN], as many of the first one's, a band of the
                     * masked one's result [o][rows * ow], and what that one takes; each in whole VQC_ALIGN bytes */
} vqc_conv_rows_params;

/* y = the convolution (as vqc_conv_f32) of the row program's result on `in`, which has conv.c channels.
 * w0, bias0, slope0: of the first convolution, whose input is in[p->at] f32 [n][first->c][oh][ow].
 * w1, bias1, mask: of the masked one, whose input is in[p->masked_at]. */
void vqc_conv_rows_f32(const vqc_model *m, const vqc_conv_rows_params *p, const void *const *in, const float *w,
                       const float *bias, const float *slope, const float *w0, const float *bias0, const float *slope0,
                       const float *w1, const float *bias1, const uint8_t *mask, float *y, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
