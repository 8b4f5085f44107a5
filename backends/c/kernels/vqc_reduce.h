/* Reductions, softmax and normalisations over the middle axis of [outer,count,inner]; dense. */
#ifndef VQC_REDUCE_H
#define VQC_REDUCE_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum vqc_reduction { VQC_REDUCE_SUM = 0, VQC_REDUCE_MAX = 1, VQC_REDUCE_MIN = 2, VQC_REDUCE_PROD = 3 };

typedef struct vqc_reduce_params {
    int32_t kind;
    int32_t log;                   /* of a softmax: its logarithm */
    int32_t safe;                  /* of a softmax: zeros where all is -infinity, instead of NaN */
    ptrdiff_t outer, count, inner; /* x [outer,count,inner] -> y [outer,inner] */
    float factor;                  /* of a sum: 1 / count for a mean */
} vqc_reduce_params;

/* A NaN wins in maxima and minima. Integer sums and products wrap. */
void vqc_reduce_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y);
void vqc_reduce_s64(const vqc_model *m, const vqc_reduce_params *p, const int64_t *x, int64_t *y);

/* Where the largest (VQC_REDUCE_MAX) or smallest value is: the first of equal ones; the first NaN. */
void vqc_arg_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, int64_t *y);
void vqc_arg_s64(const vqc_model *m, const vqc_reduce_params *p, const int64_t *x, int64_t *y);

/* Sums or products up to every element, or the largest or smallest so far: y [outer,count,inner]. */
void vqc_running_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y);
void vqc_running_s64(const vqc_model *m, const vqc_reduce_params *p, const int64_t *x, int64_t *y);

/* y = e^(x - max) / sum over the middle axis of [outer,count,inner]. */
void vqc_softmax_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y);

typedef struct vqc_norm_params {
    ptrdiff_t rows, count; /* x [rows,count]: mean and variance over count */
    ptrdiff_t cycle, span; /* element e of row r has weight [r % cycle * (count / span) + e / span] */
    float eps;
    int32_t rms; /* divided by the root of the mean square, the mean stays */
} vqc_norm_params;

/* (x - mean) / sqrt(variance + eps) * weight + bias; weight and bias may be NULL. */
void vqc_norm_f32(const vqc_model *m, const vqc_norm_params *p, const float *x, const float *weight, const float *bias,
                  float *y);

#ifdef __cplusplus
}
#endif
#endif
