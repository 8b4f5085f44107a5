/* A 1x1 convolution of what a row program makes, which may read another one's result: neither is stored whole. */
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
    size_t scratch; /* bytes of scratch for one worker: f32 [c][VQC_CONV_ROWS_RUN], and as many of the first one's */
} vqc_conv_rows_params;

/* y = the convolution (as vqc_conv_f32) of the row program's result on `in`, which has conv.c channels.
 * w0, bias0, slope0: of the first convolution, whose input is in[p->at] f32 [n][first->c][oh][ow]. */
void vqc_conv_rows_f32(const vqc_model *m, const vqc_conv_rows_params *p, const void *const *in, const float *w,
                       const float *bias, const float *slope, const float *w0, const float *bias0, const float *slope0,
                       float *y, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
