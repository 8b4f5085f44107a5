/* Matrix products: y [batch,m,n] = a [batch,m,k] b [batch,k,n] (+ bias [n]). */
#ifndef VQC_MATMUL_H
#define VQC_MATMUL_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_matmul_params {
    int32_t batch, m, k, n;
    ptrdiff_t a_step, b_step; /* elements from one batch to the next; 0: the same matrix for all */
} vqc_matmul_params;

/* bias may be NULL. Sums may be contracted to fused multiply-adds. */
void vqc_matmul_f32(const vqc_model *m, const vqc_matmul_params *p, const float *a, const float *b, const float *bias,
                    float *y);

#ifdef __cplusplus
}
#endif
#endif
