/* Reductions, softmax and normalisations; float, contiguous. */
#ifndef VQC_REDUCE_H
#define VQC_REDUCE_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum vqc_reduction { VQC_REDUCE_SUM = 0, VQC_REDUCE_MAX = 1, VQC_REDUCE_MIN = 2 };

typedef struct vqc_reduce_params {
    int32_t kind;
    ptrdiff_t outer, count, inner; /* x [outer,count,inner] -> y [outer,inner] */
    float factor;                  /* of a sum: 1 / count for a mean */
} vqc_reduce_params;

void vqc_reduce_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y);

/* y = e^(x - max) / sum over the middle axis of [outer,count,inner]. */
void vqc_softmax_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y);

typedef struct vqc_norm_params {
    ptrdiff_t rows, count; /* x [rows,count]: mean and variance over count */
    ptrdiff_t cycle, span; /* element e of row r has weight [r % cycle * (count / span) + e / span] */
    float eps;
} vqc_norm_params;

/* (x - mean) / sqrt(variance + eps) * weight + bias; weight and bias may be NULL. */
void vqc_norm_f32(const vqc_model *m, const vqc_norm_params *p, const float *x, const float *weight, const float *bias,
                  float *y);

#ifdef __cplusplus
}
#endif
#endif
